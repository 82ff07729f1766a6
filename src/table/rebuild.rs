//! A rebuild: every row made anew from its line, in one commit.
//!
//! The only way to change what lies inside a struct, and to fill columns that a table gained after its rows were written.
//! No row is asked of the server. What the sync wrote of a row (source, times, job) stays.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{Array as _, AsArray as _, RecordBatch},
    compute::cast,
    datatypes::DataType,
};
use deltalake::kernel::{Action, Add, MetadataExt as _};
use futures::StreamExt as _;

use super::{
    Committed, Counts, Error, Table, TableDefinition, Upsert,
    commit::{self, CommitOutcome, remove},
    data_file::partitioned::{PartitionFilter, PartitionedFiles},
    data_file::rolling::FileTarget,
    data_file::stored::StoredFile,
    root::{columns, kernel_schema},
};

/// What is kept of a row as it was.
const KEPT: [&str; 4] = ["_sync_source", "_sync_at", "_sync_transaction_time", "_sync_job"];

/// Into which the rows of one file may go at the same time.
const PARTITIONS_PER_FILE: usize = 4;

impl Table {
    /// Gives the table exactly the columns of `definition`. `decode` makes a row of each line, in order, or says why not.
    /// Blocks on encoding and decoding; the caller gives this a thread of its own. An upsert that comes first wins: the
    /// rebuild is then refused as a conflict.
    pub async fn rebuild(
        mut self,
        definition: &TableDefinition,
        decode: &(dyn Fn(Vec<Vec<u8>>) -> Result<RecordBatch, String> + Sync),
    ) -> Result<Committed, Error> {
        self.check_partitions()?;
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let mut metadata = snapshot
            .metadata()
            .clone()
            .with_schema(&kernel_schema(&columns(definition, self.partitioned_by()), &self.place)?)
            .map_err(|error| self.failed(error))?;
        for (name, value) in &definition.properties {
            metadata =
                metadata.add_config_key((*name).to_owned(), value.clone()).map_err(|error| self.failed(error))?;
        }
        let mut actions = vec![Action::Metadata(metadata)];
        let mut rows = 0;
        let target =
            FileTarget { columns: Arc::clone(&definition.schema), leading: definition.leading, ..self.target()? };
        for stored in self.stored_files().await? {
            actions.push(Action::Remove(remove(&stored)));
            let (adds, count) = self.rebuild_file(&stored, &target, decode).await?;
            actions.extend(adds.into_iter().map(Action::Add));
            rows += count;
        }
        let counts = Counts { updated: rows, ..Counts::default() };
        match commit::commit(&mut self, actions, &counts, &Upsert::default()).await? {
            CommitOutcome::Committed { bytes_written } => {
                Ok(Committed { version: self.version(), counts, bytes_written, foreign: 0 })
            }
            CommitOutcome::Overtaken => Err(Error::Conflict { table: self.name, attempts: 1 }),
        }
    }

    async fn rebuild_file(
        &self,
        stored: &StoredFile,
        target: &FileTarget,
        decode: &(dyn Fn(Vec<Vec<u8>>) -> Result<RecordBatch, String> + Sync),
    ) -> Result<(Vec<Add>, u64), Error> {
        // A newer version may read a date otherwise.
        let mut files = PartitionedFiles::new(
            target.clone(),
            BTreeSet::new(),
            PartitionFilter::All { max_open: PARTITIONS_PER_FILE },
        );
        let mut count = 0;
        let mut batches = self.rows(stored).await?;
        while let Some(batch) = batches.next().await {
            let rows = self.rebuilt(&batch?, decode)?;
            count += rows.num_rows() as u64;
            files.write(&rows).await.map_err(|error| self.failed(error))?;
        }
        Ok((files.finish().await.map_err(|error| self.failed(error))?, count))
    }

    /// The rows of a batch, decoded anew, with what is kept of them.
    fn rebuilt(
        &self,
        batch: &RecordBatch,
        decode: &(dyn Fn(Vec<Vec<u8>>) -> Result<RecordBatch, String> + Sync),
    ) -> Result<RecordBatch, Error> {
        let failed = |reason: String| Error::Rebuild { place: self.place.clone(), reason };
        let json = batch.column_by_name("resource_json").map(|column| cast(column, &DataType::Utf8));
        let json = json.transpose().map_err(|error| self.failed(error))?;
        let json = json.filter(|json| json.null_count() == 0);
        let json = json.ok_or_else(|| failed("rows have no resource_json to be made from".to_owned()))?;
        let lines: Vec<_> = json.as_string::<i32>().iter().flatten().map(|line| line.as_bytes().to_vec()).collect();
        let rows = decode(lines).map_err(failed)?;
        if rows.num_rows() != batch.num_rows() {
            return Err(failed(format!("{} of its lines are no rows any more", batch.num_rows() - rows.num_rows())));
        }
        let schema = rows.schema();
        let columns = schema.fields().iter().zip(rows.columns()).map(|(field, column)| {
            let old = batch.column_by_name(field.name()).filter(|_| KEPT.contains(&field.name().as_str()));
            old.map_or_else(|| Ok(Arc::clone(column)), |old| cast(old, field.data_type()))
        });
        let columns = columns.collect::<Result<_, _>>().map_err(|error| self.failed(error))?;
        RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|error| self.failed(error))
    }
}
