//! The kick-off: what is asked for is sent, and becomes a job on the server.

use std::{sync::atomic::Ordering, time::Duration};

use fastrand::Rng;
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_LOCATION, HeaderValue},
};
use tokio::time::{Instant, sleep};
use url::Url;

use super::{
    Client, Error, ExportRequest, Job, KickOffConfig, KickOffMethod, PollConfig, Refusal,
    clock::local_now,
    error::{content_type, shown},
    failure::Failure,
    http::{OnRedirect, RequestSpec, TokenUse},
    measured,
    redirect::redirect_target,
    request::{Lists, body, query},
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
    /// [`Error::PostRefused`]; [`Error::Unreachable`].
    pub async fn kick_off(&self, request: &ExportRequest) -> Result<Job, Error> {
        let job = self.request_export(request).await;
        // The server's words may quote the patients that the request names.
        let job = if request.needs_post() { job.map_err(without_words) } else { job };
        if job.is_ok() {
            metrics::job(JobEvent::KickedOff);
        }
        measured::checked(&job);
        job
    }

    /// By the method that the server takes. Where nobody has set it, the other one is tried once after a refusal that
    /// is about the method (rule 11), and what was accepted is remembered.
    async fn request_export(&self, request: &ExportRequest) -> Result<Job, Error> {
        if request.needs_post() && self.config.kick_off.method == KickOffMethod::Get {
            return Err(Error::PostRefused { context: self.context(request)? });
        }
        let form = self.kick_off_form(request);
        let refused = match self.request_by(form, request).await {
            Err(error) if is_about_method(&error) => error,
            ended => return ended,
        };
        if request.needs_post() {
            // By GET the server would export all patients.
            return Err(Error::PostRefused { context: self.context(request)? });
        }
        if self.config.kick_off.method != KickOffMethod::Auto {
            return Err(refused);
        }
        let other = match form {
            // A server that refuses GET follows the draft of 4.0, which allows no commas (rule 13).
            Form::Get(_) => Form::Post(self.config.kick_off.lists(Lists::Repeated)),
            Form::Post(_) => Form::Get(self.config.kick_off.lists(Lists::Joined)),
        };
        match self.request_by(other, request).await {
            Err(error) if is_about_method(&error) => Err(refused),
            ended => {
                if ended.is_ok() {
                    let takes_post_only = matches!(other, Form::Post(_));
                    self.takes_post_only.store(takes_post_only, Ordering::Relaxed);
                    let method = if takes_post_only { "POST" } else { "GET" };
                    tracing::info!(method, "the server takes kick-offs by {method} only; this is remembered");
                }
                ended
            }
        }
    }

    /// Auto is GET, which all servers up to 3.0 must take, unless this server is known to refuse it.
    fn kick_off_form(&self, request: &ExportRequest) -> Form {
        let KickOffConfig { method, .. } = self.config.kick_off;
        let takes_post_only = self.takes_post_only.load(Ordering::Relaxed);
        // In a POST to a server that takes GET as well, a comma is legal, and HAPI reads the first of repeated values
        // alone, without a word. A server that takes no comma says so.
        match method {
            KickOffMethod::Auto if takes_post_only => Form::Post(self.config.kick_off.lists(Lists::Repeated)),
            KickOffMethod::Auto if !request.needs_post() => Form::Get(self.config.kick_off.lists(Lists::Joined)),
            KickOffMethod::Get => Form::Get(self.config.kick_off.lists(Lists::Joined)),
            KickOffMethod::Auto | KickOffMethod::Post => Form::Post(self.config.kick_off.lists(Lists::Joined)),
        }
    }

    fn context(&self, request: &ExportRequest) -> Result<String, Error> {
        Ok(format!("kick-off at {}", shown(&request.url(&self.config.server)?)))
    }

    async fn request_by(&self, form: Form, request: &ExportRequest) -> Result<Job, Error> {
        let (mut url, context) = (request.url(&self.config.server)?, self.context(request)?);
        let parameters = request.parameters();
        let (method, body) = match form {
            Form::Get(lists) => {
                url.set_query(query(&parameters, lists).as_deref());
                (Method::GET, None)
            }
            Form::Post(lists) => (Method::POST, Some(body(&parameters, lists))),
        };
        let spec = RequestSpec {
            endpoint: Endpoint::KickOff,
            method,
            url: &url,
            // Exactly this: the reference server answers 400 to any other (rule 8, Q-4).
            accept: "application/fhir+json",
            headers: KICK_OFF,
            body: body.as_deref(),
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
        let refusal = match (self.refusal_in_words(spec, response).await, location) {
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
        let status_url = self.origins.rewrite().meant(status_url, kick_off);
        self.origins.check(&status_url, kick_off, &context)?;
        let server_time = retry::date(response.headers()).map(TransactionTime::from);
        Ok(Job { status_url, server_time, kicked_off_locally_at: local_now() })
    }
}

fn without_words(error: Error) -> Error {
    let Error::Refused { context, refusal } = error else { return error };
    let refusal = match refusal {
        Refusal::Status { status, issues } => Refusal::Status { status, issues: issues.without_words() },
        Refusal::NoExport { status, issues } => Refusal::NoExport { status, issues: issues.without_words() },
        refusal => refusal,
    };
    Error::Refused { context, refusal }
}

/// How the parameters are sent.
#[derive(Clone, Copy)]
enum Form {
    Get(Lists),
    Post(Lists),
}

/// Whether another method may help: the status says so, or the server's words name a method.
fn is_about_method(error: &Error) -> bool {
    let Error::Refused { refusal: Refusal::Status { status, issues } | Refusal::NoExport { status, issues }, .. } =
        error
    else {
        return false;
    };
    match status.as_u16() {
        405 | 501 => true,
        400 | 404 => issues.name_a_method(),
        _ => false,
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
