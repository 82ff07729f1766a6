//! One exchange with a server: a request goes out, an answer or a fault comes back.
//!
//! What always holds: each wait ends within `idle_timeout`; a body is read up to a limit; redirects are followed by hand,
//! never from https to http; errors carry no URL. Which origin gets a token is decided in `mod.rs` for every hop anew.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use futures::StreamExt;
use reqwest::{
    Method, Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER},
};
use tokio::time::{sleep, timeout};
use url::{Host, Url};

use super::{Config, Error, WaitRange, error::Issues, error::shown};

/// How many hops a redirected request may take (rule 91).
const REDIRECTS_MAX: usize = 5;
/// How much of an error's body is read.
pub(super) const OUTCOME_MAX_BYTES: u64 = 64 * 1024;

/// A request as it goes out, before anything is known about tokens and redirects.
pub(super) struct Exchange<'a> {
    pub method: Method,
    pub url: &'a Url,
    pub accept: &'static str,
    pub headers: &'static [(&'static str, &'static str)],
    pub token: TokenUse,
    pub redirects: Redirects,
    /// For people: what is being asked, and where.
    pub place: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenUse {
    /// Wherever the origin is allowed to have it.
    WhereAllowed,
    Never,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Redirects {
    Follow,
    Refuse,
}

/// Why there is no answer.
pub(super) enum Failure {
    /// Another attempt may help.
    Again(Fault),
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Again(fault)
    }
}

/// What may pass by itself. Becomes the source of [`Error::Unreachable`].
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("the connection failed")]
    Transport(#[source] reqwest::Error),
    #[error("nothing came for {} s", .0.as_secs_f64())]
    Idle(Duration),
    #[error("the server answered {status}, {issues}")]
    Status { status: StatusCode, retry_after: Option<Duration>, issues: Issues },
    #[error("the gzip stream ended early")]
    GzipCut,
    #[error("{0}")]
    NotAManifest(String),
}

impl Fault {
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// The wire alone: no tokens, no redirects, no repetition.
#[derive(Debug)]
pub(super) struct Http {
    client: reqwest::Client,
    idle_timeout: Duration,
}

impl Http {
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("fhir-sync/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(config.http.connect_timeout)
            .build()
            .map_err(|error| Error::Setup { source: error.without_url().into() })?;
        Ok(Self { client, idle_timeout: config.http.idle_timeout })
    }

    /// One request to one URL; any status is an answer.
    pub(super) async fn send(
        &self,
        exchange: &Exchange<'_>,
        url: &Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Fault> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(exchange.accept));
        for (name, value) in exchange.headers {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        self.within_idle(self.client.request(exchange.method.clone(), url.clone()).headers(headers).send()).await
    }

    /// POST `application/x-www-form-urlencoded`, without a token and without redirects.
    pub(super) async fn post_form(&self, url: &Url, form: &[(&str, &str)]) -> Result<Response, Fault> {
        let request = self.client.post(url.clone()).header(ACCEPT, "application/json").form(form);
        self.within_idle(request.send()).await
    }

    /// The whole body, when it is no longer than `limit_bytes`; `None` when it is.
    pub(super) async fn read(&self, response: Response, limit_bytes: u64) -> Result<Option<Vec<u8>>, Fault> {
        let mut body = Vec::new();
        let mut chunks = response.bytes_stream();
        while let Some(chunk) = next_within(self.idle_timeout, &mut chunks).await? {
            if (body.len() + chunk.len()) as u64 > limit_bytes {
                return Ok(None);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Some(body))
    }

    /// The `OperationOutcome` of an answer, if it is one. Reading it may fail: the status says enough.
    pub(super) async fn issues(&self, response: Response) -> Issues {
        match self.read(response, OUTCOME_MAX_BYTES).await {
            Ok(Some(body)) => Issues::read(&body),
            Ok(None) | Err(_) => Issues::default(),
        }
    }

    /// An answer that is an error, as a fault to be tried again.
    pub(super) async fn fault(&self, response: Response) -> Fault {
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        Fault::Status { status, retry_after, issues: self.issues(response).await }
    }

    async fn within_idle(
        &self,
        send: impl Future<Output = Result<Response, reqwest::Error>>,
    ) -> Result<Response, Fault> {
        let answer = timeout(self.idle_timeout, send).await.map_err(|_| Fault::Idle(self.idle_timeout))?;
        answer.map_err(|error| Fault::Transport(error.without_url()))
    }
}

/// The next chunk of a body, or a fault when none comes in time.
pub(super) async fn next_within<B>(
    idle_timeout: Duration,
    chunks: &mut (impl StreamExt<Item = Result<B, reqwest::Error>> + Unpin),
) -> Result<Option<B>, Fault> {
    let chunk = timeout(idle_timeout, chunks.next()).await.map_err(|_| Fault::Idle(idle_timeout))?;
    chunk.transpose().map_err(|error| Fault::Transport(error.without_url()))
}

/// The hops of one request, each of them admitted before it is made.
pub(super) struct Route<'a> {
    exchange: &'a Exchange<'a>,
    allow_http: bool,
    from: Url,
    url: Url,
    hops: usize,
}

impl<'a> Route<'a> {
    pub(super) fn new(exchange: &'a Exchange<'a>, config: &Config) -> Self {
        let (from, url) = (config.server.clone(), exchange.url.clone());
        Self { exchange, allow_http: config.allow_http, from, url, hops: 0 }
    }

