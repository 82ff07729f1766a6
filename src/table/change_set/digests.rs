//! Digests: which stored rows have the content of a received row?
//!
//! The content of a row is known by a keyed digest. There may be as many digests as there are rows, and they come in any
//! order, so they wait here by their leading bits: in memory up to a budget, and then in the spool. Those that are equal
//! are side by side then, and each is read once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use crate::table::{
    Error,
    change_set::entry::{IdHash, number, take},
    change_set::newest::buckets::{Bucket, Buckets},
    change_set::spool::Spool,
    data_file::deletion_vector::RowSet,
    data_file::stored::FileIndex,
    parallel::{cores, in_parallel},
};

/// 128 bits that stand for the content of a row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RowDigest {
    pub high: u64,
    pub low: u64,
}

/// Rows of stored files.
pub type RowsByFile = BTreeMap<FileIndex, RowSet>;

/// Takes the digests of stored and of received rows.
pub struct Digests {
    unmatched: Mutex<Unmatched>,
    /// How many digests of received rows one thread may have in memory.
    max_compared: usize,
}

struct Unmatched {
    received: Buckets,
    stored: Buckets,
    spool: Spool,
}

impl Digests {
    /// They take at most `max_bytes` of memory; the others are in the spool.
    pub fn new(spool: Spool, max_bytes: usize) -> Self {
        let unmatched = Unmatched { received: Buckets::new(max_bytes / 2), stored: Buckets::new(max_bytes / 2), spool };
        let max_compared = (max_bytes / size_of::<RowDigest>() / cores()).max(1);
        Self { unmatched: Mutex::new(unmatched), max_compared }
    }

    /// Takes digests of received rows. May block on the disk.
    pub fn add_received(&self, digests: impl IntoIterator<Item = RowDigest>) -> Result<(), Error> {
        let Unmatched { received, spool, .. } = &mut *self.unmatched.lock().unwrap_or_else(PoisonError::into_inner);
        digests.into_iter().try_for_each(|digest| received.push(spool, digest.into(), |out| digest.encode(out)))
    }

    /// Takes digests of rows of a stored file. May block on the disk.
    pub fn add_stored(&self, file: FileIndex, rows: impl IntoIterator<Item = (u64, RowDigest)>) -> Result<(), Error> {
        let Unmatched { stored, spool, .. } = &mut *self.unmatched.lock().unwrap_or_else(PoisonError::into_inner);
        rows.into_iter().try_for_each(|(row, digest)| {
            stored.push(spool, digest.into(), |out| {
                digest.encode(out);
                out.extend_from_slice(&file.0.to_le_bytes());
                out.extend_from_slice(&row.to_le_bytes());
            })
        })
    }

    /// The stored rows whose digest is one of a received row. Blocks on the disk.
    pub fn in_both(self) -> Result<RowsByFile, Error> {
        let Unmatched { mut received, mut stored, mut spool } =
            self.unmatched.into_inner().unwrap_or_else(PoisonError::into_inner);
        // Frees the memory: it is for those that are compared now.
        received.spill(&mut spool)?;
        stored.spill(&mut spool)?;
        let buckets: Vec<_> = received.all().iter().zip(stored.all()).collect();
        let all = Mutex::new(RowsByFile::new());
        in_parallel(&buckets, |(received, stored)| {
            let of_bucket = in_both(received, stored, &spool, self.max_compared)?;
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            for (file, rows) in of_bucket {
                *all.entry(file).or_default() |= rows;
            }
            Ok(())
        })?;
        Ok(all.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The stored rows of a bucket whose digest is one of a received row. Where there are more received rows than may be in
/// memory, the stored ones are read several times.
fn in_both(received: &Bucket, stored: &Bucket, spool: &Spool, max_compared: usize) -> Result<RowsByFile, Error> {
    let mut found = RowsByFile::new();
    if stored.count == 0 {
        return Ok(found);
    }
    let mut note = |some: &mut Vec<RowDigest>| {
        some.sort_unstable();
        stored.read(spool, |mut bytes| {
            while !bytes.is_empty() {
                let (digest, file, row) = stored_row(&mut bytes).ok_or_else(Error::unreadable_index)?;
                if some.binary_search(&digest).is_ok() {
                    found.entry(file).or_default().insert(row);
                }
            }
            Ok(())
        })?;
        some.clear();
        Ok::<_, Error>(())
    };
    let mut some = Vec::new();
    received.read(spool, |mut bytes| {
        while !bytes.is_empty() {
            some.push(RowDigest::decode(&mut bytes).ok_or_else(Error::unreadable_index)?);
            if some.len() == max_compared {
                note(&mut some)?;
            }
        }
        Ok(())
    })?;
    if !some.is_empty() {
        note(&mut some)?;
    }
    Ok(found)
}

fn stored_row(bytes: &mut &[u8]) -> Option<(RowDigest, FileIndex, u64)> {
    Some((RowDigest::decode(bytes)?, FileIndex(u32::from_le_bytes(take(bytes)?)), number(bytes)?))
}

impl RowDigest {
    fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.high.to_le_bytes());
        out.extend_from_slice(&self.low.to_le_bytes());
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self { high: number(bytes)?, low: number(bytes)? })
    }
}

/// Buckets are chosen by the leading bits, whatever they are a hash of.
impl From<RowDigest> for IdHash {
    fn from(RowDigest { high, low }: RowDigest) -> Self {
        Self { high, low }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn exactly_the_stored_rows_with_the_digest_of_a_received_row_are_found(
            received in proptest::collection::vec(0u64..60, 0..80),
            stored in proptest::collection::vec((0u32..3, 0u64..60), 0..80),
            max_bytes in 0usize..400,
        ) {
            let folder = tempfile::tempdir().unwrap();
            // Some in one bucket, and some that differ in the lower half only.
            let digest = |of: u64| RowDigest { high: ((of % 7) << 61) | (of / 14), low: of };
            let digests = Digests::new(Spool::new(0, folder.path()), max_bytes);
            let mut expected = RowsByFile::new();
            for (row, (file, of)) in (0..).zip(&stored) {
                digests.add_stored(FileIndex(*file), [(row, digest(*of))]).unwrap();
                if received.contains(of) {
                    expected.entry(FileIndex(*file)).or_default().insert(row);
                }
            }
            digests.add_received(received.into_iter().map(digest)).unwrap();
            prop_assert_eq!(digests.in_both().unwrap(), expected);
        }
    }
}
