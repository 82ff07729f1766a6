//! Compaction and purge: groups of small files, and files with many deleted rows, are rewritten as one file each.
//!
//! The rows keep their order; those of the table of tombstones are [folded](super::fold). A group is one commit that
//! says it changes no data. When another writer was faster, the rest of the table is left for the next maintenance.

use std::collections::{BTreeMap, BTreeSet};

use deltalake::{
    kernel::{Action, Add, Remove},
    protocol::DeltaOperation,
};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::table::{
    Amount, Error, Table, TableName,
    commit::{self, CommitOutcome, remove},
    data_file::rolling::{DataFiles, FileTarget},
    data_file::stored::StoredFile,
    maintain::fold::fold,
    maintain::groups::{CandidateFile, groups_to_compact, groups_to_fold},
    maintain::options::{DryRun, Maintained, MaintenanceOptions},
    tombstones,
};

/// Rewrites one group after the other, as long as `goes_on` says yes; adds what was done to `done`.
pub(super) async fn compact(
    table: &mut Table,
    options: &MaintenanceOptions,
    dry_run: DryRun,
    goes_on: &(dyn Fn() -> bool + Sync),
    done: &mut Maintained,
) -> Result<(), Error> {
    // Files of other writers are theirs to compact. Their rows may have been changed without their `_sync_hash`, which
    // is trusted in files of our own.
    let files: Vec<_> = table.stored_files().await?.into_iter().filter(|file| file.own).collect();
    let candidates = candidates(table, &files).await?;
    let groups_of = match table.name {
        TableName::Resources(_) | TableName::Runs | TableName::Quarantine | TableName::Members => groups_to_compact,
        TableName::Tombstones => groups_to_fold,
    };
    let groups: Vec<_> = candidates.into_iter().flat_map(|partition| groups_of(partition, options)).collect();
    let mut groups = groups.into_iter();
    // Each of our own commits moves the version by one; any other change of the version is another writer's.
    let mut version = table.version();
    while let Some(group) = groups.next() {
        if dry_run == DryRun::No {
            if !goes_on() {
                done.left = 1 + groups.len() as u64;
                return Ok(());
            }
            if table.version() != version {
                return Err(Error::Conflict { table: table.name, attempts: 1 });
            }
            let (adds, folded) = rewrite(table, &files, &group, options.target_file_bytes).await?;
            done.folded_rows += folded;
            let written: Amount = adds.iter().map(bytes_of).collect();
            commit_group(table, &files, &group, adds, options.target_file_bytes).await?;
            done.written.files += written.files;
            done.written.bytes += written.bytes;
            version += 1;
        }
        done.rewritten.extend(group.iter().map(|file| file.bytes));
        done.purged_rows += group.iter().map(|file| file.dead_rows).sum::<u64>();
    }
    Ok(())
}

/// The candidates of each partition.
async fn candidates(table: &Table, files: &[StoredFile]) -> Result<Vec<Vec<CandidateFile>>, Error> {
    let mut candidates: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (index, file) in files.iter().enumerate() {
        candidates.entry(file.partition()).or_default().push(CandidateFile {
            index,
            modified_millis: file.add.modification_time,
            bytes: bytes_of(&file.add),
            rows: file.row_count().await.map_err(|error| table.failed(error))?,
            dead_rows: file.dead.len(),
        });
    }
    Ok(candidates.into_values().collect())
}

/// Writes the live rows of the group to one file that has every column of any of its files; returns the file, and how
/// many tombstones were dropped because others cover them. Never more than a batch of rows and a row group of the new
/// file in memory.
async fn rewrite(
    table: &Table,
    files: &[StoredFile],
    group: &[CandidateFile],
    target_file_bytes: u64,
) -> Result<(Vec<Add>, u64), Error> {
    let live: Vec<_> = group.iter().filter(|file| file.live_rows() > 0).map(|file| &files[file.index]).collect();
    let Some(first) = live.first() else { return Ok((Vec::new(), 0)) };
    let mut filled = BTreeSet::new();
    for file in &live {
        let footer = file.footer().await.map_err(|error| table.failed(error))?;
        filled.extend(footer.schema().fields().iter().map(|field| field.name().clone()));
    }
    let target = match table.name {
        // The group fits into one file; the limit is for files that were compressed better than the new one will be.
        TableName::Resources(_) | TableName::Runs | TableName::Quarantine | TableName::Members => {
            FileTarget { file_bytes: target_file_bytes.saturating_mul(2), ..table.target()? }
        }
        TableName::Tombstones => FileTarget { file_bytes: target_file_bytes, ..tombstones::target(table)? },
    };
    let mut written = DataFiles::new(target, first.partition(), filled);
    let copied = match table.name {
        TableName::Resources(_) | TableName::Runs | TableName::Quarantine | TableName::Members => {
            copy(table, &live, &mut written).await.map(|()| 0)
        }
        TableName::Tombstones => fold(table, &live, &mut written).await,
    };
    let folded = match copied {
        Ok(folded) => folded,
        Err(error) => {
            written.abort().await;
            return Err(error);
        }
    };
    let adds = written.finish().await.map_err(|error| table.failed(error))?;
    check_rows(table, group, &adds, folded).await?;
    Ok((adds.into_iter().map(|add| Add { data_change: false, ..add }).collect(), folded))
}

