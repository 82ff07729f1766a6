//! Data files that grow: rows become files of about the size that readers of a lake like.
//!
//! A file has only those top-level columns that its rows fill, and the leading ones. A row that fills another column begins
//! another file. Until the first rows have come, the columns are not decided; so the first of them wait in memory.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{Array as _, RecordBatch, new_null_array},
    compute::cast,
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
};
use deltalake::{DeltaTableError, ObjectStore, Path, kernel::Add};

use crate::table::{
    data_file::{
        DataFileWriter, ROW_GROUP_BYTES, change_path, data_path, with_bloom_filter, with_small_compressors,
        writer_properties,
    },
    date_partition::{DatePartition, Partition},
};

/// What the data files of a table have in common.
#[derive(Clone)]
pub struct FileTarget {
    pub kind: FileKind,
    pub store: Arc<dyn ObjectStore>,
    /// All columns of the table but those that it is partitioned by.
    pub columns: SchemaRef,
    /// What tells the partition of new rows.
    pub by: Option<DatePartition>,
    /// How many of them, from the left, have statistics and are never left out.
    pub leading: usize,
    pub file_bytes: u64,
    /// What of a file waits in memory until it is a row group.
    pub row_group_bytes: usize,
}

impl FileTarget {
    /// Data files of the usual sizes.
    pub fn new(store: Arc<dyn ObjectStore>, columns: SchemaRef, by: Option<DatePartition>, leading: usize) -> Self {
        let (file_bytes, row_group_bytes) = (TARGET_FILE_BYTES, ROW_GROUP_BYTES);
        Self { kind: FileKind::Data, store, columns, by, leading, file_bytes, row_group_bytes }
    }
}

/// Files of about this size are what readers of a lake like.
const TARGET_FILE_BYTES: u64 = 128 * 1024 * 1024;

/// What the rows are.
#[derive(Clone, Copy)]
pub enum FileKind {
    /// Those of the table.
    Data,
    /// What happened to rows, for those who follow the table.
    Changes,
}

/// Rows that wait until it is known which columns are filled, in Arrow's bytes.
const MAX_BUFFERED_BYTES: usize = 16 * 1024 * 1024;

pub struct DataFiles {
    target: FileTarget,
    partition: Partition,
    /// Columns that some row has filled; only grows.
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
    /// `filled` are the columns that are known to be filled, where that is known.
    pub fn new(target: FileTarget, partition: Partition, filled: BTreeSet<String>) -> Self {
        Self { target, partition, filled, open: OpenFile::nothing(), done: Vec::new(), rows: 0 }
    }

    /// Says in which file of these, and as which rows of it, the rows will be. After an error the file that grew is gone.
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
        self.rows += rows.num_rows() as u64;
        let place = (self.done.len(), self.open_rows());
        // Where files grow side by side, their row groups are small, and so is what waits for them.
        let buffered_bytes = MAX_BUFFERED_BYTES.min(self.target.row_group_bytes);
        match &mut self.open {
            OpenFile::Buffered { rows: waiting, bytes } => {
                *bytes += bytes_of(rows);
                waiting.push(rows.clone());
                if *bytes >= buffered_bytes {
                    self.begin_file(u64::MAX).await?;
                }
            }
            OpenFile::Writing(writer, schema) => writer.write(&align(rows, schema)?).await?,
        }
        if let OpenFile::Writing(writer, _) = &self.open
            && writer.size_bytes() >= self.target.file_bytes
        {
            self.roll().await?;
        }
        Ok(place)
    }

    /// The files, in the order of their numbers.
    pub async fn finish(mut self) -> Result<Vec<Add>, DeltaTableError> {
        self.roll().await?;
        Ok(self.done)
    }

    /// Gives the growing file up. Those that are whole stay behind for the vacuum.
    pub async fn abort(self) {
        if let OpenFile::Writing(writer, _) = self.open {
            writer.abort().await;
        }
    }

    /// What has been written.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn open_rows(&self) -> u64 {
        match &self.open {
            OpenFile::Buffered { rows, .. } => rows.iter().map(|rows| rows.num_rows() as u64).sum(),
            OpenFile::Writing(writer, _) => writer.rows(),
        }
    }

    /// Notes the columns that the rows fill; says whether one of them is new.
    fn fill(&mut self, rows: &RecordBatch) -> bool {
        let known = self.filled.len();
        for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
            if column.null_count() < column.len() && !self.filled.contains(field.name()) {
                self.filled.insert(field.name().clone());
            }
        }
        self.filled.len() > known
    }

    /// Begins the file that the waiting rows are for, and perhaps others: at most so many.
    async fn begin_file(&mut self, max_rows: u64) -> Result<(), DeltaTableError> {
        let OpenFile::Buffered { rows, .. } = std::mem::replace(&mut self.open, OpenFile::nothing()) else {
            return Ok(());
        };
        let FileTarget { kind, store, columns, leading, row_group_bytes, .. } = &self.target;
        let schema = columns_of_file(columns, *leading, |name| self.filled.contains(name));
        let properties = writer_properties(&schema, *leading).into_builder();
        let properties = properties.set_max_row_group_bytes(Some(*row_group_bytes));
        let properties =
            if self.partition.is_empty() { properties } else { with_small_compressors(properties, &schema) };
        let folder = folder(&self.partition);
        let (path, properties) = match kind {
            FileKind::Data => (data_path(&folder), with_bloom_filter(properties, max_rows)),
            // Nobody looks for ids in it.
            FileKind::Changes => (change_path(&folder), properties),
        };
        let properties = properties.build();
        let mut writer = DataFileWriter::create(Arc::clone(store), path, Arc::clone(&schema), properties, *leading)?;
        for rows in rows {
            writer.write(&align(&rows, &schema)?).await?;
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

/// Without what else lies in the same buffers: the columns of a part that was read back share one.
pub fn bytes_of(rows: &RecordBatch) -> usize {
    let columns = rows.columns().iter();
    columns.map(|of| of.to_data().get_slice_memory_size().unwrap_or_else(|_| of.get_array_memory_size())).sum()
}

/// Those of `columns` that a file has. Only whole top-level columns may be missing, and the leading ones never:
/// statistics are counted from the left.
pub fn columns_of_file(columns: &SchemaRef, leading: usize, has: impl Fn(&str) -> bool) -> SchemaRef {
    let fields = columns.fields().iter().enumerate();
    let fields = fields.filter(|(index, field)| *index < leading || has(field.name())).map(|(_, field)| field.clone());
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The folder of a partition, as Hive names it.
fn folder(partition: &Partition) -> Path {
    let parts = partition
        .iter()
        .map(|(name, value)| format!("{name}={}", value.as_deref().unwrap_or("__HIVE_DEFAULT_PARTITION__")));
    parts.collect()
}

/// The columns of the file, in its order and types; a top-level column that the rows do not have is null.
pub fn align(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = schema.fields().iter().map(|field| match rows.column_by_name(field.name()) {
        Some(column) if column.data_type() == field.data_type() => Ok(Arc::clone(column)),
        Some(column) => cast(column, field.data_type()),
        None => Ok(new_null_array(field.data_type(), rows.num_rows())),
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_, _>>()?)
}
