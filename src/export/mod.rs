//! FHIR Bulk Data Access, the consumer's side: the only room that speaks to the FHIR server.
//!
//! The steps of an export consume each other: [`Client::kick_off`] gives a [`Job`], [`Job::wait`] a [`Completed`] with its
//! [`Manifest`], [`Client::download`] a stream of bytes, [`Job::delete`] the end. What always holds: a token goes to allowed
//! origins only, every wait, body and repetition has a limit, and a future of this room may be dropped at any await. It
//! knows no tables: what it hands on are bytes and the words of `fhir.rs`.

use std::fmt;

use chrono::{DateTime, Utc};
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_LOCATION, HeaderValue},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use url::{Origin, Url};

use crate::fhir::{TransactionTime, parse_instant};
use failure::Failure;
use http::{Http, OnRedirect, RequestSpec, TokenUse};
use redirect::Redirects;
use retry::{Backoff, Retries, is_transient, retry_after};

pub mod auth;
mod capability;
mod config;
mod download;
mod error;
mod failure;
mod http;
mod manifest;
mod poll;
mod redirect;
mod request;
mod retry;

#[cfg(test)]
mod tests;

pub use config::{Config, HttpConfig, Limits, PollConfig, WaitRange, check_base};
pub use download::Receipt;
pub use error::{Cause, Error, Issues};
pub use manifest::{File, Manifest};
pub use poll::PollProgress;
pub use redirect::check_url;
pub use request::{ExportRequest, Level};

/// One FHIR server, as this configuration reaches it. Shared by reference: it is safe to use from many tasks.
pub struct Client {
    config: Config,
    http: Http,
    tokens: Option<auth::Tokens>,
    token_origins: Vec<Origin>,
}

/// A running export. It goes into the state file before the first poll (rule 35), and survives restarts there.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub status_url: Url,
    /// The `Date` of the kick-off's answer: the **server's** clock (rule 51).
    pub kicked_off_at: Option<TransactionTime>,
    /// Our clock at kick-off: for `poll_deadline` alone, never for data (rule 131).
    #[serde(with = "local_instant")]
    pub polling_since: DateTime<Utc>,
}

/// An export whose manifest is whole: every page has been read.
#[derive(Clone, Debug)]
pub struct Completed {
    pub job: Job,
    pub manifest: Manifest,
}

const KICK_OFF: &[(&str, &str)] = &[
    ("prefer", "respond-async"),
    // HAPI otherwise answers with an old job of equal parameters.
    ("cache-control", "no-cache"),
];

impl Client {
    /// # Errors
    /// [`Error::UnusableUrl`] when the FHIR base is not a plain base URL, or would be sent unencrypted.
    pub fn new(mut config: Config) -> Result<Self, Error> {
        check_base(&config.server, config.allow_http)
            .map_err(|reason| Error::UnusableUrl { context: "server.url".to_owned(), reason })?;
        let server = &mut config.server;
        if !server.path().ends_with('/') {
            server.set_path(&format!("{}/", server.path()));
        }
        let token_origins = std::iter::once(&config.server).chain(&config.token_origins).map(Url::origin).collect();
        let http = Http::new(&config)?;
        let tokens = config.auth.clone().map(|auth| auth::Tokens::new(auth, config.allow_http)).transpose()?;
        Ok(Self { config, http, tokens, token_origins })
    }

    /// Starts an export. It is not idempotent (rule 36): dropped in mid-air, or after a fault of the network, a job may
    /// exist on the server that nobody waits for.
    ///
    /// # Errors
    /// [`Error::Busy`] when other exports keep the server busy for `kick_off_deadline`; [`Error::Denied`],
    /// [`Error::Refused`] with the issues of its `OperationOutcome`; [`Error::Unreachable`].
    pub async fn kick_off(&self, request: &ExportRequest) -> Result<Job, Error> {
        let url = request.url(&self.config.server)?;
        let context = format!("kick-off at {}", error::shown(&url));
        let spec = RequestSpec {
            method: Method::GET,
            url: &url,
            // Exactly this: the reference server answers 400 to any other (rule 8, Q-4).
            accept: "application/fhir+json",
            headers: KICK_OFF,
            token: TokenUse::WhereAllowed,
            on_redirect: OnRedirect::Refuse,
            context: &context,
        };
        let mut retries = Retries::new(&self.config);
        let mut busy = Backoff::new(self.config.poll.interval);
        let started = Instant::now();
        loop {
            let fault = match self.send(&spec).await {
                Ok(response) if response.status() == StatusCode::ACCEPTED => return self.job(&url, context, &response),
                Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => {
                    let wait = busy.wait(retry_after(response.headers()));
                    if started.elapsed() + wait > self.config.poll.kick_off_deadline {
                        return Err(Error::Busy { context, waited: started.elapsed() });
                    }
                    tracing::info!(context, wait_ms = wait.as_millis(), "the server is busy with another export");
                    sleep(wait).await;
                    continue;
                }
                Ok(response) if is_transient(response.status()) => self.http.fault(response).await,
                Ok(response) => return Err(self.refusal(context, &url, response).await),
                Err(Failure::Retry(fault)) => fault,
                Err(Failure::Fatal(error)) => return Err(error),
            };
            retries.pause(&context, fault).await?;
        }
    }

