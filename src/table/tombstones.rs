//! The table of deletions: what was removed from the tables of the types, when, and by which export.
//!
//! A deletion is written here before the row goes, so that a crash in between leaves nothing but a deletion that is known
//! twice. It stops versions that are older than it but come later, and tells readers downstream what is gone. The rows of
//! a file are sorted by `id`.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use arrow::{
    array::{Array as _, AsArray as _, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    compute::cast,
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit},
};
use deltalake::{
    DeltaTableError,
    kernel::{Action, Add},
    operations::create::CreateBuilder,
    protocol::{DeltaOperation, SaveMode},
};
use futures::StreamExt as _;
use serde_json::{Value, json};

use super::{
    Amount, Error, Root, Table, TableName, Upsert,
    change_set::ids::Ids,
    change_set::newest::Newest,
    commit::{self, Outcome},
    data_file::rolling::{DataFiles, Target},
    kernel_schema,
};
use crate::fhir::{TransactionTime, Version};

/// A resource that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Removal {
    pub id: String,
    /// When the server deleted it; `None` where a full refresh found it missing.
    pub deleted_at_micros: Option<i64>,
}

/// What is remembered of a deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stone {
    pub deleted_at_micros: Option<i64>,
    /// The export that brought it.
    pub transaction_time_micros: Option<i64>,
}

impl Stone {
    /// Is the row certainly newer? By the server's clock where both state a time, else by the exports that brought them.
    pub fn is_older_than(&self, row: &Version) -> bool {
        self.compare(row) == Some(Ordering::Less)
    }

    /// Is the row certainly no newer?
    pub fn covers(&self, row: &Version) -> bool {
        matches!(self.compare(row), Some(Ordering::Greater | Ordering::Equal))
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
        by_clock.or_else(by_export).map(|(stone, row)| stone.cmp(&row))
    }
}

/// What is remembered of all deletions of one id. Those that state a time and those that do not are compared with a row by
/// different clocks, so neither stands for the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Remembered {
    timed: Stone,
    untimed: Stone,
}

impl Remembered {
    /// Is the row certainly no newer than one of them?
    pub fn covers(&self, row: &Version) -> bool {
        self.timed.covers(row) || self.untimed.covers(row)
    }

    /// Does one more deletion change nothing?
    ///
    /// An export that repeats a deletion without a time of its own brings a later one, also where no row has been there
    /// since. It is not left out: the resource may have been created and deleted again between the two exports, and an
    /// export made in between, of another name and resumed only later, would bring that version, which the earlier deletion
    /// does not cover. No row of the table tells, and neither does a watermark: that export has none yet. Maintenance folds
    /// what repetition leaves.
    pub fn includes(&self, stone: Stone) -> bool {
        self.with(stone) == *self
    }

    pub fn with(mut self, stone: Stone) -> Self {
        let of = if stone.deleted_at_micros.is_some() { &mut self.timed } else { &mut self.untimed };
        *of = of.join(stone);
        self
    }
}

/// The deletions of each id of a change set, by its place there.
pub(super) type Stones = HashMap<u32, Remembered>;

/// Names the table that the resource was in.
pub(super) const PARTITION: &str = "resource_type";

/// The table of deletions, as of now.
pub(super) struct Deletions {
    pub root: Root,
    pub table: Option<Table>,
}

impl Root {
    pub(super) async fn deletions(&self) -> Result<Deletions, Error> {
        Ok(Deletions { root: self.clone(), table: self.load(TableName::Deletions).await? })
    }
}

/// How often an append is tried again because others wrote to the table in between.
const ATTEMPTS: u32 = 5;
/// Rows that are made at once.
const BATCH_ROWS: usize = 8192;

impl Deletions {
    /// What is known of the ids of `newest`, which is all or some of `ids`.
    pub async fn stones(&self, of: TableName, source: &str, newest: &Newest, ids: &Ids) -> Result<Stones, Error> {
        let mut stones = Stones::new();
        let Some(table) = &self.table else { return Ok(stones) };
        for stored in table.stored_files().await? {
            let partition = stored.add.partition_values.get(PARTITION).cloned().flatten();
            if partition.as_deref() != Some(of.as_str()) || !stored.may_have(ids) {
                continue;
            }
            let mut batches = table.rows(&stored).await?;
            while let Some(batch) = batches.next().await {
                collect(&batch?, source, newest, &mut stones).map_err(|error| table.failed(error))?;
            }
        }
        Ok(stones)
    }

    /// Remembers what was removed from a table; one commit. Afterwards [`Self::stones`] knows it.
    pub async fn append(&mut self, of: TableName, removals: &[Removal], upsert: &Upsert) -> Result<(), Error> {
        if removals.is_empty() {
            return Ok(());
        }
        let root = self.root.clone();
        // Tables are upserted side by side; only one of them may make this one.
        let _one = root.deletions.lock().await;
        let mut table = match self.table.take() {
            Some(mut table) => {
                table.delta.load().await.map_err(|error| table.failed(error))?;
                table
            }
            None => create(&root).await?,
        };
        let adds = table.write_removals(of, removals, upsert).await?;
        table.append(adds, upsert).await?;
        self.table = Some(table);
        Ok(())
    }
}

impl Table {
    /// What new files of the table of deletions are made by. All columns have statistics. Many files are merged into one,
    /// so a row group has to be small.
    pub(super) fn target_of_deletions(&self) -> Result<Target, Error> {
        Ok(Target { leading: fields().len(), row_group_bytes: ROW_GROUP_BYTES, ..self.target()? })
    }

