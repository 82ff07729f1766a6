//! Stalls: work that is expected to advance and does not. A loop that still turns says nothing about that.
//!
//! An activity advances when its step, lines, bytes or files change, or when the rooms below note work. Waits that have
//! limits of their own do not count: for the server's export, for a kick-off, and for the turn.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::sync::{Activity, Board, Progress, Step};

/// When each activity last advanced.
#[derive(Default)]
pub struct Stalls {
    seen: HashMap<Activity, Seen>,
    /// How much work was noted, of all activities.
    noted: u64,
}

struct Seen {
    progress: Progress,
    advanced: Instant,
    is_reported: bool,
}

/// An activity that hangs.
#[derive(Debug, PartialEq, Eq)]
pub struct Stall {
    pub activity: Activity,
    pub step: Step,
    pub since: Duration,
    /// Nobody was told before.
    pub is_new: bool,
}

impl Stalls {
    /// Looks at what is at work. `noted` counts the work of all activities: one of them writes at a time, so it is its
    /// own.
    pub fn look(
        &mut self,
        at_work: &[Activity],
        board: &Board,
        noted: u64,
        now: Instant,
        limit: Duration,
    ) -> Vec<Stall> {
        let works = noted != self.noted;
        self.noted = noted;
        self.seen.retain(|activity, _| at_work.contains(activity));
        let mut stalls = Vec::new();
        for activity in at_work {
            // Without progress it is not one that shows any.
            let Some(progress) = board.get(activity) else { continue };
            let seen = self.seen.entry(activity.clone()).or_insert_with(|| Seen::new(progress, now));
            if works || waits(&progress.step) || seen.progress != *progress {
                *seen = Seen::new(progress, now);
            }
            let since = now.saturating_duration_since(seen.advanced);
            if since >= limit {
                let is_new = !std::mem::replace(&mut seen.is_reported, true);
                stalls.push(Stall { activity: activity.clone(), step: progress.step.clone(), since, is_new });
            }
        }
        stalls
    }
}

impl Seen {
    fn new(progress: &Progress, now: Instant) -> Self {
        Self { progress: progress.clone(), advanced: now, is_reported: false }
    }
}

/// Whether the step is a wait with a limit of its own: `server.poll.deadline`, `kick_off_deadline`, and for the turn
/// that of whoever holds it.
fn waits(step: &Step) -> bool {
    match step {
        Step::Idle | Step::KickingOff | Step::Waiting { .. } | Step::WaitingForTurn | Step::InAnotherProcess { .. } => {
            true
        }
        Step::Planning
        | Step::Streaming
        | Step::Upserting(_)
        | Step::Settling
        | Step::Maintaining(_)
        | Step::ByHand => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_mins(30);
    const MINUTE: Duration = Duration::from_mins(1);

    fn all() -> Activity {
        Activity::Sync { export: "all".to_owned() }
    }

    fn board(step: Step, bytes: u64) -> Board {
        [(all(), Progress { step, bytes, ..Progress::default() })].into()
    }

    /// How long the export stalls when it is looked at each minute, with this progress and noted work.
    async fn stalls(of_minute: impl Fn(u64) -> (Step, u64, u64)) -> Vec<(u64, bool)> {
        let mut stalls = Stalls::default();
        let mut found = Vec::new();
        for minute in 0..=32 {
            let (step, bytes, noted) = of_minute(minute);
            for stall in stalls.look(&[all()], &board(step, bytes), noted, Instant::now(), LIMIT) {
                found.push((stall.since.as_secs() / 60, stall.is_new));
            }
            tokio::time::advance(MINUTE).await;
        }
        found
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_does_not_advance_for_the_limit_is_reported_once() {
        let found = stalls(|_| (Step::Streaming, 7, 0)).await;
        assert_eq!(found, [(30, true), (31, false), (32, false)]);
        let later = stalls(|minute| (Step::Upserting(crate::fhir::ResourceType::PATIENT), 0, minute.min(1))).await;
        assert_eq!(later, [(30, true), (31, false)], "since the last work");
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_steps_and_noted_work_are_an_advance() {
        assert_eq!(stalls(|minute| (Step::Streaming, minute / 20, 0)).await, []);
        assert_eq!(stalls(|minute| (Step::Settling, 0, minute / 20)).await, []);
        let steps = |minute| if minute < 20 { Step::Streaming } else { Step::Settling };
        assert_eq!(stalls(|minute| (steps(minute), 0, 0)).await, []);
    }

    #[tokio::test(start_paused = true)]
    async fn waits_with_limits_of_their_own_do_not_count() {
        for step in [Step::Waiting { polls: 3, server_says: None }, Step::WaitingForTurn, Step::KickingOff] {
            assert_eq!(stalls(|_| (step.clone(), 0, 0)).await, [], "{step}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_activity_that_has_ended_is_forgotten() {
        let mut stalls = Stalls::default();
        let board = board(Step::Streaming, 1);
        assert_eq!(stalls.look(&[all()], &board, 0, Instant::now(), LIMIT), []);
        tokio::time::advance(LIMIT).await;
        assert_eq!(stalls.look(&[], &board, 0, Instant::now(), LIMIT), []);
        assert_eq!(stalls.look(&[all()], &board, 0, Instant::now(), LIMIT), []);
    }
}
