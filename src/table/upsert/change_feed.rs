//! The change data feed: what a commit did to each row, in files of its own for those who follow the table.
//!
//! A commit has change files or it has none: readers of one that has any look at nothing else, so its inserts are in them
//! too. A commit that only brings rows has none, for its data files say the same, as long as no row in them is dead.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
};

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
use deltalake::kernel::{Action, Add, AddCDCFile};
use futures::{Stream, StreamExt as _};

use crate::table::{
    ChangeSet, Error, Table,
    change_set::entry::ChunkIndex,
    data_file::deletion_vector::RowSet,
    data_file::partitioned::{PartitionFilter, PartitionedFiles},
    data_file::rolling::{DataFiles, FileKind, FileTarget},
    data_file::stored::{FileIndex, StoredFile},
    parallel::cores,
    properties::ENABLE_CHANGE_DATA_FEED,
    upsert::decide::Decision,
    upsert::write::Lot,
};

/// What readers of the feed tell apart, and a table without one need not.
#[derive(Default)]
pub(in crate::table) struct Feed {
    /// The dead rows of resources that are gone, by file. Other dead rows were replaced.
    pub deleted: BTreeMap<FileIndex, RowSet>,
    /// The rows of the change set that replace others, by chunk.
    pub updated: BTreeMap<ChunkIndex, RowSet>,
}

/// What one change file tells.
pub(in crate::table) enum Images<'lots> {
    /// The rows that these files lose.
    Before(Vec<FileIndex>),
    /// The rows that are written.
    After(&'lots Lot),
}

/// Dead rows for which a change file of their own is worth while.
const ROWS_PER_WRITER: u64 = 10_000;
/// The name of the protocol.
const CHANGE_TYPE: &str = "_change_type";

impl Decision {
    /// What must be told in change files; nothing where readers see it in the data files.
    pub(in crate::table) fn told(&self) -> Option<&Feed> {
        self.feed.as_ref().filter(|_| !self.dead.is_empty())
    }

    /// Will readers of the feed take every row that the data files of the commit bring for an insert?
    pub(in crate::table) fn is_told_by_data_files(&self) -> bool {
        self.feed.is_some() && self.dead.is_empty()
    }

    /// The files that lose rows, for as many threads as that is worth.
    pub(in crate::table) fn losing_files(&self) -> impl Iterator<Item = Vec<FileIndex>> {
        let rows: u64 = self.dead.values().map(RowSet::len).sum();
        let writers = usize::try_from(rows / ROWS_PER_WRITER).unwrap_or(usize::MAX).clamp(1, cores());
        let mut files: Vec<_> = self.dead.keys().copied().collect();
        files.sort_by_cached_key(|file| self.file(*file).partition());
        let length = files.len().div_ceil(writers).max(1);
        files.chunks(length).map(<[FileIndex]>::to_vec).collect::<Vec<_>>().into_iter()
    }
}

