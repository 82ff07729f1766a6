//! The newest of each id: what remains of the rows and deletions of one run, in bounded memory.
//!
//! The [`Index`] takes entries unsorted, up to 69 bytes each, into 64 shards by their key; beyond its budget it gives them
//! to the spool. [`Index::load`] then makes a [`Newest`] of as many shards as fit into memory, usually of all, at about 145
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
    change_set::entry::{Entry, Key, Keys, Place, Position, Row},
    change_set::spool::{Block, Spool},
};

/// The newest that is known of one id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Slot {
    Row { version: Version, hash: u64, place: Place },
    Deleted { id: Box<str>, at: Option<DateTime<Utc>> },
}

/// The newest of the ids of some shards. An id of another shard is not found.
pub struct Newest {
    keys: Keys,
    span: Span,
    of: HashMap<Key, u32, BuildHasherDefault<Low>>,
    slots: Vec<Slot>,
    duplicate: u64,
}

impl Newest {
    /// The index of the slot of an id.
    pub fn get(&self, id: &str) -> Option<u32> {
        self.of.get(&self.keys.of(id)).copied()
    }

    /// Would an id be found here if the change set had it?
    pub fn covers(&self, id: &str) -> bool {
        let key = self.keys.of(id);
        self.span.shards.contains(&shard_of(key)) && self.span.covers(key)
    }

    /// The slot with an index that [`Newest::get`] gave.
    pub fn slot(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }

    /// All slots, in the order of their indices.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
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
    /// Of one [`Newest`].
    pub newest_bytes: usize,
}

/// A power of two, and the number of the leading bits of a key that choose the shard.
const SHARDS: usize = 64;
const SHARD_BITS: u32 = SHARDS.trailing_zeros();

/// What an id takes in a [`Newest`]: a slot, and a place in a map that may be a little less than half full, as it is just
/// after its size was rounded up; while loading, its position as well.
const NEWEST_BYTES: usize = size_of::<Slot>() + size_of::<Position>() + (size_of::<(Key, u32)>() + 1) * 16 / 7;

/// All rows and deletions that were pushed, unsorted.
pub struct Index {
    limits: Limits,
    shards: Vec<Shard>,
    entries_bytes: usize,
}

#[derive(Default)]
struct Shard {
    spooled: Vec<Block>,
    /// Entries that are not in the spool yet.
    recent: Vec<u8>,
    count: u64,
}

/// Some of the key space, small enough to be loaded.
#[derive(Clone)]
pub struct Span {
    shards: Range<usize>,
    /// Of one shard that is too large: which part of its keys, of how many.
    slice: u32,
    slices: u32,
    count: u64,
}

impl Index {
    pub fn new(limits: Limits) -> Self {
        let shards = (0..SHARDS).map(|_| Shard::default()).collect();
        Self { limits, shards, entries_bytes: 0 }
    }

    /// Takes an entry; beyond the budget all go to the spool, which blocks on the disk. An error is the spool's: the entry
    /// was taken, and those that could not be spooled are still here.
    pub fn push(&mut self, spool: &mut Spool, key: Key, entry: &Entry) -> Result<(), Error> {
        let shard = &mut self.shards[shard_of(key)];
        self.entries_bytes -= shard.recent.capacity();
        entry.encode(key, &mut shard.recent);
        self.entries_bytes += shard.recent.capacity();
        shard.count += 1;
        if self.entries_bytes <= self.limits.entries_bytes {
            return Ok(());
        }
        for shard in self.shards.iter_mut().filter(|shard| !shard.recent.is_empty()) {
            shard.spooled.push(spool.append(&shard.recent)?);
            self.entries_bytes -= shard.recent.capacity();
            shard.recent = Vec::new();
        }
        Ok(())
    }

    /// How many entries were pushed.
    pub fn count(&self) -> u64 {
        self.shards.iter().map(|shard| shard.count).sum()
    }

    /// Divides the keys so that what is loaded of each span fits into the budget. Together the spans cover every id, also
    /// those that were never pushed; there is always one.
    pub fn spans(&self) -> Vec<Span> {
        let most = (self.limits.newest_bytes / NEWEST_BYTES).clamp(1, u32::MAX as usize) as u64;
        let mut spans: Vec<Span> = Vec::new();
        for (index, shard) in self.shards.iter().enumerate() {
            if let Some(span) = spans.last_mut().filter(|span| span.slices == 1 && span.count + shard.count <= most) {
                span.shards.end = index + 1;
                span.count += shard.count;
                continue;
            }
            let slices = u32::try_from(shard.count.div_ceil(most).max(1)).unwrap_or(u32::MAX);
            let count = shard.count.div_ceil(slices.into());
            spans.extend((0..slices).map(|slice| Span { shards: index..index + 1, slice, slices, count }));
        }
        spans
    }

    /// The newest of each id of a span. Blocks on the disk.
    pub fn load(&self, spool: &Spool, keys: &Keys, span: &Span) -> Result<Newest, Error> {
        let mut loading = Loading::new(span);
        for shard in &self.shards[span.shards.clone()] {
            for block in &shard.spooled {
                loading.take(&spool.read(block)?)?;
            }
            loading.take(&shard.recent)?;
            loading.settle();
        }
        let Loading { of, slots, duplicate, .. } = loading;
        Ok(Newest { keys: keys.clone(), span: span.clone(), of, slots, duplicate })
    }
}

