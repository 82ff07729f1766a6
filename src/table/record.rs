//! Records: the rows of tables that are not of resources. A record is a struct whose fields are the columns.
//!
//! Records are appended in one commit. A table of an earlier version gains the columns that it lacks before; where
//! another writer has taken one away, it is left out.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray as _, BinaryArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    },
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
use serde_json::json;

use super::{
    Error, Root, Table, TableName,
    commit::{self, CommitOutcome},
    data_file::rolling::DataFiles,
    evolve::with_columns,
    requirements::check_writable,
    root::kernel_schema,
};

/// A row by its columns; [`record`] implements it.
pub(super) trait Recorded: Sized {
    fn schema() -> Schema;
    fn columns(records: &[Self]) -> Vec<ArrayRef>;
    fn of(batch: &RecordBatch) -> Result<Vec<Self>, ArrowError>;

    /// The columns that the table has.
    fn batch(records: &[Self], columns: &Schema) -> Result<RecordBatch, ArrowError> {
        let batch = RecordBatch::try_new(Arc::new(Self::schema()), Self::columns(records))?;
        let there = |field: &Field| columns.field_with_name(field.name()).is_ok();
        let indices: Vec<_> = (0..batch.num_columns()).filter(|index| there(batch.schema().field(*index))).collect();
        batch.project(&indices)
    }
}

/// Defines a record by its columns, in their order. The default of each column stands for one that a file lacks.
macro_rules! record {
    ($(#[$of_record:meta])* $record:ident { $($(#[$of_field:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$of_record])*
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
        pub struct $record { $($(#[$of_field])* pub $field: $type,)* }

        impl $crate::table::record::Recorded for $record {
            fn schema() -> arrow::datatypes::Schema {
                use $crate::table::record::Value as _;
                arrow::datatypes::Schema::new(vec![
                    $(arrow::datatypes::Field::new(stringify!($field), <$type>::data_type(), true)),*
                ])
            }

            fn columns(records: &[Self]) -> Vec<arrow::array::ArrayRef> {
                use $crate::table::record::Value as _;
                vec![$(<$type>::column(records.iter().map(|record| &record.$field))),*]
            }

            fn of(batch: &arrow::array::RecordBatch) -> Result<Vec<Self>, arrow::error::ArrowError> {
                use $crate::table::record::Value as _;
                let mut records = vec![Self::default(); batch.num_rows()];
                $(
                    if let Some(column) = batch.column_by_name(stringify!($field)) {
                        let column = arrow::compute::cast(column, &<$type>::data_type())?;
                        for (index, record) in records.iter_mut().enumerate() {
                            record.$field = <$type>::value(&column, index);
                        }
                    }
                )*
                Ok(records)
            }
        }
    };
}

pub(super) use record;

/// A value of a column.
pub(super) trait Value: Sized {
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

impl Value for Option<Vec<u8>> {
    fn data_type() -> DataType {
        DataType::Binary
    }

    fn column<'a>(values: impl Iterator<Item = &'a Self>) -> ArrayRef {
        Arc::new(values.map(Option::as_deref).collect::<BinaryArray>())
    }

    fn value(column: &dyn Array, row: usize) -> Self {
        let column = column.as_binary::<i32>();
        column.is_valid(row).then(|| column.value(row).to_owned())
    }
}

impl Root {
    /// Appends records in one commit; the first creates the table. Encodes on the thread that it is called from.
    pub(super) async fn append<R: Recorded>(&self, name: TableName, records: &[R]) -> Result<(), Error> {
        if records.is_empty() {
            return Ok(());
        }
        let mut table = open_or_create(self, name, &R::schema()).await?;
        let columns = table.columns()?;
        let batch = R::batch(records, &columns).map_err(|error| table.failed(error))?;
        check_writable(&table, &batch.schema())?;
        let mut files = DataFiles::new(table.target()?, Vec::new(), BTreeSet::new());
        files.write(&batch).await.map_err(|error| table.failed(error))?;
        let adds = files.finish().await.map_err(|error| table.failed(error))?;
        for _ in 0..commit::MAX_APPENDS {
            let actions = adds.iter().cloned().map(Action::Add).collect();
            let metadata = [("isBlindAppend".to_owned(), true.into()), (commit::OURS.to_owned(), json!({}))];
            match commit::attempt(&mut table, actions, operation(), Vec::new(), metadata.into()).await? {
                CommitOutcome::Committed { .. } => return Ok(()),
                CommitOutcome::Overtaken => {
                    tracing::debug!(table = %table.name, "another writer was faster, trying again");
                    commit::give_way().await;
                }
            }
        }
        commit::discard(&table, adds.into_iter().map(|add| add.path)).await;
        Err(Error::Conflict { table: table.name, attempts: commit::MAX_APPENDS })
    }

    /// All records; none where there is no table.
    pub(super) async fn records<R: Recorded>(&self, name: TableName) -> Result<Vec<R>, Error> {
        let mut all = Vec::new();
        self.each_record(name, &mut |record| all.push(record)).await?;
        Ok(all)
    }

    /// Gives each record to `take`, in no order. One batch of them is in memory at a time.
    pub(super) async fn each_record<R: Recorded>(
        &self,
        name: TableName,
        take: &mut impl FnMut(R),
    ) -> Result<(), Error> {
        let Some(table) = self.load(name).await? else { return Ok(()) };
        for stored in table.stored_files().await? {
            let mut batches = table.rows(&stored).await?;
            while let Some(batch) = batches.next().await {
                R::of(&batch?).map_err(|error| table.failed(error))?.into_iter().for_each(&mut *take);
            }
        }
        Ok(())
    }
}

async fn open_or_create(root: &Root, name: TableName, schema: &Schema) -> Result<Table, Error> {
    if let Some(table) = root.load(name).await? {
        return with_columns(table, schema).await;
    }
    let schema = kernel_schema(schema, &name.directory())?;
    let create = CreateBuilder::new().with_table_name(name.as_str()).with_columns(schema.fields().cloned());
    root.create(name, create).await
}

fn operation() -> DeltaOperation {
    DeltaOperation::Write { mode: SaveMode::Append, partition_by: None, predicate: None }
}
