//! `verify`: do the tables and the ledger agree? The rows of each table are counted, and the counts of all runs added
//! up. With `--online` the server is asked for its own counts.
//!
//! No row is read: the counts of rows are those of the Delta log.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use super::{
    exit::{Exit, FAILED, failed},
    look::{self, Looking},
};
use crate::{
    fhir::ResourceType,
    sync::{Engine, LedgerRow, ServerCounts, chain},
};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    looking: Looking,
    /// Also ask the server how many resources of each type it has
    #[arg(long)]
    online: bool,
}

/// What was found for one table.
#[derive(Serialize)]
struct Verified {
    resource_type: String,
    /// Runs in the ledger that wrote the table.
    runs: u64,
    /// In the table now; absent where there is none.
    rows: Option<u64>,
    /// What the runs have inserted, less what they removed; absent where the ledger does not have all of them.
    rows_by_ledger: Option<i64>,
    /// Why the table could not be compared.
    not_compared: Option<&'static str>,
    /// What the server has, by its own count; absent where it was not asked or does not say.
    on_server: Option<u64>,
    /// Why the server's count could not be compared.
    server_not_compared: Option<String>,
    /// Sentences; none where all is as it should be.
    differences: Vec<String>,
}

/// Without `--online` it asks no server, and needs neither key nor lock. Ends with 1 where something differs.
pub(super) async fn run(arguments: Arguments) -> Result<(), Exit> {
    let (config, root) = arguments.looking.open()?;
    let exports: Vec<_> = config.exports.into_iter().map(|scheduled| scheduled.export).collect();
    let mut types: Vec<_> = exports.iter().flat_map(|export| export.types.iter().copied()).collect();
    types.sort();
    types.dedup();
    let server = if arguments.online {
        let server = arguments.looking.configuration_with_key()?.server;
        let counts = ServerCounts::open(server, &root, &config.sync, exports).await;
        Some(counts.map_err(|error| failed(&chain(&error)))?)
    } else {
        None
    };
    let mut by_type = BTreeMap::<_, Vec<_>>::new();
    for row in root.ledger().await.map_err(|error| failed(&chain(&error)))? {
        by_type.entry(row.resource_type.clone()).or_default().push(row);
    }
    let engine = Engine::of(&root, config.sync.spark.as_ref()).map_err(|error| failed(&chain(&error)))?;
    let mut all = Vec::new();
    for resource_type in types {
        let ledger = by_type.remove(resource_type.as_str()).unwrap_or_default();
        let mut verified = verify(&engine, resource_type, &ledger).await;
        if let Some(server) = &server {
            match server.of(resource_type).await {
                Ok(on_server) => verified.compare_with(on_server),
                Err(reason) => verified.server_not_compared = Some(reason),
            }
        }
        all.push(verified);
    }
    if arguments.looking.json {
        look::print_json(&all)?;
    } else {
        look::print(&text(&all, arguments.online))?;
    }
    if all.iter().all(|verified| verified.differences.is_empty()) { Ok(()) } else { Err(FAILED) }
}

async fn verify(engine: &Engine, resource_type: ResourceType, ledger: &[LedgerRow]) -> Verified {
    let (is_there, rows) = match engine.open(resource_type).await {
        Ok(None) => (false, Ok(None)),
        Ok(Some(table)) => (true, table.row_count().await),
        Err(error) => (true, Err(error)),
    };
    match rows {
        Ok(rows) => compare(resource_type.as_str(), is_there, rows, ledger),
        Err(error) => Verified { differences: vec![chain(&error)], ..compare(resource_type.as_str(), true, None, &[]) },
    }
}

