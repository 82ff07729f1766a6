//! Writing: a decision becomes data files, deletion vectors and the actions that name them. Nothing is committed here.

use std::{fs::File, sync::Arc};

use arrow::{
    array::{RecordBatch, new_null_array},
    error::ArrowError,
};
use deltalake::kernel::{Action, Add};
use futures::{StreamExt, stream};
use rustix::fs::{Advice, fadvise};
use serde_json::{Value, json};
use tokio::runtime::Handle;

use crate::table::{
    ChangeSet, Error, Table, UpdateMode,
    change_set::entry::ChunkIndex,
    commit::remove,
    data_file::deletion_vector::{self, RowSet},
    data_file::rolling::DataFiles,
    data_file::stored::{FileIndex, StoredFile, rows_on_disk},
    parallel::{cores, in_parallel},
    properties::ENABLE_DELETION_VECTORS,
    upsert::change_feed::{
        feed_in_change_files, feed_in_data_files, files_with_preimages, write_postimages, write_preimages,
    },
    upsert::decide::{Decision, Feed},
    upsert::write_task::{WriteTask, write_tasks},
    upsert::writer::Writer,
};

/// A data file with rows that the commit deletes, or a file of a first load.
struct TouchedFile<'files> {
    stored: &'files StoredFile,
    /// Is it in the log already? Else this run has written it.
    committed: bool,
    /// Deleted ones included.
    rows: u64,
    /// All rows that are deleted after the commit.
    dead: RowSet,
}

/// A file with more deleted rows than this is rewritten, because readers would read too many rows that they skip.
const MAX_DEAD_PERCENT: u64 = 30;

/// What one thread writes.
enum Output<'files> {
    Survivors(&'files TouchedFile<'files>),
    Changes(&'files WriteTask),
    Preimages(&'files Feed, Vec<FileIndex>),
    Postimages(&'files Feed, &'files WriteTask),
}

/// Writes what the decision asks for; returns the actions of the commit. Blocks.
pub async fn write(table: &Table, changes: &ChangeSet, decision: &Decision) -> Result<Vec<Action>, Error> {
    let first_load = changes.files();
    let touched = touched_files(table, decision, first_load.as_deref().unwrap_or_default()).await?;
    let of_first_load = touched.iter().filter(|touched| !touched.committed);
    let live_of_first_load = first_load.as_ref().map(|_| of_first_load.map(TouchedFile::live).sum());
    let marks = may_mark_deleted(table)?;
    let (rewritten, marked): (Vec<_>, Vec<_>) =
        touched.into_iter().partition(|touched| touched.is_rewritten(marks, decision));
    let writer = Writer::new(table, changes, decision)?;
    let tasks = write_tasks(&writer)?;
    let mut outputs: Vec<_> = rewritten.iter().map(Output::Survivors).collect();
    if first_load.is_none() {
        outputs.extend(tasks.iter().map(Output::Changes));
    }
    if let Some(feed) = feed_in_change_files(decision) {
        outputs.extend(files_with_preimages(decision).into_iter().map(|files| Output::Preimages(feed, files)));
        outputs.extend(tasks.iter().map(|task| Output::Postimages(feed, task)));
    }
    let writer = writer.for_threads(cores().min(outputs.len()));
    let runtime = Handle::current();
    let written = in_parallel(&outputs, |output| {
        runtime.block_on(async {
            match output {
                Output::Survivors(touched) => write_survivors(&writer, touched).await,
                Output::Changes(task) => write_changes(&writer, task).await,
                Output::Preimages(feed, files) => write_preimages(&writer, feed, files).await,
                Output::Postimages(feed, task) => write_postimages(&writer, feed, task).await,
            }
        })
    })?;
    let chosen: u64 = decision.chosen.values().map(RowSet::len).sum();
    let in_files = match live_of_first_load {
        Some(live) => live,
        None => rows_of_changes(outputs.iter().zip(&written)),
    };
    check_written(table, chosen, in_files)?;
    let mut actions = mark(table, marked).await?;
    let removed = rewritten.iter().filter(|touched| touched.committed);
    actions.extend(removed.map(|touched| Action::Remove(remove(touched.stored))));
    actions.extend(decision.damaged.iter().map(|file| Action::Remove(remove(&file.stored))));
    actions.extend(written.into_iter().flatten());
    Ok(actions)
}

/// Every chosen row is in one of the new files: none was left out between the spool and the files of its partition, or
/// with a file of a first load that could not be finished.
fn check_written(table: &Table, chosen: u64, in_files: u64) -> Result<(), Error> {
    if in_files == chosen {
        return Ok(());
    }
    let counts = format!("{chosen} rows were to be written, and {in_files} were");
    Err(Error::Unbalanced { table: table.name, counts })
}

fn rows_of_changes<'a>(written: impl Iterator<Item = (&'a Output<'a>, &'a Vec<Action>)>) -> u64 {
    let of_changes = written.filter(|(output, _)| matches!(output, Output::Changes(_)));
    of_changes.flat_map(|(_, actions)| actions).map(rows_of).sum()
}

