//! The intake: the files of a completed export become change sets.
//!
//! A limited number of workers download and decode; each holds the stream of one file, never a whole file. A bounded
//! channel connects the download with the decoder, so that a slow disk slows the network down instead of filling the
//! memory. A file that fails also fails its type, but no other type. A line belongs to the type that it states,
//! whatever the manifest says of its file (rule 79).

mod deleted;
mod envelope;
mod outcome;
mod output;
mod stream;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::AddAssign,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::{runtime::Handle, sync::Semaphore, task::JoinSet};
use tracing::Instrument as _;

pub use self::stream::DECODE_BYTES;
use super::{Error, ProgressSender, Syncer, blocking::blocking, columns, quarantine::Quarantine};
use crate::{
    export::{Client, Completed, File, FileKind, Links, Manifest},
    fhir::{Deletion, ResourceType, TransactionTime},
    resource::{BadLine, Decoder, LineGrouping, Shape},
    table::{self, ChangeSet, LedgerFile, MemoryBudget, MemoryDemand, Table, is_first_load},
};

/// What was received of one resource type, when all of its files have ended.
pub struct ReceivedType {
    pub shape: Arc<Shape>,
    pub changes: ChangeSet,
    /// Files that were read to their end.
    pub files: u64,
    /// Decoded bytes of these files.
    pub bytes: u64,
    /// The same files, with what each of them held.
    pub file_list: Vec<LedgerFile>,
    pub lines: LineCounts,
    /// The first error of one of its files.
    pub failure: Option<Error>,
}

impl ReceivedType {
    /// Nothing arrived, not even something that could not be used.
    pub fn is_absent(&self) -> bool {
        self.failure.is_none() && self.changes.received() == 0 && self.lines == LineCounts::default()
    }
}

/// The lines of a type's files that did not become its rows, and the rows that are from elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineCounts {
    /// No resources: lines in quarantine.
    pub quarantined: u64,
    /// Resources of types that nobody asked for.
    pub not_wanted: u64,
    /// `OperationOutcome`s: what the server says about the file.
    pub outcomes: u64,
    /// Rows of this type that were in files of other types, or of none.
    pub rerouted: u64,
}

impl LineCounts {
    /// Lines of the type's files that became no row of any type.
    pub fn without_row(&self) -> u64 {
        self.quarantined + self.not_wanted + self.outcomes
    }

    /// Nothing in the type's files was anything but a resource that somebody wants.
    pub fn are_all_rows(&self) -> bool {
        self.without_row() == 0
    }
}

impl AddAssign for LineCounts {
    fn add_assign(&mut self, other: Self) {
        self.quarantined += other.quarantined;
        self.not_wanted += other.not_wanted;
        self.outcomes += other.outcomes;
        self.rerouted += other.rerouted;
    }
}

/// What was received of a whole export.
pub struct Received {
    pub types: BTreeMap<ResourceType, ReceivedType>,
    pub remarks: Vec<Remark>,
    /// What the server reported as missing and `sync.accept_reported_errors` accepts.
    pub accepted: Vec<String>,
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
    accepted_codes: BTreeSet<String>,
    accepted: Mutex<BTreeMap<(String, String), u64>>,
    /// A file of one type had rows of another.
    is_mixed: AtomicBool,
    /// A file of one type was not read to its end.
    has_unread: AtomicBool,
    workers: Arc<Semaphore>,
}