fn shard_of(key: Key) -> usize {
    // The shift leaves the leading bits, so the number is below SHARDS.
    usize::try_from(key.high >> (u64::BITS - SHARD_BITS)).unwrap_or_default()
}

impl Span {
    fn covers(&self, key: Key) -> bool {
        let slice = (u128::from(key.high << SHARD_BITS) * u128::from(self.slices)) >> u64::BITS;
        slice == u128::from(self.slice)
    }
}

/// A [`Newest`] in the making.
struct Loading<'span> {
    span: &'span Span,
    of: HashMap<Key, u32, BuildHasherDefault<Low>>,
    slots: Vec<Slot>,
    /// Of the rows in `slots`.
    positions: Vec<Position>,
    /// Entries of ids that were met before.
    again: Vec<(Key, Entry)>,
    duplicate: u64,
}

impl<'span> Loading<'span> {
    fn new(span: &'span Span) -> Self {
        // The number of entries bounds that of ids; it is what was counted, and fits.
        let ids = usize::try_from(span.count).unwrap_or_default();
        Self {
            span,
            of: HashMap::with_capacity_and_hasher(ids, BuildHasherDefault::default()),
            slots: Vec::with_capacity(ids),
            positions: Vec::with_capacity(ids),
            again: Vec::new(),
            duplicate: 0,
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let entry = Entry::decode(&mut bytes);
            let (key, entry) = entry.ok_or_else(|| Error::spool("the index of received rows cannot be read back"))?;
            if !self.span.covers(key) {
                continue;
            }
            match self.of.entry(key) {
                Known::Vacant(vacant) => {
                    vacant.insert(u32::try_from(self.slots.len()).map_err(Error::spool)?);
                    self.positions.push(entry.position());
                    self.slots.push(entry.into_slot());
                }
                Known::Occupied(_) => self.again.push((key, entry)),
            }
        }
        Ok(())
    }

    /// Decides for the ids that came more than once. All entries of an id must be there: not every rule is transitive
    /// where values are missing, so they are taken in the order of the export, whatever the order in which they came.
    fn settle(&mut self) {
        self.duplicate += self.again.len() as u64;
        self.again.sort_unstable_by_key(|(key, _)| *key);
        for again in self.again.chunk_by(|(a, _), (b, _)| a == b) {
            let Some(index) = again.first().and_then(|(key, _)| self.of.get(key)) else { continue };
            let index = *index as usize;
            let first = Entry::of(self.slots[index].clone(), self.positions[index]);
            let entries = again.iter().map(|(_, entry)| entry.clone());
            if let Some(slot) = newest(entries.chain([first])) {
                self.slots[index] = slot;
            }
        }
        self.again = Vec::new();
    }
}

impl Entry {
    fn of(slot: Slot, position: Position) -> Self {
        match slot {
            Slot::Row { version, hash, place } => Self::Row(Row { version, hash, position, place }),
            Slot::Deleted { id, at } => Self::Deletion { id, at },
        }
    }

    fn position(&self) -> Position {
        match self {
            Self::Row(row) => row.position,
            Self::Deletion { .. } => Position::default(),
        }
    }

    fn into_slot(self) -> Slot {
        match self {
            Self::Row(Row { version, hash, place, .. }) => Slot::Row { version, hash, place },
            Self::Deletion { id, at } => Slot::Deleted { id, at },
        }
    }
}

/// What remains of all entries of one id; nothing of none.
///
/// A row of the same export as a deletion stays: it was created again (rule 96), unless both say when and the deletion is
/// the later one.
fn newest(entries: impl Iterator<Item = Entry>) -> Option<Slot> {
    let mut rows = Vec::new();
    let mut deleted: Option<(Box<str>, Option<DateTime<Utc>>)> = None;
    for entry in entries {
        match entry {
            Entry::Row(row) => rows.push(row),
            Entry::Deletion { at, .. } if deleted.as_ref().is_some_and(|(_, known)| *known >= at) => {}
            Entry::Deletion { id, at } => deleted = Some((id, at)),
        }
    }
    if let Some((_, at)) = &deleted {
        rows.retain(|row| !deletion_wins(*at, &row.version));
    }
    rows.sort_by_key(|row| row.position);
    let row = rows.into_iter().reduce(|known, new| if row_wins(&new, &known) { new } else { known });
    match (row, deleted) {
        (Some(row), _) => Some(Entry::Row(row).into_slot()),
        (None, Some((id, at))) => Some(Slot::Deleted { id, at }),
        (None, None) => None,
    }
}

fn row_wins(new: &Row, known: &Row) -> bool {
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

/// Keys are hashes already: their lower half serves as it is.
#[derive(Default)]
struct Low(u64);

impl Hasher for Low {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, low: u64) {
        self.0 = low;
    }

    /// A key hashes as one number; anything else would still come out right, only slower.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
}

#[cfg(test)]
mod tests;