    async fn write_removals(&self, of: TableName, removals: &[Removal], upsert: &Upsert) -> Result<Vec<Add>, Error> {
        let mut removals: Vec<_> = removals.iter().collect();
        removals.sort_by(|one, other| one.id.cmp(&other.id));
        let partition = vec![(PARTITION.to_owned(), Some(of.to_string()))];
        let mut files = DataFiles::new(self.target_of_deletions()?, partition, BTreeSet::new());
        for removals in removals.chunks(BATCH_ROWS) {
            let rows = rows(removals, upsert).map_err(|error| self.failed(error))?;
            files.write(&rows).await.map_err(|error| self.failed(error))?;
        }
        files.finish().await.map_err(|error| self.failed(error))
    }

    /// A blind append: whatever others did in between, it stands.
    async fn append(&mut self, adds: Vec<Add>, upsert: &Upsert) -> Result<(), Error> {
        let metadata = metadata(&adds, upsert);
        let actions: Vec<_> = adds.iter().cloned().map(Action::Add).collect();
        for _ in 0..ATTEMPTS {
            let (actions, metadata) = (actions.clone(), metadata.clone());
            match commit::attempt(&mut self.delta, &self.place, actions, operation(), Vec::new(), metadata).await? {
                Outcome::Committed { .. } => return Ok(()),
                Outcome::Overtaken => tracing::warn!(table = %self.name, "another writer was faster, trying again"),
            }
        }
        self.forget(adds.into_iter().map(|add| add.path)).await;
        Err(Error::Conflict { table: self.name, attempts: ATTEMPTS })
    }
}

/// What of a file waits in memory until it is a row group, and what of it is read at once.
const ROW_GROUP_BYTES: usize = 1024 * 1024;

async fn create(root: &Root) -> Result<Table, Error> {
    if let Some(table) = root.load(TableName::Deletions).await? {
        return Ok(table);
    }
    let fields = [vec![Field::new(PARTITION, DataType::Utf8, true)], fields()].concat();
    let name = TableName::Deletions;
    let schema = kernel_schema(&Schema::new(fields), &name.directory())?;
    let create = CreateBuilder::new()
        .with_table_name(name.as_str())
        .with_columns(schema.fields().cloned())
        .with_partition_columns([PARTITION]);
    root.create(name, create).await
}

fn operation() -> DeltaOperation {
    DeltaOperation::Write { mode: SaveMode::Append, partition_by: Some(vec![PARTITION.to_owned()]), predicate: None }
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

/// All columns but the partition's.
fn fields() -> Vec<Field> {
    let columns = [
        ("id", DataType::Utf8),
        ("_sync_source", DataType::Utf8),
        ("_sync_at", instant()),
        ("_sync_transaction_time", instant()),
        ("deleted_at", instant()),
        ("_sync_job", DataType::Utf8),
    ];
    columns.into_iter().map(|(name, of)| Field::new(name, of, true)).collect()
}

fn rows(removals: &[&Removal], upsert: &Upsert) -> Result<RecordBatch, arrow::error::ArrowError> {
    let count = removals.len();
    let text = |value: &str| Arc::new(StringArray::from(vec![value; count]));
    let times = |value: Option<i64>| Arc::new(TimestampMicrosecondArray::from(vec![value; count]).with_timezone("UTC"));
    let schema: SchemaRef = Arc::new(Schema::new(fields()));
    RecordBatch::try_new(
        schema,
        vec![
            Arc::new(removals.iter().map(|removal| Some(removal.id.as_str())).collect::<StringArray>()),
            text(&upsert.source),
            times(Some(upsert.run_started_micros)),
            times(upsert.exported_at.map(TransactionTime::as_micros)),
            Arc::new(
                removals
                    .iter()
                    .map(|removal| removal.deleted_at_micros)
                    .collect::<TimestampMicrosecondArray>()
                    .with_timezone("UTC"),
            ),
            text(&upsert.job),
        ],
    )
}

fn collect(batch: &RecordBatch, source: &str, newest: &Newest, stones: &mut Stones) -> Result<(), DeltaTableError> {
    let column = |name: &str, of: &DataType| {
        let column = batch.column_by_name(name);
        let column = column.ok_or_else(|| DeltaTableError::generic(format!("no column {name}")))?;
        Ok::<_, DeltaTableError>(cast(column, of)?)
    };
    let micros = |name: &str| {
        let instants = column(name, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
        Ok::<_, DeltaTableError>(cast(&instants, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
    };
    let (ids, sources) = (column("id", &DataType::Utf8)?, column("_sync_source", &DataType::Utf8)?);
    let (ids, sources) = (ids.as_string::<i32>(), sources.as_string::<i32>());
    let (at, transaction_times) = (micros("deleted_at")?, micros("_sync_transaction_time")?);
    let value = |of: &Int64Array, row: usize| of.is_valid(row).then(|| of.value(row));
    for row in 0..batch.num_rows() {
        if ids.is_null(row) || sources.is_null(row) || sources.value(row) != source {
            continue;
        }
        let Some(slot) = newest.get(ids.value(row)) else { continue };
        let stone =
            Stone { deleted_at_micros: value(&at, row), transaction_time_micros: value(&transaction_times, row) };
        let known = stones.entry(slot).or_default();
        *known = known.with(stone);
    }
    Ok(())
}
