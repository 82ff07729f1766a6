//! The story: one sync of one export.
//!
//! Ask the server what changed since the last time, and upsert it into one Delta table per resource type. A type's
//! watermark moves only in the commit that completes the rows up to it; a type, file or line that fails does not stop
//! the others; and whatever interrupts a run, the next one continues from there.
//!
//! [`Run::steps`] is the whole sync, [`Run::follow`] the part of it that one export on the server goes through. Steps
//! without a file of their own are below them, in their order; the others: `mirror`, `members`, `wait`, `partial`,
//! `jobs`, `refused`.

mod absence;
mod awaited;
mod blocking;
mod by_hand;
mod check;
mod clock;
mod columns;
mod config;
mod coverage;
mod engine;
mod error;
mod events;
mod gap;
mod hex;
mod history;
mod intake;
mod jobs;
mod ledger;
mod maintain;
mod members;
mod mirror;
mod open;
mod partial;
mod plan;
mod progress;
mod quarantine;
mod rebuild;
mod refused;
mod report;
mod server_counts;
mod sharing;
mod sources;
mod state;
mod stop;
mod turn;
mod type_facts;
mod upsert;
mod wait;
mod watermarks;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, RwLock},
    time::Instant,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::{runtime::Handle, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use url::Url;

use self::{
    blocking::blocking,
    clock::now,
    columns::FhirRelease,
    coverage::{ClockAhead, CompletedJob, Coverage},
    engine::{ResourceTable, RowsGo},
    intake::{Instalments, Provenance, Received},
    ledger::Ledger,
    members::MembersOfRun,
    quarantine::Quarantine,
    sharing::Sharing,
    stop::{CANCEL_PATIENCE, REQUEST_PATIENCE, unless_stopped, within},
    turn::Turns,
};
pub use self::{
    by_hand::{Cancelled, SinceSet},
    check::check,
    config::{Chosen, Config, Export, Joiners, Leavers, QuarantineLimit},
    engine::Engine,
    error::{Error, Recovery, chain, recovery},
    history::{PastRun, PastRuns},
    intake::MAX_BATCH_BYTES,
    maintain::{MaintenanceRun, TablesMaintained},
    plan::{Mode, PlannedRequest, requests},
    progress::{Activity, Board, Progress, ProgressBoard, ProgressSender, Retry, Step},
    quarantine::{Policy, Purge, QuarantineKey, ReplayOf, Replayed},
    report::{Failure, Report, TypeEnd, TypeReport},
    server_counts::ServerCounts,
    sharing::Leases,
};
use crate::{
    export::{Client, ExportRequest, followed},
    fhir::{ResourceType, TransactionTime},
    lease::Lease,
    state::{JobInFlight, JobKind, OpenState, ReloadReason, State},
};

// Exported again for the commands, which may not name these rooms.
pub use crate::{
    export::{Check, CheckVerdict, Error as ExportError, Level, auth::generate as keys},
    state::Outcome,
    table::{
        Committed, Config as TablesConfig, Counts, DryRun, Error as TableError, LedgerRow, Location, Maintained,
        QuarantineRow, Retention, Root, TableName, deltalake_version,
    },
};

/// Everything that syncs work with. One run of an export at a time; several exports may run, and take turns at writing.
#[derive(Clone)]
pub struct Syncer {
    client: Arc<Client>,
    /// The FHIR base URL.
    server: Url,
    pub root: Root,
    /// Who writes the tables of resources below the root.
    engine: Engine,
    lease: Arc<Lease>,
    /// Renews the lease as long as this exists.
    _lease_keeper: Arc<JoinSet<()>>,
    open_state: Arc<Mutex<OpenState>>,
    /// The state as it was last read or kept. Nobody who looks at it waits for the disk or a store.
    seen: Arc<RwLock<Arc<State>>>,
    state_lease: Option<Arc<Lease>>,
    /// Where several processes do the exports together.
    sharing: Option<Arc<Sharing>>,
    config: Config,
    progress: ProgressBoard,
    turns: Arc<Turns>,
    /// Asked once; `None` before that.
    fhir_release: Arc<tokio::sync::Mutex<Option<FhirRelease>>>,
}

impl Syncer {
    /// The same with other settings. Runs that have begun keep those they began with.
    #[must_use]
    pub fn with_config(&self, config: Config) -> Self {
        Self { config, ..self.clone() }
    }

    /// Brings one export up to date. Ends early, and without loss, when `stop` is cancelled: a commit is finished, an
    /// export in progress on the server is resumed by the next run. While it waits for the server, other exports and
    /// maintenance do their work; from the first byte of an export to its settling, it is the only one that writes.
    ///
    /// Where exports are shared, a run that another process has begun ends this one before it begins.
    pub async fn run(&self, export: &Export, mode: Mode, stop: &CancellationToken) -> Report {
        match self.take_leases(std::slice::from_ref(&export.name)).await {
            Ok(leases) => {
                let report = leases.syncer.run_leased(export, mode, stop).await;
                leases.release().await;
                report
            }
            Err(error) => not_begun(export, mode, &error),
        }
    }

    /// The same in a process that has the leases of the export.
    pub async fn run_leased(&self, export: &Export, mode: Mode, stop: &CancellationToken) -> Report {
        let mode = if self.config.supports_since { mode } else { Mode::FullRefresh };
        let number = match self.next_run().await {
            Ok(number) => number,
            Err(error) => return not_begun(export, mode, &error),
        };
        let until = stop.child_token();
        let mut run = Run::new(self, export, number, mode, &until);
        let (span, on_retry) = (events::span(&run.report), run.progress.on_retry());
        let story = async {
            let limit = self.config.max_run_time;
            let result = match within(limit, &until, run.steps()).await {
                Err(Error::Stopped) if !stop.is_cancelled() => Err(Error::RunTime { limit }),
                result => result,
            };
            run.end(result).await
        };
        // On the heap: as a part of each caller's future, its layout is too deep for the compiler.
        Box::pin(followed(on_retry, story.instrument(span))).await
    }
}

/// One sync of one export, and what it has brought so far.
struct Run<'a> {
    syncer: &'a Syncer,
    export: &'a Export,
    mode: Mode,
    stop: &'a CancellationToken,
    quarantine: Arc<Quarantine>,
    ledger: Ledger,
    progress: ProgressSender,
    report: Report,
    /// Monotonic: no clock change affects the duration.
    begun: Instant,
    /// The first error of a request that did not stop the run.
    tolerated: Option<Error>,
    members: MembersOfRun,
    /// The report has the note that the server seems to ignore `_since`.
    noted_ignored_since: bool,
}

