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

use super::{
    Maintenance, Step,
    compact::{Weighed, is_dying},
};
use crate::table::{
    Error, Table,
    data_file::rolling::{DataFiles, align},
    data_file::stored::StoredFile,
    tombstones::{self, Tombstone},
};

/// Files that are merged at the same time.
const MOST_FILES: usize = 32;
/// How much larger than the smaller ones together a file may be to be merged with them.
const MOST_TIMES: u64 = 2;
/// Rows that are written at once.
const BATCH_ROWS: usize = 8192;

/// Which files of a partition are merged, by group. From the smallest on, a file joins those before it unless it is far
/// larger than all of them together: so a row is written again only when many others have come, and what stays is few.
pub(super) fn groups(mut files: Vec<Weighed>, maintenance: &Maintenance) -> Vec<Vec<Weighed>> {
    files.sort_by_key(|file| (file.alive_bytes(), file.modified_millis, file.index));
    let mut runs: Vec<Vec<Weighed>> = Vec::new();
    let mut bytes = 0;
    for file in files {
        match runs.last_mut().filter(|run| run.len() < MOST_FILES && file.alive_bytes() <= bytes * MOST_TIMES) {
            Some(run) => {
                bytes += file.alive_bytes();
                run.push(file);
            }
            None => {
                bytes = file.alive_bytes();
                runs.push(vec![file]);
            }
        }
    }
    let become_fewer = |run: &[Weighed]| {
        let bytes: u64 = run.iter().map(Weighed::alive_bytes).sum();
        maintenance.steps.contains(&Step::Compact)
            && bytes.div_ceil(maintenance.target_file_bytes.max(1)) < run.len() as u64
    };
    let dying = |run: &[Weighed]| run.iter().any(|file| is_dying(file, maintenance));
    runs.into_iter().filter(|run| become_fewer(run) || dying(run)).collect()
}

impl Table {
    /// Merges the files; says how many rows went because another one stands for them.
    pub(super) async fn fold(&self, files: &[&StoredFile], written: &mut DataFiles) -> Result<u64, Error> {
        let mut rows = Merge::of(self, files).await?;
        let (mut gone, mut kept, mut of_one) = (0, Vec::new(), Vec::<Row>::new());
        while let Some(row) = rows.next().await? {
            if of_one.first().is_some_and(|known| known.key() != row.key()) {
                kept.append(&mut of_one);
                if kept.len() >= BATCH_ROWS {
                    self.write_rows(&std::mem::take(&mut kept), written).await?;
                }
            }
            gone += keep(&mut of_one, row);
        }
        kept.append(&mut of_one);
        self.write_rows(&kept, written).await?;
        Ok(gone)
    }

    async fn write_rows(&self, rows: &[Row], written: &mut DataFiles) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let rows = collected(rows).map_err(|error| self.failed(error))?;
        written.write(&rows).await.map_err(|error| self.failed(error))?;
        Ok(())
    }
}

/// Adds a row of a resource to those that are needed of it; says how many are not, itself included.
fn keep(of_one: &mut Vec<Row>, row: Row) -> u64 {
    let before = of_one.len() as u64 + 1;
    let new = row.tombstone_row();
    if !of_one.iter().any(|known| known.tombstone_row().covers(&new)) {
        of_one.retain(|known| !new.covers(&known.tombstone_row()));
        of_one.push(row);
    }
    before - of_one.len() as u64
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
    /// filter by `_sync_at` still see it. As in [`Tombstones`](crate::table::tombstones::Tombstones), a deletion with a time
    /// of the server cannot replace one without, nor the other way round.
    fn covers(&self, other: &Self) -> bool {
        let (one, two) = (&self.tombstone, &other.tombstone);
        one.deleted_at_micros.is_some() == two.deleted_at_micros.is_some()
            && one.deleted_at_micros >= two.deleted_at_micros
            && one.transaction_time_micros >= two.transaction_time_micros
            && self.run_started_micros >= other.run_started_micros
    }
}

/// Some rows of a file.
struct Batch {
    rows: RecordBatch,
    ids: StringArray,
    sources: StringArray,
    deleted_at: Int64Array,
    transaction_times: Int64Array,
    run_started: Int64Array,
}

impl Batch {
    fn try_new(rows: RecordBatch) -> Result<Self, ArrowError> {
        let column = |name: &str, of: &DataType| -> Result<ArrayRef, ArrowError> {
            let column = rows.column_by_name(name);
            cast(column.ok_or_else(|| ArrowError::SchemaError(format!("no column {name}")))?, of)
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

/// One row, where it lies.
#[derive(Clone)]
struct Row {
    batch: Arc<Batch>,
    place: usize,
}

impl Row {
    fn key(&self) -> (Option<&str>, Option<&str>) {
        (text(&self.batch.ids, self.place), text(&self.batch.sources, self.place))
    }

    fn tombstone_row(&self) -> TombstoneRow {
        let micros = |of: &Int64Array| of.is_valid(self.place).then(|| of.value(self.place));
        TombstoneRow {
            tombstone: Tombstone {
                deleted_at_micros: micros(&self.batch.deleted_at),
                transaction_time_micros: micros(&self.batch.transaction_times),
            },
            run_started_micros: micros(&self.batch.run_started),
        }
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Row {}

impl PartialOrd for Row {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Row {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

fn text(of: &StringArray, place: usize) -> Option<&str> {
    of.is_valid(place).then(|| of.value(place))
}

/// The rows in one batch.
fn collected(rows: &[Row]) -> Result<RecordBatch, ArrowError> {
    let (mut batches, mut known) = (Vec::new(), HashMap::new());
    let places = rows.iter().map(|row| {
        let batch = *known.entry(Arc::as_ptr(&row.batch)).or_insert_with(|| {
            batches.push(&row.batch.rows);
            batches.len() - 1
        });
        (batch, row.place)
    });
    let places: Vec<_> = places.collect();
    interleave_record_batch(&batches, &places)
}

/// The rows of several files, those of a resource together. Where a file is not sorted, some of them come apart: they are
/// then folded another time.
struct Merge<'table> {
    table: &'table Table,
    files: Vec<BoxStream<'table, Result<RecordBatch, Error>>>,
    /// The next row of each file that has one.
    next: BinaryHeap<Reverse<(Row, usize)>>,
}

impl<'table> Merge<'table> {
    async fn of(table: &'table Table, files: &[&StoredFile]) -> Result<Self, Error> {
        let mut merge = Self { table, files: Vec::new(), next: BinaryHeap::new() };
        for (index, stored) in files.iter().enumerate() {
            merge.files.push(table.rows(stored).await?.boxed());
            merge.read(index).await?;
        }
        Ok(merge)
    }

    async fn next(&mut self) -> Result<Option<Row>, Error> {
        let Some(Reverse((row, file))) = self.next.pop() else { return Ok(None) };
        let following = Row { batch: Arc::clone(&row.batch), place: row.place + 1 };
        if following.place < following.batch.rows.num_rows() {
            self.next.push(Reverse((following, file)));
        } else {
            self.read(file).await?;
        }
        Ok(Some(row))
    }

    /// Goes on with the next batch of a file.
    async fn read(&mut self, file: usize) -> Result<(), Error> {
        let columns = tombstones::target(self.table)?.columns;
        while let Some(rows) = self.files[file].next().await {
            let rows = rows?;
            if rows.num_rows() > 0 {
                let batch = align(&rows, &columns).and_then(Batch::try_new);
                let batch = Arc::new(batch.map_err(|error| self.table.failed(error))?);
                self.next.push(Reverse((Row { batch, place: 0 }, file)));
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
