//! Rolling files: rows become data files of about the size that readers of a lake prefer, one file after the other.
//!
//! A file has only the leading columns and those top-level columns that its rows fill. A row that fills one more column
//! begins a new file. So that a file does not end after a few rows, the first rows are buffered before its columns are
//! fixed.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{Array as _, RecordBatch},
    datatypes::{Schema, SchemaRef},
};
use deltalake::{DeltaTableError, ObjectStore, Path, kernel::Add};

use crate::table::{
    data_file::fill::fit,
    data_file::properties::{ROW_GROUP_BYTES, by_first_rows, with_bloom_filter, writer_properties},
    data_file::{DataFileWriter, change_path, data_path},
    date_partition::{DatePartition, Partition},
};
use crate::telemetry::advance;

/// What the data files of a table have in common.
#[derive(Clone)]
pub struct FileTarget {
    pub kind: FileKind,
    pub store: Arc<dyn ObjectStore>,
    /// All columns of the table except the partition columns.
    pub columns: SchemaRef,
    /// How the partition of a new row is found.
    pub by: Option<DatePartition>,
    /// How many columns, from the left, have statistics and are in every file.
    pub leading: usize,
    pub file_bytes: u64,
    /// How much is collected in memory before it is written as one row group.
    pub row_group_bytes: usize,
}

impl FileTarget {
    /// Data files of the usual sizes.
    pub fn new(store: Arc<dyn ObjectStore>, columns: SchemaRef, by: Option<DatePartition>, leading: usize) -> Self {
        let (file_bytes, row_group_bytes) = (TARGET_FILE_BYTES, ROW_GROUP_BYTES);
        Self { kind: FileKind::Data, store, columns, by, leading, file_bytes, row_group_bytes }
    }
}

/// Readers of a lake prefer files of about this size: small enough to be read in parallel, large enough to be few.
const TARGET_FILE_BYTES: u64 = 128 * 1024 * 1024;

/// What the rows of a file are.
#[derive(Clone, Copy)]
pub enum FileKind {
    /// Rows of the table.
    Data,
    /// Changes of rows, for readers of the change data feed.
    Changes,
}

/// How many bytes of Arrow arrays are buffered before the columns of a file are fixed.
const MAX_BUFFERED_BYTES: usize = 16 * 1024 * 1024;

pub struct DataFiles {
    target: FileTarget,
    partition: Partition,
    /// The columns that some row has filled. None is ever removed.
    filled: BTreeSet<String>,
    open: OpenFile,
    done: Vec<Add>,
    rows: u64,
}

enum OpenFile {
    Buffered { rows: Vec<RecordBatch>, bytes: usize },
    Writing(Box<DataFileWriter>, SchemaRef),
}

impl OpenFile {
    fn nothing() -> Self {
        Self::Buffered { rows: Vec::new(), bytes: 0 }
    }
}

impl DataFiles {
    /// `filled` are columns that are already known to be filled, if any.
    pub fn new(target: FileTarget, partition: Partition, filled: BTreeSet<String>) -> Self {
        Self { target, partition, filled, open: OpenFile::nothing(), done: Vec::new(), rows: 0 }
    }

    /// Returns the index of the file among these, and the index of the first of the rows in it. After an error the open
    /// file is discarded.
    pub async fn write(&mut self, rows: &RecordBatch) -> Result<(usize, u64), DeltaTableError> {
        let written = self.try_write(rows).await;
        if written.is_err()
            && let OpenFile::Writing(writer, _) = std::mem::replace(&mut self.open, OpenFile::nothing())
        {
            writer.abort().await;
        }
        written
    }

    async fn try_write(&mut self, rows: &RecordBatch) -> Result<(usize, u64), DeltaTableError> {
        if self.fill(rows) && matches!(self.open, OpenFile::Writing(..)) {
            self.roll().await?;
        }
        advance::note();
        self.rows += rows.num_rows() as u64;
        let place = (self.done.len(), self.open_rows());
        // Where files are written side by side, their row groups are small, and so is what is buffered for each.
        let buffered_bytes = MAX_BUFFERED_BYTES.min(self.target.row_group_bytes);
        match &mut self.open {
            OpenFile::Buffered { rows: waiting, bytes } => {
                *bytes += bytes_of(rows);
                waiting.push(rows.clone());
                if *bytes >= buffered_bytes {
                    self.begin_file(u64::MAX).await?;
                }
            }
            OpenFile::Writing(writer, schema) => writer.write(&fit(rows, schema)?).await?,
        }
        if let OpenFile::Writing(writer, _) = &self.open
            && writer.size_bytes() >= self.target.file_bytes
        {
            self.roll().await?;
        }
        Ok(place)
    }