impl<'a> Run<'a> {
    fn new(syncer: &'a Syncer, export: &'a Export, number: u64, mode: Mode, stop: &'a CancellationToken) -> Self {
        let progress = syncer.progress.of(Activity::Sync { export: export.name.clone() });
        let report = Report::begin(&export.name, number, mode, &export.types, now());
        let quarantine = Quarantine::new(&syncer.root, &syncer.config, &export.name, number, report.started_at);
        let quarantine = Arc::new(quarantine);
        let ledger = Ledger::begin(syncer.export_state(export).watermarks, export, &syncer.root);
        Self {
            syncer,
            export,
            mode,
            stop,
            quarantine,
            ledger,
            progress,
            report,
            begun: Instant::now(),
            tolerated: None,
            members: MembersOfRun::default(),
            noted_ignored_since: false,
        }
    }

    async fn steps(&mut self) -> Result<(), Error> {
        self.begin().await?;
        self.compare_with_the_tables().await?;
        self.find_unfinished().await?;
        let membership = self.compare_members().await?;
        self.name_kept_rows().await?;
        self.compare_with_what_was_asked().await?;
        self.compare_types().await?;
        self.name_reloaded_types();
        let resumed = self.resume().await?;
        let mut requests = VecDeque::from(self.plan(&resumed).await?);
        while let Some(request) = requests.pop_front() {
            match self.kick_off(&request).await {
                Ok(job) => {
                    if let Err(error) = self.follow(job.clone()).await {
                        self.job_failed(&job, error).await?;
                    }
                }
                Err(error) => {
                    let again = self.refused(&request, error).await?;
                    again.into_iter().rev().for_each(|request| requests.push_front(request));
                }
            }
        }
        self.load_joiners(membership).await
    }

    async fn follow(&mut self, job: JobInFlight) -> Result<(), Error> {
        let syncer = self.syncer;
        sources::claim(&syncer.root, &syncer.config, &syncer.server).await?;
        let completed = self.wait(job).await?;
        let _turn = self.syncer.turns.take(&self.progress, self.stop).await?;
        let written = self.write(completed).await;
        self.close_quarantine().await;
        written
    }

