//! The decision: which stored rows a change set replaces or removes, and which of its rows are written.
//!
//! Each row and each deletion of the change set ends in exactly one of the [`Counts`].

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::fhir::TransactionTime;
use crate::table::{
    ChangeSet, Counts, Error, Reconcile, Table, Upsert,
    change_set::entry::ChunkIndex,
    change_set::newest::{Shard, Winner},
    data_file::deletion_vector::RowSet,
    data_file::stored::{FileIndex, StoredFile},
    tombstones::{NewTombstone, Tombstone, TombstoneTable, Tombstones, TombstonesByWinner},
    upsert::change_feed::Feed,
    upsert::probe::{Hit, Probed},
};

/// Which stored rows go, which new ones come, and how that counts.
#[derive(Default)]
pub(in crate::table) struct Decision {
    pub files: Vec<StoredFile>,
    /// Rows that die, by file.
    pub dead: BTreeMap<FileIndex, RowSet>,
    /// Rows of the change set that are written, by the chunk that holds them.
    pub write: BTreeMap<ChunkIndex, RowSet>,
    /// What is to be remembered of resources that are gone.
    pub tombstones: Vec<NewTombstone>,
    /// Only where the table records its changes.
    pub feed: Option<Feed>,
    pub counts: Counts,
    gone: Vec<(FileIndex, u64)>,
    /// Rows of our source that were there.
    stored: u64,
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

impl Table {
    /// Looks up every stored copy of the ids of the change set and says what happens to each. Blocks.
    pub(in crate::table) async fn decide(
        &self,
        changes: &ChangeSet,
        upsert: &Upsert,
        tombstone_table: &TombstoneTable,
    ) -> Result<Decision, Error> {
        let mut decision = Decision { feed: self.records_changes()?.then(Feed::default), ..Decision::default() };
        if !changes.is_empty() || upsert.reconcile.is_some() {
            decision.files = self.stored_files().await?;
        }
        let ids = changes.ids();
        for shard in changes.shards() {
            let shard = shard?;
            let probed = self.probe(&decision.files, &shard, &ids, upsert)?;
            let tombstones = tombstone_table.find(self.name, &upsert.source, &shard, &ids).await?;
            let equal = self.compare(changes, &shard, &decision.files, &probed.hits).await?;
            decision.settle(&shard, probed, &equal, &tombstones, upsert);
        }
        if let Some(reconcile) = upsert.reconcile {
            self.reconcile(&mut decision, reconcile).await?;
        }
        Ok(decision)
    }

    /// Removes the rows that are gone, unless they are too many.
    async fn reconcile(&self, decision: &mut Decision, reconcile: Reconcile) -> Result<(), Error> {
        let gone = std::mem::take(&mut decision.gone);
        let count = gone.len() as u64;
        #[expect(clippy::cast_precision_loss, reason = "a share in percent needs no more than 52 bits")]
        let gone_percent = count as f64 * 100.0 / decision.stored.max(1) as f64;
        if count > reconcile.max_missing && gone_percent > reconcile.max_missing_percent {
            decision.counts.missing = count;
            return Ok(());
        }
        decision.counts.removed = count;
        let mut rows: BTreeMap<FileIndex, RowSet> = BTreeMap::new();
        for (file, row) in gone {
            decision.kill(file, row, Fate::Delete);
            rows.entry(file).or_default().insert(row);
        }
        for (file, rows) in &rows {
            for id in self.ids(decision.file(*file), rows).await? {
                decision.tombstones.push(NewTombstone { id, deleted_at_micros: None });
            }
        }
        Ok(())
    }
}

impl Decision {
    pub fn file(&self, index: FileIndex) -> &StoredFile {
        &self.files[index.0 as usize]
    }

