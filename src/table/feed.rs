//! The change data feed: what a commit did to each row, in files of its own for those who follow the table.
//!
//! A commit has change files or it has none: readers of one that has any look at nothing else, so its inserts are in them
//! too. A commit that only brings rows has none, for its data files say the same, as long as no row in them is dead.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
    error::ArrowError,
};
use deltalake::kernel::{Action, Add, AddCDCFile};
use futures::StreamExt as _;

use super::{
    ChangeSet, Error, Table,
    decide::Decision,
    deletion_vector::DeadRows,
    files::{DataFiles, Kind, Target},
    parallel::cores,
    stored::StoredFile,
};

pub(super) const ENABLE_CHANGE_DATA_FEED: &str = "delta.enableChangeDataFeed";

/// What readers of the feed tell apart, and a table without one need not.
#[derive(Default)]
pub(super) struct Feed {
    /// The dead rows of resources that are gone, by file. Other dead rows were replaced.
    pub deleted: BTreeMap<u32, DeadRows>,
    /// The rows of the change set that replace others, by part.
    pub updated: BTreeMap<u32, DeadRows>,
}

/// What one change file tells.
pub(super) enum Images {
    /// The rows that these files lose.
    Before(Vec<u32>),
    /// What is written of these parts of the change set.
    After(Range<u32>),
}

/// Dead rows for which a change file of their own is worth while.
const ROWS_PER_WRITER: u64 = 10_000;
/// The name of the protocol.
const CHANGE_TYPE: &str = "_change_type";

impl Decision {
    /// What must be told in change files; nothing where readers see it in the data files.
    pub(super) fn told(&self) -> Option<&Feed> {
        self.feed.as_ref().filter(|_| !self.dead.is_empty())
    }

    /// Will readers of the feed take every row that the data files of the commit bring for an insert?
    pub(super) fn is_told_by_data_files(&self) -> bool {
        self.feed.is_some() && self.dead.is_empty()
    }

    /// The files that lose rows, for as many threads as that is worth.
    pub(super) fn losing_files(&self) -> impl Iterator<Item = Vec<u32>> {
        let rows: u64 = self.dead.values().map(DeadRows::len).sum();
        let writers = usize::try_from(rows / ROWS_PER_WRITER).unwrap_or(usize::MAX).clamp(1, cores());
        let files: Vec<_> = self.dead.keys().copied().collect();
        let length = files.len().div_ceil(writers).max(1);
        files.chunks(length).map(<[u32]>::to_vec).collect::<Vec<_>>().into_iter()
    }
}

impl Table {
    /// Whether those who follow the table are promised change files: by the table itself, whoever decided it.
    pub(super) fn records_changes(&self) -> Result<bool, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let stated = snapshot.metadata().configuration().get(ENABLE_CHANGE_DATA_FEED);
        Ok(stated.is_some_and(|stated| stated.eq_ignore_ascii_case("true")))
    }

    /// Writes change files; never more than a batch of rows and a row group of the file in memory.
    pub(super) async fn write_images(
        &self,
        target: &Target,
        changes: &ChangeSet,
        decision: &Decision,
        feed: &Feed,
        images: &Images,
    ) -> Result<Vec<Action>, Error> {
        let target = Target { kind: Kind::Changes, columns: with_change_type(&target.columns), ..target.clone() };
        let mut files = DataFiles::new(target, Vec::new(), changes.filled_columns());
        match images {
            Images::Before(of) => {
                for file in of {
                    let deleted = feed.deleted.get(file);
                    let change = |row| if has(deleted, row) { "delete" } else { "update_preimage" };
                    let Some(dead) = decision.dead.get(file) else { continue };
                    self.copy_stored(&decision.files[*file as usize], dead, change, &mut files).await?;
                }
            }
            Images::After(parts) => {
                let appended: BTreeMap<_, _> = changes.files().into_iter().flatten().collect();
                for (part, chosen) in decision.write.range(parts.clone()) {
                    let updated = feed.updated.get(part);
                    let change = |row| if has(updated, row) { "update_postimage" } else { "insert" };
                    if let Some(stored) = appended.get(part) {
                        self.copy_stored(stored, chosen, change, &mut files).await?;
                    } else {
                        let rows = self.chosen_rows(changes, *part, chosen)?;
                        self.write_changed(&rows, chosen.iter().map(change), &mut files).await?;
                    }
                }
            }
        }
        let written = files.finish().await.map_err(|error| self.failed(error))?;
        Ok(written.into_iter().map(change_file).collect())
    }

    /// The rows at these places, with what `change` says of each.
    async fn copy_stored(
        &self,
        stored: &StoredFile,
        places: &DeadRows,
        change: impl Fn(u64) -> &'static str,
        files: &mut DataFiles,
    ) -> Result<(), Error> {
        let mut batches = self.rows_of(stored, places).await?;
        let mut changes = places.iter().map(change);
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            let changes = changes.by_ref().take(batch.num_rows());
            self.write_changed(&batch, changes, files).await?;
        }
        Ok(())
    }

    async fn write_changed(
        &self,
        rows: &RecordBatch,
        changes: impl Iterator<Item = &'static str>,
        files: &mut DataFiles,
    ) -> Result<(), Error> {
        let rows = changed(rows, changes).map_err(|error| self.failed(error))?;
        files.write(&rows).await.map_err(|error| self.failed(error))?;
        Ok(())
    }
}

fn has(rows: Option<&DeadRows>, row: u64) -> bool {
    rows.is_some_and(|rows| rows.contains(row))
}

/// The rows, each with what happened to it.
fn changed(rows: &RecordBatch, changes: impl Iterator<Item = &'static str>) -> Result<RecordBatch, ArrowError> {
    let changes = StringArray::from_iter_values(changes);
    let columns = rows.columns().iter().cloned().chain([Arc::new(changes) as _]);
    RecordBatch::try_new(with_change_type(&rows.schema()), columns.collect())
}

fn with_change_type(columns: &SchemaRef) -> SchemaRef {
    let change_type = Arc::new(Field::new(CHANGE_TYPE, DataType::Utf8, true));
    Arc::new(Schema::new(columns.fields().iter().cloned().chain([change_type]).collect::<Vec<_>>()))
}

/// It is no part of the table's data, so it never changes them.
fn change_file(file: Add) -> Action {
    let Add { path, size, partition_values, .. } = file;
    Action::Cdc(AddCDCFile { path, size, partition_values, data_change: false, tags: None })
}
