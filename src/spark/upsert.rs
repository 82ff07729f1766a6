//! The upsert of a change set: Spark reads the stored versions, the room `table` decides and stages the rows, and one
//! MERGE applies them.
//!
//! The commit of the MERGE says in its `userMetadata` who made it. After the MERGE, whatever its answer was, the history
//! is searched for that commit, and only the history decides. A MERGE that was not carried out is repeated with a new
//! decision. The transaction version of a MERGE is one more than the version of the table that it was decided about: it
//! rises with each commit, and a MERGE that the server carries out twice has the same.

use std::collections::BTreeMap;

use arrow::{array::RecordBatch, datatypes::Schema};
use uuid::Uuid;

use super::{
    connect::Session,
    engine::{SparkTable, count, history},
    error::Error,
    history::{Commit, CommitMetadata, History, Ours},
    results::{numbers, texts, truths},
    sql::{self, AtVersion, Portion},
};
use crate::{
    fhir::{Meta, TransactionTime, Version},
    table::{
        self, ChangeSet, Committed, Counts, Expected, Extent, MissingId, Seen, Staged, Staging, StoredRow, TableName,
        Upsert,
    },
    telemetry::metrics::{self, CommitOutcome},
};

/// How often the whole upsert is done because other writers change the table at the same moment.
const MAX_ATTEMPTS: u32 = 5;
/// How often it is done because the server fails.
const MAX_FAILURES: u32 = 3;

/// What became of a MERGE.
enum Merged {
    Committed(Box<Commit>),
    /// It was not carried out, because the table has changed.
    Overtaken,
}

impl SparkTable {
    /// Brings the changes into the table. Staging blocks; the caller gives this a thread of its own.
    pub async fn upsert(mut self, changes: &ChangeSet, upsert: &Upsert) -> Result<Committed, table::Error> {
        let upserted = self.try_upsert(changes, upsert).await;
        self.spark.forget(self.of);
        let removed = self.spark.root.remove_staging(self.of).await;
        if let Err(error) = &removed {
            tracing::warn!(table = %self.of, %error, "staged files are left; the next upsert of the type removes them");
        }
        let ended = match &upserted {
            Ok(_) => CommitOutcome::Committed,
            Err(_) => CommitOutcome::Failed,
        };
        metrics::commit_ended(self.of.as_str(), ended);
        upserted.map_err(|error| error.of_table(&self.name))
    }

    async fn try_upsert(&mut self, changes: &ChangeSet, upsert: &Upsert) -> Result<Committed, Error> {
        let (mut foreign, mut failures) = (0, 0);
        for _ in 0..MAX_ATTEMPTS {
            foreign = self.history.foreign().max(foreign);
            let ended = match self.attempt(changes, upsert).await {
                Ok(Attempted::Unchanged(counts)) => {
                    return Ok(Committed { version: self.version(), counts, bytes_written: 0, foreign, damaged: 0 });
                }
                Ok(Attempted::Merged(Merged::Committed(commit), staged)) => {
                    return Ok(self.committed(&commit, &staged, foreign));
                }
                Ok(Attempted::Merged(Merged::Overtaken, _)) => Ok(()),
                Err(error) if error.is_transient() => Err(error),
                Err(error) => return Err(error),
            };
            match ended {
                Ok(()) => tracing::warn!(table = %self.of, "another writer changed the table, merging again"),
                Err(error) => {
                    failures += 1;
                    if failures == MAX_FAILURES {
                        return Err(error);
                    }
                    tracing::warn!(table = %self.of, %error, "the MERGE failed; it is decided again");
                }
            }
            self.reload().await?;
        }
        Err(table::Error::Conflict { table: TableName::from(self.of), attempts: MAX_ATTEMPTS }.into())
    }

    /// Looks at the table again. Fails where it was restored to an earlier version since the look before.
    async fn reload(&mut self) -> Result<(), Error> {
        let session = self.spark.client.session(&[]).await?;
        let read = history(&session, &self.name).await;
        session.close().await;
        let history = read?;
        self.check_is_not_restored(&history)?;
        self.history = history;
        // A MERGE whose answer was lost may have written rows since.
        self.forget_that_it_is_empty();
        Ok(())
    }

    /// The watermark would stand for rows that the table had when it was looked at.
    fn check_is_not_restored(&self, history: &History) -> Result<(), Error> {
        let restored = table::Error::Restored { table: TableName::from(self.of) };
        if history.restored_since(self.version()) { Err(restored.into()) } else { Ok(()) }
    }

