//! Writing: a decision becomes data files, deletion vectors and the actions that name them. Nothing is committed here.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{BooleanArray, RecordBatch, new_null_array},
    compute::filter_record_batch,
    error::ArrowError,
};
use deltalake::kernel::{Action, Add};
use futures::StreamExt as _;
use roaring::RoaringBitmap;
use serde_json::json;
use tokio::runtime::Handle;

use crate::table::{
    ChangeSet, Error, Table, UpdateMode,
    change_set::entry::ChunkIndex,
    commit::remove,
    data_file::ROW_GROUP_BYTES,
    data_file::deletion_vector::{self, RowSet},
    data_file::partitioned::{PartitionFilter, PartitionedFiles},
    data_file::rolling::{DataFiles, FileTarget},
    data_file::stored::StoredFile,
    date_partition::{DatePartition, PartitionKey, keys},
    parallel::{cores, in_parallel},
    properties::ENABLE_DELETION_VECTORS,
    upsert::change_feed::{Feed, Images},
    upsert::decide::Decision,
};

/// A file that loses rows.
struct Touched<'files> {
    stored: &'files StoredFile,
    /// Is it in the log already? Else it was written by this run.
    committed: bool,
    rows: u64,
    /// All that are dead now.
    dead: RowSet,
}

/// Of a file with more dead rows than this, readers read too much in vain.
const MOST_DEAD_PERCENT: u64 = 30;
/// Fewer chunks of a change set than this become one file: two small ones serve nobody.
const CHUNKS_PER_WRITER: usize = 8;

/// Partitions that one thread writes side by side.
const PARTITIONS_PER_LOT: usize = 16;

/// What all threads together have of row groups that are not full yet; but each may have a few megabytes.
const ROW_GROUPS_BYTES: usize = 128 * 1024 * 1024;
const LEAST_ROW_GROUP_BYTES: usize = 8 * 1024 * 1024;

/// What one thread writes.
enum Unit<'files> {
    Survivors(&'files Touched<'files>),
    Changes(&'files Lot),
    Images(&'files Feed, Images<'files>),
}

impl Table {
    /// Writes what the decision asks for, and says what goes and what comes. Blocks.
    pub(in crate::table) async fn write(&self, changes: &ChangeSet, decision: &Decision) -> Result<Vec<Action>, Error> {
        let mut touched = Vec::new();
        for (file, dead) in &decision.dead {
            let stored = decision.file(*file);
            let rows = stored.row_count().await.map_err(|error| self.failed(error))?;
            touched.push(Touched { stored, committed: true, rows, dead: dead | &stored.dead });
        }
        let first_load = changes.files();
        for (chunk, stored) in first_load.iter().flatten() {
            let rows = stored.row_count().await.map_err(|error| self.failed(error))?;
            let mut dead = RowSet::new();
            dead.insert_range(0..rows);
            if let Some(written) = decision.write.get(chunk) {
                dead -= written;
            }
            touched.push(Touched { stored, committed: false, rows, dead });
        }
        let vectors = self.writes_vectors()?;
        let (survivors, marked): (Vec<_>, Vec<_>) =
            touched.into_iter().partition(|touched| touched.is_rewritten(vectors, decision));
        let mut units: Vec<_> = survivors.iter().map(Unit::Survivors).collect();
        let lots = self.lots(changes, decision, self.partitioned_by())?;
        if first_load.is_none() {
            units.extend(lots.iter().map(Unit::Changes));
        }
        if let Some(feed) = decision.told() {
            let images = decision.losing_files().map(Images::Before);
            let images = images.chain(lots.iter().map(Images::After));
            units.extend(images.map(|images| Unit::Images(feed, images)));
        }
        let target = FileTarget { row_group_bytes: row_group_bytes(cores().min(units.len())), ..self.target()? };
        let runtime = Handle::current();
        let written = in_parallel(&units, |unit| match unit {
            Unit::Survivors(touched) => runtime.block_on(self.write_survivors(&target, touched)),
            Unit::Changes(lot) => runtime.block_on(self.write_changes(&target, changes, decision, lot)),
            Unit::Images(feed, images) => runtime.block_on(self.write_images(&target, changes, decision, feed, images)),
        })?;
        let mut actions = self.mark(marked).await?;
        actions.extend(
            survivors.iter().filter(|touched| touched.committed).map(|touched| Action::Remove(remove(touched.stored))),
        );
        actions.extend(written.into_iter().flatten());
        Ok(actions)
    }

