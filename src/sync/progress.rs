//! Progress: where a run is just now, for whoever watches: a terminal, health, systemd's status line.

use std::fmt;

use tokio::sync::watch;

use crate::{fhir::ResourceType, table::TableName};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub step: Step,
    /// Of the export whose files are streamed now.
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
            Self::KickingOff => out.write_str("asking the server for an export"),
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

    pub fn step(&self, step: Step) {
        self.0.send_modify(|progress| progress.step = step);
    }

    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.0.send_modify(change);
    }
}
