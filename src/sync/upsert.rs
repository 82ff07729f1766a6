//! The upserts of one export: a commit for each resource type.
//!
//! A commit that has begun is finished whatever happens; types that were not begun are left to the next run. A type that
//! fails leaves its table as it was and does not stop the others.

use tokio::{runtime::Handle, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    Error, Export, Report, Step, Sync, TypeEnd, TypeReport, advice, chain,
    intake::{Intake, Received, Remark},
    shape,
};
use crate::{
    fhir::{ResourceType, TransactionTime},
    table::{Layout, Reconcile, Root, Upsert},
};

/// What the commits of an export have in common.
pub(super) struct Commits<'run> {
    pub export: &'run Export,
    /// How far the export goes.
    pub watermark: Option<TransactionTime>,
    /// The export was asked for everything: what it lacks is gone.
    pub everything: bool,
}

/// Commits what was received. [`Error::Stopped`] where `stop` left types to the next run.
pub(super) async fn upsert(
    sync: &Sync,
    commits: Commits<'_>,
    received: Received,
    stop: &CancellationToken,
    report: &mut Report,
) -> Result<(), Error> {
    let hold = received.remarks.iter().any(|remark| matches!(remark, Remark::Hold(_)));
    report.remarks.extend(received.remarks.into_iter().map(|(Remark::Hold(text) | Remark::Note(text))| text));
    let upsert = Upsert {
        app_id: commits.export.app_id(),
        source: sync.config.source.to_string(),
        watermark: commits.watermark.filter(|_| !hold),
        run: report.run,
        reconcile: None,
    };
    let reconcile = Reconcile { max_gone_percent: sync.config.max_gone_percent };
    let mut waiting = received.types.into_iter();
    let mut running = JoinSet::new();
    loop {
        while running.len() < sync.config.parallel_upserts && !stop.is_cancelled() {
            let Some((resource_type, intake)) = waiting.next() else { break };
            // Only what is whole can say that something is gone: no file missing, no line in quarantine, no type that
            // the server left out (rules 21 and 98).
            let whole = commits.everything && !hold && intake.files > 0 && intake.bad == 0;
            let reconcile = (whole && commits.export.reconciled.contains(&resource_type)).then_some(reconcile);
            let upsert = Upsert { reconcile, ..upsert.clone() };
            let (root, watch) = (sync.root.clone(), sync.watch.clone());
            let (limit_percent, runtime) = (sync.config.max_bad_lines_percent, Handle::current());
            // Encoding takes the whole of a core for minutes: not on a thread that others wait for.
            running.spawn_blocking(move || {
                watch.step(Step::Upserting(resource_type));
                (resource_type, runtime.block_on(upsert_type(&root, resource_type, intake, &upsert, limit_percent)))
            });
        }
        match running.join_next().await {
            Some(Ok((resource_type, of))) => {
                report.remarks.extend(too_many_gone(resource_type, &of));
                *report.of(resource_type) = of;
            }
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            None => break,
        }
    }
    if waiting.next().is_some() { Err(Error::Stopped) } else { Ok(()) }
}

async fn upsert_type(
    root: &Root,
    resource_type: ResourceType,
    mut intake: Intake,
    upsert: &Upsert,
    max_bad_lines_percent: f64,
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
    if let Some(error) = intake.failure.or_else(|| too_many_bad_lines(resource_type, &report, max_bad_lines_percent)) {
        report.end = failed(&error);
        return report;
    }
    let shape = shape(resource_type);
    let layout = Layout { schema: shape.schema(), leading: shape.leading() };
    let committed =
        async { root.open_or_create(resource_type, &layout).await?.upsert(&mut intake.changes, upsert).await };
    match committed.await {
        Ok(committed) => {
            report.counts = committed.counts;
            report.bytes_written = committed.bytes_written;
            report.end = match upsert.watermark {
                Some(watermark) => TypeEnd::Committed { version: committed.version, watermark },
                None => TypeEnd::Held { version: committed.version },
            };
        }
        Err(error) => report.end = failed(&error.into()),
    }
    report
}

fn too_many_bad_lines(resource_type: ResourceType, report: &TypeReport, limit_percent: f64) -> Option<Error> {
    #[expect(clippy::cast_precision_loss, reason = "a share in percent needs no more than 52 bits")]
    let share_percent = report.quarantined as f64 * 100.0 / report.received.max(1) as f64;
    (share_percent > limit_percent).then_some(Error::TooManyBadLines {
        resource_type,
        bad: report.quarantined,
        received: report.received,
    })
}

fn too_many_gone(resource_type: ResourceType, report: &TypeReport) -> Option<String> {
    let gone = report.counts.gone;
    (gone > 0).then(|| {
        format!("{gone} rows of {resource_type} no longer come, more than sync.max_gone_percent allows; they are kept")
    })
}