fn rows_of(action: &Action) -> u64 {
    let Action::Add(Add { stats: Some(stats), .. }) = action else { return 0 };
    let stats: Option<Value> = serde_json::from_str(stats).ok();
    stats.and_then(|stats| stats.get("numRecords")?.as_u64()).unwrap_or_default()
}

async fn touched_files<'files>(
    table: &Table,
    decision: &'files Decision,
    first_load: &'files [(ChunkIndex, StoredFile)],
) -> Result<Vec<TouchedFile<'files>>, Error> {
    let mut touched = Vec::new();
    for (file, dead) in &decision.dead {
        let stored = decision.file(*file);
        let rows = stored.row_count().await.map_err(|error| table.failed(error))?;
        touched.push(TouchedFile { stored, committed: true, rows, dead: dead | &stored.dead });
    }
    for (chunk, stored) in first_load {
        let rows = stored.row_count().await.map_err(|error| table.failed(error))?;
        let mut dead = RowSet::new();
        dead.insert_range(0..rows);
        if let Some(chosen) = decision.chosen.get(chunk) {
            dead -= chosen;
        }
        touched.push(TouchedFile { stored, committed: false, rows, dead });
    }
    Ok(touched)
}

/// Are deleted rows marked in deletion vectors? Only if the configuration asks for it and the table still allows it:
/// somebody else may have switched its property off.
fn may_mark_deleted(table: &Table) -> Result<bool, Error> {
    let is_wanted = table.root.update_mode == UpdateMode::DeletionVectors;
    Ok(is_wanted && table.property_is_true(ENABLE_DELETION_VECTORS)?)
}

impl TouchedFile<'_> {
    fn live(&self) -> u64 {
        self.rows - self.dead.range_cardinality(0..self.rows)
    }

    fn is_rewritten(&self, marks: bool, decision: &Decision) -> bool {
        let some_live = !self.dead.is_empty() && self.dead.len() < self.rows;
        // Not every reader of the feed applies the deletion vector of a new file.
        let is_read_as_feed = !self.committed && feed_in_data_files(decision);
        some_live && (!marks || is_read_as_feed || self.dead.len() * 100 > self.rows * MAX_DEAD_PERCENT)
    }
}

/// Marks the deleted rows of files that stay. All vectors are written to one file.
async fn mark(table: &Table, marked: Vec<TouchedFile<'_>>) -> Result<Vec<Action>, Error> {
    let mut actions = Vec::new();
    let mut with_dead = Vec::new();
    for touched in marked {
        if touched.committed {
            actions.push(Action::Remove(remove(touched.stored)));
        }
        if touched.dead.is_empty() {
            actions.push(Action::Add(touched.stored.add.clone()));
        } else if touched.dead.len() < touched.rows {
            with_dead.push(touched);
        }
    }
    if with_dead.is_empty() {
        return Ok(actions);
    }
    let vectors: Vec<_> = with_dead.iter().map(|touched| touched.dead.clone()).collect();
    let store = table.delta.object_store();
    let descriptors = deletion_vector::write(store.as_ref(), &vectors).await.map_err(|error| table.failed(error))?;
    actions.extend(with_dead.into_iter().zip(descriptors).map(|(touched, descriptor)| {
        let add = &touched.stored.add;
        Action::Add(Add {
            deletion_vector: Some(descriptor),
            stats: Some(with_loose_bounds(add.stats.as_deref(), touched.rows)),
            data_change: true,
            ..add.clone()
        })
    }));
    Ok(actions)
}

