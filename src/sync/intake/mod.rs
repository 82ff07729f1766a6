//! The intake: the files of a completed export become change sets.
//!
//! A limited number of workers download and decode; each holds the stream of one file, never a whole file. A bounded
//! channel connects the download with the decoder, so that a slow disk slows the network down instead of filling the
//! memory. A file that fails also fails its type, but no other type. A line belongs to the type that it states,
//! whatever the manifest says of its file (rule 79).

mod batches;
mod dates;
mod deleted;
mod envelope;
mod instalments;
mod open;
mod outcome;
mod output;
mod queue;
mod stream;
mod tally;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arrow::array::RecordBatch;
use chrono::{DateTime, Utc};
use tokio::runtime::Handle;

use self::{
    batches::BatchSlots,
    dates::Dates,
    open::intakes,
    outcome::Warnings,
    queue::{Queued, queue, read_all},
    tally::Tally,
};
pub use self::{
    batches::MAX_BATCH_BYTES,
    instalments::Instalments,
    tally::{Before, LineCounts},
};
use super::{Error, ProgressSender, blocking::blocking, gap::Gap, quarantine::Quarantine, stop::unless_stopped};
use crate::{
    export::{Client, Completed, File, FileId, Links, Manifest},
    fhir::{Deletion, ResourceType, RowKey, TransactionTime},
    resource::{BadLine, Decoder, LineTooLong, MappingPool, Shape},
    table::{ChangeSet, LedgerFile, MemoryBudget, OutputIndex},
};

/// What was received of one resource type, when all of its files have ended.
pub struct ReceivedType {
    pub shape: Arc<Shape>,
    pub changes: ChangeSet,
    /// Rows that earlier instalments have committed are not in `changes`.
    pub before: Before,
    /// Files that were read to their end.
    pub files: u64,
    /// Decoded bytes of these files.
    pub bytes: u64,
    /// The same files, with what each of them held.
    pub file_list: Vec<LedgerFile>,
    pub lines: LineCounts,
    /// In what the server reports as deleted; they are in `changes`, too.
    pub deletions: u64,
    /// What files without a known type and accepted errors leave open: see [`OtherFiles`].
    pub gap_of_other_files: Option<Gap>,
    /// The first error of one of its files.
    pub failure: Option<Error>,
    /// The ids of its resources, of the type Patient at the level group.
    pub patients: BTreeSet<String>,
}

impl ReceivedType {
    /// Nothing arrived, not even something that could not be used. What was deleted says nothing about what is there.
    pub fn is_absent(&self) -> bool {
        let is_absent = self.changes.received() == self.deletions && self.lines == LineCounts::default();
        is_absent && self.failure.is_none() && self.before == Before::default()
    }
}

/// What was received of a whole export.
pub struct Received {
    pub types: BTreeMap<ResourceType, ReceivedType>,
    pub remarks: Vec<Remark>,
    /// What the server reported as missing and `sync.accept_reported_errors` accepts.
    pub accepted: Vec<String>,
    pub other_files: OtherFiles,
    /// A note for the operator that the server seems to ignore `_since`.
    pub ignored_since: Option<String>,
    /// The same of the warnings of the server.
    pub server_warnings: Option<String>,
}

/// What files had of types that are not theirs, besides rows.
#[derive(Default)]
pub struct OtherFiles {
    /// Types that an earlier run has settled: the rows of them that were in files of this one are in no table.
    pub missed: BTreeSet<ResourceType>,
    /// Types with lines that are not resources; `None` if it is not known of which type such lines are.
    pub bad: BTreeSet<Option<ResourceType>>,
    /// Rows of any type may be missing, although no watermark is held: the server reported errors in files without a
    /// known type, or such files were not read.
    pub gap: Option<Gap>,
    /// Types of which the server reported missing rows in outcomes that the operator accepts; `None`: of any type.
    pub accepted: BTreeSet<Option<ResourceType>>,
    /// What went wrong with files of which nothing is wanted, for the operator. No run is less than complete by it.
    pub ignored: Vec<String>,
}

impl OtherFiles {
    /// What leaves it open whether the rows of a type are all there.
    fn gap_of(&self, resource_type: ResourceType) -> Option<Gap> {
        let is_accepted = [None, Some(resource_type)].iter().any(|of| self.accepted.contains(of));
        self.gap.or_else(|| is_accepted.then_some(Gap::AcceptedErrors))
    }
}

