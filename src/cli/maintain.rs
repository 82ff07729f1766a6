//! `maintain`: maintenance of the tables by hand, without an export.

use std::collections::BTreeSet;

use clap::Args;
use indicatif::HumanBytes;
use tokio_util::sync::CancellationToken;

use super::{
    ConfigFile,
    exit::{Exit, FAILED, STOPPED, failed, misconfigured, not_opened, stoppable},
    progress::with_progress,
    show::rows,
};
use crate::{
    config,
    fhir::ResourceType,
    sync::{DryRun, Maintained, MaintenanceRun, ProgressBoard, Retention, Syncer, TableName, TablesMaintained, chain},
    telemetry,
};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Resource types, or `deleted` for the table of tombstones, `runs` for the ledger, `quarantine`; without any:
    /// all tables of the configuration
    #[arg(value_name = "TYPE")]
    tables: Vec<TableName>,
    /// Show what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Vacuum by `maintenance.vacuum_retention` even where a table asks for a longer retention; queries that still read
    /// an older version may then fail
    #[arg(long)]
    force: bool,
    /// Rebuild all rows of these types from `resource_json`, with the columns of this version, and do nothing else
    #[arg(long, value_name = "TYPE", num_args = 1.., conflicts_with_all = ["tables", "dry_run", "force"])]
    rebuild: Vec<ResourceType>,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Exit> {
    let config = config::load(&arguments.config.path).map_err(misconfigured)?;
    telemetry::start(&config.log);
    let exports: Vec<_> = config.exports.into_iter().map(|scheduled| scheduled.export).collect();
    let (sender, progress) = ProgressBoard::new();
    let syncer = Syncer::open(config.server, config.tables, &config.state_file, config.sync, &exports, sender)
        .await
        .map_err(not_opened)?;
    if !arguments.rebuild.is_empty() {
        let result = rebuild(&syncer, &arguments.rebuild).await;
        syncer.close().await;
        return result;
    }
    let configured: BTreeSet<_> = exports.into_iter().flat_map(|export| export.types).collect();
    let all = || configured.into_iter().map(TableName::Resources).chain(TableName::OWN).collect();
    let asked: BTreeSet<_> = arguments.tables.into_iter().collect();
    let tables = if asked.is_empty() { all() } else { Vec::from_iter(asked) };
    let mut maintenance = config.maintenance.of_tables;
    if arguments.force {
        let duration = maintenance.tables.vacuum_retention.duration();
        maintenance.tables.vacuum_retention = Retention::Forced(duration);
    }
    let dry_run = if arguments.dry_run { DryRun::Yes } else { DryRun::No };
    let stop = CancellationToken::new();
    let work = syncer.maintain(&tables, &maintenance, dry_run, &stop);
    let tables = stoppable(with_progress(work, progress), &stop).await?;
    syncer.close().await;
    print(&tables, dry_run, &maintenance);
    if tables.iter().any(|(_, result)| result.is_err()) {
        return Err(FAILED);
    }
    if stop.is_cancelled() { Err(STOPPED) } else { Ok(()) }
}

async fn rebuild(syncer: &Syncer, types: &[ResourceType]) -> Result<(), Exit> {
    for resource_type in types {
        match syncer.rebuild(*resource_type).await {
            Ok(Some(committed)) => {
                say!("{resource_type}: {} rebuilt, version {}", rows(committed.counts.updated), committed.version);
            }
            Ok(None) => say!("{resource_type}: there is no table"),
            Err(error) => return Err(failed(&chain(&error))),
        }
    }
    Ok(())
}

fn print(tables: &TablesMaintained, dry_run: DryRun, maintenance: &MaintenanceRun) {
    let width = tables.iter().map(|(of, _)| of.as_str().len()).max().unwrap_or_default().max(8);
    say!(
        "{:width$} {:>9} {:>9} {:>9} {:>10} {:>10} {:>9} {:>9} {:>9}",
        "type",
        "rewritten",
        "bytes",
        "into",
        "purged",
        "checkpoint",
        "log files",
        "vacuumed",
        "bytes"
    );
    for (table, result) in tables {
        match result {
            Ok(done) => say!("{table:width$} {}", cells(done, dry_run)),
            Err(error) => say!("{table:width$} {}", chain(error)),
        }
    }
    let left: u64 = tables.iter().filter_map(|(_, result)| result.as_ref().ok()).map(|done| done.left).sum();
    if left > 0 {
        let limit = humantime::format_duration(maintenance.time_limit);
        say!("! not compacted yet, left for the next run: {left} groups of files (maintenance.time_limit is {limit})");
    }
    if dry_run == DryRun::Yes {
        say!("dry run: nothing was changed");
    }
}

fn cells(done: &Maintained, dry_run: DryRun) -> String {
    let into = if dry_run == DryRun::Yes { "-".to_owned() } else { done.written.files.to_string() };
    let checkpoint = done.checkpoint.map_or_else(|| "-".to_owned(), |version| version.to_string());
    format!(
        "{:>9} {:>9} {into:>9} {:>10} {checkpoint:>10} {:>9} {:>9} {:>9}",
        done.rewritten.files,
        HumanBytes(done.rewritten.bytes).to_string(),
        done.purged_rows + done.folded_rows + done.expired_rows,
        done.log_deleted.files,
        done.vacuumed.files,
        HumanBytes(done.vacuumed.bytes).to_string()
    )
}
