//! The newest of each id: which row or deletion wins among all that one run received for it, in bounded memory.
//!
//! The [`Index`] takes entries of up to 69 bytes in any order and puts them into [`Buckets`] by their [`IdHash`], and those
//! move to the spool when they exceed their budget. [`Index::load`] then makes a [`Shard`] of as many buckets as
//! fit into memory, usually of all, at about 145 bytes for each id. Neither the order in which entries were pushed nor
//! repetition changes the result: a row that is certainly older than a deletion loses; otherwise versions decide, and
//! between equal versions the position in the export (file, then line).

use std::{
    collections::{HashMap, hash_map::Entry as Known},
    hash::{BuildHasherDefault, Hasher},
    ops::Range,
};

use chrono::{DateTime, Utc};

/// Entries, divided by the hash of their id.
pub mod buckets;
/// Is an id certainly not in the change set?
pub mod filter;

use self::{
    buckets::{BUCKET_BITS, Bucket, Buckets, bucket_of},
    filter::IdFilter,
};
use crate::fhir::Version;
use crate::table::{
    Error,
    change_set::entry::{IdHash, IdHasher, IndexEntry, Position, RowEntry, RowLocation},
    change_set::spool::Spool,
    parallel::in_parallel,
};

/// Numbers the winners of a [`Shard`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WinnerIndex(u32);

/// The newest row or deletion of one id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Winner {
    Row { version: Version, hash: u64, location: RowLocation },
    Deleted { id: Box<str>, at: Option<DateTime<Utc>> },
}

/// The winners of the ids of one span. An id outside of the span is not found.
pub struct Shard {
    hasher: IdHasher,
    span: Span,
    /// Those of the span. Each is small enough for the caches of a core.
    buckets: Vec<LoadedBucket>,
    /// The index of the first winner of each bucket.
    firsts: Vec<u32>,
}

struct LoadedBucket {
    /// The place of a winner in `winners`.
    of: HashMap<IdHash, u32, BuildHasherDefault<LowBits>>,
    winners: Vec<Winner>,
    duplicate: u64,
}

impl Shard {
    fn new(hasher: IdHasher, span: Span, buckets: Vec<LoadedBucket>) -> Result<Self, Error> {
        let mut firsts = Vec::with_capacity(buckets.len());
        let mut first = 0;
        for bucket in &buckets {
            firsts.push(u32::try_from(first).map_err(Error::spool)?);
            first += bucket.winners.len();
        }
        // All indices are below this one.
        u32::try_from(first).map_err(Error::spool)?;
        Ok(Self { hasher, span, buckets, firsts })
    }

    /// The winner of an id, by its index.
    pub fn get(&self, id: &str) -> Option<WinnerIndex> {
        self.by_hash(self.hasher.of(id))
    }

    /// The winner of the id with this hash, by its index.
    pub fn by_hash(&self, id_hash: IdHash) -> Option<WinnerIndex> {
        let bucket = bucket_of(id_hash).checked_sub(self.span.buckets.start)?;
        let place = self.buckets.get(bucket)?.of.get(&id_hash)?;
        Some(WinnerIndex(self.firsts[bucket] + place))
    }

    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Is the id in the span, whether the change set has it or not?
    pub fn covers(&self, id: &str) -> bool {
        let id_hash = self.hasher.of(id);
        self.span.buckets.contains(&bucket_of(id_hash)) && self.span.covers(id_hash)
    }

    /// The winner with an index from [`Shard::get`].
    pub fn winner(&self, index: WinnerIndex) -> &Winner {
        // Of buckets without winners, the last one that begins here has it.
        let bucket = self.firsts.partition_point(|first| *first <= index.0) - 1;
        &self.buckets[bucket].winners[(index.0 - self.firsts[bucket]) as usize]
    }

    /// All winners, in the order of their indices.
    pub fn winners(&self) -> impl Iterator<Item = (WinnerIndex, &Winner)> {
        (0..).map(WinnerIndex).zip(self.buckets.iter().flat_map(|bucket| &bucket.winners))
    }

    /// How many rows and deletions lost against another one of the same id.
    pub fn duplicate(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.duplicate).sum()
    }
}

/// How much memory an [`Index`] and a [`Shard`] may take.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Entries that are not in the spool yet.
    pub entries_bytes: usize,
    /// One [`Shard`].
    pub shard_bytes: usize,
}

/// What an id takes while a [`Shard`] is loaded: a winner, its position, and an entry of a hash map, which may be a
/// little less than half full because its size is rounded up.
const BYTES_PER_ID: usize = size_of::<Winner>() + size_of::<Position>() + (size_of::<(IdHash, u32)>() + 1) * 16 / 7;

/// Fewer ids are loaded before another thread has begun.
const MIN_PARALLEL_IDS: u64 = 20_000;

