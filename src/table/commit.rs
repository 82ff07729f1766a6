//! A commit: actions and watermark become one version of the table, or nothing does.
//!
//! A lost answer is the rule to prepare for: a commit that was reported as failed may have landed. After any error the
//! table is loaded again and asked for our application transaction; only that tells.

use deltalake::{
    DeltaTable, DeltaTableError,
    kernel::{
        Action, Transaction,
        transaction::{CommitBuilder, CommitProperties},
    },
    protocol::DeltaOperation,
};
use serde_json::json;

use super::{Counts, Error, Upsert};
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
    let read_version = delta.version();
    let before = transaction_version(delta, &upsert.app_id).await.map_err(failed)?;
    // A watermark never goes backwards (rule 52).
    let watermark = upsert.watermark.map(|watermark| watermark.as_micros().max(before.unwrap_or(i64::MIN)));
    if actions.is_empty() && watermark == before {
        return Ok(Outcome::Committed { bytes_written: 0 });
    }
    let bytes_written = actions.iter().map(added_bytes).sum();
    let transactions = watermark.map(|version| Transaction::new(&upsert.app_id, version)).into_iter().collect();
    let properties = CommitProperties::default()
        // deltalake's own retry rebases by a conflict check that lets a compaction pass unseen: old rows would come back.
        .with_max_retries(0)
        .with_cleanup_expired_logs(Some(false))
        .with_application_transactions(transactions)
        .with_metadata(metadata(counts, &actions, upsert));
    let snapshot = delta.snapshot().map_err(failed)?.snapshot().clone();
    let attempt = CommitBuilder::from(properties)
        .with_actions(actions)
        .build(Some(&snapshot), delta.log_store(), operation())
        .await;
    delta.load().await.map_err(failed)?;
    let Err(error) = attempt else { return Ok(Outcome::Committed { bytes_written }) };
    let moved = delta.version() > read_version;
    if moved && watermark.is_some() && watermark != before {
        let now = transaction_version(delta, &upsert.app_id).await.map_err(failed)?;
        if now == watermark {
            tracing::warn!(%error, version = delta.version(), "the commit landed although its answer was lost");
            return Ok(Outcome::Committed { bytes_written });
        }
    }
    if moved { Ok(Outcome::Overtaken) } else { Err(failed(error)) }
}

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
fn metadata(counts: &Counts, actions: &[Action], upsert: &Upsert) -> [(String, serde_json::Value); 2] {
    let files = |is: fn(&Action) -> bool| actions.iter().filter(|action| is(action)).count().to_string();
    let metrics = json!({
        "numTargetRowsInserted": counts.inserted.to_string(),
        "numTargetRowsUpdated": counts.updated.to_string(),
        "numTargetRowsDeleted": (counts.deleted + counts.removed).to_string(),
        "numOutputRows": (counts.inserted + counts.updated).to_string(),
        "numTargetFilesAdded": files(|action| matches!(action, Action::Add(_))),
        "numTargetFilesRemoved": files(|action| matches!(action, Action::Remove(_))),
    });
    let run = json!({
        "run": upsert.run,
        "transactionTime": upsert.watermark.map(TransactionTime::as_micros),
    });
    [("operationMetrics".to_owned(), metrics), ("fhirSync".to_owned(), run)]
}

fn added_bytes(action: &Action) -> u64 {
    match action {
        Action::Add(add) => u64::try_from(add.size).unwrap_or_default(),
        _ => 0,
    }
}