    async fn write(&mut self, mut completed: CompletedJob) -> Result<(), Error> {
        let received = self.stream_and_verify(&mut completed).await?;
        if self.quarantine.has_lines() {
            self.syncer.remember_export(self.export, |state| state.has_quarantined = true).await?;
        }
        let CompletedJob { job, coverage, .. } = completed;
        upsert::upsert(self, &job, coverage, received).await?;
        if coverage.kind == JobKind::Joiners {
            return self.settle_joiners(&job).await;
        }
        self.await_missing_members(&job).await?;
        self.settle(&job).await
    }

    /// The lines of types that failed are kept as well. Then another run may write to the quarantine.
    async fn close_quarantine(&mut self) {
        let quarantine = Arc::clone(&self.quarantine);
        let closed = blocking(move || Handle::current().block_on(quarantine.close())).await;
        self.report.remarks.extend(closed.err().map(|error| chain(&error)));
    }

    /// Stores the number of the run before anything is requested, so that no other run gets it.
    async fn begin(&self) -> Result<(), Error> {
        self.progress.step(Step::Planning);
        events::began(&self.report);
        self.syncer.record_killed(self.export).await;
        self.syncer.remember_begin(&self.report).await?;
        self.syncer.client.begin_run().await?;
        self.syncer.forget_unknown_release().await;
        Ok(self.syncer.root.check_lease().await?)
    }

    /// Where the configuration asks for something else than before, the watermarks say nothing about it: the types are
    /// loaded in full.
    async fn compare_with_what_was_asked(&mut self) -> Result<(), Error> {
        let asked = self.export.asked(&self.syncer.config.source);
        let known = self.syncer.export_state(self.export);
        let change = known.asked.as_ref().and_then(|before| before.change_to(&asked));
        if change.is_some() || known.asked.is_none() {
            let types = self.export.types.clone();
            self.syncer.remember_asked(self.export, asked, change.map(|reason| (reason, types))).await?;
        }
        Ok(())
    }

    /// The types that this run loads in full because their watermarks do not count.
    fn name_reloaded_types(&mut self) {
        let mut by_reason = BTreeMap::<_, Vec<ResourceType>>::new();
        for (resource_type, reason) in self.syncer.export_state(self.export).reload {
            if self.export.types.contains(&resource_type) && !self.was_just_absent(resource_type) {
                by_reason.entry(reason.to_string()).or_default().push(resource_type);
            }
        }
        for (reason, types) in by_reason {
            let types = events::list(&types);
            tracing::warn!(types, reason, "the watermarks no longer count; loading everything");
            self.report.notes.push(format!("{types}: loaded in full, because {reason}"));
        }
    }

    /// A type whose table cannot be opened fails alone, before anything is asked for it.
    async fn plan(&mut self, resumed: &[ResourceType]) -> Result<Vec<PlannedRequest>, Error> {
        let mut watermarks = Vec::new();
        for (resource_type, watermark) in self.syncer.watermarks(self.export).await {
            match watermark {
                _ if resumed.contains(&resource_type) => {}
                Ok(None) if self.was_just_absent(resource_type) => {
                    self.report.notes.extend(upsert::note(resource_type, &TypeEnd::Unconfirmed));
                    self.report.types.entry(resource_type).or_default().end = TypeEnd::Unconfirmed;
                }
                Ok(watermark) => watermarks.push((resource_type, watermark)),
                Err(error) => self.report.fail_type(resource_type, &error),
            }
        }
        let requests = requests(&watermarks, self.mode, self.syncer.config.overlap);
        for PlannedRequest { types, since } in &requests {
            let since = since.map(TransactionTime::as_since);
            tracing::debug!(types = events::list(types), since, "export planned");
        }
        Ok(requests)
    }

    /// Whether an incremental run leaves out a type that the last full load did not bring.
    fn was_just_absent(&self, resource_type: ResourceType) -> bool {
        let known = self.syncer.export_state(self.export);
        let is_recent = |asked_at: &DateTime<Utc>| self.is_recent(*asked_at);
        // Another reason is newer than that load.
        let is_no_news = known.reload.get(&resource_type).is_none_or(|reason| *reason == ReloadReason::LeftOut);
        self.mode == Mode::Incremental && is_no_news && known.unconfirmed.get(&resource_type).is_some_and(is_recent)
    }

    /// Whether a full load that left something open is too recent to be repeated. After the local clock was set back,
    /// it is repeated early.
    fn is_recent(&self, asked_at: DateTime<Utc>) -> bool {
        let age = self.report.started_at - asked_at;
        TimeDelta::zero() <= age && age < self.syncer.config.recheck_absent
    }

