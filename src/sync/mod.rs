//! The story: one sync of one export.
//!
//! Ask the server what changed since the last time, and upsert it into one Delta table per resource type. A type's
//! watermark moves only in the commit that completes the rows it stands for; one failing type, file or line does not
//! stop the others; and whatever interrupts a run, the next one goes on where this one stood.

mod blocking;
mod columns;
mod config;
mod error;
mod intake;
mod log;
mod maintain;
mod memory;
mod open;
mod plan;
mod progress;
mod quarantine;
mod rebuild;
mod report;
mod upsert;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use self::{
    blocking::{REQUEST_PATIENCE, blocking, now, until},
    error::JobFate,
    intake::{Received, Stamp},
    quarantine::Quarantine,
    upsert::Commits,
};
pub use self::{
    config::{Config, Export, QuarantineLimit},
    error::{Advice, Error, advice, chain},
    intake::DECODE_BYTES,
    maintain::{MaintenanceRun, TablesMaintained},
    plan::{Mode, PlannedRequest, requests},
    progress::{Progress, ProgressSender, Step},
    report::{Outcome, Report, TypeEnd, TypeReport},
};
use crate::{
    export::{self, Client, Completed, Job},
    fhir::{ResourceType, TransactionTime, parse_instant},
    state::{JobInFlight, Store},
};

// What the commands name of the rooms below, so that they need no arrow to them.
pub use crate::{
    export::Level,
    table::{Config as TablesConfig, DryRun, Location, Maintained, Retention, Root, TableName},
};

/// Everything that a run works with. One run at a time.
pub struct Syncer {
    client: Arc<Client>,
    pub root: Root,
    store: Arc<Mutex<Store>>,
    config: Config,
    progress: ProgressSender,
    /// Whether the server speaks R4, whose elements have columns; asked once.
    speaks_r4: OnceCell<bool>,
}

impl Syncer {
    /// Brings one export up to date. Ends early, and without loss, when `stop` is cancelled: a commit is finished, a
    /// waiting export is left to be resumed.
    pub async fn run(&self, export: &Export, mode: Mode, stop: &CancellationToken) -> Report {
        let run = self.state().run + 1;
        let mut report = Report::begin(&export.name, run, mode, &export.types, now());
        tracing::info!(export = export.name, run, %mode, "sync begins");
        let result = self.steps(export, mode, stop, &mut report).await;
        report.ended_at = now();
        report.outcome = match &result {
            Ok(()) => report.outcome_of_types(),
            Err(Error::Stopped) => Outcome::Stopped,
            Err(error) => {
                report.remarks.push(chain(error));
                report.outcome_of_types()
            }
        };
        if let Err(error) = self.remember_end(&report).await {
            report.remarks.push(chain(&error));
            report.outcome = Outcome::Failed;
        }
        log::end(&report, result.err().as_ref());
        self.progress.step(Step::Idle);
        report
    }

    async fn steps(
        &self,
        export: &Export,
        mode: Mode,
        stop: &CancellationToken,
        report: &mut Report,
    ) -> Result<(), Error> {
        self.progress.step(Step::Planning);
        let run = report.run;
        self.remember(move |state| state.run = run).await?;
        let resumed = self.resume(export, mode, stop, report).await?;
        let mut watermarks = self.watermarks(export).await?;
        watermarks.retain(|(resource_type, _)| !resumed.contains(resource_type));
        for request in requests(&watermarks, mode, self.config.overlap) {
            let job = until(stop, REQUEST_PATIENCE, self.kick_off(export, request, mode)).await?;
            self.finish(export, job, stop, report).await?;
        }
        Ok(())
    }