    /// Sends where the origin rules allow it, with a token where they allow that, renewed once after a 401 (rule 44), and
    /// follows redirects if asked to.
    async fn send(&self, spec: &RequestSpec<'_>) -> Result<Response, Failure> {
        let mut redirects = Redirects::new(spec, &self.config);
        loop {
            let response = self.send_to(spec, redirects.url()?).await?;
            if !redirects.follow(&response)? {
                return Ok(response);
            }
        }
    }

    /// As [`Client::send`], for the documents that tell where tokens come from.
    async fn send_untokened(&self, spec: &RequestSpec<'_>) -> Result<Response, Failure> {
        let mut redirects = Redirects::new(spec, &self.config);
        loop {
            let response = self.http.send(spec, redirects.url()?, None).await?;
            if !redirects.follow(&response)? {
                return Ok(response);
            }
        }
    }

    async fn send_to(&self, spec: &RequestSpec<'_>, url: &Url) -> Result<Response, Failure> {
        let tokens = match (&self.tokens, spec.token) {
            (Some(tokens), TokenUse::WhereAllowed) if self.may_have_token(url) => tokens,
            _ => return Ok(self.http.send(spec, url, None).await?),
        };
        let token = tokens.current(self).await?;
        let response = self.http.send(spec, url, Some(token.authorization(spec.context)?)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let token = tokens.renewed(self, &token).await?;
        Ok(self.http.send(spec, url, Some(token.authorization(spec.context)?)).await?)
    }

    fn may_have_token(&self, url: &Url) -> bool {
        self.token_origins.contains(&url.origin())
    }

    /// The error of an answer that no repetition makes better.
    async fn refusal(&self, context: String, url: &Url, response: Response) -> Error {
        let status = response.status();
        let issues = self.http.issues(response).await;
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.denial(context, url, status, issues),
            _ => Error::Refused { context, status, issues },
        }
    }

    fn denial(&self, context: String, url: &Url, status: StatusCode, issues: Issues) -> Error {
        if self.tokens.is_some() && !self.may_have_token(url) {
            return Error::ForeignOrigin { context, origin: url.origin().ascii_serialization() };
        }
        Error::Denied { context, status, issues }
    }

    /// The job behind a 202. Its URL is made absolute (rule 32, Q-6).
    fn job(&self, kick_off: &Url, context: String, response: &Response) -> Result<Job, Error> {
        let location = response.headers().get(CONTENT_LOCATION).map(HeaderValue::to_str);
        let Some(status_url) = location.and_then(Result::ok).and_then(|location| kick_off.join(location.trim()).ok())
        else {
            return Err(Error::NoStatusUrl { context });
        };
        if let Err(reason) = check_url(&status_url, Some(kick_off), self.config.allow_http) {
            return Err(Error::UnusableUrl { context, reason });
        }
        let kicked_off_at = retry::date(response.headers()).map(TransactionTime::from);
        Ok(Job { status_url, kicked_off_at, polling_since: local_instant::now() })
    }
}

impl Job {
    /// Tells the server that its files are no longer needed, or its work not wanted (rules 103 and 105). A server that
    /// does not know the job, or does not know the method, counts as done.
    pub async fn delete(self, client: &Client) -> Result<(), Error> {
        let context = format!("deleting the export at {}", error::shown(&self.status_url));
        let spec = RequestSpec {
            method: Method::DELETE,
            url: &self.status_url,
            accept: "application/json",
            headers: &[],
            token: TokenUse::WhereAllowed,
            on_redirect: OnRedirect::Refuse,
            context: &context,
        };
        let mut retries = Retries::new(&client.config);
        loop {
            let fault = match client.send(&spec).await {
                Ok(response) if is_done(response.status()) => return Ok(()),
                Ok(response) if is_transient(response.status()) => client.http.fault(response).await,
                Ok(response) => return Err(client.refusal(context, &self.status_url, response).await),
                Err(Failure::Retry(fault)) => fault,
                Err(Failure::Fatal(error)) => return Err(error),
            };
            retries.pause(&context, fault).await?;
        }
    }
}

fn is_done(status: StatusCode) -> bool {
    status.is_success() || matches!(status.as_u16(), 404 | 405 | 410)
}

impl fmt::Debug for Client {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Client").field("server", &error::shown(&self.config.server)).finish_non_exhaustive()
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Job")
            .field("status_url", &error::shown(&self.status_url))
            .field("kicked_off_at", &self.kicked_off_at)
            .field("polling_since", &self.polling_since)
            .finish()
    }
}

/// Instants of our own clock, in the state file as RFC 3339.
mod local_instant {
    use chrono::SecondsFormat::Millis;
    use serde::{Deserializer, Serializer, de};

    use super::{DateTime, Deserialize, Utc, parse_instant};

    #[expect(clippy::disallowed_methods, reason = "the age of a job across restarts is a matter of our own clock")]
    pub(super) fn now() -> DateTime<Utc> {
        Utc::now()
    }

    pub(super) fn serialize<S: Serializer>(instant: &DateTime<Utc>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&instant.to_rfc3339_opts(Millis, true))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DateTime<Utc>, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_instant(&text).ok_or_else(|| de::Error::custom("not an instant with a zone"))
    }
}
