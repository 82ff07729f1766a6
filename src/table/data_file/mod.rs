//! A data file: one Parquet file of a table, read by ranges and written as a stream, on a disk or in an object store.

/// The deleted rows of a file.
pub mod deletion_vector;
/// Files are on the disk before a commit names them.
pub mod durable;
/// Rows become row groups.
mod encoder;
/// Which fields of a column have something.
pub mod fill;
/// Files side by side, one for each partition.
pub mod partitioned;
/// Dictionaries, row groups, Bloom filter.
pub mod properties;
/// Files of about 128 MiB, one after the other.
pub mod rolling;
/// What the first rows of a file show of its leaf columns.
mod sample;
/// What the log states of a file.
pub mod statistics;
/// The files of a version, and their live rows.
pub mod stored;

use std::{ops::Range, sync::Arc};

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use bytes::Bytes;
use deltalake::{
    DeltaTableError, ObjectStore, Path,
    kernel::{Add, LogicalFileView},
};
use futures::{
    FutureExt as _,
    future::{self, BoxFuture},
};
use object_store::{ObjectStoreExt as _, buffered::BufWriter};
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::ArrowReaderOptions,
        async_reader::{AsyncFileReader, MetadataFetch},
        async_writer::AsyncFileWriter,
    },
    errors::{ParquetError, Result},
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData},
        properties::WriterProperties,
    },
};
use tokio::io::AsyncWriteExt as _;

use self::{encoder::Encoder, statistics::statistics};
use crate::{store::cache::Keep, table::date_partition::Partition};

/// How a data file loses some of its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UpdateMode {
    /// A deletion vector marks them as deleted. Little is written, but readers must support deletion vectors.
    #[default]
    DeletionVectors,
    /// The file is rewritten without them. Every reader can read the result.
    CopyOnWrite,
}

impl UpdateMode {
    pub const ALL: [Self; 2] = [Self::DeletionVectors, Self::CopyOnWrite];

    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::DeletionVectors => "deletion-vectors",
            Self::CopyOnWrite => "copy-on-write",
        }
    }
}

/// A file that can be read.
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

/// A smaller file is read as a whole: another request would take longer than the bytes that nobody needs.
const SMALL_FILE_BYTES: u64 = 256 * 1024;
/// How much is read from the end of a file at first, and what share of the file: footers grow with columns and row
/// groups. Where the footer is longer, a second request reads the rest.
const MIN_TAIL_BYTES: u64 = 64 * 1024;
const MAX_TAIL_BYTES: u64 = 1024 * 1024;
const TAIL_SHARE: u64 = 256;
/// Parts that are closer to each other are read in one request.
const MAX_GAP_BYTES: u64 = 1024 * 1024;

impl DataFile {
    /// Parts that are read again in each upsert, so a cache keeps them: footers, filters, ids and versions.
    pub async fn key_parts(&self, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let parts = if self.size_bytes <= SMALL_FILE_BYTES {
            Fetched { parts: vec![self.key_part(0..self.size_bytes).await?] }
        } else {
            let joined = join(ranges).into_iter().map(|range| self.key_part(range));
            Fetched { parts: future::try_join_all(joined).await? }
        };
        ranges.iter().map(|range| parts.get(range).ok_or_else(|| cut(&self.path))).collect()
    }

    async fn key_part(&self, range: Range<u64>) -> Result<(Range<u64>, Bytes)> {
        let got = self.store.get_opts(&self.path, Keep::range(range.clone())).await?;
        Ok((range, got.bytes().await?))
    }

    /// The column chunks of these columns in a row group, fetched; a reader of them waits for nothing.
    pub async fn key_columns(&self, row_group: &RowGroupMetaData, columns: &ProjectionMask) -> Result<FetchedFile> {
        let chunks = row_group.columns().iter().enumerate().filter(|(leaf, _)| columns.leaf_included(*leaf));
        let ranges: Vec<_> = chunks.map(|(_, chunk)| chunk_range(chunk)).collect();
        let parts = ranges.iter().cloned().zip(self.key_parts(&ranges).await?).collect();
        Ok(FetchedFile { file: self.clone(), fetched: Fetched { parts } })
    }

    /// The same of all columns. An upsert that reads them reads them once, so a cache does not keep them.
    pub async fn all_columns(&self, row_group: &RowGroupMetaData) -> Result<FetchedFile> {
        let ranges: Vec<_> = row_group.columns().iter().map(chunk_range).collect();
        let parts = self.clone().get_byte_ranges(ranges.clone()).await?;
        Ok(FetchedFile { file: self.clone(), fetched: Fetched { parts: ranges.into_iter().zip(parts).collect() } })
    }

