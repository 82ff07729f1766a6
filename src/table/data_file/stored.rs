//! Stored files: the data files of a table at one version, and their rows without the deleted ones.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    iter,
    sync::Arc,
};

use arrow::{
    array::{AsArray as _, BooleanArray, RecordBatch},
    compute::{cast, filter_record_batch},
    datatypes::{DataType, FieldRef, Fields, Schema, TimeUnit},
};
use deltalake::{
    DeltaTableError, ObjectStore,
    kernel::{Add, LogicalFileView},
};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use object_store::ObjectStoreExt as _;
use parquet::{
    arrow::{
        ParquetRecordBatchStreamBuilder, ProjectionMask,
        arrow_reader::{
            ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
            RowSelection, RowSelector,
        },
    },
    basic::Type as PhysicalType,
    errors::ParquetError,
    file::metadata::ParquetMetaData,
};
use serde_json::Value;

use crate::store::cache::Keep;
use crate::table::{
    data_file::deletion_vector::{self, RowSet, file_of},
    data_file::fill::with_type,
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
    /// Its deleted rows, according to the log.
    pub dead: RowSet,
    /// Is it a file of ours? Other writers keep `_sync_hash` as it was when they change a row, so only in our own files
    /// does the hash stand for the content.
    pub own: bool,
}

impl StoredFile {
    /// The columns are in the order of the folders.
    pub fn partition(&self) -> Partition {
        let mut partition: Partition = self.add.partition_values.clone().into_iter().collect();
        partition.sort_by_key(|(name, _)| DatePart::ALL.iter().position(|part| part.as_str() == name));
        partition
    }

    /// May one of the ids be in this file? Servers that number their resources put new ones in files of their own. The
    /// statistics of other writers are not trusted: they may have cut a long maximum without making it larger.
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

    /// The footer, with the types that the rows are read as. The widest tables have footers of a megabyte, so the
    /// caller reads it once and passes it on.
    pub async fn footer(&self) -> Result<ArrowReaderMetadata, DeltaTableError> {
        // Other writers note how their rows were in memory, for example as views; what the columns are is enough.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(!self.own);
        Ok(in_micros(ArrowReaderMetadata::load_async(&mut self.file.clone(), options).await?)?)
    }
}

/// Spark writes instants as INT96. A reader takes them for nanoseconds unless it is told otherwise, and those of an
/// instant after 2262 overflow to another one, without an error.
fn in_micros(footer: ArrowReaderMetadata) -> Result<ArrowReaderMetadata, ParquetError> {
    let leaves = footer.parquet_schema().columns().iter();
    let mut are_int96 = leaves.map(|leaf| leaf.physical_type() == PhysicalType::INT96);
    if !are_int96.clone().any(|is_int96| is_int96) {
        return Ok(footer);
    }
    let fields = footer.schema().fields().iter().map(|field| field_in_micros(field, &mut are_int96));
    let schema = Schema::new_with_metadata(fields.collect::<Fields>(), footer.schema().metadata().clone());
    let options = ArrowReaderOptions::new().with_schema(Arc::new(schema));
    ArrowReaderMetadata::try_new(Arc::clone(footer.metadata()), options)
}

/// `are_int96` says it of each leaf from this field on, in the order of the file.
fn field_in_micros(field: &FieldRef, are_int96: &mut impl Iterator<Item = bool>) -> FieldRef {
    let data_type = match field.data_type() {
        DataType::Struct(fields) => {
            DataType::Struct(fields.iter().map(|field| field_in_micros(field, are_int96)).collect())
        }
        DataType::List(item) => DataType::List(field_in_micros(item, are_int96)),
        DataType::Map(entries, ordered) => DataType::Map(field_in_micros(entries, are_int96), *ordered),
        flat => match are_int96.next() {
            Some(true) => DataType::Timestamp(TimeUnit::Microsecond, None),
            _ => flat.clone(),
        },
    };
    with_type(field, data_type)
}

/// A file that the log names, and of which the rows or the deletion vector are lost.
#[derive(Clone)]
pub struct DamagedFile {
    /// Without its deleted rows.
    pub stored: StoredFile,
    pub damage: &'static str,
}

impl StoredFile {
    /// What is wrong with the file, if its rows cannot be read any more. An error where the store does not answer.
    async fn damage(&self) -> Result<Option<&'static str>, DeltaTableError> {
        match self.file.store.head(&self.file.path).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(Some("is missing")),
            Err(error) => return Err(error.into()),
            Ok(meta) if meta.size == 0 => return Ok(Some("is empty")),
            Ok(meta) if meta.size != self.file.size_bytes => return Ok(Some("has another length than the log states")),
            Ok(_) => {}
        }
        match self.file.footer_as_stored().await {
            Ok(_) => Ok(None),
            Err(ParquetError::External(error)) => Err(ParquetError::External(error).into()),
            Err(_) => Ok(Some("is not a readable Parquet file")),
        }
    }
}

