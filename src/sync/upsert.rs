//! The upserts of one export: a commit for each resource type.
//!
//! A commit that has begun is finished whatever happens; types that were not begun are left to the next run. A type that
//! fails leaves its table as it was and does not stop the others.

use tokio::{runtime::Handle, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Config, Error, Export, Report, Step, Syncer, TypeEnd, TypeReport, advice, chain,
    intake::{Intake, Received, Remark},
};
use crate::{
    fhir::{ResourceType, TransactionTime},
    table::{self, Root, TableDefinition, Upsert},
};

/// What the commits of an export have in common.
pub(super) struct Commits<'run> {
    pub export: &'run Export,
    /// How far the export goes.
    pub watermark: Option<TransactionTime>,
    /// From where it goes: `_since`.
    pub since: Option<TransactionTime>,
    /// The export was asked for everything: what it lacks is gone.
    pub everything: bool,
}

/// Commits what was received. [`Error::Stopped`] where `stop` left types to the next run.
pub(super) async fn upsert(
    syncer: &Syncer,
    commits: Commits<'_>,
    received: Received,
    stop: &CancellationToken,
    report: &mut Report,
) -> Result<(), Error> {
    let hold = received.remarks.iter().any(|remark| matches!(remark, Remark::Hold(_)));
    report.remarks.extend(received.remarks.into_iter().map(|(Remark::Hold(text) | Remark::Note(text))| text));
    let upsert = Upsert {
        app_id: commits.export.app_id(),
        source: syncer.config.source.to_string(),
        watermark: commits.watermark.filter(|_| !hold),
        exported_at: commits.watermark,
        run_started_micros: report.started_at.timestamp_micros(),
        job: report.job(),
        run: report.run,
        reconcile: None,
    };
    let mut waiting = received.types.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < syncer.config.parallel_upserts && !stop.is_cancelled() {
            let Some((resource_type, intake)) = waiting.next() else { break };
            // Only what is whole can say that something is gone: no file missing, no line in quarantine, no type that
            // the server left out (rules 21 and 98).
            let whole = commits.everything && !hold && intake.files > 0 && intake.bad == 0;
            let reconcile =
                (whole && commits.export.reconciled.contains(&resource_type)).then_some(syncer.config.reconcile);
            let upsert = Upsert { reconcile, ..upsert.clone() };
            let (root, progress) = (syncer.root.clone(), syncer.progress.clone());
            let (config, since, runtime) = (syncer.config.clone(), commits.since, Handle::current());
            // Encoding takes the whole of a core for minutes: not on a thread that others wait for.
            running.spawn_blocking(move || {
                progress.step(Step::Upserting(resource_type));
                (resource_type, runtime.block_on(upsert_type(&root, resource_type, intake, upsert, since, &config)))
            });
        }
        match running.join_next().await {
            Some(Ok((resource_type, of))) => {
                report.remarks.extend(remark(resource_type, &of));
                *report.of(resource_type) = of;
            }
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            None => break,
        }
    }
    let left: Vec<_> = waiting.collect();
    for (_, intake) in &left {
        intake.changes.abandon().await;
    }
    if left.is_empty() { Ok(()) } else { Err(Error::Stopped) }
}

async fn upsert_type(
    root: &Root,
    resource_type: ResourceType,
    intake: Intake,
    mut upsert: Upsert,
    since: Option<TransactionTime>,
    config: &Config,
) -> TypeReport {
    let mut report = TypeReport {
        files: intake.files,
        bytes: intake.bytes,
        received: intake.changes.received() + intake.bad,
        quarantined: intake.bad,
        ..TypeReport::default()
    };
    let failed = |error: &Error| {
        tracing::error!(%resource_type, error = chain(error), advice = ?advice(error), "the table stays as it was");
        TypeEnd::Failed(chain(error))
    };
    if let Some(error) = intake.failure.or_else(|| too_many_bad_lines(resource_type, &report, config)) {
        report.end = failed(&error);
        intake.changes.abandon().await;
        return report;
    }
    let shape = &intake.shape;
    let definition =
        TableDefinition { schema: shape.schema(), leading: shape.leading(), properties: shape.properties() };
    let committed = async {
        let table = root.open_or_create(resource_type, &definition).await?;
        // What lies between a table's watermark and `_since` was not asked for. That happens when the table was deleted
        // or set back after the kick-off; then it must not claim to be complete.
        let known = table.watermark(&upsert.app_id).await?;
        upsert.watermark = upsert.watermark.filter(|_| since.is_none_or(|since| known >= Some(since)));
        let committed = table.upsert(&intake.changes, &upsert).await?;
        Ok::<_, table::Error>((committed, upsert.watermark))
    };
    match committed.await {
        Ok((committed, watermark)) => {
            report.counts = committed.counts;
            report.bytes_written = committed.bytes_written;
            report.foreign_commits = committed.foreign;
            report.end = match watermark {
                Some(watermark) => TypeEnd::Committed { version: committed.version, watermark },
                None => TypeEnd::WatermarkHeld { version: committed.version },
            };
        }
        Err(error) => report.end = failed(&error.into()),
    }
    report
}

fn too_many_bad_lines(resource_type: ResourceType, report: &TypeReport, config: &Config) -> Option<Error> {
    let too_many = config.quarantine.is_exceeded(report.quarantined, report.received);
    too_many.then_some(Error::TooManyBadLines { resource_type, bad: report.quarantined, received: report.received })
}

/// What the operator should know of a type that did not fail.
fn remark(resource_type: ResourceType, report: &TypeReport) -> Option<String> {
    let missing = report.counts.missing;
    if missing > 0 {
        let limit = "more than sync.max_missing and sync.max_missing_percent allow";
        return Some(format!("{missing} rows of {resource_type} no longer come, {limit}; they are kept"));
    }
    matches!(report.end, TypeEnd::WatermarkHeld { .. })
        .then(|| format!("{resource_type} has rows, but its watermark stays"))
}
