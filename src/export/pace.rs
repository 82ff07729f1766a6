//! The pace of the requests to each origin: how many files are read from it at the same time, and when the next request
//! may begin.
//!
//! What always holds: a server that complains (429, 503, a connection that it resets) gets half as many downloads at the
//! same time, and after a 429 or 503 no request at all for a while. It begins with two; one more is added after as many
//! answers without a complaint as there are downloads. Requests begin in the order in which they were wanted, as far
//! apart as the rate of the origin says. Only downloads wait for others to end: a token or a poll never waits for a file
//! that takes an hour.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::StatusCode;
use tokio::{
    sync::{Mutex as Queue, Notify},
    time::{Instant, sleep_until, timeout},
};
use url::{Origin, Url};

use super::{
    WaitRange,
    failure::Fault,
    measured,
    rate::{Change, Rate},
    retry::{WaitLog, millis},
};
use crate::telemetry::metrics::Endpoint;

/// How many downloads from an origin run at the same time at first.
const FIRST_DOWNLOADS: usize = 2;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What a request is to the pace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Load {
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
    /// A download has ended, or one more is allowed.
    has_room: Notify,
    /// Whoever has it begins next.
    queue: Queue<()>,
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
    rate: Rate,
    /// How many downloads there were before the first of the complaints that the log names, until there are as many
    /// again.
    reduced_from: Option<usize>,
    log: WaitLog,
}

/// A request that is under way. It ends when this is dropped.
#[derive(Debug)]
pub struct Pass {
    origin: String,
    pace: Arc<Pace>,
    endpoint: Endpoint,
    /// How many the server had when the request began.
    complaints: u32,
    pause: WaitRange,
}

impl Paces {
    pub fn new(pause: WaitRange, max_requests_per_minute: Option<u32>) -> Self {
        let interval = max_requests_per_minute.map_or(Duration::ZERO, |max| Duration::from_mins(1) / max.max(1));
        Self { pause, interval, of: Mutex::default() }
    }

    /// Waits until a request to the origin of `url` may begin.
    pub async fn pass(&self, url: &Url, endpoint: Endpoint) -> Pass {
        let new = || Arc::new(Pace::new(self.interval));
        let pace = Arc::clone(lock(&self.of).entry(url.origin()).or_insert_with(new));
        if Load::from(endpoint) == Load::Download {
            pace.take_room().await;
        }
        // From here on the room is given back, whatever becomes of the request.
        let origin = url.origin().ascii_serialization();
        let mut pass = Pass { origin, pace, endpoint, complaints: 0, pause: self.pause };
        pass.complaints = pass.pace.begin().await;
        pass
    }
}

impl Pace {
    fn new(interval: Duration) -> Self {
        let state = PaceState {
            allowed: FIRST_DOWNLOADS,
            running: 0,
            calm: 0,
            complaints: 0,
            in_a_row: 0,
            not_before: Instant::now(),
            rate: Rate::new(interval),
            reduced_from: None,
            log: WaitLog::default(),
        };
        Self { state: Mutex::new(state), has_room: Notify::new(), queue: Queue::default() }
    }

    async fn take_room(&self) {
        loop {
            let has_room = self.has_room.notified();
            if lock(&self.state).take_room() {
                return;
            }
            // Whoever was woken may have been given up since: then nobody wakes the next.
            drop(timeout(LOOK_AGAIN, has_room).await);
        }
    }

    /// Waits for the requests before this one and for the pause; returns the number of complaints so far.
    async fn begin(&self) -> u32 {
        let _first = self.queue.lock().await;
        loop {
            let not_before = match lock(&self.state).begin() {
                Ok(complaints) => return complaints,
                Err(not_before) => not_before,
            };
            sleep_until(not_before).await;
        }
    }
}

impl PaceState {
    fn take_room(&mut self) -> bool {
        let has_room = self.running < self.allowed;
        self.running += usize::from(has_room);
        has_room
    }

