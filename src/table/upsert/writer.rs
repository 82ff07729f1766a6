//! A writer: what all threads that write files for one decision have in common.

use arrow::{
    array::{BooleanArray, RecordBatch},
    compute::filter_record_batch,
};

use crate::table::{
    ChangeSet, Error, Table, change_set::entry::ChunkIndex, data_file::deletion_vector::RowSet,
    data_file::properties::ROW_GROUP_BYTES, data_file::rolling::FileTarget, upsert::decide::Decision,
};

pub struct Writer<'a> {
    pub table: &'a Table,
    pub changes: &'a ChangeSet,
    pub decision: &'a Decision,
    /// How the data files are written.
    pub target: FileTarget,
}

const MIN_ROW_GROUP_BYTES: usize = 8 * 1024 * 1024;

impl<'a> Writer<'a> {
    pub fn new(table: &'a Table, changes: &'a ChangeSet, decision: &'a Decision) -> Result<Self, Error> {
        Ok(Self { table, changes, decision, target: table.target()? })
    }

    /// The same for this many threads: their row groups are smaller, so memory does not grow with the cores, unless
    /// less than [`MIN_ROW_GROUP_BYTES`] were left for each.
    pub fn for_threads(self, threads: usize) -> Self {
        let all_bytes = self.table.root.row_groups_bytes;
        let row_group_bytes = (all_bytes / threads.max(1)).clamp(MIN_ROW_GROUP_BYTES, ROW_GROUP_BYTES);
        Self { target: FileTarget { row_group_bytes, ..self.target }, ..self }
    }

    /// The rows of a spooled chunk that the decision chose, in order.
    pub fn chosen_rows(&self, chunk: ChunkIndex, chosen: &RowSet) -> Result<RecordBatch, Error> {
        let rows = self.changes.batch(chunk)?;
        let all = rows.num_rows() as u64;
        if chosen.len() == all {
            return Ok(rows);
        }
        let chosen: BooleanArray = (0..all).map(|row| Some(chosen.contains(row))).collect();
        filter_record_batch(&rows, &chosen).map_err(|error| self.table.failed(error))
    }
}