    fn settle(
        &mut self,
        shard: &Shard,
        probed: Probed,
        equal: &[bool],
        tombstones: &TombstonesByWinner,
        upsert: &Upsert,
    ) {
        self.counts.duplicate += shard.duplicate();
        self.stored += probed.stored;
        self.gone.extend(probed.gone);
        let mut hits: Vec<_> = probed.hits.iter().zip(equal).collect();
        hits.sort_by_key(|(hit, _)| hit.winner);
        let mut hits = hits.as_slice();
        for (index, winner) in shard.winners() {
            let copies = hits.partition_point(|(hit, _)| hit.winner == index);
            let (copies, rest) = hits.split_at(copies);
            hits = rest;
            let fate = self.settle_one(winner, copies, tombstones.get(&index), upsert);
            self.count(winner, fate);
            if let Winner::Deleted { id, at } = winner
                && fate != Fate::Stale
                && tombstones.get(&index).is_none_or(|known| !known.includes(tombstone(*at, upsert)))
            {
                self.tombstones.push(NewTombstone {
                    id: id.to_string(),
                    deleted_at_micros: tombstone(*at, upsert).deleted_at_micros,
                });
            }
        }
    }

    /// A table that others doubled may have several copies of one row; what is written takes the place of all of them.
    fn settle_one(
        &mut self,
        winner: &Winner,
        copies: &[(&Hit, &bool)],
        gone: Option<&Tombstones>,
        upsert: &Upsert,
    ) -> Fate {
        let fates = copies.iter().map(|(hit, equal)| fate(winner, hit, **equal, upsert));
        let fates: Vec<_> = fates.collect();
        let newer_is_there = fates.contains(&Fate::Stale);
        let kept = fates.iter().position(|fate| *fate == Fate::Unchanged);
        let mut dying = Vec::new();
        for (index, (hit, _)) in copies.iter().enumerate() {
            let dies = match fates[index] {
                Fate::Update => !newer_is_there,
                Fate::Unchanged => kept != Some(index),
                Fate::Delete => true,
                Fate::Insert | Fate::Stale => false,
            };
            if dies {
                dying.push(*hit);
            }
        }
        let fate = match winner {
            _ if newer_is_there => Fate::Stale,
            _ if kept.is_some() => Fate::Unchanged,
            Winner::Deleted { .. } if copies.is_empty() => Fate::Unchanged,
            Winner::Deleted { .. } => Fate::Delete,
            Winner::Row { .. } if !copies.is_empty() => Fate::Update,
            Winner::Row { version, .. } if gone.is_some_and(|gone| gone.covers(version)) => Fate::Stale,
            Winner::Row { .. } => Fate::Insert,
        };
        for hit in dying {
            self.kill(hit.file, hit.row, fate);
        }
        fate
    }

    /// A stored row dies because of what becomes of its resource. Where that stays, in whatever row, it is no deletion.
    fn kill(&mut self, file: FileIndex, row: u64, fate: Fate) {
        self.dead.entry(file).or_default().insert(row);
        if let (Fate::Delete, Some(feed)) = (fate, &mut self.feed) {
            feed.deleted.entry(file).or_default().insert(row);
        }
    }

    fn count(&mut self, winner: &Winner, fate: Fate) {
        if let (Winner::Row { location, .. }, Fate::Insert | Fate::Update) = (winner, fate) {
            self.write.entry(location.chunk).or_default().insert(u64::from(location.row));
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
fn fate(winner: &Winner, stored: &Hit, equal: bool, upsert: &Upsert) -> Fate {
    match winner {
        Winner::Row { .. } if equal => Fate::Unchanged,
        Winner::Row { version, .. } if version.may_replace(&stored.version) => Fate::Update,
        Winner::Row { .. } => Fate::Stale,
        // A deletion that comes late must not remove what was created again since (rule 97).
        Winner::Deleted { at, .. } if tombstone(*at, upsert).is_older_than(&stored.version) => Fate::Stale,
        Winner::Deleted { .. } => Fate::Delete,
    }
}

/// The time of the export stands in for that of a deletion that states none.
fn tombstone(at: Option<DateTime<Utc>>, upsert: &Upsert) -> Tombstone {
    let transaction_time_micros = upsert.exported_at.map(TransactionTime::as_micros);
    Tombstone {
        deleted_at_micros: at.map(|at| at.timestamp_micros()).or(transaction_time_micros),
        transaction_time_micros,
    }
}
