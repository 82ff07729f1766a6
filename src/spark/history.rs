//! The history of a table: what DESCRIBE HISTORY says about its commits, and what our own left there.
//!
//! Each of our commits carries a document in its `userMetadata`. The log of the table, with its `txn` actions, is not
//! read: a table of a catalog may be out of our reach.

use std::collections::{BTreeMap, BTreeSet};

use arrow::{array::RecordBatch, error::ArrowError};
use chrono::DateTime;
use serde::{Deserialize, Serialize};

use super::results::{maps, numbers, texts};
use crate::{
    fhir::TransactionTime,
    table::{Counts, Expected, RunCommit},
};

/// The document in the `userMetadata` of our commits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ours {
    #[serde(rename = "fhirSync")]
    pub metadata: CommitMetadata,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CommitMetadata {
    /// Names the export.
    pub app_id: String,
    /// Absent where no run made the commit.
    pub run: Option<u64>,
    /// Names the commit.
    pub commit: String,
    /// The version of the table that the commit was decided about. Others may have committed between the two.
    pub decided_at: u64,
    /// In microseconds; absent where the watermark stays.
    pub transaction_time: Option<i64>,
    /// The watermarks of all exports after the commit, in microseconds.
    pub watermarks: BTreeMap<String, i64>,
    #[serde(default)]
    pub counts: Counts,
    /// Other writers have changed rows since the last whole load, so hashes may be wrong.
    #[serde(default)]
    pub changed_by_others: bool,
}

/// One commit, newest first in a history.
#[derive(Clone, Debug)]
pub struct Commit {
    pub version: u64,
    pub at_micros: Option<i64>,
    pub operation: String,
    pub metrics: BTreeMap<String, String>,
    pub metadata: Option<CommitMetadata>,
}

/// The newest commits of a table, newest first.
#[derive(Clone, Debug)]
pub struct History {
    pub commits: Vec<Commit>,
}

/// Operations that change no row, or only where rows are.
const WITHOUT_CHANGES: [&str; 21] = [
    "ADD COLUMNS",
    "ADD CONSTRAINT",
    "ANALYZE",
    "CHANGE COLUMN",
    "CLUSTER BY",
    "COMPUTE STATS",
    "CREATE TABLE",
    "DROP CONSTRAINT",
    "DROP FEATURE",
    "OPTIMIZE",
    "RENAME COLUMN",
    "REORG",
    "ROW TRACKING BACKFILL",
    "SET TABLE COMMENT",
    "SET TBLPROPERTIES",
    "UNSET TBLPROPERTIES",
    "UPDATE COLUMN METADATA",
    "UPGRADE PROTOCOL",
    "VACUUM END",
    "VACUUM START",
    "CHECKPOINT",
];

impl Commit {
    fn is_foreign_change(&self) -> bool {
        self.metadata.is_none() && !WITHOUT_CHANGES.contains(&self.operation.as_str())
    }

    pub fn metric(&self, name: &str) -> Option<u64> {
        self.metrics.get(name)?.parse().ok()
    }

    /// Did the commit do what was expected of it? A metric that the engine does not state is not compared.
    pub fn did(&self, expected: Expected) -> bool {
        let is = |name, expected| self.metric(name).is_none_or(|stated| stated == expected);
        is("numTargetRowsInserted", expected.inserted)
            && is("numTargetRowsUpdated", expected.updated)
            && is("numTargetRowsDeleted", expected.deleted)
    }
}

impl History {
    pub fn of(batches: &[RecordBatch]) -> Result<Self, ArrowError> {
        let mut commits = Vec::new();
        for batch in batches {
            let (versions, at) = (numbers(batch, "version")?, numbers(batch, "timestamp")?);
            let (operations, documents) = (texts(batch, "operation")?, texts(batch, "userMetadata")?);
            let mut metrics = maps(batch, "operationMetrics")?.into_iter();
            for (index, version) in versions.into_iter().enumerate() {
                let metrics = metrics.next().unwrap_or_default().into_iter().collect();
                let Some(version) = version.and_then(|version| u64::try_from(version).ok()) else { continue };
                let metadata = documents[index].as_deref().and_then(|text| serde_json::from_str::<Ours>(text).ok());
                commits.push(Commit {
                    version,
                    at_micros: at[index],
                    operation: operations[index].clone().unwrap_or_default(),
                    metrics,
                    metadata: metadata.map(|ours| ours.metadata),
                });
            }
        }
        commits.sort_by_key(|commit| std::cmp::Reverse(commit.version));
        Ok(Self { commits })
    }

    /// Of the newest commit.
    pub fn version(&self) -> u64 {
        self.commits.first().map_or(0, |commit| commit.version)
    }

    /// Has it our newest commit, or all commits that are left?
    pub fn is_enough(&self, limit: usize) -> bool {
        self.commits.len() < limit || self.last_metadata().is_some()
    }

    pub fn last_metadata(&self) -> Option<&CommitMetadata> {
        self.commits.iter().find_map(|commit| commit.metadata.as_ref())
    }

    /// How far an export has brought the table: what its own newest commit says, else what a newer commit of another
    /// export has repeated.
    pub fn watermark(&self, app_id: &str) -> Option<TransactionTime> {
        let mut ours = self.commits.iter().filter_map(|commit| commit.metadata.as_ref());
        let own = ours.find(|of| of.app_id == app_id);
        let metadata = own.or_else(|| self.last_metadata())?;
        metadata.watermarks.get(app_id).copied().and_then(TransactionTime::from_micros)
    }

