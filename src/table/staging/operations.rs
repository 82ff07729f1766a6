//! Operations: what is done with those rows of the change set that are not plain insertions.
//!
//! They are decided in the order of the ids and needed in the order of the rows. There may be as many as rows were
//! received, so they wait in buckets of neighbouring chunks, which go to a spool where they are many.

use std::collections::BTreeMap;

use crate::table::{
    ChangeSet, Error,
    change_set::entry::{ChunkIndex, RowLocation, number, take},
    change_set::newest::buckets::{BUCKETS, Buckets},
    change_set::spool::Spool,
};

/// Which stored row was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub hash: Option<i64>,
    pub transaction_time_micros: Option<i64>,
}

/// What is done with a row of the change set that is not a plain insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Update(Seen),
    /// It is inserted, and a [`Removal`](super::rows::Removal) removes all stored rows of its id.
    InsertBeside,
}

pub struct Operations {
    buckets: Buckets,
    spool: Spool,
    chunks_of_bucket: usize,
}

/// The operations of one bucket, by the place of their row.
type OfRows = BTreeMap<(ChunkIndex, u32), Operation>;

/// Reads the operations of one chunk after another, and each bucket once.
pub struct Reader<'a> {
    operations: &'a Operations,
    bucket: Option<usize>,
    of_rows: OfRows,
}

impl Operations {
    /// None yet, of rows of this change set.
    pub fn of(changes: &ChangeSet) -> Self {
        let (buckets, spool) = changes.buckets();
        Self { buckets, spool, chunks_of_bucket: changes.chunks().count().div_ceil(BUCKETS).max(1) }
    }

    /// May block on the disk.
    pub fn push(&mut self, location: RowLocation, operation: Operation) -> Result<(), Error> {
        let bucket = self.bucket_of(location.chunk);
        self.buckets.push_into(bucket, &mut self.spool, |out| encode(location, operation, out))
    }

    /// Chunks are asked for in ascending order.
    pub fn reader(&self) -> Reader<'_> {
        Reader { operations: self, bucket: None, of_rows: OfRows::new() }
    }

    fn bucket_of(&self, chunk: ChunkIndex) -> usize {
        (chunk.0 as usize / self.chunks_of_bucket).min(BUCKETS - 1)
    }
}

impl Reader<'_> {
    /// Operations of rows, those of the chunk among them. Blocks on the disk.
    pub fn of(&mut self, chunk: ChunkIndex) -> Result<&OfRows, Error> {
        let bucket = self.operations.bucket_of(chunk);
        if self.bucket != Some(bucket) {
            self.of_rows.clear();
            self.operations.buckets.all()[bucket].read(&self.operations.spool, |mut bytes| {
                while !bytes.is_empty() {
                    let (location, operation) = decode(&mut bytes).ok_or_else(Error::unreadable_index)?;
                    self.of_rows.insert((location.chunk, location.row), operation);
                }
                Ok(())
            })?;
            self.bucket = Some(bucket);
        }
        Ok(&self.of_rows)
    }
}

const UPDATE: u8 = 1;
/// What an update has of the row that was seen, in this order.
const HASH: u8 = 2;
const TRANSACTION_TIME: u8 = 4;

fn encode(location: RowLocation, operation: Operation, out: &mut Vec<u8>) {
    out.extend_from_slice(&location.chunk.0.to_le_bytes());
    out.extend_from_slice(&location.row.to_le_bytes());
    let Operation::Update(Seen { hash, transaction_time_micros }) = operation else {
        out.push(0);
        return;
    };
    let flag = |flag: u8, value: Option<i64>| if value.is_some() { flag } else { 0 };
    out.push(UPDATE | flag(HASH, hash) | flag(TRANSACTION_TIME, transaction_time_micros));
    out.extend([hash, transaction_time_micros].into_iter().flatten().flat_map(i64::to_le_bytes));
}

fn decode(bytes: &mut &[u8]) -> Option<(RowLocation, Operation)> {
    let chunk = ChunkIndex(u32::from_le_bytes(take(bytes)?));
    let location = RowLocation { chunk, row: u32::from_le_bytes(take(bytes)?) };
    let [flags] = take(bytes)?;
    let mut value = |flag: u8| match flags & flag {
        0 => Some(None),
        _ => number(bytes).map(|value| Some(value.cast_signed())),
    };
    let seen = Seen { hash: value(HASH)?, transaction_time_micros: value(TRANSACTION_TIME)? };
    let operation = if flags & UPDATE == 0 { Operation::InsertBeside } else { Operation::Update(seen) };
    Some((location, operation))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    #[test]
    fn an_operation_is_read_back_as_it_was_decided_whatever_is_seen_and_however_many_are_spooled() {
        let folder = tempfile::tempdir().unwrap();
        let schema = Schema::new(vec![Field::new("id", DataType::Utf8, true)]);
        let changes = ChangeSet::tiny(&schema.into(), folder.path());
        let mut operations = Operations { chunks_of_bucket: 3, ..Operations::of(&changes) };
        let seen = |hash, transaction_time_micros| Operation::Update(Seen { hash, transaction_time_micros });
        let kinds = [seen(None, None), seen(Some(-1), None), seen(None, Some(2)), seen(Some(i64::MIN), Some(3))];
        let kind = |place: u32| kinds.get(place as usize % 5).copied().unwrap_or(Operation::InsertBeside);
        let places: Vec<_> = (0..12).flat_map(|chunk| (0..20).map(move |row| (ChunkIndex(chunk), row))).collect();
        for (chunk, row) in places.iter().rev().copied() {
            operations.push(RowLocation { chunk, row }, kind(chunk.0 + row)).unwrap();
        }
        let mut reader = operations.reader();
        for (chunk, row) in places {
            assert_eq!(reader.of(chunk).unwrap()[&(chunk, row)], kind(chunk.0 + row));
        }
        assert!(reader.of(ChunkIndex(900)).unwrap().is_empty());
    }
}
