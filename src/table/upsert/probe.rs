//! A probe: which stored rows have an id of the change set, and which versions are they?
//!
//! It reads the ids of the files, and of the rows that it finds only the columns of a version. Row groups are read in
//! parallel, a batch at a time. What stays in memory is one [`Hit`] for each stored row whose id is in the shard. Where
//! there are several shards, the files are read once for all of them, see [`super::probe_once`].

use std::collections::BTreeMap;

use deltalake::DeltaTableError;
use tokio::{runtime::Handle, sync::Mutex};

use crate::fhir::Version;
use crate::table::{
    Error, Table, Upsert,
    change_set::newest::{Shard, WinnerIndex},
    data_file::deletion_vector::RowSet,
    data_file::stored::{FileIndex, StoredFile},
    ids::{IdPrefilter, Ids},
    parallel::in_parallel_with,
    upsert::scan::{Lookup, RowGroupScan, StoredVersion, scans},
};

/// A stored row whose id is in the change set.
pub struct Hit {
    pub file: FileIndex,
    /// Its index in the file.
    pub row: u64,
    /// Its row or deletion in the change set.
    pub winner: WinnerIndex,
    pub version: Version,
    /// As the row carries it. Where another writer wrote the file, equal hashes do not mean equal rows.
    pub hash: Option<u64>,
}

#[derive(Default)]
pub struct Probed {
    /// In the order of the files, then of the rows.
    pub hits: Vec<Hit>,
    /// Rows of our source that a full refresh did not bring; none for other exports. They may be all rows of a table,
    /// so they are a bitmap of each file.
    pub missing: BTreeMap<FileIndex, RowSet>,
    /// Live rows of our source.
    pub stored_rows: u64,
}

/// Files whose footers are in memory at the same time: one with four row groups of wide rows takes a megabyte or two.
pub const FILES_AT_ONCE: usize = 16;

/// Finds the rows of `shard`, which holds all or some of `ids`, in `files`. Blocks.
pub fn probe(table: &Table, files: &[StoredFile], shard: &Shard, ids: &Ids, upsert: &Upsert) -> Result<Probed, Error> {
    let (indexed, ids) = may_have(files, ids, upsert);
    let lookup = InShard { shard, prefilter: ids.and_then(Ids::prefilter) };
    let mut all = Probed::default();
    for indexed in indexed.chunks(FILES_AT_ONCE) {
        let probed = probe_files(table, indexed, &lookup, ids, upsert)?;
        all.hits.extend(probed.hits);
        all.missing.extend(probed.missing);
        all.stored_rows += probed.stored_rows;
    }
    Ok(all)
}

fn probe_files(
    table: &Table,
    indexed: &[(FileIndex, &StoredFile)],
    lookup: &InShard<'_>,
    ids: Option<&Ids>,
    upsert: &Upsert,
) -> Result<Probed, Error> {
    let (runtime, from) = (Handle::current(), table.read_from());
    let failed = |error: DeltaTableError| table.failed(error);
    let scans = scans_of(table, indexed, ids)?;
    let found = in_parallel_with(
        from,
        &scans,
        |scan| scan.bytes_of(&scan.key_columns(upsert)),
        async |scan| scan.fetch(&scan.key_columns(upsert)).await.map_err(failed),
        |scan, keys| runtime.block_on(scan.find(keys, lookup, upsert)).map_err(failed),
    )?;
    let mut probed = Probed::default();
    let mut with_hits = Vec::new();
    for (scan, found) in scans.iter().zip(found) {
        probed.stored_rows += found.stored_rows;
        if !found.missing.is_empty() {
            *probed.missing.entry(scan.file).or_default() |= found.missing;
        }
        if !found.rows.is_empty() {
            with_hits.push((scan, found.rows));
        }
    }
    let has_lines = Mutex::new(());
    let hits = in_parallel_with(
        from,
        &with_hits,
        |(scan, _)| scan.bytes_of(scan.version_columns()),
        async |(scan, _)| scan.fetch(scan.version_columns()).await.map_err(failed),
        |(scan, rows), versions| {
            let mut hits = Vec::with_capacity(rows.len());
            let read =
                scan.read_versions(versions, rows, &has_lines, |some| hits.extend(some.into_iter().map(Hit::from)));
            runtime.block_on(read).map_err(failed)?;
            Ok(hits)
        },
    )?;
    probed.hits.extend(hits.into_iter().flatten());
    Ok(probed)
}

/// The files that may have one of the ids. A full refresh looks for rows that it does not have, and they may be
/// anywhere: then nothing is pruned.
pub fn may_have<'a>(
    files: &'a [StoredFile],
    ids: &'a Ids,
    upsert: &Upsert,
) -> (Vec<(FileIndex, &'a StoredFile)>, Option<&'a Ids>) {
    let ids = upsert.reconcile.is_none().then_some(ids);
    let mut indexed: Vec<_> = (0..).map(FileIndex).zip(files).collect();
    indexed.retain(|(_, stored)| ids.is_none_or(|ids| stored.may_have(ids)));
    (indexed, ids)
}

/// The row groups of the files that may have one of the ids.
pub fn scans_of<'files>(
    table: &Table,
    indexed: &[(FileIndex, &'files StoredFile)],
    ids: Option<&Ids>,
) -> Result<Vec<RowGroupScan<'files>>, Error> {
    let scans = in_parallel_with(
        table.read_from(),
        indexed,
        |_| 0,
        async |(file, stored)| scans(*file, stored, ids).await.map_err(|error| table.failed(error)),
        |_, scans| Ok(scans),
    )?;
    Ok(scans.into_iter().flatten().collect())
}

struct InShard<'a> {
    shard: &'a Shard,
    prefilter: Option<IdPrefilter>,
}

impl Lookup for InShard<'_> {
    type Found = WinnerIndex;

    fn find(&self, id: &str) -> Option<WinnerIndex> {
        if self.prefilter.as_ref().is_none_or(|prefilter| prefilter.may_contain(id)) {
            self.shard.get(id)
        } else {
            None
        }
    }

    fn decides_on(&self, id: &str) -> bool {
        self.shard.covers(id)
    }
}

impl From<StoredVersion<WinnerIndex>> for Hit {
    fn from(StoredVersion { file, row, of: winner, version, hash }: StoredVersion<WinnerIndex>) -> Self {
        Self { file, row, winner, version, hash }
    }
}
