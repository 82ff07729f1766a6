//! Buckets: entries of ids as bytes, divided by the hash of the id, in memory up to a budget and then in the spool.
//!
//! An entry stays in the bucket of its [`IdHash`]. So what is known of a range of hashes is read back without reading
//! the rest, however much that is.

use crate::table::{
    Error,
    change_set::entry::IdHash,
    change_set::spool::{Block, Spool},
};

/// A power of two: the leading bits of an [`IdHash`] choose the bucket. With fewer, a bucket of a hundred million ids
/// would have to be read many times; with more, the last entries of all buckets would not fit into the caches of a core.
pub const BUCKETS: usize = 256;
pub const BUCKET_BITS: u32 = BUCKETS.trailing_zeros();

pub fn bucket_of(id_hash: IdHash) -> usize {
    // Only the leading bits are left, so the number is below BUCKETS.
    usize::try_from(id_hash.high >> (u64::BITS - BUCKET_BITS)).unwrap_or_default()
}

pub struct Buckets {
    of: Vec<Bucket>,
    recent_bytes: usize,
    max_recent_bytes: usize,
}

#[derive(Default)]
pub struct Bucket {
    spooled: Vec<Block>,
    /// Entries that are not in the spool yet.
    recent: Vec<u8>,
    /// How many entries were pushed.
    pub count: u64,
}

impl Buckets {
    /// Entries move to the spool when they take more than `max_recent_bytes`.
    pub fn new(max_recent_bytes: usize) -> Self {
        Self { of: (0..BUCKETS).map(|_| Bucket::default()).collect(), recent_bytes: 0, max_recent_bytes }
    }

    /// Takes an entry, which `encode` appends to its bucket. If the entries exceed their budget, all of them are moved
    /// to the spool, which blocks on the disk. After an error of the spool, the entry is in its bucket all the same, and
    /// those that could not be spooled are still in memory.
    pub fn push(&mut self, spool: &mut Spool, id_hash: IdHash, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), Error> {
        self.push_into(bucket_of(id_hash), spool, encode)
    }

    /// The same for an entry that is divided by something else than the hash of an id; there are [`BUCKETS`].
    pub fn push_into(
        &mut self,
        bucket: usize,
        spool: &mut Spool,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Error> {
        let bucket = &mut self.of[bucket];
        self.recent_bytes -= bucket.recent.capacity();
        encode(&mut bucket.recent);
        self.recent_bytes += bucket.recent.capacity();
        bucket.count += 1;
        if self.recent_bytes <= self.max_recent_bytes { Ok(()) } else { self.spill(spool) }
    }

    /// Moves all entries to the spool.
    pub fn spill(&mut self, spool: &mut Spool) -> Result<(), Error> {
        for bucket in self.of.iter_mut().filter(|bucket| !bucket.recent.is_empty()) {
            bucket.spooled.push(spool.append(&bucket.recent)?);
            self.recent_bytes -= bucket.recent.capacity();
            bucket.recent = Vec::new();
        }
        Ok(())
    }

    pub fn all(&self) -> &[Bucket] {
        &self.of
    }
}

impl Bucket {
    /// Reads the entries as they were pushed, some at a time. Blocks on the disk.
    pub fn read(&self, spool: &Spool, mut take: impl FnMut(&[u8]) -> Result<(), Error>) -> Result<(), Error> {
        self.spooled.iter().try_for_each(|block| take(&spool.read(block)?))?;
        take(&self.recent)
    }
}
