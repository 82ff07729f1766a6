//! FHIR Bulk Data Access, the consumer's side: the only room that speaks to the FHIR server.
//!
//! The steps of an export consume each other: [`Client::kick_off`] gives a [`Job`], [`Job::wait`] a [`Completed`] with
//! its [`Manifest`], [`Client::download`] a stream of bytes, and [`Job::delete`] ends it. What always holds: a token
//! goes to allowed origins only; every wait, body and number of attempts has a limit; a future of this room may be
//! dropped at any await. The room knows no tables: it hands on bytes and the words of `fhir`.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use chrono::{DateTime, Utc};
use reqwest::{Method, Response, StatusCode};
use url::Url;

use crate::{
    fhir::TransactionTime,
    telemetry::metrics::{self, Endpoint, JobEvent, RetryReason},
};
use error::shown;
use failure::Failure;
use http::{Http, OnRedirect, RequestSpec, TokenUse};
use origins::Origins;
use redirect::Redirects;
use retry::{is_transient, retrying};

mod address;
mod attempts;
pub mod auth;
mod capability;
mod check;
mod clock;
mod config;
mod connection;
mod count;
mod download;
mod error;
mod failure;
mod group;
mod headers;
mod http;
mod kick_off;
mod links;
mod manifest;
mod measured;
mod notice;
mod origins;
mod pace;
mod poll;
mod proxy;
mod range;
mod rate;
mod redirect;
mod request;
mod retry;
mod tls;
mod verdict;
mod wire;

#[cfg(test)]
mod tests;

pub use auth::Granted;
pub use check::{Check, CheckVerdict};
pub use config::{
    Config, FileAuth, HttpConfig, KickOffConfig, KickOffMethod, Limits, ListSeparator, PollConfig, WaitRange,
    check_base,
};
pub use connection::Problem;
pub use download::Receipt;
pub use error::{Error, Issues, Refusal};
pub use group::Members;
pub use headers::OwnHeaders;
pub use links::Links;
pub use manifest::{File, FileId, FileKind, Manifest};
pub use notice::{OnRetry, RetryNotice, followed};
pub use origins::check_inner;
pub use poll::{Following, PartialExport, PollProgress, Waited};
pub use proxy::{Clients, Proxy};
pub use redirect::{check_url, is_loopback};
pub use request::{ExportParameters, ExportRequest, Level};
pub use tls::{ClientCertificate, Tls, TlsVersion, Trust};

/// One FHIR server, as this configuration reaches it. Shared by reference: it is safe to use from many tasks.
pub struct Client {
    config: Config,
    http: Http,
    tokens: Option<auth::Tokens>,
    origins: Origins,
    /// A kick-off by GET was refused, and one by POST was not.
    takes_post_only: AtomicBool,
}

/// A running export. Whoever holds it stores its fields before the first poll, so that it survives a restart (rule 35).
#[derive(Clone, PartialEq, Eq)]
pub struct Job {
    pub status_url: Url,
    /// The **server's** clock at the kick-off, by the `Date` of its answer, or of a job that is resumed, at the earliest
    /// answer that had one (rule 51).
    pub server_time: Option<TransactionTime>,
    /// Our clock at the kick-off: for `poll.deadline`, and for how old the data are that people see; no watermark and no
    /// row follows from it (rule 131).
    pub kicked_off_locally_at: DateTime<Utc>,
}

