//! Tombstones: one table, `_fhir_sync/deleted`, says of every type which resources were deleted, when, and which export
//! reported it.
//!
//! A tombstone is written before the row is removed, so a crash in between leaves at most a repeated tombstone. It
//! stops older versions that arrive later, and tells downstream readers what was deleted. The rows of a file are sorted
//! by `id`.
//!
//! Delta calls the `remove` actions of its log tombstones as well. Those are removed files and something else.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    compute::cast,
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit},
};
use deltalake::{
    DeltaTableError,
    kernel::{Action, Add},
    operations::create::CreateBuilder,
    protocol::{DeltaOperation, SaveMode},
};
use futures::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::{
    Amount, Error, Root, Table, TableName, Upsert,
    change_set::newest::{Shard, WinnerIndex},
    commit::{self, CommitOutcome},
    data_file::rolling::{DataFiles, FileTarget},
    data_file::stored::StoredFile,
    ids::Ids,
    name::DELETED_FROM,
    requirements::check_writable,
    root::kernel_schema,
};
use crate::fhir::{TransactionTime, Version};

/// A tombstone that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NewTombstone {
    pub id: String,
    /// When the server deleted the resource; `None` where a full refresh found it missing.
    pub deleted_at_micros: Option<i64>,
}

/// When a resource was deleted, by two clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tombstone {
    /// As the server states it.
    pub deleted_at_micros: Option<i64>,
    /// Of the export that reported the deletion.
    pub transaction_time_micros: Option<i64>,
}

impl Tombstone {
    /// Is the row certainly newer? By the server's clock where both state a time, else by the exports that they are
    /// from.
    pub fn is_older_than(&self, row: &Version) -> bool {
        self.compare(row) == Some(Ordering::Less)
    }

    /// Is the row certainly not newer?
    pub fn covers(&self, row: &Version) -> bool {
        matches!(self.compare(row), Some(Ordering::Greater | Ordering::Equal))
    }

    /// Is it of a clock that has been set right since? Nothing would be newer.
    fn is_of_former_clock(&self, upsert: &Upsert) -> bool {
        let Self { deleted_at_micros, transaction_time_micros } = *self;
        upsert.is_ahead(transaction_time_micros) || upsert.is_stated_ahead(deleted_at_micros, transaction_time_micros)
    }

    /// No deletion is later than the export that reports it; a time beyond it is that of a wrong clock.
    pub fn bounded(self) -> Self {
        let latest = self.transaction_time_micros;
        Self { deleted_at_micros: self.deleted_at_micros.map(|at| latest.map_or(at, |latest| at.min(latest))), ..self }
    }

    /// The newest of both, by each of the clocks.
    fn join(self, other: Self) -> Self {
        Self {
            deleted_at_micros: self.deleted_at_micros.max(other.deleted_at_micros),
            transaction_time_micros: self.transaction_time_micros.max(other.transaction_time_micros),
        }
    }

    fn compare(&self, row: &Version) -> Option<Ordering> {
        let by_clock = self.deleted_at_micros.zip(row.last_updated_micros);
        let by_export = || self.transaction_time_micros.zip(row.transaction_time_micros);
        by_clock.or_else(by_export).map(|(deletion, row)| deletion.cmp(&row))
    }
}

/// All deletions of one id: the newest that states a time, and the newest that does not. The two are compared with a
/// row by different clocks, so neither can replace the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tombstones {
    timed: Tombstone,
    untimed: Tombstone,
}

impl Tombstones {
    /// Is the row certainly not newer than one of them?
    pub fn covers(&self, row: &Version) -> bool {
        self.timed.covers(row) || self.untimed.covers(row)
    }

    /// Is the row certainly not newer than one of them that was reported after the row was stored?
    pub fn follow(&self, row: &Version) -> bool {
        let stored = row.transaction_time_micros;
        let follows = |known: &Tombstone| known.covers(row) && known.transaction_time_micros > stored;
        stored.is_some() && [self.timed, self.untimed].iter().any(follows)
    }

