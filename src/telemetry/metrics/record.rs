//! Recording: one function for each event that is counted or measured.
//!
//! Without a recorder they do nothing. None of them belongs into a loop over lines: they look a series up by its name.

use std::{borrow::Cow, time::Duration};

use chrono::{DateTime, Utc};
use metrics::SharedString;

use super::catalogue::{
    self as metric, CacheLookup, Code, CommitOutcome, Delivery, Disk, Endpoint, FileOutcome, JobEvent, Kind,
    MaintenanceOutcome, Metric, Notification, Operation, Peer, Rejection, RetryReason, RunOutcome, Stage, Step,
    StoreRequest, TokenOutcome, WriteOutcome,
};
use crate::fhir::ResourceType;

/// The labels of a series, each with its value.
pub(super) type Labels = Vec<(&'static str, Cow<'static, str>)>;

impl Metric {
    /// Creates a series, with the value 0 where there is none yet.
    pub(super) fn create(&self, labels: Labels) {
        let labels = shared(labels);
        match self.kind {
            Kind::Counter => drop(metrics::counter!(self.name, labels)),
            Kind::Gauge => drop(metrics::gauge!(self.name, labels)),
            Kind::Histogram(_) => drop(metrics::histogram!(self.name, labels)),
        }
    }

    pub(super) fn set(&self, value: f64, labels: Labels) {
        metrics::gauge!(self.name, shared(labels)).set(value);
    }

    fn add(&self, count: u64, labels: Labels) {
        metrics::counter!(self.name, shared(labels)).increment(count);
    }

    fn observe(&self, duration: Duration, labels: Labels) {
        metrics::histogram!(self.name, shared(labels)).record(duration);
    }
}

/// What the daemon knows of an export.
pub struct ExportFigures<'a> {
    pub export: &'a str,
    pub last_success: Option<DateTime<Utc>>,
    pub max_age: Duration,
    pub interval: Option<Duration>,
    pub next_run: Option<DateTime<Utc>>,
    /// `None` while no run is in progress.
    pub step: Option<Step>,
    pub failures: u32,
    pub warnings: usize,
}

pub fn export(figures: &ExportFigures<'_>) {
    let labels = || vec![export_label(figures.export)];
    metric::LAST_SUCCESS.set(timestamp(figures.last_success), labels());
    metric::MAX_AGE.set(figures.max_age.as_secs_f64(), labels());
    metric::INTERVAL.set(figures.interval.unwrap_or_default().as_secs_f64(), labels());
    metric::NEXT_RUN.set(timestamp(figures.next_run), labels());
    metric::IN_PROGRESS.set(f64::from(u8::from(figures.step.is_some())), labels());
    metric::FAILURES.set(f64::from(figures.failures), labels());
    metric::WARNINGS.set(float(figures.warnings as u64), labels());
    for step in metric::STEPS_OF_RUNS {
        let is_now = figures.step.is_some_and(|now| now.word() == *step);
        metric::RUN_STEP.set(f64::from(u8::from(is_now)), vec![export_label(figures.export), word("step", step)]);
    }
}

/// Whether `/health` calls an export healthy.
pub fn healthy(export: &str, is_healthy: bool) {
    metric::HEALTHY.set(f64::from(u8::from(is_healthy)), vec![export_label(export)]);
}

/// How far a type of an export goes, by the server's clock, and from when its data are, by the local one.
pub fn reach(export: &str, of: ResourceType, watermark: Option<DateTime<Utc>>, data_as_of: Option<DateTime<Utc>>) {
    let labels = || vec![export_label(export), type_label(of)];
    metric::WATERMARK.set(timestamp(watermark), labels());
    metric::DATA_AS_OF.set(timestamp(data_as_of), labels());
}

pub fn maintenance(is_in_progress: bool) {
    metric::MAINTENANCE.set(f64::from(u8::from(is_in_progress)), Vec::new());
}

pub fn stalled(is_stalled: bool) {
    metric::STALLED.set(f64::from(u8::from(is_stalled)), Vec::new());
}

