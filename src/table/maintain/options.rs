//! The options of maintenance, and what it reports.

use std::{collections::BTreeSet, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::table::Amount;

/// How tables are maintained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MaintenanceOptions {
    pub steps: BTreeSet<MaintenanceStep>,
    /// Files smaller than half of this are compacted into files of up to this size.
    pub target_file_bytes: u64,
    /// A file is rewritten without its deleted rows when they are at least this share of all its rows.
    pub purge_percent: f64,
    pub vacuum_retention: Retention,
    /// How long commits are kept in the log, unless the table itself asks for longer.
    pub log_retention: Duration,
    /// How long a line is kept in the quarantine.
    pub quarantine_retention: Duration,
}

/// The steps, in the order in which they are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum MaintenanceStep {
    Compact,
    Purge,
    Checkpoint,
    CleanLog,
    Vacuum,
}

impl MaintenanceStep {
    pub const ALL: [Self; 5] = [Self::Compact, Self::Purge, Self::Checkpoint, Self::CleanLog, Self::Vacuum];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Compact => "compact",
            Self::Purge => "purge",
            Self::Checkpoint => "checkpoint",
            Self::CleanLog => "clean_log",
            Self::Vacuum => "vacuum",
        }
    }
}

impl FromStr for MaintenanceStep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|step| step.as_str() == text);
        known.ok_or_else(|| format!("is not one of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// How long a file stays after the commit that removed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retention {
    /// Refused where the table itself asks for longer.
    Checked(Duration),
    /// Whatever the table asks for: readers of older versions may miss files.
    Forced(Duration),
}

impl Retention {
    pub fn duration(self) -> Duration {
        match self {
            Self::Checked(duration) | Self::Forced(duration) => duration,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DryRun {
    No,
    /// Reports what would be done, and changes nothing.
    Yes,
}

/// What was done to a table, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Maintained {
    /// Data files that were compacted or purged.
    pub rewritten: Amount,
    /// The files that replace them; a dry run does not know.
    pub written: Amount,
    /// Deleted rows that were removed from their files.
    pub purged_rows: u64,
    /// Tombstones that were dropped because others cover them; a dry run does not know.
    pub folded_rows: u64,
    /// Rows of the quarantine that are older than it keeps them.
    pub expired_rows: u64,
    /// Groups of files that are left for the next maintenance, because this one had to end.
    pub left: u64,
    /// The version of the new checkpoint.
    pub checkpoint: Option<u64>,
    pub log_deleted: Amount,
    pub vacuumed: Amount,
}
