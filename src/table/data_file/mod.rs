//! A data file: one Parquet file of a table, read by ranges and written as a stream, wherever the table lies.

pub mod deletion_vector;
pub mod partitioned;
pub mod rolling;
pub mod stored;

use std::{ops::Range, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use bytes::Bytes;
use chrono::DateTime;
use deltalake::{
    DeltaTableError, ObjectStore, Path,
    kernel::{Add, LogicalFileView},
};
use futures::{FutureExt as _, future::BoxFuture};
use object_store::{ObjectStoreExt as _, buffered::BufWriter};
use parquet::{
    arrow::{AsyncArrowWriter, arrow_reader::ArrowReaderOptions, async_reader::AsyncFileReader},
    basic::{Compression, LogicalType, ZstdLevel},
    errors::{ParquetError, Result},
    file::{
        metadata::{ParquetMetaData, ParquetMetaDataReader},
        properties::{BloomFilterPosition, EnabledStatistics, WriterProperties, WriterPropertiesBuilder},
        statistics::Statistics,
    },
    schema::types::ColumnPath,
};
use serde_json::{Map, Value, json};

use crate::table::date_partition::Partition;

/// One file, to be read.
#[derive(Clone)]
pub struct DataFile {
    pub store: Arc<dyn ObjectStore>,
    pub path: Path,
    pub size_bytes: u64,
}

impl DataFile {
    pub fn of(store: Arc<dyn ObjectStore>, file: &LogicalFileView) -> Self {
        Self { store, path: file.object_store_path(), size_bytes: u64::try_from(file.size()).unwrap_or_default() }
    }
}

impl AsyncFileReader for DataFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move {
            let mut parts = self.get_byte_ranges(vec![range]).await?;
            parts.pop().ok_or_else(|| ParquetError::EOF("the store answered without a part".to_owned()))
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        async move { self.store.get_ranges(&self.path, &ranges).await.map_err(ParquetError::from) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        let reader = ParquetMetaDataReader::new().with_metadata_options(options.map(|o| o.metadata_options().clone()));
        async move {
            let size_bytes = self.size_bytes;
            Ok(Arc::new(reader.load_and_finish(self, size_bytes).await?))
        }
        .boxed()
    }
}

/// One file that is being written. Nobody sees it before its [`Add`] is committed; dropped or aborted, it is not there.
pub struct DataFileWriter {
    path: Path,
    writer: AsyncArrowWriter<BufWriter>,
    leading: usize,
    rows: u64,
}

impl DataFileWriter {
    /// `leading` columns from the left get statistics.
    pub fn create(
        store: Arc<dyn ObjectStore>,
        path: Path,
        schema: SchemaRef,
        properties: WriterProperties,
        leading: usize,
    ) -> Result<Self> {
        let out = BufWriter::new(store, path.clone()).with_max_concurrency(PARTS_IN_FLIGHT);
        let writer = AsyncArrowWriter::try_new(out, schema, Some(properties))?;
        Ok(Self { path, writer, leading, rows: 0 })
    }

    /// Rows with exactly the columns of the file.
    pub async fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.rows += rows.num_rows() as u64;
        self.writer.write(rows).await
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// What the file has become so far, in bytes; close to what it will be.
    pub fn size_bytes(&self) -> u64 {
        (self.writer.bytes_written() + self.writer.in_progress_size()) as u64
    }

    pub async fn finish(mut self, partition: &Partition) -> std::result::Result<Add, DeltaTableError> {
        let metadata = self.writer.finish().await?;
        let size_bytes = self.writer.bytes_written();
        Ok(Add {
            path: self.path.to_string(),
            partition_values: partition.iter().cloned().collect(),
            size: i64::try_from(size_bytes).unwrap_or(i64::MAX),
            modification_time: now_millis(),
            data_change: true,
            stats: Some(statistics(&metadata, self.leading).to_string()),
            ..Add::default()
        })
    }

    pub async fn abort(self) {
        if let Err(error) = self.writer.into_inner().abort().await {
            tracing::warn!(%error, path = %self.path, "an unfinished data file was left behind; vacuum removes it");
        }
    }
}

/// Takes back a file that no commit names. What cannot be taken back is left to the vacuum.
pub async fn forget(store: &dyn ObjectStore, path: &Path) {
    if let Err(error) = store.delete(path).await {
        tracing::debug!(%error, %path, "a data file without a commit stays until the vacuum");
    }
}

/// Tells our files from those of other writers, whose rows may have changed without their `_sync_hash`.
const OWN_PREFIX: &str = "fhir-sync-";

/// A new data file in `folder` of the table: its root, or a partition.
pub fn data_path(folder: &Path) -> Path {
    folder.clone().join(format!("{OWN_PREFIX}{}.zstd.parquet", uuid::Uuid::new_v4()))
}

/// A new change file; `folder` is that of the data files that it tells of.
pub fn change_path(folder: &Path) -> Path {
    let folder: Path = [Path::from("_change_data"), folder.clone()].iter().flat_map(Path::parts).collect();
    folder.join(format!("cdc-{}.zstd.parquet", uuid::Uuid::new_v4()))
}

pub fn is_own(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with(OWN_PREFIX))
}