pub fn run_began(export: &str, at: DateTime<Utc>) {
    metric::RUN_STARTED.set(timestamp(Some(at)), vec![export_label(export)]);
}

pub fn run_ended(export: &str, outcome: RunOutcome, at: DateTime<Utc>, took: Duration) {
    let labels = || vec![export_label(export), word("outcome", outcome.word())];
    metric::RUNS.add(1, labels());
    metric::LAST_RUN.set(timestamp(Some(at)), labels());
    metric::RUN_DURATION.set(took.as_secs_f64(), vec![export_label(export)]);
}

pub fn step_began(export: &str, at: DateTime<Utc>) {
    metric::STEP_STARTED.set(timestamp(Some(at)), vec![export_label(export)]);
}

pub fn step_ended(step: Step, took: Duration) {
    metric::STEP_DURATION.observe(took, vec![word("step", step.word())]);
}

pub fn received(of: ResourceType, resources: u64) {
    metric::RECEIVED.add(resources, vec![type_label(of)]);
}

pub fn rows(of: ResourceType, operation: Operation, rows: u64) {
    metric::ROWS.add(rows, vec![type_label(of), word("operation", operation.word())]);
}

pub fn quarantined(of: ResourceType, lines: u64) {
    metric::QUARANTINED.add(lines, vec![type_label(of)]);
}

/// The maintenance of a table ended.
pub fn maintained(table: &str, outcome: MaintenanceOutcome, at: DateTime<Utc>) {
    metric::MAINTENANCES.add(1, vec![table_label(table), word("outcome", outcome.word())]);
    if outcome == MaintenanceOutcome::Maintained {
        metric::MAINTAINED.set(timestamp(Some(at)), vec![table_label(table)]);
    }
}

/// Counts bytes of a file as they arrive. Cheap: it looks its series up once.
pub struct ByteCounter(metrics::Counter);

impl ByteCounter {
    pub fn of(stage: Stage) -> Self {
        Self(metrics::counter!(metric::DOWNLOAD_BYTES.name, shared(vec![word("stage", stage.word())])))
    }

    pub fn add(&self, bytes: usize) {
        self.0.increment(bytes as u64);
    }
}

pub fn file_ended(outcome: FileOutcome) {
    metric::DOWNLOAD_FILES.add(1, vec![word("outcome", outcome.word())]);
}

pub fn requested(endpoint: Endpoint, code: Code, took: Duration) {
    let endpoint = || word("endpoint", endpoint.word());
    metric::HTTP_REQUESTS.add(1, vec![endpoint(), word("code", code.word())]);
    metric::HTTP_DURATION.observe(took, vec![endpoint()]);
}

pub fn retried(endpoint: Endpoint, reason: RetryReason) {
    metric::RETRIES.add(1, vec![word("endpoint", endpoint.word()), word("reason", reason.word())]);
}

pub fn downloads_allowed(downloads: usize) {
    metric::PARALLEL_DOWNLOADS.set(float(downloads as u64), Vec::new());
}

pub fn paused_until(peer: Peer, at: DateTime<Utc>) {
    metric::PAUSED_UNTIL.set(timestamp(Some(at)), vec![word("peer", peer.word())]);
}

pub fn request_interval(peer: Peer, interval: Duration) {
    metric::REQUEST_INTERVAL.set(interval.as_secs_f64(), vec![word("peer", peer.word())]);
}

pub fn polled() {
    metric::POLLS.add(1, Vec::new());
}

pub fn job(event: JobEvent) {
    metric::JOBS.add(1, vec![word("event", event.word())]);
}

pub fn token_requested(outcome: TokenOutcome) {
    metric::TOKENS.add(1, vec![word("outcome", outcome.word())]);
}

pub fn token_renewed_at(at: DateTime<Utc>) {
    metric::TOKEN_RENEWAL.set(timestamp(Some(at)), Vec::new());
}

