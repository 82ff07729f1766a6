//! Upsert: a change set and a table become one commit.
//!
//! Probe where the ids of the change set lie, decide per id, write, commit. Files without a replaced or deleted row are
//! not touched; the others are written again without those rows, a batch at a time. Each row of the change set ends in
//! exactly one of the [`Counts`].

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{BooleanArray, RecordBatch, new_null_array},
    compute::{cast, filter_record_batch},
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
};
use deltalake::{
    DeltaTableError,
    datafile::writer::{DeltaWriter, WriterConfig},
    kernel::{Action, LogicalFileView},
    table::config::TablePropertiesExt as _,
};
use futures::StreamExt as _;
use parquet::{
    basic::{Compression, ZstdLevel},
    file::properties::{EnabledStatistics, WriterProperties},
    schema::types::ColumnPath,
};

use super::{
    ChangeSet, Error, OWN_COLUMNS, Table, arrow_schema,
    commit::{self, Outcome},
    decide::{Columns, Decision},
};
use crate::fhir::TransactionTime;

/// What a commit is for.
#[derive(Clone, Debug)]
pub struct Upsert {
    /// Names the export in the log of the table.
    pub app_id: String,
    /// Only rows with this `_sync_source` are looked at.
    pub source: String,
    /// What the commit makes the table's watermark; without one the rows are upserted and the watermark stays.
    pub watermark: Option<TransactionTime>,
    /// The number of the run, for people who read the table's history.
    pub run: u64,
    /// Set where the change set is everything that there is: rows that it does not have are removed.
    pub reconcile: Option<Reconcile>,
}

/// How rows are removed that a full refresh no longer brings. Servers that never speak of deletions leave
/// no other way to notice them.
#[derive(Clone, Copy, Debug)]
pub struct Reconcile {
    /// When more rows than this are gone, and they are more than this share of those that were stored, none is removed:
    /// that is a server in trouble, not a deletion (rule 98).
    pub max_gone: u64,
    pub max_gone_percent: f64,
}

/// What happened to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub version: u64,
    pub counts: Counts,
    /// Bytes of data files written.
    pub bytes_written: u64,
}

/// What became of the rows and deletions of a change set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub inserted: u64,
    pub updated: u64,
    /// Equal to what was there already; a deletion of an id that was not there counts here.
    pub unchanged: u64,
    /// Older than what was there.
    pub stale: u64,
    /// Superseded within the same export.
    pub duplicate: u64,
    pub deleted: u64,
    /// Rows that a full refresh no longer brought, removed. They were not received, so they are no part of the total.
    pub removed: u64,
    /// The same, but too many to believe: they are still there.
    pub gone: u64,
}

impl Counts {
    pub fn total(&self) -> u64 {
        self.inserted + self.updated + self.unchanged + self.stale + self.duplicate + self.deleted
    }
}

/// How often the whole upsert is done again because others changed the table in between.
const ATTEMPTS: u32 = 5;

/// Files of about this size are what readers of a lake like.
const TARGET_FILE_BYTES: u64 = 128 * 1024 * 1024;

impl Table {
    /// Brings the changes into the table. Encoding and decoding block; the caller gives this a thread of its own.
    pub async fn upsert(mut self, changes: &mut ChangeSet, upsert: &Upsert) -> Result<Committed, Error> {
        for _ in 0..ATTEMPTS {
            self.check_ours(changes.schema())?;
            let decision = self.decide(changes, upsert).await?;
            self.check_balance(changes, &decision.counts)?;
            let actions = self.write(changes, &decision).await?;
            match commit::commit(&mut self.delta, &self.place, actions, &decision.counts, upsert).await? {
                Outcome::Committed { bytes_written } => {
                    return Ok(Committed { version: self.version(), counts: decision.counts, bytes_written });
                }
                Outcome::Overtaken => {
                    tracing::warn!(resource_type = %self.resource_type, "another writer changed the table, merging again");
                }
            }
        }
        Err(Error::Conflict { resource_type: self.resource_type, attempts: ATTEMPTS })
    }

