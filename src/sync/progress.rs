//! Progress: which step a run is at, for a terminal, `/health` and systemd's status line.

use std::fmt;

use tokio::sync::watch;

use crate::{fhir::ResourceType, table::TableName};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub step: Step,
    /// These four are of the export that is streamed now, or was streamed last.
    pub files: u64,
    pub files_done: u64,
    pub lines: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Step {
    #[default]
    Idle,
    Planning,
    KickingOff,
    Waiting {
        polls: u32,
        server_says: Option<String>,
    },
    Streaming,
    Upserting(ResourceType),
    Settling,
    Maintaining(TableName),
}

impl fmt::Display for Step {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Idle => out.write_str("idle"),
            Self::Planning => out.write_str("planning"),
            Self::KickingOff => out.write_str("requesting an export"),
            Self::Waiting { polls, server_says: Some(words) } => {
                write!(out, "waiting for the server (poll {polls}: {words})")
            }
            Self::Waiting { polls, server_says: None } => write!(out, "waiting for the server (poll {polls})"),
            Self::Streaming => out.write_str("streaming files"),
            Self::Upserting(resource_type) => write!(out, "upserting {resource_type}"),
            Self::Settling => out.write_str("settling"),
            Self::Maintaining(table) => write!(out, "maintaining the table {table}"),
        }
    }
}

/// The writing end, shared by the tasks of a run.
#[derive(Clone, Debug)]
pub struct ProgressSender(watch::Sender<Progress>);

impl ProgressSender {
    pub fn new() -> (Self, watch::Receiver<Progress>) {
        let (sender, receiver) = watch::channel(Progress::default());
        (Self(sender), receiver)
    }

    /// The files of an export begin to arrive; the counts begin at zero again.
    pub fn streaming(&self, files: u64) {
        self.0.send_replace(Progress { step: Step::Streaming, files, ..Progress::default() });
    }

    pub fn step(&self, step: Step) {
        self.0.send_modify(|progress| progress.step = step);
    }

    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.0.send_modify(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_an_export_begin_at_zero() {
        let (sender, progress) = ProgressSender::new();
        sender.streaming(5);
        sender.update(|progress| (progress.files_done, progress.lines, progress.bytes) = (5, 1544, 9000));
        sender.step(Step::Settling);
        sender.streaming(3);
        let expected = Progress { step: Step::Streaming, files: 3, files_done: 0, lines: 0, bytes: 0 };
        assert_eq!(*progress.borrow(), expected);
    }
}
