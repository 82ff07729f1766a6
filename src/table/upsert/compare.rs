//! A comparison: is a stored row the same as one of the change set?
//!
//! Rows in our own files carry the hash of their content. A row in a file of another writer may have been changed and
//! still carry its old hash, so all its columns are compared except those that describe the run.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, RecordBatch, UInt32Array, new_null_array},
    compute::take,
};
use futures::StreamExt as _;

use crate::table::{
    ChangeSet, Error, Table,
    change_set::entry::{ChunkIndex, RowLocation},
    change_set::newest::{Shard, Winner},
    data_file::deletion_vector::RowSet,
    data_file::fill::{fit, fit_column},
    data_file::stored::{FileIndex, StoredFile},
    upsert::probe::Hit,
};

/// Columns that differ from run to run for the same content.
const RUN_COLUMNS: [&str; 3] = ["_sync_at", "_sync_transaction_time", "_sync_job"];

/// For each hit, whether the stored row has the content of the received row. A deletion equals nothing.
pub async fn compare(
    table: &Table,
    changes: &ChangeSet,
    shard: &Shard,
    files: &[StoredFile],
    hits: &[Hit],
) -> Result<Vec<bool>, Error> {
    let mut equal = Vec::with_capacity(hits.len());
    let mut without_hash: BTreeMap<FileIndex, Vec<(u64, usize, RowLocation)>> = BTreeMap::new();
    for (index, hit) in hits.iter().enumerate() {
        let Winner::Row { hash, location, .. } = shard.winner(hit.winner) else {
            equal.push(false);
            continue;
        };
        equal.push(hit.hash == Some(*hash));
        // The rows of a first load are not in the spool any more. They count as different.
        if hit.hash.is_none() && changes.files().is_none() {
            without_hash.entry(hit.file).or_default().push((hit.row, index, *location));
        }
    }
    for (file, rows) in without_hash {
        compare_rows(table, changes, &files[file.0 as usize], &rows, &mut equal).await?;
    }
    Ok(equal)
}

/// `rows` in ascending order: the row in the file, the index of its hit, and the location of the received row.
async fn compare_rows(
    table: &Table,
    changes: &ChangeSet,
    stored: &StoredFile,
    rows: &[(u64, usize, RowLocation)],
    equal: &mut [bool],
) -> Result<(), Error> {
    let only: RowSet = rows.iter().map(|(row, ..)| *row).collect();
    let mut batches = stored.rows_of(&only).await.map_err(|error| table.failed(error))?;
    let mut rows = rows.iter();
    let mut chunk: Option<(ChunkIndex, RecordBatch)> = None;
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|error| table.failed(error))?;
        for (row, (_, hit, location)) in (0..batch.num_rows()).zip(&mut rows) {
            let received = match chunk.take() {
                Some((index, rows)) if index == location.chunk => rows,
                _ => {
                    let rows = changes.batch(location.chunk)?;
                    fit(&rows, changes.schema()).map_err(|error| table.failed(error))?
                }
            };
            equal[*hit] = is_same(&batch, row, &received, location.row as usize);
            chunk = Some((location.chunk, received));
        }
    }
    Ok(())
}

/// Do both rows hold the same in every column? A column, or a field of one, that one of them lacks counts as null.
fn is_same(stored: &RecordBatch, stored_row: usize, received: &RecordBatch, received_row: usize) -> bool {
    let (stored, received) = (stored.slice(stored_row, 1), received.slice(received_row, 1));
    let names = |batch: &RecordBatch| -> Vec<String> {
        batch.schema().fields().iter().map(|field| field.name().clone()).collect()
    };
    let only_stored = names(&stored).into_iter().filter(|name| received.column_by_name(name).is_none());
    for name in names(&received).into_iter().chain(only_stored) {
        if RUN_COLUMNS.contains(&name.as_str()) {
            continue;
        }
        let same = match (stored.column_by_name(&name), received.column_by_name(&name)) {
            (Some(stored), Some(received)) if stored.data_type() == received.data_type() => stored == received,
            // A stored value that cannot be one of the received column is a difference. Of the row alone: a list that is
            // a slice still has the items of all rows.
            (Some(stored), Some(received)) => take(stored, &UInt32Array::from(vec![0]), None)
                .and_then(|stored| fit_column(&stored, received.data_type()))
                .is_ok_and(|stored| &stored == received),
            (Some(one), None) | (None, Some(one)) => one == &new_null_array(one.data_type(), 1),
            (None, None) => true,
        };
        if !same {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, ListArray, StringArray, StructArray},
        buffer::OffsetBuffer,
        datatypes::{DataType, Field},
    };

    use super::*;

    /// Rows with a list of structures with these fields.
    fn lists(fields: &[(&str, [Option<&str>; 2])]) -> RecordBatch {
        let fields = fields.iter().map(|(name, values)| {
            let values: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
            (Arc::new(Field::new(*name, DataType::Utf8, true)), values)
        });
        let structure = StructArray::from(fields.collect::<Vec<_>>());
        let item = Arc::new(Field::new_list_field(structure.data_type().clone(), true));
        let list = ListArray::new(item, OffsetBuffer::from_lengths([1, 1]), Arc::new(structure), None);
        RecordBatch::try_from_iter([("name", Arc::new(list) as ArrayRef)]).unwrap()
    }

    #[test]
    fn a_field_that_another_row_has_in_its_list_makes_no_difference() {
        let stored = lists(&[("text", [Some("x"), Some("y")]), ("family", [None, Some("z")])]);
        let received = lists(&[("text", [Some("x"), Some("y")])]);
        assert!(is_same(&stored, 0, &received, 0));
        assert!(!is_same(&stored, 1, &received, 1));
    }

    /// A row with a structure with these fields.
    fn row(fields: &[(&str, Option<&str>)]) -> RecordBatch {
        let fields = fields.iter().map(|(name, value)| {
            let value: ArrayRef = Arc::new(StringArray::from(vec![*value]));
            (Arc::new(Field::new(*name, DataType::Utf8, true)), value)
        });
        let structure: ArrayRef = Arc::new(StructArray::from(fields.collect::<Vec<_>>()));
        RecordBatch::try_from_iter([("name", structure)]).unwrap()
    }

    #[test]
    fn a_field_of_a_structure_that_one_row_lacks_is_compared_as_null() {
        let narrow = row(&[("text", Some("x"))]);
        let wide = |family| row(&[("family", family), ("text", Some("x"))]);
        for (one, other, same) in [
            (&narrow, &wide(None), true),
            (&narrow, &wide(Some("y")), false),
            (&wide(Some("y")), &narrow, false),
            (&wide(None), &narrow, true),
            (&wide(Some("y")), &wide(Some("y")), true),
        ] {
            assert_eq!(is_same(one, 0, other, 0), same, "{one:?} {other:?}");
        }
        assert!(!is_same(&row(&[("text", Some("z"))]), 0, &wide(None), 0));
    }
}