/// All rows and deletions that were pushed, unsorted.
pub struct Index {
    shard_bytes: usize,
    buckets: Buckets,
}

/// A range of id hashes whose winners fit into memory: some buckets, or a slice of a bucket that is too large.
#[derive(Clone)]
pub struct Span {
    buckets: Range<usize>,
    /// Which slice of the bucket, of how many; the whole if there is one.
    slice: u32,
    slices: u32,
    count: u64,
}

impl Index {
    pub fn new(limits: Limits) -> Self {
        Self { shard_bytes: limits.shard_bytes, buckets: Buckets::new(limits.entries_bytes) }
    }

    /// Takes an entry, see [`Buckets::push`].
    pub fn push(&mut self, spool: &mut Spool, id_hash: IdHash, entry: &IndexEntry) -> Result<(), Error> {
        self.buckets.push(spool, id_hash, |out| entry.encode(id_hash, out))
    }

    pub fn shard_bytes(&self) -> usize {
        self.shard_bytes
    }

    /// A filter of all ids that were pushed, in at most `max_bytes`. Blocks on the disk.
    pub fn filter(&self, spool: &Spool, hasher: &IdHasher, max_bytes: usize) -> Result<IdFilter, Error> {
        IdFilter::of(self.buckets.all(), spool, hasher, max_bytes)
    }

    /// The ids of the deletions in one of the buckets, as often as they were pushed. Blocks on the disk.
    pub fn deletions(&self, spool: &Spool, bucket: usize) -> Result<Vec<Box<str>>, Error> {
        let mut ids = Vec::new();
        self.buckets.all()[bucket].read(spool, |mut bytes| {
            while !bytes.is_empty() {
                let (_, entry) = IndexEntry::decode(&mut bytes).ok_or_else(Error::unreadable_index)?;
                if let IndexEntry::Deletion { id, .. } = entry {
                    ids.push(id);
                }
            }
            Ok(())
        })?;
        Ok(ids)
    }

    /// Divides all id hashes into spans whose shards fit into the budget. There is at least one span, and together they
    /// cover every id, pushed or not.
    pub fn spans(&self) -> Vec<Span> {
        let max_ids = (self.shard_bytes / BYTES_PER_ID).clamp(1, u32::MAX as usize) as u64;
        let mut spans: Vec<Span> = Vec::new();
        for (index, bucket) in self.buckets.all().iter().enumerate() {
            if let Some(span) = spans.last_mut().filter(|span| span.slices == 1 && span.count + bucket.count <= max_ids)
            {
                span.buckets.end = index + 1;
                span.count += bucket.count;
                continue;
            }
            let slices = u32::try_from(bucket.count.div_ceil(max_ids).max(1)).unwrap_or(u32::MAX);
            let count = bucket.count.div_ceil(slices.into());
            spans.extend((0..slices).map(|slice| Span { buckets: index..index + 1, slice, slices, count }));
        }
        spans
    }

    /// The winners of a span. Blocks on the disk.
    pub fn load(&self, spool: &Spool, hasher: &IdHasher, span: &Span) -> Result<Shard, Error> {
        let buckets = span.of(&self.buckets);
        let load = |bucket: &Bucket| {
            let mut loading = Loading::new(span, bucket);
            bucket.read(spool, |entries| loading.take(entries))?;
            loading.resolve_duplicates();
            let Loading { of, winners, duplicate, .. } = loading;
            Ok(LoadedBucket { of, winners, duplicate })
        };
        let is_small = span.count < MIN_PARALLEL_IDS;
        let loaded = if is_small {
            buckets.iter().map(load).collect::<Result<_, Error>>()?
        } else {
            in_parallel(buckets, load)?
        };
        Shard::new(hasher.clone(), span.clone(), loaded)
    }
}

impl Span {
    /// The buckets that it is a part of.
    pub fn of<'a>(&self, buckets: &'a Buckets) -> &'a [Bucket] {
        &buckets.all()[self.buckets.clone()]
    }

    /// Is the hash in the span? It must be one of these buckets.
    pub fn covers(&self, id_hash: IdHash) -> bool {
        let slice = (u128::from(id_hash.high << BUCKET_BITS) * u128::from(self.slices)) >> u64::BITS;
        slice == u128::from(self.slice)
    }
}

/// A [`LoadedBucket`], while entries are added.
struct Loading<'span> {
    span: &'span Span,
    of: HashMap<IdHash, u32, BuildHasherDefault<LowBits>>,
    winners: Vec<Winner>,
    /// The position of each of `winners`.
    positions: Vec<Position>,
    /// Entries of ids that have a winner already.
    repeated: Vec<(IdHash, IndexEntry)>,
    duplicate: u64,
}

