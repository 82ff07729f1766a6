//! Maintenance: what keeps a table quick to read and small on the disk, and changes nothing of what it says.
//!
//! Small files are put together and dead rows leave them; the log gets a checkpoint and loses its oldest commits; files
//! that no version within the retention needs are deleted. In this order, and the disk has what is new before anything
//! old goes. Watermarks stay: they lie in the log, and a checkpoint carries them on. Another writer always wins.

mod compact;
mod fold;
mod log;
mod vacuum;

use std::{collections::BTreeSet, str::FromStr, sync::Arc, time::Duration};

use arrow::datatypes::{DataType, Field, Schema};
use chrono::{DateTime, Utc};
use deltalake::{checkpoints::create_checkpoint, table::config::TablePropertiesExt as _};

use self::log::Log;
use super::{Amount, Error, Root, Table, TableName};

/// How tables are maintained.
#[derive(Clone, Debug, PartialEq)]
pub struct Maintenance {
    pub steps: BTreeSet<Step>,
    /// Files of less than half of this are put together, up to this size.
    pub target_file_bytes: u64,
    /// A file is written again without its dead rows when they are at least this share of all its rows.
    pub purge_percent: f64,
    pub vacuum_retention: Retention,
    /// How long commits are kept in the log; what the table itself says counts where it is longer.
    pub log_retention: Duration,
}

/// What is done, in the order of this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Compact,
    Purge,
    Checkpoint,
    CleanLog,
    Vacuum,
}

impl Step {
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

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|step| step.as_str() == text);
        known.ok_or_else(|| format!("is none of {}", Self::ALL.map(Self::as_str).join(", ")))
    }
}

/// How long a file stays after the commit that removed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Refused where the table itself asks for longer.
    Checked(Duration),
    /// Whatever the table says: readers of older versions may find files gone.
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
    /// Says what would be done, and changes nothing.
    Yes,
}

/// What was done to a table, or would be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Maintained {
    /// Data files that were put together or purged.
    pub rewritten: Amount,
    /// Those that were written instead; a dry run does not know.
    pub written: Amount,
    /// Dead rows that left.
    pub purged_rows: u64,
    /// Rows of the table of deletions that left because others stand for them; a dry run does not know.
    pub folded_rows: u64,
    /// Groups of files that are left for the next time, because this one was to end.
    pub left: u64,
    /// The version of the new checkpoint.
    pub checkpoint: Option<u64>,
    pub log_deleted: Amount,
    pub vacuumed: Amount,
}

/// A checkpoint is worth its size only after some commits.
const COMMITS_PER_CHECKPOINT: u64 = 10;

impl Root {
    /// Maintains a table; `None` where there is none. `goes_on` is asked before each group of files,
    /// the only step that can take long. Blocks on encoding and decoding; the caller gives this a thread of its own.
    ///
    /// `now` is the local clock: ages of files are no matter of data.
    pub async fn maintain(
        &self,
        name: impl Into<TableName>,
        maintenance: &Maintenance,
        dry_run: DryRun,
        now: DateTime<Utc>,
        goes_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Option<Maintained>, Error> {
        let Some(mut table) = self.load(name.into()).await? else { return Ok(None) };
        let wants = |step| maintenance.steps.contains(&step);
        table.check_maintainable()?;
        if wants(Step::Vacuum) {
            table.check_retention(maintenance.vacuum_retention)?;
        }
        let mut done = Maintained::default();
        if wants(Step::Compact) || wants(Step::Purge) {
            table.compact(maintenance, dry_run, goes_on, &mut done).await?;
        }
        if wants(Step::Checkpoint) {
            done.checkpoint = table.checkpoint(dry_run).await?;
        }
        if dry_run == DryRun::No {
            self.sync_to_disk()?;
        }
        if wants(Step::CleanLog) {
            done.log_deleted = table.clean_log(maintenance.log_retention, dry_run, now).await?;
        }
        if wants(Step::Vacuum) {
            done.vacuumed = table.vacuum(maintenance.vacuum_retention.duration(), dry_run, now).await?;
        }
        Ok(Some(done))
    }
}

impl Table {
    /// Tables of others are theirs to maintain, and a rewrite must not lose what we do not understand.
    fn check_maintainable(&self) -> Result<(), Error> {
        let own = ["id", "_sync_source", "_sync_at", "_sync_transaction_time"];
        let own = own.map(|name| Field::new(name, DataType::Null, true));
        self.check_writable(&Arc::new(Schema::new(own.to_vec())))
    }

    fn check_retention(&self, retention: Retention) -> Result<(), Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let stated = snapshot.table_config().deleted_file_retention_duration();
        match retention {
            Retention::Checked(asked) if asked < stated => Err(Error::Retention {
                place: self.place.clone(),
                stated: humantime::format_duration(stated).to_string(),
                asked: humantime::format_duration(asked).to_string(),
            }),
            Retention::Checked(_) | Retention::Forced(_) => Ok(()),
        }
    }

    /// Makes a checkpoint where the newest one is some commits old.
    async fn checkpoint(&self, dry_run: DryRun) -> Result<Option<u64>, Error> {
        let log = Log::list(self).await?;
        let begins_at = log.newest_checkpoint().map_or(0, |version| version + 1);
        if self.version() + 1 < begins_at + COMMITS_PER_CHECKPOINT {
            return Ok(None);
        }
        if dry_run == DryRun::No {
            create_checkpoint(&self.delta, None).await.map_err(|error| self.failed(error))?;
        }
        Ok(Some(self.version()))
    }

    async fn clean_log(&self, retention: Duration, dry_run: DryRun, now: DateTime<Utc>) -> Result<Amount, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let config = snapshot.table_config();
        if !config.enable_expired_log_cleanup() {
            return Ok(Amount::default());
        }
        let retention = retention.max(config.log_retention_duration());
        let expired = Log::list(self).await?.expired(self.version(), now - retention);
        if dry_run == DryRun::Yes {
            return Ok(expired.amount());
        }
        expired.delete(self).await
    }
}
