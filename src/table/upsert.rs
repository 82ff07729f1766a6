//! Upsert: a change set and a table become one commit.
//!
//! Probe where the ids of the change set lie, decide per id, write, commit. Files without a replaced or deleted row are
//! not touched; the others are written again without those rows, a batch at a time. Each row of the change set ends in
//! exactly one of the [`Counts`].

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array},
    compute::{cast, filter_record_batch},
    datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType},
    error::ArrowError,
};
use deltalake::{
    DeltaTableError,
    datafile::writer::{DeltaWriter, WriterConfig},
    kernel::{Action, LogicalFileView},
    table::config::TablePropertiesExt as _,
};
use futures::{StreamExt as _, TryStreamExt as _};
use parquet::{
    arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask, async_reader::ParquetRecordBatchStream},
    basic::{Compression, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};

use super::{
    ChangeSet, Error, Table, arrow_schema,
    change_set::Slot,
    commit::{self, Outcome},
    data_file::DataFile,
};
use crate::fhir::{Meta, TransactionTime, Version};

/// What a commit is for.
#[derive(Clone, Debug)]
pub struct Upsert {
    /// Names the export in the log of the table.
    pub app_id: String,
    /// Only rows with this `_sync_source` are looked at.
    pub source: String,
    /// What the commit makes the table's watermark; without one the rows are upserted and the watermark stays.
    pub watermark: Option<TransactionTime>,
    /// The number of the run, for people who read the table's history.
    pub run: u64,
    /// Set where the change set is everything that there is: rows that it does not have are removed.
    pub reconcile: Option<Reconcile>,
}

/// How rows are removed that a full refresh no longer brings. Servers that never speak of deletions leave
/// no other way to notice them.
#[derive(Clone, Copy, Debug)]
pub struct Reconcile {
    /// When more of the stored rows are gone, none is removed: that is a server in trouble, not a deletion (rule 98).
    pub max_gone_percent: f64,
}

/// What happened to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub version: u64,
    pub counts: Counts,
    /// Bytes of data files written.
    pub bytes_written: u64,
}

/// What became of the rows and deletions of a change set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub inserted: u64,
    pub updated: u64,
    /// Equal to what was there already; a deletion of an id that was not there counts here.
    pub unchanged: u64,
    /// Older than what was there.
    pub stale: u64,
    /// Superseded within the same export.
    pub duplicate: u64,
    pub deleted: u64,
    /// Rows that a full refresh no longer brought, removed. They were not received, so they are no part of the total.
    pub removed: u64,
    /// The same, but too many to believe: they are still there.
    pub gone: u64,
}

impl Counts {
    pub fn total(&self) -> u64 {
        self.inserted + self.updated + self.unchanged + self.stale + self.duplicate + self.deleted
    }
}

/// How often the whole upsert is done again because others changed the table in between.
const ATTEMPTS: u32 = 5;

/// Files of about this size are what readers of a lake like.
const TARGET_FILE_BYTES: u64 = 128 * 1024 * 1024;

impl Table {
    /// Brings the changes into the table. Encoding and decoding block; the caller gives this a thread of its own.
    pub async fn upsert(mut self, changes: &mut ChangeSet, upsert: &Upsert) -> Result<Committed, Error> {
        for _ in 0..ATTEMPTS {
            self.check_ours(changes.schema())?;
            let decision = self.decide(changes, upsert).await?;
            self.check_balance(changes, &decision.counts)?;
            let actions = self.write(changes, &decision).await?;
            match commit::commit(&mut self.delta, &self.place, actions, &decision.counts, upsert).await? {
                Outcome::Committed { bytes_written } => {
                    return Ok(Committed { version: self.version(), counts: decision.counts, bytes_written });
                }
                Outcome::Overtaken => {
                    tracing::warn!(resource_type = %self.resource_type, "another writer changed the table, merging again");
                }
            }
        }
        Err(Error::Conflict { resource_type: self.resource_type, attempts: ATTEMPTS })
    }

