//! Partitions: data files by the parts of a date, in folders as Hive names them, for sites that ask for that.
//!
//! The date is the start of one of the derived dates, in UTC. The columns `year`, `month` and `day` stand at the end of the
//! table and in no data file. A row without the date is in the partition of null. Ids are looked for in all partitions, so
//! a row whose date changes moves.

use std::collections::{BTreeMap, BTreeSet};

use arrow::{
    array::{Array as _, AsArray as _, RecordBatch},
    compute::{cast, interleave_record_batch},
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType},
    error::ArrowError,
};
use chrono::{DateTime, Datelike as _};
use deltalake::{DeltaTableError, kernel::Add};

use crate::table::{
    data_file::Partition,
    data_file::rolling::{DataFiles, Target, align, bytes_of, columns_of_file},
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
pub(in crate::table) const PARTITION_DATE: &str = "fhirsync.partitionDate";

/// Year, month and day; zero where the partitions are not so fine. `None` for rows without the date, and for all rows of a
/// table without partitions.
pub(in crate::table) type Key = Option<(i32, u32, u32)>;

impl DatePartition {
    pub(in crate::table) fn columns(&self) -> impl Iterator<Item = &'static str> {
        DatePart::ALL.into_iter().filter(|part| *part <= self.finest).map(DatePart::as_str)
    }

    /// The column that the date stands in.
    pub(in crate::table) fn source(&self) -> String {
        format!("__{}_start", self.date)
    }

    /// `schema` and the partition columns.
    pub(in crate::table) fn with_columns(&self, schema: &Schema) -> Schema {
        let own = self.columns().map(|name| FieldRef::from(Field::new(name, DataType::Int32, true)));
        Schema::new(schema.fields().iter().cloned().chain(own).collect::<Vec<_>>())
    }

    /// What the log says of the files of a key.
    pub(in crate::table) fn partition(&self, key: Key) -> Partition {
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
pub(in crate::table) fn of_data_files(columns: &SchemaRef, partition_columns: &[String]) -> Schema {
    let own = columns.fields().iter().filter(|field| !partition_columns.contains(field.name()));
    Schema::new(own.cloned().collect::<Vec<_>>())
}

/// The partitions that rows are of; just `None` without `by`.
pub(in crate::table) fn keys(rows: &RecordBatch, by: Option<&DatePartition>) -> Result<BTreeSet<Key>, ArrowError> {
    by.map_or_else(|| Ok(BTreeSet::from([None])), |by| Ok(by.keys(rows)?.into_iter().collect()))
}

/// The rows of each partition that is `meant`, in their order, with those of `columns` that some of the rows fill.
fn split(
    batches: &[RecordBatch],
    columns: &SchemaRef,
    by: &DatePartition,
    meant: impl Fn(&Key) -> bool,
) -> Result<BTreeMap<Key, RecordBatch>, ArrowError> {
    let mut places: BTreeMap<Key, Vec<(usize, usize)>> = BTreeMap::new();
    for (number, rows) in batches.iter().enumerate() {
        for (row, key) in by.keys(rows)?.into_iter().enumerate().filter(|(_, key)| meant(key)) {
            places.entry(key).or_default().push((number, row));
        }
    }
    let is_filled = |name: &str| {
        let mut columns = batches.iter().filter_map(|rows| rows.column_by_name(name));
        columns.any(|column| column.null_count() < column.len())
    };
    let filled = columns_of_file(columns, 0, is_filled);
    let batches = batches.iter().map(|rows| align(rows, &filled)).collect::<Result<Vec<_>, _>>()?;
    let batches: Vec<_> = batches.iter().collect();
    places.into_iter().map(|(key, places)| Ok((key, interleave_record_batch(&batches, &places)?))).collect()
}

/// Rows that are divided together, in Arrow's bytes. Divided a few thousand at a time, a million Observations of ninety months
/// took more than six CPU minutes: each of their columns is gone through for each month.
const WAITING_BYTES: usize = 32 * 1024 * 1024;

/// Growing files, one at a time for each partition that rows are of.
pub(in crate::table) struct PartitionedFiles {
    target: Target,
    filled: BTreeSet<String>,
    meant: Meant,
    waiting: Vec<RecordBatch>,
    waiting_bytes: usize,
    growing: BTreeMap<Key, DataFiles>,
    done: Vec<Add>,
}

/// The partitions whose rows are written. They share the memory of one file.
pub(in crate::table) enum Meant {
    /// Only these; all of them grow at the same time.
    Only(BTreeSet<Key>),
    /// All, and so many grow at the same time.
    All { most: usize },
}

impl Meant {
    fn most(&self) -> usize {
        match self {
            Self::Only(keys) => keys.len().max(1),
            Self::All { most } => *most,
        }
    }

    fn has(&self, key: &Key) -> bool {
        match self {
            Self::Only(keys) => keys.contains(key),
            Self::All { .. } => true,
        }
    }
}

impl PartitionedFiles {
    /// `filled` as in [`DataFiles::new`].
    pub fn new(target: Target, filled: BTreeSet<String>, meant: Meant) -> Self {
        let side_by_side = if target.by.is_some() { meant.most() } else { 1 };
        let target = Target { row_group_bytes: target.row_group_bytes / side_by_side, ..target };
        let (growing, done) = Default::default();
        Self { target, filled, meant, waiting: Vec::new(), waiting_bytes: 0, growing, done }
    }

    /// Those of the rows that are meant. A column that they do not have is null.
    pub async fn write(&mut self, rows: &RecordBatch) -> Result<(), DeltaTableError> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        if self.target.by.is_none() {
            return self.write_into(None, rows).await;
        }
        self.waiting_bytes += bytes_of(rows);
        self.waiting.push(rows.clone());
        if self.waiting_bytes >= WAITING_BYTES { self.divide().await } else { Ok(()) }
    }

    async fn divide(&mut self) -> Result<(), DeltaTableError> {
        let Some(by) = &self.target.by else { return Ok(()) };
        let divided = split(&std::mem::take(&mut self.waiting), &self.target.columns, by, |key| self.meant.has(key))?;
        self.waiting_bytes = 0;
        for (key, rows) in divided {
            self.write_into(key, &rows).await?;
        }
        Ok(())
    }

    async fn write_into(&mut self, key: Key, rows: &RecordBatch) -> Result<(), DeltaTableError> {
        self.make_room(key).await?;
        let (target, filled) = (&self.target, &self.filled);
        let files = self.growing.entry(key).or_insert_with(|| {
            let partition = target.by.as_ref().map(|by| by.partition(key)).unwrap_or_default();
            DataFiles::new(target.clone(), partition, filled.clone())
        });
        files.write(rows).await?;
        Ok(())
    }

    pub async fn finish(mut self) -> Result<Vec<Add>, DeltaTableError> {
        self.divide().await?;
        for files in std::mem::take(&mut self.growing).into_values() {
            self.done.extend(files.finish().await?);
        }
        Ok(self.done)
    }

    /// Ends the smallest file where there is none for `key` and no room for one: what strays comes in small numbers.
    async fn make_room(&mut self, key: Key) -> Result<(), DeltaTableError> {
        if self.growing.contains_key(&key) || self.growing.len() < self.meant.most() {
            return Ok(());
        }
        let smallest = self.growing.iter().min_by_key(|(_, files)| files.rows()).map(|(key, _)| *key);
        if let Some(files) = smallest.and_then(|key| self.growing.remove(&key)) {
            self.done.extend(files.finish().await?);
        }
        Ok(())
    }
}
