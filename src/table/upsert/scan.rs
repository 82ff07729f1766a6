//! A scan: one row group whose ids, and then the versions of some rows, are read for an upsert.

use std::{collections::VecDeque, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StructArray, new_null_array},
    compute::cast,
    datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMicrosecondType},
    error::ArrowError,
};
use deltalake::DeltaTableError;
use futures::StreamExt as _;
use parquet::{
    arrow::{
        ParquetRecordBatchStreamBuilder, ProjectionMask,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection},
        async_reader::ParquetRecordBatchStream,
    },
    file::{metadata::RowGroupMetaData, statistics::Statistics},
};
use tokio::sync::{Mutex, MutexGuard};

use crate::fhir::{Meta, TransactionTime, Version};
use crate::table::{
    Upsert,
    data_file::deletion_vector::RowSet,
    data_file::stored::{FileIndex, StoredFile, batch_rows, selection},
    data_file::{FetchedFile, bytes_of_columns},
    ids::Ids,
    upsert::row_groups::prune,
};

/// Rows that are decoded at once; fewer where the lines of a file are read.
const BATCH_ROWS: usize = 8192;

/// The columns of a version.
const VERSION_COLUMNS: [&str; 5] =
    ["_sync_transaction_time", "_sync_hash", "meta.lastUpdated", "meta.versionId", "meta.tag.list.element.code"];
/// The columns of a version in a file without `meta`: its table has no columns of elements, or they are null in all
/// rows.
const RAW_VERSION_COLUMNS: [&str; 3] = ["_sync_transaction_time", "_sync_hash", "resource_json"];

/// A row group that is read.
pub struct RowGroupScan<'files> {
    pub file: FileIndex,
    stored: &'files StoredFile,
    footer: ArrowReaderMetadata,
    row_group: usize,
    /// The index in the file of the row group's first row.
    first_row: u64,
}

/// What the ids of stored rows are looked up in.
pub trait Lookup: Sync {
    type Found: Copy + Send + Sync;

    fn find(&self, id: &str) -> Option<Self::Found>;

    /// If the id is not found: is it certainly not in the change set?
    fn decides_on(&self, id: &str) -> bool;
}

/// The row groups of a file that may have one of the ids.
pub async fn scans<'files>(
    file: FileIndex,
    stored: &'files StoredFile,
    ids: Option<&Ids>,
) -> Result<Vec<RowGroupScan<'files>>, DeltaTableError> {
    let footer = key_footer(stored).await?;
    let mut first_row = 0;
    let row_groups = footer.metadata().row_groups().iter().enumerate();
    let scans = row_groups.map(|(row_group, metadata)| {
        let scan = RowGroupScan { file, stored, footer: footer.clone(), row_group, first_row };
        first_row += u64::try_from(metadata.num_rows()).unwrap_or_default();
        scan
    });
    let mut scans: Vec<_> = scans.collect();
    if let Some(ids) = ids {
        let remaining = prune(stored, footer.metadata(), ids).await?;
        scans.retain(|scan| remaining.contains(&scan.row_group));
    }
    Ok(scans)
}

/// The footer, with ids as views into the pages: copying an id would cost more than looking it up.
async fn key_footer(stored: &StoredFile) -> Result<ArrowReaderMetadata, DeltaTableError> {
    let footer = stored.footer().await?;
    let fields = footer.schema().fields().iter().map(|field| match field.name().as_str() {
        "id" if field.data_type() == &DataType::Utf8 => Arc::new(Field::new("id", DataType::Utf8View, true)),
        _ => Arc::clone(field),
    });
    let schema = Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), footer.schema().metadata().clone()));
    let options = ArrowReaderOptions::new().with_schema(schema);
    Ok(ArrowReaderMetadata::try_new(Arc::clone(footer.metadata()), options)?)
}

/// What the keys of a row group say.
pub struct Found<Of> {
    /// The rows whose id was found, and as what: their indices in the row group.
    pub rows: Vec<(u64, Of)>,
    /// As in [`Probed`], of the file of the row group.
    pub missing: RowSet,
    pub stored_rows: u64,
}

