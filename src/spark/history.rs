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
    table::{Counts, Expected, Extent, RunCommit},
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
    /// Earlier builds kept one word for all exports, which the full refresh of one of them made good for all.
    #[serde(default = "HashTrust::nobody")]
    pub hash_trust: HashTrust,
}

/// Which exports may take a stored hash for the content of its row. Other writers change rows and leave their hashes.
/// An export sets right only the rows that it brings, so each has to bring all of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HashTrust {
    /// No other writer has ever changed a row.
    Everybody,
    /// Those that have brought all of their rows, without a gap, since another writer changed some.
    Only(BTreeSet<String>),
}

/// How many exports are known to trust hashes. What was asked is in the name of an export, so names come and go; those
/// that are forgotten write their rows once more.
const MAX_TRUSTING: usize = 100;

impl HashTrust {
    fn nobody() -> Self {
        Self::Only(BTreeSet::new())
    }

    fn includes(&self, app_id: &str) -> bool {
        match self {
            Self::Everybody => true,
            Self::Only(trusting) => trusting.contains(app_id),
        }
    }

    /// After a load of this export.
    fn with(mut self, app_id: &str, extent: Extent) -> Self {
        if let (Self::Only(trusting), Extent::Whole { .. }) = (&mut self, extent) {
            trusting.insert(app_id.to_owned());
            while trusting.len() > MAX_TRUSTING {
                let forgotten = trusting.iter().find(|name| *name != app_id).cloned();
                forgotten.map(|name| trusting.remove(&name));
            }
        }
        self
    }
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

    /// Who trusts hashes, as the table is now. Before our first commit everything is of other writers, and so is what
    /// the history no longer has.
    fn hash_trust(&self) -> HashTrust {
        let is_since_creation = || self.commits.last().is_some_and(|commit| commit.version == 0);
        match self.last_metadata() {
            _ if self.foreign() > 0 => HashTrust::nobody(),
            Some(metadata) => metadata.hash_trust.clone(),
            None if is_since_creation() => HashTrust::Everybody,
            None => HashTrust::nobody(),
        }
    }

    /// Do the hashes of the rows that this export brings say what is in them?
    pub fn trusts_hashes(&self, app_id: &str) -> bool {
        self.hash_trust().includes(app_id)
    }

    /// Who trusts hashes after the next commit, which is of this export.
    pub fn hash_trust_after(&self, app_id: &str, extent: Extent) -> HashTrust {
        self.hash_trust().with(app_id, extent)
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

    const WHOLE: Extent = Extent::Whole { removes_returned: false };

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
            hash_trust: HashTrust::Everybody,
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
        assert!(quiet.trusts_hashes("a") && quiet.trusts_hashes("b"));
        let changed = History { commits: vec![commit(3, "UPDATE", None), commit(2, "MERGE", metadata("a", &[]))] };
        assert_eq!((changed.trusts_hashes("a"), changed.foreign()), (false, 1));
        // The UPDATE was before our commit and after what it was decided about.
        let between = [commit(3, "MERGE", metadata("a", &[])), commit(2, "UPDATE", None), commit(1, "WRITE", None)];
        assert_eq!(History { commits: between.to_vec() }.foreign(), 1);
        let remembered = CommitMetadata { hash_trust: HashTrust::nobody(), ..metadata("a", &[]) };
        assert!(!History { commits: vec![commit(2, "MERGE", remembered)] }.trusts_hashes("a"));
    }

    #[test]
    fn each_export_trusts_hashes_again_when_it_has_brought_all_its_rows_without_a_gap() {
        let after = |trust: &HashTrust, app_id: &str, extent| {
            let last = CommitMetadata { hash_trust: trust.clone(), ..metadata(app_id, &[]) };
            History { commits: vec![commit(2, "MERGE", last)] }.hash_trust_after(app_id, extent)
        };
        let none = HashTrust::nobody();
        assert_eq!(after(&none, "a", Extent::Partial), none);
        assert_eq!(after(&none, "a", Extent::WithGap), none);
        let a = after(&none, "a", WHOLE);
        assert!(a.includes("a") && !a.includes("b"));
        let both = after(&after(&a, "b", Extent::WithGap), "b", WHOLE);
        assert!(both.includes("a") && both.includes("b"));
        let changed = CommitMetadata { hash_trust: both, ..metadata("a", &[]) };
        let changed = History { commits: vec![commit(3, "DELETE", None), commit(2, "MERGE", changed)] };
        assert_eq!(changed.hash_trust_after("b", Extent::Partial), none);
        assert_eq!(after(&HashTrust::Everybody, "new", Extent::Partial), HashTrust::Everybody);
        let many = (0..500).fold(none, |trust, number| trust.with(&format!("{number:03}"), WHOLE));
        let HashTrust::Only(trusting) = many.with("", WHOLE) else { panic!("some are forgotten") };
        assert!(trusting.len() == MAX_TRUSTING && trusting.contains("") && trusting.contains("499"));
    }

    #[test]
    fn hashes_are_doubtful_where_the_history_does_not_say_who_changed_rows() {
        let created = History { commits: vec![commit(1, "OPTIMIZE", None), commit(0, "CREATE TABLE", None)] };
        assert!(created.trusts_hashes("a"));
        let cut_off = History { commits: vec![commit(70, "OPTIMIZE", None)] };
        assert!(!cut_off.trusts_hashes("a"));
        let text = serde_json::to_string(&Ours { metadata: metadata("a", &[]) }).unwrap();
        let earlier = text.replace(r#""hashTrust":"everybody""#, r#""changedByOthers":false"#);
        assert_ne!(earlier, text);
        let earlier: Ours = serde_json::from_str(&earlier).unwrap();
        assert!(!History { commits: vec![commit(2, "MERGE", earlier.metadata)] }.trusts_hashes("a"));
    }

    #[test]
    fn a_document_of_another_writer_is_not_ours() {
        assert!(serde_json::from_str::<Ours>(r#"{"pipeline":"x"}"#).is_err());
        let text = serde_json::to_string(&Ours { metadata: metadata("a", &[("a", 2)]) }).unwrap();
        assert_eq!(serde_json::from_str::<Ours>(&text).unwrap().metadata.watermarks["a"], 2);
    }
}
