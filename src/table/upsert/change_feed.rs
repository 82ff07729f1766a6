//! The change data feed: change files say what a commit did to each row, for readers that follow the table.
//!
//! A preimage is a row as it was before an update, a postimage the row as it is after the update. Change files hold
//! both, and the inserted and deleted rows, each with its change type. Readers of a commit with change files read
//! nothing else, so the inserts have to be in them too. A commit that only inserts needs none, because readers take its
//! data files as the feed; then no row in those files may be marked as deleted.

use std::{collections::BTreeMap, pin::pin, sync::Arc};

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
use deltalake::kernel::{Action, Add, AddCDCFile};
use futures::{Stream, StreamExt as _};

use crate::table::{
    Error, Table,
    data_file::deletion_vector::RowSet,
    data_file::rolling::{DataFiles, FileKind, FileTarget},
    data_file::stored::{FileIndex, StoredFile},
    parallel::cores,
    upsert::decide::{Decision, Feed},
    upsert::write_task::WriteTask,
    upsert::writer::Writer,
};

/// Fewer deleted rows than this are not worth another thread and change file.
const MIN_ROWS_PER_THREAD: u64 = 10_000;
/// The column of change files that the Delta protocol asks for.
const CHANGE_TYPE: &str = "_change_type";

/// The feed, if the commit needs change files.
pub fn feed_in_change_files(decision: &Decision) -> Option<&Feed> {
    decision.feed.as_ref().filter(|_| !decision.dead.is_empty())
}

/// Do readers of the feed take every row in the commit's data files for an insert?
pub fn feed_in_data_files(decision: &Decision) -> bool {
    decision.feed.is_some() && decision.dead.is_empty()
}

/// The files with rows that the commit deletes, divided among as many threads as are worth it.
pub fn files_with_preimages(decision: &Decision) -> Vec<Vec<FileIndex>> {
    let rows: u64 = decision.dead.values().map(RowSet::len).sum();
    let threads = usize::try_from(rows / MIN_ROWS_PER_THREAD).unwrap_or(usize::MAX).clamp(1, cores());
    let mut files: Vec<_> = decision.dead.keys().copied().collect();
    files.sort_by_cached_key(|file| decision.file(*file).partition());
    files.chunks(files.len().div_ceil(threads).max(1)).map(<[FileIndex]>::to_vec).collect()
}

/// Writes the rows of `files` that are replaced or removed, into change files of the partitions that the rows were in.
/// Never more than a batch of rows and a row group of the change file in memory.
pub async fn write_preimages(writer: &Writer<'_>, feed: &Feed, files: &[FileIndex]) -> Result<Vec<Action>, Error> {
    let Writer { table, changes, decision, .. } = writer;
    let (target, filled) = (target_of_changes(writer), changes.filled_columns());
    let stored = |file: &FileIndex| decision.file(*file);
    let mut written = Vec::new();
    for same in files.chunk_by(|one, other| stored(one).partition() == stored(other).partition()) {
        let partition = same.first().map(|file| stored(file).partition()).unwrap_or_default();
        let mut change_files = DataFiles::new(target.clone(), partition, filled.clone());
        for file in same {
            let (Some(dead), deleted) = (decision.dead.get(file), feed.deleted.get(file)) else { continue };
            let change_type = |row| if has(deleted, row) { "delete" } else { "update_preimage" };
            let mut batches = pin!(rows_with_change_type(table, stored(file), dead, change_type).await?);
            while let Some(batch) = batches.next().await {
                change_files.write(&batch?).await.map_err(|error| table.failed(error))?;
            }
        }
        written.extend(change_files.finish().await.map_err(|error| table.failed(error))?);
    }
    Ok(written.into_iter().map(change_file).collect())
}

/// Writes the chosen rows of a task into change files. The same holds in memory.
pub async fn write_postimages(writer: &Writer<'_>, feed: &Feed, task: &WriteTask) -> Result<Vec<Action>, Error> {
    let Writer { table, changes, decision, .. } = writer;
    let first_load: BTreeMap<_, _> = changes.files().into_iter().flatten().collect();
    let mut files = task.files(writer, target_of_changes(writer));
    for chunk in &task.chunks {
        let (Some(chosen), updated) = (decision.chosen.get(chunk), feed.updated.get(chunk)) else { continue };
        let change_type = |row| if has(updated, row) { "update_postimage" } else { "insert" };
        if let Some(stored) = first_load.get(chunk) {
            let mut batches = pin!(rows_with_change_type(table, stored, chosen, change_type).await?);
            while let Some(batch) = batches.next().await {
                files.write(&batch?).await.map_err(|error| table.failed(error))?;
            }
        } else {
            let rows = writer.chosen_rows(*chunk, chosen)?;
            let rows = with_change_types(&rows, chosen.iter().map(change_type));
            files.write(&rows.map_err(|error| table.failed(error))?).await.map_err(|error| table.failed(error))?;
        }
    }
    let written = files.finish().await.map_err(|error| table.failed(error))?;
    Ok(written.into_iter().map(change_file).collect())
}

fn target_of_changes(writer: &Writer<'_>) -> FileTarget {
    let columns = with_change_type_column(&writer.target.columns);
    FileTarget { kind: FileKind::Changes, columns, ..writer.target.clone() }
}

/// These rows of a file, each with its change type.
async fn rows_with_change_type(
    table: &Table,
    stored: &StoredFile,
    rows: &RowSet,
    change_type: impl Fn(u64) -> &'static str,
) -> Result<impl Stream<Item = Result<RecordBatch, Error>>, Error> {
    let batches = stored.rows_of(rows).await.map_err(|error| table.failed(error))?;
    let mut change_types = rows.clone().into_iter().map(change_type);
    Ok(batches.map(move |batch| {
        let batch = batch.map_err(|error| table.failed(error))?;
        let of_batch = change_types.by_ref().take(batch.num_rows());
        with_change_types(&batch, of_batch).map_err(|error| table.failed(error))
    }))
}

fn has(rows: Option<&RowSet>, row: u64) -> bool {
    rows.is_some_and(|rows| rows.contains(row))
}

fn with_change_types(
    rows: &RecordBatch,
    change_types: impl Iterator<Item = &'static str>,
) -> Result<RecordBatch, ArrowError> {
    let change_types = StringArray::from_iter_values(change_types);
    let columns = rows.columns().iter().cloned().chain([Arc::new(change_types) as _]);
    RecordBatch::try_new(with_change_type_column(&rows.schema()), columns.collect())
}

fn with_change_type_column(columns: &SchemaRef) -> SchemaRef {
    let change_type = Arc::new(Field::new(CHANGE_TYPE, DataType::Utf8, true));
    Arc::new(Schema::new(columns.fields().iter().cloned().chain([change_type]).collect::<Vec<_>>()))
}

/// The action that adds a change file. Change files are not part of the table's data, so they do not change it.
fn change_file(file: Add) -> Action {
    let Add { path, size, partition_values, .. } = file;
    Action::Cdc(AddCDCFile { path, size, partition_values, data_change: false, tags: None })
}
