//! The decision: which stored rows a change set replaces or removes, and which of its rows are written.
//!
//! Each row and each deletion of the change set is counted in exactly one of the [`Counts`].

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::fhir::TransactionTime;
use crate::table::{
    ChangeSet, Counts, Error, Reconcile, Table, Upsert,
    change_set::candidates::AllCandidates,
    change_set::digests::RowsByFile,
    change_set::entry::ChunkIndex,
    change_set::newest::{Shard, Winner},
    data_file::deletion_vector::RowSet,
    data_file::stored::{DamagedFile, FileIndex, StoredFile},
    ids::Ids,
    properties::ENABLE_CHANGE_DATA_FEED,
    tombstones::{NewTombstone, Tombstone, TombstoneTable, Tombstones, TombstonesByWinner},
    upsert::compare::{Doubtful, compare},
    upsert::probe::{Hit, Probed, probe},
    upsert::probe_once::{probe_candidates, probe_once},
    upsert::returned::returned,
};

/// Which stored rows are deleted, which rows of the change set are written, and how all of them count.
#[derive(Default)]
pub struct Decision {
    /// The files of the table at its version; a [`FileIndex`] is a place in this list.
    pub files: Vec<StoredFile>,
    /// Files that a full refresh removes, because their rows cannot be read; it brings them again.
    pub damaged: Vec<DamagedFile>,
    /// The rows that the commit deletes, because they are replaced or removed.
    pub dead: BTreeMap<FileIndex, RowSet>,
    /// The rows of the change set that are written.
    pub chosen: BTreeMap<ChunkIndex, RowSet>,
    /// The tombstones of the deletions of the change set.
    pub tombstones: Vec<NewTombstone>,
    /// The rows among [`Self::dead`] that a full refresh did not bring. They get tombstones as well; their ids are read
    /// when these are written.
    pub removed: BTreeMap<FileIndex, RowSet>,
    /// `None` where the table does not record its changes.
    pub feed: Option<Feed>,
    pub counts: Counts,
    missing: BTreeMap<FileIndex, RowSet>,
    /// Live rows of our source.
    stored_rows: u64,
    /// How many resources the change set has rows of.
    received_resources: u64,
}

/// What the change data feed needs to know beyond [`Decision`]: which deleted rows were not replaced, and which written
/// rows are not new.
#[derive(Default)]
pub struct Feed {
    /// Rows among [`Decision::dead`] whose resource was removed.
    pub deleted: BTreeMap<FileIndex, RowSet>,
    /// Rows among [`Decision::chosen`] that replace others.
    pub updated: BTreeMap<ChunkIndex, RowSet>,
}

/// What becomes of a row or a deletion of the change set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Insert,
    Update,
    Unchanged,
    Stale,
    Delete,
}

/// Finds every stored copy of the ids of the change set and says what happens to each. Blocks.
pub async fn decide(
    table: &Table,
    changes: &ChangeSet,
    upsert: &Upsert,
    tombstone_table: &TombstoneTable,
) -> Result<Decision, Error> {
    // The table's own property decides, no matter who set it: it promises change files to its readers.
    let records_changes = table.property_is_true(ENABLE_CHANGE_DATA_FEED)?;
    let mut decision = Decision { feed: records_changes.then(Feed::default), ..Decision::default() };
    if upsert.extent.is_full() {
        (decision.files, decision.damaged) = table.whole_files().await?;
        for file in &decision.damaged {
            let (path, damage) = (&file.stored.add.path, file.damage);
            tracing::warn!(table = %table.name, path, damage, "a damaged file is removed; its rows come again");
        }
    } else if !changes.is_empty() {
        decision.files = table.stored_files().await?;
    }
    let ids = changes.ids();
    let candidates = candidates(table, changes, &ids, upsert, &mut decision)?;
    let mut same = match &candidates {
        Some(candidates) => same_of_all_shards(table, changes, candidates, upsert, &decision.files)?,
        None => RowsByFile::new(),
    };
    for shard in changes.shards() {
        let shard = shard?;
        let probed = match &candidates {
            Some(candidates) => probe_candidates(&shard, candidates, upsert)?,
            None => probe(table, &decision.files, &shard, &ids, upsert)?,
        };
        let tombstones = tombstone_table.find(table.name, upsert, &shard, &ids).await?;
        if candidates.is_none() {
            let mut doubtful = Doubtful::default();
            doubtful.note(&shard, &decision.files, &probed.hits);
            same = doubtful.same(table, changes, &decision.files)?;
        }
        let equal = compare(&shard, &decision.files, &probed.hits, &same);
        decision.settle(&shard, probed, &equal, &tombstones, upsert);
    }
    if upsert.extent.removes_returned() {
        let returned = returned(table, &decision.files, changes, upsert, tombstone_table).await?;
        decision.remove_returned(returned);
    }
    if let Some(limits) = upsert.reconcile {
        reconcile(&mut decision, limits);
    }
    Ok(decision)
}

