//! Waiting for an export: status polls until every page of the manifest has been read.
//!
//! A failed poll is not a failed job: what is transient is tried again, what the server reports about the job is
//! believed, and the deadline counts from the kick-off, across restarts.

use std::{collections::HashSet, sync::Arc, time::Duration};

use fastrand::Rng;

use reqwest::{
    Method, Response, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use tokio::time::{Instant, sleep};
use url::Url;

use super::{
    Client, Completed, Error, HttpConfig, Issues, Job, Manifest, PollConfig, Refusal,
    clock::local_now,
    error::shown,
    failure::{Failure, Fault},
    http::{OnRedirect, RequestSpec, TokenUse},
    manifest::Pages,
    measured,
    retry::{Backoff, Retries, WaitLog, date, is_transient, millis, retry_after},
};
use crate::{
    fhir::{TransactionTime, printable_progress},
    telemetry::metrics::{self, Endpoint, RetryReason},
};

/// How long a server may not yet know a job that it accepted (rule 45, Q-19).
const UNKNOWN_GRACE: Duration = Duration::from_mins(1);
/// How many polls a server must answer with the same verdict before it is believed (rule 44, Q-22).
const MIN_REPORTS: u32 = 5;
/// After this time with the same `X-Progress` the server has probably lost the export.
const UNCHANGED_IS_ODD: Duration = Duration::from_hours(6);

/// What is known of a job that is not complete.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PollProgress {
    /// Since this wait began.
    pub polls: u32,
    /// The server's own words, for people only (rule 41), as far as they are safe to show: see [`printable_progress`].
    pub x_progress: Option<String>,
    /// Until the next poll.
    pub retry_in: Duration,
}

impl Job {
    /// Polls until the export is complete, and reads every page of its manifest (rules 66 to 70).
    ///
    /// # Errors
    /// [`Error::JobLost`] and [`Error::ExportFailed`]: start another export with the old `_since`.
    /// [`Error::Unreachable`] and [`Error::Denied`]: the job may still be running, wait for it again later.
    /// [`Error::Deadline`], [`Error::NotAManifest`], [`Error::TooLarge`], [`Error::ForeignOrigin`].
    pub async fn wait(self, client: &Client, on_progress: &(dyn Fn(PollProgress) + Sync)) -> Result<Completed, Error> {
        let mut wait = Wait::new(client, &self, UNKNOWN_GRACE, on_progress);
        let manifest = wait.manifest_of(&self).await;
        measured::waited(&manifest);
        let manifest = Arc::new(manifest?);
        Ok(Completed { manifest, bound: self.kicked_off_at.or(wait.date), job: self })
    }

    /// Reads the manifest of a complete export once more, for links that have not expired (rule 61).
    ///
    /// # Errors
    /// As [`Job::wait`].
    pub(super) async fn manifest_again(self, client: &Client) -> Result<Manifest, Error> {
        Wait::new(client, &self, Duration::ZERO, &|_| {}).manifest_of(&self).await
    }
}

/// One wait for one job: its clock, how much it may still read, and who follows its progress.
struct Wait<'a> {
    client: &'a Client,
    on_progress: &'a (dyn Fn(PollProgress) + Sync),
    context: String,
    /// The age of the job when the wait began.
    age: Duration,
    /// Until this age of the job its server may not know it yet.
    unknown_grace: Duration,
    started: Instant,
    polls: u32,
    bytes_left: u64,
    /// The server's clock at its first answer that had a `Date`.
    date: Option<TransactionTime>,
    log: WaitLog,
    unchanged: Unchanged,
}

/// What one answer means.
enum Polled {
    Manifest {
        next: Option<Url>,
    },
    /// Poll again later; nothing is wrong.
    Later {
        retry_after: Option<Duration>,
        x_progress: Option<String>,
    },
    /// Poll again, for a limited time.
    Failed(Fault),
}

