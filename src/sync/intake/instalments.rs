//! Instalments: commits of a type's rows, without a watermark, while its other files still arrive.
//!
//! A file is finished when all of its rows are committed; the state file remembers it with the job, and a run that
//! resumes the job does not read it again. The watermark moves with the last instalment, in the commit that completes
//! the type. What is judged by all rows of an export together has no instalments: deletions, and loads that reconcile.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use aws_lc_rs::digest::{SHA256, digest};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{Before, Context, Intake, tally::Tally};
use crate::{
    export::{File, FileId, Manifest},
    fhir::{ResourceType, TransactionTime},
    state::{ExportState, FinishedFiles, JobInFlight, JobKind, KnownTable},
    sync::{
        Coverage, Engine, Error, ProgressSender, Quarantine, QuarantineLimit, RowsGo, Run, Step, Syncer, TypeEnd,
        TypeReport, blocking::blocking, columns, events, hex::hex, members::compared_group, mirror::check_is_unchanged,
    },
    table::{ChangeSet, Committed, Upsert},
};

/// The instalments of one job.
pub struct Instalments<'a> {
    run: &'a Run<'a>,
    job: &'a JobInFlight,
    /// Without a watermark.
    upsert: Upsert,
    /// See [`TypeFacts::clock_was_ahead`](crate::sync::type_facts::TypeFacts::clock_was_ahead).
    clock_was_ahead: BTreeSet<ResourceType>,
    /// `None` where no type is committed in instalments.
    transaction_time: Option<TransactionTime>,
    types: BTreeSet<ResourceType>,
    /// Of the files of these types.
    identities: BTreeMap<FileId, String>,
    finished: BTreeMap<ResourceType, FinishedFiles>,
    /// What was committed by this run.
    made: Vec<(ResourceType, TypeReport)>,
}

/// One instalment that was committed.
struct Instalment {
    committed: Committed,
    /// Of the table.
    id: String,
    is_first_load: bool,
    /// Rows in the change set.
    rows: u64,
    tally: Tally,
}

impl<'a> Instalments<'a> {
    /// Of an export that is complete, asked for now or by an earlier run.
    pub async fn begin(
        run: &'a Run<'a>,
        job: &'a JobInFlight,
        manifest: &Manifest,
        coverage: Coverage,
    ) -> Result<Self, Error> {
        let mut instalments = Self::new(run, job, manifest, coverage);
        for (of, difference) in instalments.compare_with_the_manifest(manifest).await {
            tracing::warn!(
                resource_type = %of, reason = difference,
                "the files that were read before no longer count; all files of the type are read"
            );
            run.syncer.forget_finished(run.export, job.status_url.clone(), of, difference).await?;
            // The rows of a full load that was given up are judged by all others of the load that begins again.
            if !matches!(coverage.kind, JobKind::Increment(_)) {
                instalments.types.remove(&of);
            }
        }
        Ok(instalments)
    }

    /// Of an export that is in progress. A type whose files that were read are not in this partial manifest waits for
    /// the whole one.
    pub async fn begin_early(run: &'a Run<'a>, job: &'a JobInFlight, manifest: &Manifest, coverage: Coverage) -> Self {
        let mut instalments = Self::new(run, job, manifest, coverage);
        for (of, difference) in instalments.compare_with_the_manifest(manifest).await {
            tracing::debug!(resource_type = %of, reason = difference, "the type is read when the export is complete");
            instalments.types.remove(&of);
        }
        instalments
    }

