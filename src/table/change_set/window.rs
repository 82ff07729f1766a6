//! The window of a partitioned table: rows wait in it until they are many enough to be divided by partition.
//!
//! A chunk of the spool then has rows of one partition, or of a few that follow each other and have few rows each. So
//! the commit reads a chunk once or twice, and not once for every sixteen partitions.

use std::{
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use arrow::{
    array::{RecordBatch, UInt32Array},
    compute::take_record_batch,
    datatypes::SchemaRef,
    error::ArrowError,
};

use crate::table::{
    change_set::entry::{IdHash, NewEntry},
    data_file::partitioned::{joined, rows_of_partitions},
    data_file::rolling::bytes_of,
    date_partition::{DatePartition, PartitionKey},
};

pub struct Window {
    by: DatePartition,
    max_bytes: usize,
    min_chunk_rows: usize,
    waiting: [Mutex<Undivided>; HALVES],
    next: AtomicUsize,
}

/// One half fills while the other is divided. With more, memory would grow with the cores.
pub const HALVES: usize = 2;

/// A chunk takes about a KB of memory. So the more chunks there are, the more rows a new one has: at least one for every
/// 256 chunks. A hundred million rows have some 200,000 chunks.
const CHUNKS_PER_ROW: usize = 256;

/// Rows and what the index is to know of each.
#[derive(Default)]
pub struct Undivided {
    rows: Vec<RecordBatch>,
    bytes: usize,
    entries: Vec<(IdHash, NewEntry)>,
}

/// Rows that become a chunk of their own.
pub struct DividedRows {
    pub partitions: Vec<PartitionKey>,
    pub rows: RecordBatch,
    pub entries: Vec<(IdHash, NewEntry)>,
}

impl Window {
    /// Each half waits for this many bytes of Arrow arrays. Partitions with fewer than `min_chunk_rows` rows share a
    /// chunk.
    pub fn new(by: DatePartition, max_bytes: usize, min_chunk_rows: usize) -> Self {
        Self { by, max_bytes, min_chunk_rows, waiting: Default::default(), next: AtomicUsize::new(0) }
    }

    /// Adds [narrow](crate::table::data_file::fill::narrow) rows. Where there is no room for them, `divide` takes those
    /// that waited. Meanwhile one other worker uses the other half, and all others wait.
    pub fn add<E>(
        &self,
        rows: RecordBatch,
        entries: Vec<(IdHash, NewEntry)>,
        divide: impl FnOnce(Undivided) -> Result<(), E>,
    ) -> Result<(), E> {
        let bytes = bytes_of(&rows);
        let mut waiting = self.free_half();
        if waiting.bytes + bytes > self.max_bytes {
            divide(mem::take(&mut *waiting))?;
        }
        waiting.bytes += bytes;
        waiting.rows.push(rows);
        waiting.entries.extend(entries);
        Ok(())
    }

    /// What still waits.
    pub fn take(&self) -> [Undivided; HALVES] {
        self.waiting.each_ref().map(|half| mem::take(&mut *lock(half)))
    }

    fn free_half(&self) -> MutexGuard<'_, Undivided> {
        let free = self.waiting.iter().find_map(|half| half.try_lock().ok());
        free.unwrap_or_else(|| lock(&self.waiting[self.next.fetch_add(1, Ordering::Relaxed) % HALVES]))
    }

    /// Divides rows by partition; there are `chunks` already.
    pub fn divide(
        &self,
        schema: &SchemaRef,
        undivided: Undivided,
        chunks: usize,
    ) -> Result<Vec<DividedRows>, ArrowError> {
        let Undivided { rows, entries, .. } = undivided;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let rows = joined(schema, rows)?;
        let min_chunk_rows = self.min_chunk_rows.max(chunks / CHUNKS_PER_ROW);
        let mut divided = Vec::new();
        let (mut partitions, mut indices) = (Vec::new(), Vec::new());
        let mut of_partitions = rows_of_partitions(&rows, &self.by)?.into_iter().peekable();
        while let Some((partition, of_partition)) = of_partitions.next() {
            partitions.push(partition);
            indices.extend(of_partition);
            if indices.len() >= min_chunk_rows || of_partitions.peek().is_none() {
                let indices = UInt32Array::from(mem::take(&mut indices));
                let entries = indices.values().iter().map(|row| entries[*row as usize]).collect();
                let rows = take_record_batch(&rows, &indices)?;
                divided.push(DividedRows { partitions: mem::take(&mut partitions), rows, entries });
            }
        }
        Ok(divided)
    }
}

