//! What people see of a run while it works.

use std::{io::IsTerminal as _, time::Duration};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use tokio::sync::watch;

use crate::sync::{Board, Progress, Step};

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
