//! What a commit is for, and what it did, in counts.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::fhir::{TransactionTime, Version};

/// The value of a watermark whose name has changed, under its old name. No export goes back to 1970. A `txn` cannot be
/// removed from a table, and a watermark under the old name must not be taken for one of another export later.
pub const ADOPTED: TransactionTime = TransactionTime::EPOCH;

/// What a commit is for.
#[derive(Clone, Debug, Default)]
pub struct Upsert {
    /// Names the export in the log of the table.
    pub app_id: String,
    /// An earlier name of the same watermark. The commit that writes the new one ends it: see [`ADOPTED`].
    pub adopted_app_id: Option<String>,
    /// Rows with another `_sync_source` are neither read nor changed.
    pub source: String,
    pub watermark: NewWatermark,
    /// The server's clock was set back from here: rows and deletions that were stored up to here were there before the
    /// export, although their times are later. That is known until an export goes further.
    pub set_back_from: Option<TransactionTime>,
    /// The server's clock was too far ahead to be believed, and is right for this export. What was exported then has no
    /// transaction time; a time that it states may be later than each change to come.
    pub clock_was_ahead: bool,
    /// When the server made the export, complete or not.
    pub exported_at: Option<TransactionTime>,
    /// `_sync_at` of the rows that the run writes; `job` is their `_sync_job`.
    pub run_started_micros: i64,
    pub job: String,
    /// The number of the run, for people who read the table's history.
    pub run: u64,
    pub extent: Extent,
    /// Set where the change set is everything that the server has: stored rows that it lacks are removed.
    pub reconcile: Option<Reconcile>,
}

impl Upsert {
    /// Was the export of a stored row or deletion made before this one?
    pub fn follows(&self, stored_micros: Option<i64>) -> bool {
        let is_set_back = self.set_back_from.is_some_and(|from| stored_micros <= Some(from.as_micros()));
        is_set_back || stored_micros < self.exported_at.map(TransactionTime::as_micros)
    }

    /// Is this time from before the clock was set back, and later than this export?
    pub fn is_ahead(&self, micros: Option<i64>) -> bool {
        let is_before = self.set_back_from.is_some_and(|from| micros <= Some(from.as_micros()));
        is_before && micros > self.exported_at.map(TransactionTime::as_micros)
    }

    /// The stored version, without a `lastUpdated` that is later than this export where the clock was set back or right:
    /// otherwise no later change would look newer.
    pub fn without_former_clock(&self, stored: Version) -> Version {
        let is_ahead = self.is_stated_ahead(stored.last_updated_micros, stored.transaction_time_micros);
        Version { last_updated_micros: stored.last_updated_micros.filter(|_| !is_ahead), ..stored }
    }

    /// Is this time, which a resource or a deletion states, later than this export because of such a clock?
    /// `export_micros` is the time of the export that brought it: by a right clock, that is not earlier than what it has.
    pub fn is_stated_ahead(&self, stated_micros: Option<i64>, export_micros: Option<i64>) -> bool {
        let is_of_former = self.set_back_from.is_some() || (self.clock_was_ahead && stated_micros > export_micros);
        is_of_former && stated_micros > self.exported_at.map(TransactionTime::as_micros)
    }

    /// Stored rows with a transaction time up to here are missing, where the export lacks them.
    pub fn compared_until(&self) -> Option<TransactionTime> {
        self.exported_at.max(self.set_back_from)
    }
}

/// The watermark of the table after the commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NewWatermark {
    /// It stays as it is: rows are upserted, and nothing is said of how far the table is.
    #[default]
    Stays,
    /// It becomes this, unless the table has a later one: a watermark never goes backwards by itself (rule 52).
    Raised(TransactionTime),
    /// It becomes this, also if the table has a later one.
    Exactly(TransactionTime),
}

impl NewWatermark {
    /// As it is asked for; `None` where the watermark stays.
    pub fn time(self) -> Option<TransactionTime> {
        match self {
            Self::Stays => None,
            Self::Raised(time) | Self::Exactly(time) => Some(time),
        }
    }

    /// What the commit writes where the table has `before`; `None` where the watermark stays.
    pub fn micros_after(self, before: Option<i64>) -> Option<i64> {
        match self {
            Self::Stays => None,
            Self::Raised(time) => before.max(Some(time.as_micros())),
            Self::Exactly(time) => Some(time.as_micros()),
        }
    }
}