async fn copy(table: &Table, files: &[&StoredFile], written: &mut DataFiles) -> Result<(), Error> {
    for file in files {
        let mut batches = table.rows(file).await?;
        while let Some(batch) = batches.next().await {
            let batch = batch?;
            if batch.num_rows() > 0 {
                written.write(&batch).await.map_err(|error| table.failed(error))?;
            }
        }
    }
    Ok(())
}

/// The rows that were written and those that were folded must be all live rows of the group; else nothing is committed.
async fn check_rows(table: &Table, group: &[CandidateFile], adds: &[Add], folded: u64) -> Result<(), Error> {
    let live: u64 = group.iter().map(CandidateFile::live_rows).sum();
    let stats = adds.iter().filter_map(|add| serde_json::from_str::<Value>(add.stats.as_deref()?).ok());
    let written: u64 = stats.filter_map(|stats| stats["numRecords"].as_u64()).sum();
    if live == written + folded {
        return Ok(());
    }
    commit::discard(table, adds.iter().map(|add| add.path.clone())).await;
    Err(Error::Unbalanced {
        table: table.name,
        counts: format!("{live} rows to compact, {written} written, {folded} folded"),
    })
}

/// Commits the group if no other writer has committed since the files were listed.
async fn commit_group(
    table: &mut Table,
    files: &[StoredFile],
    group: &[CandidateFile],
    adds: Vec<Add>,
    target_file_bytes: u64,
) -> Result<(), Error> {
    let written: Vec<_> = adds.iter().map(|add| add.path.clone()).collect();
    let metadata = BTreeMap::from([("operationMetrics".to_owned(), metrics(group, &adds))]);
    let removes = group.iter().map(|file| Remove { data_change: false, ..remove(&files[file.index]) });
    let actions = removes.map(Action::Remove).chain(adds.into_iter().map(Action::Add)).collect();
    let target_size = i64::try_from(target_file_bytes).unwrap_or(i64::MAX);
    let operation = DeltaOperation::Optimize { predicate: None, target_size };
    match commit::attempt(table, actions, operation, Vec::new(), metadata).await? {
        CommitOutcome::Committed { .. } => Ok(()),
        CommitOutcome::Overtaken => {
            commit::discard(table, written.into_iter()).await;
            Err(Error::Conflict { table: table.name, attempts: 1 })
        }
    }
}

fn bytes_of(add: &Add) -> u64 {
    u64::try_from(add.size).unwrap_or_default()
}

/// Spark's names and its text values, so that DESCRIBE HISTORY shows them.
fn metrics(group: &[CandidateFile], adds: &[Add]) -> Value {
    let mut sizes: Vec<_> = adds.iter().map(bytes_of).collect();
    sizes.sort_unstable();
    let size_at =
        |quarters: usize| sizes.get((sizes.len().saturating_sub(1)) * quarters / 4).copied().unwrap_or_default();
    let removed: Amount = group.iter().map(|file| file.bytes).collect();
    json!({
        "numAddedFiles": sizes.len().to_string(),
        "numAddedBytes": sizes.iter().sum::<u64>().to_string(),
        "numRemovedFiles": removed.files.to_string(),
        "numRemovedBytes": removed.bytes.to_string(),
        "numDeletionVectorsRemoved": group.iter().filter(|file| file.dead_rows > 0).count().to_string(),
        "minFileSize": size_at(0).to_string(),
        "p25FileSize": size_at(1).to_string(),
        "p50FileSize": size_at(2).to_string(),
        "p75FileSize": size_at(3).to_string(),
        "maxFileSize": size_at(4).to_string(),
    })
}
