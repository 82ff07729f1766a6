//! The upserts of one export: a commit for each resource type.
//!
//! A commit that has begun is finished whatever happens; types that were not begun are left to the next run. A type
//! that fails leaves its table as it was and does not stop the others.

use std::{collections::BTreeSet, sync::Arc};

use chrono::TimeDelta;
use tokio::{runtime::Handle, task::JoinSet};
use tracing::Span;

use super::{
    Coverage, Error, Export, Failure, Quarantine, QuarantineLimit, Run, Step, Syncer, TypeEnd, TypeReport,
    absence::Absence,
    columns, events,
    gap::{Gap, note_of_unchecked_rows, way_out},
    intake::{Received, ReceivedType},
    members::JoinerFailure,
    mirror,
    type_facts::TypeFacts,
};
use crate::{
    fhir::{ResourceType, TransactionTime},
    state::{JobInFlight, JobKind, KnownTable},
    table::{self, ADOPTED, Extent, NewWatermark, Reconcile, Upsert},
};

/// Commits what a job has brought. [`Error::Stopped`] where types were left to the next run.
pub async fn upsert(
    run: &mut Run<'_>,
    job: &JobInFlight,
    coverage: Coverage,
    mut received: Received,
) -> Result<(), Error> {
    let held: BTreeSet<_> = received.types.keys().copied().filter(|of| received.holds(*of)).collect();
    let is_of_joiners = coverage.kind == JobKind::Joiners;
    if is_of_joiners && !held.is_empty() {
        run.members.joiner_failures.push(JoinerFailure::default());
    }
    for of_type in received.types.values_mut() {
        run.members.seen.append(&mut of_type.patients);
    }
    run.remember_seen_patients().await?;
    let mut known = TypeFacts::of(run, job, coverage, &mut received, held).await;
    reload_missed(run, std::mem::take(&mut received.other_files.missed)).await?;
    add_to_report(run, &mut received);
    let mut waiting = received.types.into_iter();
    let mut running = JoinSet::new();
    let mut remembered = Ok(());
    loop {
        while running.len() < run.syncer.config.parallel_upserts && !run.stop.is_cancelled() {
            let Some((resource_type, received)) = waiting.next() else { break };
            let commit = Commit::of(run, coverage, &mut known, resource_type, &received);
            run.report.notes.extend(note_of_unchecked_rows(
                resource_type,
                &commit.upsert,
                commit.syncer.engine.is_spark(),
            ));
            let (progress, runtime, span) = (run.progress.clone(), Handle::current(), Span::current());
            // Encoding keeps a core busy for minutes: not on a thread of the runtime.
            running.spawn_blocking(move || {
                let _in_span = span.enter();
                progress.step(Step::Upserting(resource_type));
                (resource_type, runtime.block_on(commit.make(received)))
            });
        }
        match running.join_next().await {
            Some(Ok((resource_type, report))) if is_of_joiners => {
                run.add_of_joiners(resource_type, report).await;
            }
            Some(Ok((resource_type, report))) => remembered = remembered.and(add(run, resource_type, report).await),
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            None => break,
        }
    }
    let left: Vec<_> = waiting.collect();
    for (_, received) in &left {
        received.changes.abandon().await;
    }
    remembered?;
    if left.is_empty() { Ok(()) } else { Err(Error::Stopped) }
}

/// What became of one type.
async fn add(run: &mut Run<'_>, resource_type: ResourceType, report: TypeReport) -> Result<(), Error> {
    run.report.remarks.extend(remark(resource_type, &report));
    run.report.notes.extend(note(resource_type, &report.end));
    // Not when all types are committed: if the run ends before that, the next one finds no damaged files.
    let damaged = (report.damaged_files > 0).then_some(resource_type);
    run.report.types.insert(resource_type, report);
    run.syncer.reload_in_other_exports(run.export, Vec::from_iter(damaged)).await
}

/// What the operator should know of the export, whatever its types become.
fn add_to_report(run: &mut Run<'_>, received: &mut Received) {
    let report = &mut run.report;
    report.remarks.extend(received.remarks.drain(..).map(|remark| remark.text));
    report.accepted.append(&mut received.accepted);
    report.notes.extend(received.server_warnings.take());
    report.notes.append(&mut received.other_files.ignored);
    // Once for a run, whichever of its exports shows it.
    if let (Some(note), false) = (received.ignored_since.take(), run.noted_ignored_since) {
        report.notes.push(note);
        run.noted_ignored_since = true;
    }
}

