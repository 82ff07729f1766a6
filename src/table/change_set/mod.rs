//! A change set: what one run receives for one resource type.
//!
//! Several workers push at the same time. Neither their order nor repetition changes which row of an id wins. The rows
//! are in a [`Spool`], or, on a first load, in what will be data files of the table. The index of their ids is in
//! memory as far as it fits there: a row takes at most 69 bytes until the change set is read, and then about 145 more
//! for each id of the shard that is loaded.

/// One batch of rows as bytes.
pub mod batch;
/// Stored rows that may have an id of the change set.
pub mod candidates;
/// Stored rows that have the content of a received row.
pub mod digests;
/// What the index keeps of a row or a deletion.
pub mod entry;
/// Rows for an empty table, written into data files at once.
pub mod first_load;
/// How much memory each change set may take.
pub mod memory_budget;
/// The index, and the winner of each id.
pub mod newest;
/// Encrypted blocks in memory, then on the disk.
pub mod spool;
/// Rows that wait to be divided by partition.
pub mod window;

use std::{
    collections::BTreeSet,
    fs::File,
    path::Path,
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use chrono::{DateTime, Utc};

use crate::fhir::RowKey;
use crate::table::{
    Error, Table,
    change_set::batch::SpooledBatch,
    change_set::candidates::Candidates,
    change_set::digests::Digests,
    change_set::entry::{ChunkIndex, IdHash, IdHasher, IndexEntry, NewEntry, Position, RowLocation},
    change_set::first_load::{FirstLoad, MIN_WRITER_BYTES},
    change_set::memory_budget::MemoryBudget,
    change_set::newest::buckets::{BUCKETS, Buckets},
    change_set::newest::{Index, Limits, Shard},
    change_set::spool::{Block, Spool},
    change_set::window::{DividedRows, Undivided, Window},
    data_file::fill::narrow,
    data_file::rolling::FileTarget,
    data_file::stored::StoredFile,
    date_partition::PartitionKey,
    ids::Ids,
};

pub use self::entry::OutputIndex;

pub struct ChangeSet {
    schema: SchemaRef,
    hasher: IdHasher,
    rows: Rows,
    /// Rows and deletions that were pushed.
    received: AtomicU64,
    held: RwLock<Held>,
    /// How often a chunk was decoded.
    #[cfg(test)]
    pub decoded: AtomicU64,
}

/// Where the rows go.
enum Rows {
    Spool,
    /// Into the spool, divided by partition.
    Partitions(Window),
    DataFiles(FirstLoad),
}

struct Held {
    spool: Spool,
    index: Index,
    chunks: Vec<Chunk>,
    /// Which columns of the schema are not null in all rows so far.
    filled: BTreeSet<usize>,
    ids: Ids,
}

/// Some rows in the spool.
struct Chunk {
    block: Block,
    /// The partitions of the rows; `None` where they were not divided.
    partitions: Option<Vec<PartitionKey>>,
}

/// Does a change set for this table write its rows into data files as they arrive? Yes while the table is empty and not
/// partitioned: then most of what is received becomes part of it.
pub async fn is_first_load(table: &Table) -> Result<bool, Error> {
    Ok(may_be_first_load(table) && table.files().await?.is_empty())
}

/// A larger window divides rows hardly faster.
const MAX_WINDOW_BYTES: usize = 32 * 1024 * 1024;
/// Each chunk says of every field of a column how long it is, which takes some KB.
const MIN_CHUNK_ROWS: usize = 32;

/// Each partition has files of its own, and too many of them would be open at the same time.
fn may_be_first_load(table: &Table) -> bool {
    table.partitioned_by().is_none()
}

impl ChangeSet {
    /// An empty change set for a table that has rows: those of the change set, which have `schema`, wait until the
    /// commit. See [`ChangeSet::new`].
    pub fn for_rows(table: &Table, schema: &SchemaRef, budget: MemoryBudget, spool_folder: &Path) -> Self {
        let Some(by) = table.partitioned_by() else { return Self::new(schema, budget, spool_folder) };
        let window = Window::new(by.clone(), budget.window_bytes.min(MAX_WINDOW_BYTES), MIN_CHUNK_ROWS);
        Self::new(schema, budget, spool_folder).divided(window)
    }

    /// The same, but rows wait in the window until they are divided by partition.
    #[must_use]
    pub fn divided(self, window: Window) -> Self {
        Self { rows: Rows::Partitions(window), ..self }
    }

    /// The same for a table that is empty, or that an earlier change set of the same first load has written: most of
    /// what is received is not in it yet.
    pub fn for_first_load(
        table: &Table,
        schema: &SchemaRef,
        budget: MemoryBudget,
        spool_folder: &Path,
    ) -> Result<Self, Error> {
        if budget.first_load_bytes < MIN_WRITER_BYTES || !may_be_first_load(table) {
            return Ok(Self::for_rows(table, schema, budget, spool_folder));
        }
        let changes = Self::new(schema, MemoryBudget { waiting_bytes: 0, ..budget }, spool_folder);
        Ok(changes.of_first_load(table.target()?, budget.first_load_bytes))
    }

    /// An empty change set whose rows have `schema`. What its budget has no room for goes, encrypted, to an unnamed
    /// file in `folder`, which is removed when the change set is dropped or the process ends.
    pub fn new(schema: &SchemaRef, budget: MemoryBudget, folder: &Path) -> Self {
        let MemoryBudget { waiting_bytes, entries_bytes, shard_bytes, ids_bytes, .. } = budget;
        let limits = Limits { entries_bytes, shard_bytes };
        Self::with(schema, limits, Ids::within(ids_bytes), Spool::new(waiting_bytes, folder))
    }

    /// A change set that spills all the time, and never has more than a few ids in one shard.
    #[cfg(test)]
    pub fn tiny(schema: &SchemaRef, folder: &Path) -> Self {
        Self::with(schema, Limits { entries_bytes: 200, shard_bytes: 400 }, Ids::default(), Spool::new(500, folder))
    }

    fn with(schema: &SchemaRef, limits: Limits, ids: Ids, spool: Spool) -> Self {
        let held = Held { spool, index: Index::new(limits), chunks: Vec::new(), filled: BTreeSet::new(), ids };
        let (hasher, received) = (IdHasher::new(), AtomicU64::new(0));
        Self {
            schema: schema.clone(),
            hasher,
            rows: Rows::Spool,
            received,
            held: RwLock::new(held),
            #[cfg(test)]
            decoded: AtomicU64::new(0),
        }
    }

    /// The same, but rows are written into data files at once, and only entries of the index are spooled.
    #[must_use]
    pub fn of_first_load(self, target: FileTarget, memory_bytes: usize) -> Self {
        Self { rows: Rows::DataFiles(FirstLoad::new(target, memory_bytes)), ..self }
    }

    /// Takes the rows of some lines of the file `output`; `keys` has one key for each of `rows`. Blocks on the disk.
    pub fn push(&self, output: OutputIndex, keys: Vec<RowKey>, rows: RecordBatch) -> Result<(), Error> {
        if keys.is_empty() {
            return Ok(());
        }
        let count = keys.len();
        self.write().ids.extend(keys.iter().map(|key| key.id.as_str()));
        let entry = |RowKey { id, version, hash, line }| {
            (self.hasher.of(&id), NewEntry { version, hash, position: Position { output, line } })
        };
        let entries: Vec<_> = keys.into_iter().map(entry).collect();
        let first = match &self.rows {
            Rows::Spool => self.spool(&rows, None)?,
            Rows::Partitions(window) => {
                let narrow = narrow(&rows).map_err(Error::spool)?;
                drop(rows);
                // Before they are divided: rows that are lost on the way make the counts of the commit wrong.
                self.count(count);
                return window.add(narrow, entries, |full| self.divide(window, full));
            }
            Rows::DataFiles(first_load) => first_load.write(&rows)?,
        };
        // Frees the memory before waiting for other workers at the lock.
        drop(rows);
        self.count(count);
        self.index(first, entries)
    }

    /// Keeps the rows of a full window, in chunks by their partitions.
    fn divide(&self, window: &Window, undivided: Undivided) -> Result<(), Error> {
        let chunks = self.read().chunks.len();
        let divided = window.divide(&self.schema, undivided, chunks).map_err(Error::spool)?;
        for DividedRows { partitions, rows, entries } in divided {
            let first = self.spool(&rows, Some(partitions))?;
            self.index(first, entries)?;
        }
        Ok(())
    }

    /// The entries of rows that are one after the other, the first of them here.
    fn index(&self, first: RowLocation, entries: Vec<(IdHash, NewEntry)>) -> Result<(), Error> {
        let Held { spool, index, .. } = &mut *self.write();
        for (row, (id_hash, entry)) in (first.row..).zip(entries) {
            index.push(spool, id_hash, &entry.at(RowLocation { row, ..first }))?;
        }
        Ok(())
    }

    /// Keeps the rows as a chunk of their own; the location of the first of them.
    fn spool(&self, rows: &RecordBatch, partitions: Option<Vec<PartitionKey>>) -> Result<RowLocation, Error> {
        let SpooledBatch { columns, block } = SpooledBatch::encode(&self.schema, rows).map_err(Error::spool)?;
        let Held { spool, chunks, filled, .. } = &mut *self.write();
        let chunk = ChunkIndex(u32::try_from(chunks.len()).map_err(Error::spool)?);
        chunks.push(Chunk { block: spool.append(&block)?, partitions });
        filled.extend(columns);
        Ok(RowLocation { chunk, row: 0 })
    }

    /// Are rows written into data files as they arrive?
    pub fn is_first_load(&self) -> bool {
        matches!(self.rows, Rows::DataFiles(_))
    }

    /// Finishes the open data files of a first load, and divides rows that wait for it. More rows may be pushed
    /// afterwards. Blocks, in the context of a runtime.
    pub fn flush(&self) -> Result<(), Error> {
        match &self.rows {
            Rows::Spool => Ok(()),
            Rows::Partitions(window) => window.take().into_iter().try_for_each(|half| self.divide(window, half)),
            Rows::DataFiles(first_load) => first_load.flush(),
        }
    }

    /// Deletes the data files that no commit will name. If that fails, the vacuum deletes them later.
    pub async fn abandon(&self) {
        if let Rows::DataFiles(first_load) = &self.rows {
            first_load.abandon().await;
        }
    }

    /// On a first load, the data files of the rows, with the indices of the chunks; `None` where the rows are in the
    /// spool.
    pub fn files(&self) -> Option<Vec<(ChunkIndex, StoredFile)>> {
        match &self.rows {
            Rows::DataFiles(first_load) => Some(first_load.files()),
            Rows::Spool | Rows::Partitions(_) => None,
        }
    }

    /// Takes an entry of a `deleted` bundle. May block on the disk.
    pub fn delete(&self, id: String, at: Option<DateTime<Utc>>) -> Result<(), Error> {
        let id_hash = self.hasher.of(&id);
        self.count(1);
        let Held { spool, index, ids, .. } = &mut *self.write();
        ids.extend(std::iter::once(id.as_str()));
        index.push(spool, id_hash, &IndexEntry::Deletion { id: id.into(), at })
    }

    fn count(&self, received: usize) {
        self.received.fetch_add(received as u64, Ordering::Relaxed);
    }

    /// Rows and deletions taken so far, duplicates included.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The ids of the change set, or their range.
    pub fn ids(&self) -> Ids {
        self.read().ids.clone()
    }

    /// The names of the columns that are not null in all rows so far.
    pub fn filled_columns(&self) -> BTreeSet<String> {
        self.read().filled.iter().map(|index| self.schema.field(*index).name().clone()).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.received() == 0
    }

    /// The winner of each id, in shards that fit into memory one at a time: usually one, and never none. May be called
    /// repeatedly; loading a shard blocks on the disk.
    pub fn shards(&self) -> impl Iterator<Item = Result<Shard, Error>> {
        let spans = self.read().index.spans();
        spans.into_iter().map(|span| {
            let held = self.read();
            held.index.load(&held.spool, &self.hasher, &span)
        })
    }

    /// What finds the stored rows of all shards at once; `None` where there is one shard. It takes as much memory as a
    /// shard, half of it for a filter of all ids, so no shard may be in memory meanwhile. Blocks on the disk.
    pub fn candidates(&self) -> Result<Option<Candidates>, Error> {
        let held = self.read();
        if held.index.spans().len() == 1 {
            return Ok(None);
        }
        let half_bytes = held.index.shard_bytes() / 2;
        let filter = held.index.filter(&held.spool, &self.hasher, half_bytes)?;
        Ok(Some(Candidates::new(filter, held.spool.beside(), half_bytes)))
    }

    /// The ids of the deletions, as often as they were taken, some at a time. Blocks on the disk.
    pub fn deletions(&self) -> impl Iterator<Item = Result<Vec<Box<str>>, Error>> {
        (0..BUCKETS).map(|bucket| {
            let held = self.read();
            held.index.deletions(&held.spool, bucket)
        })
    }

    /// The hash by which a shard knows the id.
    pub fn id_hash(&self, id: &str) -> IdHash {
        self.hasher.of(id)
    }

    /// Empty buckets, with a spool of their own, for what waits while the change set is decided. They take a quarter
    /// of the memory of a shard.
    pub fn buckets(&self) -> (Buckets, Spool) {
        let held = self.read();
        (Buckets::new(held.index.shard_bytes() / 4), held.spool.beside())
    }

    /// What finds the stored rows that are the same as received ones. It takes as much memory as a quarter of a shard.
    pub fn digests(&self) -> Digests {
        let held = self.read();
        Digests::new(held.spool.beside(), held.index.shard_bytes() / 4)
    }

    /// The rows of a spooled chunk, without the columns that are null in all of them. May be called in any
    /// order, repeatedly, and by several threads at the same time. Blocks on the disk.
    pub fn batch(&self, chunk: ChunkIndex) -> Result<RecordBatch, Error> {
        #[cfg(test)]
        self.decoded.fetch_add(1, Ordering::Relaxed);
        let block = {
            let held = self.read();
            let chunk = held
                .chunks
                .get(chunk.0 as usize)
                .ok_or_else(|| Error::spool("there is no such batch of received rows"))?;
            held.spool.read(&chunk.block)?
        };
        SpooledBatch::decode(&self.schema, &block).map_err(Error::spool)
    }

    /// The partitions of the rows of a spooled chunk, if they are known without reading it.
    pub fn partitions(&self, chunk: ChunkIndex) -> Option<Vec<PartitionKey>> {
        self.read().chunks.get(chunk.0 as usize)?.partitions.clone()
    }

    /// The spooled chunks, for [`Self::batch`].
    pub fn chunks(&self) -> impl Iterator<Item = ChunkIndex> {
        let chunks = u32::try_from(self.read().chunks.len()).unwrap_or(u32::MAX);
        (0..chunks).map(ChunkIndex)
    }

    fn read(&self) -> RwLockReadGuard<'_, Held> {
        self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Can temporary files be created in the folder? Tried once, before anything is downloaded.
pub fn try_spool_folder(folder: &Path) -> std::io::Result<File> {
    tempfile::tempfile_in(folder)
}

#[cfg(test)]
mod tests;
