//! Staging: an upsert whose rows another engine writes into the table.
//!
//! The engine reads the stored versions of the ids of the change set and hands them over; what happens to each row is
//! decided here, by the same [`Decision`] as for tables of our own. What is to be written is left as Parquet files
//! below the root, with an [operation](rows::Operation) in each row, for one MERGE of the engine. Each staged row says
//! which stored row it was decided for, so that the engine can refuse one that has changed since. Tombstones are
//! recorded before the MERGE.
//!
//! Whatever the number of shards, the chunks of the change set are decoded at most twice: for the ids that the engine
//! looks for, and, where something of a chunk is written, for its rows when all shards are decided.

mod operations;
mod place;
mod rows;
mod stored;

use std::collections::{BTreeSet, HashMap};

use self::{
    operations::{Operation, Operations},
    place::{Place, place},
    rows::{Removal, RowWriter, write_ids},
    stored::StoredRows,
};
use crate::fhir::ResourceType;
use crate::table::{
    ChangeSet, Counts, Error, Root, TableDefinition, TableName, Upsert,
    change_set::entry::RowLocation,
    change_set::newest::{Shard, Winner, WinnerIndex},
    data_file::deletion_vector::RowSet,
    data_file::stored::FileIndex,
    properties::CHECKPOINT_INTERVAL,
    tombstones::{NewTombstone, TombstoneTable},
    upsert::decide::Decision,
    upsert::probe::{Hit, Probed},
};

pub use self::{
    operations::Seen,
    rows::{OPERATION, OPERATIONS, SEEN_HASH, SEEN_TRANSACTION_TIME, TARGET_ID},
    stored::StoredRow,
};

/// An upsert that is being staged.
pub struct Staging<'a> {
    root: Root,
    table: TableName,
    place: Place,
    changes: &'a ChangeSet,
    upsert: &'a Upsert,
    trusts_hashes: bool,
    tombstones: TombstoneTable,
    stored: StoredRows<'a>,
    decision: Decision,
    operations: Operations,
    rows: RowWriter,
    expected: Expected,
    /// How many rows a full refresh removes, all of which are to be named.
    to_remove: u64,
}

/// What the engine is to write.
#[derive(Debug)]
pub struct Staged {
    pub counts: Counts,
    pub expected: Expected,
    /// How many rows are staged.
    pub rows: u64,
    /// The columns of the staged rows that are columns of the table; empty where there is nothing to write.
    pub columns: Vec<String>,
}

/// How many rows the engine's MERGE has to insert, update and delete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
}

/// An id of which a full refresh brought no row.
#[derive(Clone, Debug)]
pub struct MissingId {
    pub id: String,
    /// How many rows it has: more than one where another writer has doubled it.
    pub copies: u64,
    /// What a single row has.
    pub seen: Seen,
}

impl Expected {
    pub fn is_nothing(self) -> bool {
        self == Self::default()
    }
}

impl Root {
    /// The properties of a table that another engine creates for us. When it makes checkpoints is its own affair.
    pub fn properties_elsewhere(&self, definition: &TableDefinition) -> Vec<(&'static str, String)> {
        let properties = self.properties(definition).into_iter();
        properties
            .filter(|(name, _)| *name != CHECKPOINT_INTERVAL)
            .filter_map(|(name, value)| Some((name, value?)))
            .collect()
    }

    /// Removes what is staged for a type, also by a run that was killed. Blocks on the disk.
    pub async fn remove_staging(&self, of: ResourceType) -> Result<(), Error> {
        place(self, of)?.remove().await
    }
}

impl<'a> Staging<'a> {
    /// With `trusts_hashes`, equal hashes mean equal rows: no other writer has changed rows and left their hashes.
    pub async fn begin(
        root: &Root,
        of: ResourceType,
        changes: &'a ChangeSet,
        upsert: &'a Upsert,
        trusts_hashes: bool,
    ) -> Result<Self, Error> {
        let parent = place(root, of)?;
        parent.remove().await?;
        let place = parent.join(&format!("{}-{}", upsert.run, uuid::Uuid::new_v4()), root)?;
        let rows = RowWriter::new(&place.join("rows", root)?, changes);
        Ok(Self {
            root: root.clone(),
            table: of.into(),
            place,
            changes,
            upsert,
            trusts_hashes,
            tombstones: TombstoneTable::open(root).await?,
            stored: StoredRows::of(changes),
            decision: Decision::default(),
            operations: Operations::of(changes),
            rows,
            expected: Expected::default(),
            to_remove: 0,
        })
    }