impl RowGroupScan<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.footer.metadata().row_group(self.row_group)
    }

    pub fn key_columns(&self, upsert: &Upsert) -> Vec<&'static str> {
        let mut columns = vec!["id"];
        if !self.is_only_of(upsert) {
            columns.push("_sync_source");
        }
        if upsert.reconcile.is_some() {
            columns.push("_sync_transaction_time");
        }
        columns
    }

    fn is_only_of(&self, upsert: &Upsert) -> bool {
        is_only(self.metadata(), "_sync_source", &upsert.source)
    }

    pub fn version_columns(&self) -> &'static [&'static str] {
        let is_typed = self.footer.schema().field_with_name("meta").is_ok();
        if is_typed { &VERSION_COLUMNS } else { &RAW_VERSION_COLUMNS }
    }

    fn mask(&self, columns: &[&str]) -> ProjectionMask {
        ProjectionMask::columns(self.footer.parquet_schema(), columns.iter().copied())
    }

    pub fn bytes_of(&self, columns: &[&str]) -> u64 {
        bytes_of_columns(self.metadata(), &self.mask(columns))
    }

    pub async fn fetch(&self, columns: &[&str]) -> Result<FetchedFile, DeltaTableError> {
        Ok(self.stored.file.key_columns(self.metadata(), &self.mask(columns)).await?)
    }

    pub async fn find<In: Lookup>(
        &self,
        keys: FetchedFile,
        lookup: &In,
        upsert: &Upsert,
    ) -> Result<Found<In::Found>, DeltaTableError> {
        let mut batches = self.read(keys, &self.key_columns(upsert), None)?;
        let all_ours = self.is_only_of(upsert);
        let mut found = Found { rows: Vec::new(), missing: RowSet::new(), stored_rows: 0 };
        let mut first_row = 0;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let rows = KeyRows::try_new(&batch, all_ours)?;
            for row in 0..batch.num_rows() {
                let Some(id) = rows.id(row, &upsert.source) else { continue };
                let index = first_row + row as u64;
                let dead = || self.stored.dead.contains(self.first_row + index);
                match lookup.find(id) {
                    Some(of) if !dead() => found.rows.push((index, of)),
                    None if upsert.reconcile.is_some() && lookup.decides_on(id) && !dead() => {
                        found.stored_rows += 1;
                        if rows.transaction_time(row) <= upsert.compared_until() {
                            found.missing.insert(self.first_row + index);
                        }
                    }
                    _ => {}
                }
            }
            first_row += batch.num_rows() as u64;
        }
        found.stored_rows += found.rows.len() as u64;
        Ok(found)
    }

    /// Gives the versions of the rows that were found to `take`, some at a time. Lines are in memory for one row group at
    /// a time, whichever holds `has_lines`, which is one for all row groups of a probe.
    pub async fn read_versions<Of: Copy>(
        &self,
        versions: FetchedFile,
        found: &[(u64, Of)],
        has_lines: &Mutex<()>,
        mut take: impl FnMut(Vec<StoredVersion<Of>>),
    ) -> Result<(), DeltaTableError> {
        let rows = selection(found.iter().map(|(index, _)| *index));
        let mut batches = self.read(versions, self.version_columns(), Some(rows))?;
        let (mut found, mut lines) = (found, None);
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let rows = VersionRows::try_new(&batch)?;
            let (of_batch, rest) = found.split_at(batch.num_rows().min(found.len()));
            found = rest;
            let untyped = of_batch.iter().enumerate().filter(|(row, _)| self.is_untyped(&rows, *row));
            let untyped: Vec<_> = untyped.map(|(_, (index, _))| *index).collect();
            let mut of_lines = self.versions_of_lines(&untyped, &mut lines, has_lines).await?;
            let versions = of_batch.iter().enumerate().map(|(row, (index, of))| {
                let of_line = if self.is_untyped(&rows, row) { of_lines.pop_front() } else { None };
                StoredVersion {
                    file: self.file,
                    row: self.first_row + index,
                    of: *of,
                    version: of_line.unwrap_or_else(|| rows.version(row)),
                    hash: rows.hash(row),
                }
            });
            take(versions.collect());
        }
        Ok(())
    }

    /// May the row be one of before its table had columns of elements? Compacted with others, it is in a file with
    /// `meta`, which is null for it, and its version is in the line alone.
    fn is_untyped(&self, rows: &VersionRows, row: usize) -> bool {
        rows.meta.as_ref().is_some_and(|meta| meta.is_null(row))
            && self.footer.schema().index_of("resource_json").is_ok()
    }

    /// The versions of these rows of the row group by their lines; `lines` is fetched once.
    ///
    /// Only a batch of other columns says that they are needed, also for a typed row whose resource has no `meta`: the
    /// room that was taken for the row group lacks them, and all cores could fetch them at once. Who holds `has_lines`
    /// waits for its own reads and for `take`, and for no other row group.
    async fn versions_of_lines<'probe>(
        &self,
        rows: &[u64],
        lines: &mut Option<(FetchedFile, MutexGuard<'probe, ()>)>,
        has_lines: &'probe Mutex<()>,
    ) -> Result<VecDeque<Version>, DeltaTableError> {
        let mut versions = VecDeque::with_capacity(rows.len());
        if !rows.is_empty() && lines.is_none() {
            let holds = has_lines.lock().await;
            *lines = Some((self.fetch(&RAW_VERSION_COLUMNS).await?, holds));
        }
        let Some((lines, _)) = lines.as_ref().filter(|_| !rows.is_empty()) else { return Ok(versions) };
        let mut batches = self.read(lines.clone(), &RAW_VERSION_COLUMNS, Some(selection(rows.iter().copied())))?;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let rows = VersionRows::try_new(&batch)?;
            versions.extend((0..batch.num_rows()).map(|row| rows.version(row)));
        }
        Ok(versions)
    }

    pub fn bytes_of_all_columns(&self) -> u64 {
        bytes_of_columns(self.metadata(), &ProjectionMask::all())
    }

    pub async fn fetch_all_columns(&self) -> Result<FetchedFile, DeltaTableError> {
        Ok(self.stored.file.all_columns(self.metadata()).await?)
    }

    /// Those of `rows`, which are rows of the file, that are in this row group.
    pub fn rows_among(&self, rows: &RowSet) -> RowSet {
        let mut among = RowSet::new();
        let count = u64::try_from(self.metadata().num_rows()).unwrap_or_default();
        among.insert_range(self.first_row..self.first_row + count);
        among & rows
    }

    /// `rows` of [`Self::rows_among`], in order.
    pub fn read_all_columns(
        &self,
        fetched: FetchedFile,
        rows: &RowSet,
    ) -> Result<ParquetRecordBatchStream<FetchedFile>, DeltaTableError> {
        let rows = selection(rows.iter().map(|row| row - self.first_row));
        let batch_rows = batch_rows(self.footer.metadata());
        self.read_columns(fetched, ProjectionMask::all(), batch_rows, Some(rows))
    }

    /// All columns but the line are small.
    fn batch_rows(&self, columns: &[&str]) -> usize {
        if columns.contains(&"resource_json") { batch_rows(self.footer.metadata()).min(BATCH_ROWS) } else { BATCH_ROWS }
    }

    fn read(
        &self,
        file: FetchedFile,
        columns: &[&str],
        selection: Option<RowSelection>,
    ) -> Result<ParquetRecordBatchStream<FetchedFile>, DeltaTableError> {
        self.read_columns(file, self.mask(columns), self.batch_rows(columns), selection)
    }

    fn read_columns(
        &self,
        file: FetchedFile,
        columns: ProjectionMask,
        batch_rows: usize,
        selection: Option<RowSelection>,
    ) -> Result<ParquetRecordBatchStream<FetchedFile>, DeltaTableError> {
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(file, self.footer.clone());
        let mut builder =
            builder.with_row_groups(vec![self.row_group]).with_projection(columns).with_batch_size(batch_rows);
        if let Some(selection) = selection {
            builder = builder.with_row_selection(selection);
        }
        Ok(builder.build()?)
    }
}

