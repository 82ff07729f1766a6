//! The pace of the requests to each origin: how many files are read from it at the same time, and when the next request
//! may begin.
//!
//! What always holds: a server that complains (429, 503, a connection that it resets) gets half as many downloads at the
//! same time, and after a 429 or 503 no request at all for a while. It begins with two; one more is added after as many
//! answers without a complaint as there are downloads. Only downloads wait for each other: a token or a poll never waits
//! for a file that takes an hour.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::StatusCode;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};
use url::{Origin, Url};

use super::{WaitRange, failure::Fault};
use crate::telemetry::metrics::Endpoint;

/// How many downloads from an origin run at the same time at first.
const FIRST_DOWNLOADS: usize = 2;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a request is to the pace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// It takes as long as the file is large.
    Download,
    /// A poll, a token, a document: soon over.
    Short,
    /// A kick-off: its 429 is about the export that the server works on, not about requests (rule 34).
    KickOff,
}

impl From<Endpoint> for Load {
    fn from(endpoint: Endpoint) -> Self {
        match endpoint {
            Endpoint::File => Self::Download,
            Endpoint::KickOff => Self::KickOff,
            _ => Self::Short,
        }
    }
}

#[derive(Debug)]
pub struct Paces {
    /// The pause after the first complaint that names none; it doubles with each further one in a row. No pause is longer
    /// than the maximum, whatever the server asks for.
    pause: WaitRange,
    /// Between the beginnings of two requests.
    interval: Duration,
    of: Mutex<HashMap<Origin, Arc<Pace>>>,
}

/// The pace of one origin.
#[derive(Debug)]
struct Pace {
    state: Mutex<PaceState>,
    has_room: Notify,
}

#[derive(Debug)]
struct PaceState {
    /// How many downloads may run at the same time.
    allowed: usize,
    running: usize,
    /// Answers without a complaint since `allowed` changed.
    calm: usize,
    /// How often the server has complained: what was requested before the last time says nothing new.
    complaints: u32,
    /// The last of them, without a good answer in between.
    in_a_row: u32,
    /// No request begins before.
    not_before: Instant,
}

/// A request that is under way. It ends when this is dropped.
#[derive(Debug)]
pub struct Pass {
    origin: String,
    pace: Arc<Pace>,
    load: Load,
    complaints: u32,
    pause: WaitRange,
}

impl Paces {
    pub fn new(pause: WaitRange, max_requests_per_minute: Option<u32>) -> Self {
        let interval = max_requests_per_minute.map_or(Duration::ZERO, |max| Duration::from_mins(1) / max.max(1));
        Self { pause, interval, of: Mutex::default() }
    }

    /// Waits until a request to the origin of `url` may begin.
    pub async fn pass(&self, url: &Url, load: Load) -> Pass {
        let pace = Arc::clone(lock(&self.of).entry(url.origin()).or_insert_with(|| Arc::new(Pace::new())));
        let complaints = loop {
            let has_room = pace.has_room.notified();
            let begin = lock(&pace.state).begin(load, self.interval);
            match begin {
                Begin::Now { complaints } => break complaints,
                Begin::At(instant) => sleep_until(instant).await,
                // Whoever was woken may have been given up since: then nobody wakes the next.
                Begin::WhenOneEnds => drop(timeout(LOOK_AGAIN, has_room).await),
            }
        };
        Pass { origin: url.origin().ascii_serialization(), pace, load, complaints, pause: self.pause }
    }
}

enum Begin {
    Now { complaints: u32 },
    At(Instant),
    WhenOneEnds,
}

impl Pace {
    fn new() -> Self {
        let state = PaceState {
            allowed: FIRST_DOWNLOADS,
            running: 0,
            calm: 0,
            complaints: 0,
            in_a_row: 0,
            not_before: Instant::now(),
        };
        Self { state: Mutex::new(state), has_room: Notify::new() }
    }
}

impl PaceState {
    fn begin(&mut self, load: Load, interval: Duration) -> Begin {
        let now = Instant::now();
        if load == Load::Download && self.running >= self.allowed {
            return Begin::WhenOneEnds;
        }
        if self.not_before > now {
            return Begin::At(self.not_before);
        }
        self.not_before = now + interval;
        if load == Load::Download {
            self.running += 1;
        }
        Begin::Now { complaints: self.complaints }
    }
}

impl Pass {
    /// An answer has arrived, and says this about the next request.
    pub fn answered(&self, status: StatusCode, pause: Option<Duration>) {
        match status {
            StatusCode::TOO_MANY_REQUESTS if self.load == Load::KickOff => {}
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => self.complained(pause),
            status if status.is_success() => self.went_well(),
            _ => {}
        }
    }

    /// There is no answer, or not all of it.
    pub fn failed(&self, fault: &Fault) {
        if matches!(fault, Fault::Transport(_)) {
            self.reduce(&mut lock(&self.pace.state));
        }
    }

    fn complained(&self, pause: Option<Duration>) {
        let mut state = lock(&self.pace.state);
        let pause = pause.unwrap_or_else(|| self.pause.min().saturating_mul(1 << state.in_a_row.min(20)));
        state.not_before = state.not_before.max(Instant::now() + pause.min(self.pause.max()));
        if self.complaints == state.complaints {
            state.in_a_row += 1;
        }
        self.reduce(&mut state);
    }

    /// Several downloads meet the same limit: together they are one complaint.
    fn reduce(&self, state: &mut PaceState) {
        if self.complaints != state.complaints {
            return;
        }
        state.complaints += 1;
        if self.load != Load::Download || state.allowed == 1 {
            return;
        }
        (state.allowed, state.calm) = (state.allowed / 2, 0);
        let downloads = state.allowed;
        tracing::info!(origin = self.origin, downloads, "the server is asked for fewer files at the same time");
    }

    fn went_well(&self) {
        let mut state = lock(&self.pace.state);
        if self.complaints != state.complaints {
            return;
        }
        state.in_a_row = 0;
        // While nobody waits, more would not be used, and nothing would be learned.
        if self.load != Load::Download || state.running < state.allowed {
            return;
        }
        state.calm += 1;
        if state.calm >= state.allowed {
            (state.allowed, state.calm) = (state.allowed + 1, 0);
            tracing::debug!(origin = self.origin, downloads = state.allowed, "one more file at the same time");
            self.pace.has_room.notify_one();
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.load == Load::Download {
            let mut state = lock(&self.pace.state);
            state.running -= 1;
            self.pace.has_room.notify_one();
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