    /// Names the dead rows of files that stay. All vectors go into one file.
    async fn mark(&self, marked: Vec<Touched<'_>>) -> Result<Vec<Action>, Error> {
        let mut actions = Vec::new();
        let mut with_dead = Vec::new();
        for touched in marked {
            if touched.committed {
                actions.push(Action::Remove(remove(touched.stored)));
            }
            if touched.dead.is_empty() {
                actions.push(Action::Add(touched.stored.add.clone()));
            } else if touched.dead.len() < touched.rows {
                with_dead.push(touched);
            }
        }
        if with_dead.is_empty() {
            return Ok(actions);
        }
        let vectors: Vec<_> = with_dead.iter().map(|touched| touched.dead.clone()).collect();
        let store = self.delta.object_store();
        let descriptors = deletion_vector::write(store.as_ref(), &vectors).await.map_err(|error| self.failed(error))?;
        actions.extend(with_dead.into_iter().zip(descriptors).map(|(touched, descriptor)| {
            let add = &touched.stored.add;
            Action::Add(Add {
                deletion_vector: Some(descriptor),
                stats: Some(loose(add.stats.as_deref(), touched.rows)),
                data_change: true,
                ..add.clone()
            })
        }));
        Ok(actions)
    }

    /// The rows of a file that stay, in a file of the same columns. In memory are a row group of the old file as it lies on
    /// the disk, a batch of its rows, and a row group of the new one as far as it has grown.
    async fn write_survivors(&self, target: &FileTarget, touched: &Touched<'_>) -> Result<Vec<Action>, Error> {
        let footer = touched.stored.footer().await.map_err(|error| self.failed(error))?;
        let columns = footer.schema().fields().iter().map(|field| field.name().clone()).collect();
        let mut files = DataFiles::new(target.clone(), touched.stored.partition(), columns);
        let mut batches = self.rows_without(touched.stored, footer, &touched.dead)?;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let batch =
                if touched.stored.own { batch } else { without_hash(&batch).map_err(|error| self.failed(error))? };
            if batch.num_rows() > 0 {
                files.write(&batch).await.map_err(|error| self.failed(error))?;
            }
        }
        let written = files.finish().await.map_err(|error| self.failed(error))?;
        Ok(written.into_iter().map(Action::Add).collect())
    }

    /// The chosen rows of the change set.
    async fn write_changes(
        &self,
        target: &FileTarget,
        changes: &ChangeSet,
        decision: &Decision,
        lot: &Lot,
    ) -> Result<Vec<Action>, Error> {
        let filter = PartitionFilter::Only(lot.partitions.clone());
        let mut files = PartitionedFiles::new(target.clone(), changes.filled_columns(), filter);
        for chunk in &lot.chunks {
            let Some(chosen) = decision.write.get(chunk) else { continue };
            let rows = self.chosen_rows(changes, *chunk, chosen)?;
            files.write(&rows).await.map_err(|error| self.failed(error))?;
        }
        let written = files.finish().await.map_err(|error| self.failed(error))?;
        Ok(written.into_iter().map(Action::Add).collect())
    }

    /// The chosen rows of a chunk of the change set, in order.
    pub(in crate::table) fn chosen_rows(
        &self,
        changes: &ChangeSet,
        chunk: ChunkIndex,
        chosen: &RowSet,
    ) -> Result<RecordBatch, Error> {
        let rows = changes.batch(chunk)?;
        let all = rows.num_rows() as u64;
        if chosen.len() == all {
            return Ok(rows);
        }
        let chosen: BooleanArray = (0..all).map(|row| Some(chosen.contains(row))).collect();
        filter_record_batch(&rows, &chosen).map_err(|error| self.failed(error))
    }

    /// Deletion vectors, where we are asked for them and the table has not been told otherwise by others since.
    fn writes_vectors(&self) -> Result<bool, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let enabled = snapshot.metadata().configuration().get(ENABLE_DELETION_VECTORS).is_some_and(|on| on == "true");
        Ok(self.root.update_mode == UpdateMode::DeletionVectors && enabled)
    }
}