impl<'a> Wait<'a> {
    fn new(
        client: &'a Client,
        job: &Job,
        unknown_grace: Duration,
        on_progress: &'a (dyn Fn(PollProgress) + Sync),
    ) -> Self {
        Self {
            client,
            on_progress,
            unknown_grace,
            context: format!("export status at {}", shown(&job.status_url)),
            // When our clock was set back, the job has no age: rather too young than too old.
            age: (local_now() - job.polling_since).to_std().unwrap_or_default(),
            started: Instant::now(),
            polls: 0,
            bytes_left: client.config.limits.max_manifest_bytes,
            date: None,
            log: WaitLog::default(),
            unchanged: Unchanged::default(),
        }
    }

    /// All pages of the manifest.
    async fn manifest_of(&mut self, job: &Job) -> Result<Manifest, Error> {
        let mut pages = Pages::default();
        let mut seen = HashSet::new();
        let mut url = job.status_url.clone();
        loop {
            let next = self.page(&url, &mut pages).await?;
            seen.insert(url);
            let Some(next) = next else { return Ok(pages.manifest(self.client.tokens.is_some())) };
            let max_pages = self.client.config.limits.max_manifest_pages;
            let reason = if seen.contains(&next) {
                "its pages form a cycle".to_owned()
            } else if seen.len() >= max_pages {
                format!("it has more than {max_pages} pages; divide the types among several exports")
            } else {
                url = next;
                continue;
            };
            return Err(Error::NotAManifest { context: self.context.clone(), reason });
        }
    }

    /// Polls one page until it can be read, and adds it.
    async fn page(&mut self, url: &Url, pages: &mut Pages) -> Result<Option<Url>, Error> {
        let config = &self.client.config;
        let mut interval = Backoff::new(config.poll.interval, Rng::new());
        let mut failures = PollFailures::new(&config.poll, &config.http);
        loop {
            self.polls = self.polls.saturating_add(1);
            let (retry_in, x_progress) = match self.poll(url, pages).await? {
                Polled::Manifest { next } => return Ok(next),
                Polled::Later { retry_after, x_progress } => {
                    failures.reset();
                    let retry_in = interval.wait(retry_after);
                    self.log_progress(retry_in, x_progress.as_deref());
                    (retry_in, x_progress)
                }
                Polled::Failed(fault) => (failures.failed(&self.context, fault)?, None),
            };
            self.before_deadline()?;
            (self.on_progress)(PollProgress { polls: self.polls, x_progress, retry_in });
            sleep(retry_in).await;
        }
    }

    fn log_progress(&mut self, retry_in: Duration, x_progress: Option<&str>) {
        if self.log.is_due() {
            tracing::info!(
                context = self.context,
                polls = self.polls,
                job_age_s = self.job_age().as_secs(),
                wait_ms = millis(retry_in),
                server_says = x_progress,
                "the export is in progress; polling again in {:.1} s",
                retry_in.as_secs_f64()
            );
        }
    }

    async fn poll(&mut self, url: &Url, pages: &mut Pages) -> Result<Polled, Error> {
        let spec = RequestSpec {
            endpoint: Endpoint::Status,
            method: Method::GET,
            url,
            accept: "application/json",
            headers: &[],
            rest: None,
            token: TokenUse::WhereAllowed,
            on_redirect: OnRedirect::Follow,
            context: &self.context,
        };
        metrics::polled();
        let response = match self.client.send(&spec).await {
            Ok(response) => response,
            Err(Failure::Retry(fault)) => return Ok(Polled::Failed(fault)),
            Err(Failure::Fatal(error)) => return Err(self.or_deadline(error)),
        };
        self.date = self.date.or_else(|| date(response.headers()).map(TransactionTime::from));
        let retry_after = retry_after(response.headers());
        match export_status(&response) {
            StatusCode::OK => self.manifest(response, pages).await,
            StatusCode::ACCEPTED => {
                let x_progress = self.x_progress(response.headers());
                Ok(Polled::Later { retry_after, x_progress })
            }
            StatusCode::TOO_MANY_REQUESTS => {
                metrics::retried(Endpoint::Status, RetryReason::RateLimit);
                Ok(Polled::Later { retry_after, x_progress: None })
            }
            StatusCode::NOT_FOUND if self.job_age() < self.unknown_grace => {
                Ok(Polled::Later { retry_after, x_progress: None })
            }
            status @ (StatusCode::NOT_FOUND | StatusCode::GONE) => {
                Err(Error::JobLost { context: self.context.clone(), status })
            }
            status => {
                let issues = self.client.http.issues(response).await;
                self.failure(url, status, retry_after, issues).map_err(|error| self.or_deadline(error))
            }
        }
    }