    /// The folder, below the root, of the files with the ids of the change set. An id may be in them several times.
    pub fn ids_directory(&self) -> String {
        self.place.directory_of("ids")
    }

    /// The folder, below the root, of the files with the rows that are to be written.
    pub fn rows_directory(&self) -> String {
        self.place.directory_of("rows")
    }

    /// Writes the ids of the change set, which must not be empty. Blocks on the disk.
    pub async fn write_ids(&self) -> Result<(), Error> {
        write_ids(&self.place.join("ids", &self.root)?, self.changes).await
    }

    /// Takes some of the stored rows whose ids are in the change set, each of them once. May block on the disk.
    pub fn keep(&mut self, stored: &[StoredRow]) -> Result<(), Error> {
        self.stored.keep(stored)
    }

    /// Decides what happens to the rows and deletions of the change set, of which the table has the rows that were
    /// kept, and stages what is to be written. Blocks on the disk.
    pub async fn decide(&mut self) -> Result<(), Error> {
        for shard in self.changes.shards() {
            self.decide_shard(&shard?).await?;
        }
        let counts = self.decision.counts;
        if counts.total() != self.changes.received() {
            let counts = format!("received {}, accounted for {counts:?}", self.changes.received());
            return Err(Error::Unbalanced { table: self.table, counts });
        }
        let written: u64 = self.decision.chosen.values().map(RowSet::len).sum();
        self.expected.inserted = written - self.expected.updated;
        self.rows.write_chosen(self.changes, &self.decision.chosen, &self.operations).await
    }

    async fn decide_shard(&mut self, shard: &Shard) -> Result<(), Error> {
        let stored = self.stored.of_shard(shard)?;
        let hits = hits(shard, &stored, self.trusts_hashes);
        let mut copies: HashMap<WinnerIndex, Vec<usize>> = HashMap::new();
        for (row, hit) in hits.iter().enumerate() {
            copies.entry(hit.winner).or_default().push(row);
        }
        let equal: Vec<_> = hits.iter().map(|hit| is_equal(shard, hit)).collect();
        let ids = self.changes.ids();
        let tombstones = self.tombstones.find(self.table, self.upsert, shard, &ids).await?;
        let winner_of: Vec<_> = hits.iter().map(|hit| hit.winner).collect();
        let probed = Probed { hits, ..Probed::default() };
        self.decision.settle(shard, probed, &equal, &tombstones, self.upsert);
        let dead = std::mem::take(&mut self.decision.dead).remove(&FileIndex(0)).unwrap_or_default();
        let mut removals = Vec::new();
        // Several dead rows may have one winner.
        let winners: BTreeSet<_> = dead.iter().filter_map(|row| winner_of.get(row_index(row)).copied()).collect();
        for winner in winners {
            let Some(copies) = copies.get(&winner) else { continue };
            let dead: Vec<_> = copies.iter().copied().filter(|row| dead.contains(*row as u64)).collect();
            let copies = Copies { all: copies, dead: &dead, stored: &stored, equal: &equal };
            match copies.operation(shard.winner(winner)) {
                Some(Write::Row { location, operation, removal }) => {
                    self.decision.chosen.entry(location.chunk).or_default().insert(location.row.into());
                    self.expected.deleted += removal.as_ref().map_or(0, |_| copies.all.len() as u64);
                    removals.extend(removal);
                    self.expected.updated += u64::from(matches!(operation, Operation::Update(_)));
                    self.operations.push(location, operation)?;
                }
                Some(Write::Nothing { removal }) => {
                    self.expected.deleted += copies.all.len() as u64;
                    removals.push(removal);
                }
                None => {}
            }
        }
        self.rows.write_removals(&removals).await
    }

    /// May the rows be removed that a full refresh did not bring? `missing` of the `stored_rows` of our source are
    /// concerned. If they are too many they stay and are counted; else call [`Self::remove`] with their ids.
    pub fn may_remove(&mut self, stored_rows: u64, missing: u64) -> bool {
        let may = self.upsert.reconcile.is_some_and(|limits| self.decision.may_remove(stored_rows, missing, limits));
        self.to_remove = if may { missing } else { 0 };
        may
    }

