//! The fold of the table of tombstones: small files are merged into few, and a tombstone is dropped that another one of
//! the same resource covers. The table says the same of each resource before and after.
//!
//! The rows that stay are written as they were, so for readers this is a compaction like any other. Files are sorted by
//! `id` and stay so: they are merged row by row, with one batch and one row group of each in memory.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
};

use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, Int64Array, RecordBatch, StringArray},
    compute::{cast, interleave_record_batch},
    datatypes::{DataType, Int64Type, TimeUnit},
    error::ArrowError,
};
use futures::{StreamExt as _, stream::BoxStream};

use crate::table::{
    Error, Table,
    data_file::fill::fit,
    data_file::rolling::DataFiles,
    data_file::stored::StoredFile,
    tombstones::{self, Tombstone},
};

/// Rows that are written at once.
const BATCH_ROWS: usize = 8192;

/// Merges the files into `written`; returns how many rows were dropped because another one covers them.
pub(super) async fn fold(table: &Table, files: &[&StoredFile], written: &mut DataFiles) -> Result<u64, Error> {
    let mut rows = Merge::new(table, files).await?;
    let (mut dropped, mut kept, mut of_resource) = (0, Vec::new(), Vec::<MergedRow>::new());
    while let Some(row) = rows.next().await? {
        if of_resource.first().is_some_and(|known| known.key() != row.key()) {
            kept.append(&mut of_resource);
            if kept.len() >= BATCH_ROWS {
                write_rows(table, &std::mem::take(&mut kept), written).await?;
            }
        }
        dropped += keep(&mut of_resource, row);
    }
    kept.append(&mut of_resource);
    write_rows(table, &kept, written).await?;
    Ok(dropped)
}

async fn write_rows(table: &Table, rows: &[MergedRow], written: &mut DataFiles) -> Result<(), Error> {
    if rows.is_empty() {
        return Ok(());
    }
    let rows = collected(rows).map_err(|error| table.failed(error))?;
    written.write(&rows).await.map_err(|error| table.failed(error))?;
    Ok(())
}

/// Adds a row to the needed rows of its resource; returns how many rows are not needed, itself included.
fn keep(of_resource: &mut Vec<MergedRow>, row: MergedRow) -> u64 {
    let before = of_resource.len() as u64 + 1;
    let new = row.tombstone();
    if !of_resource.iter().any(|known| known.tombstone().covers(&new)) {
        of_resource.retain(|known| !new.covers(&known.tombstone()));
        of_resource.push(row);
    }
    before - of_resource.len() as u64
}

/// What one row of the table says of its resource.
#[derive(Clone, Copy, Debug)]
struct TombstoneRow {
    tombstone: Tombstone,
    /// Readers that follow the table ask for the rows that were written since a run.
    run_started_micros: Option<i64>,
}

impl TombstoneRow {
    /// May the other row be dropped? Only if this one stops every late version that the other stops, and readers that
    /// filter by `_sync_at` still see it. As in [`Tombstones`](crate::table::tombstones::Tombstones), a deletion with a
    /// time of the server cannot replace one without, nor the other way round.
    fn covers(&self, other: &Self) -> bool {
        let (one, two) = (&self.tombstone, &other.tombstone);
        one.deleted_at_micros.is_some() == two.deleted_at_micros.is_some()
            && one.deleted_at_micros >= two.deleted_at_micros
            && one.transaction_time_micros >= two.transaction_time_micros
            && self.run_started_micros >= other.run_started_micros
    }
}

/// Some rows of a file, with the columns that the fold compares.
struct TombstoneBatch {
    rows: RecordBatch,
    ids: StringArray,
    sources: StringArray,
    deleted_at: Int64Array,
    transaction_times: Int64Array,
    run_started: Int64Array,
}