    fn x_progress(&mut self, headers: &HeaderMap) -> Option<String> {
        let header = headers.get("x-progress");
        if let Some(unchanged) = self.unchanged.for_long(header) {
            tracing::warn!(
                context = self.context,
                unchanged_s = unchanged.as_secs(),
                "the server has said the same of the export's progress for {} h and may have lost it; ask its \
                 administrator, or give the export up with fhir-sync job cancel",
                unchanged.as_secs() / 3600
            );
        }
        printable_progress(&String::from_utf8_lossy(header?.as_bytes()))
    }

    async fn manifest(&mut self, response: Response, pages: &mut Pages) -> Result<Polled, Error> {
        // Relative URLs belong to the address that answered, which a redirect may have led to (RFC 3986, 5.1.3).
        let answered = response.url().clone();
        let body = match self.client.http.read(response, self.bytes_left).await {
            Ok(Some(body)) => body,
            Ok(None) => {
                let limit_bytes = self.client.config.limits.max_manifest_bytes;
                let way_out = "divide the types among several exports, or raise server.http.max_manifest_size";
                return Err(Error::TooLarge { context: self.context.clone(), limit_bytes, way_out });
            }
            Err(fault) => return Ok(Polled::Failed(fault)),
        };
        if body.trim_ascii_start().first() == Some(&b'<') {
            return Ok(Polled::Failed(Fault::Page));
        }
        match pages.add(&body, &answered) {
            Ok(next) => {
                self.bytes_left = self.bytes_left.saturating_sub(body.len() as u64);
                Ok(Polled::Manifest { next })
            }
            Err(reason) => Ok(Polled::Failed(Fault::NotAManifest(reason))),
        }
    }

    /// What an error means for the job (rules 43 and 44).
    fn failure(
        &self,
        url: &Url,
        status: StatusCode,
        retry_after: Option<Duration>,
        issues: Issues,
    ) -> Result<Polled, Error> {
        let context = self.context.clone();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !issues.are_transient() => {
                Err(self.client.denial(context, url, status, issues))
            }
            _ if status.is_success() => {
                Ok(Polled::Failed(Fault::NotAManifest(format!("the server answered {status}"))))
            }
            _ if status.is_redirection() => {
                Err(Error::Refused { context, refusal: Refusal::Status { status, issues } })
            }
            _ => Ok(Polled::Failed(Fault::Status { status, retry_after, issues })),
        }
    }

    fn job_age(&self) -> Duration {
        self.age + self.started.elapsed()
    }

    /// A job that the server denies us may exist for ever: beyond its deadline it is given up.
    fn or_deadline(&self, error: Error) -> Error {
        use Error as E;
        match error {
            E::Denied { .. } | E::AuthorizationRequired { .. } | E::TokenDenied { .. } | E::ForeignOrigin { .. } => {
                self.before_deadline().err().unwrap_or(error)
            }
            error => error,
        }
    }

    /// Asked after a poll, so that a job that was completed while no daemon ran is still fetched.
    fn before_deadline(&self) -> Result<(), Error> {
        let deadline = self.client.config.poll.deadline;
        if self.job_age() < deadline {
            Ok(())
        } else {
            Err(Error::Deadline { context: self.context.clone(), deadline })
        }
    }
}

/// Polls of one page that failed in a row.
pub struct PollFailures {
    retries: Retries,
    believed_after: Duration,
    believed_after_outage: Duration,
    patience_with_words: Duration,
    verdict: Option<Verdict>,
}

/// What the server reports about the export itself, again and again.
struct Verdict {
    kind: VerdictKind,
    since: Instant,
    reports: u32,
}

