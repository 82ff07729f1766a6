//! `status`: how each export stands: its last runs, the job in flight, and the watermark of each type.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use serde::Serialize;

use super::{
    exit::{Exit, failed},
    look::{self, Looking, day_and_time},
};
use crate::{
    state::ExportState,
    sync::{LedgerRow, chain},
};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    looking: Looking,
    /// End with exit code 1 where the data of a type are older than this, such as 3h, or were never loaded
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
}

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
    /// From when the data are, by the local clock.
    data_as_of: Option<DateTime<Utc>>,
    /// When the server was last asked for the type and had none of it, perhaps because there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    unconfirmed_since: Option<DateTime<Utc>>,
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
pub(super) async fn run(arguments: Arguments) -> Result<(), Exit> {
    let Arguments { looking, max_age } = arguments;
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
            data_as_of: known.freshness.data_as_of.get(resource_type).copied(),
            unconfirmed_since: known.unconfirmed.get(resource_type).copied(),
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
        look::print_json(&status)?;
    } else {
        look::print(&text(&status))?;
    }
    let Some(max_age) = max_age else { return Ok(()) };
    let mut result = Ok(());
    for sentence in too_old(&status, max_age, config.sync.recheck_absent, now()) {
        result = Err(failed(&sentence));
    }
    result
}

#[expect(clippy::disallowed_methods, reason = "the age of data is by the local clock")]
fn now() -> DateTime<Utc> {
    Utc::now()
}

/// A sentence for each type whose data are older than `max_age`, as `/health` judges them. A time that is ahead says
/// nothing of the age.
fn too_old(status: &Status, max_age: Duration, recheck_absent: TimeDelta, now: DateTime<Utc>) -> Vec<String> {
    let shown = humantime::format_duration(max_age);
    let max_age = TimeDelta::from_std(max_age).unwrap_or(TimeDelta::MAX);
    // It is asked for again when that time has passed, and then has as long as any other type.
    let recheck_after = max_age.checked_add(&recheck_absent).unwrap_or(TimeDelta::MAX);
    let is_within =
        |at: Option<DateTime<Utc>>, age: TimeDelta| at.is_some_and(|at| now - at <= age && at - now <= AHEAD);
    let mut sentences = Vec::new();
    for export in &status.exports {
        for of in &export.types {
            let (name, resource_type) = (&export.name, &of.resource_type);
            match of.data_as_of {
                Some(_) if is_within(of.data_as_of, max_age) => {}
                Some(at) if at > now => sentences.push(format!(
                    "{name}: the data of {resource_type} seem to be of the future; the clock of this host was set back"
                )),
                Some(at) => {
                    let at = day_and_time(Some(at));
                    sentences.push(format!("{name}: the data of {resource_type} are of {at} UTC, older than {shown}"));
                }
                None if is_within(of.unconfirmed_since, recheck_after) => {}
                None => sentences.push(format!("{name}: {resource_type} has no data")),
            }
        }
    }
    sentences
}

/// Clocks of machines that share the exports differ by less.
const AHEAD: TimeDelta = TimeDelta::minutes(5);

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fhir::parse_instant;

    fn sentences(data_as_of: Option<&str>, unconfirmed_since: Option<&str>) -> Vec<String> {
        let at = |text: Option<&str>| text.and_then(parse_instant);
        let patient = TypeStatus {
            resource_type: "Patient".to_owned(),
            watermark: None,
            data_as_of: at(data_as_of),
            unconfirmed_since: at(unconfirmed_since),
            last_run: None,
        };
        let export = ExportStatus {
            name: "all".to_owned(),
            last_complete_at: None,
            last_full_refresh_at: None,
            job_since: None,
            held_by: None,
            types: vec![patient],
        };
        let now = parse_instant("2026-11-20T12:00:00Z").unwrap();
        too_old(&Status { run: 7, exports: vec![export] }, Duration::from_hours(3), TimeDelta::hours(24), now)
    }

    #[test]
    fn data_are_too_old_beyond_the_age_or_where_it_is_unknown() {
        let old = "all: the data of Patient are of 2026-11-20 08:59:59 UTC, older than 3h";
        let ahead = "all: the data of Patient seem to be of the future; the clock of this host was set back";
        let none = "all: Patient has no data";
        for (data_as_of, unconfirmed_since, expected) in [
            (Some("2026-11-20T09:00:00Z"), None, None),
            (Some("2026-11-20T08:59:59Z"), None, Some(old)),
            (Some("2026-11-20T12:01:00Z"), None, None),
            (Some("2026-11-21T12:00:00Z"), None, Some(ahead)),
            (None, None, Some(none)),
            (None, Some("2026-11-19T09:00:00Z"), None),
            (None, Some("2026-11-19T08:59:59Z"), Some(none)),
        ] {
            assert_eq!(sentences(data_as_of, unconfirmed_since), Vec::from_iter(expected), "{data_as_of:?}");
        }
    }
}