impl Verified {
    /// The rows of a table are those of its last sync, and the server counts what it has now.
    fn compare_with(&mut self, on_server: u64) {
        self.on_server = Some(on_server);
        match self.rows {
            Some(rows) if rows != on_server => {
                // Most servers report no deletion.
                let way_out =
                    "; if it has deleted the others without a report, fhir-sync sync --full-refresh finds them";
                let way_out = if rows > on_server { way_out } else { "" };
                let rows = in_words(rows);
                self.differences.push(format!("the table has {rows}, and the server has {on_server} now{way_out}"));
            }
            None if self.differences.is_empty() && on_server > 0 => {
                self.differences.push(format!("there is no table, and the server has {on_server}"));
            }
            _ => {}
        }
    }

    /// In a sentence.
    fn result(&self, online: bool) -> String {
        if !self.differences.is_empty() {
            return self.differences.join("; ");
        }
        let ledger = self.not_compared.map(|why| format!("not compared with the ledger: {why}"));
        let server = self.server_not_compared.as_ref().map(|why| format!("not compared with the server: {why}"));
        let not_compared: Vec<_> = ledger.into_iter().chain(server).collect();
        match not_compared.len() {
            0 => "agrees".to_owned(),
            1 if online => format!("agrees; {}", not_compared.join("; ")),
            _ => not_compared.join("; "),
        }
    }
}

fn compare(resource_type: &str, is_there: bool, rows: Option<u64>, ledger: &[LedgerRow]) -> Verified {
    let written: Vec<_> = ledger.iter().filter(|row| row.table_version.is_some()).collect();
    let mut differences: Vec<_> = written.iter().filter_map(|row| unbalanced(row)).collect();
    let first = written.iter().filter_map(|row| row.table_version).min();
    let not_compared = if written.is_empty() {
        Some("no run in the ledger wrote it")
    } else if first.is_none_or(|version| version > 1) {
        Some("the ledger is younger than the table")
    } else if is_there && rows.is_none() {
        Some("the log does not state all rows")
    } else if written.iter().any(|row| row.foreign_commits > 0) {
        Some("other writers changed rows")
    } else {
        None
    };
    let change = |row: &&LedgerRow| signed(row.inserted) - signed(row.deleted) - signed(row.removed);
    let rows_by_ledger = not_compared.is_none().then(|| written.iter().map(change).sum());
    match (rows, rows_by_ledger) {
        (Some(rows), Some(expected)) if signed(rows) != expected => {
            differences.push(format!("the table has {}, and by the ledger it has {expected}", in_words(rows)));
        }
        (None, Some(expected)) if !is_there => {
            differences.push(format!("the table is gone, and by the ledger it has {expected} rows"));
        }
        _ => {}
    }
    let (resource_type, runs) = (resource_type.to_owned(), written.len() as u64);
    Verified {
        resource_type,
        runs,
        rows,
        rows_by_ledger,
        not_compared,
        on_server: None,
        server_not_compared: None,
        differences,
    }
}

/// A run in which something that arrived is not accounted for.
fn unbalanced(row: &LedgerRow) -> Option<String> {
    let became = row.inserted + row.updated + row.unchanged + row.stale + row.duplicate + row.deleted;
    let accounted = became + row.quarantined + row.not_wanted.unwrap_or_default() + row.outcomes.unwrap_or_default();
    (accounted != row.received)
        .then(|| format!("run {} of {}: {} received, and {accounted} accounted for", row.run, row.export, row.received))
}

/// "1 row", "7664 rows"; a number that is compared has no separators.
fn in_words(rows: u64) -> String {
    format!("{rows} row{}", if rows == 1 { "" } else { "s" })
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn text(all: &[Verified], online: bool) -> String {
    let or_dash = |count: Option<String>| count.unwrap_or_else(|| "-".to_owned());
    let rows = all.iter().map(|verified| {
        [
            verified.resource_type.clone(),
            or_dash(verified.rows.map(|rows| rows.to_string())),
            or_dash(verified.rows_by_ledger.map(|rows| rows.to_string())),
            or_dash(verified.on_server.map(|rows| rows.to_string())),
            verified.runs.to_string(),
            verified.result(online),
        ]
    });
    look::columns(&["type", "rows", "by ledger", "on server", "runs", "result"], rows)
}