/// The live rows of a file, in a new file of the same columns. In memory are a batch of its rows, a row group of the new
/// file, and, of a file in a store, one of the old file as well.
async fn write_survivors(writer: &Writer<'_>, touched: &TouchedFile<'_>) -> Result<Vec<Action>, Error> {
    let table = writer.table;
    let footer = touched.stored.footer().await.map_err(|error| table.failed(error))?;
    let columns = footer.schema().fields().iter().map(|field| field.name().clone()).collect();
    let mut files = DataFiles::new(writer.target.clone(), touched.stored.partition(), columns);
    let dead = &touched.dead;
    let mut batches = match on_disk(table, touched.stored) {
        Some(file) => stream::iter(rows_on_disk(file, footer, dead)).boxed(),
        None => touched.stored.rows_without(footer, dead).map_err(|error| table.failed(error))?.boxed(),
    };
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|error| table.failed(error))?;
        let batch =
            if touched.stored.own { batch } else { without_hash(&batch).map_err(|error| table.failed(error))? };
        if batch.num_rows() > 0 {
            files.write(&batch).await.map_err(|error| table.failed(error))?;
        }
    }
    let written = files.finish().await.map_err(|error| table.failed(error))?;
    Ok(written.into_iter().map(Action::Add).collect())
}

/// The file, if the table is in a local folder. One that is elsewhere, as those of a shallow clone are, is read through
/// the store.
fn on_disk(table: &Table, stored: &StoredFile) -> Option<File> {
    let folder = table.root.folder.as_ref()?.join(table.name.directory());
    let file = File::open(folder.join(stored.file.path.as_ref())).ok()?;
    let is_it = file.metadata().is_ok_and(|metadata| metadata.len() == stored.file.size_bytes);
    // The reader goes from column to column; the kernel reads the file from its beginning to its end. It may decline.
    let _ = fadvise(&file, 0, None, Advice::WillNeed);
    is_it.then_some(file)
}

/// The chosen rows of the change set.
async fn write_changes(writer: &Writer<'_>, task: &WriteTask) -> Result<Vec<Action>, Error> {
    let table = writer.table;
    let mut files = task.files(writer, writer.target.clone());
    for chunk in &task.chunks {
        let Some(chosen) = writer.decision.chosen.get(chunk) else { continue };
        let rows = writer.chosen_rows(*chunk, chosen)?;
        files.write(&rows).await.map_err(|error| table.failed(error))?;
    }
    let written = files.finish().await.map_err(|error| table.failed(error))?;
    Ok(written.into_iter().map(Action::Add).collect())
}

/// Rows that another writer changed may still carry their old hash. It would be trusted in a file of ours, so it is
/// dropped.
fn without_hash(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = rows.schema();
    let columns = schema.fields().iter().zip(rows.columns()).map(|(field, column)| match field.name().as_str() {
        "_sync_hash" => new_null_array(field.data_type(), rows.num_rows()),
        _ => Arc::clone(column),
    });
    RecordBatch::try_new(Arc::clone(&schema), columns.collect())
}

/// The statistics of a file with deleted rows, marked as not tight: the bounds may be those of deleted rows.
fn with_loose_bounds(stats: Option<&str>, rows: u64) -> String {
    let mut stats = stats.and_then(|stats| serde_json::from_str(stats).ok()).unwrap_or_else(|| json!({}));
    if let Some(stats) = stats.as_object_mut() {
        stats.insert("numRecords".to_owned(), rows.into());
        stats.insert("tightBounds".to_owned(), false.into());
    }
    stats.to_string()
}