    /// Stages the removal of some missing ids, each of which is there once, and records their tombstones: there may be
    /// more of them than fit into memory. Blocks on the disk.
    pub async fn remove(&mut self, missing: &[MissingId]) -> Result<(), Error> {
        let rows: u64 = missing.iter().map(|missing| missing.copies).sum();
        self.decision.counts.removed += rows;
        self.expected.deleted += rows;
        if self.decision.counts.removed > self.to_remove {
            return Err(self.unbalanced());
        }
        let tombstone = |missing: &MissingId| NewTombstone { id: missing.id.clone(), deleted_at_micros: None };
        let tombstones: Vec<_> = missing.iter().map(tombstone).collect();
        self.tombstones.append(self.table, &tombstones, self.upsert).await?;
        let removal = |missing: &MissingId| {
            let seen = (missing.copies == 1).then_some(missing.seen);
            Removal { id: missing.id.clone(), seen }
        };
        let removals: Vec<_> = missing.iter().map(removal).collect();
        self.rows.write_removals(&removals).await
    }

    /// Ends the files and records the tombstones. Afterwards the engine may write.
    pub async fn finish(mut self) -> Result<Staged, Error> {
        let counts = self.decision.counts;
        if counts.removed != self.to_remove {
            return Err(self.unbalanced());
        }
        let (rows, columns) = self.rows.finish().await?;
        self.root.check_lease().await?;
        self.tombstones.append(self.table, &self.decision.tombstones, self.upsert).await?;
        Ok(Staged { counts, expected: self.expected, rows, columns })
    }

    /// Other rows than those that were counted would be removed.
    fn unbalanced(&self) -> Error {
        let counts =
            format!("{} rows were to be removed, and {} were named", self.to_remove, self.decision.counts.removed);
        Error::Unbalanced { table: self.table, counts }
    }
}

/// The stored rows of the shard, as an upsert of our own would have found them in a file.
fn hits(shard: &Shard, stored: &[StoredRow], trusts_hashes: bool) -> Vec<Hit> {
    let hit = |(row, stored): (u64, &StoredRow)| {
        let hash = stored.hash.filter(|_| trusts_hashes).map(i64::cast_unsigned);
        Some(Hit { file: FileIndex(0), row, winner: shard.get(&stored.id)?, version: stored.version, hash })
    };
    (0..).zip(stored).filter_map(hit).collect()
}

fn is_equal(shard: &Shard, hit: &Hit) -> bool {
    matches!(shard.winner(hit.winner), Winner::Row { hash, .. } if hit.hash == Some(*hash))
}

fn row_index(row: u64) -> usize {
    usize::try_from(row).unwrap_or(usize::MAX)
}

/// The stored rows of one id: more than one where another writer has doubled it.
struct Copies<'a> {
    all: &'a [usize],
    dead: &'a [usize],
    stored: &'a [StoredRow],
    equal: &'a [bool],
}

enum Write {
    Row { location: RowLocation, operation: Operation, removal: Option<Removal> },
    Nothing { removal: Removal },
}

impl Copies<'_> {
    /// What replaces or removes them. A MERGE cannot tell equal copies apart, so several of them are all removed, and
    /// the row that stays is inserted again. `None` where a newer copy is among them: then all stay.
    fn operation(&self, winner: &Winner) -> Option<Write> {
        let first = self.stored.get(*self.all.first()?)?;
        let seen = Seen { hash: first.hash, transaction_time_micros: first.version.transaction_time_micros };
        let removal = |seen| Removal { id: first.id.clone(), seen };
        let all_dead = self.dead.len() == self.all.len();
        match winner {
            Winner::Row { location, .. } if all_dead && self.all.len() == 1 => {
                Some(Write::Row { location: *location, operation: Operation::Update(seen), removal: None })
            }
            Winner::Row { location, .. } if all_dead || self.keeps_an_equal_one() => {
                let (operation, removal) = (Operation::InsertBeside, Some(removal(None)));
                Some(Write::Row { location: *location, operation, removal })
            }
            Winner::Deleted { .. } if all_dead => {
                let seen = (self.all.len() == 1).then_some(seen);
                Some(Write::Nothing { removal: removal(seen) })
            }
            Winner::Row { .. } | Winner::Deleted { .. } => None,
        }
    }

    fn keeps_an_equal_one(&self) -> bool {
        let mut kept = self.all.iter().filter(|row| !self.dead.contains(row));
        matches!((kept.next(), kept.next()), (Some(row), None) if self.equal[*row])
    }
}
