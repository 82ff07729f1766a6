//! What people see of a run while it works: on a terminal a line for each activity, with a bar where it is known how much
//! there is to do; elsewhere a line of the log every 30 s.

use std::{collections::BTreeMap, io::IsTerminal as _, time::Duration};

use bytesize::ByteSize;
use indicatif::HumanCount;
use tokio::{sync::watch, time::interval};

use super::show::counted;
use crate::{
    sync::{Activity, Board, Progress, Step},
    telemetry::ProgressLine,
};

const DRAW_EVERY: Duration = Duration::from_millis(200);
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Waits for `work` and shows its progress.
pub async fn with_progress<T>(work: impl Future<Output = T>, board: watch::Receiver<Board>) -> T {
    let is_terminal = std::io::stderr().is_terminal();
    let mut ticks = interval(if is_terminal { DRAW_EVERY } else { LOG_EVERY });
    ticks.reset();
    let mut lines = BTreeMap::new();
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = ticks.tick() => {
                let board = board.borrow().clone();
                if is_terminal { draw(&mut lines, &board) } else { log(&board) }
            }
        }
    }
}

fn draw(lines: &mut BTreeMap<Activity, ProgressLine>, board: &Board) {
    lines.retain(|activity, _| board.contains_key(activity));
    for (activity, progress) in board {
        let line = lines.entry(activity.clone()).or_insert_with(ProgressLine::begin);
        line.set(&format!("{}: {}", name(activity), text(progress, Bar::Drawn)));
    }
}

fn log(board: &Board) {
    for (activity, progress) in board {
        let Progress { files, files_done, lines, bytes, .. } = *progress;
        tracing::info!(files, files_done, lines, bytes, "{activity}: {}", text(progress, Bar::None));
    }
}

fn name(activity: &Activity) -> &str {
    match activity {
        Activity::Maintenance => "maintenance",
        Activity::ByHand => "command",
        Activity::Sync { export } => export,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bar {
    Drawn,
    None,
}

fn text(progress: &Progress, bar: Bar) -> String {
    let elapsed = progress.step_began.map(|began| began.elapsed()).unwrap_or_default();
    match &progress.step {
        Step::Streaming => streaming(progress, elapsed, bar),
        step => {
            let elapsed = (elapsed >= Duration::from_secs(1)).then(|| format!("for {}", short(elapsed)));
            let parts = [Some(step.to_string()), progress.retrying(), elapsed];
            parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
        }
    }
}

/// "[=====>      ] 45 %, 2 min left, 7 of 12 files, 1,234,567 lines, 8.1 MiB/s, 412.3 MiB". The time left is known only
/// where the server says how many lines there are: files differ too much.
fn streaming(progress: &Progress, elapsed: Duration, bar: Bar) -> String {
    let Progress { files, files_done, lines, bytes, lines_announced, .. } = *progress;
    let (done, of) = lines_announced.map_or((files_done, files), |announced| (lines, announced));
    let mut parts = Vec::new();
    if let Some(percent) = (done.min(of) * 100).checked_div(of) {
        let drawn = if bar == Bar::Drawn { drawn(percent) } else { "streaming, ".to_owned() };
        parts.push(format!("{drawn}{percent} %"));
    }
    // Before what may be cut off.
    parts.extend(progress.retrying());
    if lines_announced.is_some() && done > 0 && done < of && elapsed >= MIN_MEASURED {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let left = elapsed.mul_f64((of - done) as f64 / done as f64);
        parts.push(format!("{} left", short(left)));
    }
    parts.push(format!("{files_done} of {}", counted(files, "file")));
    parts.push(format!("{} lines", HumanCount(lines)));
    if elapsed >= MIN_MEASURED {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate"
        )]
        let rate = (bytes as f64 / elapsed.as_secs_f64()) as u64;
        parts.push(format!("{}/s", size(rate)));
    }
    parts.push(size(bytes));
    parts.join(", ")
}

/// Before this, a rate says nothing.
const MIN_MEASURED: Duration = Duration::from_secs(2);

const BAR_WIDTH: usize = 12;

fn drawn(percent: u64) -> String {
    let full = usize::try_from(percent).unwrap_or(100) * BAR_WIDTH / 100;
    let head = if full < BAR_WIDTH { ">" } else { "" };
    format!("[{:BAR_WIDTH$}] ", format!("{}{head}", "=".repeat(full)))
}

fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

/// "45 s", "12 min", "2 h 5 min".
fn short(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ ..90 => format!("{seconds} s"),
        seconds @ ..3600 => format!("{} min", seconds / 60),
        seconds => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Retry;

    fn at(lines_announced: Option<u64>) -> Progress {
        Progress {
            step: Step::Streaming,
            files: 12,
            files_done: 7,
            lines: 1_234_567,
            lines_announced,
            bytes: 432_300_000,
            ..Progress::default()
        }
    }

    #[test]
    fn what_streams_has_a_bar_a_rate_and_where_the_lines_are_known_the_time_left() {
        let elapsed = Duration::from_secs(51);
        let known = streaming(&at(Some(2_743_482)), elapsed, Bar::Drawn);
        assert_eq!(known, "[=====>      ] 45 %, 62 s left, 7 of 12 files, 1,234,567 lines, 8.1 MiB/s, 412.3 MiB");
        assert!(known.chars().count() <= 84, "the size may be cut off, nothing else");
        let unknown = streaming(&at(None), elapsed, Bar::Drawn);
        assert_eq!(unknown, "[======>     ] 58 %, 7 of 12 files, 1,234,567 lines, 8.1 MiB/s, 412.3 MiB");
        let logged = streaming(&at(None), Duration::ZERO, Bar::None);
        assert_eq!(logged, "streaming, 58 %, 7 of 12 files, 1,234,567 lines, 412.3 MiB");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_tried_again_is_shown_beside_the_step() {
        let retry = |seconds, reason: &str| {
            let at = tokio::time::Instant::now() + Duration::from_secs(seconds);
            Some(Retry { number: 3, at, reason: reason.to_owned() })
        };
        let streamed = Progress { retry: retry(8, "503"), ..at(None) };
        let shown = text(&streamed, Bar::Drawn);
        assert!(shown.starts_with("[======>     ] 58 %, retry 3 in 8 s: 503, 7 of 12 files"), "{shown}");
        let retry = retry(2, "connection refused");
        let asked = Progress { step: Step::KickingOff, retry, ..Progress::default() };
        assert_eq!(text(&asked, Bar::None), "requesting an export, retry 3 in 2 s: connection refused");
    }

    #[test]
    fn more_than_was_announced_is_all_of_it_without_a_time_left() {
        let text = streaming(&at(Some(1_000_000)), Duration::from_mins(1), Bar::Drawn);
        assert!(text.starts_with("[============] 100 %, 7 of 12 files"), "{text}");
        let nothing = Progress { step: Step::Streaming, ..Progress::default() };
        assert_eq!(streaming(&nothing, Duration::ZERO, Bar::Drawn), "0 of 0 files, 0 lines, 0 B");
    }

    #[test]
    fn other_steps_say_how_long_they_have_taken() {
        let waiting = Step::Waiting { polls: 5, server_says: Some("45 %".to_owned()) };
        let text = text(&Progress { step: waiting, ..Progress::default() }, Bar::Drawn);
        assert_eq!(text, "waiting for the server (poll 5: 45 %)");
        assert_eq!([45, 720, 7500].map(|seconds| short(Duration::from_secs(seconds))), ["45 s", "12 min", "2 h 5 min"]);
    }
}