    fn check_ours(&self, schema: &SchemaRef) -> Result<(), Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let columns = arrow_schema(&self.delta).map_err(|error| self.failed(error))?;
        if let Some(missing) = schema.fields().iter().find(|field| columns.field_with_name(field.name()).is_err()) {
            return Err(Error::NotOurs {
                place: self.place.clone(),
                reason: format!("it has no column {}", missing.name()),
            });
        }
        if !snapshot.metadata().partition_columns().is_empty() {
            return Err(Error::Unsupported {
                place: self.place.clone(),
                feature: "partition columns".to_owned(),
                way_out: "move it away, so that it is made anew",
            });
        }
        Ok(())
    }

    fn check_balance(&self, changes: &ChangeSet, counts: &Counts) -> Result<(), Error> {
        if counts.total() == changes.received() {
            return Ok(());
        }
        Err(Error::Unbalanced {
            resource_type: self.resource_type,
            counts: format!("received {}, accounted for {counts:?}", changes.received()),
        })
    }

    /// Looks up every stored copy of the ids of the change set and says what happens to each.
    async fn decide(&self, changes: &ChangeSet, upsert: &Upsert) -> Result<Decision, Error> {
        let mut decision = Decision::default();
        decision.counts.duplicate = changes.duplicate();
        let mut met = HashMap::new();
        let mut gone = Vec::new();
        if !changes.is_empty() {
            decision.files = self.files().await?;
        }
        for (index, file) in decision.files.iter().enumerate() {
            let mut first_row = 0;
            let mut batches = self.read(file, Some(&KEY_COLUMNS)).await?;
            while let Some(batch) = batches.next().await {
                let batch = batch.map_err(|error| self.failed(error))?;
                let stored = StoredRows::try_new(&batch).map_err(|error| self.failed(error))?;
                for row in 0..batch.num_rows() {
                    let Some(id) = stored.id(row, &upsert.source) else { continue };
                    decision.stored += 1;
                    let Some(slot) = changes.get(id) else {
                        if upsert.reconcile.is_some() && stored.transaction_time(row) <= upsert.watermark {
                            gone.push((index, first_row + row));
                        }
                        continue;
                    };
                    let fate = fate(slot, || stored.version(row), stored.hash(row), upsert.watermark);
                    if matches!(fate, Fate::Update | Fate::Delete) {
                        decision.dead.entry(index).or_default().insert(first_row + row);
                    }
                    met.entry(id.to_owned()).or_insert(fate);
                }
                first_row += batch.num_rows();
            }
        }
        decision.settle(changes, &met);
        if let Some(reconcile) = upsert.reconcile {
            decision.reconcile(reconcile, gone);
        }
        Ok(decision)
    }

    async fn files(&self) -> Result<Vec<LogicalFileView>, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let log_store = self.delta.log_store();
        let files: Vec<_> = snapshot
            .snapshot()
            .file_views(log_store.as_ref(), None)
            .try_collect()
            .await
            .map_err(|error| self.failed(error))?;
        if files.iter().any(|file| file.deletion_vector_descriptor().is_some()) {
            return Err(Error::Unsupported {
                place: self.place.clone(),
                feature: "deletion vectors".to_owned(),
                way_out: "run REORG TABLE … APPLY (PURGE) and switch off delta.enableDeletionVectors",
            });
        }
        Ok(files)
    }

    async fn read(
        &self,
        file: &LogicalFileView,
        columns: Option<&[&str]>,
    ) -> Result<ParquetRecordBatchStream<DataFile>, Error> {
        let file = DataFile {
            store: self.delta.object_store(),
            path: file.object_store_path(),
            size_bytes: u64::try_from(file.size()).unwrap_or_default(),
        };
        let builder = ParquetRecordBatchStreamBuilder::new(file).await.map_err(|error| self.failed(error))?;
        let mut builder = builder.with_batch_size(4096);
        if let Some(columns) = columns {
            let mask = ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied());
            builder = builder.with_projection(mask);
        }
        builder.build().map_err(|error| self.failed(error))
    }

    /// Writes the new data files and says what goes and what comes.
    async fn write(&self, changes: &mut ChangeSet, decision: &Decision) -> Result<Vec<Action>, Error> {
        let schema = arrow_schema(&self.delta).map_err(|error| self.failed(error))?;
        let mut writer = self.writer(&schema)?;
        match self.write_rows(&mut writer, &schema, changes, decision).await {
            Ok(()) => {}
            Err(error) => {
                if let Err(abort) = writer.abort().await {
                    tracing::warn!(error = %abort, "an unfinished data file was left behind; vacuum removes it");
                }
                return Err(error);
            }
        }
        let adds = writer.close().await.map_err(|error| self.failed(error))?;
        let removes = decision.dead.keys().map(|file| Action::Remove(decision.files[*file].remove_action(true)));
        Ok(removes.chain(adds.into_iter().map(Action::Add)).collect())
    }

    async fn write_rows(
        &self,
        writer: &mut DeltaWriter,
        schema: &SchemaRef,
        changes: &mut ChangeSet,
        decision: &Decision,
    ) -> Result<(), Error> {
        for (index, dead) in &decision.dead {
            let mut first_row = 0;
            let mut batches = self.read(&decision.files[*index], None).await?;
            while let Some(batch) = batches.next().await {
                let batch = batch.map_err(|error| self.failed(error))?;
                let rows = first_row..first_row + batch.num_rows();
                first_row = rows.end;
                let alive = rows.map(|row| Some(!dead.contains(&row))).collect();
                self.append(writer, schema, &batch, &alive).await?;
            }
        }
        if decision.write.is_empty() {
            return Ok(());
        }
        for (index, batch) in (0u32..).zip(changes.batches()?) {
            let batch = batch.map_err(Error::spool)?;
            let Some(rows) = decision.write.get(&index) else { continue };
            let chosen = (0u32..).take(batch.num_rows()).map(|row| Some(rows.contains(&row)));
            self.append(writer, schema, &batch, &chosen.collect()).await?;
        }
        Ok(())
    }

    async fn append(
        &self,
        writer: &mut DeltaWriter,
        schema: &SchemaRef,
        batch: &RecordBatch,
        rows: &BooleanArray,
    ) -> Result<(), Error> {
        let batch = filter_record_batch(batch, rows)
            .and_then(|batch| align(&batch, schema))
            .map_err(|error| self.failed(error))?;
        if batch.num_rows() == 0 {
            return Ok(());
        }
        writer.write(&batch).await.map_err(|error| self.failed(error))
    }

    fn writer(&self, schema: &SchemaRef) -> Result<DeltaWriter, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let config = WriterConfig::new(
            Arc::clone(schema),
            Vec::new(),
            Some(writer_properties()),
            std::num::NonZeroU64::new(TARGET_FILE_BYTES),
            None,
            snapshot.table_config().num_indexed_cols(),
            None,
        );
        Ok(DeltaWriter::new(self.delta.object_store(), config))
    }

    pub(super) fn failed(&self, error: impl Into<DeltaTableError>) -> Error {
        Error::delta(&self.place, error)
    }
}

