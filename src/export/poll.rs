//! Waiting for an export: status polls until every page of the manifest has been read.
//!
//! A failed poll is not a failed job: what is transient is tried again, what the server reports about the job is
//! believed, and the deadline counts from the kick-off, across restarts.

use std::{collections::HashSet, ops::ControlFlow, sync::Arc, time::Duration};

use fastrand::Rng;

use reqwest::{
    Response, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use tokio::time::{Instant, sleep, sleep_until};
use url::Url;

use super::{
    Client, Completed, Error, Issues, Job, Manifest, Refusal,
    clock::local_now,
    error::shown,
    failure::{Failure, Fault},
    http::RequestSpec,
    manifest::Pages,
    measured,
    retry::{Backoff, WaitLog, date, millis, retry_after},
    verdict::PollFailures,
};
use crate::{
    fhir::{TransactionTime, printable_progress},
    telemetry::metrics::{self, Endpoint, RetryReason},
};

/// How long a server may not yet know a job that it accepted (rule 45, Q-19).
const UNKNOWN_GRACE: Duration = Duration::from_mins(1);
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
    /// The server's clock at its first answer of this wait that had a `Date`.
    pub server_time: Option<TransactionTime>,
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
        Ok(Completed { manifest, server_time: self.server_time.or(wait.server_time), job: self })
    }

    /// Waits as [`Job::wait`] does, and for partial manifests too (rule 64).
    pub fn follow<'a>(
        self,
        client: &'a Client,
        on_progress: &'a (dyn Fn(PollProgress) + Sync),
        partial_interval: Duration,
    ) -> Following<'a> {
        let mut wait = Wait::new(client, &self, UNKNOWN_GRACE, on_progress);
        wait.partial_from = Some(Instant::now() + partial_interval);
        Following { job: self, wait, partial_interval }
    }

    /// Reads the manifest of a complete export once more, for links that have not expired (rule 61).
    ///
    /// # Errors
    /// As [`Job::wait`].
    pub(super) async fn manifest_again(self, client: &Client) -> Result<Manifest, Error> {
        Wait::new(client, &self, Duration::ZERO, &|_| {}).manifest_of(&self).await
    }
}

/// A job whose files are read while the server still works on it.
pub struct Following<'a> {
    job: Job,
    wait: Wait<'a>,
    /// Between two partial manifests.
    partial_interval: Duration,
}

/// What the server has of an export.
pub enum Waited {
    Complete(Completed),
    Partial(PartialExport),
}

/// The files of an export that are ready while the server still works on it.
pub struct PartialExport {
    pub manifest: Manifest,
    /// As [`Completed::server_time`].
    pub server_time: Option<TransactionTime>,
}

impl Following<'_> {
    /// Polls until the export is complete, or a partial manifest is due.
    ///
    /// # Errors
    /// As [`Job::wait`].
    pub async fn next(&mut self) -> Result<Waited, Error> {
        let found = self.wait.find(&self.job).await;
        let server_time = self.job.server_time.or(self.wait.server_time);
        self.wait.partial_from = Some(Instant::now() + self.partial_interval);
        if !matches!(found, Ok(Found::Partial(_))) {
            measured::waited(&found);
        }
        Ok(match found? {
            Found::Partial(manifest) => Waited::Partial(PartialExport { manifest, server_time }),
            Found::Whole(manifest) => {
                Waited::Complete(Completed { manifest: Arc::new(manifest), server_time, job: self.job.clone() })
            }
        })
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
    server_time: Option<TransactionTime>,
    log: WaitLog,
    unchanged: Unchanged,
    /// From then on a partial manifest ends the wait.
    partial_from: Option<Instant>,
    /// The server has asked for no earlier poll.
    poll_from: Instant,
}

/// What a wait has found.
enum Found {
    Whole(Manifest),
    Partial(Manifest),
}