/// Rows of types that an earlier run has settled were in files that only this run has read.
async fn reload_missed(run: &mut Run<'_>, missed: BTreeSet<ResourceType>) -> Result<(), Error> {
    let reason = "rows of it were in files of other types, which were read later";
    for of in &missed {
        run.report.remarks.push(format!("{of} will be loaded in full: {reason}"));
    }
    let reasons = missed.into_iter().map(|of| (of, reason.to_owned())).collect();
    run.syncer.remember_reload(run.export, reasons).await
}

/// The commit of one type.
struct Commit {
    syncer: Syncer,
    export: Export,
    resource_type: ResourceType,
    upsert: Upsert,
    /// How the type ends if it is absent from a full load without being empty.
    absent: Option<TypeEnd>,
    /// Why missing rows are counted and none is removed.
    gap: Option<Gap>,
    /// No other source has rows below the root.
    is_only_source: bool,
    /// The table as the last sync left it.
    last: Option<KnownTable>,
    /// The table as the last instalment of the job left it.
    finished: Option<KnownTable>,
    since: Option<TransactionTime>,
    server_time: Option<TransactionTime>,
    overlap: TimeDelta,
    /// See [`TypeFacts::set_back_from`].
    set_back_from: Option<TransactionTime>,
    limit: QuarantineLimit,
    quarantine: Arc<Quarantine>,
}

/// What the commit did.
struct Done {
    committed: table::Committed,
    /// Of the table.
    id: String,
    reach: Reach,
    /// The table has a watermark of this export and may have rows. The log does not say which source they are from.
    had_rows: bool,
}

/// How far an export reaches, compared with the watermark of the table.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Further,
    /// Not beyond it: the server answered with an old export.
    Behind,
    /// Not even to what the table has, or to the time from which it was asked: the server's clock was set back. What
    /// changed since then is not in it, or looks older than what is stored.
    SetBack,
}

/// What follows for the commit.
struct Compared {
    reach: Reach,
    watermark: NewWatermark,
    set_back_from: Option<TransactionTime>,
}

impl Commit {
    /// The commit of one type, with what its rows may stand for.
    fn of(
        run: &Run<'_>,
        coverage: Coverage,
        known: &mut TypeFacts,
        resource_type: ResourceType,
        received: &ReceivedType,
    ) -> Self {
        let config = &run.syncer.config;
        let allow_empty = config.allow_empty.contains(&resource_type);
        let absence = known.absences.remove(&resource_type);
        // Where the server says that it has none, the rows that it no longer has are counted, and named. Lines in files
        // of other types may be there by mistake, and its own files missing.
        let has_files = received.files > 0 || received.lines.unfiled > 0;
        let is_there = has_files || allow_empty || absence == Some(Absence::Empty);
        let is_held = known.held.contains(&resource_type);
        // A table that was restored or replaced since our last commit may have rows that the server deleted long ago.
        let is_reloaded = known.reload.contains(&resource_type);
        let is_everything = coverage.is_everything(is_reloaded);
        let absent = absence.and_then(Absence::end);
        // Only an export without a gap can show that a row was deleted: no file missing, no line in quarantine, no type
        // that the server left out (rules 21 and 98). With a gap, missing rows are counted and named.
        let is_bad_in_other_files = [None, Some(resource_type)].iter().any(|of| known.bad_in_other_files.contains(of));
        let gap = Gap::of(received, is_bad_in_other_files).filter(|_| !allow_empty);
        // What arrived is the truth, whatever became of other lines.
        let extent = match gap {
            _ if !is_everything || is_held || !is_there => Extent::Partial,
            Some(_) => Extent::WithGap,
            None => Extent::Whole { removes_returned: is_reloaded && absent.is_none() },
        };
        let compares = is_everything && !is_held && (is_there || (gap.is_some() && absent.is_none()));
        let limits = if gap.is_some() { Reconcile::NONE } else { Reconcile { allow_empty, ..config.reconcile } };
        let upsert = Upsert {
            extent,
            reconcile: (compares && run.export.reconciled.contains(&resource_type)).then_some(limits),
            watermark: coverage
                .watermark_of(is_reloaded)
                .filter(|_| !is_held && absent.is_none())
                .map_or(NewWatermark::Stays, NewWatermark::Raised),
            clock_was_ahead: known.clock_was_ahead.contains(&resource_type),
            ..known.upsert.clone()
        };
        Self {
            syncer: run.syncer.clone(),
            export: run.export.clone(),
            resource_type,
            upsert,
            absent,
            gap,
            is_only_source: known.is_only_source,
            last: known.tables.remove(&resource_type),
            finished: known.finished.remove(&resource_type),
            since: coverage.kind.since(),
            server_time: coverage.server_time,
            overlap: config.overlap,
            set_back_from: known.set_back_from.get(&resource_type).copied(),
            limit: config.quarantine,
            quarantine: Arc::clone(&run.quarantine),
        }
    }