/// Something that the operator should know of the export.
pub struct Remark {
    pub text: String,
    pub holds: Holds,
}

/// Of which types rows or deletions may be missing: their watermarks must not move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    Nothing,
    Types(BTreeSet<ResourceType>),
    Everything,
}

impl Holds {
    /// Of one type; where it is not known which, of all.
    fn of(resource_type: Option<ResourceType>) -> Self {
        resource_type.map_or(Self::Everything, |resource_type| Self::Types(BTreeSet::from([resource_type])))
    }
}

impl Received {
    /// Whether the watermark of this type must stay where it is.
    pub fn holds(&self, resource_type: ResourceType) -> bool {
        self.remarks.iter().any(|remark| match &remark.holds {
            Holds::Nothing => false,
            Holds::Types(types) => types.contains(&resource_type),
            Holds::Everything => true,
        })
    }
}

impl Remark {
    fn hold(holds: Holds, text: String) -> Self {
        Self { text, holds }
    }
}

/// What all files of one export have in common.
struct Context {
    client: Arc<Client>,
    links: Links,
    intakes: BTreeMap<ResourceType, Intake>,
    quarantine: Arc<Quarantine>,
    progress: ProgressSender,
    transaction_time: Option<TransactionTime>,
    max_line_bytes: usize,
    /// For batches of lines that become rows.
    slots: BatchSlots,
    accepted_codes: BTreeSet<String>,
    accepted: Mutex<BTreeMap<(String, String), u64>>,
    warned: Mutex<Warnings>,
    /// A file of one type had rows of another.
    is_mixed: AtomicBool,
    /// The manifest has files of known types.
    states_types: bool,
    /// A file of one type was not read to its end.
    has_unread: AtomicBool,
    /// Types of the job that need nothing more from it.
    settled: BTreeSet<ResourceType>,
    other_files: Mutex<OtherFiles>,
    /// Of the files that may be remembered as finished.
    identities: BTreeMap<FileId, String>,
    subsetted: BTreeSet<ResourceType>,
    dates: Dates,
}

/// One resource type while its files arrive. Rows are pushed into the change set without the lock on the tally.
struct Intake {
    decoder: Decoder,
    /// Workers share it; an instalment has it alone. `None` as soon as nothing more is taken.
    changes: RwLock<Option<ChangeSet>>,
    budget: MemoryBudget,
    spool_folder: PathBuf,
    tally: Mutex<Tally>,
    /// The ids that arrived, where they tell who is a member of the group.
    patients: Option<Mutex<BTreeSet<String>>>,
}

/// Where the rows of an export are from: columns with the same value in each of them.
pub struct Provenance {
    /// `_sync_source`.
    pub source: Arc<str>,
    /// `_sync_at`.
    pub run_started_micros: i64,
    /// How far the export goes: of rows and deletions alike, so that they can be compared.
    pub transaction_time: Option<TransactionTime>,
    /// `_sync_job`: the export and the run.
    pub job: Arc<str>,
}

/// Streams every file of the manifest into the change sets of the job's types. [`Error::Stopped`] where it was asked to
/// stop; then what had ended is committed as instalments.
pub async fn receive(
    instalments: &mut Instalments<'_>,
    completed: &Completed,
    provenance: Provenance,
) -> Result<Received, Error> {
    let manifest = &completed.manifest;
    let links = Links::new(completed.clone());
    let context = Context::begin(instalments, manifest, links, instalments.types_of_job(), provenance).await?;
    let queue = queue(&context, manifest, instalments);
    instalments.progress().streaming(queue.len() as u64, queue.iter().map(Queued::count).sum());
    let mut remarks = Vec::from_iter(outcome::in_manifest(&context, &manifest.issues.0));
    remarks.extend(read_all(&context, queue, instalments).await?);
    remarks.extend(context.unread_mixed());
    let flushing = Arc::clone(&context);
    // Lines in files of other types may have arrived after the last file of their own type.
    blocking(move || flushing.intakes.values().for_each(Intake::flush)).await;
    if manifest.transaction_time.is_none() {
        let reason = "the manifest has no transactionTime with a zone, so it is unknown how far the export goes";
        remarks.push(Remark::hold(Holds::Everything, reason.to_owned()));
    }
    let Some(context) = Arc::into_inner(context) else { return Err(Error::Stopped) };
    let (accepted, server_warnings) = (context.accepted(), context.warned().note());
    let ignored_since = context.dates.note();
    context.dates.log();
    let other_files = std::mem::take(&mut *context.other_files());
    let types: BTreeMap<_, _> = context
        .intakes
        .into_iter()
        .filter_map(|(resource_type, intake)| {
            Some((resource_type, intake.complete(other_files.gap_of(resource_type))?))
        })
        .collect();
    remarks.extend(types.iter().filter_map(|(resource_type, received)| mostly_quarantined(*resource_type, received)));
    Ok(Received { types, remarks, accepted, other_files, ignored_since, server_warnings })
}