/// The candidates for all shards, where there are several and the table has rows.
fn candidates(
    table: &Table,
    changes: &ChangeSet,
    ids: &Ids,
    upsert: &Upsert,
    decision: &mut Decision,
) -> Result<Option<AllCandidates>, Error> {
    if decision.files.is_empty() {
        return Ok(None);
    }
    let Some(candidates) = changes.candidates()? else { return Ok(None) };
    let Probed { missing, stored_rows, .. } = probe_once(table, &decision.files, &candidates, ids, upsert)?;
    decision.missing = missing;
    decision.stored_rows = stored_rows;
    Ok(Some(candidates.all()?))
}

/// The doubtful rows that are the same as their received row, where there are several shards. Comparing them for each
/// shard would read the files of other writers once for each.
fn same_of_all_shards(
    table: &Table,
    changes: &ChangeSet,
    candidates: &AllCandidates,
    upsert: &Upsert,
    files: &[StoredFile],
) -> Result<RowsByFile, Error> {
    let mut doubtful = Doubtful::default();
    if files.iter().all(|file| file.own) {
        return Ok(RowsByFile::new());
    }
    for shard in changes.shards() {
        let shard = shard?;
        doubtful.note(&shard, files, &probe_candidates(&shard, candidates, upsert)?.hits);
    }
    doubtful.same(table, changes, files)
}

/// Removes the rows that a full refresh did not bring, unless they are too many.
fn reconcile(decision: &mut Decision, limits: Reconcile) {
    let missing = std::mem::take(&mut decision.missing);
    let count = missing.values().map(RowSet::len).sum();
    if !may_remove(count, decision, limits) {
        decision.counts.missing = count;
        return;
    }
    decision.counts.removed += count;
    for (file, rows) in &missing {
        *decision.dead.entry(*file).or_default() |= rows;
        if let Some(feed) = &mut decision.feed {
            *feed.deleted.entry(*file).or_default() |= rows;
        }
    }
    decision.removed = missing;
}

/// May this many missing rows be removed?
fn may_remove(missing: u64, decision: &Decision, limits: Reconcile) -> bool {
    // An export without a row, or without any row that was stored, looks like a table emptied on the server; a server
    // in trouble looks the same (rule 98).
    let leaves_none = decision.received_resources == 0 || missing == decision.stored_rows;
    #[expect(clippy::cast_precision_loss, reason = "a share in percent needs no more than 52 bits")]
    let missing_percent = missing as f64 * 100.0 / decision.stored_rows.max(1) as f64;
    let is_within = missing <= limits.max_missing || missing_percent <= limits.max_missing_percent;
    limits.allow_empty || (is_within && !leaves_none)
}

impl Decision {
    /// May the rows be removed that a full refresh did not bring? As [`reconcile`] decides, but another engine has counted
    /// them: so many are `missing` among the `stored_rows` of our source. Rows that stay are counted as missing here; the
    /// caller counts those that it removes.
    pub fn may_remove(&mut self, stored_rows: u64, missing: u64, limits: Reconcile) -> bool {
        self.stored_rows = stored_rows;
        let may = may_remove(missing, self, limits);
        if !may {
            self.counts.missing = missing;
        }
        may
    }

    /// Does it record that resources were deleted?
    pub fn has_tombstones(&self) -> bool {
        !self.tombstones.is_empty() || !self.removed.is_empty()
    }