    /// The number of complaints, or the instant before which nothing may begin.
    fn begin(&mut self) -> Result<u32, Instant> {
        let now = Instant::now();
        if self.not_before > now {
            return Err(self.not_before);
        }
        self.not_before = now + self.rate.interval();
        Ok(self.complaints)
    }
}

impl Pass {
    /// An answer has arrived, and says this about the next request.
    pub fn answered(&self, status: StatusCode, pause: Option<Duration>) {
        match status {
            StatusCode::TOO_MANY_REQUESTS if self.load() == Load::KickOff => {}
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => self.complained(pause),
            status if status.is_success() => self.went_well(),
            _ => {}
        }
    }

    /// There is no answer, or not all of it.
    pub fn failed(&self, fault: &Fault) {
        let mut state = lock(&self.pace.state);
        if matches!(fault, Fault::Transport(_)) && self.is_first_to_say(&state) {
            self.reduce(&mut state);
        }
    }

    fn complained(&self, pause: Option<Duration>) {
        let mut state = lock(&self.pace.state);
        let pause = pause.unwrap_or_else(|| self.pause.min().saturating_mul(1 << state.in_a_row.min(20)));
        let pause = pause.min(self.pause.max());
        let now = Instant::now();
        state.not_before = state.not_before.max(now + pause);
        measured::paused(self.endpoint, pause);
        if !self.is_first_to_say(&state) {
            return;
        }
        if self.load() == Load::Download && state.in_a_row == 0 {
            let change = state.rate.complained(now);
            self.note(&state.rate, change);
        }
        state.in_a_row += 1;
        self.reduce(&mut state);
    }

    /// Several downloads meet the same limit: together they are one complaint.
    fn is_first_to_say(&self, state: &PaceState) -> bool {
        self.complaints == state.complaints
    }

    fn reduce(&self, state: &mut PaceState) {
        state.complaints += 1;
        if self.load() != Load::Download || state.allowed == 1 {
            return;
        }
        let before = state.allowed;
        (state.allowed, state.calm) = (before / 2, 0);
        measured::downloads_allowed(state.allowed);
        if state.log.is_due() {
            state.reduced_from.get_or_insert(before);
            let (origin, downloads) = (&self.origin, state.allowed);
            tracing::info!(origin, downloads, "the server is asked for fewer files at the same time");
        }
    }

    fn went_well(&self) {
        let mut state = lock(&self.pace.state);
        if !self.is_first_to_say(&state) {
            return;
        }
        state.in_a_row = 0;
        if self.load() != Load::Download {
            return;
        }
        let change = state.rate.took(Instant::now());
        self.note(&state.rate, change);
        // While nobody waits, more would not be used, and nothing would be learned.
        if state.running < state.allowed {
            return;
        }
        state.calm += 1;
        if state.calm >= state.allowed {
            self.allow_one_more(&mut state);
        }
    }

    fn allow_one_more(&self, state: &mut PaceState) {
        (state.allowed, state.calm) = (state.allowed + 1, 0);
        measured::downloads_allowed(state.allowed);
        let (origin, downloads) = (&self.origin, state.allowed);
        tracing::debug!(origin, downloads, "one more file at the same time");
        if state.reduced_from.is_some_and(|before| downloads >= before) {
            state.reduced_from = None;
            tracing::info!(origin, downloads, "the server is asked for as many files at the same time as before");
        }
        self.pace.has_room.notify_one();
    }

    fn note(&self, rate: &Rate, change: Change) {
        let (origin, interval) = (&self.origin, rate.interval());
        measured::interval(self.endpoint, interval);
        match change {
            Change::None => {}
            Change::Learned => tracing::info!(
                origin,
                interval_ms = millis(interval),
                "the server limits the rate: requests to it begin one after the other"
            ),
            Change::Forgotten => tracing::info!(origin, "the server no longer limits the rate"),
        }
    }

    fn load(&self) -> Load {
        self.endpoint.into()
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if self.load() == Load::Download {
            let mut state = lock(&self.pace.state);
            state.running -= 1;
            self.pace.has_room.notify_one();
        }
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