/// The version of a row, and as what its id was found.
pub struct StoredVersion<Of> {
    pub file: FileIndex,
    pub row: u64,
    pub of: Of,
    pub version: Version,
    /// As the row carries it, whoever wrote the file.
    pub hash: Option<u64>,
}

/// Do the statistics say that every row has this text in the column?
fn is_only(row_group: &RowGroupMetaData, column: &str, text: &str) -> bool {
    let chunk = row_group.columns().iter().find(|chunk| chunk.column_path().string() == column);
    let Some(Statistics::ByteArray(statistics)) = chunk.and_then(|chunk| chunk.statistics()) else { return false };
    let is = |bound: Option<&parquet::data_type::ByteArray>| bound.is_some_and(|bound| bound.data() == text.as_bytes());
    statistics.null_count_opt() == Some(0) && is(statistics.min_opt()) && is(statistics.max_opt())
}

fn column(batch: &RecordBatch, name: &str, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    match batch.column_by_name(name) {
        Some(column) => cast(column, data_type),
        None => Ok(new_null_array(data_type, batch.num_rows())),
    }
}

/// The columns that say which resource and source a row is of.
struct KeyRows {
    ids: ArrayRef,
    /// Not read where the statistics say that all rows are of our source.
    sources: Option<ArrayRef>,
    transaction_times: ArrayRef,
}