    /// Removes returned rows. They have their tombstones already, and count for no limit of [`Reconcile`].
    fn remove_returned(&mut self, returned: BTreeMap<FileIndex, RowSet>) {
        for (file, rows) in returned {
            self.counts.removed += rows.len();
            // They were not there before the table was restored: what is left is judged without them.
            self.stored_rows = self.stored_rows.saturating_sub(rows.len());
            if let Some(missing) = self.missing.get_mut(&file) {
                *missing -= &rows;
            }
            for row in &rows {
                self.mark_deleted(file, row, Fate::Delete);
            }
        }
        self.missing.retain(|_, rows| !rows.is_empty());
    }

    pub fn file(&self, index: FileIndex) -> &StoredFile {
        &self.files[index.0 as usize]
    }

    pub fn settle(
        &mut self,
        shard: &Shard,
        probed: Probed,
        equal: &[bool],
        tombstones: &TombstonesByWinner,
        upsert: &Upsert,
    ) {
        self.counts.duplicate += shard.duplicate();
        self.stored_rows += probed.stored_rows;
        for (file, rows) in probed.missing {
            *self.missing.entry(file).or_default() |= rows;
        }
        let mut hits: Vec<_> = probed.hits.iter().zip(equal).collect();
        hits.sort_by_key(|(hit, _)| hit.winner);
        let mut hits = hits.as_slice();
        for (index, winner) in shard.winners() {
            self.received_resources += u64::from(matches!(winner, Winner::Row { .. }));
            let copies = hits.partition_point(|(hit, _)| hit.winner == index);
            let (copies, rest) = hits.split_at(copies);
            hits = rest;
            let known = tombstones.get(&index);
            let fate = self.settle_one(winner, copies, known, upsert);
            self.count(winner, fate);
            if let Winner::Deleted { id, at } = winner
                && fate != Fate::Stale
                && known.is_none_or(|known| !known.includes(tombstone(*at, upsert)))
            {
                self.tombstones.push(NewTombstone {
                    id: id.to_string(),
                    deleted_at_micros: tombstone(*at, upsert).deleted_at_micros,
                });
            }
        }
    }

    /// If another writer doubled rows of the table, there are several copies of one row. The written row replaces them
    /// all.
    fn settle_one(
        &mut self,
        winner: &Winner,
        copies: &[(&Hit, &bool)],
        tombstones: Option<&Tombstones>,
        upsert: &Upsert,
    ) -> Fate {
        let fates: Vec<_> = copies.iter().map(|(hit, equal)| fate(winner, hit, **equal, tombstones, upsert)).collect();
        self.counts.conflicts += u64::from(copies.iter().any(|(hit, equal)| contradicts(winner, hit, **equal)));
        let newer_is_stored = fates.contains(&Fate::Stale);
        let kept = fates.iter().position(|fate| *fate == Fate::Unchanged);
        let fate = match winner {
            _ if newer_is_stored => Fate::Stale,
            _ if kept.is_some() => Fate::Unchanged,
            Winner::Deleted { .. } if copies.is_empty() => Fate::Unchanged,
            Winner::Deleted { .. } => Fate::Delete,
            Winner::Row { .. } if !copies.is_empty() => Fate::Update,
            Winner::Row { version, .. } => match tombstones.filter(|known| known.covers(version)) {
                Some(known) if !(upsert.extent.is_full() && known.covers_only_before(version, upsert)) => Fate::Stale,
                Some(_) => {
                    self.counts.overruled += 1;
                    Fate::Insert
                }
                None => Fate::Insert,
            },
        };
        let is_overruled = |(hit, equal): &(&Hit, &bool)| !**equal && loses_by_its_times(winner, hit, upsert);
        self.counts.overruled +=
            u64::from(matches!(fate, Fate::Update | Fate::Delete) && copies.iter().any(is_overruled));
        for (index, (hit, _)) in copies.iter().enumerate() {
            let is_superseded = match fates[index] {
                Fate::Update => !newer_is_stored,
                Fate::Unchanged => kept != Some(index),
                Fate::Delete => true,
                Fate::Insert | Fate::Stale => false,
            };
            if is_superseded {
                self.mark_deleted(hit.file, hit.row, fate);
            }
        }
        fate
    }