#[derive(PartialEq, Eq)]
enum VerdictKind {
    /// A 4xx, or a 200 that is not a manifest.
    Final,
    /// A 5xx with issues: the server may be unwell, or the export failed for good.
    PerhapsOutage,
    /// Only issues that ask for patience, in these words.
    Transient(StatusCode, Issues),
}

impl PollFailures {
    pub fn new(poll: &PollConfig, http: &HttpConfig) -> Self {
        Self {
            retries: Retries::new(http, Endpoint::Status),
            believed_after: poll.believed_after,
            believed_after_outage: poll.believed_after.max(http.outage_patience),
            patience_with_words: poll.patience_with_words,
            verdict: None,
        }
    }

    /// The wait before another poll, or the error that these failures amount to. A fault of the network is neither a
    /// verdict nor the end of one.
    pub fn failed(&mut self, context: &str, fault: Fault) -> Result<Duration, Error> {
        let Some(kind) = VerdictKind::of(&fault) else { return self.retries.failed(context, fault) };
        self.retries.reached();
        let believed_after = match kind {
            VerdictKind::Final => self.believed_after,
            VerdictKind::PerhapsOutage => self.believed_after_outage,
            VerdictKind::Transient(..) => self.patience_with_words,
        };
        let verdict = match self.verdict.take() {
            Some(verdict) if verdict.kind == kind => Verdict { reports: verdict.reports.saturating_add(1), ..verdict },
            _ => Verdict { kind, since: Instant::now(), reports: 1 },
        };
        let is_believed = verdict.reports >= MIN_REPORTS && verdict.since.elapsed() >= believed_after;
        self.verdict = Some(verdict);
        let context = context.to_owned();
        match fault {
            Fault::NotAManifest(reason) if is_believed => Err(Error::NotAManifest { context, reason }),
            Fault::Status { status, issues, .. } if is_believed => Err(Error::ExportFailed { context, status, issues }),
            fault => Ok(self.retries.wait(&context, &fault)),
        }
    }

    fn reset(&mut self) {
        self.retries.reset();
        self.verdict = None;
    }
}

impl VerdictKind {
    fn of(fault: &Fault) -> Option<Self> {
        match fault {
            Fault::NotAManifest(_) => Some(Self::Final),
            Fault::Status { status, issues, .. } if issues.are_transient() => {
                Some(Self::Transient(*status, issues.clone()))
            }
            Fault::Status { status, .. } if !is_transient(*status) => Some(Self::Final),
            Fault::Status { issues, .. } if !issues.0.is_empty() => Some(Self::PerhapsOutage),
            Fault::Status { .. }
            | Fault::NotConnected { .. }
            | Fault::Transport(_)
            | Fault::Idle(_)
            | Fault::Page
            | Fault::TooSlow { .. }
            | Fault::GzipCut
            | Fault::FromTheBeginning => None,
        }
    }
}

/// The status of the export: that of the answer, or with a 200 what `X-Export-Status` says (rule 37).
fn export_status(response: &Response) -> StatusCode {
    let header = || response.headers().get("x-export-status")?.to_str().ok()?.get(..3)?.parse().ok();
    match response.status() {
        StatusCode::OK => header().unwrap_or(StatusCode::OK),
        status => status,
    }
}

/// Since when the server has said the same of its progress.
#[derive(Default)]
pub struct Unchanged {
    said: Option<(HeaderValue, Instant)>,
    warned: bool,
}

impl Unchanged {
    /// How long it has been the same; once, when that is long enough for a warning.
    pub fn for_long(&mut self, says: Option<&HeaderValue>) -> Option<Duration> {
        match (&self.said, says) {
            (Some((said, since)), Some(says)) if said == says => {
                let unchanged = since.elapsed();
                let is_due = unchanged >= UNCHANGED_IS_ODD && !self.warned;
                self.warned |= is_due;
                is_due.then_some(unchanged)
            }
            (_, says) => {
                *self = Self { said: says.map(|says| (says.clone(), Instant::now())), warned: false };
                None
            }
        }
    }
}
