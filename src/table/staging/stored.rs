//! Stored rows, as the engine has read them: they wait by the hash of their id until their shard is decided.
//!
//! The engine reads the table once for all shards, as an upsert of our own does, and there may be more rows than fit
//! into memory. So they wait in buckets, which go to a spool where they are many.

use crate::fhir::Version;
use crate::table::{
    ChangeSet, Error,
    change_set::entry::{IdHash, decode_version, encode_version, number, take},
    change_set::newest::Shard,
    change_set::newest::buckets::Buckets,
    change_set::spool::Spool,
};

/// A row of the table. Its id is one of the change set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRow {
    pub id: String,
    pub version: Version,
    /// `_sync_hash`.
    pub hash: Option<i64>,
}

pub struct StoredRows<'a> {
    changes: &'a ChangeSet,
    buckets: Buckets,
    spool: Spool,
}

impl<'a> StoredRows<'a> {
    /// None yet.
    pub fn of(changes: &'a ChangeSet) -> Self {
        let (buckets, spool) = changes.buckets();
        Self { changes, buckets, spool }
    }

    /// May block on the disk.
    pub fn keep(&mut self, rows: &[StoredRow]) -> Result<(), Error> {
        let Self { changes, buckets, spool } = self;
        rows.iter().try_for_each(|row| {
            let id_hash = changes.id_hash(&row.id);
            buckets.push(spool, id_hash, |out| row.encode(id_hash, out))
        })
    }

    /// The rows of the ids of a shard. Blocks on the disk.
    pub fn of_shard(&self, shard: &Shard) -> Result<Vec<StoredRow>, Error> {
        let mut rows = Vec::new();
        for bucket in shard.span().of(&self.buckets) {
            bucket.read(&self.spool, |mut bytes| {
                while !bytes.is_empty() {
                    let (id_hash, row) = StoredRow::decode(&mut bytes).ok_or_else(Error::unreadable_index)?;
                    if shard.span().covers(id_hash) {
                        rows.push(row);
                    }
                }
                Ok(())
            })?;
        }
        Ok(rows)
    }
}

/// The row has a hash.
const HASH: u8 = 1;

impl StoredRow {
    fn encode(&self, id_hash: IdHash, out: &mut Vec<u8>) {
        out.extend_from_slice(&id_hash.high.to_le_bytes());
        out.extend_from_slice(&id_hash.low.to_le_bytes());
        encode_version(&self.version, if self.hash.is_some() { HASH } else { 0 }, out);
        out.extend(self.hash.into_iter().flat_map(i64::to_le_bytes));
        out.extend_from_slice(&(self.id.len() as u64).to_le_bytes());
        out.extend_from_slice(self.id.as_bytes());
    }

    fn decode(bytes: &mut &[u8]) -> Option<(IdHash, Self)> {
        let id_hash = IdHash { high: number(bytes)?, low: number(bytes)? };
        let [flags] = take(bytes)?;
        let version = decode_version(flags, bytes)?;
        let hash = if flags & HASH == 0 { None } else { Some(number(bytes)?.cast_signed()) };
        let id_bytes = usize::try_from(number(bytes)?).ok()?;
        let (id, rest) = bytes.split_at_checked(id_bytes)?;
        *bytes = rest;
        Some((id_hash, Self { id: std::str::from_utf8(id).ok()?.to_owned(), version, hash }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    #[test]
    fn each_stored_row_is_given_to_the_shard_of_its_id_as_it_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let schema = Schema::new(vec![Field::new("id", DataType::Utf8, true)]);
        let changes = ChangeSet::tiny(&schema.into(), folder.path());
        let id = |number: i64| format!("id-{number}");
        (0..40).for_each(|number| changes.delete(id(number), None).unwrap());
        let row = |number: i64| StoredRow {
            id: id(number),
            version: Version {
                last_updated_micros: (number % 2 == 0).then_some(number),
                subsetted: number % 3 == 0,
                transaction_time_micros: Some(-number),
                ..Version::default()
            },
            hash: (number % 5 > 0).then_some(-number),
        };
        let mut stored = StoredRows::of(&changes);
        (0..40).for_each(|number| stored.keep(&[row(number), row(number)]).unwrap());
        assert!(changes.shards().count() > 5);
        let mut seen = BTreeSet::new();
        for shard in changes.shards() {
            let shard = shard.unwrap();
            for of_shard in stored.of_shard(&shard).unwrap() {
                let number: i64 = of_shard.id["id-".len()..].parse().unwrap();
                assert!(shard.get(&of_shard.id).is_some() && of_shard == row(number));
                seen.insert(number);
            }
        }
        assert_eq!(seen.len(), 40);
    }
}
