//! The rows of a run in the ledger: its report, and what was asked. A ledger that cannot be written is a warning,
//! because it must not keep data from arriving.

use std::collections::{BTreeMap, BTreeSet};

use tokio::runtime::Handle;

use super::{Error, Export, Report, Run, Syncer, TypeEnd, TypeReport, blocking::blocking, chain, clock::now, events};
use crate::{
    export::{File, FileKind, Level, Manifest},
    fhir::{ResourceType, TransactionTime},
    state::JobInFlight,
    table::{LedgerRow, Requests, Root, RunCommit},
};

/// What the run knows of its types besides their reports.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The watermarks when the run began, as the state file had them.
    watermarks_before: BTreeMap<ResourceType, TransactionTime>,
    requests: BTreeMap<ResourceType, Requested>,
    /// What was asked of the object store for the tables, when the run began.
    store_requests_before: BTreeMap<ResourceType, Requests>,
}

/// The request that brought a type, and what the server announced for it.
#[derive(Clone, Debug)]
struct Requested {
    types: String,
    since: Option<String>,
    files_announced: u64,
    lines_announced: Option<u64>,
}

impl Ledger {
    pub fn begin(watermarks_before: BTreeMap<ResourceType, TransactionTime>, export: &Export, root: &Root) -> Self {
        let types = export.types.iter();
        let store_requests_before = types.filter_map(|of| Some((*of, root.requests((*of).into())?))).collect();
        Self { watermarks_before, requests: BTreeMap::new(), store_requests_before }
    }

    /// What this run asked the object store for a table, until now.
    fn store_requests(&self, of: ResourceType, root: &Root) -> Option<Requests> {
        let requests = root.requests(of.into())? - self.store_requests_before.get(&of).copied().unwrap_or_default();
        tracing::debug!(resource_type = %of, bytes_read = requests.bytes_read, "{of}: {requests}");
        Some(requests)
    }

    /// The server has completed an export.
    pub fn completed(&mut self, job: &JobInFlight, manifest: &Manifest) {
        for resource_type in &job.types {
            let of_type = |file: &&File| file.kind == FileKind::Of(*resource_type);
            let files: Vec<_> = manifest.output.iter().filter(of_type).collect();
            let requested = Requested {
                types: events::list(&job.types),
                since: job.since.map(TransactionTime::as_since),
                files_announced: files.len() as u64,
                lines_announced: files.iter().map(|file| file.count).sum(),
            };
            self.requests.insert(*resource_type, requested);
        }
    }

    fn rows(&self, report: &Report, export: &Export, syncer: &Syncer) -> Vec<LedgerRow> {
        report.types.iter().map(|(resource_type, of)| self.row(report, export, syncer, *resource_type, of)).collect()
    }

    fn row(
        &self,
        report: &Report,
        export: &Export,
        syncer: &Syncer,
        resource_type: ResourceType,
        of: &TypeReport,
    ) -> LedgerRow {
        let requested = self.requests.get(&resource_type);
        let before = self.watermarks_before.get(&resource_type).copied();
        let (version, after, cause) = end(of);
        let store_requests = self.store_requests(resource_type, &syncer.root);
        LedgerRow {
            run: report.run,
            export: report.export.clone(),
            resource_type: resource_type.to_string(),
            source: syncer.config.source.to_string(),
            mode: report.mode.to_string(),
            level: level(&export.level),
            requested_types: requested.map(|requested| requested.types.clone()),
            since: requested.and_then(|requested| requested.since.clone()),
            started_at: Some(report.started_at),
            ended_at: Some(report.ended_at),
            duration_ms: u64::try_from((report.ended_at - report.started_at).num_milliseconds()).unwrap_or_default(),
            outcome: report.outcome.to_string(),
            end: of.end.word().to_owned(),
            cause: cause.or_else(|| remarks(report, of)),
            notes: (!report.notes.is_empty()).then(|| report.notes.join("; ")),
            watermark_before: before.map(instant),
            watermark_after: after.or(before).map(instant),
            table_version: version,
            files_announced: requested.map(|requested| requested.files_announced),
            lines_announced: requested.and_then(|requested| requested.lines_announced),
            files: of.files,
            bytes: of.bytes,
            received: of.received,
            inserted: of.counts.inserted,
            updated: of.counts.updated,
            unchanged: of.counts.unchanged,
            stale: of.counts.stale,
            duplicate: of.counts.duplicate,
            deleted: of.counts.deleted,
            removed: of.counts.removed,
            missing: of.counts.missing,
            quarantined: of.quarantined,
            rerouted: Some(of.rerouted),
            not_wanted: Some(of.not_wanted),
            outcomes: Some(of.outcomes),
            conflicts: Some(of.counts.conflicts),
            overruled: Some(of.counts.overruled),
            file_list: of.file_list.clone(),
            requests: store_requests.map(|requests| requests.total()),
            bytes_read: store_requests.map(|requests| requests.bytes_read),
            bytes_written: of.bytes_written,
            foreign_commits: of.foreign_commits,
        }
    }
}