    fn new(run: &'a Run<'a>, job: &'a JobInFlight, manifest: &Manifest, coverage: Coverage) -> Self {
        let ExportState { reload, set_back_from, was_ahead_until, .. } = run.syncer.export_state(run.export);
        // An id that is both in `deleted` and in `output` is judged by both together (rule 96).
        let has_deletions = !manifest.deleted.is_empty();
        // Rows without a time must not be there already when a later run believes that of the same export.
        let may = coverage.watermark.is_some() && !has_deletions && coverage.kind != JobKind::FullRefresh;
        // The Patients of a group show who has joined or is missing, when all of them have arrived.
        let shows_joiners = compared_group(run.export).is_some();
        let tells_members = |of: ResourceType| of == ResourceType::PATIENT && shows_joiners;
        // How they compare with what is stored is known with the watermark of their table.
        let is_set_back =
            |of: &ResourceType| set_back_from.get(of).is_some_and(|from| coverage.watermark < Some(*from));
        let has_some = |of: &ResourceType| may && !reload.contains_key(of) && !is_set_back(of) && !tells_members(*of);
        let types = job.types.iter().copied().filter(has_some).collect();
        Self {
            run,
            job,
            upsert: coverage.without_watermark(run),
            clock_was_ahead: coverage.after_a_clock_ahead(was_ahead_until, run.syncer.config.overlap),
            transaction_time: manifest.transaction_time,
            identities: identities(manifest, &types),
            types,
            finished: BTreeMap::new(),
            made: Vec::new(),
        }
    }

    /// Keeps the finished files of the types whose files are all in this manifest, in a table that still has their
    /// rows; gives what is different for the others.
    async fn compare_with_the_manifest(&mut self, manifest: &Manifest) -> Vec<(ResourceType, String)> {
        let mut differences = Vec::new();
        for (of, finished) in &self.job.finished {
            if !self.job.types.contains(of) {
                continue;
            }
            let listed = |identity: &String| self.identities.values().any(|listed| listed == identity);
            let is_ahead = self.upsert.exported_at.is_none() && manifest.transaction_time.is_some();
            let difference = if is_ahead {
                Some("the server's clock is more than a day ahead of the local one".to_owned())
            } else if !self.types.contains(of) {
                Some("all of its files are needed together".to_owned())
            } else if manifest.transaction_time != Some(finished.transaction_time) {
                Some("the manifest has another transactionTime".to_owned())
            } else if !finished.files.iter().all(listed) {
                Some("the manifest no longer lists all of them".to_owned())
            } else {
                // What cannot be read now is no reason to read the files again: the commits compare once more, or fail.
                let difference = self.run.syncer.difference(*of, &finished.table).await.ok().flatten();
                difference.map(|difference| difference.to_string())
            };
            match difference {
                Some(difference) => differences.push((*of, difference)),
                None => {
                    let files = finished.files.len();
                    tracing::info!(resource_type = %of, files, "files that were read before are not read again");
                    self.finished.insert(*of, finished.clone());
                }
            }
        }
        differences
    }

    /// The types with files that are ready and have not been read.
    pub fn types_to_read(&self, manifest: &Manifest) -> Vec<ResourceType> {
        let new = manifest.output.iter().filter(|file| self.identities.contains_key(&file.id));
        let of = new.filter(|file| !self.is_finished(file)).filter_map(|file| file.kind.resource_type());
        self.types.intersection(&of.collect()).copied().collect()
    }