impl Table {
    /// Whether those who follow the table are promised change files: by the table itself, whoever decided it.
    pub(in crate::table) fn records_changes(&self) -> Result<bool, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let stated = snapshot.metadata().configuration().get(ENABLE_CHANGE_DATA_FEED);
        Ok(stated.is_some_and(|stated| stated.eq_ignore_ascii_case("true")))
    }

    /// Writes change files; never more than a batch of rows and a row group of the file in memory.
    pub(in crate::table) async fn write_images(
        &self,
        target: &FileTarget,
        changes: &ChangeSet,
        decision: &Decision,
        feed: &Feed,
        images: &Images<'_>,
    ) -> Result<Vec<Action>, Error> {
        let target =
            FileTarget { kind: FileKind::Changes, columns: with_change_type(&target.columns), ..target.clone() };
        let written = match images {
            Images::Before(files) => self.write_before(&target, &changes.filled_columns(), decision, feed, files).await,
            Images::After(lot) => self.write_after(target, changes, decision, feed, lot).await,
        };
        Ok(written?.into_iter().map(change_file).collect())
    }

    /// The rows that die; a change file is of the partition that they were in.
    async fn write_before(
        &self,
        target: &FileTarget,
        filled: &BTreeSet<String>,
        decision: &Decision,
        feed: &Feed,
        files: &[FileIndex],
    ) -> Result<Vec<Add>, Error> {
        let stored = |file: &FileIndex| decision.file(*file);
        let mut written = Vec::new();
        for same in files.chunk_by(|one, other| stored(one).partition() == stored(other).partition()) {
            let partition = same.first().map(|file| stored(file).partition()).unwrap_or_default();
            let mut grow = DataFiles::new(target.clone(), partition, filled.clone());
            for file in same {
                let (Some(dead), deleted) = (decision.dead.get(file), feed.deleted.get(file)) else { continue };
                let change = |row| if has(deleted, row) { "delete" } else { "update_preimage" };
                let mut batches = pin!(self.told_rows(stored(file), dead, change).await?);
                while let Some(batch) = batches.next().await {
                    grow.write(&batch?).await.map_err(|error| self.failed(error))?;
                }
            }
            written.extend(grow.finish().await.map_err(|error| self.failed(error))?);
        }
        Ok(written)
    }

    /// The rows that are written.
    async fn write_after(
        &self,
        target: FileTarget,
        changes: &ChangeSet,
        decision: &Decision,
        feed: &Feed,
        lot: &Lot,
    ) -> Result<Vec<Add>, Error> {
        let first_load: BTreeMap<_, _> = changes.files().into_iter().flatten().collect();
        let filter = PartitionFilter::Only(lot.partitions.clone());
        let mut files = PartitionedFiles::new(target, changes.filled_columns(), filter);
        for chunk in &lot.chunks {
            let (Some(chosen), updated) = (decision.write.get(chunk), feed.updated.get(chunk)) else { continue };
            let change = |row| if has(updated, row) { "update_postimage" } else { "insert" };
            if let Some(stored) = first_load.get(chunk) {
                let mut batches = pin!(self.told_rows(stored, chosen, change).await?);
                while let Some(batch) = batches.next().await {
                    files.write(&batch?).await.map_err(|error| self.failed(error))?;
                }
            } else {
                let rows = self.chosen_rows(changes, *chunk, chosen)?;
                let rows = told(&rows, chosen.iter().map(change)).map_err(|error| self.failed(error))?;
                files.write(&rows).await.map_err(|error| self.failed(error))?;
            }
        }
        files.finish().await.map_err(|error| self.failed(error))
    }

    /// The rows at these places, with what `change` says of each.
    async fn told_rows(
        &self,
        stored: &StoredFile,
        places: &RowSet,
        change: impl Fn(u64) -> &'static str,
    ) -> Result<impl Stream<Item = Result<RecordBatch, Error>>, Error> {
        let batches = self.rows_of(stored, places).await?;
        let mut changes = places.clone().into_iter().map(change);
        Ok(batches.map(move |batch| {
            let batch = batch?;
            told(&batch, changes.by_ref().take(batch.num_rows())).map_err(|error| self.failed(error))
        }))
    }
}

fn has(rows: Option<&RowSet>, row: u64) -> bool {
    rows.is_some_and(|rows| rows.contains(row))
}

/// The rows, each with what happened to it.
fn told(rows: &RecordBatch, changes: impl Iterator<Item = &'static str>) -> Result<RecordBatch, ArrowError> {
    let changes = StringArray::from_iter_values(changes);
    let columns = rows.columns().iter().cloned().chain([Arc::new(changes) as _]);
    RecordBatch::try_new(with_change_type(&rows.schema()), columns.collect())
}

fn with_change_type(columns: &SchemaRef) -> SchemaRef {
    let change_type = Arc::new(Field::new(CHANGE_TYPE, DataType::Utf8, true));
    Arc::new(Schema::new(columns.fields().iter().cloned().chain([change_type]).collect::<Vec<_>>()))
}

/// It is no part of the table's data, so it never changes them.
fn change_file(file: Add) -> Action {
    let Add { path, size, partition_values, .. } = file;
    Action::Cdc(AddCDCFile { path, size, partition_values, data_change: false, tags: None })
}
