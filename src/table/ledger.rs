//! The ledger: the table `_fhir_sync/runs`, a row for each run and type: what was asked, what arrived, what became of
//! it.
//!
//! Rows are only appended, in one commit per run. No decision is made from them: they are what people and `fhir-sync
//! verify` go by. A column that a table of an earlier version lacks is left out.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray as _, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
        TimestampMicrosecondArray,
    },
    buffer::OffsetBuffer,
    compute::cast,
    datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMicrosecondType},
    error::ArrowError,
};
use chrono::{DateTime, Utc};
use deltalake::{
    kernel::Action,
    operations::create::CreateBuilder,
    protocol::{DeltaOperation, SaveMode},
};
use futures::StreamExt as _;
use serde::Serialize;
use serde_json::json;

use super::{
    Error, Root, Table, TableName,
    commit::{self, CommitOutcome},
    data_file::rolling::DataFiles,
    requirements::check_writable,
    root::kernel_schema,
};

/// How often an append is tried because other writers commit at the same moment.
const MAX_ATTEMPTS: u32 = 5;

/// Defines a row by its columns, in their order.
macro_rules! row {
    ($(#[$of_row:meta])* $row:ident { $($(#[$of_field:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$of_row])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        pub struct $row { $($(#[$of_field])* pub $field: $type,)* }

        impl $row {
            fn schema() -> Schema {
                Schema::new(vec![$(Field::new(stringify!($field), <$type>::data_type(), true)),*])
            }

            fn columns(rows: &[Self]) -> Vec<ArrayRef> {
                vec![$(<$type>::column(rows.iter().map(|row| &row.$field))),*]
            }

            fn rows(batch: &RecordBatch) -> Result<Vec<Self>, ArrowError> {
                let mut rows = vec![Self::default(); batch.num_rows()];
                $(
                    if let Some(column) = batch.column_by_name(stringify!($field)) {
                        let column = cast(column, &<$type>::data_type())?;
                        for (index, row) in rows.iter_mut().enumerate() {
                            row.$field = <$type>::value(&column, index);
                        }
                    }
                )*
                Ok(rows)
            }
        }
    };
}

row! {
    /// A type in a run.
    LedgerRow {
        /// The number of the run; it starts again with a lost state file.
        run: u64,
        export: String,
        resource_type: String,
        source: String,
        /// `incremental` or `full refresh`.
        mode: String,
        /// `system`, `patient` or `group/<id>`.
        level: String,
        /// All types of the request, as one text.
        requested_types: Option<String>,
        /// `_since` as it was sent.
        since: Option<String>,
        started_at: Option<DateTime<Utc>>,
        ended_at: Option<DateTime<Utc>>,
        duration_ms: u64,
        /// Of the run.
        outcome: String,
        /// Of the type: `committed`, `watermark held`, `failed`, `not reached`.
        end: String,
        /// Why the type, or the run, is not complete.
        cause: Option<String>,
        /// What else the operator should know of the run.
        notes: Option<String>,
        watermark_before: Option<DateTime<Utc>>,
        watermark_after: Option<DateTime<Utc>>,
        /// Of the table, after the commit.
        table_version: Option<u64>,
        /// In the manifest.
        files_announced: Option<u64>,
        /// The counts of the manifest, where all files have one.
        lines_announced: Option<u64>,
        files: u64,
        /// Decoded.
        bytes: u64,
        /// Lines and deletions.
        received: u64,
        inserted: u64,
        updated: u64,
        unchanged: u64,
        stale: u64,
        duplicate: u64,
        deleted: u64,
        removed: u64,
        missing: u64,
        quarantined: u64,
        /// Lines that were another wanted type's.
        rerouted: Option<u64>,
        /// Lines and deletions of types that nobody keeps.
        not_wanted: Option<u64>,
        /// Lines that are what the server says about its file.
        outcomes: Option<u64>,
        /// Versions that contradicted each other.
        conflicts: Option<u64>,
        /// Stored versions and tombstones that a full refresh overruled.
        overruled: Option<u64>,
        bytes_written: u64,
        /// Commits of other writers, since our last one, that changed rows.
        foreign_commits: u64,
        /// The files that were read to their end.
        file_list: Vec<LedgerFile>,
    }
}

row! {
    /// A file of an export.
    LedgerFile {
        /// For people: its URL may be a secret.
        name: String,
        /// Decoded.
        bytes: u64,
        /// Of the decoded bytes, in hexadecimal digits.
        sha256: String,
    }
}

/// A value of a column.
trait Value: Sized {
    fn data_type() -> DataType;
    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef
    where
        Self: 'a;
    /// The column has the type of [`Value::data_type`].
    fn value(column: &dyn Array, row: usize) -> Self;
}

impl Value for Option<u64> {
    fn data_type() -> DataType {
        DataType::Int64
    }

    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let values = values.map(|value| value.map(|value| i64::try_from(value).unwrap_or(i64::MAX)));
        Arc::new(values.collect::<Int64Array>())
    }

    fn value(column: &dyn Array, row: usize) -> Self {
        let column = column.as_primitive::<Int64Type>();
        column.is_valid(row).then(|| u64::try_from(column.value(row)).unwrap_or_default())
    }
}

