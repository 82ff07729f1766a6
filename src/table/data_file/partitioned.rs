//! Partitioned files: rows of several partitions become data files, each in the folder of its partition.
//!
//! An upsert looks for an id in all partitions, so a row whose date changes moves to another one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{RecordBatch, UInt32Array},
    compute::{concat_batches, take_record_batch},
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
};
use deltalake::{DeltaTableError, kernel::Add};

use crate::table::{
    data_file::fill::{fit, narrow, union},
    data_file::rolling::{DataFiles, FileTarget, bytes_of},
    date_partition::{DatePartition, PartitionKey},
};

/// The rows of all batches, [narrow] ones of these columns.
pub fn joined(columns: &SchemaRef, batches: Vec<RecordBatch>) -> Result<RecordBatch, ArrowError> {
    let schemas: Vec<_> = batches.iter().map(RecordBatch::schema).collect();
    let fields: Vec<_> = schemas.iter().map(|schema| schema.fields()).collect();
    let filled = Arc::new(Schema::new(union(columns.fields(), &fields)));
    let batches = batches.into_iter().map(|rows| fit(&rows, &filled)).collect::<Result<Vec<_>, _>>()?;
    concat_batches(&filled, &batches)
}

/// Which rows are of which partition.
pub fn rows_of_partitions(
    rows: &RecordBatch,
    by: &DatePartition,
) -> Result<BTreeMap<PartitionKey, Vec<u32>>, ArrowError> {
    let mut of_partitions: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (row, partition) in (0..).zip(by.keys(rows)?) {
        of_partitions.entry(partition).or_default().push(row);
    }
    Ok(of_partitions)
}

/// How many bytes of Arrow arrays are collected and then split by partition, where several are written. Splitting goes
/// through each column once for each partition: a million Observations of ninety months, split a few thousand at a time,
/// took more than six CPU minutes.
const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;
/// The same where one is: small chunks are joined, because each has a cost for each column.
const MAX_WAITING_FOR_ONE_BYTES: usize = 4 * 1024 * 1024;

/// One series of rolling files for each partition.
pub struct PartitionedFiles {
    target: FileTarget,
    filled: BTreeSet<String>,
    filter: PartitionFilter,
    waiting: Vec<RecordBatch>,
    waiting_bytes: usize,
    max_waiting_bytes: usize,
    open: BTreeMap<PartitionKey, DataFiles>,
    done: Vec<Add>,
}

/// Which partitions are written. Together they have the memory of one file.
pub enum PartitionFilter {
    /// Only these. All of them are open at the same time.
    Only(BTreeSet<PartitionKey>),
    /// All. At most `max_open` are open at the same time.
    All { max_open: usize },
}

impl PartitionFilter {
    fn max_open(&self) -> usize {
        match self {
            Self::Only(keys) => keys.len().max(1),
            Self::All { max_open } => *max_open,
        }
    }

    fn has(&self, key: &PartitionKey) -> bool {
        match self {
            Self::Only(keys) => keys.contains(key),
            Self::All { .. } => true,
        }
    }
}

impl PartitionedFiles {
    /// `filled` as in [`DataFiles::new`].
    pub fn new(target: FileTarget, filled: BTreeSet<String>, filter: PartitionFilter) -> Self {
        let open_at_once = if target.by.is_some() { filter.max_open() } else { 1 };
        let max_waiting_bytes = if open_at_once > 1 { MAX_WAITING_BYTES } else { MAX_WAITING_FOR_ONE_BYTES };
        let max_waiting_bytes = max_waiting_bytes.min(target.row_group_bytes);
        let target = FileTarget { row_group_bytes: target.row_group_bytes / open_at_once, ..target };
        let (waiting, open, done) = (Vec::new(), BTreeMap::new(), Vec::new());
        Self { target, filled, filter, waiting, waiting_bytes: 0, max_waiting_bytes, open, done }
    }

    /// Writes those of the rows whose partition passes the filter. A column that they do not have is null.
    pub async fn write(&mut self, rows: &RecordBatch) -> Result<(), DeltaTableError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        if self.target.by.is_none() {
            return self.write_into(None, rows).await;
        }
        let rows = narrow(rows)?;
        let bytes = bytes_of(&rows);
        if self.waiting_bytes + bytes > self.max_waiting_bytes {
            self.divide().await?;
        }
        self.waiting_bytes += bytes;
        self.waiting.push(rows);
        Ok(())
    }

    async fn divide(&mut self) -> Result<(), DeltaTableError> {
        let Some(by) = self.target.by.clone().filter(|_| !self.waiting.is_empty()) else { return Ok(()) };
        let rows = joined(&self.target.columns, std::mem::take(&mut self.waiting))?;
        self.waiting_bytes = 0;
        for (partition, of_partition) in rows_of_partitions(&rows, &by)? {
            if !self.filter.has(&partition) {
                continue;
            }
            if of_partition.len() == rows.num_rows() {
                return self.write_into(partition, &rows).await;
            }
            let of_partition = take_record_batch(&rows, &UInt32Array::from(of_partition))?;
            self.write_into(partition, &of_partition).await?;
        }
        Ok(())
    }

    async fn write_into(&mut self, key: PartitionKey, rows: &RecordBatch) -> Result<(), DeltaTableError> {
        self.make_room(key).await?;
        let (target, filled) = (&self.target, &self.filled);
        let files = self.open.entry(key).or_insert_with(|| {
            let partition = target.by.as_ref().map(|by| by.partition(key)).unwrap_or_default();
            DataFiles::new(target.clone(), partition, filled.clone())
        });
        files.write(rows).await?;
        Ok(())
    }

    pub async fn finish(mut self) -> Result<Vec<Add>, DeltaTableError> {
        self.divide().await?;
        for files in std::mem::take(&mut self.open).into_values() {
            self.done.extend(files.finish().await?);
        }
        Ok(self.done)
    }

    /// If no file is open for `key` and none can be opened, ends the smallest one: few rows are of a date that is far
    /// from those of most others, so that one is the least likely to be needed again.
    async fn make_room(&mut self, key: PartitionKey) -> Result<(), DeltaTableError> {
        if self.open.contains_key(&key) || self.open.len() < self.filter.max_open() {
            return Ok(());
        }
        let smallest = self.open.iter().min_by_key(|(_, files)| files.rows()).map(|(key, _)| *key);
        if let Some(files) = smallest.and_then(|key| self.open.remove(&key)) {
            self.done.extend(files.finish().await?);
        }
        Ok(())
    }
}
