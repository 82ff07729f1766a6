//! The wall clock, which a person or a time service may set, beside the monotonic one, which only goes on.
//!
//! The scheduler keeps the time of each next tick by the wall clock. Where that was ahead for a while, the next ticks
//! are ahead as far, and nothing would start until the clock has reached them.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use tokio::time::Instant;

use super::{Daemon, due::schedules};
use crate::schedule;

/// Smaller steps delay one tick by as much, and are what a time service does.
const MIN_STEP: TimeDelta = TimeDelta::seconds(30);

/// Both clocks, as they were read together.
pub(super) struct WallClock {
    wall: DateTime<Utc>,
    monotonic: Instant,
}

impl WallClock {
    pub fn at(wall: DateTime<Utc>, monotonic: Instant) -> Self {
        Self { wall, monotonic }
    }

    /// How far the wall clock was set back between these readings and now. A step forwards needs nothing: ticks that
    /// were skipped are due at once.
    fn was_set_back(&self, wall: DateTime<Utc>, monotonic: Instant) -> Option<Duration> {
        let passed = TimeDelta::from_std(monotonic.saturating_duration_since(self.monotonic)).ok()?;
        let back = self.wall.checked_add_signed(passed)? - wall;
        back.to_std().ok().filter(|_| back >= MIN_STEP)
    }
}

impl Daemon {
    /// Computes the schedule anew where the wall clock was set back, and does what is due.
    pub(super) async fn follow_clock(&mut self, wall: DateTime<Utc>, monotonic: Instant) {
        if let Some(back) = self.wall_clock.was_set_back(wall, monotonic) {
            let schedules = schedules(&self.config.exports, &self.config.maintenance);
            let scheduler = match schedule::start(&schedules, &self.ticks).await {
                Ok(scheduler) => scheduler,
                // The next second tries again: the readings stay.
                Err(error) => return tracing::debug!(%error, "the schedule could not be computed anew"),
            };
            if let Err(error) = std::mem::replace(&mut self.scheduler, scheduler).shutdown().await {
                tracing::warn!(%error, "the scheduler of before did not shut down cleanly");
            }
            tracing::warn!(
                back_s = back.as_secs(),
                now = wall.to_rfc3339_opts(SecondsFormat::Secs, true),
                next_run = self.next_run(),
                "the clock of this host was set back; the schedule follows it"
            );
            self.others.follow_clock(wall);
            self.catch_up();
        }
        self.wall_clock = WallClock::at(wall, monotonic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fhir::parse_instant;

    /// The steps that are found while the clocks are read each second, and the wall clock is off by this much.
    fn steps(off_by: &[i64]) -> Vec<Option<u64>> {
        let (wall, monotonic) = (parse_instant("2026-11-20T10:00:00Z").unwrap(), Instant::now());
        let mut clock = WallClock::at(wall, monotonic);
        let readings = off_by.iter().zip(1..).map(|(off_by, second)| {
            let at = monotonic + Duration::from_secs(second);
            (wall + TimeDelta::seconds(*off_by) + TimeDelta::seconds(second.cast_signed()), at)
        });
        let look = |(wall, monotonic)| {
            let back = clock.was_set_back(wall, monotonic);
            clock = WallClock::at(wall, monotonic);
            back.map(|back| back.as_secs())
        };
        readings.map(look).collect()
    }

    #[tokio::test]
    async fn a_clock_that_was_ahead_for_a_while_is_noticed_once_when_it_comes_back() {
        const DAY: i64 = 24 * 60 * 60;
        assert_eq!(steps(&[0, 0, DAY, DAY, DAY, 0, 0]), [None, None, None, None, None, Some(86_400), None]);
        assert_eq!(steps(&[0, -DAY, -DAY, 0, 0]), [None, Some(86_400), None, None, None], "it was right before");
        assert_eq!(steps(&[3, -3, 10, -15, 0]), [None; 5], "as a time service sets it");
    }
}