fn lock(half: &Mutex<Undivided>) -> MutexGuard<'_, Undivided> {
    half.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{AsArray as _, Int64Array, TimestampMicrosecondArray},
        datatypes::{Int64Type, Schema},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::{
        fhir::Version,
        table::{
            change_set::entry::{IdHasher, OutputIndex, Position},
            date_partition::DatePart,
        },
    };

    const YEAR_MICROS: i64 = 366 * 24 * 3600 * 1_000_000;

    /// Rows with these years since 1970, numbered from `first`.
    fn rows(first: i64, years: &[i64]) -> (RecordBatch, Vec<(IdHash, NewEntry)>) {
        let numbers: Vec<_> = (first..).take(years.len()).collect();
        let starts: TimestampMicrosecondArray = years.iter().map(|year| Some(year * YEAR_MICROS)).collect();
        let entry = |number: &i64| {
            let (version, position) = (Version::default(), Position { output: OutputIndex(0), line: 1 });
            (IdHasher::new().of("a"), NewEntry { version, hash: number.cast_unsigned(), position })
        };
        let entries = numbers.iter().map(entry).collect();
        let numbers = Int64Array::from(numbers);
        let rows =
            RecordBatch::try_from_iter([("number", Arc::new(numbers) as _), ("__x_start", Arc::new(starts) as _)]);
        (rows.unwrap(), entries)
    }

    proptest! {
        #[test]
        fn every_row_is_in_one_chunk_beside_its_entry_and_only_small_partitions_share_one(
            batches in proptest::collection::vec(proptest::collection::vec(0i64..5, 1..20), 1..6),
            (max_bytes, min_chunk_rows) in (0usize..600, 1usize..5),
        ) {
            let by = DatePartition { date: "x".to_owned(), finest: DatePart::Year };
            let window = Window::new(by.clone(), max_bytes, min_chunk_rows);
            let schema: SchemaRef = Arc::new(Schema::clone(&rows(0, &[0]).0.schema()));
            let (mut seen, mut pushed) = (Vec::new(), 0);
            let mut take = |waiting: Undivided| {
                for DividedRows { partitions, rows, entries } in window.divide(&schema, waiting, 0).unwrap() {
                    let numbers = rows.column(0).as_primitive::<Int64Type>().values().to_vec();
                    assert_eq!(numbers, entries.iter().map(|(_, of)| of.hash.cast_signed()).collect::<Vec<_>>());
                    let of_rows = by.keys(&rows).unwrap();
                    assert_eq!(partitions, of_rows.chunk_by(|a, b| a == b).map(|same| same[0]).collect::<Vec<_>>());
                    let before_last = of_rows.iter().filter(|key| Some(*key) != partitions.last()).count();
                    assert!(before_last < min_chunk_rows, "{partitions:?} {of_rows:?}");
                    seen.extend(numbers);
                }
            };
            for years in &batches {
                let (rows, entries) = rows(pushed, years);
                pushed += i64::try_from(years.len()).unwrap();
                let added = window.add(rows, entries, |full| {
                    take(full);
                    Ok::<_, ()>(())
                });
                added.unwrap();
            }
            window.take().into_iter().for_each(&mut take);
            seen.sort_unstable();
            assert_eq!(seen, (0..pushed).collect::<Vec<_>>());
        }
    }
}