    /// Are all deletions of which one covers the row from exports before this one?
    pub fn covers_only_before(&self, row: &Version, upsert: &Upsert) -> bool {
        let covering = [self.timed, self.untimed].into_iter().filter(|tombstone| tombstone.covers(row));
        covering.into_iter().all(|tombstone| upsert.follows(tombstone.transaction_time_micros))
    }

    /// Would one more tombstone change nothing?
    ///
    /// A deletion without a time of its own gets the time of its export. An export that repeats it therefore brings a
    /// later one, and that one is written although no row has been there since. The resource may have been created and
    /// deleted again between the two exports. A third export, of another name and made in between, may be resumed only
    /// now: it would bring a version that the earlier tombstone does not cover. Neither a row of the table nor a
    /// watermark shows that such an export exists. Maintenance folds the repeated tombstones.
    pub fn includes(&self, tombstone: Tombstone) -> bool {
        self.with(tombstone) == *self
    }

    pub fn with(mut self, tombstone: Tombstone) -> Self {
        let same_clock = if tombstone.deleted_at_micros.is_some() { &mut self.timed } else { &mut self.untimed };
        *same_clock = same_clock.join(tombstone);
        self
    }
}

/// The tombstones of each id of a change set, by its winner there.
pub(super) type TombstonesByWinner = HashMap<WinnerIndex, Tombstones>;

/// The table of tombstones at its newest version; there is none before the first deletion.
pub(super) struct TombstoneTable {
    pub root: Root,
    pub table: Option<Table>,
}

/// How many files are read at the same time.
const FILES_IN_FLIGHT: usize = 16;
/// Rows that are encoded at once.
const BATCH_ROWS: usize = 8192;

impl TombstoneTable {
    pub async fn open(root: &Root) -> Result<Self, Error> {
        Ok(Self { root: root.clone(), table: root.load(TableName::Tombstones).await? })
    }

    /// For a change set of which nobody will ask for tombstones.
    pub fn not_opened(root: &Root) -> Self {
        Self { root: root.clone(), table: None }
    }

    /// The tombstones of the ids of `shard`, which holds all or some of `ids`; without those of a former clock, with
    /// which others of the same id would be lost.
    pub async fn find(
        &self,
        of_table: TableName,
        upsert: &Upsert,
        shard: &Shard,
        ids: &Ids,
    ) -> Result<TombstonesByWinner, Error> {
        let mut found = TombstonesByWinner::new();
        let Some(table) = &self.table else { return Ok(found) };
        let files = self.files_of(of_table).await?.into_iter().filter(|stored| stored.may_have(ids));
        let files = files.map(|stored| async move {
            let mut of_file = Vec::new();
            let mut batches = table.rows(&stored).await?;
            while let Some(batch) = batches.next().await {
                collect(&batch?, upsert, shard, &mut of_file).map_err(|error| table.failed(error))?;
            }
            Ok::<_, Error>(of_file)
        });
        let mut files = stream::iter(files).buffer_unordered(FILES_IN_FLIGHT);
        while let Some(of_file) = files.next().await {
            for (winner, tombstone) in of_file? {
                let known: &mut Tombstones = found.entry(winner).or_default();
                *known = known.with(tombstone);
            }
        }
        Ok(found)
    }

    /// May tombstones be added? If not, the rows of the deleted resources must stay as well.
    pub fn check(&self) -> Result<(), Error> {
        self.table.as_ref().map_or(Ok(()), check)
    }

    /// The files with tombstones of resources of the table `of_table`.
    pub async fn files_of(&self, of_table: TableName) -> Result<Vec<StoredFile>, Error> {
        let Some(table) = &self.table else { return Ok(Vec::new()) };
        let mut files = table.stored_files().await?;
        files.retain(|stored| {
            let partition = stored.add.partition_values.get(DELETED_FROM).cloned().flatten();
            partition.as_deref() == Some(of_table.as_str())
        });
        Ok(files)
    }