/// Streams the files that are ready, and commits them as instalments. What cannot be read now is left to the complete
/// export, and so is everything but the rows of a file's own type.
pub async fn receive_early(
    instalments: &mut Instalments<'_>,
    manifest: &Manifest,
    types: &[ResourceType],
    provenance: Provenance,
) -> Result<(), Error> {
    let links = Links::of_partial();
    let context = Context::begin(instalments, manifest, links, types, provenance).await?;
    let queue = queue(&context, manifest, instalments);
    instalments.progress().streaming(queue.len() as u64, queue.iter().map(Queued::count).sum());
    read_all(&context, queue, instalments).await?;
    instalments.commit_finished(&context).await;
    context.close().await;
    Ok(())
}

impl Context {
    async fn begin(
        instalments: &Instalments<'_>,
        manifest: &Manifest,
        links: Links,
        types: &[ResourceType],
        provenance: Provenance,
    ) -> Result<Arc<Self>, Error> {
        let syncer = instalments.syncer();
        let intakes = intakes(instalments, types, manifest, &provenance);
        Ok(Arc::new(Self {
            client: Arc::clone(&syncer.client),
            links,
            intakes: unless_stopped(instalments.stop(), Duration::ZERO, intakes).await?,
            quarantine: Arc::clone(instalments.quarantine()),
            progress: instalments.progress().clone(),
            transaction_time: provenance.transaction_time,
            max_line_bytes: syncer.config.max_line_bytes,
            slots: BatchSlots::new(syncer.config.decoding_memory_bytes),
            accepted_codes: syncer.config.accept_reported_errors.clone(),
            accepted: Mutex::default(),
            warned: Mutex::default(),
            is_mixed: AtomicBool::default(),
            states_types: manifest.output.iter().any(|file| file.kind.resource_type().is_some()),
            has_unread: AtomicBool::default(),
            settled: instalments.settled().clone(),
            other_files: Mutex::default(),
            identities: instalments.identities().clone(),
            subsetted: instalments.subsetted(types),
            dates: Dates::new(instalments.since()),
        }))
    }

    /// A server that mixes types in one file may have rows of any type in a file that was not read to its end.
    fn unread_mixed(&self) -> Option<Remark> {
        let is_unread = self.is_mixed.load(Ordering::Relaxed) && self.has_unread.load(Ordering::Relaxed);
        is_unread.then(|| {
            let text = "files have lines of other types than their own, and not all were read: rows of any type may be \
                        missing; the next sync requests them again";
            Remark::hold(Holds::Everything, text.to_owned())
        })
    }
}

/// A watermark never stands for lines that are no resources for the most part, however few they are: the next export
/// may have them right.
fn mostly_quarantined(resource_type: ResourceType, received: &ReceivedType) -> Option<Remark> {
    let quarantined = received.before.quarantined + received.lines.quarantined;
    let lines = received.before.lines + received.changes.received() + received.lines.quarantined;
    (quarantined * 2 > lines).then(|| {
        let text = format!("{quarantined} of {lines} lines of {resource_type} are not resources, more than half");
        Remark::hold(Holds::of(Some(resource_type)), text)
    })
}

impl Provenance {
    fn decoder(&self, shape: Arc<Shape>) -> Decoder {
        Decoder {
            mappings: MappingPool::of(&shape),
            shape,
            source: Arc::clone(&self.source),
            run_started_micros: self.run_started_micros,
            transaction_time: self.transaction_time,
            job: Arc::clone(&self.job),
        }
    }
}