impl Value for u64 {
    fn data_type() -> DataType {
        DataType::Int64
    }

    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let values = values.map(|value| i64::try_from(*value).unwrap_or(i64::MAX));
        Arc::new(values.map(Some).collect::<Int64Array>())
    }

    fn value(column: &dyn Array, row: usize) -> Self {
        Option::<Self>::value(column, row).unwrap_or_default()
    }
}

impl Value for Option<String> {
    fn data_type() -> DataType {
        DataType::Utf8
    }

    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(values.map(Option::as_deref).collect::<StringArray>())
    }

    fn value(column: &dyn Array, row: usize) -> Self {
        let column = column.as_string::<i32>();
        column.is_valid(row).then(|| column.value(row).to_owned())
    }
}

impl Value for String {
    fn data_type() -> DataType {
        DataType::Utf8
    }

    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(values.map(|value| Some(value.as_str())).collect::<StringArray>())
    }

    fn value(column: &dyn Array, row: usize) -> Self {
        Option::<Self>::value(column, row).unwrap_or_default()
    }
}

impl Value for Option<DateTime<Utc>> {
    fn data_type() -> DataType {
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
    }

    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let micros = values.map(|value| value.as_ref().map(DateTime::timestamp_micros));
        Arc::new(micros.collect::<TimestampMicrosecondArray>().with_timezone("UTC"))
    }

    fn value(column: &dyn Array, row: usize) -> Self {
        let column = column.as_primitive::<TimestampMicrosecondType>();
        column.is_valid(row).then(|| DateTime::from_timestamp_micros(column.value(row))).flatten()
    }
}

impl Value for Vec<LedgerFile> {
    fn data_type() -> DataType {
        DataType::List(Arc::new(Field::new("element", DataType::Struct(LedgerFile::schema().fields), true)))
    }

    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        let lists: Vec<_> = values.collect();
        let offsets = OffsetBuffer::from_lengths(lists.iter().map(|files| files.len()));
        let files: Vec<_> = lists.into_iter().flatten().cloned().collect();
        let element = Field::new("element", DataType::Struct(LedgerFile::schema().fields), true);
        let files = StructArray::new(LedgerFile::schema().fields, LedgerFile::columns(&files), None);
        Arc::new(ListArray::new(Arc::new(element), offsets, Arc::new(files), None))
    }

    fn value(column: &dyn Array, row: usize) -> Self {
        let column = column.as_list::<i32>();
        if column.is_null(row) {
            return Self::new();
        }
        let files = RecordBatch::from(column.value(row).as_struct());
        LedgerFile::rows(&files).unwrap_or_default()
    }
}

