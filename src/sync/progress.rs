//! Progress: which step each run is at, for a terminal, `/health` and systemd's status line.

use std::{collections::BTreeMap, fmt};

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
    /// Another export, or maintenance, writes.
    WaitingForTurn,
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
            Self::WaitingForTurn => out.write_str("waiting for its turn"),
            Self::Streaming => out.write_str("streaming files"),
            Self::Upserting(resource_type) => write!(out, "upserting {resource_type}"),
            Self::Settling => out.write_str("settling"),
            Self::Maintaining(table) => write!(out, "maintaining the table {table}"),
        }
    }
}

/// What is being done: a run for each export at most, and maintenance.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Activity {
    Maintenance,
    Sync { export: String },
}

impl fmt::Display for Activity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maintenance => out.write_str("maintenance"),
            Self::Sync { export } => write!(out, "sync of {export}"),
        }
    }
}

/// The activities at this moment, each with its progress.
pub type Board = BTreeMap<Activity, Progress>;

/// The writing end of the board.
#[derive(Clone, Debug)]
pub struct ProgressBoard(watch::Sender<Board>);

impl ProgressBoard {
    pub fn new() -> (Self, watch::Receiver<Board>) {
        let (sender, receiver) = watch::channel(Board::new());
        (Self(sender), receiver)
    }

    pub fn of(&self, activity: Activity) -> ProgressSender {
        ProgressSender { board: self.0.clone(), activity }
    }
}

/// The writing end of one activity, shared by its tasks.
#[derive(Clone, Debug)]
pub struct ProgressSender {
    board: watch::Sender<Board>,
    activity: Activity,
}

impl ProgressSender {
    pub fn activity(&self) -> &Activity {
        &self.activity
    }

    /// The files of an export begin to arrive; the counts begin at zero again.
    pub fn streaming(&self, files: u64) {
        self.update(|progress| *progress = Progress { step: Step::Streaming, files, ..Progress::default() });
    }

    pub fn step(&self, step: Step) {
        self.update(|progress| progress.step = step);
    }

    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.board.send_modify(|board| change(board.entry(self.activity.clone()).or_default()));
    }

    /// The activity has ended; the next one of its kind begins with nothing.
    pub fn end(&self) {
        self.board.send_modify(|board| _ = board.remove(&self.activity));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counts_of_an_export_begin_at_zero() {
        let (board, seen) = ProgressBoard::new();
        let all = Activity::Sync { export: "all".to_owned() };
        let sender = board.of(all.clone());
        sender.streaming(5);
        sender.update(|progress| (progress.files_done, progress.lines, progress.bytes) = (5, 1544, 9000));
        sender.step(Step::Settling);
        sender.streaming(3);
        let expected = Progress { step: Step::Streaming, files: 3, files_done: 0, lines: 0, bytes: 0 };
        assert_eq!(seen.borrow()[&all], expected);
        sender.update(|progress| progress.lines = 7);
        sender.end();
        sender.step(Step::Planning);
        assert_eq!(seen.borrow()[&all], Progress { step: Step::Planning, ..Progress::default() });
    }

    #[test]
    fn each_export_has_its_own_progress() {
        let (board, seen) = ProgressBoard::new();
        let [one, two] = ["one", "two"].map(|export| Activity::Sync { export: export.to_owned() });
        board.of(one.clone()).step(Step::Streaming);
        board.of(two.clone()).step(Step::WaitingForTurn);
        board.of(one.clone()).end();
        assert_eq!(seen.borrow().keys().collect::<Vec<_>>(), [&two]);
    }
}