/// One resource type while its files arrive. Rows are pushed into the change set without the lock on the tally.
struct Intake {
    decoder: Decoder,
    grouping: LineGrouping,
    changes: ChangeSet,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    files: u64,
    /// Files that have neither been read to their end nor failed.
    files_left: u64,
    bytes: u64,
    file_list: Vec<LedgerFile>,
    lines: LineCounts,
    failure: Option<Error>,
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

/// Streams every file of the manifest into the change sets of `types`.
pub async fn receive(
    syncer: &Syncer,
    completed: &Completed,
    types: &[ResourceType],
    provenance: Provenance,
    quarantine: &Arc<Quarantine>,
    progress: &ProgressSender,
) -> Result<Received, Error> {
    let manifest = &completed.manifest;
    let files = manifest.output.len() + manifest.deleted.len();
    progress.streaming(files as u64);
    let context = Arc::new(Context {
        client: Arc::clone(&syncer.client),
        links: Links::new(completed.clone()),
        intakes: intakes(syncer, types, manifest, &provenance).await?,
        quarantine: Arc::clone(quarantine),
        progress: progress.clone(),
        transaction_time: provenance.transaction_time,
        max_line_bytes: syncer.config.max_line_bytes,
        accepted_codes: syncer.config.accept_reported_errors.clone(),
        accepted: Mutex::default(),
        is_mixed: AtomicBool::default(),
        has_unread: AtomicBool::default(),
        workers: Arc::new(Semaphore::new(syncer.config.parallel_downloads)),
    });
    let mut remarks = read_files(&context, manifest).await;
    let flushing = Arc::clone(&context);
    // Lines in files of other types may have arrived after the last file of their own type.
    blocking(move || flushing.intakes.values().for_each(Intake::flush)).await;
    if manifest.transaction_time.is_none() {
        let reason = "the manifest has no transactionTime with a zone, so it is unknown how far the export goes";
        remarks.push(Remark::hold(Holds::Everything, reason.to_owned()));
    }
    let Some(context) = Arc::into_inner(context) else { return Err(Error::Stopped) };
    let accepted = context.accepted();
    let types: BTreeMap<_, _> =
        context.intakes.into_iter().map(|(resource_type, intake)| (resource_type, intake.complete())).collect();
    remarks.extend(types.iter().filter_map(|(resource_type, received)| mostly_quarantined(*resource_type, received)));
    Ok(Received { types, remarks, accepted })
}

/// Reads all files, as many at a time as there are workers.
async fn read_files(context: &Arc<Context>, manifest: &Manifest) -> Vec<Remark> {
    let mut tasks = JoinSet::new();
    let mut output: Vec<_> = (0..).zip(&manifest.output).collect();
    // Sorted by type, so that at most as many types arrive at the same time as there are workers: the memory of a
    // change set that is complete goes to those that still arrive.
    output.sort_by_key(|(_, file)| file.kind);
    for (index, file) in output {
        let is_wanted = match file.kind {
            FileKind::Of(resource_type) => context.intakes.contains_key(&resource_type),
            FileKind::Unknown => false,
            FileKind::Untyped => true,
        };
        if !is_wanted {
            tracing::warn!(file = file.name, "the server sent a type that was not requested; it is ignored");
            continue;
        }
        let Ok(worker) = Arc::clone(&context.workers).acquire_owned().await else { break };
        tasks.spawn(output::read(Arc::clone(context), file.clone(), index, worker).in_current_span());
    }
    for file in &manifest.deleted {
        tasks.spawn(deleted::read(Arc::clone(context), file.clone()).in_current_span());
    }
    for file in &manifest.outcomes {
        tasks.spawn(outcome::read(Arc::clone(context), file.clone()).in_current_span());
    }
    let mut remarks = Vec::from_iter(outcome::in_manifest(context, &manifest.issues.0));
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(of_file) => remarks.extend(of_file),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
    remarks.extend(context.unread_mixed());
    remarks
}

impl Context {
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
    let quarantined = received.lines.quarantined;
    let lines = received.changes.received() + quarantined;
    (quarantined * 2 > lines).then(|| {
        let text = format!("{quarantined} of {lines} lines of {resource_type} are not resources, more than half");
        Remark::hold(Holds::of(Some(resource_type)), text)
    })
}

/// An intake for each type. Their change sets share the memory.
async fn intakes(
    syncer: &Syncer,
    types: &[ResourceType],
    manifest: &Manifest,
    provenance: &Provenance,
) -> Result<BTreeMap<ResourceType, Intake>, Error> {
    let mut opened = Vec::new();
    // A file without a type may hold lines of any.
    let has_mixed = manifest.output.iter().any(|file| file.kind == FileKind::Untyped);
    let mut demand = MemoryDemand {
        types: types.len(),
        waiting: 0,
        appending: 0,
        at_once: syncer.config.parallel_downloads,
        read_at_once: syncer.config.parallel_upserts,
    };
    for resource_type in types {
        let shape = syncer.shape(*resource_type).await?;
        let files = manifest.output.iter().filter(|file| file.kind == FileKind::Of(*resource_type)).count();
        // Without files there is nothing to write before the commit, which will open the table, or create it.
        let table = if files == 0 && !has_mixed { None } else { Some(table(syncer, *resource_type, &shape).await) };
        match &table {
            Some(Ok((_, FirstLoad(true)))) => demand.appending += 1,
            Some(Ok((_, FirstLoad(false))) | Err(_)) => demand.waiting += 1,
            None => {}
        }
        opened.push((*resource_type, shape, files as u64, table));
    }
    let budget = MemoryBudget::of(syncer.config.change_set_memory_bytes, demand);
    let spool_folder = &syncer.config.spool_folder;
    let mut intakes = BTreeMap::new();
    for (resource_type, shape, files_left, table) in opened {
        let schema = shape.schema();
        let changes = match table {
            Some(Ok((table, _))) => ChangeSet::for_table(&table, &schema, budget, spool_folder).await,
            Some(Err(error)) => Err(error),
            None => Ok(ChangeSet::new(&schema, MemoryBudget { waiting_bytes: 0, ..budget }, spool_folder)),
        };
        let (changes, failure) = match changes {
            Ok(changes) => (changes, None),
            Err(error) => (ChangeSet::new(&schema, budget, spool_folder), Some(error.into())),
        };
        let tally = Mutex::new(Tally { files_left, failure, ..Tally::default() });
        let (grouping, decoder) = (LineGrouping::of(&shape), provenance.decoder(shape));
        intakes.insert(resource_type, Intake { decoder, grouping, changes, tally });
    }
    Ok(intakes)
}

/// Whether a table has no rows yet: then its rows are written while they arrive, instead of waiting for the commit.
struct FirstLoad(bool);

async fn table(
    syncer: &Syncer,
    resource_type: ResourceType,
    shape: &Shape,
) -> Result<(Table, FirstLoad), table::Error> {
    let table = syncer.root.open_or_create(resource_type, &columns::definition(shape)).await?;
    let first_load = FirstLoad(is_first_load(&table).await?);
    Ok((table, first_load))
}

impl Provenance {
    fn decoder(&self, shape: Arc<Shape>) -> Decoder {
        Decoder {
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
        Ok(intake.changes.delete(deletion.id, at)?)
    }

    /// Keeps lines of a file that are no resources. Blocks.
    fn quarantine(&self, of: Option<ResourceType>, file: &File, bad: &[BadLine]) -> Result<(), Error> {
        Handle::current().block_on(self.quarantine.keep(of, &file.name, self.transaction_time, bad))
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

    fn accepted(&self) -> Vec<String> {
        let accepted = self.accepted.lock().unwrap_or_else(PoisonError::into_inner);
        accepted.iter().map(|((file, code), times)| format!("{file}: {times} times {code}")).collect()
    }
}

impl Tally {
    /// One file has ended; returns whether it was the last.
    fn end(&mut self, checked: Result<stream::Streamed, Error>) -> bool {
        match checked {
            Ok(streamed) => {
                self.files += 1;
                self.bytes += streamed.bytes;
                let stream::Streamed { bytes, sha256, name } = streamed;
                self.file_list.push(LedgerFile { name, bytes, sha256 });
            }
            Err(error) => {
                self.failure.get_or_insert(error);
            }
        }
        self.files_left = self.files_left.saturating_sub(1);
        self.files_left == 0
    }
}

impl Intake {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finishes the open data files of a first load. An error is the type's. Blocks.
    fn flush(&self) {
        if let Err(error) = Handle::current().block_on(self.changes.flush()) {
            self.tally().failure.get_or_insert(error.into());
        }
    }

    fn complete(self) -> ReceivedType {
        let tally = self.tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Tally { files, bytes, file_list, lines, failure, .. } = tally;
        ReceivedType { shape: self.decoder.shape, changes: self.changes, files, bytes, file_list, lines, failure }
    }
}
