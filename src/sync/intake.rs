//! The intake: the files of a completed export become change sets.
//!
//! A limited number of workers download and decode; each holds the stream of one file, never a whole file. A bounded
//! channel connects the download with the decoder, so that a slow disk slows the network down instead of filling the
//! memory. A file that fails also fails its type, but no other type.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::JoinSet,
};

use tracing::Instrument as _;

use super::{Error, ProgressSender, Syncer, blocking::blocking, chain, columns, quarantine::Quarantine};
use crate::{
    export::{Client, File, FileKind, Manifest},
    fhir::{Deletion, Issue, ResourceType, TransactionTime, operation_outcome},
    resource::{self, BadLine, Decoder, Line, LineGrouping, Lines, Shape},
    table::{self, ChangeSet, MemoryBudget, MemoryDemand, OutputIndex, Table, is_first_load},
};

/// What was received of one resource type, when all of its files have ended.
pub struct ReceivedType {
    pub shape: Arc<Shape>,
    pub changes: ChangeSet,
    /// Files that were read to their end.
    pub files: u64,
    /// Decoded bytes of these files.
    pub bytes: u64,
    /// Lines in quarantine.
    pub quarantined: u64,
    /// The first error of one of its files.
    pub failure: Option<Error>,
}

/// What was received of a whole export.
pub struct Received {
    pub types: BTreeMap<ResourceType, ReceivedType>,
    pub remarks: Vec<Remark>,
}

/// Something that concerns every type of the export.
pub enum Remark {
    /// Rows or deletions may be missing: no watermark may move.
    Hold(String),
    /// For the operator only; the watermarks move.
    Note(String),
}

/// Chunks between the network and the decoder, for each file.
const CHUNKS_IN_FLIGHT: usize = 8;
/// Lines are decoded when about this many bytes of them have arrived. A batch has a cost for each of a thousand
/// columns, whatever it holds: with 1 MiB, decoding and writing took a tenth longer; 8 MiB saved nothing more
/// (docs/performance.md).
pub const DECODE_BYTES: usize = 4 * 1024 * 1024;

/// What all files of one export have in common.
struct Context {
    client: Arc<Client>,
    intakes: BTreeMap<ResourceType, Intake>,
    quarantine: Arc<Quarantine>,
    progress: ProgressSender,
    provenance: Provenance,
    max_line_bytes: usize,
    workers: Arc<Semaphore>,
}

/// One resource type while its files arrive. Rows are pushed into the change set without the lock on the tally.
struct Intake {
    shape: Arc<Shape>,
    changes: ChangeSet,
    tally: Mutex<Tally>,
}

#[derive(Default)]
struct Tally {
    files: u64,
    /// Files that have neither been read to their end nor failed.
    files_left: u64,
    bytes: u64,
    quarantined: u64,
    failure: Option<Error>,
}

/// Where the rows of an export are from: columns with the same value in each of them.
pub struct Provenance {
    /// `_sync_source`.
    pub source: Arc<str>,
    /// `_sync_at`.
    pub run_started_micros: i64,
    pub transaction_time: Option<TransactionTime>,
    /// `_sync_job`: the export and the run.
    pub job: Arc<str>,
}

