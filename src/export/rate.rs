//! The rate of the requests to one origin: the shortest time between the beginnings of two of them.
//!
//! What always holds: it is never shorter than configured. A server that limits the rate says so by its complaints
//! alone: what it took between two of them is what it takes. After a while without a complaint the time shrinks, first
//! by a little and then by more, so that a wrong guess is soon forgotten.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug)]
pub struct Rate {
    configured: Duration,
    learned: Option<Learned>,
    /// What was taken since the last complaint, if there was one.
    taken: Option<Taken>,
}

#[derive(Debug)]
struct Learned {
    interval: Duration,
    /// Files since the interval changed.
    files: u32,
    /// How often it shrank.
    shrunk: u32,
}

#[derive(Debug)]
struct Taken {
    since: Instant,
    last: Instant,
    files: u32,
}

/// Fewer files between two complaints are not a rate.
const ENOUGH_FILES: u32 = 10;
/// After this many files without a complaint the interval shrinks.
const CALM_FILES: u32 = 32;
/// Ten requests a minute: servers with a lower limit need `server.http.max_requests_per_minute`.
const LONGEST: Duration = Duration::from_secs(6);
/// After such a time without a file, nothing is known of the time before.
const IDLE: Duration = Duration::from_mins(5);

/// What an answer changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    None,
    /// The server's limit is known now.
    Learned,
    /// Nothing is known of a limit any more.
    Forgotten,
}

impl Rate {
    pub fn new(configured: Duration) -> Self {
        Self { configured, learned: None, taken: None }
    }

    pub fn interval(&self) -> Duration {
        self.learned.as_ref().map_or(Duration::ZERO, |learned| learned.interval).max(self.configured)
    }

    /// The server sent a file.
    pub fn took(&mut self, now: Instant) -> Change {
        if self.taken.as_ref().is_some_and(|taken| now - taken.last > IDLE) {
            self.taken = None;
        }
        if let Some(taken) = &mut self.taken {
            (taken.last, taken.files) = (now, taken.files + 1);
        }
        let Some(learned) = &mut self.learned else { return Change::None };
        learned.files += 1;
        if learned.files < CALM_FILES {
            return Change::None;
        }
        // 7/8 of it are left, then 3/4, 1/2, and nothing.
        let eighths = 8_u32.saturating_sub(1 << learned.shrunk);
        *learned = Learned { interval: learned.interval / 8 * eighths, files: 0, shrunk: learned.shrunk + 1 };
        if learned.interval > self.configured {
            return Change::None;
        }
        self.learned = None;
        Change::Forgotten
    }

    /// The server complained, and not only once more in a row.
    pub fn complained(&mut self, now: Instant) -> Change {
        let taken = self.taken.replace(Taken { since: now, last: now, files: 0 });
        let taken = taken.filter(|taken| taken.files >= ENOUGH_FILES && now - taken.last <= IDLE);
        let interval = taken.map(|taken| ((now - taken.since) / taken.files).min(LONGEST));
        if let Some(interval) = interval.filter(|interval| *interval > self.configured) {
            let before = self.learned.replace(Learned { interval, files: 0, shrunk: 0 });
            return if before.is_none() { Change::Learned } else { Change::None };
        }
        Change::None
    }
}