    /// The watermarks of all exports.
    pub fn watermarks(&self) -> BTreeMap<String, i64> {
        let ours = self.commits.iter().filter_map(|commit| commit.metadata.as_ref());
        let mut names: BTreeSet<_> = ours.map(|of| of.app_id.clone()).collect();
        names.extend(self.last_metadata().into_iter().flat_map(|of| of.watermarks.keys().cloned()));
        let watermark = |name: String| Some((name.clone(), self.watermark(&name)?.as_micros()));
        names.into_iter().filter_map(watermark).collect()
    }

    /// How many commits of other writers changed rows since our last one was decided.
    pub fn foreign(&self) -> u64 {
        let decided_at = self.last_metadata().map(|of| of.decided_at);
        let is_since = |commit: &&Commit| decided_at.is_none_or(|decided_at| commit.version > decided_at);
        self.commits.iter().filter(is_since).filter(|commit| commit.is_foreign_change()).count() as u64
    }

    /// May rows have been changed without their hashes since the last whole load? Before our first commit everything
    /// is of other writers.
    pub fn is_changed_by_others(&self) -> bool {
        self.foreign() > 0 || self.last_metadata().is_some_and(|of| of.changed_by_others)
    }

    pub fn find(&self, commit: &str) -> Option<&Commit> {
        self.commits.iter().find(|known| known.metadata.as_ref().is_some_and(|of| of.commit == commit))
    }

    pub fn restored_since(&self, version: u64) -> bool {
        self.commits.iter().any(|commit| commit.version > version && commit.operation == "RESTORE")
    }

    /// What these runs committed.
    pub fn commits_of(&self, runs: &BTreeSet<u64>) -> Vec<RunCommit> {
        let of_run = |commit: &Commit| {
            let metadata = commit.metadata.as_ref()?;
            Some(RunCommit {
                run: metadata.run.filter(|run| runs.contains(run))?,
                version: commit.version,
                at: commit.at_micros.and_then(DateTime::from_timestamp_micros),
                watermark: metadata.transaction_time.and_then(TransactionTime::from_micros),
                counts: metadata.counts,
            })
        };
        self.commits.iter().filter_map(of_run).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(version: u64, operation: &str, metadata: impl Into<Option<CommitMetadata>>) -> Commit {
        let (operation, metadata) = (operation.to_owned(), metadata.into());
        Commit { version, at_micros: None, operation, metrics: BTreeMap::new(), metadata }
    }

    fn metadata(app_id: &str, watermarks: &[(&str, i64)]) -> CommitMetadata {
        CommitMetadata {
            app_id: app_id.to_owned(),
            run: Some(1),
            commit: "c".to_owned(),
            decided_at: 1,
            transaction_time: None,
            watermarks: watermarks.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect(),
            counts: Counts::default(),
            changed_by_others: false,
        }
    }

    fn micros(history: &History, app_id: &str) -> Option<i64> {
        history.watermark(app_id).map(TransactionTime::as_micros)
    }

    #[test]
    fn a_watermark_is_what_its_own_export_said_last() {
        let history = History {
            commits: vec![
                commit(9, "OPTIMIZE", None),
                commit(8, "MERGE", metadata("b", &[("a", 1), ("b", 5), ("old", 3)])),
                // Both began at the same version, so the later one repeats an earlier watermark of the other.
                commit(7, "MERGE", metadata("a", &[("a", 2)])),
            ],
        };
        assert_eq!((micros(&history, "a"), micros(&history, "b")), (Some(2), Some(5)));
        assert_eq!((micros(&history, "old"), micros(&history, "none")), (Some(3), None));
        assert_eq!(history.watermarks().len(), 3);
    }

    #[test]
    fn only_commits_that_change_rows_make_hashes_doubtful() {
        let quiet = History { commits: vec![commit(3, "OPTIMIZE", None), commit(2, "MERGE", metadata("a", &[]))] };
        assert!(!quiet.is_changed_by_others());
        let changed = History { commits: vec![commit(3, "UPDATE", None), commit(2, "MERGE", metadata("a", &[]))] };
        assert_eq!((changed.is_changed_by_others(), changed.foreign()), (true, 1));
        // The UPDATE was before our commit and after what it was decided about.
        let between = [commit(3, "MERGE", metadata("a", &[])), commit(2, "UPDATE", None), commit(1, "WRITE", None)];
        assert_eq!(History { commits: between.to_vec() }.foreign(), 1);
        let remembered = CommitMetadata { changed_by_others: true, ..metadata("a", &[]) };
        assert!(History { commits: vec![commit(2, "MERGE", remembered)] }.is_changed_by_others());
    }

    #[test]
    fn a_document_of_another_writer_is_not_ours() {
        assert!(serde_json::from_str::<Ours>(r#"{"pipeline":"x"}"#).is_err());
        let text = serde_json::to_string(&Ours { metadata: metadata("a", &[("a", 2)]) }).unwrap();
        assert_eq!(serde_json::from_str::<Ours>(&text).unwrap().metadata.watermarks["a"], 2);
    }
}
