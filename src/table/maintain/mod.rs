//! Maintenance: what keeps a table quick to read and small on the disk. It changes no row and no watermark.
//!
//! Small files are compacted and deleted rows are purged from their files. The log gets a checkpoint and loses its oldest
//! commits. Files that no version within the retention needs are deleted. This is the order, and everything new is on the
//! disk before anything old is deleted. Watermarks are in the log, and a checkpoint takes them over. When another writer
//! commits at the same moment, maintenance gives way.

mod compact;
mod fold;
mod log;
mod plan;
mod vacuum;

use std::{collections::BTreeSet, str::FromStr, sync::Arc, time::Duration};

use arrow::datatypes::{DataType, Field, Schema};
use chrono::{DateTime, Utc};
use deltalake::{checkpoints::create_checkpoint, table::config::TablePropertiesExt as _};

use self::{compact::compact, log::Log, vacuum::vacuum};
use super::{Amount, Error, Root, Table, TableName, requirements::check_writable};

/// How tables are maintained.
#[derive(Clone, Debug, PartialEq)]
pub struct MaintenanceOptions {
    pub steps: BTreeSet<MaintenanceStep>,
    /// Files smaller than half of this are compacted into files of up to this size.
    pub target_file_bytes: u64,
    /// A file is rewritten without its deleted rows when they are at least this share of all its rows.
    pub purge_percent: f64,
    pub vacuum_retention: Retention,
    /// How long commits are kept in the log, unless the table itself asks for longer.
    pub log_retention: Duration,
}

/// The steps, in the order in which they are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRun {
    No,
    /// Reports what would be done, and changes nothing.
    Yes,
}

/// What was done to a table, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Data files that were compacted or purged.
    pub rewritten: Amount,
    /// The files that replace them; a dry run does not know.
    pub written: Amount,
    /// Deleted rows that were removed from their files.
    pub purged_rows: u64,
    /// Tombstones that were dropped because others cover them; a dry run does not know.
    pub folded_rows: u64,
    /// Groups of files that are left for the next maintenance, because this one had to end.
    pub left: u64,
    /// The version of the new checkpoint.
    pub checkpoint: Option<u64>,
    pub log_deleted: Amount,
    pub vacuumed: Amount,
}

/// Fewer commits are not worth a checkpoint.
const COMMITS_PER_CHECKPOINT: u64 = 10;

impl Root {
    /// Maintains a table; `None` where there is none. `goes_on` is asked before each group of files is compacted, the only
    /// step that can take long. Blocks on encoding and decoding; the caller gives this a thread of its own.
    ///
    /// `now` is the local clock, because the ages of files come from the store and not from the data.
    pub async fn maintain(
        &self,
        name: impl Into<TableName>,
        options: &MaintenanceOptions,
        dry_run: DryRun,
        now: DateTime<Utc>,
        goes_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Maintained>, Error> {
        let Some(mut table) = self.load(name.into()).await? else { return Ok(None) };
        let wants = |step| options.steps.contains(&step);
        check_maintainable(&table)?;
        if wants(MaintenanceStep::Vacuum) {
            check_retention(&table, options.vacuum_retention)?;
        }
        let mut done = Maintained::default();
        if wants(MaintenanceStep::Compact) || wants(MaintenanceStep::Purge) {
            compact(&mut table, options, dry_run, goes_on, &mut done).await?;
        }
        if wants(MaintenanceStep::Checkpoint) {
            done.checkpoint = checkpoint(&table, dry_run).await?;
        }
        if dry_run == DryRun::No {
            self.sync_to_disk()?;
        }
        if wants(MaintenanceStep::CleanLog) {
            done.log_deleted = clean_log(&table, options.log_retention, dry_run, now).await?;
        }
        if wants(MaintenanceStep::Vacuum) {
            done.vacuumed = vacuum(&table, options.vacuum_retention.duration(), dry_run, now).await?;
        }
        Ok(Some(done))
    }
}

/// Tables of other writers are theirs to maintain, and a rewrite must not lose what it does not understand.
fn check_maintainable(table: &Table) -> Result<(), Error> {
    let own = ["id", "_sync_source", "_sync_at", "_sync_transaction_time"];
    let own = own.map(|name| Field::new(name, DataType::Null, true));
    check_writable(table, &Arc::new(Schema::new(own.to_vec())))
}

fn check_retention(table: &Table, retention: Retention) -> Result<(), Error> {
    let snapshot = table.delta.snapshot().map_err(|error| table.failed(error))?;
    let stated = snapshot.table_config().deleted_file_retention_duration();
    match retention {
        Retention::Checked(asked) if asked < stated => Err(Error::Retention {
            place: table.place.clone(),
            stated: humantime::format_duration(stated).to_string(),
            asked: humantime::format_duration(asked).to_string(),
        }),
        Retention::Checked(_) | Retention::Forced(_) => Ok(()),
    }
}

/// Writes a checkpoint where the newest one is some commits old.
async fn checkpoint(table: &Table, dry_run: DryRun) -> Result<Option<u64>, Error> {
    let log = Log::list(table).await?;
    let begins_at = log.newest_checkpoint().map_or(0, |version| version + 1);
    if table.version() + 1 < begins_at + COMMITS_PER_CHECKPOINT {
        return Ok(None);
    }
    if dry_run == DryRun::No {
        create_checkpoint(&table.delta, None).await.map_err(|error| table.failed(error))?;
    }
    Ok(Some(table.version()))
}

async fn clean_log(table: &Table, retention: Duration, dry_run: DryRun, now: DateTime<Utc>) -> Result<Amount, Error> {
    let snapshot = table.delta.snapshot().map_err(|error| table.failed(error))?;
    let config = snapshot.table_config();
    if !config.enable_expired_log_cleanup() {
        return Ok(Amount::default());
    }
    let retention = retention.max(config.log_retention_duration());
    let expired = Log::list(table).await?.expired(table.version(), now - retention);
    if dry_run == DryRun::Yes {
        return Ok(expired.amount());
    }
    expired.delete(table).await
}