    /// Writes the tombstones of resources of the table `of_table` in one commit. [`Self::find`] sees them afterwards.
    pub async fn append(
        &mut self,
        of_table: TableName,
        tombstones: &[NewTombstone],
        upsert: &Upsert,
    ) -> Result<(), Error> {
        if tombstones.is_empty() {
            return Ok(());
        }
        let root = self.root.clone();
        // Several tables are upserted at the same time; only one of them may create or change this one.
        let _guard = root.tombstone_lock.lock().await;
        let mut table = match self.table.take() {
            Some(mut table) => {
                table.delta.load().await.map_err(|error| table.failed(error))?;
                table
            }
            None => create(&root).await?,
        };
        check(&table)?;
        let adds = write(&table, of_table, tombstones, upsert).await?;
        append(&mut table, adds, upsert).await?;
        self.table = Some(table);
        Ok(())
    }
}

fn check(table: &Table) -> Result<(), Error> {
    check_writable(table, &Arc::new(Schema::new(fields())))
}

/// How new files of the table are written. All columns have statistics. A fold merges many files at once, so a row
/// group has to be small.
pub(super) fn target(table: &Table) -> Result<FileTarget, Error> {
    Ok(FileTarget { leading: fields().len(), row_group_bytes: ROW_GROUP_BYTES, ..table.target()? })
}

async fn write(
    table: &Table,
    of_table: TableName,
    tombstones: &[NewTombstone],
    upsert: &Upsert,
) -> Result<Vec<Add>, Error> {
    let mut tombstones: Vec<_> = tombstones.iter().collect();
    tombstones.sort_by(|one, other| one.id.cmp(&other.id));
    let partition = vec![(DELETED_FROM.to_owned(), Some(of_table.to_string()))];
    let mut files = DataFiles::new(target(table)?, partition, BTreeSet::new());
    for tombstones in tombstones.chunks(BATCH_ROWS) {
        let rows = rows(tombstones, upsert).map_err(|error| table.failed(error))?;
        files.write(&rows).await.map_err(|error| table.failed(error))?;
    }
    files.finish().await.map_err(|error| table.failed(error))
}

/// A blind append: it is right whatever other writers did in between.
async fn append(table: &mut Table, adds: Vec<Add>, upsert: &Upsert) -> Result<(), Error> {
    let metadata = metadata(&adds, upsert);
    let actions: Vec<_> = adds.iter().cloned().map(Action::Add).collect();
    for _ in 0..commit::MAX_APPENDS {
        let (actions, metadata) = (actions.clone(), metadata.clone());
        match commit::attempt(table, actions, operation(), Vec::new(), metadata).await? {
            CommitOutcome::Committed { .. } => return Ok(()),
            CommitOutcome::Overtaken => {
                tracing::debug!(table = %table.name, "another writer was faster, trying again");
                commit::give_way().await;
            }
        }
    }
    commit::discard(table, adds.into_iter().map(|add| add.path)).await;
    Err(Error::Conflict { table: table.name, attempts: commit::MAX_APPENDS })
}

/// How much of a file waits in memory before it is written as a row group. A reader has one of these in memory, too.
const ROW_GROUP_BYTES: usize = 1024 * 1024;

async fn create(root: &Root) -> Result<Table, Error> {
    if let Some(table) = root.load(TableName::Tombstones).await? {
        return Ok(table);
    }
    let fields = [vec![Field::new(DELETED_FROM, DataType::Utf8, true)], fields()].concat();
    let name = TableName::Tombstones;
    let schema = kernel_schema(&Schema::new(fields), &name.directory())?;
    let create = CreateBuilder::new()
        .with_table_name(name.as_str())
        .with_columns(schema.fields().cloned())
        .with_partition_columns([DELETED_FROM]);
    root.create(name, create).await
}

fn operation() -> DeltaOperation {
    DeltaOperation::Write { mode: SaveMode::Append, partition_by: Some(vec![DELETED_FROM.to_owned()]), predicate: None }
}

/// Spark's names and its text values, so that DESCRIBE HISTORY shows them.
fn metadata(adds: &[Add], upsert: &Upsert) -> BTreeMap<String, Value> {
    let written: Amount = adds.iter().map(|add| u64::try_from(add.size).unwrap_or_default()).collect();
    let stats = adds.iter().filter_map(|add| serde_json::from_str::<Value>(add.stats.as_deref()?).ok());
    let rows: u64 = stats.filter_map(|stats| stats["numRecords"].as_u64()).sum();
    let metrics = json!({
        "numFiles": written.files.to_string(),
        "numOutputRows": rows.to_string(),
        "numOutputBytes": written.bytes.to_string(),
    });
    BTreeMap::from([
        ("operationMetrics".to_owned(), metrics),
        ("isBlindAppend".to_owned(), true.into()),
        (commit::OURS.to_owned(), json!({ "run": upsert.run })),
    ])
}

fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// All columns except the partition column.
fn fields() -> Vec<Field> {
    let columns = [
        ("id", DataType::Utf8),
        ("_sync_source", DataType::Utf8),
        ("_sync_at", instant()),
        ("_sync_transaction_time", instant()),
        ("deleted_at", instant()),
        ("_sync_job", DataType::Utf8),
    ];
    columns.into_iter().map(|(name, data_type)| Field::new(name, data_type, true)).collect()
}

fn rows(tombstones: &[&NewTombstone], upsert: &Upsert) -> Result<RecordBatch, arrow::error::ArrowError> {
    let count = tombstones.len();
    let text = |value: &str| Arc::new(StringArray::from(vec![value; count]));
    let times = |value: Option<i64>| Arc::new(TimestampMicrosecondArray::from(vec![value; count]).with_timezone("UTC"));
    let ids: StringArray = tombstones.iter().map(|tombstone| Some(tombstone.id.as_str())).collect();
    let deleted_at: TimestampMicrosecondArray =
        tombstones.iter().map(|tombstone| tombstone.deleted_at_micros).collect();
    let schema: SchemaRef = Arc::new(Schema::new(fields()));
    RecordBatch::try_new(
        schema,
        vec![
            Arc::new(ids),
            text(&upsert.source),
            times(Some(upsert.run_started_micros)),
            times(upsert.exported_at.map(TransactionTime::as_micros)),
            Arc::new(deleted_at.with_timezone("UTC")),
            text(&upsert.job),
        ],
    )
}

/// The ids in some rows of the table that are of `source`.
pub(super) fn ids_of(batch: &RecordBatch, source: &str) -> Result<Vec<String>, DeltaTableError> {
    let (ids, sources) = texts(batch)?;
    let of_source = ids.iter().zip(&sources).filter(|(_, of)| *of == Some(source));
    Ok(of_source.filter_map(|(id, _)| id.map(ToOwned::to_owned)).collect())
}

/// Ids and sources.
fn texts(batch: &RecordBatch) -> Result<(StringArray, StringArray), DeltaTableError> {
    let text = |name: &str| Ok::<_, DeltaTableError>(column(batch, name, &DataType::Utf8)?.as_string().clone());
    Ok((text("id")?, text("_sync_source")?))
}

fn column(batch: &RecordBatch, name: &str, data_type: &DataType) -> Result<ArrayRef, DeltaTableError> {
    let column = batch.column_by_name(name);
    let column = column.ok_or_else(|| DeltaTableError::generic(format!("no column {name}")))?;
    Ok(cast(column, data_type)?)
}

/// Adds the rows of our source whose id is in `shard`.
fn collect(
    batch: &RecordBatch,
    upsert: &Upsert,
    shard: &Shard,
    found: &mut Vec<(WinnerIndex, Tombstone)>,
) -> Result<(), DeltaTableError> {
    let micros = |name: &str| {
        let instants = column(batch, name, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
        Ok::<_, DeltaTableError>(cast(&instants, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
    };
    let (ids, sources) = texts(batch)?;
    let (deleted_at, transaction_times) = (micros("deleted_at")?, micros("_sync_transaction_time")?);
    let value = |column: &Int64Array, row: usize| column.is_valid(row).then(|| column.value(row));
    for row in 0..batch.num_rows() {
        if ids.is_null(row) || sources.is_null(row) || sources.value(row) != upsert.source {
            continue;
        }
        let Some(winner) = shard.get(ids.value(row)) else { continue };
        let tombstone = Tombstone {
            deleted_at_micros: value(&deleted_at, row),
            transaction_time_micros: value(&transaction_times, row),
        }
        .bounded();
        if !tombstone.is_of_former_clock(upsert) {
            found.push((winner, tombstone));
        }
    }
    Ok(())
}
