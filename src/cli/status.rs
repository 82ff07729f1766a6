//! `status`: how each export stands: its last runs, the job in flight, and the watermark of each type.

use std::{collections::BTreeMap, fmt::Write as _};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{
    exit::{Exit, failed},
    look::{self, Looking, day_and_time},
};
use crate::{
    state::ExportState,
    sync::{LedgerRow, chain},
};

#[derive(Serialize)]
struct Status {
    /// Of the last run.
    run: u64,
    exports: Vec<ExportStatus>,
}

#[derive(Serialize)]
struct ExportStatus {
    name: String,
    last_complete_at: Option<DateTime<Utc>>,
    last_full_refresh_at: Option<DateTime<Utc>>,
    /// Since when the server works on an export for us; of several, the first.
    job_since: Option<DateTime<Utc>>,
    /// Where several processes share the exports: the one that works on this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    held_by: Option<String>,
    types: Vec<TypeStatus>,
}

#[derive(Serialize)]
struct TypeStatus {
    resource_type: String,
    /// How far the table is, as the state file has it.
    watermark: Option<DateTime<Utc>>,
    last_run: Option<LastRun>,
}

#[derive(Serialize)]
struct LastRun {
    run: u64,
    ended_at: Option<DateTime<Utc>>,
    end: String,
    quarantined: u64,
    cause: Option<String>,
}

/// Asks no server, and needs neither key nor lock, so it works beside a running daemon.
pub(super) async fn run(looking: Looking) -> Result<(), Exit> {
    let (config, root) = looking.open()?;
    let state = config.state.peek().await.map_err(|error| failed(&chain(&error)))?;
    let names = config.exports.iter().map(|scheduled| scheduled.export.name.as_str());
    let mut holders = config.state.holders(names).await.map_err(|error| failed(&chain(&error)))?;
    let mut last = BTreeMap::new();
    for row in root.ledger().await.map_err(|error| failed(&chain(&error)))? {
        last.insert((row.export.clone(), row.resource_type.clone()), row);
    }
    let exports = config.exports.into_iter().map(|scheduled| {
        let export = scheduled.export;
        let known = state.exports.get(&export.name).cloned().unwrap_or_default();
        let types = export.types.iter().map(|resource_type| TypeStatus {
            resource_type: resource_type.to_string(),
            watermark: known.watermarks.get(resource_type).and_then(|watermark| instant(watermark.as_micros())),
            last_run: last.remove(&(export.name.clone(), resource_type.to_string())).map(last_run),
        });
        let types = types.collect();
        let ExportState { last_complete_at, last_full_refresh_at, jobs, .. } = known;
        let job_since = jobs.iter().map(|job| job.kicked_off_locally_at).min();
        let held_by = holders.remove(&export.name);
        ExportStatus { name: export.name, last_complete_at, last_full_refresh_at, job_since, held_by, types }
    });
    let status = Status { run: state.run, exports: exports.collect() };
    if looking.json {
        return look::print_json(&status);
    }
    look::print(&text(&status))
}

fn instant(micros: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(micros)
}

fn last_run(row: LedgerRow) -> LastRun {
    let LedgerRow { run, ended_at, end, quarantined, cause, .. } = row;
    LastRun { run, ended_at, end, quarantined, cause }
}

fn text(status: &Status) -> String {
    let mut text = String::new();
    for export in &status.exports {
        let at = |instant| day_and_time(instant);
        let (name, complete, full) = (&export.name, at(export.last_complete_at), at(export.last_full_refresh_at));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name}: last complete {complete}, last full refresh {full}");
        if export.job_since.is_some() {
            let _ = writeln!(text, "the server has worked on an export since {}", at(export.job_since));
        }
        if let Some(holder) = &export.held_by {
            let _ = writeln!(text, "fhir-sync works on it, {holder}");
        }
        let rows = export.types.iter().map(|of| {
            let last = of.last_run.as_ref();
            [
                of.resource_type.clone(),
                at(of.watermark),
                last.map_or_else(|| "-".to_owned(), |last| last.run.to_string()),
                at(last.and_then(|last| last.ended_at)),
                last.map_or_else(|| "-".to_owned(), |last| last.quarantined.to_string()),
                last.map_or_else(|| "-".to_owned(), |last| last.end.clone()),
            ]
        });
        text.push_str(&look::columns(&["type", "watermark (UTC)", "run", "ended (UTC)", "quarantined", "end"], rows));
        for (of, cause) in export.types.iter().filter_map(|of| Some((of, of.last_run.as_ref()?.cause.as_ref()?))) {
            let _ = writeln!(text, "! {}: {cause}", of.resource_type);
        }
        text.push('\n');
    }
    text
}