    /// Deletes a stored row; `fate` is that of its resource. As long as the resource stays, in whatever row, the feed
    /// does not report a deletion.
    fn mark_deleted(&mut self, file: FileIndex, row: u64, fate: Fate) {
        self.dead.entry(file).or_default().insert(row);
        if let (Fate::Delete, Some(feed)) = (fate, &mut self.feed) {
            feed.deleted.entry(file).or_default().insert(row);
        }
    }

    fn count(&mut self, winner: &Winner, fate: Fate) {
        if let (Winner::Row { location, .. }, Fate::Insert | Fate::Update) = (winner, fate) {
            self.chosen.entry(location.chunk).or_default().insert(u64::from(location.row));
            if let (Fate::Update, Some(feed)) = (fate, &mut self.feed) {
                feed.updated.entry(location.chunk).or_default().insert(u64::from(location.row));
            }
        }
        let counter = match fate {
            Fate::Insert => &mut self.counts.inserted,
            Fate::Update => &mut self.counts.updated,
            Fate::Unchanged => &mut self.counts.unchanged,
            Fate::Stale => &mut self.counts.stale,
            Fate::Delete => &mut self.counts.deleted,
        };
        *counter += 1;
    }
}

/// What a row or deletion does to one stored copy.
fn fate(winner: &Winner, stored: &Hit, equal: bool, tombstones: Option<&Tombstones>, upsert: &Upsert) -> Fate {
    // The server has the resource again. The row is written with the new transaction time; with the old one its
    // tombstone would still be later.
    let is_back =
        |known: &Tombstones| known.follow(&stored.version) && known.covers_only_before(&stored.version, upsert);
    let is_ahead = upsert.extent.is_full() && upsert.is_ahead(stored.version.transaction_time_micros);
    match winner {
        Winner::Row { .. } if equal && upsert.extent.is_full() && tombstones.is_some_and(is_back) => Fate::Update,
        // Else its time, by the former clock, would be later than that of each change to come.
        Winner::Row { .. } if equal && is_ahead => Fate::Update,
        Winner::Row { .. } if equal => Fate::Unchanged,
        _ if loses_by_its_times(winner, stored, upsert) && !overrules(winner, stored, upsert) => Fate::Stale,
        Winner::Row { .. } => Fate::Update,
        Winner::Deleted { .. } => Fate::Delete,
    }
}

/// Is the stored copy newer, by the times and numbers that both state?
fn loses_by_its_times(winner: &Winner, stored: &Hit, upsert: &Upsert) -> bool {
    let stored = upsert.without_former_clock(stored.version);
    match winner {
        Winner::Row { version, .. } => !version.may_replace(&stored),
        // A deletion that arrives late must not remove a resource that was recreated since (rule 97).
        Winner::Deleted { at, .. } => tombstone(*at, upsert).is_older_than(&stored),
    }
}

/// Does a whole export win over a stored copy that is newer by its times? A server that was restored from a backup has
/// older versions than the table, and a clock that was wrong leaves times that no later version reaches. A row with
/// parts left out never takes the place of a whole one (rule 26).
fn overrules(winner: &Winner, stored: &Hit, upsert: &Upsert) -> bool {
    let is_earlier = upsert.follows(stored.version.transaction_time_micros);
    let may = match winner {
        Winner::Row { version, .. } => upsert.extent.is_full() && (!version.subsetted || stored.version.subsetted),
        // Without the right to reconcile, the row may be one that another export brings.
        Winner::Deleted { .. } => upsert.extent.is_whole() && upsert.reconcile.is_some(),
    };
    is_earlier && may
}

fn contradicts(winner: &Winner, stored: &Hit, equal: bool) -> bool {
    matches!(winner, Winner::Row { version, .. } if !equal && version.contradicts(&stored.version))
}

/// A deletion that states no time gets the time of the export, and none is later than its export.
fn tombstone(at: Option<DateTime<Utc>>, upsert: &Upsert) -> Tombstone {
    let transaction_time_micros = upsert.exported_at.map(TransactionTime::as_micros);
    let stated = Tombstone { deleted_at_micros: at.map(|at| at.timestamp_micros()), transaction_time_micros };
    let bounded = stated.bounded();
    Tombstone { deleted_at_micros: bounded.deleted_at_micros.or(transaction_time_micros), ..bounded }
}
