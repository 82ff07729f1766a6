//! Delta tables: one per resource type. The only room that names deltalake.
//!
//! A table exists only from its first commit on. A commit carries the rows of one run *and* the watermark they stand
//! for (an application transaction), so the two cannot disagree.
//!
//! The modules, from the ground up: a module names only modules above it in this list.

// The words.
mod counts;
mod date_partition;
mod ids;
mod name;
mod error;
mod parallel;
mod properties;

/// One Parquet file, and what belongs to it.
mod data_file;

/// A log of which no commit is left.
mod lost_log;
/// Where the tables are, and how they are read and written.
mod config;
/// The folder of all tables, and a table at one version.
mod root;

/// Small documents beside the tables.
mod document;

/// What one run received for one table.
mod change_set;

/// What a table requires of its writers.
mod requirements;
/// One attempt at a commit, recognised by its identifier.
mod commit;
/// The tombstones of all types, in a table of their own.
mod tombstones;
/// A table is created, and gains columns.
mod evolve;
/// The rows of tables that are not of resources.
mod record;
/// What each run did.
mod ledger;
/// Lines that are not resources.
mod quarantine;
/// Who joined and left the groups of exports.
mod members;

/// The upsert: a change set and a table become one commit.
mod upsert;
/// An upsert whose rows another engine writes.
mod staging;
/// Compaction, checkpoints, vacuum.
mod maintain;
/// All rows decoded again, in one commit.
mod rebuild;

// For people who look at a result.
#[cfg(feature = "sql")]
mod query;
mod value_counts;

pub use self::{
    change_set::memory_budget::{MemoryBudget, MemoryDemand},
    change_set::{ChangeSet, OutputIndex, is_first_load, try_spool_folder},
    config::Config,
    counts::{ADOPTED, Amount, Committed, Counts, Extent, NewWatermark, Reconcile, RunCommit, Upsert},
    data_file::UpdateMode,
    data_file::properties::writer_properties,
    data_file::rolling::{DataFiles, FileTarget},
    date_partition::{DatePart, DatePartition},
    document::Exclusive,
    error::Error,
    ledger::{LedgerFile, LedgerRow},
    maintain::{DryRun, Maintained, MaintenanceOptions, MaintenanceStep, Retention},
    members::MemberRow,
    name::TableName,
    quarantine::{QuarantineFate, QuarantineRow},
    rebuild::{DecodeLines, rebuild},
    root::{CLOSE_IT, Root, Table, TableDefinition},
    staging::{
        Expected, MissingId, OPERATION, OPERATIONS, SEEN_HASH, SEEN_TRANSACTION_TIME, Seen, Staged, Staging, StoredRow,
        TARGET_ID,
    },
};

#[cfg(feature = "sql")]
pub use self::query::Answer;
pub use crate::store::{Location, metered::Requests};

/// Of the library that writes the log.
pub fn deltalake_version() -> &'static str {
    deltalake::crate_version()
}

#[cfg(test)]
mod tests;
