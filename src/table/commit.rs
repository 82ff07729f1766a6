//! A commit: actions and watermark become one version of the table, or nothing does.
//!
//! The answer of an object store may be lost: a commit that was reported as failed may have landed. So every commit
//! carries an identifier of its own, and after any error the log is searched for it. Only the log decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use chrono::DateTime;
use deltalake::{
    DeltaTable, DeltaTableError, Path,
    kernel::{
        Action, Remove, Transaction,
        transaction::{CommitBuilder, CommitProperties},
    },
    protocol::DeltaOperation,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    ADOPTED, Amount, Counts, Error, RunCommit, Table, Upsert,
    data_file::durable,
    data_file::stored::StoredFile,
    data_file::{forget, now_millis},
    requirements::WritableVersion,
};
use crate::{
    fhir::TransactionTime,
    telemetry::metrics::{self, CommitOutcome as Ended},
};

/// What became of an attempt.
pub(super) enum CommitOutcome {
    Committed {
        bytes_written: u64,
    },
    /// Another writer's commit came first; the table is now at that version.
    Overtaken,
}

/// One attempt at the commit of an upsert: its actions and, if it has one, its watermark.
pub(super) async fn commit(
    table: &mut Table,
    actions: Vec<Action>,
    counts: &Counts,
    upsert: &Upsert,
) -> Result<CommitOutcome, Error> {
    let before = table.watermark(&upsert.app_id).await?.map(TransactionTime::as_micros);
    let watermark = upsert.watermark.micros_after(before);
    if actions.is_empty() && watermark.is_none_or(|watermark| Some(watermark) == before) {
        return Ok(CommitOutcome::Committed { bytes_written: 0 });
    }
    let metadata = metadata(counts, &actions, upsert);
    let mut transactions: Vec<_> =
        watermark.map(|version| Transaction::new(&upsert.app_id, version)).into_iter().collect();
    if let (Some(_), Some(adopted)) = (watermark, &upsert.adopted_app_id)
        && table.watermark(adopted).await?.is_some_and(|known| known > ADOPTED)
    {
        transactions.push(Transaction::new(adopted, ADOPTED.as_micros()));
    }
    attempt(table, actions, operation(), transactions, metadata).await
}

/// How often a watermark is set because other writers commit at the same moment.
const MAX_ATTEMPTS: u32 = 5;

/// How often an append is tried because other writers commit at the same moment. An append that is overtaken costs one
/// small commit, and of several writers one succeeds each time.
pub(super) const MAX_APPENDS: u32 = 30;
const MAX_WAIT_OVERTAKEN: Duration = Duration::from_millis(250);

/// Waits for a while after another writer was faster, and not for the same while as the others who wait.
pub(super) async fn give_way() {
    tokio::time::sleep(MAX_WAIT_OVERTAKEN.mul_f32(fastrand::f32())).await;
}

impl Table {
    /// How far the export with this application id has brought the table.
    pub async fn watermark(&self, app_id: &str) -> Result<Option<TransactionTime>, Error> {
        let log_store = self.delta.log_store();
        let version = self.snapshot()?.transaction_version(log_store.as_ref(), app_id).await;
        Ok(version.map_err(|error| self.failed(error))?.and_then(watermark_of))
    }

    /// Sets the watermark of an export to exactly this instant, also to an earlier one, in a commit of its own.
    /// Afterwards the next sync asks for everything since then. The version of the commit.
    pub async fn set_watermark(&mut self, app_id: &str, watermark: TransactionTime) -> Result<u64, Error> {
        for _ in 0..MAX_ATTEMPTS {
            let transaction = Transaction::new(app_id, watermark.as_micros());
            let ours = json!({ "transactionTime": watermark.as_micros() });
            let metadata = BTreeMap::from([(OURS.to_owned(), ours)]);
            match attempt(self, Vec::new(), operation(), vec![transaction], metadata).await? {
                CommitOutcome::Committed { .. } => return Ok(self.version()),
                CommitOutcome::Overtaken => {
                    tracing::warn!(table = %self.name, "another writer was faster, trying again");
                }
            }
        }
        Err(Error::Conflict { table: self.name, attempts: MAX_ATTEMPTS })
    }