impl TombstoneBatch {
    fn try_new(rows: RecordBatch) -> Result<Self, ArrowError> {
        let column = |name: &str, data_type: &DataType| -> Result<ArrayRef, ArrowError> {
            let column = rows.column_by_name(name);
            cast(column.ok_or_else(|| ArrowError::SchemaError(format!("no column {name}")))?, data_type)
        };
        let text = |name: &str| Ok::<_, ArrowError>(column(name, &DataType::Utf8)?.as_string::<i32>().clone());
        let micros = |name: &str| {
            let instants = column(name, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
            Ok::<_, ArrowError>(cast(&instants, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
        };
        Ok(Self {
            ids: text("id")?,
            sources: text("_sync_source")?,
            deleted_at: micros("deleted_at")?,
            transaction_times: micros("_sync_transaction_time")?,
            run_started: micros("_sync_at")?,
            rows,
        })
    }
}

/// One row: its batch and its index there.
#[derive(Clone)]
struct MergedRow {
    batch: Arc<TombstoneBatch>,
    index: usize,
}

impl MergedRow {
    fn key(&self) -> (Option<&str>, Option<&str>) {
        (text(&self.batch.ids, self.index), text(&self.batch.sources, self.index))
    }

    fn tombstone(&self) -> TombstoneRow {
        let micros = |column: &Int64Array| column.is_valid(self.index).then(|| column.value(self.index));
        TombstoneRow {
            tombstone: Tombstone {
                deleted_at_micros: micros(&self.batch.deleted_at),
                transaction_time_micros: micros(&self.batch.transaction_times),
            },
            run_started_micros: micros(&self.batch.run_started),
        }
    }
}

impl PartialEq for MergedRow {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for MergedRow {}

impl PartialOrd for MergedRow {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for MergedRow {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

fn text(column: &StringArray, row: usize) -> Option<&str> {
    column.is_valid(row).then(|| column.value(row))
}

/// The rows in one batch.
fn collected(rows: &[MergedRow]) -> Result<RecordBatch, ArrowError> {
    let (mut batches, mut known) = (Vec::new(), HashMap::new());
    let indices = rows.iter().map(|row| {
        let batch = *known.entry(Arc::as_ptr(&row.batch)).or_insert_with(|| {
            batches.push(&row.batch.rows);
            batches.len() - 1
        });
        (batch, row.index)
    });
    let indices: Vec<_> = indices.collect();
    interleave_record_batch(&batches, &indices)
}

/// The rows of several files in the order of their ids. If a file is not sorted, the rows of a resource may be
/// separated: those that could not be dropped for that reason are dropped by a later fold.
struct Merge<'table> {
    table: &'table Table,
    files: Vec<BoxStream<'table, Result<RecordBatch, Error>>>,
    /// The next row of each file that has one.
    next: BinaryHeap<Reverse<(MergedRow, usize)>>,
}

impl<'table> Merge<'table> {
    async fn new(table: &'table Table, files: &[&StoredFile]) -> Result<Self, Error> {
        let mut merge = Self { table, files: Vec::new(), next: BinaryHeap::new() };
        for (index, stored) in files.iter().enumerate() {
            merge.files.push(table.rows(stored).await?.boxed());
            merge.read(index).await?;
        }
        Ok(merge)
    }

    async fn next(&mut self) -> Result<Option<MergedRow>, Error> {
        let Some(Reverse((row, file))) = self.next.pop() else { return Ok(None) };
        let following = MergedRow { batch: Arc::clone(&row.batch), index: row.index + 1 };
        if following.index < following.batch.rows.num_rows() {
            self.next.push(Reverse((following, file)));
        } else {
            self.read(file).await?;
        }
        Ok(Some(row))
    }

    /// Reads the next batch of a file.
    async fn read(&mut self, file: usize) -> Result<(), Error> {
        let columns = tombstones::target(self.table)?.columns;
        while let Some(rows) = self.files[file].next().await {
            let rows = rows?;
            if rows.num_rows() > 0 {
                let batch = fit(&rows, &columns).and_then(TombstoneBatch::try_new);
                let batch = Arc::new(batch.map_err(|error| self.table.failed(error))?);
                self.next.push(Reverse((MergedRow { batch, index: 0 }, file)));
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
