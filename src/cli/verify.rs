//! `verify`: do the tables and the ledger agree? The rows of each table are counted, and the counts of all runs added
//! up.
//!
//! Nothing is asked of the server, and no row is read: the counts of rows are those of the Delta log.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    exit::{Exit, FAILED, failed},
    look::{self, Looking},
};
use crate::sync::{LedgerRow, chain};

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
    /// Sentences; none where all is as it should be.
    differences: Vec<String>,
}

/// Asks no server, and needs neither key nor lock. Ends with 1 where something differs.
pub(super) async fn run(looking: Looking) -> Result<(), Exit> {
    let (config, root) = looking.open()?;
    let mut by_type = BTreeMap::<_, Vec<_>>::new();
    for row in root.ledger().await.map_err(|error| failed(&chain(&error)))? {
        by_type.entry(row.resource_type.clone()).or_default().push(row);
    }
    let mut types: Vec<_> = config.exports.iter().flat_map(|scheduled| &scheduled.export.types).collect();
    types.sort();
    types.dedup();
    let mut all = Vec::new();
    for resource_type in types {
        let mut is_there = false;
        let rows = match root.open(*resource_type).await {
            Ok(None) => Ok(None),
            Ok(Some(table)) => {
                is_there = true;
                table.row_count().await
            }
            Err(error) => Err(error),
        };
        let ledger = by_type.remove(resource_type.as_str()).unwrap_or_default();
        let verified = match rows {
            Ok(rows) => compare(resource_type.as_str(), is_there, rows, &ledger),
            Err(error) => {
                Verified { differences: vec![chain(&error)], ..compare(resource_type.as_str(), true, None, &[]) }
            }
        };
        all.push(verified);
    }
    if looking.json {
        look::print_json(&all)?;
    } else {
        look::print(&text(&all))?;
    }
    if all.iter().all(|verified| verified.differences.is_empty()) { Ok(()) } else { Err(FAILED) }
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
            differences.push(format!("the table has {rows} rows, and by the ledger it has {expected}"));
        }
        (None, Some(expected)) if !is_there => {
            differences.push(format!("the table is gone, and by the ledger it has {expected} rows"));
        }
        _ => {}
    }
    let (resource_type, runs) = (resource_type.to_owned(), written.len() as u64);
    Verified { resource_type, runs, rows, rows_by_ledger, not_compared, differences }
}

/// A run in which something that arrived is not accounted for.
fn unbalanced(row: &LedgerRow) -> Option<String> {
    let became = row.inserted + row.updated + row.unchanged + row.stale + row.duplicate + row.deleted;
    let accounted = became + row.quarantined + row.not_wanted.unwrap_or_default() + row.outcomes.unwrap_or_default();
    (accounted != row.received)
        .then(|| format!("run {} of {}: {} received, and {accounted} accounted for", row.run, row.export, row.received))
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn text(all: &[Verified]) -> String {
    let or_dash = |count: Option<String>| count.unwrap_or_else(|| "-".to_owned());
    let rows = all.iter().map(|verified| {
        let agrees = verified.not_compared.map_or_else(|| "agrees".to_owned(), |why| format!("not compared: {why}"));
        [
            verified.resource_type.clone(),
            or_dash(verified.rows.map(|rows| rows.to_string())),
            or_dash(verified.rows_by_ledger.map(|rows| rows.to_string())),
            verified.runs.to_string(),
            if verified.differences.is_empty() { agrees } else { verified.differences.join("; ") },
        ]
    });
    look::columns(&["type", "rows", "by ledger", "runs", "result"], rows)
}
