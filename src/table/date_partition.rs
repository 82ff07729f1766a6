//! Partitions by a date: which date, how finely, and the partition of a row.
//!
//! The date is the start of one of the derived dates, in UTC. The columns `year`, `month` and `day` are the last ones
//! of the table and are in no data file. A row without the date is in the partition of null.

use std::collections::BTreeSet;

use arrow::{
    array::{Array as _, AsArray as _, RecordBatch},
    compute::cast,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType},
    error::ArrowError,
};
use chrono::{DateTime, Datelike as _};

/// The partition columns of a file and their values, as the log writes them.
pub(super) type Partition = Vec<(String, Option<String>)>;

/// By which date a table is partitioned, and how finely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatePartition {
    /// `effective` for the column `__effective_start`.
    pub date: String,
    pub finest: DatePart,
}

/// A partition column. A table that has it has those before it as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DatePart {
    Year,
    Month,
    Day,
}

impl DatePart {
    pub const ALL: [Self; 3] = [Self::Year, Self::Month, Self::Day];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Year => "year",
            Self::Month => "month",
            Self::Day => "day",
        }
    }
}

/// Year, month and day; month and day are zero where partitions are not so fine. `None` for rows without the date, and
/// for all rows of a table without partitions.
pub(super) type PartitionKey = Option<(i32, u32, u32)>;

impl DatePartition {
    pub(super) fn columns(&self) -> impl Iterator<Item = &'static str> {
        DatePart::ALL.into_iter().filter(|part| *part <= self.finest).map(DatePart::as_str)
    }

    /// The column of the date.
    pub(super) fn source(&self) -> String {
        format!("__{}_start", self.date)
    }

    /// `schema` and the partition columns.
    pub(super) fn with_columns(&self, schema: &Schema) -> Schema {
        let own = self.columns().map(|name| FieldRef::from(Field::new(name, DataType::Int32, true)));
        Schema::new(schema.fields().iter().cloned().chain(own).collect::<Vec<_>>())
    }

    /// The partition columns of the files of a key, with their values.
    pub(super) fn partition(&self, key: PartitionKey) -> Partition {
        let value = |name: &str| {
            let (year, month, day) = key?;
            Some(match name {
                "year" => year.to_string(),
                "month" => month.to_string(),
                _ => day.to_string(),
            })
        };
        self.columns().map(|name| (name.to_owned(), value(name))).collect()
    }

    pub(super) fn keys(&self, rows: &RecordBatch) -> Result<Vec<PartitionKey>, ArrowError> {
        let Some(dates) = rows.column_by_name(&self.source()) else { return Ok(vec![None; rows.num_rows()]) };
        let dates = cast(dates, &DataType::Timestamp(TimeUnit::Microsecond, None))?;
        let dates = dates.as_primitive::<TimestampMicrosecondType>();
        let date =
            |row: usize| dates.is_valid(row).then(|| DateTime::from_timestamp_micros(dates.value(row))).flatten();
        let month_of = |date: &DateTime<_>| if self.finest >= DatePart::Month { date.month() } else { 0 };
        let day_of = |date: &DateTime<_>| if self.finest >= DatePart::Day { date.day() } else { 0 };
        let key = |row| date(row).map(|date| (date.year(), month_of(&date), day_of(&date)));
        Ok((0..rows.num_rows()).map(key).collect())
    }
}

/// `columns` without the partition columns, which no data file has.
pub(super) fn of_data_files(columns: &SchemaRef, partition_columns: &[String]) -> Schema {
    let own = columns.fields().iter().filter(|field| !partition_columns.contains(field.name()));
    Schema::new(own.cloned().collect::<Vec<_>>())
}

/// The partitions of the rows; only `None` without `by`.
pub(super) fn keys(rows: &RecordBatch, by: Option<&DatePartition>) -> Result<BTreeSet<PartitionKey>, ArrowError> {
    by.map_or_else(|| Ok(BTreeSet::from([None])), |by| Ok(by.keys(rows)?.into_iter().collect()))
}