    async fn attempt(&self, changes: &ChangeSet, upsert: &Upsert) -> Result<Attempted, Error> {
        let session = self.spark.client.session(&[]).await?;
        let staged = self.stage(&session, changes, upsert).await;
        session.close().await;
        let Stage { staged, rows_directory, columns } = staged?;
        let before = self.history.watermark(&upsert.app_id).map(TransactionTime::as_micros);
        let watermark = upsert.watermark.micros_after(before);
        if staged.expected.is_nothing() && watermark.is_none_or(|watermark| Some(watermark) == before) {
            return Ok(Attempted::Unchanged(staged.counts));
        }
        let mut watermarks = self.history.watermarks();
        watermarks.extend(watermark.map(|watermark| (upsert.app_id.clone(), watermark)));
        // Rows that are kept as missing were not brought, and may be as others have changed them.
        let extent = if staged.counts.missing > 0 { Extent::Partial } else { upsert.extent };
        let metadata = CommitMetadata {
            app_id: upsert.app_id.clone(),
            run: Some(upsert.run),
            commit: Uuid::new_v4().to_string(),
            decided_at: self.version(),
            transaction_time: upsert.watermark.time().map(TransactionTime::as_micros),
            watermarks,
            counts: staged.counts,
            hash_trust: self.history.hash_trust_after(&upsert.app_id, extent),
        };
        let merge = if staged.expected.is_nothing() {
            sql::merge_of_nothing(&self.name)
        } else {
            let rows = self.spark.names.files(&rows_directory);
            sql::merge(&self.name, &upsert.source, &rows, &columns, &staged)
        };
        Ok(Attempted::Merged(self.merge(merge, metadata).await?, staged))
    }

    /// Decides about all rows of the change set, and stages what is to be written.
    async fn stage(&self, session: &Session, changes: &ChangeSet, upsert: &Upsert) -> Result<Stage, Error> {
        // What others have changed cannot be told from its hash; a whole load writes such rows again.
        let trusts_hashes = !upsert.extent.is_full() || self.history.trusts_hashes(&upsert.app_id);
        let at = AtVersion { table: &self.name, version: self.version(), source: &upsert.source };
        let mut staging = Staging::begin(&self.spark.root, self.of, changes, upsert, trusts_hashes).await?;
        let ids = self.spark.names.files(&staging.ids_directory());
        // Nothing is looked for in a table without rows.
        let ids = (!changes.is_empty() && !self.is_empty()).then_some(ids.as_str());
        if let Some(ids) = ids {
            staging.write_ids().await?;
            for portion in Portion::all(changes.received(), self.spark.answers.stored_rows) {
                let what = "the versions of stored rows";
                let keep = |batch: RecordBatch| {
                    let stored = stored_rows(&batch).map_err(|source| Error::Answer { what, source })?;
                    Ok(staging.keep(&stored)?)
                };
                session.query_each(what, at.stored_rows(&self.columns, ids, portion), keep).await?;
            }
        }
        staging.decide().await?;
        if upsert.reconcile.is_some() && !self.is_empty() {
            // Staging may have taken longer than the server keeps an idle session.
            let session = self.spark.client.session(&[]).await?;
            let removed = self.remove_missing(&session, at, ids, upsert, &mut staging).await;
            session.close().await;
            removed?;
        }
        let rows_directory = staging.rows_directory();
        let staged = staging.finish().await?;
        Ok(Stage { staged, rows_directory, columns: own_columns(&self.columns, changes.schema()) })
    }

    /// Stages the removal of the rows that a full refresh did not bring. They are counted first: a refresh that may not
    /// remove them may lack all rows of the table.
    async fn remove_missing(
        &self,
        session: &Session,
        at: AtVersion<'_>,
        ids: Option<&str>,
        upsert: &Upsert,
        staging: &mut Staging<'_>,
    ) -> Result<(), Error> {
        let what = "the missing rows";
        let rows = count(session, "the number of rows", at.stored_count()).await?;
        let missing = count(session, what, at.missing_count(ids, upsert.compared_until())).await?;
        if missing == 0 || !staging.may_remove(rows, missing) {
            return Ok(());
        }
        for portion in Portion::all(missing, self.spark.answers.missing_rows) {
            let batches = session.query(what, at.missing(ids, upsert.compared_until(), portion)).await?;
            let missing: Result<Vec<_>, _> = batches.iter().map(missing_ids).collect();
            let missing = missing.map_err(|source| Error::Answer { what, source })?;
            staging.remove(&missing.concat()).await?;
        }
        Ok(())
    }