/// What a probe reads of a data file.
const KEY_COLUMNS: [&str; 5] = ["id", "_sync_source", "_sync_transaction_time", "_sync_hash", "resource_json"];

/// What happens to a stored row whose id the change set has, and to the change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Update,
    Unchanged,
    Stale,
    Delete,
}

/// `exported_at` stands in for the time of a deletion that states none.
fn fate(
    slot: &Slot,
    stored_version: impl Fn() -> Version,
    stored_hash: Option<u64>,
    exported_at: Option<TransactionTime>,
) -> Fate {
    match slot {
        Slot::Row(row) if Some(row.hash) == stored_hash => Fate::Unchanged,
        Slot::Row(row) if row.version.may_replace(&stored_version()) => Fate::Update,
        Slot::Row(_) => Fate::Stale,
        // A deletion that comes late must not remove what was created again since (rule 97).
        Slot::Deleted { at } => {
            let at_micros = at.map(|at| at.timestamp_micros()).or(exported_at.map(TransactionTime::as_micros));
            match (at_micros, stored_version().last_updated_micros) {
                (Some(at_micros), Some(last_updated_micros)) if at_micros < last_updated_micros => Fate::Stale,
                _ => Fate::Delete,
            }
        }
    }
}

/// Which stored rows go, which new ones come, and how that counts.
#[derive(Default)]
struct Decision {
    files: Vec<LogicalFileView>,
    /// Rows to leave out, by file.
    dead: BTreeMap<usize, BTreeSet<usize>>,
    /// Rows to write, by batch of the spool.
    write: HashMap<u32, HashSet<u32>>,
    /// Rows of our source that were there.
    stored: u64,
    counts: Counts,
}

impl Decision {
    /// Removes the rows that are gone, unless they are too many.
    fn reconcile(&mut self, reconcile: Reconcile, gone: Vec<(usize, usize)>) {
        let count = gone.len() as u64;
        #[expect(clippy::cast_precision_loss, reason = "a share in percent needs no more than 52 bits")]
        let gone_percent = count as f64 * 100.0 / self.stored.max(1) as f64;
        if gone_percent > reconcile.max_gone_percent {
            self.counts.gone = count;
            return;
        }
        self.counts.removed = count;
        for (file, row) in gone {
            self.dead.entry(file).or_default().insert(row);
        }
    }