/// What tells the commit of a row from all others.
fn key(row: LedgerRow) -> Option<(String, u64, u64)> {
    Some((row.resource_type, row.run, row.table_version?))
}

/// What the log of the table says of a commit. Of lines that became no row it says nothing.
fn row_of_killed(export: &Export, source: &str, resource_type: ResourceType, commit: RunCommit) -> LedgerRow {
    let RunCommit { run, version, at, watermark, counts } = commit;
    LedgerRow {
        run,
        export: export.name.clone(),
        resource_type: resource_type.to_string(),
        source: source.to_owned(),
        mode: "unknown".to_owned(),
        level: level(&export.level),
        started_at: at,
        ended_at: at,
        outcome: KILLED.to_owned(),
        end: if watermark.is_some() { "committed" } else { "watermark held" }.to_owned(),
        cause: Some("the process ended before the run was recorded; this is from the log of the table".to_owned()),
        watermark_after: watermark.map(instant),
        table_version: Some(version),
        received: counts.total(),
        inserted: counts.inserted,
        updated: counts.updated,
        unchanged: counts.unchanged,
        stale: counts.stale,
        duplicate: counts.duplicate,
        deleted: counts.deleted,
        removed: counts.removed,
        missing: counts.missing,
        conflicts: Some(counts.conflicts),
        overruled: Some(counts.overruled),
        ..LedgerRow::default()
    }
}

impl Syncer {
    /// Appends an instalment to the ledger, while its run goes on.
    pub(super) async fn record_instalment(&self, run: &Run<'_>, of: ResourceType, report: &TypeReport) {
        let row = run.ledger.row(&run.report, run.export, self, of, report);
        self.append_to_ledger(vec![LedgerRow { ended_at: Some(now()), outcome: RUNNING.to_owned(), ..row }]).await;
    }

    /// Appends the run to the ledger.
    pub(super) async fn record(&self, ledger: &Ledger, report: &Report, export: &Export) {
        // A commit may have landed although it failed: the next run looks into the logs.
        let is_certain = report.types.values().all(|of| !matches!(of.end, TypeEnd::Failed(_)));
        let runs = BTreeSet::from_iter(is_certain.then_some(report.run));
        let recorded = self.append_and_remember(export, runs, ledger.rows(report, export, self));
        if let Err(error) = recorded.await {
            tracing::warn!(error = chain(&error), "the run could not be recorded in the ledger; the next one does it");
        }
    }

    /// Appends what runs committed whose process was killed before it recorded them.
    pub(super) async fn record_killed(&self, export: &Export) {
        let runs = self.export_state(export).unrecorded_runs;
        if runs.is_empty() {
            return;
        }
        let recorded = async {
            let rows = self.rows_of_killed(export, &runs).await?;
            if !rows.is_empty() {
                let commits = rows.len();
                tracing::warn!(commits, "a run ended before it was recorded; its commits are added to the ledger");
            }
            self.append_and_remember(export, runs.clone(), rows).await
        };
        if let Err(error) = recorded.await {
            tracing::warn!(error = chain(&error), "commits of earlier runs could not be recorded in the ledger");
        }
    }

