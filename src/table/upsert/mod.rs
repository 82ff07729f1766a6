//! Upsert: a change set and a table become one commit.
//!
//! Probe where the ids of the change set lie, decide per id, write, commit. Rows that go are named in deletion vectors, or
//! their files are written again without them; a file of which much is dead is written again in either case. Each row of
//! the change set ends in exactly one of the [`Counts`].

pub(in crate::table) mod change_feed;
pub(in crate::table) mod compare;
pub(in crate::table) mod decide;
pub(in crate::table) mod probe;
pub(in crate::table) mod row_groups;
pub(in crate::table) mod write;

use std::collections::BTreeSet;

use deltalake::{
    DeltaTableError, Path,
    kernel::{Action, Add, AddCDCFile},
};

use crate::fhir::TransactionTime;
use crate::table::{
    ChangeSet, Error, Table,
    commit::{self, Outcome},
    data_file::forget,
    tombstones::TombstoneTable,
};

/// What a commit is for.
#[derive(Clone, Debug, Default)]
pub struct Upsert {
    /// Names the export in the log of the table.
    pub app_id: String,
    /// Only rows with this `_sync_source` are looked at.
    pub source: String,
    /// What the commit makes the table's watermark; without one the rows are upserted and the watermark stays.
    pub watermark: Option<TransactionTime>,
    /// When the server made the export, known or not whether it is whole.
    pub exported_at: Option<TransactionTime>,
    /// `_sync_at` and `_sync_job` of what the run brings.
    pub run_started_micros: i64,
    pub job: String,
    /// The number of the run, for people who read the table's history.
    pub run: u64,
    /// Set where the change set is everything that there is: rows that it does not have are removed.
    pub reconcile: Option<Reconcile>,
}

/// How rows are removed that a full refresh no longer brings. Servers that never speak of deletions leave
/// no other way to notice them.
#[derive(Clone, Copy, Debug)]
pub struct Reconcile {
    /// When more rows than this are gone, and they are more than this share of those that were stored, none is removed:
    /// that is a server in trouble, not a deletion (rule 98).
    pub max_gone: u64,
    pub max_gone_percent: f64,
}

/// What happened to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub version: u64,
    pub counts: Counts,
    /// Bytes of data files written.
    pub bytes_written: u64,
    /// Commits of other writers, since our last one, that changed rows.
    pub foreign: u64,
}

/// What became of the rows and deletions of a change set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub inserted: u64,
    pub updated: u64,
    /// Equal to what was there already; a deletion of an id that was not there counts here.
    pub unchanged: u64,
    /// Older than what was there.
    pub stale: u64,
    /// Superseded within the same export.
    pub duplicate: u64,
    pub deleted: u64,
    /// Rows that a full refresh no longer brought, removed. They were not received, so they are no part of the total.
    pub removed: u64,
    /// The same, but too many to believe: they are still there.
    pub gone: u64,
}

impl Counts {
    pub fn total(&self) -> u64 {
        self.inserted + self.updated + self.unchanged + self.stale + self.duplicate + self.deleted
    }
}

/// How often the whole upsert is done again because others changed the table in between.
const ATTEMPTS: u32 = 5;

impl Table {
    /// Brings the changes into the table. Encoding and decoding block; the caller gives this a thread of its own.
    pub async fn upsert(mut self, changes: &ChangeSet, upsert: &Upsert) -> Result<Committed, Error> {
        changes.close().await?;
        let mut foreign = 0;
        let mut tombstones = TombstoneTable::open(&self.root).await?;
        for _ in 0..ATTEMPTS {
            // What overtakes an attempt lies before our commit, where the next run no longer looks.
            foreign = self.foreign_commits().await?.max(foreign);
            self.check_writable(changes.schema())?;
            let decision = self.decide(changes, upsert, &tombstones).await?;
            self.check_balance(changes, &decision.counts)?;
            let actions = self.write(changes, &decision).await?;
            tombstones.append(self.name, &decision.tombstones, upsert).await?;
            let written = new_files(&actions);
            match commit::commit(&mut self.delta, &self.place, actions, &decision.counts, upsert).await? {
                Outcome::Committed { bytes_written } => {
                    let version = self.version();
                    return Ok(Committed { version, counts: decision.counts, bytes_written, foreign });
                }
                Outcome::Overtaken => {
                    tracing::warn!(table = %self.name, "another writer changed the table, merging again");
                    let appended: BTreeSet<_> =
                        changes.files().into_iter().flatten().map(|(_, stored)| stored.add.path).collect();
                    self.forget(written.into_iter().filter(|path| !appended.contains(path))).await;
                }
            }
        }
        Err(Error::Conflict { table: self.name, attempts: ATTEMPTS })
    }

    fn check_balance(&self, changes: &ChangeSet, counts: &Counts) -> Result<(), Error> {
        if counts.total() == changes.received() {
            return Ok(());
        }
        Err(Error::Unbalanced {
            table: self.name,
            counts: format!("received {}, accounted for {counts:?}", changes.received()),
        })
    }

    /// Takes back data files that no commit names.
    pub(in crate::table) async fn forget(&self, paths: impl Iterator<Item = String>) {
        let store = self.delta.object_store();
        for path in paths {
            forget(store.as_ref(), &Path::from(path.as_str())).await;
        }
    }

    pub(in crate::table) fn failed(&self, error: impl Into<DeltaTableError>) -> Error {
        Error::delta(&self.place, error)
    }
}

/// The files that the actions bring and that were not there.
fn new_files(actions: &[Action]) -> Vec<String> {
    let removed: BTreeSet<_> = actions
        .iter()
        .filter_map(|action| match action {
            Action::Remove(remove) => Some(remove.path.as_str()),
            _ => None,
        })
        .collect();
    let added = actions.iter().filter_map(|action| match action {
        Action::Add(Add { path, .. }) if !removed.contains(path.as_str()) => Some(path.clone()),
        Action::Cdc(AddCDCFile { path, .. }) => Some(path.clone()),
        _ => None,
    });
    added.collect()
}