/// Streams every file of the manifest into the change sets of `types`.
pub async fn receive(
    syncer: &Syncer,
    manifest: &Manifest,
    types: &[ResourceType],
    provenance: Provenance,
    quarantine: &Arc<Quarantine>,
) -> Result<Received, Error> {
    let files = manifest.output.len() + manifest.deleted.len();
    syncer.progress.streaming(files as u64);
    let context = Arc::new(Context {
        client: Arc::clone(&syncer.client),
        intakes: intakes(syncer, types, manifest).await?,
        quarantine: Arc::clone(quarantine),
        progress: syncer.progress.clone(),
        provenance,
        max_line_bytes: syncer.config.max_line_bytes,
        workers: Arc::new(Semaphore::new(syncer.config.parallel_downloads)),
    });
    let mut remarks = Vec::new();
    let mut tasks = JoinSet::new();
    let mut output: Vec<_> = (0..).zip(&manifest.output).collect();
    // Sorted by type, so that at most as many types arrive at the same time as there are workers: the memory of a
    // change set that is complete goes to those that still arrive.
    output.sort_by_key(|(_, file)| file.kind);
    for (index, file) in output {
        let resource_type = match file.kind {
            FileKind::Of(resource_type) if context.intakes.contains_key(&resource_type) => resource_type,
            _ => {
                remarks.extend(not_requested(file));
                continue;
            }
        };
        let Ok(worker) = Arc::clone(&context.workers).acquire_owned().await else { break };
        tasks.spawn(output_file(Arc::clone(&context), file.clone(), resource_type, index, worker).in_current_span());
    }
    for file in &manifest.deleted {
        tasks.spawn(deleted_file(Arc::clone(&context), file.clone()).in_current_span());
    }
    for file in &manifest.outcomes {
        tasks.spawn(outcome_file(Arc::clone(&context), file.clone()).in_current_span());
    }
    remarks.extend(reported_in_manifest(manifest));
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(remark) => remarks.extend(remark),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
    if manifest.transaction_time.is_none() {
        let reason = "the manifest has no transactionTime with a zone, so it is unknown how far the export goes";
        remarks.push(Remark::Hold(reason.to_owned()));
    }
    let intakes = Arc::into_inner(context).map(|context| context.intakes).unwrap_or_default();
    let types = intakes.into_iter().map(|(resource_type, intake)| (resource_type, intake.complete()));
    Ok(Received { types: types.collect(), remarks })
}