/// How many rows are read at once.
const MAX_BATCH_ROWS: usize = 4096;
/// The same in encoded bytes; as Arrow arrays they take about three times as much.
const MAX_BATCH_BYTES: u64 = 4 * 1024 * 1024;
/// How many files of deletion vectors are read at the same time.
const MAX_VECTORS_IN_FLIGHT: usize = 16;

impl StoredFile {
    /// The live rows, in order, with the columns that the file has.
    pub async fn rows(
        &self,
    ) -> Result<impl Stream<Item = Result<RecordBatch, DeltaTableError>> + use<>, DeltaTableError> {
        let footer = self.footer().await?;
        self.rows_without(footer, &self.dead)
    }

    /// All rows except `dead`, which the caller gives instead of [`Self::dead`].
    pub fn rows_without(
        &self,
        footer: ArrowReaderMetadata,
        dead: &RowSet,
    ) -> Result<impl Stream<Item = Result<RecordBatch, DeltaTableError>> + use<>, DeltaTableError> {
        self.columns_without(footer, ProjectionMask::all(), dead)
    }

    /// The live rows, with all columns but this one.
    pub async fn rows_except(
        &self,
        column: &str,
    ) -> Result<impl Stream<Item = Result<RecordBatch, DeltaTableError>> + use<>, DeltaTableError> {
        let footer = self.footer().await?;
        let fields = footer.schema().fields().iter().enumerate();
        let others = fields.filter(|(_, field)| field.name() != column).map(|(index, _)| index);
        let others = ProjectionMask::roots(footer.parquet_schema(), others.collect::<Vec<_>>());
        self.columns_without(footer, others, &self.dead)
    }

    fn columns_without(
        &self,
        footer: ArrowReaderMetadata,
        columns: ProjectionMask,
        dead: &RowSet,
    ) -> Result<impl Stream<Item = Result<RecordBatch, DeltaTableError>> + use<>, DeltaTableError> {
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(self.file.clone(), footer);
        let batch_rows = batch_rows(builder.metadata());
        let batches = builder.with_projection(columns).with_batch_size(batch_rows).build()?;
        let mut live = Live { dead: dead.clone(), next_row: 0 };
        Ok(batches.map(move |batch| live.of(batch?)))
    }