    /// The job that an earlier run left behind, brought to its end; the types that need no other in this run.
    async fn resume(
        &self,
        export: &Export,
        mode: Mode,
        stop: &CancellationToken,
        report: &mut Report,
    ) -> Result<Vec<ResourceType>, Error> {
        let Some(mut job) = self.export_state(export).job else { return Ok(Vec::new()) };
        job.types.retain(|resource_type| export.types.contains(resource_type));
        tracing::info!(export = export.name, since = job.since, "an export is still in flight; going on with it");
        // A full refresh is not done by what an incremental run had asked for.
        let types = if mode == Mode::Incremental || job.full_refresh { job.types.clone() } else { Vec::new() };
        match self.finish(export, job, stop, report).await {
            Ok(()) => Ok(types),
            // The old `_since` still stands in the tables, so a new export loses nothing.
            Err(Error::Export(export::Error::JobLost { .. })) => {
                tracing::warn!(export = export.name, "the server no longer has the export in flight; starting another");
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }

    /// How far each table has come. The tables know; the state file only mirrors them.
    async fn watermarks(&self, export: &Export) -> Result<Vec<(ResourceType, Option<TransactionTime>)>, Error> {
        let app_id = export.app_id();
        let mut watermarks = Vec::new();
        for resource_type in &export.types {
            let watermark = match self.root.open(*resource_type).await? {
                Some(table) => table.watermark(&app_id).await?,
                None => None,
            };
            watermarks.push((*resource_type, watermark));
        }
        Ok(watermarks)
    }

    /// Asks for an export; its status URL is in the state file before anybody polls it.
    async fn kick_off(&self, export: &Export, request: PlannedRequest, mode: Mode) -> Result<JobInFlight, Error> {
        self.progress.step(Step::KickingOff);
        let PlannedRequest { types, since } = request;
        tracing::info!(export = export.name, ?types, since, "asking for an export");
        let ask = export::ExportRequest { level: export.level.clone(), types: types.clone(), since: since.clone() };
        let job = self.client.kick_off(&ask).await?;
        let job = JobInFlight {
            status_url: job.status_url,
            kicked_off_at: job.kicked_off_at,
            polling_since: job.polling_since,
            types,
            since,
            full_refresh: mode == Mode::FullRefresh,
        };
        let (name, in_flight) = (export.name.clone(), job.clone());
        self.remember(move |state| state.exports.entry(name).or_default().job = Some(in_flight)).await?;
        Ok(job)
    }

    /// Wait, stream and verify, upsert, settle.
    async fn finish(
        &self,
        export: &Export,
        job: JobInFlight,
        stop: &CancellationToken,
        report: &mut Report,
    ) -> Result<(), Error> {
        let quarantine = Arc::new(Quarantine::new(&self.state_folder(), &export.name, report.run));
        let result = async {
            let completed = until(stop, Duration::ZERO, self.wait(&job)).await?;
            let received = until(stop, Duration::ZERO, self.stream(&completed, &job, report, &quarantine)).await?;
            let watermark = watermark(&completed);
            let since = job.since.as_deref().and_then(parse_instant).map(TransactionTime::from);
            let everything = job.full_refresh && since.is_none();
            upsert::upsert(self, Commits { export, watermark, since, everything }, received, stop, report).await?;
            self.settle(export, completed.job, stop, report).await
        }
        .await;
        if let Err(error) = &result
            && let Advice::NextRun(JobFate::Forget) | Advice::Operator(JobFate::Forget) = advice(error)
        {
            self.forget_job(export).await?;
        }
        let quarantined: u64 = job.types.iter().map(|resource_type| report.of(*resource_type).quarantined).sum();
        if quarantined > 0 {
            let place = quarantine.path().display();
            report.remarks.push(format!("{quarantined} lines are no resources; they are kept in {place}"));
        }
        result
    }

    async fn wait(&self, job: &JobInFlight) -> Result<Completed, Error> {
        let job = Job {
            status_url: job.status_url.clone(),
            kicked_off_at: job.kicked_off_at,
            polling_since: job.polling_since,
        };
        self.progress.step(Step::Waiting { polls: 0, server_says: None });
        let progress = |progress: export::PollProgress| {
            tracing::debug!(polls = progress.polls, server_says = progress.x_progress, "the server is at work");
            self.progress.step(Step::Waiting { polls: progress.polls, server_says: progress.x_progress });
        };
        Ok(job.wait(&self.client, &progress).await?)
    }

    async fn stream(
        &self,
        completed: &Completed,
        job: &JobInFlight,
        report: &Report,
        quarantine: &Arc<Quarantine>,
    ) -> Result<Received, Error> {
        let stamp = Stamp {
            source: Arc::clone(&self.config.source),
            run_started_micros: report.started_at.timestamp_micros(),
            transaction_time: completed.manifest.transaction_time,
            job: report.job().into(),
        };
        intake::receive(self, &completed.manifest, &job.types, stamp, quarantine).await
    }

    /// The state file, then the end of the export on the server; in this order, because without its files a lost commit
    /// could not be made again.
    async fn settle(&self, export: &Export, job: Job, stop: &CancellationToken, report: &Report) -> Result<(), Error> {
        self.progress.step(Step::Settling);
        let root = self.root.clone();
        blocking(move || root.sync_to_disk()).await?;
        let watermarks: Vec<_> = report
            .types
            .iter()
            .filter_map(|(resource_type, of)| match of.end {
                TypeEnd::Committed { watermark, .. } => Some((*resource_type, watermark)),
                _ => None,
            })
            .collect();
        let name = export.name.clone();
        self.remember(move |state| {
            let export = state.exports.entry(name).or_default();
            export.watermarks.extend(watermarks);
            export.job = None;
        })
        .await?;
        let deleted = async { Ok(job.delete(&self.client).await?) };
        if let Err(error) = until(stop, REQUEST_PATIENCE, deleted).await {
            tracing::warn!(export = export.name, error = chain(&error), "the server keeps the files of the export");
        }
        Ok(())
    }

    async fn forget_job(&self, export: &Export) -> Result<(), Error> {
        let name = export.name.clone();
        self.remember(move |state| state.exports.entry(name).or_default().job = None).await
    }
}

/// How far an export goes: the manifest's transactionTime, but not beyond the server's own time at kick-off. Some servers
/// state the end of the job, or the time of the poll; what changed in between would never be asked for again.
fn watermark(completed: &Completed) -> Option<TransactionTime> {
    let transaction_time = completed.manifest.transaction_time?;
    Some(completed.job.kicked_off_at.map_or(transaction_time, |kicked_off_at| transaction_time.min(kicked_off_at)))
}
