//! The newest of each id: what remains of the rows and deletions of one run, in bounded memory.
//!
//! The [`Index`] takes entries unsorted, up to 69 bytes each, into 64 shards by their id_hash; beyond its budget it gives them
//! to the spool. [`Index::load`] then makes a [`Shard`] of as many shards as fit into memory, usually of all, at about 145
//! bytes per id. Neither the order in which entries were pushed nor their repetition changes what it holds: a row that a
//! deletion certainly follows is out, versions decide between the others, and between equal versions the place in the
//! export (file, then line).

use std::{
    collections::{HashMap, hash_map::Entry as Known},
    hash::{BuildHasherDefault, Hasher},
    ops::Range,
};

use chrono::{DateTime, Utc};

use crate::fhir::Version;
use crate::table::{
    Error,
    change_set::entry::{IdHash, IdHasher, IndexEntry, Position, RowEntry, RowLocation},
    change_set::spool::{Block, Spool},
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

/// The newest of the ids of some shards. An id of another shard is not found.
pub struct Shard {
    hasher: IdHasher,
    span: Span,
    of: HashMap<IdHash, WinnerIndex, BuildHasherDefault<Low>>,
    winners: Vec<Winner>,
    duplicate: u64,
}

impl Shard {
    /// The index of the winner of an id.
    pub fn get(&self, id: &str) -> Option<WinnerIndex> {
        self.of.get(&self.hasher.of(id)).copied()
    }

    /// Would an id be found here if the change set had it?
    pub fn covers(&self, id: &str) -> bool {
        let id_hash = self.hasher.of(id);
        self.span.buckets.contains(&bucket_of(id_hash)) && self.span.covers(id_hash)
    }

    /// The winner with an index that [`Shard::get`] gave.
    pub fn winner(&self, index: WinnerIndex) -> &Winner {
        &self.winners[index.0 as usize]
    }

    /// All winners, in the order of their indices.
    pub fn winners(&self) -> impl Iterator<Item = (WinnerIndex, &Winner)> {
        (0..).map(WinnerIndex).zip(&self.winners)
    }

    /// Rows and deletions that another one of the same id made superfluous.
    pub fn duplicate(&self) -> u64 {
        self.duplicate
    }
}

/// How much memory an [`Index`] and what is loaded of it take.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Of entries before they go to the spool.
    pub entries_bytes: usize,
    /// Of one [`Shard`].
    pub shard_bytes: usize,
}

/// A power of two, and the number of the leading bits of a id_hash that choose the shard.
const BUCKETS: usize = 64;
const BUCKET_BITS: u32 = BUCKETS.trailing_zeros();

/// What an id takes in a [`Shard`]: a winner, and a place in a map that may be a little less than half full, as it is just
/// after its size was rounded up; while loading, its position as well.
const BYTES_PER_ID: usize =
    size_of::<Winner>() + size_of::<Position>() + (size_of::<(IdHash, WinnerIndex)>() + 1) * 16 / 7;

/// All rows and deletions that were pushed, unsorted.
pub struct Index {
    limits: Limits,
    buckets: Vec<Bucket>,
    entries_bytes: usize,
}

#[derive(Default)]
struct Bucket {
    spooled: Vec<Block>,
    /// Entries that are not in the spool yet.
    recent: Vec<u8>,
    count: u64,
}

/// Some of the id_hash space, small enough to be loaded.
#[derive(Clone)]
pub struct Span {
    buckets: Range<usize>,
    /// Of one shard that is too large: which part of its keys, of how many.
    slice: u32,
    slices: u32,
    count: u64,
}

impl Index {
    pub fn new(limits: Limits) -> Self {
        let buckets = (0..BUCKETS).map(|_| Bucket::default()).collect();
        Self { limits, buckets, entries_bytes: 0 }
    }

    /// Takes an entry; beyond the budget all go to the spool, which blocks on the disk. An error is the spool's: the entry
    /// was taken, and those that could not be spooled are still here.
    pub fn push(&mut self, spool: &mut Spool, id_hash: IdHash, entry: &IndexEntry) -> Result<(), Error> {
        let bucket = &mut self.buckets[bucket_of(id_hash)];
        self.entries_bytes -= bucket.recent.capacity();
        entry.encode(id_hash, &mut bucket.recent);
        self.entries_bytes += bucket.recent.capacity();
        bucket.count += 1;
        if self.entries_bytes <= self.limits.entries_bytes {
            return Ok(());
        }
        for bucket in self.buckets.iter_mut().filter(|bucket| !bucket.recent.is_empty()) {
            bucket.spooled.push(spool.append(&bucket.recent)?);
            self.entries_bytes -= bucket.recent.capacity();
            bucket.recent = Vec::new();
        }
        Ok(())
    }