/// Parts of 10 MiB that may still be on their way when the next row group is handed over: a slow store slows the writer
/// down instead of filling the memory.
const PARTS_IN_FLIGHT: usize = 2;

/// Two of them are in memory while a file is rewritten.
pub const ROW_GROUP_BYTES: usize = 64 * 1024 * 1024;

/// Rows that are looked at together by most readers.
const ROW_GROUP_ROWS: usize = 256 * 1024;

/// How the columns of a data file are encoded; `leading` of them from the left get statistics.
pub fn writer_properties(schema: &SchemaRef, leading: usize) -> WriterProperties {
    let properties = WriterProperties::builder()
        .set_compression(zstd())
        // Rows differ in size a thousandfold, so bytes bound a row group, not only rows.
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        // A thousand leaves with statistics make a footer that costs more than the ids.
        .set_statistics_enabled(EnabledStatistics::None);
    // Every value of these is different: a dictionary would be built in vain.
    let properties = ["id", "id_versioned", "_sync_hash", "resource_json"]
        .into_iter()
        .fold(properties, |properties, name| properties.set_column_dictionary_enabled(ColumnPath::from(name), false));
    let leading = schema.fields().iter().take(leading);
    leading
        .fold(properties, |properties, field| {
            properties.set_column_statistics_enabled(ColumnPath::from(field.name().as_str()), EnabledStatistics::Chunk)
        })
        .build()
}

/// Below this the ids are read about as fast as the filter that would save it.
const FILTER_LEAST_ROWS: u64 = 16 * 1024;
/// A filter is a power of two, and at this a whole row group has half a MiB: two bytes a row (decision 10).
const FALSE_POSITIVES: f64 = 0.001;

/// The same with a Bloom filter of the ids for each row group, unless the file has fewer rows than are worth it. The
/// filters stand side by side at the end of the file, so that they are read at once.
pub fn with_bloom_filter(properties: WriterPropertiesBuilder, most_rows: u64) -> WriterPropertiesBuilder {
    if most_rows < FILTER_LEAST_ROWS {
        return properties;
    }
    let id = || ColumnPath::from("id");
    properties
        .set_bloom_filter_position(BloomFilterPosition::End)
        .set_column_bloom_filter_fpp(id(), FALSE_POSITIVES)
        .set_column_bloom_filter_max_ndv(id(), most_rows.min(ROW_GROUP_ROWS as u64))
}

/// For files that grow side by side: each leaf has a compressor of its own, and the hundreds of zstd, most of them for
/// leaves with hardly a value, would hold 60 MB per file. Snappy holds nothing; the columns that are large keep zstd.
pub fn with_small_compressors(properties: WriterPropertiesBuilder, schema: &SchemaRef) -> WriterPropertiesBuilder {
    let large = schema.fields().iter().filter(|field| !field.data_type().is_nested());
    large.fold(properties.set_compression(Compression::SNAPPY), |properties, field| {
        properties.set_column_compression(ColumnPath::from(field.name().as_str()), zstd())
    })
}

