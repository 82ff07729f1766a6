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

use deltalake::kernel::{Action, Add, AddCDCFile};

use crate::table::{
    ChangeSet, Committed, Counts, Error, Table, Upsert,
    commit::{self, CommitOutcome},
    tombstones::TombstoneTable,
};

/// How often the whole upsert is done again because others changed the table in between.
const ATTEMPTS: u32 = 5;

impl Table {
    /// Brings the changes into the table. Encoding and decoding block; the caller gives this a thread of its own.
    pub async fn upsert(mut self, changes: &ChangeSet, upsert: &Upsert) -> Result<Committed, Error> {
        changes.flush().await?;
        let mut foreign = 0;
        let mut tombstones = TombstoneTable::open(&self.root).await?;
        for _ in 0..ATTEMPTS {
            // What overtakes an attempt lies before our commit, where the next run no longer looks.
            foreign = commit::foreign_commits(&self).await?.max(foreign);
            self.check_writable(changes.schema())?;
            let decision = self.decide(changes, upsert, &tombstones).await?;
            self.check_balance(changes, &decision.counts)?;
            let actions = self.write(changes, &decision).await?;
            tombstones.append(self.name, &decision.tombstones, upsert).await?;
            let written = new_files(&actions);
            match commit::commit(&mut self, actions, &decision.counts, upsert).await? {
                CommitOutcome::Committed { bytes_written } => {
                    let version = self.version();
                    return Ok(Committed { version, counts: decision.counts, bytes_written, foreign });
                }
                CommitOutcome::Overtaken => {
                    tracing::warn!(table = %self.name, "another writer changed the table, merging again");
                    let appended: BTreeSet<_> =
                        changes.files().into_iter().flatten().map(|(_, stored)| stored.add.path).collect();
                    commit::discard(&self, written.into_iter().filter(|path| !appended.contains(path))).await;
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
