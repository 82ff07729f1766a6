//! Stored rows: the data files of a table at one version, without the rows that are dead.

use std::sync::Arc;

use arrow::{
    array::{AsArray as _, BooleanArray, RecordBatch},
    compute::{cast, filter_record_batch},
    datatypes::DataType,
};
use deltalake::{
    DeltaTableError, ObjectStore,
    kernel::{Add, LogicalFileView},
};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use parquet::{
    arrow::{
        ParquetRecordBatchStreamBuilder, ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection, RowSelector},
    },
    file::metadata::ParquetMetaData,
};
use serde_json::Value;

use crate::table::{
    data_file::deletion_vector::{self, RowSet},
    data_file::{DataFile, is_own},
    date_partition::{DatePart, Partition},
    ids::{IdBounds, Ids},
};

/// Numbers the stored files of one attempt at an upsert.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct FileIndex(pub u32);

/// A data file that a version of the table has, or that the next one will have.
#[derive(Clone)]
pub struct StoredFile {
    pub add: Add,
    pub file: DataFile,
    /// Those that the log says are dead.
    pub dead: RowSet,
    /// Other writers keep our columns as they were when they change a row; only what is in our own files is told by its
    /// hash.
    pub own: bool,
}

impl StoredFile {
    /// In the order of the folders.
    pub fn partition(&self) -> Partition {
        let mut partition: Partition = self.add.partition_values.clone().into_iter().collect();
        partition.sort_by_key(|(name, _)| DatePart::ALL.iter().position(|part| part.as_str() == name));
        partition
    }

    /// May one of the ids be in this file? Servers that number their resources bring new ones in files of their own. Only
    /// statistics of our own making are believed: a bound that was cut to be short must still be one.
    pub fn may_have(&self, ids: &Ids) -> bool {
        let stats = self.add.stats.as_deref().filter(|_| self.own);
        let stats: Option<Value> = stats.and_then(|stats| serde_json::from_str(stats).ok());
        let bound = |of: &str| stats.as_ref().and_then(|stats| stats.get(of)?.get("id")?.as_str());
        ids.may_overlap(IdBounds { min: bound("minValues"), max: bound("maxValues") })
    }

    /// How many rows the file has, deleted ones included: as its statistics say, else as its footer does.
    pub async fn row_count(&self) -> Result<u64, DeltaTableError> {
        let stated = self.add.stats.as_deref().and_then(|stats| serde_json::from_str::<Value>(stats).ok());
        if let Some(rows) = stated.and_then(|stats| stats.get("numRecords")?.as_u64()) {
            return Ok(rows);
        }
        let footer = self.footer().await?;
        Ok(u64::try_from(footer.metadata().file_metadata().num_rows()).unwrap_or_default())
    }

    /// The footer; the widest tables have footers of a megabyte, so it is read once and passed on.
    pub async fn footer(&self) -> Result<ArrowReaderMetadata, DeltaTableError> {
        Ok(ArrowReaderMetadata::load_async(&mut self.file.clone(), ArrowReaderOptions::default()).await?)
    }
}

/// How many rows are read at once, and how many bytes of them as they are encoded: as Arrow they take about three times
/// that.
const BATCH_ROWS: usize = 4096;
const BATCH_BYTES: u64 = 4 * 1024 * 1024;
/// Deletion vectors that are read at the same time.
const MAX_VECTORS_IN_FLIGHT: usize = 16;

impl StoredFile {
    /// The living rows, in order, with the columns that the file has.
    pub async fn rows(
        &self,
    ) -> Result<impl Stream<Item = Result<RecordBatch, DeltaTableError>> + use<>, DeltaTableError> {
        let footer = self.footer().await?;
        self.rows_without(footer, &self.dead)
    }