    pub fn syncer(&self) -> &'a Syncer {
        self.run.syncer
    }

    /// The types whose rows have parts left out, whether the server tags them or not.
    pub fn subsetted(&self, types: &[ResourceType]) -> BTreeSet<ResourceType> {
        types.iter().copied().filter(|of| self.run.export.parameters.has_elements_of(of.as_str())).collect()
    }

    /// As it was planned: a full load has none.
    pub fn since(&self) -> Option<TransactionTime> {
        self.job.since
    }

    pub fn progress(&self) -> &'a ProgressSender {
        &self.run.progress
    }

    pub fn quarantine(&self) -> &'a Arc<Quarantine> {
        &self.run.quarantine
    }

    pub fn stop(&self) -> &'a CancellationToken {
        self.run.stop
    }

    pub fn types_of_job(&self) -> &'a [ResourceType] {
        &self.job.types
    }

    pub fn made(self) -> Vec<(ResourceType, TypeReport)> {
        self.made
    }

    pub(super) fn is_of_group(&self) -> bool {
        self.run.export.level.group().is_some()
    }

    pub(super) fn settled(&self) -> &BTreeSet<ResourceType> {
        &self.job.settled
    }

    pub(super) fn identities(&self) -> &BTreeMap<FileId, String> {
        &self.identities
    }

    /// Whether the rows of the file are in its table.
    pub(super) fn is_finished(&self, file: &File) -> bool {
        let finished = file.kind.resource_type().and_then(|of| self.finished.get(&of));
        finished
            .zip(self.identities.get(&file.id))
            .is_some_and(|(finished, identity)| finished.files.contains(identity))
    }

    pub(super) fn before(&self, of: ResourceType) -> Before {
        self.finished.get(&of).map(Before::of).unwrap_or_default()
    }

    pub(super) fn continues_first_load(&self, of: ResourceType) -> bool {
        self.finished.get(&of).is_some_and(|finished| finished.is_first_load)
    }

    /// Commits the types of which enough has ended.
    pub(super) async fn commit_due(&mut self, context: &Arc<Context>) {
        let size_bytes = self.syncer().config.instalment_bytes;
        self.commit_where(context, |tally| {
            tally.failure.is_none() && tally.files_left > 0 && tally.bytes >= size_bytes
        })
        .await;
    }

    /// Commits the types that failed although something of them has ended: the rest may come later.
    pub(super) async fn commit_of_failed(&mut self, context: &Arc<Context>) {
        self.commit_where(context, |tally| tally.failure.is_some()).await;
    }

    /// Commits all that has ended.
    pub(super) async fn commit_finished(&mut self, context: &Arc<Context>) {
        self.commit_where(context, |_| true).await;
    }

    async fn commit_where(&mut self, context: &Arc<Context>, is_due: impl Fn(&Tally) -> bool) {
        for of in self.types.clone() {
            let Some(intake) = context.intakes.get(&of) else { continue };
            let is_due = {
                let tally = intake.tally();
                !tally.finished.is_empty() && is_due(&tally)
            };
            if !is_due {
                continue;
            }
            if let Err(error) = self.commit(context, of).await {
                events::failed(of, &error);
                intake.tally().failure = Some(error);
            }
        }
    }

    async fn commit(&mut self, context: &Arc<Context>, of: ResourceType) -> Result<(), Error> {
        context.progress.step(Step::Upserting(of));
        let (in_thread, engine) = (Arc::clone(context), self.syncer().engine.clone());
        let upsert = Upsert { clock_was_ahead: self.clock_was_ahead.contains(&of), ..self.upsert.clone() };
        let limit = self.syncer().config.quarantine;
        let before = self.finished.get(&of).map(|finished| finished.table.clone());
        let committed = blocking(move || match in_thread.intakes.get(&of) {
            Some(intake) => intake.commit(of, &engine, &upsert, before.as_ref(), limit),
            None => Ok(None),
        });
        let committed = committed.await;
        context.progress.step(Step::Streaming);
        let Some(instalment) = committed? else { return Ok(()) };
        self.remember(of, &instalment).await?;
        let report = report(instalment);
        events::committed(of, &report);
        self.syncer().record_instalment(self.run, of, &report).await;
        self.made.push((of, report));
        Ok(())
    }

    /// The lines in quarantine and the table to the disk, then the state file: what it remembers is not read again.
    async fn remember(&mut self, of: ResourceType, instalment: &Instalment) -> Result<(), Error> {
        self.run.quarantine.flush(of).await?;
        let root = self.syncer().root.clone();
        blocking(move || root.sync_to_disk()).await?;
        let Instalment { committed, id, is_first_load, tally, .. } = instalment;
        let Some(transaction_time) = self.transaction_time else { return Ok(()) };
        let table = KnownTable { id: id.clone(), version: committed.version };
        let before = self.finished.remove(&of);
        let mut finished = FinishedFiles {
            is_first_load: before.as_ref().map_or(*is_first_load, |before| before.is_first_load),
            lines: before.as_ref().map_or(0, |before| before.lines),
            quarantined: before.as_ref().map_or(0, |before| before.quarantined),
            files: before.map(|before| before.files).unwrap_or_default(),
            transaction_time,
            table,
        };
        for file in &tally.finished {
            finished.files.insert(file.identity.clone());
            finished.lines += file.lines;
            finished.quarantined += file.quarantined;
        }
        self.finished.insert(of, finished.clone());
        self.syncer().remember_finished(self.run.export, self.job.status_url.clone(), of, finished).await
    }
}

