//! Maintenance: what keeps a table quick to read and small on the disk. It changes no row and no watermark.
//!
//! Small files are compacted and deleted rows are purged from their files. The log gets a checkpoint and loses its
//! oldest commits. Files that no version within the retention needs are deleted. This is the order, and everything new
//! is on the disk before anything old is deleted. Watermarks are in the log, and a checkpoint takes them over. When
//! another writer commits at the same moment, maintenance gives way.

mod compact;
mod fold;
mod groups;
mod log;
mod options;
mod vacuum;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use arrow::datatypes::{DataType, Field, Schema};
use chrono::{DateTime, TimeDelta, Utc};
use deltalake::{checkpoints::create_checkpoint, table::config::TablePropertiesExt as _};

pub use self::options::{DryRun, Maintained, MaintenanceOptions, MaintenanceStep, Retention};
use self::{compact::compact, log::Log, vacuum::vacuum};
use super::{
    Amount, Error, QuarantineFate, QuarantineRow, Root, Table, TableName, commit::newest_watermark, name::DELETED_FROM,
    quarantine, requirements::check_writable,
};
use crate::fhir::{ResourceType, TransactionTime};

/// Fewer commits are not worth a checkpoint.
const COMMITS_PER_CHECKPOINT: u64 = 10;

impl Root {
    /// Maintains a table; `None` where there is none. `goes_on` is asked before each group of files is compacted, the
    /// only step that can take long. Blocks on encoding and decoding; the caller gives this a thread of its own.
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
        self.check_lease().await?;
        let wants = |step| options.steps.contains(&step);
        check_maintainable(&table)?;
        let mut done = Maintained::default();
        if table.name == TableName::Quarantine && wants(MaintenanceStep::Purge) {
            done.expired_rows = expire(&mut table, options, dry_run, now).await?;
        }
        if wants(MaintenanceStep::Compact) || wants(MaintenanceStep::Purge) {
            compact(&mut table, options, dry_run, goes_on, &mut done).await?;
        }
        if wants(MaintenanceStep::Checkpoint) {
            done.checkpoint = checkpoint(&table, dry_run).await?;
        }
        if dry_run == DryRun::No {
            self.sync_to_disk()?;
            // Whoever has taken over may need what is deleted now.
            self.check_lease().await?;
        }
        let is_trusted = clock_is_trusted(&table, options.vacuum_retention, now).await?;
        if wants(MaintenanceStep::CleanLog) && is_trusted {
            done.log_deleted = clean_log(&table, options.log_retention, dry_run, now).await?;
        }
        if wants(MaintenanceStep::Vacuum) {
            // The steps before have been done: without a checkpoint the log that is read at each sync would grow.
            check_retention(&table, options.vacuum_retention)?;
        }
        if wants(MaintenanceStep::Vacuum) && is_trusted {
            done.vacuumed = vacuum(&table, options.vacuum_retention.duration(), dry_run, now).await?;
        }
        Ok(Some(done))
    }
}

/// Drops what has been in the quarantine for longer than it is kept there; returns how many rows.
async fn expire(
    table: &mut Table,
    options: &MaintenanceOptions,
    dry_run: DryRun,
    now: DateTime<Utc>,
) -> Result<u64, Error> {
    let is_trusted = clock_is_trusted(table, options.vacuum_retention, now).await?;
    let retention = TimeDelta::from_std(options.quarantine_retention).unwrap_or(TimeDelta::MAX);
    let Some(oldest) = now.checked_sub_signed(retention).filter(|_| is_trusted) else { return Ok(0) };
    let fate = |row: &QuarantineRow| match row.first_seen {
        Some(first_seen) if first_seen < oldest => QuarantineFate::Dropped,
        _ => QuarantineFate::Stays,
    };
    match dry_run {
        DryRun::Yes => quarantine::count_changes(table, &fate).await,
        DryRun::No => quarantine::change(table, &fate).await,
    }
}

/// Tables of other writers are theirs to maintain, and a rewrite must not lose what it does not understand.
fn check_maintainable(table: &Table) -> Result<(), Error> {
    let own: &[&str] = match table.name {
        TableName::Resources(_) | TableName::Tombstones => {
            &["id", "_sync_source", "_sync_at", "_sync_transaction_time"]
        }
        TableName::Runs => &["run", "resource_type"],
        TableName::Quarantine => &["id", "run", "first_seen"],
        TableName::Members => &["patient", "event"],
    };
    let own = own.iter().map(|name| Field::new(*name, DataType::Null, true));
    check_writable(table, &Arc::new(Schema::new(own.collect::<Vec<_>>())))
}

/// Further ahead of the newest transactionTime than this, the local clock is more likely wrong than the server silent.
/// Then everything looks old enough to be deleted.
const MAX_CLOCK_AHEAD: TimeDelta = TimeDelta::days(5);

/// May files be deleted by their age? The operator's `--force` says so in any case.
async fn clock_is_trusted(table: &Table, retention: Retention, now: DateTime<Utc>) -> Result<bool, Error> {
    if matches!(retention, Retention::Forced(_)) {
        return Ok(true);
    }
    let newest = match table.name {
        TableName::Resources(_) | TableName::Runs | TableName::Members => newest_watermark(table).await?,
        TableName::Tombstones => newest_of(table, deleted_types(table).await?).await?,
        TableName::Quarantine => newest_of(table, quarantine::types(table).await?).await?,
    };
    let Some(newest) = newest.filter(|newest| now - newest.instant() > MAX_CLOCK_AHEAD) else { return Ok(true) };
    tracing::warn!(
        table = %table.name, %newest, %now,
        "the local clock is days ahead of the newest transactionTime of the table: nothing is vacuumed, and the log \
         keeps its commits. Check the clock; if it is right, sync first, or use `fhir-sync maintain --force`"
    );
    Ok(false)
}

async fn deleted_types(table: &Table) -> Result<BTreeSet<String>, Error> {
    let files = table.stored_files().await?;
    Ok(files.into_iter().filter_map(|mut file| file.add.partition_values.remove(DELETED_FROM)?).collect())
}

/// Tombstones and quarantine have no watermark; those of the tables that they are about say how far the server's clock
/// is.
async fn newest_of(table: &Table, types: BTreeSet<String>) -> Result<Option<TransactionTime>, Error> {
    let mut newest = None;
    for resource_type in types.iter().filter_map(|name| name.parse::<ResourceType>().ok()) {
        if let Some(table) = table.root.open(resource_type).await? {
            newest = newest.max(newest_watermark(&table).await?);
        }
    }
    Ok(newest)
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