/// A complete export: every page of its manifest has been read.
#[derive(Clone, Debug)]
pub struct Completed {
    pub job: Job,
    pub manifest: Arc<Manifest>,
    /// The server's clock at the kick-off, or where that had no `Date`, at its earliest later answer: the export holds
    /// nothing that is newer (rule 51).
    pub server_time: Option<TransactionTime>,
}

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
        let origins = Origins::new(&config, &config.proxy.urls());
        let http = Http::new(&config, origins.clone())?;
        let tokens = config.auth.clone().map(|auth| auth::Tokens::new(auth, config.allow_http)).transpose()?;
        Ok(Self { config, http, tokens, origins, takes_post_only: AtomicBool::new(false) })
    }

    /// Sends a request, with a token where the origin may receive it, renewed once after a 401 (rule 44); follows
    /// redirects where the spec says so.
    async fn send(&self, spec: &RequestSpec<'_>) -> Result<Response, Failure> {
        let mut redirects = Redirects::new(spec, &self.config.server, &self.origins);
        loop {
            let response = self.send_to(spec, redirects.url()?).await?;
            if !redirects.follow(&response)? {
                return Ok(response);
            }
        }
    }

    /// As [`Client::send`] without a token, for the documents that say where tokens are obtained.
    async fn send_untokened(&self, spec: &RequestSpec<'_>) -> Result<Response, Failure> {
        let mut redirects = Redirects::new(spec, &self.config.server, &self.origins);
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
        // The response also holds the pass of the pace. The next request to this origin may wait for it.
        drop(response);
        let token = tokens.renewed(self, &token).await?;
        metrics::retried(spec.endpoint, RetryReason::ExpiredToken);
        Ok(self.http.send(spec, url, Some(token.authorization(spec.context)?)).await?)
    }

    fn may_have_token(&self, url: &Url) -> bool {
        self.origins.may_have_token(url)
    }

    /// The error of an answer that no other attempt makes better.
    async fn refusal(&self, spec: &RequestSpec<'_>, response: Response) -> Error {
        let (status, body) = (response.status(), self.http.outcome(response).await);
        self.refused(spec, status, Issues::read(&body))
    }

    /// The same with the server's own words.
    async fn refusal_in_words(&self, spec: &RequestSpec<'_>, response: Response) -> Error {
        let (status, body) = (response.status(), self.http.outcome(response).await);
        self.refused(spec, status, Issues::read_in_words(&body))
    }

    fn refused(&self, spec: &RequestSpec<'_>, status: StatusCode, issues: Issues) -> Error {
        match status {
            // The words may quote the token.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                self.denial(spec.context.to_owned(), spec.url, status, issues.without_words())
            }
            _ => Error::Refused { context: spec.context.to_owned(), refusal: Refusal::Status { status, issues } },
        }
    }

    fn denial(&self, context: String, url: &Url, status: StatusCode, issues: Issues) -> Error {
        if self.tokens.is_some() && !self.may_have_token(url) {
            return Error::ForeignOrigin { context, origin: url.origin().ascii_serialization() };
        }
        if self.tokens.is_none() && status == StatusCode::UNAUTHORIZED {
            return Error::AuthorizationRequired { context, status };
        }
        Error::Denied { context, status, issues }
    }
}

impl Job {
    /// Tells the server that its files are no longer needed, or that its work is not (rules 103 and 105). A server that
    /// does not know the job, or does not know the method, counts as done.
    pub async fn delete(self, client: &Client) -> Result<(), Error> {
        let context = format!("deleting the export at {}", shown(&self.status_url));
        let spec = RequestSpec {
            endpoint: Endpoint::Delete,
            method: Method::DELETE,
            url: &self.status_url,
            accept: "application/json",
            headers: &[],
            body: None,
            rest: None,
            token: TokenUse::WhereAllowed,
            on_redirect: OnRedirect::Refuse,
            context: &context,
        };
        let config = &client.config.http;
        // The files are a courtesy to the server: they are not worth a long wait.
        let config = HttpConfig { outage_patience: config.outage_patience.min(DELETE_PATIENCE), ..config.clone() };
        retrying(&config, spec.endpoint, &context, || async {
            let response = client.send(&spec).await?;
            match response.status() {
                status if is_done(status) => {
                    metrics::job(JobEvent::Deleted);
                    Ok(())
                }
                status if is_transient(status) => Err(client.http.fault(response).await.into()),
                _ => Err(client.refusal(&spec, response).await.into()),
            }
        })
        .await
    }
}

/// How long a server that is out of reach is waited for when a job is deleted.
const DELETE_PATIENCE: Duration = Duration::from_mins(1);

fn is_done(status: StatusCode) -> bool {
    status.is_success() || matches!(status.as_u16(), 404 | 405 | 410 | 501)
}

impl Job {
    /// Gives the job up, whatever the reason: the server should neither work on it nor keep its files, and one that
    /// runs a single export at a time would refuse the next. Best effort; what fails is logged.
    pub async fn cancel(self, client: &Client) {
        let place = shown(&self.status_url);
        match self.delete(client).await {
            Ok(()) => tracing::info!(place, "the export on the server was cancelled"),
            Err(error) => {
                tracing::warn!(place, %error, "the export could not be cancelled; the server may still work on it");
            }
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Client").field("server", &shown(&self.config.server)).finish_non_exhaustive()
    }
}

impl fmt::Debug for Job {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Job")
            .field("status_url", &shown(&self.status_url))
            .field("server_time", &self.server_time)
            .field("kicked_off_locally_at", &self.kicked_off_locally_at)
            .finish()
    }
}