    /// Reads the footer from the file itself, whatever a cache has.
    pub async fn footer_as_stored(&self) -> Result<ParquetMetaData> {
        ParquetMetaDataReader::new().load_and_finish(AsStored(self), self.size_bytes).await
    }

    fn tail_bytes(&self) -> u64 {
        (self.size_bytes / TAIL_SHARE).clamp(MIN_TAIL_BYTES, MAX_TAIL_BYTES).min(self.size_bytes)
    }
}

/// How many bytes the column chunks of these columns have in a row group.
pub fn bytes_of_columns(row_group: &RowGroupMetaData, columns: &ProjectionMask) -> u64 {
    let chunks = row_group.columns().iter().enumerate().filter(|(leaf, _)| columns.leaf_included(*leaf));
    chunks.map(|(_, chunk)| chunk_range(chunk)).map(|range| range.end - range.start).sum()
}

fn chunk_range(chunk: &ColumnChunkMetaData) -> Range<u64> {
    let (start, bytes) = chunk.byte_range();
    start..start.saturating_add(bytes)
}

fn cut(path: &Path) -> ParquetError {
    ParquetError::EOF(format!("the store answered with less of {path} than was requested"))
}

/// Ranges in order; those that are close to each other are one.
fn join(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut ranges = ranges.to_vec();
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(MAX_GAP_BYTES) => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Parts of a file, in memory.
#[derive(Clone, Default)]
struct Fetched {
    parts: Vec<(Range<u64>, Bytes)>,
}

impl Fetched {
    fn get(&self, range: &Range<u64>) -> Option<Bytes> {
        let (part, bytes) = self.parts.iter().find(|(part, _)| part.start <= range.start && range.end <= part.end)?;
        let offset = |at: u64| usize::try_from(at - part.start).ok();
        let (start, end) = (offset(range.start)?, offset(range.end)?);
        (end <= bytes.len()).then(|| bytes.slice(start..end))
    }
}

/// A file of which parts were fetched; what else is asked for is read from the file.
#[derive(Clone)]
pub struct FetchedFile {
    file: DataFile,
    fetched: Fetched,
}

impl AsyncFileReader for FetchedFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        match self.fetched.get(&range) {
            Some(bytes) => future::ready(Ok(bytes)).boxed(),
            None => self.file.get_bytes(range),
        }
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        match ranges.iter().map(|range| self.fetched.get(range)).collect() {
            Some(parts) => future::ready(Ok(parts)).boxed(),
            None => self.file.get_byte_ranges(ranges),
        }
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        self.file.get_metadata(options)
    }
}

/// The footer of a file, where it is read from the file itself.
struct AsStored<'file>(&'file DataFile);

impl MetadataFetch for AsStored<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move { Ok(self.0.store.get_range(&self.0.path, range).await?) }.boxed()
    }
}

/// The footer of a file, which a cache may have.
struct Footer<'file>(&'file DataFile);

impl MetadataFetch for Footer<'_> {
    fn fetch(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move { self.0.key_parts(&[range]).await?.pop().ok_or_else(|| cut(&self.0.path)) }.boxed()
    }
}

impl AsyncFileReader for DataFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move {
            let mut parts = self.get_byte_ranges(vec![range]).await?;
            parts.pop().ok_or_else(|| cut(&self.path))
        }
        .boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<Vec<Bytes>>> {
        async move {
            if self.size_bytes <= SMALL_FILE_BYTES {
                return self.key_parts(&ranges).await;
            }
            self.store.get_ranges(&self.path, &ranges).await.map_err(ParquetError::from)
        }
        .boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, Result<Arc<ParquetMetaData>>> {
        let reader = ParquetMetaDataReader::new().with_metadata_options(options.map(|o| o.metadata_options().clone()));
        async move {
            let tail = usize::try_from(self.tail_bytes()).ok();
            let reader = reader.with_prefetch_hint(tail);
            Ok(Arc::new(reader.load_and_finish(Footer(self), self.size_bytes).await?))
        }
        .boxed()
    }
}

/// A file that is being written. No reader sees it before its [`Add`] is committed. If it is dropped or aborted, no
/// file is created.
pub struct DataFileWriter {
    path: Path,
    encoder: Encoder,
    out: InParts,
    leading: usize,
    rows: u64,
}

