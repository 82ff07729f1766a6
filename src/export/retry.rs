//! Retries: what is transient, how long to wait for it, and when to give up.
//!
//! What always holds: every wait is within its [`WaitRange`], an outage is waited for a limited time, and each wait is
//! logged: a line at the first one, then at most one every 30 s.

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use fastrand::Rng;
use reqwest::{
    StatusCode,
    header::{DATE, HeaderMap, RETRY_AFTER},
};
use tokio::time::{Instant, sleep};

use super::{
    Error, HttpConfig, WaitRange,
    clock::local_now,
    failure::{Failure, Fault},
    measured, notice,
};
use crate::telemetry::{advance, metrics::Endpoint};

/// Attempts until one succeeds, fails for good, or the outage has lasted as long as `config` allows.
///
/// # Errors
/// [`Error::Unreachable`] after the last attempt; whatever an attempt calls fatal.
pub async fn retrying<T, Attempt: Future<Output = Result<T, Failure>>>(
    config: &HttpConfig,
    endpoint: Endpoint,
    context: &str,
    attempt: impl Fn() -> Attempt,
) -> Result<T, Error> {
    let mut retries = Retries::new(config, endpoint);
    loop {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(Failure::Retry(fault)) => retries.pause(context, fault).await?,
            Err(Failure::Fatal(error)) => return Err(error),
        }
    }
}

/// Statuses that may be better at the next attempt (rule 78).
pub fn is_transient(status: StatusCode) -> bool {
    let is_final = matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED);
    (status.is_server_error() && !is_final)
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// The failed attempts at one thing: waits longer and longer between them, until the outage has lasted too long.
pub struct Retries {
    endpoint: Endpoint,
    attempts: u32,
    /// Since all was well, whatever the patience.
    waits: u32,
    patience: Duration,
    /// The first failure since the server last answered.
    outage: Option<Instant>,
    /// The first of the answers in a row that limit the rate.
    rate_limit: Option<Instant>,
    backoff: Backoff,
    log: WaitLog,
}

/// How many times longer than an outage a limit of the rate is waited for: the server is well, and others use it too.
const RATE_LIMIT_FACTOR: u32 = 12;

impl Retries {
    pub fn new(config: &HttpConfig, endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            attempts: 0,
            waits: 0,
            patience: config.outage_patience,
            outage: None,
            rate_limit: None,
            backoff: Backoff::new(config.retry_wait, Rng::new()),
            log: WaitLog::default(),
        }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when there is no next attempt.
    pub async fn pause(&mut self, context: &str, fault: Fault) -> Result<(), Error> {
        let wait = self.failed(context, fault)?;
        sleep(wait).await;
        Ok(())
    }

    /// Notes a failed attempt, and says how long to wait before the next.
    pub fn failed(&mut self, context: &str, fault: Fault) -> Result<Duration, Error> {
        self.attempts += 1;
        let now = Instant::now();
        let (since, patience) = if fault.is_rate_limit() {
            self.outage = None;
            (*self.rate_limit.get_or_insert(now), self.patience.saturating_mul(RATE_LIMIT_FACTOR))
        } else {
            self.rate_limit = None;
            (*self.outage.get_or_insert(now), self.patience)
        };
        let elapsed = since.elapsed();
        if elapsed >= patience || fault.is_final() {
            let attempts = self.attempts;
            return Err(Error::Unreachable { context: context.to_owned(), attempts, elapsed, source: fault });
        }
        // The last attempt is at the end of the patience, not long before it.
        Ok(self.wait(context, &fault).min(patience.saturating_sub(elapsed)))
    }

    /// The wait before another attempt, whatever the patience.
    pub fn wait(&mut self, context: &str, fault: &Fault) -> Duration {
        measured::retry(self.endpoint, fault);
        // Who polls waits anyway.
        if self.endpoint != Endpoint::Status {
            advance::note();
        }
        let wait = self.backoff.wait(fault.retry_after());
        self.waits += 1;
        notice::retry(self.waits, wait, fault);
        if self.log.is_due() {
            tracing::warn!(
                context,
                attempt = self.attempts,
                patience_s = self.patience.as_secs(),
                wait_ms = millis(wait),
                "{fault}; trying again in {:.1} s",
                wait.as_secs_f64()
            );
        }
        wait
    }