impl Intake {
    /// Commits what has arrived, and begins another change set. Workers that have more rows wait. `None` if nothing may
    /// be committed now. `before` is the table as the instalment before left it. Blocks.
    fn commit(
        &self,
        of: ResourceType,
        engine: &Engine,
        upsert: &Upsert,
        before: Option<&KnownTable>,
        limit: QuarantineLimit,
    ) -> Result<Option<Instalment>, Error> {
        let mut changes = self.changes_alone();
        let Some(current) = changes.as_ref() else { return Ok(None) };
        let rows = current.received();
        if !self.tally().may_be_committed(rows, limit) {
            return Ok(None);
        }
        let (runtime, definition) = (Handle::current(), columns::definition(&self.decoder.shape));
        let table = runtime.block_on(engine.open_or_create(of, &definition))?;
        runtime.block_on(check_is_unchanged(&table, before))?;
        let (id, is_first_load) = (table.id()?, current.is_first_load());
        let schema = self.decoder.shape.schema();
        let committed = match runtime.block_on(table.upsert(current, upsert)) {
            Ok(committed) => committed,
            Err(error) => {
                // The commit may have landed: then the files of a first load are the table's, and are not deleted.
                *changes = Some(ChangeSet::new(&schema, self.budget, &self.spool_folder));
                return Err(error.into());
            }
        };
        let tally = self.tally().settle(rows);
        *changes = None;
        let table = runtime.block_on(engine.open_or_create(of, &definition));
        match table
            .and_then(|table| table.change_set(RowsGo::on(is_first_load), &schema, self.budget, &self.spool_folder))
        {
            Ok(next) => *changes = Some(next),
            // Its rows are divided by partition at the commit.
            Err(_) if !is_first_load => {
                *changes = Some(ChangeSet::new(&schema, self.budget, &self.spool_folder));
            }
            Err(error) => {
                *changes = Some(ChangeSet::new(&schema, self.budget, &self.spool_folder));
                self.tally().failure = Some(error.into());
            }
        }
        Ok(Some(Instalment { committed, id, is_first_load, rows, tally }))
    }
}

fn report(instalment: Instalment) -> TypeReport {
    let Instalment { committed, id, rows, tally, .. } = instalment;
    let Tally { files, bytes, file_list, lines, .. } = tally;
    TypeReport {
        files,
        file_list,
        bytes,
        received: rows + lines.without_row(),
        quarantined: lines.quarantined,
        not_wanted: lines.not_wanted,
        outcomes: lines.outcomes,
        rerouted: lines.rerouted,
        counts: committed.counts,
        bytes_written: committed.bytes_written,
        foreign_commits: committed.foreign,
        table: Some(KnownTable { id, version: committed.version }),
        end: TypeEnd::Instalment { version: committed.version },
        ..TypeReport::default()
    }
}

/// What identifies each file of these types in all manifests of its job. The query of its URL may be a signature, so it
/// counts only where the rest of the URL does not tell the files apart.
fn identities(manifest: &Manifest, types: &BTreeSet<ResourceType>) -> BTreeMap<FileId, String> {
    let address = |file: &File| {
        let mut url = file.url.clone();
        url.set_query(None);
        url.set_fragment(None);
        url
    };
    let mut files_at = BTreeMap::<_, usize>::new();
    for file in &manifest.output {
        *files_at.entry(address(file)).or_default() += 1;
    }
    let of_types = manifest.output.iter().filter_map(|file| {
        let of = file.kind.resource_type().filter(|of| types.contains(of))?;
        let is_alone = files_at.get(&address(file)) == Some(&1);
        let query = file.url.query().filter(|_| !is_alone).unwrap_or_default();
        let identity = format!("{of}\n{}\n{query}\n{:?}", file.id, file.count);
        let mut hash = hex(digest(&SHA256, identity.as_bytes()).as_ref());
        hash.truncate(IDENTITY_DIGITS);
        Some((file.id.clone(), hash))
    });
    of_types.collect()
}

/// Of a file; so that no two files of an export have the same.
const IDENTITY_DIGITS: usize = 32;
