//! What a commit is for, and what it did, in numbers.

use crate::fhir::TransactionTime;

/// What a commit is for.
#[derive(Clone, Debug, Default)]
pub struct Upsert {
    /// Names the export in the log of the table.
    pub app_id: String,
    /// Only rows with this `_sync_source` are looked at.
    pub source: String,
    /// What the commit makes the table's watermark; without one the rows are upserted and the watermark stays.
    pub watermark: Option<TransactionTime>,
    /// When the server made the export, known or not whether it is whole.
    pub exported_at: Option<TransactionTime>,
    /// `_sync_at` and `_sync_job` of what the run brings.
    pub run_started_micros: i64,
    pub job: String,
    /// The number of the run, for people who read the table's history.
    pub run: u64,
    /// Set where the change set is everything that there is: rows that it does not have are removed.
    pub reconcile: Option<Reconcile>,
}

/// How rows are removed that a full refresh no longer brings. Servers that never speak of deletions leave
/// no other way to notice them.
#[derive(Clone, Copy, Debug)]
pub struct Reconcile {
    /// When more rows than this are gone, and they are more than this share of those that were stored, none is removed:
    /// that is a server in trouble, not a deletion (rule 98).
    pub max_missing: u64,
    pub max_missing_percent: f64,
}

/// What happened to the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub version: u64,
    pub counts: Counts,
    /// Bytes of data files written.
    pub bytes_written: u64,
    /// Commits of other writers, since our last one, that changed rows.
    pub foreign: u64,
}

/// What became of the rows and deletions of a change set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub inserted: u64,
    pub updated: u64,
    /// Equal to what was there already; a deletion of an id that was not there counts here.
    pub unchanged: u64,
    /// Older than what was there.
    pub stale: u64,
    /// Superseded within the same export.
    pub duplicate: u64,
    pub deleted: u64,
    /// Rows that a full refresh no longer brought, removed. They were not received, so they are no part of the total.
    pub removed: u64,
    /// The same, but too many to believe: they are still there.
    pub missing: u64,
}

impl Counts {
    pub fn total(&self) -> u64 {
        self.inserted + self.updated + self.unchanged + self.stale + self.duplicate + self.deleted
    }
}

/// Files and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
