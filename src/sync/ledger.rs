//! The rows of a run in the ledger: its report, and what was asked. A ledger that cannot be written is a warning,
//! because it must not keep data from arriving.

use std::collections::BTreeMap;

use tokio::runtime::Handle;

use super::{
    CompletedExport, Export, Report, Run, Syncer, TypeEnd, TypeReport,
    blocking::{blocking, now},
    chain, events,
};
use crate::{
    export::{File, FileKind, Level},
    fhir::{ResourceType, TransactionTime},
    table::LedgerRow,
};

/// What the run knows of its types besides their reports.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The watermarks when the run began, as the state file had them.
    watermarks_before: BTreeMap<ResourceType, TransactionTime>,
    requests: BTreeMap<ResourceType, Requested>,
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
    pub fn begin(watermarks_before: BTreeMap<ResourceType, TransactionTime>) -> Self {
        Self { watermarks_before, requests: BTreeMap::new() }
    }

    /// The server has completed an export.
    pub fn completed(&mut self, export: &CompletedExport) {
        for resource_type in &export.asked.types {
            let of_type = |file: &&File| file.kind == FileKind::Of(*resource_type);
            let files: Vec<_> = export.completed.manifest.output.iter().filter(of_type).collect();
            let requested = Requested {
                types: events::list(&export.asked.types),
                since: export.asked.since.clone(),
                files_announced: files.len() as u64,
                lines_announced: files.iter().map(|file| file.count).sum(),
            };
            self.requests.insert(*resource_type, requested);
        }
    }

    fn rows(&self, report: &Report, export: &Export, source: &str) -> Vec<LedgerRow> {
        report.types.iter().map(|(resource_type, of)| self.row(report, export, source, *resource_type, of)).collect()
    }

    fn row(
        &self,
        report: &Report,
        export: &Export,
        source: &str,
        resource_type: ResourceType,
        of: &TypeReport,
    ) -> LedgerRow {
        let requested = self.requests.get(&resource_type);
        let before = self.watermarks_before.get(&resource_type).copied();
        let (version, after, cause) = end(of);
        LedgerRow {
            run: report.run,
            export: report.export.clone(),
            resource_type: resource_type.to_string(),
            source: source.to_owned(),
            mode: report.mode.to_string(),
            level: level(&export.level),
            requested_types: requested.map(|requested| requested.types.clone()),
            since: requested.and_then(|requested| requested.since.clone()),
            started_at: Some(report.started_at),
            ended_at: Some(report.ended_at),
            duration_ms: u64::try_from((report.ended_at - report.started_at).num_milliseconds()).unwrap_or_default(),
            outcome: report.outcome.to_string(),
            end: of.end.word().to_owned(),
            cause: cause.or_else(|| (!report.remarks.is_empty()).then(|| report.remarks.join("; "))),
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
            bytes_written: of.bytes_written,
            foreign_commits: of.foreign_commits,
        }
    }
}

impl Syncer {
    /// Appends an instalment to the ledger, while its run goes on.
    pub(super) async fn record_instalment(&self, run: &Run<'_>, of: ResourceType, report: &TypeReport) {
        let row = run.ledger.row(&run.report, run.export, &self.config.source, of, report);
        self.append_to_ledger(vec![LedgerRow { ended_at: Some(now()), outcome: RUNNING.to_owned(), ..row }]).await;
    }

    /// Appends the run to the ledger.
    pub(super) async fn record(&self, ledger: &Ledger, report: &Report, export: &Export) {
        self.append_to_ledger(ledger.rows(report, export, &self.config.source)).await;
    }

    pub(super) async fn append_to_ledger(&self, rows: Vec<LedgerRow>) {
        let _one_at_a_time = self.turns.ledger().await;
        let root = self.root.clone();
        let appended = blocking(move || {
            Handle::current().block_on(root.append_to_ledger(&rows))?;
            root.sync_to_disk()
        });
        if let Err(error) = appended.await {
            tracing::warn!(error = chain(&error), "the run could not be recorded in the ledger");
        }
    }
}

/// The outcome of a run that has not ended.
const RUNNING: &str = "running";

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
        TypeEnd::Missing { on_server } => (None, None, Some(format!("the server has {on_server}"))),
        TypeEnd::Failed(failure) => (None, None, Some(failure.cause.clone())),
        TypeEnd::NotReached | TypeEnd::Unconfirmed => (None, None, None),
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