/// An intake for each type. Their change sets share the memory.
async fn intakes(
    syncer: &Syncer,
    types: &[ResourceType],
    manifest: &Manifest,
) -> Result<BTreeMap<ResourceType, Intake>, Error> {
    let mut opened = Vec::new();
    let mut demand = MemoryDemand {
        types: types.len(),
        waiting: 0,
        appending: 0,
        at_once: syncer.config.parallel_downloads,
        read_at_once: syncer.config.parallel_upserts,
    };
    for resource_type in types {
        let shape = syncer.shape(*resource_type).await;
        let files = manifest.output.iter().filter(|file| file.kind == FileKind::Of(*resource_type)).count();
        // Without files there is nothing to write before the commit, which will open the table, or create it.
        let table = if files == 0 { None } else { Some(table(syncer, *resource_type, &shape).await) };
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
        intakes.insert(resource_type, Intake { shape, changes, tally });
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

/// A file that belongs to no table. A type that was not requested is only worth a warning, whether FHIR knows it or not; a
/// file without a type may hold rows that are missing elsewhere.
fn not_requested(file: &File) -> Option<Remark> {
    match file.kind {
        FileKind::Of(_) | FileKind::Unknown => {
            tracing::warn!(file = file.name, "the server sent a type that was not requested; it is ignored");
            None
        }
        FileKind::Untyped => Some(Remark::Hold(format!("{}: the manifest names no resource type", file.name))),
    }
}

/// What the server reports in the manifest itself: an error holds every watermark, as in a file (rule 101).
fn reported_in_manifest(manifest: &Manifest) -> Option<Remark> {
    // A severity that cannot be read is no all-clear.
    let is_error = |issue: &&Issue| issue.is_error() || issue.severity == "unknown";
    let first = manifest.issues.0.iter().find(is_error)?;
    let errors = manifest.issues.0.iter().filter(is_error).count();
    Some(Remark::Hold(format!("the server reported missing data: {errors} errors, first {first}")))
}

/// One file of rows. An error is kept with its type.
async fn output_file(
    context: Arc<Context>,
    file: File,
    resource_type: ResourceType,
    index: u32,
    _worker: OwnedSemaphorePermit,
) -> Option<Remark> {
    let decoder = context.decoder(resource_type)?;
    let grouping = LineGrouping::of(&decoder.shape);
    // The lines come back here, some MiB at a time and on a blocking thread: from the download through `consume`.
    let result = stream(&context, &file, move |context, file, mut lines| {
        grouping.group(&mut lines);
        let decoded = decoder.decode(lines)?;
        context.quarantine.keep(Some(resource_type), &file.name, &decoded.bad)?;
        let Some(intake) = context.intakes.get(&resource_type) else { return Ok(()) };
        intake.tally().quarantined += decoded.bad.len() as u64;
        Ok(intake.changes.push(OutputIndex(index), decoded.keys, decoded.rows)?)
    });
    let checked = result.await.and_then(|streamed| check_count(&file, streamed));
    context.progress.update(|progress| progress.files_done += 1);
    let intake = context.intakes.get(&resource_type)?;
    let last = intake.tally().end(checked);
    if last {
        // Frees the memory of the type's open data files for the types that still arrive.
        let flushing = Arc::clone(&context);
        let flushed = blocking(move || match flushing.intakes.get(&resource_type) {
            Some(intake) => Ok(Handle::current().block_on(intake.changes.flush())?),
            None => Ok(()),
        });
        if let Err(error) = flushed.await {
            intake.tally().failure.get_or_insert(error);
        }
    }
    None
}

/// One file of deletions. They may be of any type, so one that fails holds every watermark.
async fn deleted_file(context: Arc<Context>, file: File) -> Option<Remark> {
    let Ok(_worker) = context.workers.acquire().await else { return None };
    let bad_lines = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&bad_lines);
    let result = stream(&context, &file, move |context, file, lines| {
        let mut bad = Vec::new();
        for line in lines {
            match resource::deletions(&line) {
                Ok(deletions) => deletions.into_iter().try_for_each(|deletion| context.delete(deletion))?,
                Err(reason) => bad.push(BadLine { line, reason }),
            }
        }
        count.fetch_add(bad.len() as u64, Ordering::Relaxed);
        context.quarantine.keep(None, &file.name, &bad)
    });
    let result = result.await;
    context.progress.update(|progress| progress.files_done += 1);
    match (result, bad_lines.load(Ordering::Relaxed)) {
        (Err(error), _) => Some(Remark::Hold(format!("deletions may be missing: {}", chain(&error)))),
        (Ok(_), 0) => None,
        (Ok(_), lines) => {
            Some(Remark::Note(format!("{}: {lines} lines are not deletions; they are in quarantine", file.name)))
        }
    }
}

/// One file of `OperationOutcome`s: what the server could not export. An error among them holds every watermark (rule
/// 101).
async fn outcome_file(context: Arc<Context>, file: File) -> Option<Remark> {
    let Ok(_worker) = context.workers.acquire().await else { return None };
    let errors = Arc::new(Mutex::new(Vec::<Issue>::new()));
    let found = Arc::clone(&errors);
    let result = stream(&context, &file, move |_, file, lines| {
        for line in lines {
            let issues = operation_outcome(&line.bytes).unwrap_or_default();
            let (errors, warnings): (Vec<_>, Vec<_>) = issues.into_iter().partition(Issue::is_error);
            for issue in warnings {
                tracing::warn!(file = file.name, line = line.number, %issue, "the server reported a warning");
            }
            found.lock().unwrap_or_else(PoisonError::into_inner).extend(errors);
        }
        Ok(())
    });
    let result = result.await;
    let errors = std::mem::take(&mut *errors.lock().unwrap_or_else(PoisonError::into_inner));
    let reason = match (result, errors.first()) {
        (Err(error), _) => format!("the server's messages about the export could not be read: {}", chain(&error)),
        (Ok(_), Some(first)) => {
            format!("the server reported missing data: {} errors, first {first}", errors.len())
        }
        (Ok(_), None) => return None,
    };
    Some(Remark::Hold(reason))
}

impl Context {
    fn decoder(&self, resource_type: ResourceType) -> Option<Decoder> {
        let intake = self.intakes.get(&resource_type)?;
        Some(Decoder {
            shape: Arc::clone(&intake.shape),
            source: Arc::clone(&self.provenance.source),
            run_started_micros: self.provenance.run_started_micros,
            transaction_time: self.provenance.transaction_time,
            job: Arc::clone(&self.provenance.job),
        })
    }

    /// A deletion of a type that was not requested is ignored.
    fn delete(&self, deletion: Deletion) -> Result<(), Error> {
        match self.intakes.get(&deletion.resource_type) {
            Some(intake) => Ok(intake.changes.delete(deletion.id, deletion.at)?),
            None => Ok(()),
        }
    }
}

impl Tally {
    /// One file has ended; returns whether it was the last.
    fn end(&mut self, checked: Result<Streamed, Error>) -> bool {
        match checked {
            Ok(streamed) => {
                self.files += 1;
                self.bytes += streamed.bytes;
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

    fn complete(self) -> ReceivedType {
        let tally = self.tally.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Tally { files, bytes, quarantined, failure, .. } = tally;
        ReceivedType { shape: self.shape, changes: self.changes, files, bytes, quarantined, failure }
    }
}

struct Streamed {
    lines: u64,
    bytes: u64,
}

/// What becomes of some lines of a file. Runs on a thread that may block.
type Decode = dyn Fn(&Context, &File, Vec<Line>) -> Result<(), Error> + Send + Sync;

/// Downloads a file and gives its lines, some at a time and in order, to `decode`.
async fn stream(
    context: &Arc<Context>,
    file: &File,
    decode: impl Fn(&Context, &File, Vec<Line>) -> Result<(), Error> + Send + Sync + 'static,
) -> Result<Streamed, Error> {
    let (sender, receiver) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let download = context.client.download(file, sender);
    let consume = consume(context, file, receiver, Arc::new(decode));
    let (receipt, consumed) = tokio::join!(download, consume);
    // When `consume` fails, the download fails too, but only because its channel was closed: the cause comes first.
    let (lines, whole) = consumed?;
    let receipt = receipt?;
    if !whole {
        return Err(Error::CutLine { file: file.name.clone() });
    }
    Ok(Streamed { lines, bytes: receipt.bytes })
}

/// Counts the lines, and returns whether the last one is whole. Where the server announces neither length nor count,
/// only that distinguishes a file that was cut from one that ended (F3).
async fn consume(
    context: &Arc<Context>,
    file: &File,
    mut chunks: mpsc::Receiver<Bytes>,
    decode: Arc<Decode>,
) -> Result<(u64, bool), Error> {
    let mut splitter = Lines::new(context.max_line_bytes);
    let mut lines = Vec::new();
    let mut waiting_bytes = 0;
    let mut count = 0;
    while let Some(chunk) = chunks.recv().await {
        waiting_bytes += chunk.len();
        splitter.push(&chunk, &mut lines).map_err(|source| Error::LongLine { file: file.name.clone(), source })?;
        context.progress.update(|progress| progress.bytes += chunk.len() as u64);
        if waiting_bytes >= DECODE_BYTES {
            count += lines.len() as u64;
            waiting_bytes = 0;
            hand_over(context, file, std::mem::take(&mut lines), &decode).await?;
        }
    }
    let last = splitter.finish();
    let whole = last.as_ref().is_none_or(|line| serde_json::from_slice::<serde::de::IgnoredAny>(&line.bytes).is_ok());
    lines.extend(last.filter(|_| whole));
    count += lines.len() as u64;
    hand_over(context, file, lines, &decode).await?;
    Ok((count, whole))
}

async fn hand_over(context: &Arc<Context>, file: &File, lines: Vec<Line>, decode: &Arc<Decode>) -> Result<(), Error> {
    let (context, file, decode) = (Arc::clone(context), file.clone(), Arc::clone(decode));
    context.progress.update(|progress| progress.lines += lines.len() as u64);
    blocking(move || decode(&context, &file, lines)).await
}

/// Fewer lines than announced are a loss; more are only a wrong count (rule 56).
fn check_count(file: &File, streamed: Streamed) -> Result<Streamed, Error> {
    match file.count {
        Some(expected) if streamed.lines < expected => {
            Err(Error::TooFewLines { file: file.name.clone(), expected, found: streamed.lines })
        }
        Some(expected) if streamed.lines > expected => {
            tracing::warn!(
                file = file.name,
                expected,
                found = streamed.lines,
                "the file has more lines than the manifest announced"
            );
            Ok(streamed)
        }
        _ => Ok(streamed),
    }
}