    /// Where the request goes now.
    pub(super) fn url(&self) -> Result<&Url, Error> {
        match admit(&self.url, Some(&self.from), self.allow_http) {
            Ok(()) => Ok(&self.url),
            Err(reason) => Err(Error::UnusableUrl { place: self.exchange.place.to_owned(), reason }),
        }
    }

    /// Does the answer send us on? Then the next `url` is another one.
    pub(super) fn goes_on(&mut self, response: &Response) -> Result<bool, Error> {
        let next = match self.exchange.redirects {
            Redirects::Follow => redirected(response, &self.url),
            Redirects::Refuse => None,
        };
        let Some(next) = next else { return Ok(false) };
        if self.hops == REDIRECTS_MAX {
            return Err(Error::Redirects { place: self.exchange.place.to_owned(), limit: REDIRECTS_MAX });
        }
        self.hops += 1;
        self.from = std::mem::replace(&mut self.url, next);
        Ok(true)
    }
}

/// Where an answer sends us on to; `None` when it is an answer to keep.
fn redirected(response: &Response, from: &Url) -> Option<Url> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    from.join(location).ok()
}

/// Statuses that may pass by themselves (rule 78).
pub(super) fn may_pass(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// May we go to `url`, which `from` led us to? Only by HTTP, in clear only where that is allowed, and never down from
/// https (rule 1). The reason if not.
pub(super) fn admit(url: &Url, from: Option<&Url>, allow_http: bool) -> Result<(), String> {
    let refused = |why: &str| Err(format!("{} {why}", shown(url)));
    match (url.scheme(), from.map(Url::scheme)) {
        ("https", _) => Ok(()),
        ("http", Some("https")) => refused("is a step down from https; the server's base URL setting is wrong"),
        ("http", _) if allow_http || is_loopback(url) => Ok(()),
        ("http", _) => refused("would go in clear; use https, or set server.allow_http"),
        (scheme, _) => Err(format!("a {scheme}: URL cannot be fetched, only https and http can")),
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Counts the attempts at one thing, and waits longer and longer between them.
pub(super) struct Retries {
    attempts: u32,
    attempts_max: u32,
    backoff: Backoff,
}

impl Retries {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            attempts: 0,
            attempts_max: config.http.retry_attempts.saturating_add(1),
            backoff: Backoff::new(config.http.retry_wait),
        }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// [`Error::Unreachable`] when there is no next attempt.
    pub(super) async fn pause(&mut self, place: &str, fault: Fault) -> Result<(), Error> {
        let wait = self.failed(place, fault)?;
        sleep(wait).await;
        Ok(())
    }

    /// Notes a failed attempt, and says how long to wait before the next.
    pub(super) fn failed(&mut self, place: &str, fault: Fault) -> Result<Duration, Error> {
        self.attempts += 1;
        if self.attempts >= self.attempts_max {
            return Err(Error::Unreachable { place: place.to_owned(), attempts: self.attempts, source: fault.into() });
        }
        let wait = self.backoff.wait(fault.retry_after());
        tracing::debug!(place, attempt = self.attempts, wait_ms = wait.as_millis(), %fault, "trying again");
        Ok(wait)
    }

    /// There was progress: count from the start.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
        self.backoff.reset();
    }
}

/// Waits that double from `min` to `max`; a server's Retry-After goes first, within the same bounds.
pub(super) struct Backoff {
    range: WaitRange,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(range: WaitRange) -> Self {
        Self { range, next: range.min() }
    }

    pub(super) fn wait(&mut self, retry_after: Option<Duration>) -> Duration {
        let own = self.next;
        self.next = own.saturating_mul(2).min(self.range.max());
        retry_after.unwrap_or(own).clamp(self.range.min(), self.range.max())
    }

    pub(super) fn reset(&mut self) {
        self.next = self.range.min();
    }
}

/// The wait that an answer asks for: seconds, an HTTP date, or an epoch time in seconds or milliseconds. Times are
/// read against the server's own `Date`. Negative values and garbage count as absent.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let now = || date(headers).unwrap_or_else(local_now);
    match text.parse::<i64>() {
        Ok(..0) => None,
        Ok(seconds @ ..=EPOCH_FROM_SECONDS) => Some(Duration::from_secs(seconds.unsigned_abs())),
        Ok(epoch @ ..=EPOCH_MAX_SECONDS) => Some(until(DateTime::from_timestamp_secs(epoch)?, now())),
        Ok(epoch_ms) => Some(until(DateTime::from_timestamp_millis(epoch_ms)?, now())),
        Err(_) => Some(until(http_date(text)?, now())),
    }
}

/// A delta of more than 31 years is an epoch time, and an epoch time beyond the year 5138 is in milliseconds.
const EPOCH_FROM_SECONDS: i64 = 1_000_000_000;
const EPOCH_MAX_SECONDS: i64 = 100_000_000_000;

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
pub(super) fn date(headers: &HeaderMap) -> Option<DateTime<Utc>> {
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