    async fn rows_of_killed(&self, export: &Export, runs: &BTreeSet<u64>) -> Result<Vec<LedgerRow>, Error> {
        let recorded: BTreeSet<_> = self.root.ledger().await?.into_iter().filter_map(key).collect();
        let mut rows = Vec::new();
        for resource_type in &export.types {
            // A table that cannot be opened fails its type, and not the ledger of the others.
            let Ok(Some(table)) = self.engine.open(*resource_type).await else { continue };
            let commits = table.commits_of(runs).await?;
            let row = |commit| row_of_killed(export, &self.config.source, *resource_type, commit);
            rows.extend(
                commits.into_iter().map(row).filter(|row| key(row.clone()).is_none_or(|key| !recorded.contains(&key))),
            );
        }
        Ok(rows)
    }

    async fn append_and_remember(
        &self,
        export: &Export,
        runs: BTreeSet<u64>,
        rows: Vec<LedgerRow>,
    ) -> Result<(), Error> {
        self.append(rows).await?;
        self.remember_recorded(export, runs).await
    }

    pub(super) async fn append_to_ledger(&self, rows: Vec<LedgerRow>) {
        if let Err(error) = self.append(rows).await {
            tracing::warn!(error = chain(&error), "the run could not be recorded in the ledger");
        }
    }

    async fn append(&self, rows: Vec<LedgerRow>) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let _one_at_a_time = self.turns.ledger().await;
        let root = self.root.clone();
        let appended = blocking(move || {
            Handle::current().block_on(root.append_to_ledger(&rows))?;
            root.sync_to_disk()
        });
        Ok(appended.await?)
    }
}

/// The outcome of a run that has not ended.
const RUNNING: &str = "running";
/// The outcome of a run that did not come to its end.
const KILLED: &str = "killed";

/// What the run remarks, for the types that it may be about; for all where it is about none of them.
fn remarks(report: &Report, of: &TypeReport) -> Option<String> {
    let is_clean = |of: &TypeReport| {
        matches!(of.end, TypeEnd::Committed { .. }) && of.quarantined == 0 && of.quarantined_before == 0
    };
    let is_concerned = !is_clean(of) || report.types.values().all(is_clean);
    (is_concerned && !report.remarks.is_empty()).then(|| report.remarks.join("; "))
}

/// How a type ended: the version of its table, its new watermark, and why it failed.
fn end(of: &TypeReport) -> (Option<u64>, Option<TransactionTime>, Option<String>) {
    match &of.end {
        TypeEnd::Committed { version, watermark } | TypeEnd::Behind { version, watermark } => {
            (Some(*version), Some(*watermark), None)
        }
        TypeEnd::WatermarkHeld { version } | TypeEnd::Instalment { version } | TypeEnd::SetBack { version } => {
            (Some(*version), None, None)
        }
        TypeEnd::Denied { missing_scope } => (None, None, Some(format!("the scope {missing_scope} is not granted"))),
        TypeEnd::Unsupported { words } => (None, None, Some(format!("the server refuses the type, {words}"))),
        TypeEnd::Missing { on_server } => (None, None, Some(format!("the server has {on_server}"))),
        TypeEnd::Failed(failure) => (None, None, Some(failure.cause.clone())),
        TypeEnd::NotReached | TypeEnd::Unconfirmed | TypeEnd::LeftOut => (None, None, None),
    }
}

fn level(level: &Level) -> String {
    match level {
        Level::System => "system".to_owned(),
        Level::Patient => "patient".to_owned(),
        Level::Group(id) => format!("group/{id}"),
    }
}

fn instant(watermark: TransactionTime) -> chrono::DateTime<chrono::Utc> {
    chrono::DateTime::from_timestamp_micros(watermark.as_micros()).unwrap_or_default()
}