    /// Was the table restored to an earlier version (`RESTORE`) after this version? Then its rows, and maybe its
    /// watermarks, are older than the state remembers. Looks at the last 1000 commits at most.
    pub async fn restored_since(&self, version: u64) -> Result<bool, Error> {
        let newest = self.version();
        for version in (version + 1).max(newest.saturating_sub(MAX_FOREIGN_COMMITS))..=newest {
            let info = commit_info(&self.delta, version).await.map_err(|error| self.failed(error))?;
            if info.is_some_and(|info| info["operation"] == "RESTORE") {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Table {
    /// What these runs committed, as far as the log still has it: looks at the last 1000 commits at most. Commits of
    /// builds that did not write their counts are left out.
    pub async fn commits_of(&self, runs: &BTreeSet<u64>) -> Result<Vec<RunCommit>, Error> {
        let mut found = Vec::new();
        let newest = self.version();
        for version in (newest.saturating_sub(MAX_FOREIGN_COMMITS)..=newest).rev() {
            let info = commit_info(&self.delta, version).await.map_err(|error| self.failed(error))?;
            let Some(info) = info else { continue };
            let Some(run) = info[OURS]["run"].as_u64() else { continue };
            // Runs of several exports go on side by side, so their numbers do not rise strictly along the log.
            if runs.first().is_none_or(|first| run + MAX_RUNS_AT_ONCE < *first) {
                break;
            }
            let counts = serde_json::from_value(info[OURS]["counts"].clone());
            if let (true, Ok(counts)) = (runs.contains(&run), counts) {
                let at = info["timestamp"].as_i64().and_then(DateTime::from_timestamp_millis);
                let watermark = info[OURS]["transactionTime"].as_i64().and_then(TransactionTime::from_micros);
                found.push(RunCommit { run, version, at, watermark, counts });
            }
        }
        Ok(found)
    }
}

/// One attempt at a commit; `metadata` is written into its `commitInfo`. Afterwards the table is at
/// the version of the commit, or at its newest.
pub(super) async fn attempt(
    table: &mut Table,
    actions: Vec<Action>,
    operation: DeltaOperation,
    transactions: Vec<Transaction>,
    metadata: BTreeMap<String, Value>,
) -> Result<CommitOutcome, Error> {
    let attempted = attempt_once(table, actions, operation, transactions, metadata).await;
    let ended = attempted.as_ref().map_or(Ended::Failed, |(_, ended)| *ended);
    metrics::commit_ended(table.name.as_str(), ended);
    measure(table);
    Ok(attempted?.0)
}

async fn attempt_once(
    table: &mut Table,
    actions: Vec<Action>,
    operation: DeltaOperation,
    transactions: Vec<Transaction>,
    mut metadata: BTreeMap<String, Value>,
) -> Result<(CommitOutcome, Ended), Error> {
    table.root.check_lease().await?;
    // At the version that is committed on: another writer may have added a requirement since the first attempt.
    let writable = WritableVersion::check(table)?;
    let read_version = table.version();
    let bytes_written = actions.iter().map(added_bytes).sum();
    let commit = Uuid::new_v4().to_string();
    let ours = metadata.entry(OURS.to_owned()).or_insert_with(|| json!({}));
    ours["commit"] = commit.clone().into();
    metadata.insert("readVersion".to_owned(), read_version.into());
    metadata.entry("isBlindAppend".to_owned()).or_insert_with(|| false.into());
    let properties = CommitProperties::default()
        // deltalake's own retry would rebase the commit, and its conflict check lets compactions pass. Two compactions
        // of the same files would then both land, and so would one whose answer was lost and that is sent again.
        .with_max_retries(0)
        .with_cleanup_expired_logs(Some(false))
        .with_application_transactions(transactions)
        .with_metadata(metadata);
    let new_files = durable::new_files(&actions);
    flush(table, &new_files)?;
    let attempt = CommitBuilder::from(properties)
        .with_actions(actions)
        .build(Some(&writable), table.delta.log_store(), operation)
        .await;
    let error = match attempt {
        Ok(committed) => {
            table.delta.state = Some(committed.snapshot);
            flush(table, &BTreeSet::from([format!("_delta_log/{:020}.json", table.version())]))?;
            return Ok((CommitOutcome::Committed { bytes_written }, Ended::Committed));
        }
        Err(error) => error,
    };
    table.delta.load().await.map_err(|error| table.failed(error))?;
    let version = table.version();
    for version in read_version + 1..=version {
        let info = commit_info(&table.delta, version).await.map_err(|error| table.failed(error))?;
        if info.is_some_and(|info| info[OURS]["commit"] == commit) {
            tracing::warn!(table = %table.name, %error, version, "the commit landed although its answer was lost");
            return Ok((CommitOutcome::Committed { bytes_written }, Ended::Recovered));
        }
    }
    if version > read_version { Ok((CommitOutcome::Overtaken, Ended::Overtaken)) } else { Err(table.failed(error)) }
}

/// Version and size of the table as it is now, for the metrics.
fn measure(table: &Table) {
    let Ok(snapshot) = table.delta.snapshot() else { return };
    let files = snapshot.log_data();
    let Amount { files, bytes } = files.iter().map(|file| u64::try_from(file.size()).unwrap_or_default()).collect();
    metrics::table(table.name.as_str(), table.version(), files, bytes);
}

/// Files of a table in a local folder are on the disk afterwards.
fn flush(table: &Table, files: &BTreeSet<String>) -> Result<(), Error> {
    match &table.root.folder {
        Some(folder) if !files.is_empty() => durable::sync_to_disk(&folder.join(table.name.directory()), files),
        _ => Ok(()),
    }
}

/// The action that removes a file of the table, its deletion vector included.
pub(super) fn remove(stored: &StoredFile) -> Remove {
    let add = &stored.add;
    Remove {
        path: add.path.clone(),
        data_change: true,
        deletion_timestamp: Some(now_millis()),
        extended_file_metadata: Some(true),
        size: Some(add.size),
        partition_values: Some(add.partition_values.clone()),
        deletion_vector: add.deletion_vector.clone(),
        tags: None,
        base_row_id: None,
        default_row_commit_version: None,
    }
}

/// Deletes files that were written for a commit that did not land.
pub(super) async fn discard(table: &Table, paths: impl Iterator<Item = String>) {
    let store = table.delta.object_store();
    for path in paths {
        forget(store.as_ref(), &Path::from(path.as_str())).await;
    }
}

/// The `commitInfo` of a commit; `None` where the log no longer has the commit, or the commit has none.
async fn commit_info(delta: &DeltaTable, version: u64) -> Result<Option<Value>, DeltaTableError> {
    Ok(entries(delta, version).await?.into_iter().find_map(|mut entry| match entry["commitInfo"].take() {
        Value::Null => None,
        info => Some(info),
    }))
}

async fn entries(delta: &DeltaTable, version: u64) -> Result<Vec<Value>, DeltaTableError> {
    let bytes = match delta.log_store().read_commit_entry(version).await {
        Ok(bytes) => bytes.unwrap_or_default(),
        Err(DeltaTableError::ObjectStore { source: object_store::Error::NotFound { .. } }) => Bytes::new(),
        Err(error) => return Err(error),
    };
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// How many runs a run may be behind another whose commit is before its own.
const MAX_RUNS_AT_ONCE: u64 = 100;

/// How many commits back the log is searched for our last commit.
const MAX_FOREIGN_COMMITS: u64 = 1000;

/// How many commits back the log is searched for a watermark.
const MAX_COMMITS_WITHOUT_WATERMARK: u64 = 100;

/// The newest transactionTime that a recent commit gave to the table as a watermark of ours.
pub(super) async fn newest_watermark(table: &Table) -> Result<Option<TransactionTime>, Error> {
    let newest = table.version();
    for version in (newest.saturating_sub(MAX_COMMITS_WITHOUT_WATERMARK)..=newest).rev() {
        let entries = entries(&table.delta, version).await.map_err(|error| table.failed(error))?;
        let ours = entries.iter().map(|entry| &entry["txn"]);
        let ours = ours.filter(|txn| txn["appId"].as_str().is_some_and(|app_id| app_id.starts_with("fhir-sync/")));
        let watermarks = ours.filter_map(|txn| watermark_of(txn["version"].as_i64()?));
        if let Some(newest) = watermarks.max() {
            return Ok(Some(newest));
        }
    }
    Ok(None)
}

/// How many commits of other writers since our last one have changed rows. Each is logged. [`Error::Damaged`] where our
/// own last commit has lost some of its files, unless a whole export follows, which brings their rows again.
pub(super) async fn foreign_commits(table: &Table, upsert: &Upsert) -> Result<u64, Error> {
    let mut foreign = 0;
    let newest = table.version();
    for version in (newest.saturating_sub(MAX_FOREIGN_COMMITS)..=newest).rev() {
        let entries = entries(&table.delta, version).await.map_err(|error| table.failed(error))?;
        let info = entries.iter().map(|entry| &entry["commitInfo"]).find(|info| !info.is_null());
        if version == 0 || info.is_none_or(|info| !info[OURS].is_null()) {
            if !upsert.extent.is_full() {
                check_is_whole(table, version, info.unwrap_or(&Value::Null), &entries)?;
            }
            break;
        }
        let changes_rows =
            |entry: &Value| [&entry["add"], &entry["remove"]].iter().any(|action| action["dataChange"] == true);
        if entries.iter().any(changes_rows) {
            foreign += 1;
            let operation = info.and_then(|info| info["operation"].as_str()).unwrap_or("unknown");
            tracing::warn!(
                table = %table.name, version, operation,
                "another writer changed rows of the table; they are compared with received rows by content"
            );
        }
    }
    Ok(foreign)
}

/// Does our commit have as many files as it says? A disk may keep a part of it.
fn check_is_whole(table: &Table, version: u64, info: &Value, entries: &[Value]) -> Result<(), Error> {
    let stated = info["operationMetrics"]["numTargetFilesAdded"].as_str().and_then(|files| files.parse::<usize>().ok());
    let found = entries.iter().filter(|entry| !entry["add"].is_null()).count();
    let Some(stated) = stated.filter(|stated| *stated != found) else { return Ok(()) };
    let what = format!("version {version} of its log names {found} files, and was made with {stated}");
    Err(Error::Damaged { place: table.place.clone(), what })
}

/// The member of `commitInfo` that is ours.
pub(super) const OURS: &str = "fhirSync";

/// The watermark in a `txn` of ours; `None` where it is none. The MERGEs of Spark have the version of the table there,
/// earlier ones under the name of the export itself. No export goes back to the first day of 1970, and no table has as
/// many versions as that day has microseconds.
fn watermark_of(version: i64) -> Option<TransactionTime> {
    const DAY_MICROS: i64 = 24 * 60 * 60 * 1_000_000;
    let is_of_table = (1..DAY_MICROS).contains(&version);
    TransactionTime::from_micros(version).filter(|_| !is_of_table)
}

/// Always MERGE, also for a first load: it is the operation that other writers check for conflicts in full.
fn operation() -> DeltaOperation {
    DeltaOperation::Merge {
        predicate: None,
        merge_predicate: Some("source.id = target.id".to_owned()),
        matched_predicates: Vec::new(),
        not_matched_predicates: Vec::new(),
        not_matched_by_source_predicates: Vec::new(),
    }
}

/// Spark's names and its text values, so that DESCRIBE HISTORY shows them.
fn metadata(counts: &Counts, actions: &[Action], upsert: &Upsert) -> BTreeMap<String, Value> {
    let count = |is: fn(&Action) -> bool| actions.iter().filter(|action| is(action)).count();
    let files_added = count(|action| matches!(action, Action::Add(_)));
    let mut metrics = json!({
        "numSourceRows": counts.total().to_string(),
        "numTargetRowsInserted": counts.inserted.to_string(),
        "numTargetRowsUpdated": counts.updated.to_string(),
        "numTargetRowsDeleted": (counts.deleted + counts.removed).to_string(),
        "numOutputRows": (counts.inserted + counts.updated).to_string(),
        "numTargetFilesAdded": files_added.to_string(),
        "numTargetFilesRemoved": count(|action| matches!(action, Action::Remove(_))).to_string(),
        "numTargetBytesAdded": actions.iter().map(added_bytes).sum::<u64>().to_string(),
    });
    let change_files: Amount = actions.iter().filter_map(change_bytes).collect();
    if change_files.files > 0 {
        metrics["numTargetChangeFilesAdded"] = change_files.files.to_string().into();
        metrics["numTargetChangeFileBytes"] = change_files.bytes.to_string().into();
    }
    let run = json!({
        "run": upsert.run,
        "transactionTime": upsert.watermark.time().map(TransactionTime::as_micros),
        "counts": counts,
    });
    BTreeMap::from([("operationMetrics".to_owned(), metrics), (OURS.to_owned(), run)])
}

fn change_bytes(action: &Action) -> Option<u64> {
    match action {
        Action::Cdc(file) => Some(u64::try_from(file.size).unwrap_or_default()),
        _ => None,
    }
}

/// The size of a data file that the commit adds; a file that only gets a new deletion vector was there before.
fn added_bytes(action: &Action) -> u64 {
    match action {
        Action::Add(add) if add.deletion_vector.is_none() => u64::try_from(add.size).unwrap_or_default(),
        _ => 0,
    }
}
