//! Staged rows: the rows and removals that a MERGE is to apply, as Parquet files whose columns are all the same; and
//! staged ids, by which the engine finds stored rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{ArrayRef, AsArray as _, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array},
    compute::take_record_batch,
    datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit},
    error::ArrowError,
};

use super::{
    operations::{Operation, Operations, Seen},
    place::Place,
};
use crate::table::{
    ChangeSet, Error,
    change_set::entry::ChunkIndex,
    data_file::deletion_vector::RowSet,
    data_file::rolling::{DataFiles, FileTarget},
};

/// The column with what is to be done; one of [`OPERATIONS`].
pub const OPERATION: &str = "__staged_operation";
/// The column with the id of the stored row that is replaced or removed, or that must not be there; null where none is
/// looked for.
pub const TARGET_ID: &str = "__staged_target_id";
/// The columns that say which stored row an update or a removal was decided for.
pub const SEEN_HASH: &str = "__staged_seen_hash";
pub const SEEN_TRANSACTION_TIME: &str = "__staged_seen_transaction_time";

/// A row is inserted; an id that is stored is an error. The stored row is updated or removed, if it is the one that was
/// seen. All stored rows of the id are removed, whatever they are.
pub const OPERATIONS: [&str; 4] = [INSERT, UPDATE, DELETE, DELETE_ALL];
const INSERT: &str = "insert";
const UPDATE: &str = "update";
const DELETE: &str = "delete";
const DELETE_ALL: &str = "delete-all";

/// How many rows are encoded at once.
const BATCH_ROWS: usize = 8192;

/// A stored row that is removed; without `seen` all rows of the id are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    pub id: String,
    pub seen: Option<Seen>,
}

pub struct RowWriter {
    files: Option<DataFiles>,
    schema: SchemaRef,
    place: String,
    written: u64,
}

impl RowWriter {
    pub fn new(place: &Place, changes: &ChangeSet) -> Self {
        let filled = changes.filled_columns();
        let columns = changes.schema().fields().iter();
        let columns = columns.filter(|field| field.name() == "id" || filled.contains(field.name())).cloned();
        let fields: Vec<FieldRef> = control_fields().into_iter().chain(columns).collect();
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let target = FileTarget::new(Arc::clone(&place.store), Arc::clone(&schema), None, 0);
        // Readers take the columns from one of the files, so each file has them all.
        let all: BTreeSet<_> = schema.fields().iter().map(|field| field.name().clone()).collect();
        let files = Some(DataFiles::new(target, Vec::new(), all));
        Self { files, schema, place: place.directory_of(""), written: 0 }
    }

    /// Writes the chosen rows of the change set, and decodes each of its chunks once at most. Blocks on the disk.
    pub async fn write_chosen(
        &mut self,
        changes: &ChangeSet,
        chosen: &BTreeMap<ChunkIndex, RowSet>,
        operations: &Operations,
    ) -> Result<(), Error> {
        let mut operations = operations.reader();
        for (chunk, rows) in chosen {
            let batch = changes.batch(*chunk)?;
            let indices: Vec<u32> = rows.iter().filter_map(|row| u32::try_from(row).ok()).collect();
            let of_rows = operations.of(*chunk)?;
            let operations: Vec<_> = indices.iter().map(|row| of_rows.get(&(*chunk, *row)).copied()).collect();
            let rows = take_record_batch(&batch, &UInt32Array::from(indices))
                .and_then(|rows| with_operations(&rows, &operations))
                .map_err(Error::spool)?;
            self.write(&rows).await?;
        }
        Ok(())
    }

    pub async fn write_removals(&mut self, removals: &[Removal]) -> Result<(), Error> {
        for removals in removals.chunks(BATCH_ROWS) {
            let rows = rows_of_removals(removals).map_err(Error::spool)?;
            self.write(&rows).await?;
        }
        Ok(())
    }

    async fn write(&mut self, rows: &RecordBatch) -> Result<(), Error> {
        let Some(files) = &mut self.files else { return Ok(()) };
        files.write(rows).await.map_err(|error| Error::delta(&self.place, error))?;
        self.written += rows.num_rows() as u64;
        Ok(())
    }

    /// Ends the files: how many rows they have, and which columns of the table; none where no row was written.
    pub async fn finish(&mut self) -> Result<(u64, Vec<String>), Error> {
        let Some(files) = self.files.take() else { return Ok((0, Vec::new())) };
        files.finish().await.map_err(|error| Error::delta(&self.place, error))?;
        if self.written == 0 {
            return Ok((0, Vec::new()));
        }
        let columns = self.schema.fields().iter().skip(control_fields().len());
        Ok((self.written, columns.map(|field| field.name().clone()).collect()))
    }
}

/// Writes the ids of all rows and deletions of the change set, those of duplicates as well. Blocks on the disk.
pub async fn write_ids(place: &Place, changes: &ChangeSet) -> Result<(), Error> {
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, true)]));
    let target = FileTarget::new(Arc::clone(&place.store), Arc::clone(&schema), None, 1);
    let mut files = DataFiles::new(target, Vec::new(), BTreeSet::new());
    let of_rows = changes.chunks().map(|chunk| copied_ids(&changes.batch(chunk)?).map_err(Error::spool));
    let of_deletions = changes.deletions().map(|ids| Ok(StringArray::from_iter_values(ids?)));
    for ids in of_rows.chain(of_deletions) {
        let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(ids?)]).map_err(Error::spool)?;
        if rows.num_rows() > 0 {
            files.write(&rows).await.map_err(|error| place.failed(error))?;
        }
    }
    files.finish().await.map(|_| ()).map_err(|error| place.failed(error))
}

fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn control_fields() -> Vec<FieldRef> {
    let fields = [
        (OPERATION, DataType::Utf8),
        (TARGET_ID, DataType::Utf8),
        (SEEN_HASH, DataType::Int64),
        (SEEN_TRANSACTION_TIME, instant()),
    ];
    fields.into_iter().map(|(name, data_type)| Arc::new(Field::new(name, data_type, true))).collect()
}

/// The ids of rows of the change set, of which all have one. They are copied: the columns of a chunk share one buffer,
/// and ids that wait to be written would keep it in memory.
fn copied_ids(rows: &RecordBatch) -> Result<StringArray, ArrowError> {
    Ok(ids_of(rows)?.iter().collect())
}

fn ids_of(rows: &RecordBatch) -> Result<StringArray, ArrowError> {
    let ids = rows.column_by_name("id").and_then(|column| column.as_string_opt::<i32>());
    ids.cloned().ok_or_else(|| ArrowError::SchemaError("received rows have no ids".to_owned()))
}

/// The rows of the change set, with what is to be done with each; `None` inserts it.
fn with_operations(rows: &RecordBatch, operations: &[Option<Operation>]) -> Result<RecordBatch, ArrowError> {
    let ids = ids_of(rows)?;
    let words = operations.iter().map(|operation| match operation {
        Some(Operation::Update(_)) => UPDATE,
        None | Some(Operation::InsertBeside) => INSERT,
    });
    let targets = ids.iter().zip(operations).map(|(id, operation)| match operation {
        Some(Operation::InsertBeside) => None,
        None | Some(Operation::Update(_)) => id,
    });
    let seen = operations.iter().map(|operation| match operation {
        Some(Operation::Update(seen)) => *seen,
        None | Some(Operation::InsertBeside) => Seen::default(),
    });
    let control = control_columns(words.map(Some).collect(), targets.collect(), &seen.collect::<Vec<_>>());
    let fields = control_fields().into_iter().chain(rows.schema().fields().iter().cloned()).collect::<Vec<_>>();
    let columns = control.into_iter().chain(rows.columns().iter().cloned()).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

fn rows_of_removals(removals: &[Removal]) -> Result<RecordBatch, ArrowError> {
    let words = removals.iter().map(|removal| Some(if removal.seen.is_some() { DELETE } else { DELETE_ALL }));
    let ids: StringArray = removals.iter().map(|removal| Some(removal.id.as_str())).collect();
    let seen: Vec<_> = removals.iter().map(|removal| removal.seen.unwrap_or_default()).collect();
    RecordBatch::try_new(Arc::new(Schema::new(control_fields())), control_columns(words.collect(), ids, &seen))
}

/// In the order of [`control_fields`].
fn control_columns(words: StringArray, targets: StringArray, seen: &[Seen]) -> Vec<ArrayRef> {
    let hashes: Int64Array = seen.iter().map(|seen| seen.hash).collect();
    let times: TimestampMicrosecondArray = seen.iter().map(|seen| seen.transaction_time_micros).collect();
    vec![Arc::new(words), Arc::new(targets), Arc::new(hashes), Arc::new(times.with_timezone("UTC"))]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staged_row_says_what_it_does_and_which_stored_row_it_was_decided_for() {
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Utf8, true)]));
        let ids = Arc::new(StringArray::from(vec!["a", "b", "c"]));
        let rows = RecordBatch::try_new(schema, vec![ids]).unwrap();
        let seen = Seen { hash: Some(-7), transaction_time_micros: Some(5) };
        let staged = with_operations(&rows, &[None, Some(Operation::Update(seen)), Some(Operation::InsertBeside)]);
        let staged = staged.unwrap();
        let texts = |name| staged.column_by_name(name).unwrap().as_string::<i32>().iter().collect::<Vec<_>>();
        assert_eq!(texts(OPERATION), [Some("insert"), Some("update"), Some("insert")]);
        assert_eq!(texts(TARGET_ID), [Some("a"), Some("b"), None]);
        let hashes = staged.column_by_name(SEEN_HASH).unwrap();
        assert_eq!(
            hashes.as_primitive::<arrow::datatypes::Int64Type>().iter().collect::<Vec<_>>(),
            [None, Some(-7), None]
        );
    }

    #[test]
    fn a_removal_without_a_seen_row_removes_all_rows_of_its_id() {
        let removals =
            [Removal { id: "a".to_owned(), seen: Some(Seen::default()) }, Removal { id: "b".to_owned(), seen: None }];
        let staged = rows_of_removals(&removals).unwrap();
        let words = staged.column_by_name(OPERATION).unwrap().as_string::<i32>();
        assert_eq!(words.iter().collect::<Vec<_>>(), [Some("delete"), Some("delete-all")]);
    }
}
