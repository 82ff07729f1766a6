//! The decision: which stored rows a change set replaces or removes, and which of its rows are written.
//!
//! Only the key columns of the data files are read, a batch at a time. Each row of the change set ends in exactly one of
//! the [`Counts`].

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StructArray, new_null_array},
    compute::cast,
    datatypes::{DataType, Int64Type, TimeUnit, TimestampMicrosecondType},
    error::ArrowError,
};
use deltalake::kernel::LogicalFileView;
use futures::{StreamExt as _, TryStreamExt as _};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask, async_reader::ParquetRecordBatchStream};

use super::{
    ChangeSet, Counts, Error, Reconcile, Table, Upsert,
    data_file::DataFile,
    newest::{Newest, Slot},
};
use crate::fhir::{Meta, TransactionTime, Version};

/// What is read of a data file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Columns {
    /// What tells rows and their versions apart.
    Keys,
    All,
}

/// The keys of a file whose rows carry their hash and their version.
const HASHED_KEYS: [&str; 7] = [
    "id",
    "_sync_source",
    "_sync_transaction_time",
    "_sync_hash",
    "meta.lastUpdated",
    "meta.versionId",
    "meta.tag.list.element.code",
];
/// Those of one whose rows have only the line; any of them is then written again, with its columns.
const RAW_KEYS: [&str; 4] = ["id", "_sync_source", "_sync_transaction_time", "resource_json"];

impl Table {
    /// Looks up every stored copy of the ids of the change set and says what happens to each.
    pub(super) async fn decide(&self, changes: &ChangeSet, upsert: &Upsert) -> Result<Decision, Error> {
        let mut decision = Decision::default();
        if !changes.is_empty() {
            decision.files = self.files().await?;
        }
        let mut gone = BTreeSet::new();
        for (pass, newest) in changes.shards().enumerate() {
            self.look_up(&newest?, upsert, pass == 0, &mut decision, &mut gone).await?;
        }
        if let Some(reconcile) = upsert.reconcile {
            decision.reconcile(reconcile, gone);
        }
        Ok(decision)
    }

    /// One pass over the table. `gone` are the rows that none of the passes so far has found an id for.
    async fn look_up(
        &self,
        newest: &Newest,
        upsert: &Upsert,
        first_pass: bool,
        decision: &mut Decision,
        gone: &mut BTreeSet<(usize, usize)>,
    ) -> Result<(), Error> {
        let mut met = HashMap::new();
        for index in 0..decision.files.len() {
            let mut first_row = 0;
            let mut batches = self.read(&decision.files[index], Columns::Keys).await?;
            while let Some(batch) = batches.next().await {
                let batch = batch.map_err(|error| self.failed(error))?;
                let stored = StoredRows::try_new(&batch).map_err(|error| self.failed(error))?;
                for row in 0..batch.num_rows() {
                    let Some(id) = stored.id(row, &upsert.source) else { continue };
                    decision.stored += u64::from(first_pass);
                    let Some(slot) = newest.get(id) else {
                        let past = upsert.reconcile.is_some() && stored.transaction_time(row) <= upsert.watermark;
                        if first_pass && past {
                            gone.insert((index, first_row + row));
                        }
                        continue;
                    };
                    gone.remove(&(index, first_row + row));
                    let fate = fate(newest.slot(slot), || stored.version(row), stored.hash(row), upsert.watermark);
                    if matches!(fate, Fate::Update | Fate::Delete) {
                        decision.dead.entry(index).or_default().insert(first_row + row);
                    }
                    met.entry(slot).or_insert(fate);
                }
                first_row += batch.num_rows();
            }
        }
        decision.settle(newest, &met);
        Ok(())
    }