    /// One MERGE. What its answer says does not count; the history of the table does.
    async fn merge(&self, statement: String, metadata: CommitMetadata) -> Result<Merged, Error> {
        let (version, commit) = (self.version() + 1, metadata.commit.clone());
        let transaction = transaction(&metadata.app_id);
        let document = serde_json::to_string(&Ours { metadata }).unwrap_or_default();
        self.spark.root.check_lease().await?;
        let settings = [
            ("spark.databricks.delta.write.txnAppId", transaction),
            ("spark.databricks.delta.write.txnVersion", version.to_string()),
            ("spark.databricks.delta.commitInfo.userMetadata", document),
        ];
        let session = self.spark.client.session(&settings).await?;
        let answered = session.command("the MERGE", statement).await;
        session.close().await;
        let session = self.spark.client.session(&[]).await?;
        let history = history(&session, &self.name).await;
        session.close().await;
        let history = history?;
        // Also where the MERGE landed: the state then knows the table as it was, and the next run finds the restore.
        self.check_is_not_restored(&history)?;
        if let Some(found) = history.find(&commit) {
            if let Err(error) = answered {
                tracing::warn!(table = %self.of, %error, version = found.version, "the MERGE landed although its answer was lost");
            }
            return Ok(Merged::Committed(Box::new(found.clone())));
        }
        match answered {
            Err(error) if history.version() < version && !error.is_conflict() => Err(error),
            // Without an error, another MERGE with the same transaction version was carried out before it.
            _ => Ok(Merged::Overtaken),
        }
    }

    fn committed(&self, commit: &Commit, staged: &Staged, foreign: u64) -> Committed {
        let Expected { inserted, updated, deleted } = staged.expected;
        if !commit.did(staged.expected) {
            tracing::error!(
                table = %self.of, version = commit.version, inserted, updated, deleted, metrics = ?commit.metrics,
                "the MERGE has changed other numbers of rows than were decided; run a full refresh, and report this"
            );
        }
        let bytes_written = commit.metric("numTargetBytesAdded").unwrap_or_default();
        Committed { version: commit.version, counts: staged.counts, bytes_written, foreign, damaged: 0 }
    }

    /// Sets the watermark of an export to exactly this instant, also to an earlier one, in a commit of its own.
    pub async fn set_watermark(&mut self, app_id: &str, watermark: TransactionTime) -> Result<u64, table::Error> {
        let set = async {
            for _ in 0..MAX_ATTEMPTS {
                let mut watermarks: BTreeMap<_, _> = self.history.watermarks();
                watermarks.insert(app_id.to_owned(), watermark.as_micros());
                let metadata = CommitMetadata {
                    app_id: app_id.to_owned(),
                    run: None,
                    commit: Uuid::new_v4().to_string(),
                    decided_at: self.version(),
                    transaction_time: Some(watermark.as_micros()),
                    watermarks,
                    counts: Counts::default(),
                    hash_trust: self.history.hash_trust_after(app_id, Extent::Partial),
                };
                if let Merged::Committed(commit) = self.merge(sql::merge_of_nothing(&self.name), metadata).await? {
                    return Ok(commit.version);
                }
                self.reload().await?;
            }
            Err(table::Error::Conflict { table: TableName::from(self.of), attempts: MAX_ATTEMPTS }.into())
        };
        let set: Result<u64, Error> = set.await;
        self.spark.forget(self.of);
        set.map_err(|error| error.of_table(&self.name))
    }
}

/// The name of the transactions of an export's MERGEs. Its own name has the watermarks of our own engine, as microseconds:
/// Delta would take a MERGE with the version of a table for one that was carried out long ago.
fn transaction(app_id: &str) -> String {
    format!("{app_id}#merge")
}

/// How an attempt ended.
enum Attempted {
    /// There was nothing to write, and no watermark to move.
    Unchanged(Counts),
    Merged(Merged, Staged),
}

/// What a MERGE is made of.
struct Stage {
    staged: Staged,
    rows_directory: String,
    /// The columns of the table that are ours. Those of others are not changed.
    columns: Vec<String>,
}

fn own_columns(there: &Schema, ours: &Schema) -> Vec<String> {
    let fields = there.fields().iter().filter(|field| ours.field_with_name(field.name()).is_ok());
    fields.map(|field| field.name().clone()).collect()
}