    /// Requests an export. Its status URL is in the state file before the first poll, so that a crash does not lose it.
    async fn kick_off(&self, request: &PlannedRequest) -> Result<JobInFlight, Error> {
        self.kick_off_for(&request.types, request.since, &BTreeSet::new()).await
    }

    /// The same for these patients only, if there are any: they joined the group.
    async fn kick_off_for(
        &self,
        types: &[ResourceType],
        since: Option<TransactionTime>,
        patients: &BTreeSet<String>,
    ) -> Result<JobInFlight, Error> {
        self.progress.step(Step::KickingOff);
        let types = types.to_vec();
        // A full load stays one, whatever `_since` it has to send.
        let sent_since = since.map(TransactionTime::as_since).or_else(|| self.export.initial_since.clone());
        let mut parameters = self.export.parameters.clone();
        parameters.patients.extend(patients.iter().cloned());
        let request = ExportRequest {
            parameters,
            allow_partial_manifests: self.export.allow_partial_manifests,
            ..ExportRequest::new(self.export.level.clone(), types.clone(), sent_since)
        };
        let kicked_off = async {
            let job = self.syncer.client.kick_off(&request).await?;
            let planned_since = since.map(TransactionTime::as_since);
            tracing::info!(types = events::list(&types), since = planned_since, "export requested");
            let mut job = JobInFlight {
                status_url: job.status_url,
                server_time_at_kick_off: job.server_time,
                server_time_later: None,
                denied_since: None,
                kicked_off_locally_at: job.kicked_off_locally_at,
                types,
                since,
                full_refresh: self.mode == Mode::FullRefresh && patients.is_empty(),
                asked: Some(self.export.asked(&self.syncer.config.source)),
                server: Some(self.syncer.server.clone()),
                not_granted: BTreeMap::new(),
                settled: BTreeSet::new(),
                finished: BTreeMap::new(),
                patients: patients.clone(),
            };
            self.syncer.remember_job(self.export, job.clone()).await?;
            self.remember_not_granted(&mut job).await?;
            Ok(job)
        };
        unless_stopped(self.stop, REQUEST_PATIENCE, kicked_off).await
    }

    /// Downloads every file of the export into change sets, and checks that each file is whole. What is larger than an
    /// instalment is committed in between.
    async fn stream_and_verify(&mut self, completed: &mut CompletedJob) -> Result<Received, Error> {
        let CompletedJob { job, completed, coverage, clock_ahead } = completed;
        if coverage.kind != JobKind::Joiners {
            self.ledger.completed(job, &completed.manifest);
        }
        let provenance = self.provenance(*coverage);
        let mut instalments = Instalments::begin(self, job, &completed.manifest, *coverage).await?;
        if let Some(ahead) = clock_ahead {
            self.syncer.remember_clock_ahead(self.export, job.types.clone(), ahead.end).await?;
        }
        let received = intake::receive(&mut instalments, completed, provenance).await;
        let made = instalments.made();
        self.report.instalments.extend(made);
        let mut received = received?;
        received.remarks.extend(clock_ahead.take().map(ClockAhead::remark));
        Ok(received)
    }

    fn provenance(&self, coverage: Coverage) -> Provenance {
        Provenance {
            source: Arc::clone(&self.syncer.config.source),
            run_started_micros: self.report.started_at.timestamp_micros(),
            transaction_time: coverage.watermark,
            job: self.report.job().into(),
        }
    }

    /// Decides how the run ended.
    async fn end(mut self, result: Result<(), Error>) -> Report {
        let error = result.err();
        self.report.end(error.as_ref(), &self.quarantine, now());
        self.report.notes.extend(self.note_of_quarantine().await);
        let error = error.or(self.tolerated.take());
        let before = |of: &TypeReport| of.quarantined_before > 0;
        let has_quarantined = self.quarantine.has_lines() || self.report.types.values().any(before);
        let remembered = self.syncer.remember_end(&self.report, self.begun.elapsed(), has_quarantined).await;
        self.report.is_remembered = remembered.is_ok();
        if let Err(error) = &remembered {
            self.report.fail(error);
        }
        self.syncer.record(&self.ledger, &self.report, self.export).await;
        events::ended(&self.report, error.as_ref().or(remembered.as_ref().err()));
        self.progress.end();
        self.report
    }
}

/// The report of a run that has no number, because it could not begin.
fn not_begun(export: &Export, mode: Mode, error: &Error) -> Report {
    tracing::error!(export = export.name, error = chain(error), "the sync could not begin");
    let mut report = Report::begin(&export.name, 0, mode, &export.types, now());
    report.fail(error);
    report
}
