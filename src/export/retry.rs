//! Retries: what may pass by itself, how long to wait for it, and when to give up.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use reqwest::{
    StatusCode,
    header::{DATE, HeaderMap, RETRY_AFTER},
};
use tokio::time::sleep;

use super::{Config, Error, WaitRange, failure::Fault};

/// Statuses that may pass by themselves (rule 78).
pub fn is_transient(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// Counts the attempts at one thing, and waits longer and longer between them.
pub struct Retries {
    attempts: u32,
    max_attempts: u32,
    backoff: Backoff,
}

impl Retries {
    pub fn new(config: &Config) -> Self {
        Self {
            attempts: 0,
            max_attempts: config.http.retry_attempts.saturating_add(1),
            backoff: Backoff::new(config.http.retry_wait),
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
        if self.attempts >= self.max_attempts {
            return Err(Error::Unreachable {
                context: context.to_owned(),
                attempts: self.attempts,
                source: fault.into(),
            });
        }
        let wait = self.backoff.wait(fault.retry_after());
        tracing::debug!(context, attempt = self.attempts, wait_ms = wait.as_millis(), %fault, "trying again");
        Ok(wait)
    }

    /// There was progress: count from the start.
    pub fn reset(&mut self) {
        self.attempts = 0;
        self.backoff.reset();
    }
}

/// Waits that double from `min` to `max`; a server's Retry-After goes first, within the same bounds.
pub struct Backoff {
    range: WaitRange,
    next: Duration,
}

impl Backoff {
    pub fn new(range: WaitRange) -> Self {
        Self { range, next: range.min() }
    }

    pub fn wait(&mut self, retry_after: Option<Duration>) -> Duration {
        let own = self.next;
        self.next = own.saturating_mul(2).min(self.range.max());
        retry_after.unwrap_or(own).clamp(self.range.min(), self.range.max())
    }

    pub fn reset(&mut self) {
        self.next = self.range.min();
    }
}

/// The wait that an answer asks for: seconds, an HTTP date, or an epoch time in seconds or milliseconds. Times are
/// read against the server's own `Date`. Negative values and garbage count as absent.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let now = || date(headers).unwrap_or_else(local_now);
    match text.parse::<i64>() {
        Ok(..0) => None,
        Ok(seconds @ ..=MIN_EPOCH_SECONDS) => Some(Duration::from_secs(seconds.unsigned_abs())),
        Ok(epoch @ ..=MAX_EPOCH_SECONDS) => Some(until(DateTime::from_timestamp_secs(epoch)?, now())),
        Ok(epoch_ms) => Some(until(DateTime::from_timestamp_millis(epoch_ms)?, now())),
        Err(_) => Some(until(http_date(text)?, now())),
    }
}

/// A delta of more than 31 years is an epoch time, and an epoch time beyond the year 5138 is in milliseconds.
const MIN_EPOCH_SECONDS: i64 = 1_000_000_000;
const MAX_EPOCH_SECONDS: i64 = 100_000_000_000;

fn until(instant: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (instant - now).to_std().unwrap_or_default()
}

#[expect(
    clippy::disallowed_methods,
    reason = "only how long to wait depends on it, and only when the server sends no Date"
)]
fn local_now() -> DateTime<Utc> {
    Utc::now()
}

/// The server's clock when it answered.
pub fn date(headers: &HeaderMap) -> Option<DateTime<Utc>> {
    http_date(headers.get(DATE)?.to_str().ok()?.trim())
}

/// All three forms that HTTP knows (RFC 9110, 5.6.7).
fn http_date(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(date) = DateTime::parse_from_rfc2822(text) {
        return Some(date.to_utc());
    }
    ["%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"]
        .iter()
        .find_map(|form| NaiveDateTime::parse_from_str(text, form).ok())
        .map(|date| date.and_utc())
}
