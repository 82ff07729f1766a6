//! Upsert: a change set and a table become one commit.
//!
//! [`probe`](probe::probe) finds the stored rows of the change set's ids; where these do not fit into memory,
//! [`probe_once`](probe_once::probe_once) does. [`compare`](compare::compare) says which of them have the same content,
//! [`decide`](decide::decide) says what happens to each, [`write`](write::write) writes files, and the commit names
//! them. Rows that are replaced or removed are marked in deletion vectors, or their files are rewritten without them; a
//! file with many deleted rows is rewritten in any case. Each row of the change set is counted in exactly one of the
//! [`Counts`].

mod change_feed;
mod compare;
pub mod decide;
pub mod probe;
mod probe_once;
mod returned;
mod row_digest;
pub mod row_groups;
mod scan;
pub mod write;
mod write_task;
mod writer;

use std::collections::BTreeSet;

use deltalake::kernel::{Action, Add, AddCDCFile};

use self::{
    decide::{Decision, decide},
    write::write,
};
use crate::table::{
    ChangeSet, Committed, Counts, Error, Table, Upsert,
    commit::{self, CommitOutcome},
    data_file::deletion_vector::RowSet,
    data_file::stored::DamagedFile,
    requirements::check_writable,
    tombstones::{NewTombstone, TombstoneTable},
};

/// How often the whole upsert is done because other writers change the table at the same moment.
const MAX_ATTEMPTS: u32 = 5;

impl Table {
    /// Brings the changes into the table. Encoding and decoding block; the caller gives this a thread of its own.
    pub async fn upsert(mut self, changes: &ChangeSet, upsert: &Upsert) -> Result<Committed, Error> {
        changes.flush()?;
        match self.try_upsert(changes, upsert).await {
            Err(Error::Delta { place, source }) => Err(self.explained(Error::Delta { place, source }).await),
            result => result,
        }
    }

    /// Is the error that of a file whose rows are lost? Then no repetition helps, and the operator needs the way out.
    async fn explained(&self, error: Error) -> Error {
        let Ok((_, damaged)) = self.whole_files().await else { return error };
        let Some(DamagedFile { stored, damage }) = damaged.into_iter().next() else { return error };
        Error::Damaged { place: self.place.clone(), what: format!("its file {} {damage}", stored.add.path) }
    }

    async fn try_upsert(&mut self, changes: &ChangeSet, upsert: &Upsert) -> Result<Committed, Error> {
        let mut foreign = 0;
        let mut tombstones = if changes.is_empty() && !upsert.extent.removes_returned() {
            TombstoneTable::not_opened(&self.root)
        } else {
            TombstoneTable::open(&self.root).await?
        };
        let opened = self.version();
        for _ in 0..MAX_ATTEMPTS {
            // Counted in each attempt: a commit that overtakes us is before our commit, and the next run looks only
            // after it.
            foreign = commit::foreign_commits(self, upsert).await?.max(foreign);
            check_writable(self, changes.schema())?;
            let decision = decide(self, changes, upsert, &tombstones).await?;
            check_balance(self, changes, &decision.counts)?;
            if decision.has_tombstones() {
                tombstones.check()?;
            }
            let actions = write(self, changes, &decision).await?;
            append_tombstones(self, &mut tombstones, &decision, upsert, TOMBSTONES_AT_ONCE).await?;
            let written = new_files(&actions);
            match commit::commit(self, actions, &decision.counts, upsert).await? {
                CommitOutcome::Committed { bytes_written } => {
                    let version = self.version();
                    let damaged = decision.damaged.len() as u64;
                    return Ok(Committed { version, counts: decision.counts, bytes_written, foreign, damaged });
                }
                CommitOutcome::Overtaken => {
                    tracing::warn!(table = %self.name, "another writer changed the table, merging again");
                    // The files of a first load hold the change set: they are needed again.
                    let first_load: BTreeSet<_> =
                        changes.files().into_iter().flatten().map(|(_, stored)| stored.add.path).collect();
                    commit::discard(self, written.into_iter().filter(|path| !first_load.contains(path))).await;
                    // The watermark would stand for rows that the table had when it was opened.
                    if self.restored_since(opened).await? {
                        return Err(Error::Restored { table: self.name });
                    }
                }
            }
        }
        Err(Error::Conflict { table: self.name, attempts: MAX_ATTEMPTS })
    }
}

/// How many tombstones are in memory, beside those of the change set. A full refresh may remove all rows of a type.
const TOMBSTONES_AT_ONCE: usize = 250_000;

/// Appends the tombstones of a decision; those of removed rows in commits of `at_once`.
pub async fn append_tombstones(
    table: &Table,
    tombstones: &mut TombstoneTable,
    decision: &Decision,
    upsert: &Upsert,
    at_once: usize,
) -> Result<(), Error> {
    tombstones.append(table.name, &decision.tombstones, upsert).await?;
    let mut waiting = Vec::new();
    for (file, rows) in &decision.removed {
        let mut rows = rows.iter().peekable();
        while rows.peek().is_some() {
            let rows: RowSet = rows.by_ref().take(at_once - waiting.len()).collect();
            let ids = decision.file(*file).ids_of(&rows).await.map_err(|error| table.failed(error))?;
            waiting.extend(ids.into_iter().map(|id| NewTombstone { id, deleted_at_micros: None }));
            if waiting.len() >= at_once {
                tombstones.append(table.name, &std::mem::take(&mut waiting), upsert).await?;
            }
        }
    }
    tombstones.append(table.name, &waiting, upsert).await
}

fn check_balance(table: &Table, changes: &ChangeSet, counts: &Counts) -> Result<(), Error> {
    if counts.total() == changes.received() {
        return Ok(());
    }
    Err(Error::Unbalanced {
        table: table.name,
        counts: format!("received {}, accounted for {counts:?}", changes.received()),
    })
}

/// The files that the actions add and that were not in the table before.
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
