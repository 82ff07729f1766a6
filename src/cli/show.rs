//! What people see of a run: a progress display while it works, a table of counts when it ends.

use std::{io::IsTerminal as _, time::Duration};

use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use tokio::sync::watch;

use crate::sync::{Board, Outcome, Progress, Report, Step, TypeEnd};

/// Waits for `work` and shows its progress; only on a terminal, because a journal has no use for it.
pub async fn with_progress<T>(work: impl Future<Output = T>, mut board: watch::Receiver<Board>) -> T {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(100));
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => {
                bar.finish_and_clear();
                return done;
            }
            Ok(()) = board.changed() => {
                let activities: Vec<_> = board.borrow_and_update().values().map(message).collect();
                bar.set_message(activities.join("; "));
            }
        }
    }
}

fn message(progress: &Progress) -> String {
    match progress.step {
        Step::Streaming => format!(
            "streaming: {} of {} files, {} lines, {}",
            progress.files_done,
            progress.files,
            HumanCount(progress.lines),
            HumanBytes(progress.bytes)
        ),
        ref step => step.to_string(),
    }
}

const HEAD: [&str; 9] =
    ["type", "received", "inserted", "updated", "deleted", "unchanged", "stale", "duplicate", "quarantined"];

/// The counts of each type, what the operator should know, and the outcome.
pub fn report(report: &Report) {
    let width = report.types.keys().map(|of| of.as_str().len()).max().unwrap_or_default().max(8);
    let line = |first: &str, cells: &[String]| {
        let cells = cells.iter().map(|cell| format!(" {cell:>11}"));
        format!("{first:width$}{}", cells.collect::<String>())
    };
    say!("{} {:>8}", line(HEAD[0], &HEAD[1..].iter().map(ToString::to_string).collect::<Vec<_>>()), "version");
    for (resource_type, of) in &report.types {
        let counts = &of.counts;
        let cells = [
            of.received,
            counts.inserted,
            counts.updated,
            counts.deleted + counts.removed,
            counts.unchanged,
            counts.stale,
            counts.duplicate,
            of.quarantined,
        ]
        .map(|count| HumanCount(count).to_string());
        let row = line(resource_type.as_str(), &cells);
        match &of.end {
            TypeEnd::Committed { version, .. } => say!("{row} {version:>8}"),
            TypeEnd::Instalment { version } => say!("{row} {version:>8}  an instalment"),
            TypeEnd::WatermarkHeld { version } => say!("{row} {version:>8}  the watermark was not moved"),
            TypeEnd::Behind { version, watermark } => say!("{row} {version:>8}  behind: the watermark is {watermark}"),
            TypeEnd::SetBack { version } => say!("{row} {version:>8}  set back: the watermark was not moved"),
            TypeEnd::Failed(failure) => say!("{row} {:>8}  {}", "-", failure.cause),
            TypeEnd::Denied { missing_scope } => say!("{row} {:>8}  denied: {missing_scope} is not granted", "-"),
            TypeEnd::Missing { on_server } => say!("{row} {:>8}  missing: the server has {on_server}", "-"),
            TypeEnd::Unconfirmed => say!("{row} {:>8}  unconfirmed: nothing arrived", "-"),
            TypeEnd::NotReached => say!("{row} {:>8}", "-"),
        }
    }
    for (resource_type, of) in report.types.iter().filter(|(_, of)| of.foreign_commits > 0) {
        say!("! {resource_type}: commits by other writers since our last one: {}", of.foreign_commits);
    }
    for note in &report.notes {
        say!("  {note}");
    }
    for remark in &report.remarks {
        say!("! {remark}");
    }
    let duration = (report.ended_at - report.started_at).to_std().unwrap_or_default();
    say!("{}", how_it_ended(report, duration));
}

fn how_it_ended(report: &Report, duration: Duration) -> String {
    let (outcome, mode, duration) = (report.outcome, report.mode, HumanDuration(duration));
    let ended = format!("{outcome} after {duration} ({mode})");
    let received = HumanCount(report.received());
    match (outcome, report.changed()) {
        (Outcome::Complete, 0) => format!("{ended}: {received} received, nothing changed"),
        (Outcome::Complete, changed) => format!("{ended}: {received} received, {} changed", rows(changed)),
        _ => ended,
    }
}

/// "1 row", "7,664 rows".
pub fn rows(count: u64) -> String {
    format!("{} row{}", HumanCount(count), if count == 1 { "" } else { "s" })
}

/// "1 export", "2 exports".
pub fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