/// What one answer means.
enum Polled {
    Manifest {
        next: Option<Url>,
    },
    /// The export is in progress, and these pages name files that are ready.
    Partial {
        pages: Pages,
        retry_after: Option<Duration>,
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
            age: (local_now() - job.kicked_off_locally_at).to_std().unwrap_or_default(),
            started: Instant::now(),
            polls: 0,
            bytes_left: client.config.limits.max_manifest_bytes,
            server_time: None,
            log: WaitLog::default(),
            unchanged: Unchanged::default(),
            partial_from: None,
            poll_from: Instant::now(),
        }
    }

    /// All pages of the manifest.
    async fn manifest_of(&mut self, job: &Job) -> Result<Manifest, Error> {
        loop {
            if let Found::Whole(manifest) = self.find(job).await? {
                return Ok(manifest);
            }
        }
    }

    /// All pages of the manifest, or those of a partial one.
    async fn find(&mut self, job: &Job) -> Result<Found, Error> {
        let token_by_default = self.client.tokens.is_some();
        let mut pages = Pages::of(self.client.origins.rewrite());
        let mut seen = HashSet::new();
        let mut url = job.status_url.clone();
        self.bytes_left = self.client.config.limits.max_manifest_bytes;
        sleep_until(self.poll_from).await;
        loop {
            let next = match self.page(&url, &mut pages).await? {
                ControlFlow::Continue(next) => next,
                ControlFlow::Break(pages) => return Ok(Found::Partial(pages.manifest(token_by_default))),
            };
            // What follows is of a manifest that is complete, however its pages are answered.
            self.partial_from = None;
            seen.insert(url);
            let Some(next) = next else { return Ok(Found::Whole(pages.manifest(token_by_default))) };
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

    /// Polls one page until it can be read, and adds it: gives the URL of the next one. Breaks with the pages of a
    /// partial manifest.
    async fn page(&mut self, url: &Url, pages: &mut Pages) -> Result<ControlFlow<Pages, Option<Url>>, Error> {
        let config = &self.client.config;
        let mut interval = Backoff::new(config.poll.interval, Rng::new());
        let mut failures = PollFailures::new(&config.poll, &config.http);
        loop {
            self.polls = self.polls.saturating_add(1);
            let (retry_in, x_progress) = match self.poll(url, pages).await? {
                Polled::Manifest { next } => return Ok(ControlFlow::Continue(next)),
                Polled::Partial { pages, retry_after } => {
                    self.before_deadline()?;
                    self.poll_from = Instant::now() + interval.wait(retry_after);
                    return Ok(ControlFlow::Break(pages));
                }
                Polled::Later { retry_after, x_progress } => {
                    failures.reset();
                    let retry_in = interval.wait(retry_after);
                    self.log_progress(retry_in, x_progress.as_deref());
                    (retry_in, x_progress)
                }
                Polled::Failed(fault) => (failures.failed(&self.context, fault)?, None),
            };
            self.before_deadline()?;
            let (polls, server_time) = (self.polls, self.server_time);
            (self.on_progress)(PollProgress { polls, x_progress, retry_in, server_time });
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
        let response = match self.ask(url).await {
            Ok(response) => response,
            Err(Failure::Retry(fault)) => return Ok(Polled::Failed(fault)),
            Err(Failure::Fatal(error)) => return Err(self.or_deadline(error)),
        };
        self.server_time = self.server_time.or_else(|| date(response.headers()).map(TransactionTime::from));
        let retry_after = retry_after(response.headers());
        match export_status(&response) {
            StatusCode::OK => self.manifest(response, pages).await,
            StatusCode::ACCEPTED => {
                let x_progress = self.x_progress(response.headers());
                match self.partial(response).await {
                    Some(pages) => Ok(Polled::Partial { pages, retry_after }),
                    None => Ok(Polled::Later { retry_after, x_progress }),
                }
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

    /// One request for the status, or for a page.
    async fn ask(&self, url: &Url) -> Result<Response, Failure> {
        let spec = RequestSpec::get(Endpoint::Status, url, "application/json", &self.context);
        metrics::polled();
        self.client.send(&spec).await
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

    /// The pages of a partial manifest that can be read now, where one is wanted. Its last pages may not exist yet: what
    /// cannot be read is left to the next time, and to the polls that wait for the whole manifest.
    async fn partial(&self, response: Response) -> Option<Pages> {
        self.partial_from.filter(|from| Instant::now() >= *from)?;
        let config = &self.client.config.limits;
        let (mut pages, mut bytes_left) = (Pages::of(self.client.origins.rewrite()), config.max_manifest_bytes);
        let mut next = self.partial_page(response, &mut pages, &mut bytes_left).await?;
        let mut seen = HashSet::new();
        while let Some(url) = next.filter(|url| seen.len() < config.max_manifest_pages && !seen.contains(url)) {
            let Ok(response) = self.ask(&url).await else { break };
            seen.insert(url);
            let Some(further) = self.partial_page(response, &mut pages, &mut bytes_left).await else { break };
            next = further;
        }
        Some(pages)
    }

    /// Adds one page, and gives the URL of the next one. `None` where the answer is not a page.
    async fn partial_page(&self, response: Response, pages: &mut Pages, bytes_left: &mut u64) -> Option<Option<Url>> {
        if !matches!(export_status(&response), StatusCode::OK | StatusCode::ACCEPTED) {
            return None;
        }
        let answered = response.url().clone();
        let body = self.client.http.read(response, *bytes_left).await.ok()??;
        let next = pages.add(&body, &answered).ok()?;
        *bytes_left = bytes_left.saturating_sub(body.len() as u64);
        Some(next)
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
