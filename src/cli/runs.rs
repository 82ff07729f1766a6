//! `runs`: the ledger, a row for each run and type.

use clap::Args;
use indicatif::HumanCount;

use super::{
    exit::{Exit, failed},
    look::{self, Looking, day_and_time},
};
use crate::{
    fhir::ResourceType,
    sync::{LedgerRow, chain},
};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    looking: Looking,
    /// Only this export
    #[arg(long, value_name = "NAME")]
    export: Option<String>,
    /// Only this resource type
    #[arg(long = "type", value_name = "TYPE")]
    resource_type: Option<ResourceType>,
    /// Only the newest runs
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
}

/// Asks no server, and needs neither key nor state file, so it works beside a running daemon.
pub(super) async fn run(arguments: Arguments) -> Result<(), Exit> {
    let (config, root) = arguments.looking.open()?;
    let rows = root.ledger().await.map_err(|error| failed(&chain(&error)))?;
    let configured = || config.exports.iter().map(|scheduled| scheduled.export.name.as_str());
    if let Some(name) = arguments.export.as_deref()
        && !configured().chain(rows.iter().map(|row| row.export.as_str())).any(|known| known == name)
    {
        return Err(look::no_such_export(name, configured()));
    }
    let rows = selected(rows, &arguments);
    if arguments.looking.json {
        return look::print_json(&rows);
    }
    look::print(&text(&rows))
}

/// The rows of the newest runs that are asked for, the oldest first.
fn selected(rows: Vec<LedgerRow>, arguments: &Arguments) -> Vec<LedgerRow> {
    let is_asked_for = |row: &LedgerRow| {
        arguments.export.as_ref().is_none_or(|export| row.export == *export)
            && arguments.resource_type.is_none_or(|of| row.resource_type == of.as_str())
    };
    let rows: Vec<_> = rows.into_iter().filter(is_asked_for).collect();
    let run = |row: &LedgerRow| (row.started_at, row.run);
    let mut runs: Vec<_> = rows.iter().map(run).collect();
    runs.sort_unstable();
    runs.dedup();
    let newest = runs.split_off(runs.len().saturating_sub(arguments.limit));
    rows.into_iter().filter(|row| newest.contains(&run(row))).collect()
}

const HEAD: [&str; 6] = ["type", "received", "changed", "quarantined", "watermark (UTC)", "end"];

/// Each run with its types, the oldest first.
fn text(rows: &[LedgerRow]) -> String {
    if rows.is_empty() {
        return "no such run in the ledger\n".to_owned();
    }
    let is_same = |one: &LedgerRow, other: &LedgerRow| (&one.export, one.run) == (&other.export, other.run);
    let runs = rows.chunk_by(is_same).map(|run| {
        let first = &run[0];
        let (export, number, mode, began) = (&first.export, first.run, &first.mode, day_and_time(first.started_at));
        let causes = run.iter().filter_map(|row| Some(format!("! {}: {}\n", row.resource_type, row.cause.as_ref()?)));
        let table = look::columns(&HEAD, run.iter().map(cells));
        format!("export {export}, run {number}, {mode}, began {began} UTC\n{table}{}", causes.collect::<String>())
    });
    runs.collect::<Vec<_>>().join("\n")
}

fn cells(row: &LedgerRow) -> [String; 6] {
    let changed = row.inserted + row.updated + row.deleted + row.removed;
    [
        row.resource_type.clone(),
        HumanCount(row.received).to_string(),
        HumanCount(changed).to_string(),
        HumanCount(row.quarantined).to_string(),
        day_and_time(row.watermark_after),
        row.end.clone(),
    ]
}