impl Root {
    /// Appends rows in one commit; the first creates the table. Encodes on the thread that it is called from.
    pub async fn append_to_ledger(&self, rows: &[LedgerRow]) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let mut table = open_or_create(self).await?;
        let columns = table.columns()?;
        let batch = RecordBatch::try_new(Arc::new(LedgerRow::schema()), LedgerRow::columns(rows))
            .and_then(|batch| only(&batch, &columns));
        let batch = batch.map_err(|error| table.failed(error))?;
        check_writable(&table, &batch.schema())?;
        let mut files = DataFiles::new(table.target()?, Vec::new(), BTreeSet::new());
        files.write(&batch).await.map_err(|error| table.failed(error))?;
        let adds = files.finish().await.map_err(|error| table.failed(error))?;
        for _ in 0..MAX_ATTEMPTS {
            let actions = adds.iter().cloned().map(Action::Add).collect();
            let metadata = [("isBlindAppend".to_owned(), true.into()), (commit::OURS.to_owned(), json!({}))];
            match commit::attempt(&mut table, actions, operation(), Vec::new(), metadata.into()).await? {
                CommitOutcome::Committed { .. } => return Ok(()),
                CommitOutcome::Overtaken => {
                    tracing::debug!(table = %table.name, "another writer was faster, trying again");
                }
            }
        }
        commit::discard(&table, adds.into_iter().map(|add| add.path)).await;
        Err(Error::Conflict { table: table.name, attempts: MAX_ATTEMPTS })
    }

    /// All rows, the oldest first; none where there is no table.
    pub async fn ledger(&self) -> Result<Vec<LedgerRow>, Error> {
        let Some(table) = self.load(TableName::Runs).await? else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for stored in table.stored_files().await? {
            let mut batches = table.rows(&stored).await?;
            while let Some(batch) = batches.next().await {
                all.extend(LedgerRow::rows(&batch?).map_err(|error| table.failed(error))?);
            }
        }
        all.sort_by(|one, other| {
            let key = |row: &LedgerRow| (row.started_at, row.run);
            key(one).cmp(&key(other)).then_with(|| one.resource_type.cmp(&other.resource_type))
        });
        Ok(all)
    }
}

async fn open_or_create(root: &Root) -> Result<Table, Error> {
    let name = TableName::Runs;
    if let Some(table) = root.load(name).await? {
        return Ok(table);
    }
    let schema = kernel_schema(&LedgerRow::schema(), &name.directory())?;
    let create = CreateBuilder::new().with_table_name(name.as_str()).with_columns(schema.fields().cloned());
    root.create(name, create).await
}

/// The columns of a batch that the table has.
fn only(batch: &RecordBatch, columns: &Schema) -> Result<RecordBatch, ArrowError> {
    let there = |field: &Field| columns.field_with_name(field.name()).is_ok();
    let indices: Vec<_> = (0..batch.num_columns()).filter(|index| there(batch.schema().field(*index))).collect();
    batch.project(&indices)
}

fn operation() -> DeltaOperation {
    DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Config, Location};

    fn row(run: u64, resource_type: &str) -> LedgerRow {
        LedgerRow {
            run,
            resource_type: resource_type.to_owned(),
            started_at: DateTime::from_timestamp_micros(1_800_000_000_000_000 + i64::try_from(run).unwrap()),
            since: (run > 1).then(|| "2026-01-01T00:00:00.000Z".to_owned()),
            table_version: Some(run),
            inserted: 7,
            file_list: vec![LedgerFile { name: "file 1".to_owned(), bytes: run, ..LedgerFile::default() }],
            ..LedgerRow::default()
        }
    }

    #[tokio::test]
    async fn rows_are_read_back_as_they_were_appended() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(Config::new(Location::Folder(folder.path().to_owned()))).unwrap();
        assert_eq!(root.ledger().await.unwrap(), []);
        root.append_to_ledger(&[row(1, "Patient"), row(1, "Observation")]).await.unwrap();
        root.append_to_ledger(&[row(2, "Patient")]).await.unwrap();
        let all = [row(1, "Observation"), row(1, "Patient"), row(2, "Patient")];
        assert_eq!(root.ledger().await.unwrap(), all);
    }
}
