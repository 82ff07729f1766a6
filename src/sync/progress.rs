//! Progress: which step each run is at, for a terminal, `/health` and systemd's status line.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use super::clock::now;
use crate::{
    export::{OnRetry, RetryNotice},
    fhir::ResourceType,
    table::TableName,
    telemetry::metrics,
};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub step: Step,
    /// When the step began; the upserts of several types are one step.
    #[serde(with = "elapsed")]
    pub step_began: Option<Instant>,
    /// These five are of the export that is streamed now, or was streamed last.
    pub files: u64,
    pub files_done: u64,
    pub lines: u64,
    /// How many lines the files have, where the manifest says it of each of them.
    pub lines_announced: Option<u64>,
    /// Decoded.
    pub bytes: u64,
    /// The request that is tried again next, of those at work.
    pub retry: Option<Retry>,
}

/// A wait before another attempt at a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// 1 after the first attempt.
    pub number: u32,
    #[serde(with = "remaining")]
    pub at: Instant,
    /// In a word or two: "503".
    pub reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// What somebody has asked for by a command.
    ByHand,
    /// Another process works on the export.
    InAnotherProcess {
        holder: String,
    },
}

impl Step {
    /// As metrics name it; `None` for what is no step of a sync or of maintenance.
    pub fn word(&self) -> Option<metrics::Step> {
        Some(match self {
            Self::Idle | Self::ByHand | Self::InAnotherProcess { .. } => return None,
            Self::Planning => metrics::Step::Planning,
            Self::KickingOff => metrics::Step::KickingOff,
            Self::Waiting { .. } => metrics::Step::Waiting,
            Self::WaitingForTurn => metrics::Step::WaitingForTurn,
            Self::Streaming => metrics::Step::Streaming,
            Self::Upserting(_) => metrics::Step::Upserting,
            Self::Settling => metrics::Step::Settling,
            Self::Maintaining(_) => metrics::Step::Maintaining,
        })
    }
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
            Self::ByHand => out.write_str("doing what a command asked for"),
            Self::InAnotherProcess { holder } => write!(out, "at work in another fhir-sync, {holder}"),
        }
    }
}

impl Progress {
    /// "retry 3 in 8 s: 503"; nothing while no request waits.
    pub fn retrying(&self) -> Option<String> {
        let Retry { number, at, reason } = self.retry.as_ref()?;
        let left = at.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        // A wait that is shown as 0 s would seem to be over.
        Some(format!("retry {number} in {:.0} s: {reason}", left.as_secs_f64().ceil()))
    }

    fn end_step(&mut self) {
        if let (Some(step), Some(began)) = (self.step.word(), self.step_began.take()) {
            metrics::step_ended(step, began.elapsed());
        }
    }
}

/// What is being done: a run for each export at most, maintenance, and what a command asks for besides those.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Activity {
    Maintenance,
    ByHand,
    Sync { export: String },
}

impl fmt::Display for Activity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maintenance => out.write_str("maintenance"),
            Self::ByHand => out.write_str("command"),
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

    /// Shows what is being done elsewhere.
    pub fn replace(&self, board: Board) {
        self.0.send_replace(board);
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
    pub fn streaming(&self, files: u64, lines_announced: Option<u64>) {
        self.step(Step::Streaming);
        self.update(|progress| {
            let (step, step_began) = (progress.step.clone(), progress.step_began);
            *progress = Progress { step, step_began, files, lines_announced, ..Progress::default() };
        });
    }

    /// Shows each wait before another attempt at a request.
    pub fn on_retry(&self) -> OnRetry {
        let sender = self.clone();
        Arc::new(move |RetryNotice { number, wait, reason }| {
            let retry = Retry { number, at: Instant::now() + wait, reason };
            sender.update(|progress| progress.retry = Some(retry));
        })
    }

    pub fn step(&self, step: Step) {
        self.update(|progress| {
            if progress.step.word() != step.word() || progress.step_began.is_none() {
                progress.end_step();
                progress.step_began = Some(Instant::now());
                if let Activity::Sync { export } = &self.activity {
                    metrics::step_began(export, now());
                }
            }
            progress.step = step;
        });
    }

    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        self.board.send_modify(|board| change(board.entry(self.activity.clone()).or_default()));
    }

    /// The activity has ended; the next one of its kind begins with nothing.
    pub fn end(&self) {
        self.board.send_modify(|board| {
            if let Some(mut progress) = board.remove(&self.activity) {
                progress.end_step();
            }
        });
    }
}

/// An instant that is to come, in another process, as the time until then.
mod remaining {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};
    use tokio::time::Instant;

    pub fn serialize<S: Serializer>(at: &Instant, serializer: S) -> Result<S::Ok, S::Error> {
        at.saturating_duration_since(Instant::now()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Instant, D::Error> {
        Ok(Instant::now() + Duration::deserialize(deserializer)?)
    }
}

/// An instant of another process, as the time since then.
mod elapsed {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};
    use tokio::time::Instant;

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub fn serialize<S: Serializer>(began: &Option<Instant>, serializer: S) -> Result<S::Ok, S::Error> {
        began.map(|began| began.elapsed()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Instant>, D::Error> {
        let elapsed = Option::<Duration>::deserialize(deserializer)?;
        Ok(elapsed.and_then(|elapsed| Instant::now().checked_sub(elapsed)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_counts_of_an_export_begin_at_zero() {
        let (board, seen) = ProgressBoard::new();
        let all = Activity::Sync { export: "all".to_owned() };
        let sender = board.of(all.clone());
        sender.streaming(5, Some(1544));
        sender.update(|progress| (progress.files_done, progress.lines, progress.bytes) = (5, 1544, 9000));
        sender.step(Step::Settling);
        sender.streaming(3, None);
        let counts = |progress: &Progress| [progress.files, progress.files_done, progress.lines, progress.bytes];
        assert_eq!(seen.borrow()[&all].step, Step::Streaming);
        assert_eq!(counts(&seen.borrow()[&all]), [3, 0, 0, 0]);
        sender.update(|progress| progress.lines = 7);
        sender.end();
        sender.step(Step::Planning);
        assert_eq!(seen.borrow()[&all].step, Step::Planning);
        assert_eq!(counts(&seen.borrow()[&all]), [0; 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_is_shown_until_it_is_made_and_survives_the_way_to_another_process() {
        let (board, seen) = ProgressBoard::new();
        let all = Activity::Sync { export: "all".to_owned() };
        let wait = Duration::from_millis(7900);
        board.of(all.clone()).on_retry()(RetryNotice { number: 3, wait, reason: "503".to_owned() });
        let text = serde_json::to_string(&seen.borrow()[&all]).unwrap();
        let elsewhere: Progress = serde_json::from_str(&text).unwrap();
        for progress in [elsewhere, seen.borrow()[&all].clone()] {
            assert_eq!(progress.retrying().as_deref(), Some("retry 3 in 8 s: 503"));
        }
        tokio::time::advance(wait).await;
        assert_eq!(seen.borrow()[&all].retrying(), None);
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