impl DataFileWriter {
    /// `leading` columns from the left get statistics.
    pub fn create(
        store: Arc<dyn ObjectStore>,
        path: Path,
        schema: &SchemaRef,
        properties: WriterProperties,
        leading: usize,
    ) -> Result<Self> {
        let out = BufWriter::with_capacity(store, path.clone(), PART_BYTES).with_max_concurrency(MAX_PARTS_IN_FLIGHT);
        let encoder = Encoder::new(schema, properties)?;
        Ok(Self { path, encoder, out: InParts(out), leading, rows: 0 })
    }

    /// Rows that are written next, all of which are known already: then the first of them do not have to show which
    /// leaves have values.
    pub fn expect(&mut self, rows: &[RecordBatch]) -> Result<()> {
        rows.iter().try_for_each(|rows| self.encoder.note(rows))
    }

    /// Rows with exactly the columns of the file.
    pub async fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.rows += rows.num_rows() as u64;
        let mut rows = rows.clone();
        while rows.num_rows() > 0 {
            let fitting = self.encoder.room().min(rows.num_rows());
            if fitting == rows.num_rows() {
                self.encoder.write(&rows)?;
            } else if fitting > 0 {
                self.encoder.write(&rows.slice(0, fitting))?;
            }
            rows = rows.slice(fitting, rows.num_rows() - fitting);
            if self.encoder.room() == 0 {
                self.encoder.end_row_group(&mut self.out).await?;
            }
        }
        Ok(())
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// How large the file would be if it ended here; the rows that are not encoded yet are an estimate.
    pub fn size_bytes(&self) -> u64 {
        (self.encoder.bytes_written() + self.encoder.open_bytes()) as u64
    }

    pub async fn finish(mut self, partition: &Partition) -> std::result::Result<Add, DeltaTableError> {
        self.encoder.end_row_group(&mut self.out).await?;
        let metadata = self.encoder.finish()?;
        while let Some(piece) = self.encoder.rest() {
            self.out.write(piece).await?;
        }
        self.out.complete().await?;
        let size_bytes = self.encoder.bytes_written();
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

    pub async fn abort(mut self) {
        if let Err(error) = self.out.0.abort().await {
            tracing::warn!(%error, path = %self.path, "an unfinished data file was left behind; vacuum removes it");
        }
    }
}

/// Hands a file to the store in pieces. A whole row group in one call would start all its uploads together.
struct InParts(BufWriter);

impl AsyncFileWriter for InParts {
    fn write(&mut self, mut bytes: Bytes) -> BoxFuture<'_, Result<()>> {
        async move {
            while !bytes.is_empty() {
                let piece = bytes.split_to(bytes.len().min(PART_BYTES));
                self.0.put(piece).await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn complete(&mut self) -> BoxFuture<'_, Result<()>> {
        async move { Ok(self.0.shutdown().await?) }.boxed()
    }
}

/// Deletes a file that no commit names. If that fails, the vacuum deletes it later.
pub async fn forget(store: &dyn ObjectStore, path: &Path) {
    if let Err(error) = store.delete(path).await {
        tracing::debug!(%error, %path, "a data file that no commit names could not be deleted; vacuum removes it");
    }
}

/// The names of our own files begin so. In a file of another writer, rows may have changed while their `_sync_hash` did
/// not.
const OWN_PREFIX: &str = "fhir-sync-";

/// A new data file in `folder` of the table: its root, or a partition.
pub fn data_path(folder: &Path) -> Path {
    folder.clone().join(format!("{OWN_PREFIX}{}.zstd.parquet", uuid::Uuid::new_v4()))
}

/// A new file of the change data feed; `folder` is that of the data files whose rows are in it.
pub fn change_path(folder: &Path) -> Path {
    let folder: Path = [Path::from("_change_data"), folder.clone()].iter().flat_map(Path::parts).collect();
    folder.join(format!("cdc-{}.zstd.parquet", uuid::Uuid::new_v4()))
}

pub fn is_own(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.starts_with(OWN_PREFIX))
}

/// A smaller file is sent in one request.
const PART_BYTES: usize = 10 * 1024 * 1024;

/// How many parts may still be on their way to the store when more is written: a slow store then slows the
/// writer down instead of filling the memory.
const MAX_PARTS_IN_FLIGHT: usize = 2;

/// By the local clock. Only for the entry of a file in the log, which vacuum reads.
pub fn now_millis() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "the log states when a file was made; no data decision uses it")]
    chrono::Utc::now().timestamp_millis()
}
