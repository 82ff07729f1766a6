//! Returned rows: a table that was restored to an earlier version has rows again of resources whose deletion was
//! reported since. Their tombstones are still there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use futures::StreamExt as _;

use crate::table::{
    ChangeSet, Error, MemoryBudget, Table, Upsert,
    change_set::newest::Winner,
    data_file::deletion_vector::RowSet,
    data_file::stored::{FileIndex, StoredFile},
    tombstones::{TombstoneTable, ids_of},
    upsert::probe::probe,
};

/// How many ids are looked for at once, and what their texts may take; all in all some 30 MB.
const MAX_IDS: usize = if cfg!(test) { 3 } else { 100_000 };
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Enough for [`MAX_IDS`]: nothing of them is spooled.
const BUDGET: MemoryBudget = MemoryBudget {
    waiting_bytes: 0,
    window_bytes: 0,
    first_load_bytes: 0,
    entries_bytes: usize::MAX,
    shard_bytes: usize::MAX,
    ids_bytes: usize::MAX,
};

/// Finds the rows in `files` whose deletion was reported after they were stored, and that the change set does not
/// bring. Blocks.
pub async fn returned(
    table: &Table,
    files: &[StoredFile],
    changes: &ChangeSet,
    upsert: &Upsert,
    tombstone_table: &TombstoneTable,
) -> Result<BTreeMap<FileIndex, RowSet>, Error> {
    let mut found: BTreeMap<_, RowSet> = BTreeMap::new();
    let Some(tombstones) = &tombstone_table.table else { return Ok(found) };
    // An id whose deletion was reported several times may be looked for several times. Its rows count once.
    let mut add = |rows: Vec<(FileIndex, u64)>| {
        for (file, row) in rows {
            found.entry(file).or_default().insert(row);
        }
    };
    let (mut ids, mut bytes) = (BTreeSet::new(), 0);
    for stored in tombstone_table.files_of(table.name).await? {
        let mut batches = tombstones.rows(&stored).await?;
        while let Some(batch) = batches.next().await {
            for id in ids_of(&batch?, &upsert.source).map_err(|error| tombstones.failed(error))? {
                bytes += id.len();
                ids.insert(id);
            }
            if ids.len() >= MAX_IDS || bytes >= MAX_BYTES {
                add(among(std::mem::take(&mut ids), table, files, changes, upsert, tombstone_table).await?);
                bytes = 0;
            }
        }
    }
    if !ids.is_empty() {
        add(among(ids, table, files, changes, upsert, tombstone_table).await?);
    }
    Ok(found)
}

/// The same among the rows with these ids.
async fn among(
    ids: BTreeSet<String>,
    table: &Table,
    files: &[StoredFile],
    changes: &ChangeSet,
    upsert: &Upsert,
    tombstone_table: &TombstoneTable,
) -> Result<Vec<(FileIndex, u64)>, Error> {
    let upsert = Upsert { reconcile: None, ..upsert.clone() };
    let deleted = ChangeSet::new(changes.schema(), BUDGET, Path::new(""));
    for id in ids {
        deleted.delete(id, None)?;
    }
    let ids = deleted.ids();
    let mut found = Vec::new();
    for shard in deleted.shards() {
        let shard = shard?;
        let probed = probe(table, files, &shard, &ids, &upsert)?;
        let tombstones = tombstone_table.find(table.name, &upsert, &shard, &ids).await?;
        for hit in probed.hits {
            let is_later = tombstones.get(&hit.winner).is_some_and(|known| known.follow(&hit.version));
            if let (true, Winner::Deleted { id, .. }) = (is_later, shard.winner(hit.winner)) {
                found.push((id.clone(), (hit.file, hit.row)));
            }
        }
    }
    // What the server has now is there, whatever was reported before.
    for shard in changes.shards() {
        let shard = shard?;
        found.retain(|(id, _)| shard.get(id).is_none());
    }
    Ok(found.into_iter().map(|(_, place)| place).collect())
}