    pub(super) async fn files(&self) -> Result<Vec<LogicalFileView>, Error> {
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

    pub(super) async fn read(
        &self,
        file: &LogicalFileView,
        columns: Columns,
    ) -> Result<ParquetRecordBatchStream<DataFile>, Error> {
        let file = DataFile {
            store: self.delta.object_store(),
            path: file.object_store_path(),
            size_bytes: u64::try_from(file.size()).unwrap_or_default(),
        };
        let builder = ParquetRecordBatchStreamBuilder::new(file).await.map_err(|error| self.failed(error))?;
        let mut builder = builder.with_batch_size(4096);
        if columns == Columns::Keys {
            let hashed = builder.schema().field_with_name("_sync_hash").is_ok();
            let keys = if hashed { &HASHED_KEYS[..] } else { &RAW_KEYS[..] };
            let mask = ProjectionMask::columns(builder.parquet_schema(), keys.iter().copied());
            builder = builder.with_projection(mask);
        }
        builder.build().map_err(|error| self.failed(error))
    }
}

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
        Slot::Row { hash, .. } if Some(*hash) == stored_hash => Fate::Unchanged,
        Slot::Row { version, .. } if version.may_replace(&stored_version()) => Fate::Update,
        Slot::Row { .. } => Fate::Stale,
        // A deletion that comes late must not remove what was created again since (rule 97).
        Slot::Deleted { at, .. } => {
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
pub(super) struct Decision {
    pub files: Vec<LogicalFileView>,
    /// Rows to leave out, by file.
    pub dead: BTreeMap<usize, BTreeSet<usize>>,
    /// Rows to write, by batch of the spool.
    pub write: HashMap<u32, HashSet<u32>>,
    /// Rows of our source that were there.
    stored: u64,
    pub counts: Counts,
}

impl Decision {
    /// Removes the rows that are gone, unless they are too many.
    fn reconcile(&mut self, reconcile: Reconcile, gone: BTreeSet<(usize, usize)>) {
        let count = gone.len() as u64;
        #[expect(clippy::cast_precision_loss, reason = "a share in percent needs no more than 52 bits")]
        let gone_percent = count as f64 * 100.0 / self.stored.max(1) as f64;
        if count > reconcile.max_gone && gone_percent > reconcile.max_gone_percent {
            self.counts.gone = count;
            return;
        }
        self.counts.removed = count;
        for (file, row) in gone {
            self.dead.entry(file).or_default().insert(row);
        }
    }

    fn settle(&mut self, newest: &Newest, met: &HashMap<u32, Fate>) {
        self.counts.duplicate += newest.duplicate();
        for (index, slot) in (0u32..).zip(newest.slots()) {
            let counter = match (slot, met.get(&index)) {
                (_, Some(Fate::Unchanged)) | (Slot::Deleted { .. }, None) => &mut self.counts.unchanged,
                (_, Some(Fate::Stale)) => &mut self.counts.stale,
                (Slot::Deleted { .. }, Some(_)) => &mut self.counts.deleted,
                (Slot::Row { place, .. }, fate) => {
                    self.write.entry(place.part).or_default().insert(place.row);
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
    meta: Option<StructArray>,
    json: ArrayRef,
}

impl StoredRows {
    fn try_new(batch: &RecordBatch) -> Result<Self, ArrowError> {
        let column = |name: &str, data_type: &DataType| match batch.column_by_name(name) {
            Some(column) => cast(column, data_type),
            None => Ok(new_null_array(data_type, batch.num_rows())),
        };
        Ok(Self {
            ids: column("id", &DataType::Utf8)?,
            sources: column("_sync_source", &DataType::Utf8)?,
            transaction_times: column("_sync_transaction_time", &DataType::Timestamp(TimeUnit::Microsecond, None))?,
            hashes: column("_sync_hash", &DataType::Int64)?,
            meta: batch.column_by_name("meta").and_then(|meta| meta.as_struct_opt()).cloned(),
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

    fn version(&self, row: usize) -> Version {
        let version = if self.hashes.is_valid(row) { self.typed_version(row) } else { self.raw_version(row) };
        version.at(self.transaction_time(row))
    }

    /// From the columns of `meta`; a file without them has rows without a version.
    fn typed_version(&self, row: usize) -> Version {
        let Some(meta) = self.meta.as_ref().filter(|meta| meta.is_valid(row)) else { return Version::default() };
        let last_updated = meta.column_by_name("lastUpdated").and_then(|column| column.as_primitive_opt());
        let last_updated = last_updated.filter(|column| column.is_valid(row));
        let version_id = meta.column_by_name("versionId").and_then(|column| column.as_string_opt::<i32>());
        let tags = meta.column_by_name("tag").and_then(|column| column.as_list_opt::<i32>());
        let tags = tags.filter(|tags| tags.is_valid(row)).map(|tags| tags.value(row));
        let codes = tags.as_ref().and_then(|tags| tags.as_struct_opt()?.column_by_name("code")?.as_string_opt::<i32>());
        Version {
            last_updated_micros: last_updated
                .map(|column: &arrow::array::PrimitiveArray<TimestampMicrosecondType>| column.value(row)),
            version_id: version_id
                .filter(|column| column.is_valid(row))
                .and_then(|column| column.value(row).parse().ok()),
            transaction_time_micros: None,
            subsetted: codes.is_some_and(|codes| codes.iter().any(|code| code == Some("SUBSETTED"))),
        }
    }

    /// From the line itself. A row without a readable one has no version: whatever comes may replace it.
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

    fn transaction_time(&self, row: usize) -> Option<TransactionTime> {
        let times = self.transaction_times.as_primitive::<TimestampMicrosecondType>();
        times.is_valid(row).then(|| times.value(row)).and_then(TransactionTime::from_micros)
    }
}