    /// The server was reached: another outage begins later. Waits go on growing, because it may fail at the same place
    /// again.
    pub fn reached(&mut self) {
        self.outage = None;
        self.rate_limit = None;
    }

    /// All is well: count from the start.
    pub fn reset(&mut self) {
        self.attempts = 0;
        self.waits = 0;
        self.reached();
        self.backoff.reset();
    }
}

/// Waits that begin at the minimum of a range and double up to its maximum, each up to half as long again, so that
/// clients that began together do not stay together. A server's `Retry-After` is obeyed within the range.
pub struct Backoff {
    range: WaitRange,
    next: Duration,
    random: Rng,
}

impl Backoff {
    pub fn new(range: WaitRange, random: Rng) -> Self {
        Self { range, next: range.min(), random }
    }

    pub fn wait(&mut self, retry_after: Option<Duration>) -> Duration {
        // A wait that the server chose says nothing about how long the next one of our own must be.
        if let Some(wait) = retry_after {
            return wait.clamp(self.range.min(), self.range.max());
        }
        let own = self.next;
        self.next = own.saturating_mul(2).min(self.range.max());
        self.with_jitter(own)
    }

    /// Between `wait` and half as long again; where that is beyond the maximum, as much below the maximum.
    fn with_jitter(&mut self, wait: Duration) -> Duration {
        let longest = wait.saturating_add(wait / 2).min(self.range.max());
        let shortest = (longest / 3 * 2).max(self.range.min());
        shortest + (longest.saturating_sub(shortest)).mul_f64(self.random.f64())
    }

    pub fn reset(&mut self) {
        self.next = self.range.min();
    }
}

/// As logs write a duration.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Which of many waits in a row are worth a line in the log.
#[derive(Default, Debug)]
pub struct WaitLog {
    last: Option<Instant>,
}

const LOG_EVERY: Duration = Duration::from_secs(30);

impl WaitLog {
    /// At the first wait, and then when the last line is old enough.
    pub fn is_due(&mut self) -> bool {
        let is_due = self.last.is_none_or(|last| last.elapsed() >= LOG_EVERY);
        if is_due {
            self.last = Some(Instant::now());
        }
        is_due
    }
}

/// The wait that an answer asks for: seconds, an HTTP date, or an epoch time in seconds or milliseconds. Times
/// are read against the server's own `Date`. Negative values and garbage count as absent.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let now = || date(headers).unwrap_or_else(local_now);
    match text.parse::<i64>() {
        Ok(..0) => None,
        Ok(seconds @ ..=MAX_DELTA_SECONDS) => Some(Duration::from_secs(seconds.unsigned_abs())),
        Ok(epoch @ ..=MAX_EPOCH_SECONDS) => Some(until(DateTime::from_timestamp_secs(epoch)?, now())),
        Ok(epoch_ms) => Some(until(DateTime::from_timestamp_millis(epoch_ms)?, now())),
        Err(_) => Some(until(http_date(text)?, now())),
    }
}

/// A delta of more than 31 years is an epoch time, and an epoch time beyond the year 5138 is in milliseconds.
const MAX_DELTA_SECONDS: i64 = 1_000_000_000;
const MAX_EPOCH_SECONDS: i64 = 100_000_000_000;

fn until(instant: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (instant - now).to_std().unwrap_or_default()
}

/// The server's clock when it answered.
pub fn date(headers: &HeaderMap) -> Option<DateTime<Utc>> {
    http_date(headers.get(DATE)?.to_str().ok()?.trim())
}

pub fn http_date(text: &str) -> Option<DateTime<Utc>> {
    httpdate::parse_http_date(text).ok().map(|date: SystemTime| date.into())
}
