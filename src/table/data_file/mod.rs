//! A data file: one Parquet file of a table, read by ranges and written as a stream, on a disk or in an object store.

/// The deleted rows of a file.
pub mod deletion_vector;
/// Files are on the disk before a commit names them.
pub mod durable;
/// Files side by side, one for each partition.
pub mod partitioned;
/// Compression, row groups, Bloom filter.
pub mod properties;
/// Files of about 128 MiB, one after the other.
pub mod rolling;
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
use futures::{FutureExt as _, future::BoxFuture};
use object_store::{ObjectStoreExt as _, buffered::BufWriter};
use parquet::{
    arrow::{
        AsyncArrowWriter, arrow_reader::ArrowReaderOptions, async_reader::AsyncFileReader,
        async_writer::AsyncFileWriter,
    },
    errors::{ParquetError, Result},
    file::{
        metadata::{ParquetMetaData, ParquetMetaDataReader},
        properties::WriterProperties,
    },
};
use tokio::io::AsyncWriteExt as _;

use self::statistics::statistics;
use crate::table::date_partition::Partition;

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

impl AsyncFileReader for DataFile {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, Result<Bytes>> {
        async move {
            let mut parts = self.get_byte_ranges(vec![range]).await?;
            parts
                .pop()
                .ok_or_else(|| ParquetError::EOF("the store answered a request for one range with none".to_owned()))
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

/// A file that is being written. No reader sees it before its [`Add`] is committed. If it is dropped or aborted, no
/// file is created.
pub struct DataFileWriter {
    path: Path,
    writer: AsyncArrowWriter<InParts>,
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
        let out = BufWriter::with_capacity(store, path.clone(), PART_BYTES).with_max_concurrency(MAX_PARTS_IN_FLIGHT);
        let writer = AsyncArrowWriter::try_new(InParts(out), schema, Some(properties))?;
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

    /// How large the file would be if it ended here; the rows that are not encoded yet are an estimate.
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
        if let Err(error) = self.writer.into_inner().0.abort().await {
            tracing::warn!(%error, path = %self.path, "an unfinished data file was left behind; vacuum removes it");
        }
    }
}

/// Hands a file to the store in pieces: of a row group that is written at once, all parts would be on their way at once.
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
