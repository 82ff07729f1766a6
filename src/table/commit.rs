//! A commit: actions and watermark become one version of the table, or nothing does.
//!
//! A lost answer is the rule to prepare for: a commit that was reported as failed may have landed. Every commit carries an
//! identifier of its own, and after any error the log is asked for it; only that tells.

use std::collections::BTreeMap;

use buoyant_kernel::table_properties::TableProperties;
use bytes::Bytes;
use deltalake::{
    DeltaTable, DeltaTableError,
    kernel::{
        Action, EagerSnapshot, Metadata, Protocol, Transaction,
        transaction::{CommitBuilder, CommitProperties, TableReference},
    },
    protocol::DeltaOperation,
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Amount, Counts, Error, Table, Upsert};
use crate::fhir::TransactionTime;

/// What became of the attempt.
pub(super) enum Outcome {
    Committed {
        bytes_written: u64,
    },
    /// Somebody else's commit came first; `delta` is now at that version.
    Overtaken,
}

pub(super) async fn commit(
    delta: &mut DeltaTable,
    place: &str,
    actions: Vec<Action>,
    counts: &Counts,
    upsert: &Upsert,
) -> Result<Outcome, Error> {
    let failed = |error: DeltaTableError| Error::delta(place, error);
    let before = transaction_version(delta, &upsert.app_id).await.map_err(failed)?;
    // A watermark never goes backwards (rule 52).
    let watermark = upsert.watermark.map(|watermark| watermark.as_micros().max(before.unwrap_or(i64::MIN)));
    if actions.is_empty() && watermark.is_none_or(|watermark| Some(watermark) == before) {
        return Ok(Outcome::Committed { bytes_written: 0 });
    }
    let metadata = metadata(counts, &actions, upsert);
    let transactions = watermark.map(|version| Transaction::new(&upsert.app_id, version)).into_iter().collect();
    attempt(delta, place, actions, operation(), transactions, metadata).await
}

/// One attempt at a commit; `metadata` goes into its `commitInfo`. Afterwards `delta` is at the newest version.
pub(super) async fn attempt(
    delta: &mut DeltaTable,
    place: &str,
    actions: Vec<Action>,
    operation: DeltaOperation,
    transactions: Vec<Transaction>,
    mut metadata: BTreeMap<String, Value>,
) -> Result<Outcome, Error> {
    let failed = |error: DeltaTableError| Error::delta(place, error);
    let read_version = delta.version().unwrap_or_default();
    let bytes_written = actions.iter().map(added_bytes).sum();
    let commit = Uuid::new_v4().to_string();
    let ours = metadata.entry(OURS.to_owned()).or_insert_with(|| json!({}));
    ours["commit"] = commit.clone().into();
    metadata.insert("readVersion".to_owned(), read_version.into());
    metadata.entry("isBlindAppend".to_owned()).or_insert_with(|| false.into());
    let properties = CommitProperties::default()
        // deltalake's own retry rebases by a conflict check that lets compactions pass: of two that put the same files
        // together, and of one whose answer was lost, both would land.
        .with_max_retries(0)
        .with_cleanup_expired_logs(Some(false))
        .with_application_transactions(transactions)
        .with_metadata(metadata);
    let snapshot = Checked::new(delta.snapshot().map_err(failed)?.snapshot().clone()).map_err(failed)?;
    let attempt = CommitBuilder::from(properties)
        .with_actions(actions)
        .build(Some(&snapshot), delta.log_store(), operation)
        .await;
    delta.load().await.map_err(failed)?;
    let Err(error) = attempt else { return Ok(Outcome::Committed { bytes_written }) };
    let version = delta.version().unwrap_or_default();
    for version in read_version + 1..=version {
        if commit_info(delta, version).await.map_err(failed)?.is_some_and(|info| info[OURS]["commit"] == commit) {
            tracing::warn!(%error, version, "the commit landed although its answer was lost");
            return Ok(Outcome::Committed { bytes_written });
        }
    }
    if version > read_version { Ok(Outcome::Overtaken) } else { Err(failed(error)) }
}

/// A version of a table whose demands on writers [`requirements`](super::requirements) has checked.
///
/// deltalake without DataFusion refuses every table with invariants or a change data feed, because it leaves them to
/// DataFusion. It would not check them in a commit either: so what it is shown of the protocol demands nothing.
struct Checked {
    snapshot: EagerSnapshot,
    protocol: Protocol,
}

impl Checked {
    fn new(snapshot: EagerSnapshot) -> Result<Self, DeltaTableError> {
        let protocol = serde_json::from_value(json!({"minReaderVersion": 1, "minWriterVersion": 1}))?;
        Ok(Self { snapshot, protocol })
    }
}

impl TableReference for Checked {
    fn config(&self) -> &TableProperties {
        self.snapshot.table_properties()
    }

    fn protocol(&self) -> &Protocol {
        &self.protocol
    }

    fn metadata(&self) -> &Metadata {
        self.snapshot.metadata()
    }

    fn eager_snapshot(&self) -> &EagerSnapshot {
        &self.snapshot
    }
}

/// What a commit says of itself; `None` where the log no longer has it, or it says nothing.
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

/// So far back the log is searched for our last commit.
const MOST_FOREIGN: u64 = 1000;

impl Table {
    /// How many commits of others since our last one have changed rows. They are told, and their rows compared by content.
    pub(super) async fn foreign_commits(&self) -> Result<u64, Error> {
        let mut foreign = 0;
        let newest = self.version();
        for version in (newest.saturating_sub(MOST_FOREIGN)..=newest).rev() {
            let entries = entries(&self.delta, version).await.map_err(|error| self.failed(error))?;
            let info = entries.iter().map(|entry| &entry["commitInfo"]).find(|info| !info.is_null());
            if version == 0 || info.is_none_or(|info| !info[OURS].is_null()) {
                break;
            }
            let changes_rows =
                |entry: &Value| [&entry["add"], &entry["remove"]].iter().any(|action| action["dataChange"] == true);
            if entries.iter().any(changes_rows) {
                foreign += 1;
                let operation = info.and_then(|info| info["operation"].as_str()).unwrap_or("unknown");
                tracing::warn!(
                    table = %self.name, version, operation,
                    "another writer changed rows of the table; what comes again is compared by content"
                );
            }
        }
        Ok(foreign)
    }
}

/// The part of `commitInfo` that is ours.
pub(super) const OURS: &str = "fhirSync";

async fn transaction_version(delta: &DeltaTable, app_id: &str) -> Result<Option<i64>, DeltaTableError> {
    delta.snapshot()?.transaction_version(delta.log_store().as_ref(), app_id).await
}

/// As a merge, also where nothing was there to merge with: it is the operation whose conflicts others check in full.
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
        "transactionTime": upsert.watermark.map(TransactionTime::as_micros),
    });
    BTreeMap::from([("operationMetrics".to_owned(), metrics), (OURS.to_owned(), run)])
}

fn change_bytes(action: &Action) -> Option<u64> {
    match action {
        Action::Cdc(file) => Some(u64::try_from(file.size).unwrap_or_default()),
        _ => None,
    }
}

/// Of files that this commit brings; one whose deletion vector alone is new was there before.
fn added_bytes(action: &Action) -> u64 {
    match action {
        Action::Add(add) if add.deletion_vector.is_none() => u64::try_from(add.size).unwrap_or_default(),
        _ => 0,
    }
}
