//! A comparison: is a stored row the same as one of the change set?
//!
//! Our own rows carry the hash of their content. A row in a file of another writer may have been changed and still carry
//! the hash that it had, so of such rows all columns are compared, but for those that tell of the run.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, RecordBatch, new_null_array},
    compute::cast,
    error::ArrowError,
};
use futures::StreamExt as _;

use crate::table::{
    ChangeSet, Error, Table,
    change_set::entry::{ChunkIndex, RowLocation},
    change_set::newest::{Shard, Winner},
    data_file::deletion_vector::RowSet,
    data_file::stored::{FileIndex, StoredFile},
    upsert::probe::Hit,
};

/// They differ from run to run for the same content.
const OF_THE_RUN: [&str; 3] = ["_sync_at", "_sync_transaction_time", "_sync_job"];

impl Table {
    /// For each hit, whether the stored row has the content of the row that came. Deletions equal nothing.
    pub(in crate::table) async fn compare(
        &self,
        changes: &ChangeSet,
        shard: &Shard,
        files: &[StoredFile],
        hits: &[Hit],
    ) -> Result<Vec<bool>, Error> {
        let mut equal = Vec::with_capacity(hits.len());
        let mut unvouched: BTreeMap<FileIndex, Vec<(u64, usize, RowLocation)>> = BTreeMap::new();
        for (index, hit) in hits.iter().enumerate() {
            let Winner::Row { hash, location, .. } = shard.winner(hit.winner) else {
                equal.push(false);
                continue;
            };
            equal.push(hit.hash == Some(*hash));
            // Rows of a first load are in no batch any more; they are taken for others.
            if hit.hash.is_none() && changes.files().is_none() {
                unvouched.entry(hit.file).or_default().push((hit.row, index, *location));
            }
        }
        for (file, rows) in unvouched {
            self.compare_rows(changes, &files[file.0 as usize], &rows, &mut equal).await?;
        }
        Ok(equal)
    }

    /// `rows` in ascending order: where each is stored, which hit it is, and where its counterpart is.
    async fn compare_rows(
        &self,
        changes: &ChangeSet,
        stored: &StoredFile,
        rows: &[(u64, usize, RowLocation)],
        equal: &mut [bool],
    ) -> Result<(), Error> {
        let only: RowSet = rows.iter().map(|(row, ..)| *row).collect();
        let mut batches = self.rows_of(stored, &only).await?;
        let mut rows = rows.iter();
        let mut chunk: Option<(ChunkIndex, RecordBatch)> = None;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            for (row, (_, hit, location)) in (0..batch.num_rows()).zip(&mut rows) {
                let came = match chunk.take() {
                    Some((number, rows)) if number == location.chunk => rows,
                    _ => changes.batch(location.chunk)?,
                };
                equal[*hit] = same(&batch, row, &came, location.row as usize).map_err(|error| self.failed(error))?;
                chunk = Some((location.chunk, came));
            }
        }
        Ok(())
    }
}

/// Does every column that one of the rows fills hold the same in both?
fn same(stored: &RecordBatch, stored_row: usize, came: &RecordBatch, came_row: usize) -> Result<bool, ArrowError> {
    let (stored, came) = (stored.slice(stored_row, 1), came.slice(came_row, 1));
    let names = |batch: &RecordBatch| -> Vec<String> {
        batch.schema().fields().iter().map(|field| field.name().clone()).collect()
    };
    let only_there = names(&stored).into_iter().filter(|name| came.column_by_name(name).is_none());
    for name in names(&came).into_iter().chain(only_there) {
        if OF_THE_RUN.contains(&name.as_str()) {
            continue;
        }
        let same = match (stored.column_by_name(&name), came.column_by_name(&name)) {
            (Some(stored), Some(came)) if stored.data_type() == came.data_type() => stored == came,
            (Some(stored), Some(came)) => &cast(stored, came.data_type())? == came,
            (Some(one), None) | (None, Some(one)) => one == &new_null_array(one.data_type(), 1),
            (None, None) => true,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}