fn zstd() -> Compression {
    Compression::ZSTD(ZstdLevel::default())
}

/// The statistics of a file as the log states them: how many rows, and the bounds of the leading columns.
fn statistics(metadata: &ParquetMetaData, leading: usize) -> Value {
    let (mut least, mut most, mut nulls) = (Map::new(), Map::new(), Map::new());
    for column in 0..metadata.file_metadata().schema_descr().num_columns() {
        let descriptor = metadata.file_metadata().schema_descr().column(column);
        // Leading columns are flat, so they are the first leaves as well.
        let [name] = descriptor.path().parts() else { break };
        if column >= leading {
            break;
        }
        let chunks = metadata.row_groups().iter().map(|row_group| row_group.column(column).statistics());
        let Some(bounds) = chunks.map(|of| bounds(of?, descriptor.logical_type_ref())).collect::<Option<Vec<_>>>()
        else {
            continue;
        };
        nulls.insert(name.clone(), bounds.iter().map(|bounds| bounds.nulls).sum::<u64>().into());
        if let Some(bound) = bounds.iter().filter_map(|bounds| bounds.least.clone()).min() {
            least.insert(name.clone(), bound.stated_least());
        }
        if let Some(bound) = bounds.into_iter().filter_map(|bounds| bounds.most).max() {
            most.insert(name.clone(), bound.stated_most());
        }
    }
    json!({
        "numRecords": metadata.file_metadata().num_rows(),
        "minValues": least,
        "maxValues": most,
        "nullCount": nulls,
    })
}

struct Bounds {
    least: Option<Bound>,
    most: Option<Bound>,
    nulls: u64,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Bound {
    Text(String),
    InstantMicros(i64),
}

fn bounds(statistics: &Statistics, logical: Option<&LogicalType>) -> Option<Bounds> {
    let nulls = statistics.null_count_opt()?;
    let (least, most) = match (statistics, logical) {
        (Statistics::ByteArray(of), _) => {
            let text =
                |bytes: &parquet::data_type::ByteArray| bytes.as_utf8().ok().map(|text| Bound::Text(text.to_owned()));
            (of.min_opt().and_then(text), of.max_opt().and_then(text))
        }
        (Statistics::Int64(of), Some(LogicalType::Timestamp(_))) => {
            (of.min_opt().copied().map(Bound::InstantMicros), of.max_opt().copied().map(Bound::InstantMicros))
        }
        _ => return None,
    };
    Some(Bounds { least, most, nulls })
}

/// As long as Spark states a text.
const STATED_CHARS: usize = 32;

impl Bound {
    fn stated_least(&self) -> Value {
        match self {
            Self::Text(text) => text.chars().take(STATED_CHARS).collect::<String>().into(),
            Self::InstantMicros(micros) => instant(*micros),
        }
    }

    /// Readers add a millisecond to an instant; a text that is cut must be made larger than what it stands for.
    fn stated_most(&self) -> Value {
        match self {
            Self::Text(text) if text.chars().nth(STATED_CHARS).is_none() => text.as_str().into(),
            Self::Text(text) => text.chars().take(STATED_CHARS).chain([char::MAX]).collect::<String>().into(),
            Self::InstantMicros(micros) => instant(*micros),
        }
    }
}

/// In milliseconds, rounded down, as the protocol wants it.
fn instant(micros: i64) -> Value {
    let instant = DateTime::from_timestamp_micros(micros).unwrap_or_default();
    instant.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string().into()
}

/// By the local clock: only for the log's book-keeping, which vacuum reads.
pub fn now_millis() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "the log states when a file was made; no data decision uses it")]
    chrono::Utc::now().timestamp_millis()
}
