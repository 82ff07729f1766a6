//! Candidates: the stored rows that may have an id of a change set, with their versions.
//!
//! Where the ids of a change set are in several shards, reading the stored rows for each shard would cost as many
//! readings as there are shards. So they are read once, for all shards: what passes the filter of ids waits here, by the
//! hash of its id, and each shard gets its own part. The filter lets a few rows of other ids pass; the shard tells them
//! apart.

use std::sync::{Mutex, PoisonError};

use crate::fhir::Version;
use crate::table::{
    Error,
    change_set::entry::{IdHash, decode_version, encode_version, number, take},
    change_set::newest::Shard,
    change_set::newest::buckets::Buckets,
    change_set::newest::filter::IdFilter,
    change_set::spool::Spool,
    data_file::stored::FileIndex,
};

/// A stored row whose id passed the filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub id_hash: IdHash,
    pub file: FileIndex,
    /// Its index in the file.
    pub row: u64,
    pub version: Version,
    /// As the row carries it.
    pub hash: Option<u64>,
}

/// Takes candidates while the stored rows are read.
pub struct Candidates {
    filter: IdFilter,
    taken: Mutex<AllCandidates>,
}

/// All candidates, when the stored rows have been read.
pub struct AllCandidates {
    buckets: Buckets,
    spool: Spool,
}

impl Candidates {
    /// Candidates take at most `max_bytes` of memory; the others are in the spool.
    pub fn new(filter: IdFilter, spool: Spool, max_bytes: usize) -> Self {
        Self { filter, taken: Mutex::new(AllCandidates { buckets: Buckets::new(max_bytes), spool }) }
    }

    pub fn filter(&self) -> &IdFilter {
        &self.filter
    }

    /// Takes some candidates. May block on the disk.
    pub fn keep(&self, candidates: &[Candidate]) -> Result<(), Error> {
        let AllCandidates { buckets, spool } = &mut *self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        candidates.iter().try_for_each(|of| buckets.push(spool, of.id_hash, |out| of.encode(out)))
    }

    /// Frees the memory: shards need it now. Blocks on the disk.
    pub fn all(self) -> Result<AllCandidates, Error> {
        let AllCandidates { mut buckets, mut spool } = self.taken.into_inner().unwrap_or_else(PoisonError::into_inner);
        buckets.spill(&mut spool)?;
        Ok(AllCandidates { buckets, spool })
    }
}

impl AllCandidates {
    /// Gives the candidates of the shard to `take`, one by one and in any order: there may be more of them than fit into
    /// memory. Blocks on the disk.
    pub fn read(&self, shard: &Shard, mut take: impl FnMut(Candidate)) -> Result<(), Error> {
        for bucket in shard.span().of(&self.buckets) {
            bucket.read(&self.spool, |mut bytes| {
                while !bytes.is_empty() {
                    let candidate = Candidate::decode(&mut bytes).ok_or_else(Error::unreadable_index)?;
                    if shard.span().covers(candidate.id_hash) {
                        take(candidate);
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// The candidate has a hash.
const HASH: u8 = 1;

impl Candidate {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.id_hash.high.to_le_bytes());
        out.extend_from_slice(&self.id_hash.low.to_le_bytes());
        encode_version(&self.version, if self.hash.is_some() { HASH } else { 0 }, out);
        out.extend(self.hash.into_iter().flat_map(u64::to_le_bytes));
        out.extend_from_slice(&self.file.0.to_le_bytes());
        out.extend_from_slice(&self.row.to_le_bytes());
    }

    fn decode(bytes: &mut &[u8]) -> Option<Self> {
        let id_hash = IdHash { high: number(bytes)?, low: number(bytes)? };
        let [flags] = take(bytes)?;
        let version = decode_version(flags, bytes)?;
        let hash = if flags & HASH == 0 { None } else { Some(number(bytes)?) };
        Some(Self { id_hash, file: FileIndex(u32::from_le_bytes(take(bytes)?)), row: number(bytes)?, version, hash })
    }
}
