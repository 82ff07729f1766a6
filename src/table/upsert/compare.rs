//! A comparison: is a stored row the same as one of the change set?
//!
//! Rows in our own files carry the hash of their content. A row in a file of another writer may have been changed and
//! still carry its old hash. If it carries another one than the received row, it is different; if it carries the same,
//! it is doubtful, and all its columns are compared except those that describe the run. Doubtful rows and their
//! received rows may be as many as the table has, in any order, so neither is looked up for the other: each is read
//! once and becomes a digest, and [`Digests`] says which are in both.

use std::collections::BTreeMap;

use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
    error::ArrowError,
};
use deltalake::DeltaTableError;
use futures::StreamExt as _;
use tokio::runtime::Handle;

use crate::table::{
    ChangeSet, Error, Table,
    change_set::digests::{Digests, RowsByFile},
    change_set::entry::ChunkIndex,
    change_set::newest::{Shard, Winner},
    data_file::deletion_vector::RowSet,
    data_file::stored::StoredFile,
    parallel::{in_parallel, in_parallel_with},
    upsert::probe::{FILES_AT_ONCE, Hit, scans_of},
    upsert::row_digest::RowDigester,
};

/// For each hit, whether the stored row has the content of the received row; `same` are the doubtful rows that have. A
/// deletion equals nothing.
pub fn compare(shard: &Shard, files: &[StoredFile], hits: &[Hit], same: &RowsByFile) -> Vec<bool> {
    let is_equal = |hit: &Hit| {
        let is_same = || same.get(&hit.file).is_some_and(|rows| rows.contains(hit.row));
        winner_with_its_hash(shard, hit).is_some() && (files[hit.file.0 as usize].own || is_same())
    };
    hits.iter().map(is_equal).collect()
}

/// The row of the change set whose hash the stored row carries.
fn winner_with_its_hash<'shard>(shard: &'shard Shard, hit: &Hit) -> Option<&'shard Winner> {
    let winner = shard.winner(hit.winner);
    matches!(winner, Winner::Row { hash, .. } if hit.hash == Some(*hash)).then_some(winner)
}

/// The doubtful rows, and the received rows whose hashes they carry.
#[derive(Default)]
pub struct Doubtful {
    stored: RowsByFile,
    received: BTreeMap<ChunkIndex, RowSet>,
}

impl Doubtful {
    /// Notes which hits of a shard are doubtful.
    pub fn note(&mut self, shard: &Shard, files: &[StoredFile], hits: &[Hit]) {
        for hit in hits.iter().filter(|hit| !files[hit.file.0 as usize].own) {
            if let Some(Winner::Row { location, .. }) = winner_with_its_hash(shard, hit) {
                self.stored.entry(hit.file).or_default().insert(hit.row);
                self.received.entry(location.chunk).or_default().insert(location.row.into());
            }
        }
    }

    /// The stored rows that are the same as their received row. Digests are compared without regard to which row belongs
    /// to which: rows with the same digest have the same id, because a digest is of the id, too. Blocks.
    pub fn same(self, table: &Table, changes: &ChangeSet, files: &[StoredFile]) -> Result<RowsByFile, Error> {
        // The rows of a first load are not in the spool any more. They count as different.
        if self.stored.is_empty() || changes.is_first_load() {
            return Ok(RowsByFile::new());
        }
        let (digester, digests) = (RowDigester::new(changes.schema()), changes.digests());
        let received: Vec<_> = self.received.into_iter().collect();
        in_parallel(&received, |(chunk, rows)| {
            let of_rows = rows_among(&changes.batch(*chunk)?, rows).and_then(|rows| digester.digests(&rows));
            digests.add_received(of_rows.map_err(|error| table.failed(error))?.into_iter().flatten())
        })?;
        digest_stored(table, files, &self.stored, &digester, &digests)?;
        digests.in_both()
    }
}

fn rows_among(rows: &RecordBatch, chosen: &RowSet) -> Result<RecordBatch, ArrowError> {
    let all = rows.num_rows() as u64;
    if chosen.len() == all {
        return Ok(rows.clone());
    }
    let chosen: BooleanArray = (0..all).map(|row| Some(chosen.contains(row))).collect();
    filter_record_batch(rows, &chosen)
}

/// Reads the rows with all their columns, each row group once.
fn digest_stored(
    table: &Table,
    files: &[StoredFile],
    rows: &RowsByFile,
    digester: &RowDigester,
    digests: &Digests,
) -> Result<(), Error> {
    let runtime = Handle::current();
    let failed = |error: DeltaTableError| table.failed(error);
    let indexed: Vec<_> = rows.keys().map(|file| (*file, &files[file.0 as usize])).collect();
    for indexed in indexed.chunks(FILES_AT_ONCE) {
        let scans = scans_of(table, indexed, None)?.into_iter();
        let scans = scans.filter_map(|scan| Some((scan.rows_among(rows.get(&scan.file)?), scan)));
        let scans: Vec<_> = scans.filter(|(rows, _)| !rows.is_empty()).collect();
        in_parallel_with(
            table.read_from(),
            &scans,
            |(_, scan)| scan.bytes_of_all_columns(),
            async |(_, scan)| scan.fetch_all_columns().await.map_err(failed),
            |(rows, scan), fetched| {
                let mut batches = scan.read_all_columns(fetched, rows).map_err(failed)?;
                let mut rows = rows.iter();
                while let Some(batch) = runtime.block_on(batches.next()) {
                    let batch = batch.map_err(|error| table.failed(error))?;
                    let of_rows = digester.digests(&batch).map_err(|error| table.failed(error))?;
                    let known = of_rows.into_iter().zip(rows.by_ref()).filter_map(|(digest, row)| Some((row, digest?)));
                    digests.add_stored(scan.file, known)?;
                }
                Ok(())
            },
        )?;
    }
    Ok(())
}