pub fn clock_skew(peer: Peer, seconds: i64) {
    let sign = if seconds < 0 { -1.0 } else { 1.0 };
    metric::CLOCK_SKEW.set(sign * float(seconds.unsigned_abs()), vec![word("peer", peer.word())]);
}

/// A configuration was read: it is in use from now on, or it was refused.
pub fn config_read(is_in_use: bool, at: DateTime<Utc>) {
    metric::CONFIG_OK.set(f64::from(u8::from(is_in_use)), Vec::new());
    if is_in_use {
        metric::CONFIG_LOADED.set(timestamp(Some(at)), Vec::new());
    }
}

pub fn notified(notification: Notification, delivery: Delivery) {
    metric::NOTIFICATIONS.add(1, vec![word("kind", notification.word()), word("outcome", delivery.word())]);
}

pub fn rejected(reason: Rejection) {
    metric::REJECTIONS.add(1, vec![word("reason", reason.word())]);
}

pub fn commit_ended(table: &str, outcome: CommitOutcome) {
    metric::COMMITS.add(1, vec![table_label(table), word("outcome", outcome.word())]);
}

pub fn table(table: &str, version: u64, files: u64, bytes: u64) {
    metric::TABLE_VERSION.set(float(version), vec![table_label(table)]);
    metric::TABLE_FILES.set(float(files), vec![table_label(table)]);
    metric::TABLE_BYTES.set(float(bytes), vec![table_label(table)]);
}

pub fn spool_grew(bytes: u64) {
    metrics::gauge!(metric::SPOOL_BYTES.name).increment(float(bytes));
}

pub fn spool_removed(bytes: u64) {
    metrics::gauge!(metric::SPOOL_BYTES.name).decrement(float(bytes));
}

pub fn disk_free(of: Disk, bytes: u64) {
    metric::DISK_FREE.set(float(bytes), vec![word("of", of.word())]);
}

pub fn lease_held(is_held: bool) {
    metric::LEASE_HELD.set(f64::from(u8::from(is_held)), Vec::new());
}

/// The lease is held together with other processes, as long as this one lives.
pub fn lease_shared() {
    metric::LEASE_SHARED.set(1.0, Vec::new());
}

pub fn store_requested(kind: StoreRequest) {
    metric::STORE_REQUESTS.add(1, vec![word("kind", kind.word())]);
}

pub fn store_read(bytes: u64) {
    metric::STORE_READ.add(bytes, Vec::new());
}

pub fn store_written(bytes: u64) {
    metric::STORE_WRITTEN.add(bytes, Vec::new());
}

pub fn cache_asked(lookup: CacheLookup) {
    metric::CACHE_LOOKUPS.add(1, vec![word("result", lookup.word())]);
}

pub fn cache_size(bytes: u64) {
    metric::CACHE_BYTES.set(float(bytes), Vec::new());
}

pub fn state_written(outcome: WriteOutcome) {
    metric::STATE_WRITES.add(1, vec![word("outcome", outcome.word())]);
}

fn shared(labels: Labels) -> Vec<metrics::Label> {
    labels.into_iter().map(|(name, value)| metrics::Label::new(name, SharedString::from(value))).collect()
}

fn export_label(export: &str) -> (&'static str, Cow<'static, str>) {
    ("export", export.to_owned().into())
}

fn type_label(of: ResourceType) -> (&'static str, Cow<'static, str>) {
    ("resource_type", of.as_str().into())
}

fn table_label(table: &str) -> (&'static str, Cow<'static, str>) {
    ("table", table.to_owned().into())
}

fn word(label: &'static str, word: &'static str) -> (&'static str, Cow<'static, str>) {
    (label, word.into())
}

/// Seconds since 1970; 0 for "never".
fn timestamp(at: Option<DateTime<Utc>>) -> f64 {
    let since_1970 = at.and_then(|at| (at - DateTime::UNIX_EPOCH).to_std().ok());
    since_1970.unwrap_or_default().as_secs_f64()
}

/// Exact up to 2^53, which is more than any figure here.
#[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
fn float(figure: u64) -> f64 {
    figure as f64
}
