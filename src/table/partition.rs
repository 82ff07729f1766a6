//! Partitions: data files by the parts of a date, in folders as Hive names them, for sites that ask for that.
//!
//! The date is the start of one of the derived dates, in UTC. The columns `year`, `month` and `day` stand at the end of the
//! table and in no data file. A row without the date is in the partition of null. Ids are looked for in all partitions, so
//! a row whose date changes moves.

use std::collections::{BTreeMap, BTreeSet};

use arrow::{
    array::{Array as _, AsArray as _, RecordBatch, UInt32Array},
    compute::{cast, take_record_batch},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType},
    error::ArrowError,
};
use chrono::{DateTime, Datelike as _};
use deltalake::{DeltaTableError, kernel::Add};

use super::{
    data_file::Partition,
    files::{DataFiles, Target},
};

/// By which date a table is partitioned, and how finely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatePartition {
    /// `effective` for the column `__effective_start`.
    pub date: String,
    pub finest: DatePart,
}

/// A partition column; those before it in this order are there too.
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

/// The table property that says of which date the columns are parts.
pub(super) const PARTITION_DATE: &str = "fhirsync.partitionDate";

/// Year, month and day; zero where the partitions are not so fine. `None` for rows without the date, and for all rows of a
/// table without partitions.
pub(super) type Key = Option<(i32, u32, u32)>;

impl DatePartition {
    pub(super) fn columns(&self) -> impl Iterator<Item = &'static str> {
        DatePart::ALL.into_iter().filter(|part| *part <= self.finest).map(DatePart::as_str)
    }

    /// The column that the date stands in.
    pub(super) fn source(&self) -> String {
        format!("__{}_start", self.date)
    }

    /// `schema` and the partition columns.
    pub(super) fn with_columns(&self, schema: &Schema) -> Schema {
        let own = self.columns().map(|name| FieldRef::from(Field::new(name, DataType::Int32, true)));
        Schema::new(schema.fields().iter().cloned().chain(own).collect::<Vec<_>>())
    }

    /// What the log says of the files of a key.
    pub(super) fn partition(&self, key: Key) -> Partition {
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

    fn keys(&self, rows: &RecordBatch) -> Result<Vec<Key>, ArrowError> {
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

/// `columns` without those that no data file has.
pub(super) fn of_data_files(columns: &SchemaRef, partition_columns: &[String]) -> Schema {
    let own = columns.fields().iter().filter(|field| !partition_columns.contains(field.name()));
    Schema::new(own.cloned().collect::<Vec<_>>())
}

/// The partitions that rows are of; just `None` without `by`.
pub(super) fn keys(rows: &RecordBatch, by: Option<&DatePartition>) -> Result<BTreeSet<Key>, ArrowError> {
    by.map_or_else(|| Ok(BTreeSet::from([None])), |by| Ok(by.keys(rows)?.into_iter().collect()))
}

/// The rows of each partition, in their order.
fn split(rows: &RecordBatch, by: Option<&DatePartition>) -> Result<BTreeMap<Key, RecordBatch>, ArrowError> {
    let Some(by) = by else { return Ok(BTreeMap::from([(None, rows.clone())])) };
    let mut places: BTreeMap<Key, Vec<u32>> = BTreeMap::new();
    for (row, key) in (0u32..).zip(by.keys(rows)?) {
        places.entry(key).or_default().push(row);
    }
    if let (1, Some((key, _))) = (places.len(), places.first_key_value()) {
        return Ok(BTreeMap::from([(*key, rows.clone())]));
    }
    places.into_iter().map(|(key, places)| Ok((key, take_record_batch(rows, &UInt32Array::from(places))?))).collect()
}

/// Growing files, one at a time for each partition that rows are of.
pub(super) struct PartitionedFiles {
    target: Target,
    filled: BTreeSet<String>,
    most: usize,
    growing: BTreeMap<Key, DataFiles>,
    done: Vec<Add>,
}

impl PartitionedFiles {
    /// At most so many partitions grow at the same time, and share the memory of one file. `filled` as in
    /// [`DataFiles::new`].
    pub fn new(target: Target, filled: BTreeSet<String>, most: usize) -> Self {
        let most = if target.by.is_some() { most.max(1) } else { 1 };
        let target = Target { row_group_bytes: target.row_group_bytes / most, ..target };
        Self { target, filled, most, growing: BTreeMap::new(), done: Vec::new() }
    }

    pub async fn write(&mut self, rows: &RecordBatch) -> Result<(), DeltaTableError> {
        self.write_only(rows, |_| true).await
    }

    /// Only the rows of the partitions that `are_meant`.
    pub async fn write_only(
        &mut self,
        rows: &RecordBatch,
        are_meant: impl Fn(&Key) -> bool,
    ) -> Result<(), DeltaTableError> {
        for (key, rows) in split(rows, self.target.by.as_ref())? {
            if are_meant(&key) && rows.num_rows() > 0 {
                self.make_room(key).await?;
                let (target, filled) = (&self.target, &self.filled);
                let files = self.growing.entry(key).or_insert_with(|| {
                    let partition = target.by.as_ref().map(|by| by.partition(key)).unwrap_or_default();
                    DataFiles::new(target.clone(), partition, filled.clone())
                });
                files.write(&rows).await?;
            }
        }
        Ok(())
    }

    pub async fn finish(mut self) -> Result<Vec<Add>, DeltaTableError> {
        for files in std::mem::take(&mut self.growing).into_values() {
            self.done.extend(files.finish().await?);
        }
        Ok(self.done)
    }

    /// Ends the smallest file where there is none for `key` and no room for one: what strays comes in small numbers.
    async fn make_room(&mut self, key: Key) -> Result<(), DeltaTableError> {
        if self.growing.contains_key(&key) || self.growing.len() < self.most {
            return Ok(());
        }
        let smallest = self.growing.iter().min_by_key(|(_, files)| files.rows()).map(|(key, _)| *key);
        if let Some(files) = smallest.and_then(|key| self.growing.remove(&key)) {
            self.done.extend(files.finish().await?);
        }
        Ok(())
    }
}