fn missing_ids(batch: &RecordBatch) -> Result<Vec<MissingId>, arrow::error::ArrowError> {
    let (ids, hashes, times) = (texts(batch, "id")?, numbers(batch, "hash")?, numbers(batch, "transaction_time")?);
    let copies = numbers(batch, "copies")?;
    let of_row = |(row, id): (usize, Option<String>)| {
        let seen = Seen { hash: hashes[row], transaction_time_micros: times[row] };
        Some(MissingId { id: id?, copies: copies[row].and_then(|copies| copies.try_into().ok()).unwrap_or(1), seen })
    };
    Ok(ids.into_iter().enumerate().filter_map(of_row).collect())
}

fn stored_rows(batch: &RecordBatch) -> Result<Vec<StoredRow>, arrow::error::ArrowError> {
    let (ids, hashes, times) = (texts(batch, "id")?, numbers(batch, "hash")?, numbers(batch, "transaction_time")?);
    let (last_updated, version_ids) = (numbers(batch, "last_updated")?, texts(batch, "version_id")?);
    let (subsetted, metas) = (truths(batch, "subsetted")?, texts(batch, "meta")?);
    let mut rows = Vec::with_capacity(batch.num_rows());
    for (row, id) in ids.into_iter().enumerate() {
        let Some(id) = id else { continue };
        // Of a row without columns of elements.
        let meta: Option<Meta> = metas[row].as_deref().and_then(|json| serde_json::from_str(json).ok());
        let version = match meta {
            Some(meta) => Version::of(Some(&meta)),
            None => Version {
                last_updated_micros: last_updated[row],
                version_id: version_ids[row].as_deref().and_then(|id| id.parse().ok()),
                transaction_time_micros: None,
                subsetted: subsetted[row],
            },
        };
        let version = version.at(times[row].and_then(TransactionTime::from_micros));
        rows.push(StoredRow { id, version, hash: hashes[row] });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, Int64Array, StringArray},
        datatypes::{DataType, Field},
    };

    use super::*;

    #[test]
    fn the_version_of_a_stored_row_is_read_from_columns_or_from_its_line() {
        let texts = |texts: [Option<&str>; 2]| Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
        let typed = RecordBatch::try_from_iter([
            ("id", texts([Some("a"), Some("b")])),
            ("hash", Arc::new(Int64Array::from(vec![Some(-1), None])) as ArrayRef),
            ("transaction_time", Arc::new(Int64Array::from(vec![Some(9), None])) as ArrayRef),
            ("last_updated", Arc::new(Int64Array::from(vec![Some(5), None])) as ArrayRef),
            ("version_id", texts([Some("3"), Some("x")])),
        ]);
        let rows = stored_rows(&typed.unwrap()).unwrap();
        let version = Version {
            last_updated_micros: Some(5),
            version_id: Some(3),
            transaction_time_micros: Some(9),
            subsetted: false,
        };
        assert_eq!(rows[0], StoredRow { id: "a".to_owned(), version, hash: Some(-1) });
        assert_eq!(rows[1], StoredRow { id: "b".to_owned(), version: Version::default(), hash: None });
        let line = r#"{"versionId":"4","tag":[{"code":"SUBSETTED"}]}"#;
        let untyped =
            RecordBatch::try_from_iter([("id", texts([Some("a"), Some("b")])), ("meta", texts([Some(line), None]))]);
        let rows = stored_rows(&untyped.unwrap()).unwrap();
        assert_eq!((rows[0].version.version_id, rows[0].version.subsetted), (Some(4), true));
        assert_eq!(rows[1].version, Version::default());
    }

    #[test]
    fn a_stored_row_of_before_the_table_was_typed_has_the_version_of_its_line() {
        let texts = |texts: [Option<&str>; 2]| Arc::new(StringArray::from(texts.to_vec())) as ArrayRef;
        let both = RecordBatch::try_from_iter([
            ("id", texts([Some("typed"), Some("before")])),
            ("last_updated", Arc::new(Int64Array::from(vec![Some(5), None])) as ArrayRef),
            ("version_id", texts([Some("3"), None])),
            ("meta", texts([None, Some(r#"{"versionId":"4","lastUpdated":"1970-01-01T00:00:00.000009Z"}"#)])),
        ]);
        let rows = stored_rows(&both.unwrap()).unwrap();
        let version = |row: usize| (rows[row].version.version_id, rows[row].version.last_updated_micros);
        assert_eq!((version(0), version(1)), ((Some(3), Some(5)), (Some(4), Some(9))));
    }

    #[test]
    fn columns_of_other_writers_are_left_alone() {
        let field = |name: &str| Field::new(name, DataType::Utf8, true);
        let (there, ours) = (Schema::new(vec![field("id"), field("theirs")]), Schema::new(vec![field("id")]));
        assert_eq!(own_columns(&there, &ours), ["id"]);
    }
}
