//! The table of deletions: what was removed from the tables of the types, when, and by which export.
//!
//! A deletion is written here before the row goes, so that a crash in between leaves nothing but a deletion that is known
//! twice. It stops versions that are older than it but come later, and tells readers downstream what is gone.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arrow::{
    array::{Array as _, AsArray as _, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray},
    compute::cast,
    datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit},
};
use deltalake::{
    DeltaTableError, Path,
    kernel::Action,
    operations::create::CreateBuilder,
    protocol::{DeltaOperation, SaveMode},
};
use futures::StreamExt as _;

use super::{
    Error, Root, Table, Upsert,
    commit::{self, Outcome},
    data_file::{DataFileWriter, data_path, writer_properties},
    kernel_schema,
    newest::Newest,
};
use crate::fhir::{ResourceType, TransactionTime, Version};

/// A resource that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Removal {
    pub id: String,
    /// When the server deleted it; `None` where a full refresh found it missing.
    pub at_micros: Option<i64>,
}

/// What is remembered of a deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stone {
    pub at_micros: Option<i64>,
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
            at_micros: self.at_micros.max(other.at_micros),
            transaction_time_micros: self.transaction_time_micros.max(other.transaction_time_micros),
        }
    }

    fn compare(&self, row: &Version) -> Option<Ordering> {
        let by_clock = self.at_micros.zip(row.last_updated_micros);
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
    pub fn includes(&self, stone: Stone) -> bool {
        self.with(stone) == *self
    }

    fn with(mut self, stone: Stone) -> Self {
        let of = if stone.at_micros.is_some() { &mut self.timed } else { &mut self.untimed };
        *of = of.join(stone);
        self
    }
}

/// The deletions of each id of a change set, by its place there.
pub(super) type Stones = HashMap<u32, Remembered>;

/// Below the folder of all tables.
const FOLDER: &str = "_fhir_sync/deleted";
const PARTITION: &str = "resource_type";

/// The table of deletions, as of now.
pub(super) struct Deletions {
    pub root: Root,
    pub table: Option<Table>,
}

/// How often an append is tried again because others wrote to the table in between.
const ATTEMPTS: u32 = 5;

impl Root {
    pub(super) async fn deletions(&self) -> Result<Deletions, Error> {
        Ok(Deletions { root: self.clone(), table: self.load(ResourceType::BUNDLE, FOLDER).await? })
    }
}

impl Deletions {
    /// What is known of the ids of `newest`.
    pub async fn stones(&self, resource_type: ResourceType, source: &str, newest: &Newest) -> Result<Stones, Error> {
        let mut stones = Stones::new();
        let Some(table) = &self.table else { return Ok(stones) };
        for stored in table.stored_files().await? {
            let of = stored.add.partition_values.get(PARTITION).cloned().flatten();
            if of.as_deref() != Some(resource_type.as_str()) {
                continue;
            }
            let mut batches = table.rows(&stored).await?;
            while let Some(batch) = batches.next().await {
                let batch = batch?;
                collect(&batch, source, newest, &mut stones).map_err(|error| table.failed(error))?;
            }
        }
        Ok(stones)
    }

    /// Remembers the removals; one commit.
    pub async fn append(
        &mut self,
        resource_type: ResourceType,
        removals: &[Removal],
        upsert: &Upsert,
    ) -> Result<(), Error> {
        if removals.is_empty() {
            return Ok(());
        }
        let root = self.root.clone();
        // Types are upserted side by side; only one of them may make the table.
        let _one = root.deletions.lock().await;
        let mut table = match self.table.take() {
            Some(mut table) => {
                table.delta.load().await.map_err(|error| table.failed(error))?;
                table
            }
            None => create(&root).await?,
        };
        let folder = Path::from(format!("{PARTITION}={resource_type}"));
        let partition = vec![(PARTITION.to_owned(), Some(resource_type.to_string()))];
        let rows = rows(removals, upsert).map_err(|error| table.failed(error))?;
        let (store, leading) = (table.delta.object_store(), rows.num_columns());
        let properties = writer_properties(&rows.schema(), leading);
        let writer = DataFileWriter::create(store, data_path(&folder), rows.schema(), properties, leading);
        let mut writer = writer.map_err(|error| table.failed(error))?;
        writer.write(&rows).await.map_err(|error| table.failed(error))?;
        let add = writer.finish(&partition).await.map_err(|error| table.failed(error))?;
        for _ in 0..ATTEMPTS {
            let actions = vec![Action::Add(add.clone())];
            let attempt =
                commit::attempt(&mut table.delta, &table.place, actions, operation(), Vec::new(), BTreeMap::new());
            match attempt.await? {
                Outcome::Committed { .. } => {
                    self.table = Some(table);
                    return Ok(());
                }
                // It only adds: whatever others did in between, it stands.
                Outcome::Overtaken => tracing::warn!(%resource_type, "another writer was faster, remembering again"),
            }
        }
        table.forget(std::iter::once(add.path)).await;
        Err(Error::Conflict { resource_type, attempts: ATTEMPTS })
    }
}

async fn create(root: &Root) -> Result<Table, Error> {
    if let Some(table) = root.load(ResourceType::BUNDLE, FOLDER).await? {
        return Ok(table);
    }
    let fields = [vec![Field::new(PARTITION, DataType::Utf8, true)], fields()].concat();
    let schema = kernel_schema(&Schema::new(fields), FOLDER)?;
    let create = CreateBuilder::new()
        .with_table_name("deleted")
        .with_columns(schema.fields().cloned())
        .with_partition_columns([PARTITION]);
    root.create(ResourceType::BUNDLE, FOLDER, create).await
}

fn operation() -> DeltaOperation {
    DeltaOperation::Write { mode: SaveMode::Append, partition_by: Some(vec![PARTITION.to_owned()]), predicate: None }
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

fn rows(removals: &[Removal], upsert: &Upsert) -> Result<RecordBatch, arrow::error::ArrowError> {
    let count = removals.len();
    let text = |value: &str| Arc::new(StringArray::from(vec![value; count]));
    let times = |value: Option<i64>| Arc::new(TimestampMicrosecondArray::from(vec![value; count]).with_timezone("UTC"));
    let schema: SchemaRef = Arc::new(Schema::new(fields()));
    RecordBatch::try_new(
        schema,
        vec![
            Arc::new(removals.iter().map(|removal| Some(removal.id.as_str())).collect::<StringArray>()),
            text(&upsert.source),
            times(Some(upsert.at_micros)),
            times(upsert.exported_at.map(TransactionTime::as_micros)),
            Arc::new(
                removals
                    .iter()
                    .map(|removal| removal.at_micros)
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
        let stone = Stone { at_micros: value(&at, row), transaction_time_micros: value(&transaction_times, row) };
        let known = stones.entry(slot).or_default();
        *known = known.with(stone);
    }
    Ok(())
}