impl KeyRows {
    fn try_new(batch: &RecordBatch, all_ours: bool) -> Result<Self, ArrowError> {
        Ok(Self {
            ids: column(batch, "id", &DataType::Utf8View)?,
            sources: if all_ours { None } else { Some(column(batch, "_sync_source", &DataType::Utf8)?) },
            transaction_times: column(
                batch,
                "_sync_transaction_time",
                &DataType::Timestamp(TimeUnit::Microsecond, None),
            )?,
        })
    }

    fn id(&self, row: usize, source: &str) -> Option<&str> {
        let ids = self.ids.as_string_view();
        let ours = self.sources.as_ref().is_none_or(|sources| {
            let sources = sources.as_string::<i32>();
            sources.is_valid(row) && sources.value(row) == source
        });
        (ours && ids.is_valid(row)).then(|| ids.value(row))
    }

    fn transaction_time(&self, row: usize) -> Option<TransactionTime> {
        transaction_time(&self.transaction_times, row)
    }
}

fn transaction_time(times: &ArrayRef, row: usize) -> Option<TransactionTime> {
    let times = times.as_primitive::<TimestampMicrosecondType>();
    times.is_valid(row).then(|| times.value(row)).and_then(TransactionTime::from_micros)
}

/// The columns of a version.
struct VersionRows {
    transaction_times: ArrayRef,
    hashes: ArrayRef,
    meta: Option<StructArray>,
    last_updated: ArrayRef,
    json: ArrayRef,
}

impl VersionRows {
    fn try_new(batch: &RecordBatch) -> Result<Self, ArrowError> {
        let instant = DataType::Timestamp(TimeUnit::Microsecond, None);
        let meta = batch.column_by_name("meta").and_then(|meta| meta.as_struct_opt());
        // Other writers may have stored it in other units.
        let last_updated = match meta.and_then(|meta| meta.column_by_name("lastUpdated")) {
            Some(last_updated) => cast(last_updated, &instant)?,
            None => new_null_array(&instant, batch.num_rows()),
        };
        Ok(Self {
            transaction_times: column(batch, "_sync_transaction_time", &instant)?,
            hashes: column(batch, "_sync_hash", &DataType::Int64)?,
            meta: meta.cloned(),
            last_updated,
            json: column(batch, "resource_json", &DataType::Utf8)?,
        })
    }

    fn hash(&self, row: usize) -> Option<u64> {
        let hashes = self.hashes.as_primitive::<Int64Type>();
        hashes.is_valid(row).then(|| hashes.value(row).cast_unsigned())
    }

    fn version(&self, row: usize) -> Version {
        let version = match &self.meta {
            Some(meta) => self.typed_version(meta, row),
            None => self.raw_version(row),
        };
        version.at(transaction_time(&self.transaction_times, row))
    }

