//! The kick-off: what is asked for is sent, and becomes a job on the server.

use std::time::Duration;

use fastrand::Rng;
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_LOCATION, HeaderValue},
};
use tokio::time::{Instant, sleep};
use url::Url;

use super::{
    Client, Error, ExportRequest, Job, PollConfig, Refusal, check_url,
    clock::local_now,
    error::{content_type, shown},
    failure::Failure,
    http::{OnRedirect, RequestSpec, TokenUse},
    measured,
    redirect::{redirect_target, secured},
    retry::{self, Backoff, WaitLog, is_transient, millis, retry_after, retrying},
};
use crate::{
    fhir::TransactionTime,
    telemetry::metrics::{self, Endpoint, JobEvent, RetryReason},
};

const KICK_OFF: &[(&str, &str)] = &[
    ("prefer", "respond-async"),
    // Without it HAPI answers with an old job of equal parameters.
    ("cache-control", "no-cache"),
];

impl Client {
    /// Starts an export. It is not idempotent (rule 36): when it is dropped, or the network fails, a job may exist on
    /// the server that nobody waits for.
    ///
    /// # Errors
    /// [`Error::Busy`] when other exports keep the server busy for `kick_off_deadline`; [`Error::Denied`],
    /// [`Error::AuthorizationRequired`], [`Error::Refused`] with the issues of its `OperationOutcome`;
    /// [`Error::Unreachable`].
    pub async fn kick_off(&self, request: &ExportRequest) -> Result<Job, Error> {
        let job = self.request_export(request).await;
        if job.is_ok() {
            metrics::job(JobEvent::KickedOff);
        }
        measured::checked(&job);
        job
    }

    async fn request_export(&self, request: &ExportRequest) -> Result<Job, Error> {
        let url = request.url(&self.config.server)?;
        let context = format!("kick-off at {}", shown(&url));
        let spec = RequestSpec {
            endpoint: Endpoint::KickOff,
            method: Method::GET,
            url: &url,
            // Exactly this: the reference server answers 400 to any other (rule 8, Q-4).
            accept: "application/fhir+json",
            headers: KICK_OFF,
            rest: None,
            token: TokenUse::WhereAllowed,
            on_redirect: OnRedirect::Refuse,
            context: &context,
        };
        let mut queue = Queue::new(&self.config.poll);
        loop {
            let response = retrying(&self.config.http, spec.endpoint, &context, || self.send_kick_off(&spec)).await?;
            if response.status() == StatusCode::ACCEPTED {
                return self.job(&url, context, &response);
            }
            queue.wait(&context, &response).await?;
        }
    }

    /// Gives the answer 202, or the 429 of a server that works on another export.
    async fn send_kick_off(&self, spec: &RequestSpec<'_>) -> Result<Response, Failure> {
        let response = self.send(spec).await?;
        match response.status() {
            StatusCode::ACCEPTED | StatusCode::TOO_MANY_REQUESTS => Ok(response),
            status if is_transient(status) => Err(self.http.fault(response).await.into()),
            _ => Err(self.kick_off_refusal(spec, response).await.into()),
        }
    }

    /// As [`Client::refusal`], with the usual reason for such an answer to a kick-off.
    async fn kick_off_refusal(&self, spec: &RequestSpec<'_>, response: Response) -> Error {
        let content_type = content_type(response.headers());
        let location = redirect_target(&response, spec.url).map(|url| shown(&url));
        let refusal = match (self.refusal(spec, response).await, location) {
            (Error::Refused { refusal: Refusal::Status { status, issues }, .. }, location) => {
                match (status, location) {
                    (StatusCode::NOT_FOUND, _) => Refusal::NoExport { status, issues },
                    (status, Some(location)) => Refusal::Redirected { status, location },
                    (status, None) if status.is_success() && issues.0.is_empty() => {
                        Refusal::NotAccepted { status, content_type }
                    }
                    _ => Refusal::Status { status, issues },
                }
            }
            (other, _) => return other,
        };
        Error::Refused { context: spec.context.to_owned(), refusal }
    }

    /// The job behind a 202. Its URL is made absolute (rule 32, Q-6).
    fn job(&self, kick_off: &Url, context: String, response: &Response) -> Result<Job, Error> {
        let location = response.headers().get(CONTENT_LOCATION).map(HeaderValue::to_str);
        let Some(status_url) = location.and_then(Result::ok).and_then(|location| kick_off.join(location.trim()).ok())
        else {
            return Err(Error::NoStatusUrl { context });
        };
        let status_url = secured(status_url, kick_off);
        if let Err(reason) = check_url(&status_url, Some(kick_off), self.config.allow_http) {
            return Err(Error::UnusableUrl { context, reason });
        }
        let kicked_off_at = retry::date(response.headers()).map(TransactionTime::from);
        Ok(Job { status_url, kicked_off_at, polling_since: local_now() })
    }
}

/// A kick-off that waits until the server has finished another export.
struct Queue {
    started: Instant,
    deadline: Duration,
    backoff: Backoff,
    log: WaitLog,
}

impl Queue {
    fn new(config: &PollConfig) -> Self {
        Self {
            started: Instant::now(),
            deadline: config.kick_off_deadline,
            backoff: Backoff::new(config.interval, Rng::new()),
            log: WaitLog::default(),
        }
    }

    async fn wait(&mut self, context: &str, response: &Response) -> Result<(), Error> {
        let (wait, waited) = (self.backoff.wait(retry_after(response.headers())), self.started.elapsed());
        if waited + wait > self.deadline {
            return Err(Error::Busy { context: context.to_owned(), waited });
        }
        metrics::retried(Endpoint::KickOff, RetryReason::RateLimit);
        if self.log.is_due() {
            tracing::info!(
                context,
                waited_ms = millis(waited),
                wait_ms = millis(wait),
                "the server is busy with another export; asking again in {:.1} s",
                wait.as_secs_f64()
            );
        }
        sleep(wait).await;
        Ok(())
    }
}