    /// Ends the open file and returns all files, in the order of their indices.
    pub async fn finish(mut self) -> Result<Vec<Add>, DeltaTableError> {
        self.roll().await?;
        Ok(self.done)
    }

    /// Discards the open file, and returns the finished ones.
    pub async fn abort(self) -> Vec<Add> {
        if let OpenFile::Writing(writer, _) = self.open {
            writer.abort().await;
        }
        self.done
    }

    /// How many rows were written.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn open_rows(&self) -> u64 {
        match &self.open {
            OpenFile::Buffered { rows, .. } => rows.iter().map(|rows| rows.num_rows() as u64).sum(),
            OpenFile::Writing(writer, _) => writer.rows(),
        }
    }

    /// Notes the columns that the rows fill. Is one of them new?
    fn fill(&mut self, rows: &RecordBatch) -> bool {
        let known = self.filled.len();
        for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
            if column.null_count() < column.len() && !self.filled.contains(field.name()) {
                self.filled.insert(field.name().clone());
            }
        }
        self.filled.len() > known
    }

    /// Begins a file with the buffered rows; it will have at most `max_rows`.
    async fn begin_file(&mut self, max_rows: u64) -> Result<(), DeltaTableError> {
        let OpenFile::Buffered { rows, .. } = std::mem::replace(&mut self.open, OpenFile::nothing()) else {
            return Ok(());
        };
        let FileTarget { kind, store, columns, leading, row_group_bytes, .. } = &self.target;
        let schema = columns_of_file(columns, *leading, |name| self.filled.contains(name));
        let rows: Vec<_> = rows.into_iter().map(|rows| fit(&rows, &schema)).collect::<Result<_, _>>()?;
        let properties = writer_properties(&schema, *leading).into_builder();
        let properties = properties.set_max_row_group_bytes(Some(*row_group_bytes));
        let properties = by_first_rows(properties, &schema, &rows)?;
        let folder = folder(&self.partition);
        let (path, properties) = match kind {
            FileKind::Data => (data_path(&folder), with_bloom_filter(properties, max_rows)),
            // No reader looks up ids in a change file.
            FileKind::Changes => (change_path(&folder), properties),
        };
        let properties = properties.build();
        let mut writer = DataFileWriter::create(Arc::clone(store), path, &schema, properties, *leading)?;
        writer.expect(&rows)?;
        for rows in rows {
            writer.write(&rows).await?;
        }
        self.open = OpenFile::Writing(Box::new(writer), schema);
        Ok(())
    }

    async fn roll(&mut self) -> Result<(), DeltaTableError> {
        if let OpenFile::Buffered { rows, .. } = &self.open {
            if rows.is_empty() {
                return Ok(());
            }
            let rows = self.open_rows();
            self.begin_file(rows).await?;
        }
        if let OpenFile::Writing(writer, _) = std::mem::replace(&mut self.open, OpenFile::nothing()) {
            self.done.push(writer.finish(&self.partition).await?);
        }
        Ok(())
    }
}

/// Only what belongs to these rows: all columns of a batch from the spool are slices of one buffer.
pub fn bytes_of(rows: &RecordBatch) -> usize {
    let columns = rows.columns().iter();
    columns.map(|of| of.to_data().get_slice_memory_size().unwrap_or_else(|_| of.get_array_memory_size())).sum()
}

/// Those of `columns` that a file has. Only whole top-level columns may be missing, and never leading ones, because
/// which columns have statistics is counted from the left.
pub fn columns_of_file(columns: &SchemaRef, leading: usize, has: impl Fn(&str) -> bool) -> SchemaRef {
    let fields = columns.fields().iter().enumerate();
    let fields = fields.filter(|(index, field)| *index < leading || has(field.name())).map(|(_, field)| field.clone());
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The folder of a partition, in Hive's style: `year=2026/month=5`.
fn folder(partition: &Partition) -> Path {
    let parts = partition
        .iter()
        .map(|(name, value)| format!("{name}={}", value.as_deref().unwrap_or("__HIVE_DEFAULT_PARTITION__")));
    parts.collect()
}