    /// From `resource_json`. A row without a readable line has no version: any row may replace it.
    fn raw_version(&self, row: usize) -> Version {
        #[derive(serde::Deserialize)]
        struct Head {
            meta: Option<Meta>,
        }
        let json = self.json.as_string::<i32>();
        let json = if json.is_valid(row) { json.value(row) } else { "" };
        let head: Option<Head> = serde_json::from_str(json).ok();
        Version::of(head.and_then(|head| head.meta).as_ref())
    }
    /// A row without `meta` has no version.
    fn typed_version(&self, meta: &StructArray, row: usize) -> Version {
        if meta.is_null(row) {
            return Version::default();
        }
        let last_updated = self.last_updated.as_primitive::<TimestampMicrosecondType>();
        let version_id = meta.column_by_name("versionId").and_then(|column| column.as_string_opt::<i32>());
        let tags = meta.column_by_name("tag").and_then(|column| column.as_list_opt::<i32>());
        let tags = tags.filter(|tags| tags.is_valid(row)).map(|tags| tags.value(row));
        let codes = tags.as_ref().and_then(|tags| tags.as_struct_opt()?.column_by_name("code")?.as_string_opt::<i32>());
        Version {
            last_updated_micros: last_updated.is_valid(row).then(|| last_updated.value(row)),
            version_id: version_id
                .filter(|column| column.is_valid(row))
                .and_then(|column| column.value(row).parse().ok()),
            transaction_time_micros: None,
            subsetted: codes.is_some_and(|codes| codes.iter().any(|code| code == Some("SUBSETTED"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::StringArray;
    use deltalake::{Path, kernel::Add};
    use futures::poll;
    use object_store::{ObjectStoreExt as _, memory::InMemory};
    use parquet::arrow::ArrowWriter;

    use super::*;
    use crate::table::{data_file::DataFile, data_file::deletion_vector::RowSet};

    async fn stored<const N: usize>(columns: [(&str, ArrayRef); N]) -> StoredFile {
        let rows = RecordBatch::try_from_iter_with_nullable(columns.map(|(of, column)| (of, column, true))).unwrap();
        let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), None).unwrap();
        writer.write(&rows).unwrap();
        let bytes = writer.into_inner().unwrap();
        let file = DataFile { store: Arc::new(InMemory::new()), path: Path::from("a"), size_bytes: bytes.len() as u64 };
        file.store.put(&file.path, bytes.into()).await.unwrap();
        StoredFile { add: Add::default(), file, dead: RowSet::new(), own: true }
    }

    /// (a table of a server that is not R4)
    #[tokio::test]
    async fn of_long_lines_few_are_decoded_at_once() {
        const LINE_BYTES: usize = 50_000;
        let line = |number| format!("{number:0LINE_BYTES$}");
        let lines: ArrayRef = Arc::new(StringArray::from_iter_values((0..200).map(line)));
        let stored = stored([("resource_json", lines)]).await;
        let scan = scans(FileIndex(0), &stored, None).await.unwrap().pop().unwrap();
        let fetched = scan.fetch(scan.version_columns()).await.unwrap();
        let batches = scan.read(fetched, scan.version_columns(), None).unwrap();
        let sizes: Vec<_> = batches.map(|batch| batch.unwrap().num_rows()).collect().await;
        assert_eq!(sizes.iter().sum::<usize>(), 200);
        assert!(sizes.iter().all(|rows| rows * LINE_BYTES < 8 * 1024 * 1024), "{sizes:?}");
    }

    #[tokio::test]
    async fn lines_beside_typed_columns_are_in_memory_for_one_row_group_at_a_time() {
        let lines: ArrayRef = Arc::new(StringArray::from_iter_values([r#"{"meta":{"versionId":"3"}}"#, "{}"]));
        let version_id = Field::new("versionId", DataType::Utf8, true);
        let meta = new_null_array(&DataType::Struct(vec![version_id].into()), 2);
        let stored = stored([("meta", meta), ("resource_json", lines)]).await;
        let scan = scans(FileIndex(0), &stored, None).await.unwrap().pop().unwrap();
        let (has_lines, mut versions) = (Mutex::new(()), Vec::new());
        let other = has_lines.lock().await;
        let fetched = scan.fetch(scan.version_columns()).await.unwrap();
        let take = |some: Vec<StoredVersion<()>>| versions.extend(some.iter().map(|of| of.version.version_id));
        let mut read = Box::pin(scan.read_versions(fetched, &[(0, ()), (1, ())], &has_lines, take));
        for _ in 0..1000 {
            assert!(poll!(&mut read).is_pending(), "another row group has its lines in memory");
            tokio::task::yield_now().await;
        }
        drop(other);
        read.await.unwrap();
        assert_eq!(versions, [Some(3), None]);
    }
}