    /// How many entries were pushed.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.count).sum()
    }

    /// Divides the keys so that what is loaded of each span fits into the budget. Together the spans cover every id, also
    /// those that were never pushed; there is always one.
    pub fn spans(&self) -> Vec<Span> {
        let most = (self.limits.shard_bytes / BYTES_PER_ID).clamp(1, u32::MAX as usize) as u64;
        let mut spans: Vec<Span> = Vec::new();
        for (index, bucket) in self.buckets.iter().enumerate() {
            if let Some(span) = spans.last_mut().filter(|span| span.slices == 1 && span.count + bucket.count <= most) {
                span.buckets.end = index + 1;
                span.count += bucket.count;
                continue;
            }
            let slices = u32::try_from(bucket.count.div_ceil(most).max(1)).unwrap_or(u32::MAX);
            let count = bucket.count.div_ceil(slices.into());
            spans.extend((0..slices).map(|slice| Span { buckets: index..index + 1, slice, slices, count }));
        }
        spans
    }

    /// The newest of each id of a span. Blocks on the disk.
    pub fn load(&self, spool: &Spool, hasher: &IdHasher, span: &Span) -> Result<Shard, Error> {
        let mut loading = Loading::new(span);
        for bucket in &self.buckets[span.buckets.clone()] {
            for block in &bucket.spooled {
                loading.take(&spool.read(block)?)?;
            }
            loading.take(&bucket.recent)?;
            loading.settle();
        }
        let Loading { of, winners, duplicate, .. } = loading;
        Ok(Shard { hasher: hasher.clone(), span: span.clone(), of, winners, duplicate })
    }
}

fn bucket_of(id_hash: IdHash) -> usize {
    // The shift leaves the leading bits, so the number is below BUCKETS.
    usize::try_from(id_hash.high >> (u64::BITS - BUCKET_BITS)).unwrap_or_default()
}

impl Span {
    fn covers(&self, id_hash: IdHash) -> bool {
        let slice = (u128::from(id_hash.high << BUCKET_BITS) * u128::from(self.slices)) >> u64::BITS;
        slice == u128::from(self.slice)
    }
}

/// A [`Shard`] in the making.
struct Loading<'span> {
    span: &'span Span,
    of: HashMap<IdHash, WinnerIndex, BuildHasherDefault<Low>>,
    winners: Vec<Winner>,
    /// Of the rows in `winners`.
    positions: Vec<Position>,
    /// Entries of ids that were met before.
    again: Vec<(IdHash, IndexEntry)>,
    duplicate: u64,
}

impl<'span> Loading<'span> {
    fn new(span: &'span Span) -> Self {
        // The number of entries bounds that of ids; it is what was counted, and fits.
        let ids = usize::try_from(span.count).unwrap_or_default();
        Self {
            span,
            of: HashMap::with_capacity_and_hasher(ids, BuildHasherDefault::default()),
            winners: Vec::with_capacity(ids),
            positions: Vec::with_capacity(ids),
            again: Vec::new(),
            duplicate: 0,
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let entry = IndexEntry::decode(&mut bytes);
            let (id_hash, entry) =
                entry.ok_or_else(|| Error::spool("the index of received rows cannot be read back"))?;
            if !self.span.covers(id_hash) {
                continue;
            }
            match self.of.entry(id_hash) {
                Known::Vacant(vacant) => {
                    vacant.insert(WinnerIndex(u32::try_from(self.winners.len()).map_err(Error::spool)?));
                    self.positions.push(entry.position());
                    self.winners.push(entry.into_winner());
                }
                Known::Occupied(_) => self.again.push((id_hash, entry)),
            }
        }
        Ok(())
    }

    /// Decides for the ids that came more than once. All entries of an id must be there: not every rule is transitive
    /// where values are missing, so they are taken in the order of the export, whatever the order in which they came.
    fn settle(&mut self) {
        self.duplicate += self.again.len() as u64;
        self.again.sort_unstable_by_key(|(id_hash, _)| *id_hash);
        for again in self.again.chunk_by(|(a, _), (b, _)| a == b) {
            let Some(index) = again.first().and_then(|(id_hash, _)| self.of.get(id_hash)) else { continue };
            let index = index.0 as usize;
            let first = IndexEntry::of(self.winners[index].clone(), self.positions[index]);
            let entries = again.iter().map(|(_, entry)| entry.clone());
            if let Some(winner) = newest(entries.chain([first])) {
                self.winners[index] = winner;
            }
        }
        self.again = Vec::new();
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

/// What remains of all entries of one id; nothing of none.
///
/// A row of the same export as a deletion stays: it was created again (rule 96), unless both say when and the deletion is
/// the later one.
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

/// Is the deletion certainly later than the row?
fn deletion_wins(at: Option<DateTime<Utc>>, row: &Version) -> bool {
    match (at, row.last_updated_micros) {
        (Some(at), Some(last_updated_micros)) => at.timestamp_micros() > last_updated_micros,
        _ => false,
    }
}

/// IdHasher are hashes already: their lower half serves as it is.
#[derive(Default)]
struct Low(u64);

impl Hasher for Low {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, low: u64) {
        self.0 = low;
    }

    /// A id_hash hashes as one number; anything else would still come out right, only slower.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

#[cfg(test)]
mod tests;