/// How much a change set has of what the server has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Extent {
    /// What has changed, or a part of a load.
    #[default]
    Partial,
    /// All that a full refresh has brought, but rows that the server has may be missing. What it has is the truth, and
    /// wins over versions and deletions of earlier snapshots, whatever their times; rows that a later export brought
    /// stay. A damaged data file is removed, because its rows come again, but for those in the gap.
    WithGap,
    /// The same without a gap. Its deletions are the truth as well.
    Whole {
        /// The table may have been restored to an earlier version: stored rows that the change set lacks, and whose
        /// deletion was reported after they were stored, are removed, whatever [`Upsert::reconcile`] says. Another
        /// engine does not look for them.
        removes_returned: bool,
    },
}

impl Extent {
    /// Is what it has the truth?
    pub fn is_full(self) -> bool {
        self != Self::Partial
    }

    pub fn is_whole(self) -> bool {
        matches!(self, Self::Whole { .. })
    }

    pub fn removes_returned(self) -> bool {
        self == Self::Whole { removes_returned: true }
    }
}

/// The limit for removing rows that a full refresh lacks. With servers that never report deletions there
/// is no other way to notice them.
#[derive(Clone, Copy, Debug)]
pub struct Reconcile {
    /// If more rows than this are missing, and more than `max_missing_percent` of those that were stored, none is
    /// removed: then the server is more likely in trouble than its resources deleted (rule 98).
    pub max_missing: u64,
    pub max_missing_percent: f64,
    /// The operator has said that all rows may be missing: then no limit applies. Without this word, an export that
    /// leaves no stored row is never believed, however few they are.
    pub allow_empty: bool,
}

impl Reconcile {
    /// Missing rows are counted, and none is removed.
    pub const NONE: Self = Self { max_missing: 0, max_missing_percent: 0.0, allow_empty: false };
}

/// A commit of a run, as the log of the table has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunCommit {
    pub run: u64,
    pub version: u64,
    /// When the run began to commit, by the local clock.
    pub at: Option<DateTime<Utc>>,
    pub watermark: Option<TransactionTime>,
    pub counts: Counts,
}

/// What a commit did to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub version: u64,
    pub counts: Counts,
    /// Bytes of data files written.
    pub bytes_written: u64,
    /// How many commits of other writers since our last one changed rows.
    pub foreign: u64,
    /// Damaged files that were removed: their rows come again only if the change set has them.
    pub damaged: u64,
}

/// What became of the rows and deletions of a change set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    pub inserted: u64,
    pub updated: u64,
    /// Equal to what was stored. A deletion of an id that was not stored counts here.
    pub unchanged: u64,
    /// Older than what was stored.
    pub stale: u64,
    /// Superseded within the same export.
    pub duplicate: u64,
    pub deleted: u64,
    /// Stored rows that a full refresh lacked, and that were removed. They were not received, so they are not in the
    /// total.
    pub removed: u64,
    /// The same, but more than [`Reconcile`] allows: they were not removed.
    pub missing: u64,
    /// Of the resources counted above: `lastUpdated` and `versionId` of the received and of the stored row contradict
    /// each other, so the later snapshot won. Not part of the total.
    pub conflicts: u64,
    /// Of the resources counted above: a whole export won over a version or deletion that its times alone could not
    /// have replaced. Not part of the total.
    pub overruled: u64,
}

impl Counts {
    pub fn total(&self) -> u64 {
        self.inserted + self.updated + self.unchanged + self.stale + self.duplicate + self.deleted
    }
}

/// Files and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    pub files: u64,
    pub bytes: u64,
}

impl Extend<u64> for Amount {
    /// One file for each size in bytes.
    fn extend<T: IntoIterator<Item = u64>>(&mut self, sizes_bytes: T) {
        for bytes in sizes_bytes {
            self.files += 1;
            self.bytes += bytes;
        }
    }
}

impl FromIterator<u64> for Amount {
    fn from_iter<T: IntoIterator<Item = u64>>(sizes_bytes: T) -> Self {
        let mut amount = Self::default();
        amount.extend(sizes_bytes);
        amount
    }
}
