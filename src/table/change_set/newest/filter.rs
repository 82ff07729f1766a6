//! A filter of ids: is an id certainly not among those of the change set? It takes two bytes for each id, or fewer where
//! its memory is limited; then it lets more other ids pass.

use crate::table::{
    Error,
    change_set::entry::{IdHash, IdHasher, IndexEntry},
    change_set::newest::buckets::{BUCKETS, Bucket, bucket_of},
    change_set::spool::Spool,
    parallel::in_parallel,
};

/// One Bloom filter for each bucket, in which the bits of an id are all in one word: one access to the memory tells.
pub struct IdFilter {
    hasher: IdHasher,
    words_of: Vec<Vec<u64>>,
}

const BITS_PER_ID: u64 = 16;
const BITS_IN_WORD: u32 = 4;

impl IdFilter {
    /// Of all ids of the index. Blocks on the disk.
    pub fn of(buckets: &[Bucket], spool: &Spool, hasher: &IdHasher, max_bytes: usize) -> Result<Self, Error> {
        let max_words = (max_bytes / BUCKETS / size_of::<u64>()).max(1);
        let words_of = in_parallel(buckets, |bucket| {
            let words = (bucket.count * BITS_PER_ID).div_ceil(u64::BITS.into());
            let mut words = vec![0; usize::try_from(words).unwrap_or(max_words).clamp(1, max_words)];
            bucket.read(spool, |mut entries| {
                while !entries.is_empty() {
                    let (id_hash, _) = IndexEntry::decode(&mut entries).ok_or_else(Error::unreadable_index)?;
                    let (word, bits) = place(id_hash, words.len());
                    words[word] |= bits;
                }
                Ok(())
            })?;
            Ok(words)
        })?;
        Ok(Self { hasher: hasher.clone(), words_of })
    }

    /// The hash of the id, unless the id is certainly not in the change set.
    pub fn pass(&self, id: &str) -> Option<IdHash> {
        let id_hash = self.hasher.of(id);
        let words = &self.words_of[bucket_of(id_hash)];
        let (word, bits) = place(id_hash, words.len());
        (words[word] & bits == bits).then_some(id_hash)
    }
}

/// The word of an id, and its bits there.
fn place(id_hash: IdHash, words: usize) -> (usize, u64) {
    // Of a number below 2^32 times `words`, the upper bits are below `words`.
    let word = ((id_hash.low >> 32) as usize * words) >> 32;
    let bits = (0..BITS_IN_WORD).fold(0, |bits, bit| bits | 1 << (id_hash.low >> (6 * bit) & 63));
    (word, bits)
}