    /// These rows, deleted or not.
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

/// All rows of a file on a local disk except `dead`: of a row group only the pages that are being decoded are in memory.
/// No batch has rows of two row groups: the longest lines of both would not fit into one column. Blocks.
pub fn rows_on_disk(
    file: File,
    footer: ArrowReaderMetadata,
    dead: &RowSet,
) -> impl Iterator<Item = Result<RecordBatch, DeltaTableError>> + use<> {
    let batch_rows = batch_rows(footer.metadata());
    let mut row_groups = 0..footer.metadata().num_row_groups();
    let mut live = Live { dead: dead.clone(), next_row: 0 };
    let read = move |row_group| {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(file.try_clone()?, footer.clone());
        builder.with_row_groups(vec![row_group]).with_batch_size(batch_rows).build()
    };
    let mut open: Option<ParquetRecordBatchReader> = None;
    iter::from_fn(move || {
        loop {
            if let Some(batch) = open.as_mut().and_then(Iterator::next) {
                return Some(batch.map_err(DeltaTableError::from).and_then(|batch| live.of(batch)));
            }
            match read(row_groups.next()?) {
                Ok(reader) => open = Some(reader),
                Err(error) => return Some(Err(error.into())),
            }
        }
    })
}

/// The files of a version, with their deletion vectors.
pub async fn stored_files(
    store: &Arc<dyn ObjectStore>,
    files: Vec<LogicalFileView>,
) -> Result<Vec<StoredFile>, DeltaTableError> {
    let files = files.into_iter().map(|view| {
        let file = DataFile::of(Arc::clone(store), &view);
        #[expect(deprecated, reason = "nothing else gives the tags of a file")]
        let add = view.add_action();
        StoredFile { file, dead: RowSet::new(), own: is_own(&add.path), add }
    });
    let mut files: Vec<_> = files.collect();
    let vectors = files.iter().filter_map(|stored| stored.add.deletion_vector.as_ref()).filter_map(file_of);
    let vectors = vectors.collect::<BTreeSet<_>>().into_iter().map(|path| async move {
        let bytes = store.get_opts(&path, Keep::whole()).await?.bytes().await?;
        Ok::<_, DeltaTableError>((path, bytes))
    });
    let vectors: BTreeMap<_, _> =
        futures::stream::iter(vectors).buffer_unordered(MAX_VECTORS_IN_FLIGHT).try_collect().await?;
    for stored in &mut files {
        let Some(vector) = &stored.add.deletion_vector else { continue };
        stored.dead = deletion_vector::of_bytes(vector, |path| vectors.get(path))?;
    }
    Ok(files)
}

/// The files of a version, apart from those that are damaged. Looks at every file.
pub async fn whole_files(
    store: &Arc<dyn ObjectStore>,
    files: Vec<LogicalFileView>,
) -> Result<(Vec<StoredFile>, Vec<DamagedFile>), DeltaTableError> {
    let files = files.into_iter().map(|view| {
        let store = Arc::clone(store);
        async move {
            #[expect(deprecated, reason = "nothing else gives the tags of a file")]
            let add = view.add_action();
            let (file, own) = (DataFile::of(Arc::clone(&store), &view), is_own(&add.path));
            let mut stored = StoredFile { file, dead: RowSet::new(), own, add };
            if let Some(damage) = stored.damage().await? {
                return Ok::<_, DeltaTableError>(Err(DamagedFile { stored, damage }));
            }
            let Some(vector) = &stored.add.deletion_vector else { return Ok(Ok(stored)) };
            match deletion_vector::read(store.as_ref(), vector).await {
                Ok(dead) => stored.dead = dead,
                Err(error) => match deletion_vector::file_of(vector) {
                    Some(path) if store.head(&path).await.is_ok_and(|meta| meta.size > 0) => return Err(error),
                    _ => return Ok(Err(DamagedFile { stored, damage: "has lost its deletion vector" })),
                },
            }
            Ok(Ok(stored))
        }
    });
    let files: Vec<_> = futures::stream::iter(files).buffered(MAX_VECTORS_IN_FLIGHT).try_collect().await?;
    let (mut whole, mut damaged) = (Vec::new(), Vec::new());
    for file in files {
        match file {
            Ok(file) => whole.push(file),
            Err(file) => damaged.push(file),
        }
    }
    Ok((whole, damaged))
}

/// One row can be a thousand times as large as another, so a batch is bounded by bytes as well.
pub fn batch_rows(metadata: &ParquetMetaData) -> usize {
    let bytes_per_row = metadata.row_groups().iter().map(|row_group| {
        let of = |number: i64| u64::try_from(number).unwrap_or_default();
        of(row_group.total_byte_size()).div_ceil(of(row_group.num_rows()).max(1))
    });
    let rows = MAX_BATCH_BYTES / bytes_per_row.max().unwrap_or_default().max(1);
    usize::try_from(rows).unwrap_or(MAX_BATCH_ROWS).clamp(1, MAX_BATCH_ROWS)
}

/// These rows, in ascending order, as runs of rows to read and rows to skip.
pub fn selection(rows: impl Iterator<Item = u64>) -> RowSelection {
    let mut selectors = Vec::new();
    let mut next = 0;
    for row in rows {
        if row > next {
            selectors.push(RowSelector::skip(usize::try_from(row - next).unwrap_or(usize::MAX)));
        }
        selectors.push(RowSelector::select(1));
        next = row + 1;
    }
    selectors.into()
}

/// Takes the batches of a file, one after the other, and gives back their live rows.
struct Live {
    dead: RowSet,
    next_row: u64,
}

impl Live {
    fn of(&mut self, batch: RecordBatch) -> Result<RecordBatch, DeltaTableError> {
        let rows = self.next_row..self.next_row + batch.num_rows() as u64;
        self.next_row = rows.end;
        if self.dead.range_cardinality(rows.clone()) == 0 {
            return Ok(batch);
        }
        let live: BooleanArray = rows.map(|row| Some(!self.dead.contains(row))).collect();
        Ok(filter_record_batch(&batch, &live)?)
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{ArrayRef, Int64Array},
        datatypes::Int64Type,
    };
    use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};

    use super::*;

    #[test]
    fn the_rows_of_a_file_on_disk_come_by_row_group_without_the_dead_ones() {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..12));
        let rows = RecordBatch::try_from_iter([("number", numbers)]).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(5)).build();
        let mut writer = ArrowWriter::try_new(&mut file, rows.schema(), Some(properties)).unwrap();
        writer.write(&rows).unwrap();
        writer.close().unwrap();
        let footer = ArrowReaderMetadata::load(&file, ArrowReaderOptions::default()).unwrap();
        let batches: Vec<_> =
            rows_on_disk(file, footer, &[1, 4, 5, 11].into_iter().collect()).map(Result::unwrap).collect();
        let numbers = |batch: &RecordBatch| batch.column(0).as_primitive::<Int64Type>().values().to_vec();
        assert_eq!(batches.iter().map(numbers).collect::<Vec<_>>(), [vec![0, 2, 3], vec![6, 7, 8, 9], vec![10]]);
    }
}
