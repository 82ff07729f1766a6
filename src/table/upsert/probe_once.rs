//! A probe of a change set with several shards: the files are read once for all of them.
//!
//! A reading for each shard would make a large upsert quadratic: with twice the rows, twice the shards would read twice
//! the files. What may be a hit waits as a [`Candidate`] until its shard is loaded.

use deltalake::DeltaTableError;
use tokio::{runtime::Handle, sync::Mutex};

use crate::fhir::TransactionTime;
use crate::table::{
    Error, Table, Upsert,
    change_set::candidates::{AllCandidates, Candidate, Candidates},
    change_set::entry::IdHash,
    change_set::newest::Shard,
    change_set::newest::filter::IdFilter,
    data_file::stored::StoredFile,
    ids::Ids,
    parallel::in_parallel_with,
    upsert::probe::{FILES_AT_ONCE, Hit, Probed, may_have, scans_of},
    upsert::scan::{Lookup, RowGroupScan, StoredVersion},
};

/// Finds the candidates for all shards in `files`. What is returned has no hits, and as missing only the rows whose ids
/// are certainly not in the change set. Blocks.
pub fn probe_once(
    table: &Table,
    files: &[StoredFile],
    candidates: &Candidates,
    ids: &Ids,
    upsert: &Upsert,
) -> Result<Probed, Error> {
    let (runtime, from) = (Handle::current(), table.read_from());
    let failed = |error: DeltaTableError| table.failed(error);
    // Something passes in nearly every row group, so ids and versions are requested together.
    let columns = |scan: &RowGroupScan<'_>| [&scan.key_columns(upsert), scan.version_columns()].concat();
    let (indexed, ids) = may_have(files, ids, upsert);
    let (mut all, has_lines) = (Probed::default(), Mutex::new(()));
    for indexed in indexed.chunks(FILES_AT_ONCE) {
        let found = in_parallel_with(
            from,
            &scans_of(table, indexed, ids)?,
            |scan| scan.bytes_of(&columns(scan)),
            async |scan| scan.fetch(&columns(scan)).await.map_err(failed),
            |scan, fetched| {
                let keys = fetched.clone();
                let found = runtime.block_on(scan.find(keys, candidates.filter(), upsert)).map_err(failed)?;
                if found.rows.is_empty() {
                    return Ok((scan.file, found.missing, found.stored_rows));
                }
                let mut kept = Ok(());
                let keep = |some: Vec<_>| {
                    if kept.is_ok() {
                        kept = candidates.keep(&some.into_iter().map(Candidate::from).collect::<Vec<_>>());
                    }
                };
                runtime.block_on(scan.read_versions(fetched, &found.rows, &has_lines, keep)).map_err(failed)?;
                kept?;
                Ok((scan.file, found.missing, found.stored_rows))
            },
        )?;
        for (file, missing, stored_rows) in found {
            if !missing.is_empty() {
                *all.missing.entry(file).or_default() |= missing;
            }
            all.stored_rows += stored_rows;
        }
    }
    Ok(all)
}

/// Which candidates of a shard are hits, and which are rows that a full refresh did not bring. Blocks on the disk.
pub fn probe_candidates(shard: &Shard, candidates: &AllCandidates, upsert: &Upsert) -> Result<Probed, Error> {
    let compared_until_micros = upsert.compared_until().map(TransactionTime::as_micros);
    let mut probed = Probed::default();
    candidates.read(shard, |Candidate { id_hash, file, row, version, hash }| match shard.by_hash(id_hash) {
        Some(winner) => probed.hits.push(Hit { file, row, winner, version, hash }),
        None if upsert.reconcile.is_some() && version.transaction_time_micros <= compared_until_micros => {
            probed.missing.entry(file).or_default().insert(row);
        }
        None => {}
    })?;
    probed.hits.sort_unstable_by_key(|hit| (hit.file, hit.row));
    Ok(probed)
}

impl Lookup for IdFilter {
    type Found = IdHash;

    fn find(&self, id: &str) -> Option<IdHash> {
        self.pass(id)
    }

    fn decides_on(&self, _: &str) -> bool {
        true
    }
}

impl From<StoredVersion<IdHash>> for Candidate {
    fn from(StoredVersion { file, row, of: id_hash, version, hash }: StoredVersion<IdHash>) -> Self {
        Self { id_hash, file, row, version, hash }
    }
}
