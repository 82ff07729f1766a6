//! A rebuild: every row of a table is decoded again from its line, in one commit.
//!
//! The only way to change what is inside a struct, and to fill columns that the table gained after its rows were
//! written. The server is not asked for any row. What the sync itself wrote into a row (source, times, job) stays.

use std::{collections::BTreeSet, sync::Arc};

use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, RecordBatch},
    compute::cast,
    datatypes::DataType,
};
use deltalake::kernel::{Action, Add, Metadata, MetadataExt as _};
use futures::StreamExt as _;

use super::{
    Committed, Counts, Error, Table, TableDefinition, Upsert,
    commit::{self, CommitOutcome, remove},
    data_file::partitioned::{PartitionFilter, PartitionedFiles},
    data_file::rolling::FileTarget,
    data_file::stored::StoredFile,
    requirements::{check_features, check_partitions},
    root::{columns, kernel_schema},
};

/// Makes a row of each line, in order, or says why it cannot.
pub type DecodeLines<'a> = dyn Fn(Vec<Vec<u8>>) -> Result<RecordBatch, String> + Sync + 'a;

/// The columns whose values a rebuild keeps.
const KEPT: [&str; 4] = ["_sync_source", "_sync_at", "_sync_transaction_time", "_sync_job"];

/// How many files, one for each partition, the rows of one file are written to at the same time.
const MAX_OPEN_PARTITIONS: usize = 4;

/// Gives the table exactly the columns of `definition`.
///
/// Blocks on encoding and decoding; the caller gives this a thread of its own. If another commit comes first, the
/// rebuild is refused as a conflict.
pub async fn rebuild(
    mut table: Table,
    definition: &TableDefinition,
    decode: &DecodeLines<'_>,
) -> Result<Committed, Error> {
    check_partitions(&table)?;
    check_features(&table)?;
    let mut actions = vec![Action::Metadata(metadata(&table, definition)?)];
    let mut rows = 0;
    let target = FileTarget { columns: Arc::clone(&definition.schema), leading: definition.leading, ..table.target()? };
    for stored in table.stored_files().await? {
        actions.push(Action::Remove(remove(&stored)));
        let (adds, count) = rebuild_file(&table, &stored, &target, decode).await?;
        actions.extend(adds.into_iter().map(Action::Add));
        rows += count;
    }
    let counts = Counts { updated: rows, ..Counts::default() };
    match commit::commit(&mut table, actions, &counts, &Upsert::default()).await? {
        CommitOutcome::Committed { bytes_written } => {
            Ok(Committed { version: table.version(), counts, bytes_written, foreign: 0, damaged: 0 })
        }
        CommitOutcome::Overtaken => Err(Error::Conflict { table: table.name, attempts: 1 }),
    }
}

fn metadata(table: &Table, definition: &TableDefinition) -> Result<Metadata, Error> {
    let failed = |error| table.failed(error);
    let schema = kernel_schema(&columns(definition, table.partitioned_by()), &table.place)?;
    let mut metadata = table.snapshot()?.metadata().clone().with_schema(&schema).map_err(failed)?;
    for (name, value) in &definition.properties {
        metadata = metadata.add_config_key((*name).to_owned(), value.clone()).map_err(failed)?;
    }
    Ok(metadata)
}

/// The new files of a file, and how many rows they have.
async fn rebuild_file(
    table: &Table,
    stored: &StoredFile,
    target: &FileTarget,
    decode: &DecodeLines<'_>,
) -> Result<(Vec<Add>, u64), Error> {
    // All partitions, not only that of the file: a newer version of fhir-sync may read the date of a row differently.
    let filter = PartitionFilter::All { max_open: MAX_OPEN_PARTITIONS };
    let mut files = PartitionedFiles::new(target.clone(), BTreeSet::new(), filter);
    let mut count = 0;
    let mut batches = table.rows(stored).await?;
    while let Some(batch) = batches.next().await {
        let rows = rebuilt(table, &batch?, decode)?;
        count += rows.num_rows() as u64;
        files.write(&rows).await.map_err(|error| table.failed(error))?;
    }
    Ok((files.finish().await.map_err(|error| table.failed(error))?, count))
}

fn is_same_text(stored: Option<&ArrayRef>, decoded: Option<&ArrayRef>) -> bool {
    let text = |column: &ArrayRef| cast(column, &DataType::Utf8).ok();
    stored.and_then(text).is_some_and(|stored| Some(stored) == decoded.and_then(text))
}

/// The rows of a batch, decoded again, with the kept columns as they were.
fn rebuilt(table: &Table, batch: &RecordBatch, decode: &DecodeLines<'_>) -> Result<RecordBatch, Error> {
    let refused = |reason: String| Error::Rebuild { place: table.place.clone(), reason };
    let json = batch.column_by_name("resource_json").map(|column| cast(column, &DataType::Utf8));
    let json = json.transpose().map_err(|error| table.failed(error))?;
    let json = json.filter(|json| json.null_count() == 0);
    let json = json.ok_or_else(|| refused("some rows have no resource_json to decode".to_owned()))?;
    let lines: Vec<_> = json.as_string::<i32>().iter().flatten().map(|line| line.as_bytes().to_vec()).collect();
    let rows = decode(lines).map_err(refused)?;
    if rows.num_rows() != batch.num_rows() {
        let lost = batch.num_rows() - rows.num_rows();
        return Err(refused(format!("{lost} of its lines are not accepted as rows any more")));
    }
    if !is_same_text(batch.column_by_name("id"), rows.column_by_name("id")) {
        // The kept columns would belong to other rows.
        return Err(refused("its lines do not give the rows that they are stored with".to_owned()));
    }
    let schema = rows.schema();
    let columns = schema.fields().iter().zip(rows.columns()).map(|(field, column)| {
        let kept = batch.column_by_name(field.name()).filter(|_| KEPT.contains(&field.name().as_str()));
        kept.map_or_else(|| Ok(Arc::clone(column)), |kept| cast(kept, field.data_type()))
    });
    let columns = columns.collect::<Result<_, _>>().map_err(|error| table.failed(error))?;
    RecordBatch::try_new(Arc::clone(&schema), columns).map_err(|error| table.failed(error))
}