    fn settle(&mut self, changes: &ChangeSet, met: &HashMap<String, Fate>) {
        for (id, slot) in changes.slots() {
            let counter = match (slot, met.get(id)) {
                (_, Some(Fate::Unchanged)) | (Slot::Deleted { .. }, None) => &mut self.counts.unchanged,
                (_, Some(Fate::Stale)) => &mut self.counts.stale,
                (Slot::Deleted { .. }, Some(_)) => &mut self.counts.deleted,
                (Slot::Row(row), fate) => {
                    self.write.entry(row.batch).or_default().insert(row.row);
                    if fate.is_some() { &mut self.counts.updated } else { &mut self.counts.inserted }
                }
            };
            *counter += 1;
        }
    }
}

/// The key columns of a batch of stored rows.
struct StoredRows {
    ids: ArrayRef,
    sources: ArrayRef,
    transaction_times: ArrayRef,
    hashes: ArrayRef,
    json: ArrayRef,
}

impl StoredRows {
    fn try_new(batch: &RecordBatch) -> Result<Self, ArrowError> {
        use arrow::datatypes::{DataType, TimeUnit};
        let column = |name: &str, data_type: &DataType| match batch.column_by_name(name) {
            Some(column) => cast(column, data_type),
            None => Ok(new_null_array(data_type, batch.num_rows())),
        };
        Ok(Self {
            ids: column("id", &DataType::Utf8)?,
            sources: column("_sync_source", &DataType::Utf8)?,
            transaction_times: column("_sync_transaction_time", &DataType::Timestamp(TimeUnit::Microsecond, None))?,
            hashes: column("_sync_hash", &DataType::Int64)?,
            json: column("resource_json", &DataType::Utf8)?,
        })
    }

    fn id(&self, row: usize, source: &str) -> Option<&str> {
        let sources = self.sources.as_string::<i32>();
        let ids = self.ids.as_string::<i32>();
        (sources.is_valid(row) && sources.value(row) == source && ids.is_valid(row)).then(|| ids.value(row))
    }

    fn hash(&self, row: usize) -> Option<u64> {
        let hashes = self.hashes.as_primitive::<Int64Type>();
        hashes.is_valid(row).then(|| hashes.value(row).cast_unsigned())
    }

    fn json(&self, row: usize) -> &str {
        let json = self.json.as_string::<i32>();
        if json.is_valid(row) { json.value(row) } else { "" }
    }

    fn version(&self, row: usize) -> Version {
        #[derive(serde::Deserialize)]
        struct Head {
            meta: Option<Meta>,
        }
        // A row without readable JSON has no version: whatever comes may replace it.
        let head: Option<Head> = serde_json::from_str(self.json(row)).ok();
        Version::of(head.and_then(|head| head.meta).as_ref()).at(self.transaction_time(row))
    }

    fn transaction_time(&self, row: usize) -> Option<TransactionTime> {
        let times = self.transaction_times.as_primitive::<TimestampMicrosecondType>();
        times.is_valid(row).then(|| times.value(row)).and_then(TransactionTime::from_micros)
    }
}

/// The columns of the table, in its order and types; a top-level column that the file does not have is null.
fn align(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        Some(column) if column.data_type() == field.data_type() => Ok(Arc::clone(column)),
        Some(column) => cast(column, field.data_type()),
        None => Ok(new_null_array(field.data_type(), batch.num_rows())),
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_, _>>()?)
}

fn writer_properties() -> WriterProperties {
    let json = || ColumnPath::from("resource_json");
    let id = || ColumnPath::from("id");
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        // Rows differ in size a thousandfold, so bytes bound a row group, not only rows.
        .set_max_row_group_row_count(Some(256 * 1024))
        .set_max_row_group_bytes(Some(128 * 1024 * 1024))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        // Every id and every line is different: a dictionary would be built in vain, and the smallest and largest line
        // of a file would stand in its footer.
        .set_column_dictionary_enabled(id(), false)
        .set_column_dictionary_enabled(json(), false)
        .set_column_statistics_enabled(json(), EnabledStatistics::None)
        .build()
}