impl Context {
    /// A deletion of a type that was not requested is ignored. None is later than the export that reports it.
    fn delete(&self, deletion: Deletion) -> Result<(), Error> {
        let Some(intake) = self.intakes.get(&deletion.resource_type) else { return Ok(()) };
        let bound = self.transaction_time.map(TransactionTime::instant);
        let at = deletion.at.map(|at| bound.map_or(at, |bound| at.min(bound)));
        intake.delete(deletion.id, at)
    }

    fn other_files(&self) -> MutexGuard<'_, OtherFiles> {
        self.other_files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more is taken: what was not committed is discarded.
    async fn close(self: &Arc<Self>) {
        let context = Arc::clone(self);
        blocking(move || context.intakes.values().for_each(Intake::close)).await;
    }

    /// Keeps lines of a file that are no resources. Blocks.
    fn quarantine(&self, of: Option<ResourceType>, file: &File, bad: &[BadLine]) -> Result<(), Error> {
        Handle::current().block_on(self.quarantine.keep(of, &file.name, self.transaction_time, bad))
    }

    /// Keeps the places of lines that are too long. Blocks.
    fn quarantine_places(&self, of: Option<ResourceType>, file: &File, lines: &[LineTooLong]) -> Result<(), Error> {
        Handle::current().block_on(self.quarantine.keep_places(of, &file.name, self.transaction_time, lines))
    }

    /// Also a type that an earlier run has settled.
    fn is_of_job(&self, resource_type: ResourceType) -> bool {
        self.intakes.contains_key(&resource_type) || self.settled.contains(&resource_type)
    }

    /// Whether the operator accepts this code of an error; what was accepted is in the report.
    fn accepts(&self, file: &str, code: &str) -> bool {
        let accepts = self.accepted_codes.contains(code);
        if accepts {
            let mut accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
            *accepted.entry((file.to_owned(), code.to_owned())).or_default() += 1;
        }
        accepts
    }

    fn warned(&self) -> MutexGuard<'_, Warnings> {
        self.warned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accepted(&self) -> Vec<String> {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.iter().map(|((file, code), times)| format!("{file}: {times} times {code}")).collect()
    }
}

impl Intake {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes(&self) -> RwLockReadGuard<'_, Option<ChangeSet>> {
        self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changes_alone(&self) -> RwLockWriteGuard<'_, Option<ChangeSet>> {
        self.changes.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its rows are written into the table's files while they arrive.
    fn is_first_load(&self) -> bool {
        self.changes().as_ref().is_some_and(ChangeSet::is_first_load)
    }

    /// Blocks, also while an instalment is committed.
    fn push(&self, output: OutputIndex, keys: Vec<RowKey>, rows: RecordBatch) -> Result<(), Error> {
        if let Some(patients) = &self.patients {
            let ids = keys.iter().map(|key| key.id.clone());
            patients.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
        }
        let changes = self.changes();
        Ok(changes.as_ref().ok_or(Error::Stopped)?.push(output, keys, rows)?)
    }

    fn delete(&self, id: String, at: Option<DateTime<Utc>>) -> Result<(), Error> {
        let changes = self.changes();
        changes.as_ref().ok_or(Error::Stopped)?.delete(id, at)?;
        self.tally().deletions += 1;
        Ok(())
    }

    /// All files of the type have ended: finishes the open data files of a first load, and frees what only its lines
    /// need. An error is the type's. Blocks.
    fn flush(&self) {
        self.decoder.mappings.forget();
        let changes = self.changes();
        let Some(changes) = changes.as_ref() else { return };
        if let Err(error) = changes.flush() {
            self.tally().failure.get_or_insert(error.into());
        }
    }

    fn close(&self) {
        if let Some(changes) = self.changes_alone().take() {
            Handle::current().block_on(changes.abandon());
        }
    }

    fn complete(self, gap_of_other_files: Option<Gap>) -> Option<ReceivedType> {
        let tally = self.tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        let changes = self.changes.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        let Tally { before, files, bytes, file_list, lines, deletions, failure, .. } = tally;
        let patients = self.patients.map(|patients| patients.into_inner().unwrap_or_else(PoisonError::into_inner));
        let (shape, patients) = (self.decoder.shape, patients.unwrap_or_default());
        Some(ReceivedType {
            shape,
            changes,
            before,
            files,
            bytes,
            file_list,
            lines,
            deletions,
            gap_of_other_files,
            failure,
            patients,
        })
    }
}
