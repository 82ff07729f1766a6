//! `maintain`: maintenance of the tables by hand, without an export.

use std::collections::BTreeSet;

use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

use super::{
    ConfigFile,
    by_hand::{ByHand, unexpected},
    columns,
    exit::{Exit, FAILED, STOPPED, misconfigured},
    look,
    show::rows,
};
use crate::{
    config,
    control::{Answer, Work},
    fhir::ResourceType,
    sync::{DryRun, Maintained, MaintenanceRun, Retention, TableName},
    telemetry,
};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// Resource types, or `deleted` for the table of tombstones, `runs` for the ledger, `quarantine`, `members`;
    /// without any: all tables of the configuration
    #[arg(value_name = "TYPE")]
    tables: Vec<TableName>,
    /// Show what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Vacuum by `maintenance.vacuum_retention` even where a table asks for a longer retention; queries that still read
    /// an older version may then fail
    #[arg(long)]
    force: bool,
    /// What was done to each table, or would be, as JSON for programs
    #[arg(long)]
    json: bool,
    /// Rebuild all rows of these types from `resource_json`, with the columns of this version, and do nothing else
    #[arg(long, value_name = "TYPE", num_args = 1.., conflicts_with_all = ["tables", "dry_run", "force", "json"])]
    rebuild: Vec<ResourceType>,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Exit> {
    let (config, _) = config::check(&arguments.config.path).map_err(misconfigured)?;
    telemetry::start(&config.log);
    let types = config.exports.iter().flat_map(|scheduled| scheduled.export.types.iter().copied());
    let configured: BTreeSet<_> = types.collect();
    let mut maintenance = config.maintenance.of_tables.clone();
    let by_hand = ByHand::open(config, Ok).await?;
    if !arguments.rebuild.is_empty() {
        let result = rebuild(&by_hand, &arguments.rebuild).await;
        by_hand.close().await;
        return result;
    }
    let all = || configured.into_iter().map(TableName::Resources).chain(TableName::OWN).collect();
    let asked: BTreeSet<_> = arguments.tables.into_iter().collect();
    let tables = if asked.is_empty() { all() } else { Vec::from_iter(asked) };
    if arguments.force {
        let duration = maintenance.tables.vacuum_retention.duration();
        maintenance.tables.vacuum_retention = Retention::Forced(duration);
    }
    let dry_run = if arguments.dry_run { DryRun::Yes } else { DryRun::No };
    let work = Work::Maintain { tables, maintenance: maintenance.clone(), dry_run };
    let Answer::Maintained(tables) = by_hand.work(work).await? else { return Err(unexpected()) };
    let is_stopped = by_hand.is_stopped();
    by_hand.close().await;
    if arguments.json {
        look::print_json(&Reported::of(&tables, dry_run))?;
    } else {
        print(&tables, dry_run, &maintenance);
    }
    if tables.iter().any(|(_, result)| result.is_err()) {
        return Err(FAILED);
    }
    if is_stopped { Err(STOPPED) } else { Ok(()) }
}

async fn rebuild(by_hand: &ByHand, types: &[ResourceType]) -> Result<(), Exit> {
    for resource_type in types {
        match by_hand.work(Work::Rebuild(*resource_type)).await? {
            Answer::Rebuilt(Some(done)) => {
                say!("{resource_type}: {} rebuilt, version {}", rows(done.rows), done.version);
            }
            Answer::Rebuilt(None) => say!("{resource_type}: there is no table"),
            _ => return Err(unexpected()),
        }
    }
    Ok(())
}

const HEAD: [&str; 9] =
    ["table", "rewritten", "bytes", "into", "purged", "checkpoint", "log files", "vacuumed", "vacuumed bytes"];

fn print(tables: &[(TableName, Result<Maintained, String>)], dry_run: DryRun, maintenance: &MaintenanceRun) {
    say!("{}", columns::columns(&HEAD, tables.iter().map(|(table, result)| cells(*table, result, dry_run))).trim_end());
    for (table, result) in tables {
        if let Err(error) = result {
            say!("! {table}: {error}");
        }
    }
    let left: u64 = tables.iter().filter_map(|(_, result)| result.as_ref().ok()).map(|done| done.left).sum();
    if left > 0 {
        let limit = humantime::format_duration(maintenance.time_limit);
        say!("! not compacted yet, left for the next run: {left} groups of files (maintenance.time_limit is {limit})");
    }
    let was_done = |done: &Maintained| *done != Maintained::default();
    if tables.iter().all(|(_, result)| result.as_ref().is_ok_and(|done| !was_done(done))) {
        say!("nothing was to be done");
    }
    if dry_run == DryRun::Yes {
        say!("dry run: nothing was changed");
    }
}

fn cells(table: TableName, result: &Result<Maintained, String>, dry_run: DryRun) -> [String; 9] {
    let dash = || "-".to_owned();
    let Ok(done) = result else {
        let mut cells = [(); 9].map(|()| dash());
        cells[0] = table.to_string();
        return cells;
    };
    [
        table.to_string(),
        done.rewritten.files.to_string(),
        HumanBytes(done.rewritten.bytes).to_string(),
        if dry_run == DryRun::Yes { dash() } else { done.written.files.to_string() },
        (done.purged_rows + done.folded_rows + done.expired_rows).to_string(),
        done.checkpoint.map_or_else(dash, |version| version.to_string()),
        done.log_deleted.files.to_string(),
        done.vacuumed.files.to_string(),
        HumanBytes(done.vacuumed.bytes).to_string(),
    ]
}

/// What a maintenance did, or would do.
#[derive(Serialize)]
struct Reported<'a> {
    dry_run: bool,
    tables: Vec<ReportedTable<'a>>,
}

#[derive(Serialize)]
struct ReportedTable<'a> {
    table: String,
    /// Absent where it failed.
    #[serde(flatten)]
    done: Option<&'a Maintained>,
    error: Option<&'a str>,
}

impl<'a> Reported<'a> {
    fn of(tables: &'a [(TableName, Result<Maintained, String>)], dry_run: DryRun) -> Self {
        let tables = tables.iter().map(|(table, result)| ReportedTable {
            table: table.to_string(),
            done: result.as_ref().ok(),
            error: result.as_ref().err().map(String::as_str),
        });
        Self { dry_run: dry_run == DryRun::Yes, tables: tables.collect() }
    }
}