/// Memory must not grow with the cores.
fn row_group_bytes(threads: usize) -> usize {
    (ROW_GROUPS_BYTES / threads.max(1)).clamp(LEAST_ROW_GROUP_BYTES, ROW_GROUP_BYTES)
}

impl Touched<'_> {
    fn is_rewritten(&self, vectors: bool, decision: &Decision) -> bool {
        let some_live = !self.dead.is_empty() && self.dead.len() < self.rows;
        // Not every reader of the feed looks at the vector of a file that is new.
        let is_read_whole = !self.committed && decision.is_told_by_data_files();
        some_live && (!vectors || is_read_whole || self.dead.len() * 100 > self.rows * MOST_DEAD_PERCENT)
    }
}

/// Rows that others wrote may carry a hash of what they were before; in a file of ours it would be believed.
fn without_hash(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = rows.schema();
    let columns = schema.fields().iter().zip(rows.columns()).map(|(field, column)| match field.name().as_str() {
        "_sync_hash" => new_null_array(field.data_type(), rows.num_rows()),
        _ => Arc::clone(column),
    });
    RecordBatch::try_new(Arc::clone(&schema), columns.collect())
}

/// The statistics of a file with dead rows: its bounds may be those of rows that nobody sees.
fn loose(stats: Option<&str>, rows: u64) -> String {
    let mut stats = stats.and_then(|stats| serde_json::from_str(stats).ok()).unwrap_or_else(|| json!({}));
    if let Some(stats) = stats.as_object_mut() {
        stats.insert("numRecords".to_owned(), rows.into());
        stats.insert("tightBounds".to_owned(), false.into());
    }
    stats.to_string()
}

/// Rows of the change set that one thread writes: those of these chunks that are of these partitions.
pub(in crate::table) struct Lot {
    pub chunks: Vec<ChunkIndex>,
    pub partitions: BTreeSet<PartitionKey>,
}

impl Table {
    /// All rows that are to be written, for as many threads as that is worth. Where there are partitions, each belongs to
    /// one lot, which reads the chunks that have rows of it: more reading, but no small files.
    fn lots(&self, changes: &ChangeSet, decision: &Decision, by: Option<&DatePartition>) -> Result<Vec<Lot>, Error> {
        let chunks: Vec<_> = decision.write.keys().copied().collect();
        let writers = (chunks.len() / CHUNKS_PER_WRITER).clamp(1, cores());
        let shares: Vec<_> = chunks.chunks(chunks.len().div_ceil(writers).max(1)).collect();
        if by.is_none() {
            let whole = |chunks: &&[ChunkIndex]| Lot { chunks: chunks.to_vec(), partitions: BTreeSet::from([None]) };
            return Ok(shares.iter().map(whole).collect());
        }
        let keys_of = |chunk: &ChunkIndex| {
            let Some(chosen) = decision.write.get(chunk) else { return Ok((*chunk, BTreeSet::new())) };
            let keys = keys(&self.chosen_rows(changes, *chunk, chosen)?, by).map_err(|error| self.failed(error))?;
            Ok((*chunk, keys))
        };
        // Which chunks have rows of a partition, as a bitmap: days make many of both.
        let mut chunks_of: BTreeMap<PartitionKey, RoaringBitmap> = BTreeMap::new();
        for (chunk, keys) in in_parallel(&chunks, keys_of)? {
            for key in keys {
                chunks_of.entry(key).or_default().insert(chunk.0);
            }
        }
        let chunks_of: Vec<_> = chunks_of.into_iter().collect();
        let lots = chunks_of.chunks(chunks_of.len().div_ceil(writers).clamp(1, PARTITIONS_PER_LOT));
        let lot = |of: &[(PartitionKey, RoaringBitmap)]| {
            let chunks = of.iter().fold(RoaringBitmap::new(), |all, (_, chunks)| all | chunks);
            let chunks = chunks.iter().map(ChunkIndex).collect();
            Lot { chunks, partitions: of.iter().map(|(key, _)| *key).collect() }
        };
        Ok(lots.map(lot).collect())
    }
}