    async fn make(mut self, mut received: ReceivedType) -> TypeReport {
        let mut report = TypeReport {
            files: received.files,
            files_before: received.before.files,
            file_list: std::mem::take(&mut received.file_list),
            bytes: received.bytes,
            received: received.changes.received() + received.lines.without_row(),
            quarantined: received.lines.quarantined,
            quarantined_before: received.before.quarantined,
            not_wanted: received.lines.not_wanted,
            outcomes: received.lines.outcomes,
            rerouted: received.lines.rerouted,
            ..TypeReport::default()
        };
        if let Some(error) = received.failure.take().or_else(|| self.too_many_bad_lines(&received, &report)) {
            received.changes.abandon().await;
            return self.failed(report, &error);
        }
        // The watermark of this commit may pass lines that nobody will send again.
        if let Err(error) = self.quarantine.flush(self.resource_type).await {
            received.changes.abandon().await;
            return self.failed(report, &error);
        }
        match self.commit(&received).await {
            Ok(Done { committed, id, reach, had_rows }) => {
                report.table = Some(KnownTable { id, version: committed.version });
                report.counts = committed.counts;
                report.bytes_written = committed.bytes_written;
                report.foreign_commits = committed.foreign;
                // A load that reconciles has all rows of its own source.
                let has_all = self.upsert.reconcile.is_some() && self.gap.is_none() && self.is_only_source;
                report.gap = self.gap;
                report.set_back_from = self.upsert.set_back_from;
                report.damaged_files = if has_all { 0 } else { committed.damaged };
                let version = committed.version;
                report.end = match (self.absent.take(), self.upsert.watermark.time()) {
                    (Some(TypeEnd::Unconfirmed), _) if had_rows => TypeEnd::LeftOut,
                    (Some(absent), _) => absent,
                    (None, _) if reach == Reach::SetBack => TypeEnd::SetBack { version },
                    (None, Some(watermark)) if reach == Reach::Behind => TypeEnd::Behind { version, watermark },
                    (None, Some(watermark)) => TypeEnd::Committed { version, watermark },
                    (None, None) => TypeEnd::WatermarkHeld { version },
                };
                events::committed(self.resource_type, &report);
                report
            }
            Err(error) => self.failed(report, &error),
        }
    }

    async fn commit(&mut self, received: &ReceivedType) -> Result<Done, Error> {
        let table =
            self.syncer.engine.open_or_create(self.resource_type, &columns::definition(&received.shape)).await?;
        let mut known = table.watermark(&self.upsert.app_id).await?;
        if let (None, Some(before)) = (known, &self.upsert.adopted_app_id) {
            known = table.watermark(before).await?.filter(|watermark| *watermark > ADOPTED);
        }
        // A new table has no watermark, and a full load brings it everything but the rows of files that were read before.
        let last = self.last.iter().filter(|_| known.is_some());
        if let Err(error) = mirror::check_is_unchanged(&table, last.chain(&self.finished)).await {
            received.changes.abandon().await;
            return Err(error);
        }
        // What lies between a table's watermark and `_since` was not requested. That happens when the table was deleted
        // or restored after the kick-off; then it must not claim to be complete.
        if self.since.is_some_and(|since| known < Some(since)) {
            self.upsert.watermark = NewWatermark::Stays;
        }
        let reach = match known.and_then(|known| self.compared_with(known)) {
            Some(Compared { reach, watermark, set_back_from }) => {
                self.upsert.watermark = watermark;
                self.upsert.set_back_from = set_back_from;
                reach
            }
            None => Reach::Further,
        };
        if let Some(from) = self.upsert.set_back_from.filter(|from| self.set_back_from != Some(*from)) {
            // After the commit, nothing in the table tells of it.
            self.syncer.remember_former_clock(&self.export, self.resource_type, from).await?;
        }
        let id = table.id()?;
        let is_unconfirmed = self.absent == Some(TypeEnd::Unconfirmed);
        let had_rows = is_unconfirmed && known.is_some() && table.row_count().await? != Some(0);
        let committed = table.upsert(&received.changes, &self.upsert).await?;
        Ok(Done { committed, id, reach, had_rows })
    }