    fn check_ours(&self, schema: &SchemaRef) -> Result<(), Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let columns = arrow_schema(&self.delta).map_err(|error| self.failed(error))?;
        if let Some(missing) = schema.fields().iter().find(|field| columns.field_with_name(field.name()).is_err()) {
            return Err(Error::NotOurs {
                place: self.place.clone(),
                reason: format!("it has no column {}", missing.name()),
            });
        }
        if !snapshot.metadata().partition_columns().is_empty() {
            return Err(Error::Unsupported {
                place: self.place.clone(),
                feature: "partition columns".to_owned(),
                way_out: "move it away, so that it is made anew",
            });
        }
        Ok(())
    }

    fn check_balance(&self, changes: &ChangeSet, counts: &Counts) -> Result<(), Error> {
        if counts.total() == changes.received() {
            return Ok(());
        }
        Err(Error::Unbalanced {
            resource_type: self.resource_type,
            counts: format!("received {}, accounted for {counts:?}", changes.received()),
        })
    }

    /// Writes the new data files and says what goes and what comes.
    async fn write(&self, changes: &mut ChangeSet, decision: &Decision) -> Result<Vec<Action>, Error> {
        let mut actions = Vec::new();
        for (index, dead) in &decision.dead {
            let file = &decision.files[*index];
            actions.push(Action::Remove(file.remove_action(true)));
            actions.extend(self.rewrite(file, dead).await?);
        }
        if !decision.write.is_empty() {
            actions.extend(self.write_changes(changes, decision).await?);
        }
        Ok(actions)
    }

    /// The rows of a file that stay, in a file of the same columns.
    async fn rewrite(&self, file: &LogicalFileView, dead: &BTreeSet<usize>) -> Result<Vec<Action>, Error> {
        let mut batches = self.read(file, Columns::All).await?;
        let there = batches.schema().clone();
        let schema = self.columns_of_file(&self.columns()?, |name| there.field_with_name(name).is_ok())?;
        let mut writer = self.writer(&schema)?;
        let mut first_row = 0;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(|error| self.failed(error))?;
            let rows = first_row..first_row + batch.num_rows();
            first_row = rows.end;
            let alive = rows.map(|row| Some(!dead.contains(&row))).collect();
            writer = self.append(writer, &schema, &batch, &alive).await?;
        }
        self.close(writer).await
    }

    /// The chosen rows of the change set, in a file without the columns that are null in all of them.
    async fn write_changes(&self, changes: &mut ChangeSet, decision: &Decision) -> Result<Vec<Action>, Error> {
        let filled = changes.filled_columns().clone();
        let schema = self.columns_of_file(&self.columns()?, |name| filled.contains(name))?;
        let mut writer = self.writer(&schema)?;
        for (index, batch) in (0u32..).zip(changes.batches()?) {
            let batch = batch.map_err(Error::spool)?;
            let Some(rows) = decision.write.get(&index) else { continue };
            let chosen = (0u32..).take(batch.num_rows()).map(|row| Some(rows.contains(&row))).collect();
            writer = self.append(writer, &schema, &batch, &chosen).await?;
        }
        self.close(writer).await
    }

    fn columns(&self) -> Result<SchemaRef, Error> {
        arrow_schema(&self.delta).map_err(|error| self.failed(error))
    }

    /// Those of `columns` that a file has. Only whole top-level columns may be missing, and the leading ones never:
    /// statistics are counted from the left.
    pub(super) fn columns_of_file(&self, columns: &SchemaRef, has: impl Fn(&str) -> bool) -> Result<SchemaRef, Error> {
        let leading = self.leading_columns()?;
        let fields = columns.fields().iter().enumerate();
        let fields =
            fields.filter(|(index, field)| *index < leading || has(field.name())).map(|(_, field)| field.clone());
        Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
    }

    /// How many columns from the left have statistics, as the table itself says.
    fn leading_columns(&self) -> Result<usize, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let stated = snapshot.metadata().configuration().get("delta.dataSkippingNumIndexedCols");
        Ok(stated.and_then(|stated| stated.parse().ok()).unwrap_or(OWN_COLUMNS))
    }

    pub(super) async fn close(&self, writer: DeltaWriter) -> Result<Vec<Action>, Error> {
        let adds = writer.close().await.map_err(|error| self.failed(error))?;
        Ok(adds.into_iter().map(Action::Add).collect())
    }

    /// Appends the rows that `rows` says; on an error the writer is gone, and with it what it had written.
    pub(super) async fn append(
        &self,
        mut writer: DeltaWriter,
        schema: &SchemaRef,
        batch: &RecordBatch,
        rows: &BooleanArray,
    ) -> Result<DeltaWriter, Error> {
        let batch = filter_record_batch(batch, rows).and_then(|batch| align(&batch, schema));
        let batch = batch.map_err(|error| self.failed(error))?;
        if batch.num_rows() == 0 {
            return Ok(writer);
        }
        let Err(error) = writer.write(&batch).await else { return Ok(writer) };
        if let Err(abort) = writer.abort().await {
            tracing::warn!(error = %abort, "an unfinished data file was left behind; vacuum removes it");
        }
        Err(self.failed(error))
    }

    pub(super) fn writer(&self, schema: &SchemaRef) -> Result<DeltaWriter, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let config = WriterConfig::new(
            Arc::clone(schema),
            Vec::new(),
            Some(writer_properties(schema, self.leading_columns()?)),
            std::num::NonZeroU64::new(TARGET_FILE_BYTES),
            None,
            snapshot.table_config().num_indexed_cols(),
            None,
        );
        Ok(DeltaWriter::new(self.delta.object_store(), config))
    }

    pub(super) fn failed(&self, error: impl Into<DeltaTableError>) -> Error {
        Error::delta(&self.place, error)
    }
}

/// The columns of the table, in its order and types; a top-level column that the file does not have is null.
fn align(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
        Some(column) if column.data_type() == field.data_type() => Ok(Arc::clone(column)),
        Some(column) => cast(column, field.data_type()),
        None => Ok(new_null_array(field.data_type(), batch.num_rows())),
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect::<Result<_, _>>()?)
}

/// How every data file is written: `schema` are its columns, of which the first `leading` get statistics.
pub fn writer_properties(schema: &SchemaRef, leading: usize) -> WriterProperties {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        // Rows differ in size a thousandfold, so bytes bound a row group, not only rows.
        .set_max_row_group_row_count(Some(256 * 1024))
        .set_max_row_group_bytes(Some(128 * 1024 * 1024))
        // A thousand leaves with statistics make a footer that costs more than the ids.
        .set_statistics_enabled(EnabledStatistics::None);
    // Every value of these is different: a dictionary would be built in vain.
    let properties = ["id", "id_versioned", "_sync_hash", "resource_json"]
        .into_iter()
        .fold(properties, |properties, name| properties.set_column_dictionary_enabled(ColumnPath::from(name), false));
    let leading = schema.fields().iter().take(leading);
    leading
        .fold(properties, |properties, field| {
            properties.set_column_statistics_enabled(ColumnPath::from(field.name().as_str()), EnabledStatistics::Chunk)
        })
        .build()
}