    /// All rows but the `dead` ones, which are others than [`Self::dead`].
    pub fn rows_without(
        &self,
        footer: ArrowReaderMetadata,
        dead: &RowSet,
    ) -> Result<impl Stream<Item = Result<RecordBatch, DeltaTableError>> + use<>, DeltaTableError> {
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(self.file.clone(), footer);
        let batch_rows = batch_rows(builder.metadata());
        let batches = builder.with_batch_size(batch_rows).build()?;
        let mut first_row = 0;
        let dead = dead.clone();
        Ok(batches.map(move |batch| {
            let batch = batch?;
            let live = live(&dead, first_row, batch.num_rows());
            first_row += batch.num_rows() as u64;
            match live {
                Some(live) => Ok(filter_record_batch(&batch, &live)?),
                None => Ok(batch),
            }
        }))
    }

    /// These rows, dead or alive.
    pub async fn rows_of(
        &self,
        rows: &RowSet,
    ) -> Result<impl Stream<Item = Result<RecordBatch, DeltaTableError>> + use<>, DeltaTableError> {
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(self.file.clone(), self.footer().await?);
        let batch_rows = batch_rows(builder.metadata());
        let batches = builder.with_row_selection(selection(rows.iter())).with_batch_size(batch_rows).build()?;
        Ok(batches.map_err(DeltaTableError::from))
    }

    /// The ids of these rows.
    pub async fn ids_of(&self, rows: &RowSet) -> Result<Vec<String>, DeltaTableError> {
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(self.file.clone(), self.footer().await?);
        let mask = ProjectionMask::columns(builder.parquet_schema(), ["id"]);
        let mut batches = builder.with_projection(mask).with_row_selection(selection(rows.iter())).build()?;
        let mut ids = Vec::new();
        while let Some(batch) = batches.next().await {
            let column = cast(batch?.column(0), &DataType::Utf8)?;
            ids.extend(column.as_string::<i32>().iter().flatten().map(ToOwned::to_owned));
        }
        Ok(ids)
    }
}

/// The files of a version, with their deletion vectors.
pub async fn stored_files(
    store: &Arc<dyn ObjectStore>,
    files: Vec<LogicalFileView>,
) -> Result<Vec<StoredFile>, DeltaTableError> {
    let files = files.into_iter().map(|view| {
        let store = Arc::clone(store);
        async move {
            let file = DataFile::of(Arc::clone(&store), &view);
            #[expect(deprecated, reason = "nothing else gives the tags of a file")]
            let add = view.add_action();
            let dead = match &add.deletion_vector {
                Some(vector) => deletion_vector::read(store.as_ref(), vector).await?,
                None => RowSet::new(),
            };
            Ok(StoredFile { file, dead, own: is_own(&add.path), add })
        }
    });
    futures::stream::iter(files).buffered(MAX_VECTORS_IN_FLIGHT).try_collect().await
}

/// Rows differ in size a thousandfold, so a batch is bounded by bytes as well.
fn batch_rows(metadata: &ParquetMetaData) -> usize {
    let bytes_per_row = metadata.row_groups().iter().map(|row_group| {
        let of = |number: i64| u64::try_from(number).unwrap_or_default();
        of(row_group.total_byte_size()).div_ceil(of(row_group.num_rows()).max(1))
    });
    let rows = BATCH_BYTES / bytes_per_row.max().unwrap_or_default().max(1);
    usize::try_from(rows).unwrap_or(BATCH_ROWS).clamp(1, BATCH_ROWS)
}

/// The rows at these places, in ascending order, as what is read and what is passed over.
pub fn selection(places: impl Iterator<Item = u64>) -> RowSelection {
    let mut selectors = Vec::new();
    let mut next = 0;
    for place in places {
        if place > next {
            selectors.push(RowSelector::skip(usize::try_from(place - next).unwrap_or(usize::MAX)));
        }
        selectors.push(RowSelector::select(1));
        next = place + 1;
    }
    selectors.into()
}

/// Which of `rows` rows from `first_row` on are alive; `None` where all are.
fn live(dead: &RowSet, first_row: u64, rows: usize) -> Option<BooleanArray> {
    let rows = first_row..first_row + rows as u64;
    if dead.range_cardinality(rows.clone()) == 0 {
        return None;
    }
    Some(rows.map(|row| Some(!dead.contains(row))).collect())
}