    /// Whether the export reaches what the table has, and from where the next one has to ask. Within the overlap of
    /// `_since` the later watermark stays. `None` where no watermark moves anyway.
    fn compared_with(&self, known: TransactionTime) -> Option<Compared> {
        let exported = self.upsert.watermark.time()?;
        let is_earlier = exported.instant() + self.overlap < known.instant();
        let is_old = |server_time: TransactionTime| exported.instant() + self.overlap < server_time.instant();
        // Only where the server's own time agrees: else it may be an old export that comes again.
        let is_of_now = self.server_time.is_some_and(|server_time| !is_old(server_time));
        let former = self.set_back_from.filter(|from| exported < *from).max(is_earlier.then_some(known));
        let set_back_from = former.filter(|_| is_of_now);
        if self.since.is_some_and(|since| exported < since || is_earlier) {
            return Some(Compared { reach: Reach::SetBack, watermark: NewWatermark::Stays, set_back_from });
        }
        // A full load has everything, whatever the clock was. From the later watermark, what changes on the corrected
        // clock would never be asked for.
        let watermark =
            if is_earlier { NewWatermark::Exactly(exported) } else { NewWatermark::Raised(exported.max(known)) };
        // The watermark may be the whole second of a `Date`, and the transactionTime the instant within it.
        let is_no_later = exported.instant() < known.instant() + TimeDelta::seconds(1);
        let is_behind = is_no_later && self.server_time.is_none_or(is_old);
        Some(Compared { reach: if is_behind { Reach::Behind } else { Reach::Further }, watermark, set_back_from })
    }

    fn failed(&self, mut report: TypeReport, error: &Error) -> TypeReport {
        events::failed(self.resource_type, error);
        events::count(self.resource_type, &report);
        report.end = TypeEnd::Failed(Failure::of(error));
        report
    }

    fn too_many_bad_lines(&self, of: &ReceivedType, report: &TypeReport) -> Option<Error> {
        let (bad, received) = (of.before.quarantined + report.quarantined, of.before.lines + report.received);
        let resource_type = self.resource_type;
        self.limit.is_exceeded(bad, received).then_some(Error::TooManyBadLines { resource_type, bad, received })
    }
}

/// What the operator should know of a type that did not fail.
fn remark(resource_type: ResourceType, report: &TypeReport) -> Option<String> {
    let missing = report.counts.missing;
    if missing > 0 {
        let limit = "more than sync.max_missing and sync.max_missing_percent allow, or all that were stored";
        return Some(match report.gap {
            Some(gap) => gap.remark(resource_type, missing),
            None => format!(
                "{missing} rows of {resource_type} are missing in the full refresh, {limit}; they are kept. If the server \
                 has really deleted them: {}",
                way_out(resource_type)
            ),
        });
    }
    if report.damaged_files > 0 {
        return Some(format!(
            "{} damaged data files of {resource_type} were removed; rows that other exports or sources brought, or that \
             this load lacks, are gone with them: load them in full, too (fhir-sync sync --full-refresh)",
            report.damaged_files
        ));
    }
    match &report.end {
        TypeEnd::WatermarkHeld { .. } => Some(format!(
            "{resource_type} was written, but its watermark was not moved; the next sync requests the same period again"
        )),
        TypeEnd::Behind { watermark, .. } => Some(format!(
            "{resource_type} is behind: the export ends at {watermark}, not later than the one before: the server \
             sent an old export again; the next sync asks from there"
        )),
        TypeEnd::SetBack { .. } => Some(format!(
            "{resource_type} is set back: the export ends before the one before it, so the server's clock was set back, and \
             what changed in between is unknown; the next sync asks for all of it again"
        )),
        TypeEnd::Denied { missing_scope } => Some(format!(
            "{resource_type} is denied: the server left it out, and the scope {missing_scope} is not granted; the next \
             sync asks for it again"
        )),
        TypeEnd::Missing { on_server } => Some(format!(
            "{resource_type} is missing: the server has {on_server} and exported none; the next sync asks for all of it \
             again"
        )),
        TypeEnd::LeftOut => Some(format!(
            "{resource_type} is left out: it was loaded before, the full load brought none of it, and it is unknown whether \
             the server has any; the next sync asks for all of it again. If the rows are really gone: {}. An export that \
             does not reconcile keeps them, and each full refresh needs that again: if it will have no {resource_type}, \
             take the type out of it",
            way_out(resource_type)
        )),
        TypeEnd::Committed { .. } if report.quarantined_before > 0 => Some(format!(
            "{} lines of {resource_type}, in files that were read before, are not resources; they are in quarantine",
            report.quarantined_before
        )),
        _ => None,
    }
}

/// A note for the operator; the run still counts as complete.
pub fn note(resource_type: ResourceType, end: &TypeEnd) -> Option<String> {
    (*end == TypeEnd::Unconfirmed).then(|| {
        format!(
            "{resource_type} is unconfirmed: the server exported none, and it is unknown whether it has any; it is \
             asked for in full again after sync.recheck_absent"
        )
    })
}
