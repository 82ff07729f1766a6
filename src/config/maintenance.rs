//! The settings of maintenance: when, how long, and what is done to a table.

use std::str::FromStr as _;

use super::{Section, bytes, duration, parsed, percent, positive_duration};
use crate::{
    schedule::Pattern,
    sync,
    table::{self, MaintenanceStep, Retention},
};

/// When the tables are maintained, and how.
#[derive(Clone, Debug)]
pub struct Maintenance {
    /// `None`: only by hand.
    pub schedule: Option<Pattern>,
    pub of_tables: sync::MaintenanceRun,
}

pub(super) fn read(mut section: Section) -> Option<Maintenance> {
    let schedule = section.or("schedule", "0 30 2 * * *", |text| match text {
        "off" => Ok(None),
        text => Pattern::from_str(text).map(Some),
    });
    let time_limit = section.or("time_limit", "30m", positive_duration);
    let steps = section.list("steps", parsed::<MaintenanceStep>);
    let target_file_bytes = section.or("target_file_size", "128MiB", bytes);
    let purge_percent = section.or("purge_percent", "10", percent);
    let vacuum_retention = section.or("vacuum_retention", "7days", duration);
    let log_retention = section.or("log_retention", "30days", duration);
    let quarantine_retention = section.or("quarantine_retention", "90days", duration);
    if let (Some(vacuum), Some(log)) = (vacuum_retention, log_retention)
        && log < vacuum
    {
        section
            .mistake("log_retention", "is shorter than vacuum_retention; the log records which files are still needed");
    }
    section.end();
    let steps = steps?;
    let tables = table::MaintenanceOptions {
        steps: if steps.is_empty() { MaintenanceStep::ALL.into() } else { steps.into_iter().collect() },
        target_file_bytes: target_file_bytes?,
        purge_percent: purge_percent?,
        vacuum_retention: Retention::Checked(vacuum_retention?),
        log_retention: log_retention?,
        quarantine_retention: quarantine_retention?,
    };
    Some(Maintenance { schedule: schedule?, of_tables: sync::MaintenanceRun { tables, time_limit: time_limit? } })
}