impl<'span> Loading<'span> {
    fn new(span: &'span Span, bucket: &Bucket) -> Self {
        // There are at most as many ids as entries, and the span was chosen so that these fit.
        let ids = usize::try_from(bucket.count.min(span.count)).unwrap_or_default();
        Self {
            span,
            of: HashMap::with_capacity_and_hasher(ids, BuildHasherDefault::default()),
            winners: Vec::with_capacity(ids),
            positions: Vec::with_capacity(ids),
            repeated: Vec::new(),
            duplicate: 0,
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (id_hash, entry) = IndexEntry::decode(&mut bytes).ok_or_else(Error::unreadable_index)?;
            if !self.span.covers(id_hash) {
                continue;
            }
            match self.of.entry(id_hash) {
                Known::Vacant(vacant) => {
                    vacant.insert(u32::try_from(self.winners.len()).map_err(Error::spool)?);
                    self.positions.push(entry.position());
                    self.winners.push(entry.into_winner());
                }
                Known::Occupied(_) => self.repeated.push((id_hash, entry)),
            }
        }
        Ok(())
    }

    /// Chooses the winners of ids that have several entries. All entries of an id must have been taken: where versions
    /// lack values, "is newer" is not transitive, so the entries are compared in the order of the export, not of their
    /// arrival.
    fn resolve_duplicates(&mut self) {
        self.duplicate += self.repeated.len() as u64;
        self.repeated.sort_unstable_by_key(|(id_hash, _)| *id_hash);
        for repeated in self.repeated.chunk_by(|(a, _), (b, _)| a == b) {
            let Some(index) = repeated.first().and_then(|(id_hash, _)| self.of.get(id_hash)) else { continue };
            let index = *index as usize;
            let first = IndexEntry::of(self.winners[index].clone(), self.positions[index]);
            let entries = repeated.iter().map(|(_, entry)| entry.clone());
            if let Some(winner) = newest(entries.chain([first])) {
                self.winners[index] = winner;
            }
        }
        self.repeated = Vec::new();
    }
}

impl IndexEntry {
    fn of(winner: Winner, position: Position) -> Self {
        match winner {
            Winner::Row { version, hash, location } => Self::Row(RowEntry { version, hash, position, location }),
            Winner::Deleted { id, at } => Self::Deletion { id, at },
        }
    }

    fn position(&self) -> Position {
        match self {
            Self::Row(row) => row.position,
            Self::Deletion { .. } => Position::default(),
        }
    }

    fn into_winner(self) -> Winner {
        match self {
            Self::Row(RowEntry { version, hash, location, .. }) => Winner::Row { version, hash, location },
            Self::Deletion { id, at } => Winner::Deleted { id, at },
        }
    }
}

/// The winner of all entries of one id; `None` without entries.
///
/// A row wins against a deletion in the same export, because the resource was created again (rule 96), unless both have
/// a time and the deletion is later.
fn newest(entries: impl Iterator<Item = IndexEntry>) -> Option<Winner> {
    let mut rows = Vec::new();
    let mut deleted: Option<(Box<str>, Option<DateTime<Utc>>)> = None;
    for entry in entries {
        match entry {
            IndexEntry::Row(row) => rows.push(row),
            IndexEntry::Deletion { at, .. } if deleted.as_ref().is_some_and(|(_, known)| *known >= at) => {}
            IndexEntry::Deletion { id, at } => deleted = Some((id, at)),
        }
    }
    if let Some((_, at)) = &deleted {
        rows.retain(|row| !deletion_wins(*at, &row.version));
    }
    rows.sort_by_key(|row| row.position);
    let row = rows.into_iter().reduce(|known, new| if row_wins(&new, &known) { new } else { known });
    match (row, deleted) {
        (Some(row), _) => Some(IndexEntry::Row(row).into_winner()),
        (None, Some((id, at))) => Some(Winner::Deleted { id, at }),
        (None, None) => None,
    }
}

fn row_wins(new: &RowEntry, known: &RowEntry) -> bool {
    if new.version.subsetted != known.version.subsetted {
        return known.version.subsetted;
    }
    new.version.compare(&known.version).then(new.position.cmp(&known.position)).is_gt()
}

/// Is the deletion certainly later than the row? No deletion is later than the export of both.
fn deletion_wins(at: Option<DateTime<Utc>>, row: &Version) -> bool {
    let at_micros = at.map(|at| at.timestamp_micros());
    let at_micros = at_micros.map(|at| row.transaction_time_micros.map_or(at, |latest| at.min(latest)));
    at_micros.zip(row.last_updated_micros).is_some_and(|(at, last_updated)| at > last_updated)
}

/// An [`IdHash`] is a hash already: its lower half is used as it is.
#[derive(Default)]
struct LowBits(u64);

impl Hasher for LowBits {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, low: u64) {
        self.0 = low;
    }

    /// The trait needs it, but an [`IdHash`] is written as one number.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

#[cfg(test)]
mod tests;
