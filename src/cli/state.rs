//! `state`: what is remembered between runs, and the one thing in it that an operator may change.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    ConfigFile,
    by_hand::{ByHand, unexpected},
    exit::{CONFIGURATION, Exit, failed},
    look::{self, Looking, day_and_time},
};
use crate::{
    control::{Answer, SinceSet, Work},
    fhir::{ResourceType, TransactionTime, parse_instant},
    state::{Asked, ExportState},
    sync::{Outcome, chain},
};

#[derive(Subcommand, Debug)]
pub(super) enum StateCommand {
    /// Shows it, also beside a running daemon
    Show(Looking),
    /// Sets the watermarks to an earlier time; the next sync asks for what changed since then
    SetSince(SetSince),
}

#[derive(Args, Debug)]
#[command(allow_missing_positional = true)]
pub(super) struct SetSince {
    #[command(flatten)]
    config: ConfigFile,
    /// The export of the configuration
    export: String,
    /// Only this type; without it all types of the export
    #[arg(value_name = "TYPE")]
    resource_type: Option<ResourceType>,
    /// By the server's clock, with a zone, such as 2026-11-20T08:00:00Z
    #[arg(value_name = "INSTANT", value_parser = instant)]
    since: DateTime<Utc>,
}

fn instant(text: &str) -> Result<DateTime<Utc>, String> {
    parse_instant(text).ok_or_else(|| "not an instant with a zone, such as 2026-11-20T08:00:00Z".to_owned())
}

pub(super) async fn run(command: StateCommand) -> Result<(), Exit> {
    match command {
        StateCommand::Show(arguments) => show(&arguments).await,
        StateCommand::SetSince(arguments) => set(arguments).await,
    }
}

#[derive(Serialize)]
struct Shown {
    /// Of the last run.
    run: u64,
    exports: Vec<ShownExport>,
}

#[derive(Serialize)]
struct ShownExport {
    name: String,
    asked: Option<Asked>,
    last_complete_at: Option<DateTime<Utc>>,
    last_full_refresh_at: Option<DateTime<Utc>>,
    last_outcome: Option<Outcome>,
    failures_in_a_row: u32,
    warnings: Vec<String>,
    jobs: usize,
    types: Vec<ShownType>,
}

#[derive(Serialize)]
struct ShownType {
    resource_type: ResourceType,
    watermark: Option<DateTime<Utc>>,
    /// By the local clock.
    data_as_of: Option<DateTime<Utc>>,
    table_version: Option<u64>,
    last_end: Option<String>,
    /// Why the type is loaded in full by the next sync.
    reload: Option<String>,
    unconfirmed_since: Option<DateTime<Utc>>,
}

/// Reads the state file only: needs neither server, key nor lock.
async fn show(arguments: &Looking) -> Result<(), Exit> {
    let config = arguments.configuration()?;
    let state = config.state.peek().await.map_err(|error| failed(&chain(&error)))?;
    let exports = state.exports.into_iter().map(|(name, known)| shown(name, known)).collect();
    let shown = Shown { run: state.run, exports };
    if arguments.json {
        return look::print_json(&shown);
    }
    let mut text = format!("{}: last run {}\n", config.state.shown(), shown.run);
    for export in &shown.exports {
        let outcome = export.last_outcome.map_or_else(|| "-".to_owned(), |outcome| outcome.to_string());
        let (complete, full) = (day_and_time(export.last_complete_at), day_and_time(export.last_full_refresh_at));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "\n{}: last outcome {outcome}, exports in progress {}\nlast complete {complete}, last full refresh {full}",
            export.name, export.jobs
        );
        let rows = export.types.iter().map(|of| {
            let reload = of.reload.as_ref().map(|reason| format!("loaded in full, because {reason}"));
            [
                of.resource_type.to_string(),
                day_and_time(of.watermark),
                day_and_time(of.data_as_of),
                of.table_version.map_or_else(|| "-".to_owned(), |version| version.to_string()),
                reload.or_else(|| of.last_end.clone()).unwrap_or_else(|| "-".to_owned()),
            ]
        });
        text.push_str(&look::columns(&["type", "watermark (UTC)", "data as of (UTC)", "version", "end"], rows));
    }
    look::print(&text)
}

fn shown(name: String, known: ExportState) -> ShownExport {
    let freshness = &known.freshness;
    let mut types: Vec<_> =
        known.watermarks.keys().chain(known.reload.keys()).chain(known.unconfirmed.keys()).collect();
    types.extend(freshness.ends.keys());
    types.sort_unstable();
    types.dedup();
    let of_type = |of: &ResourceType| ShownType {
        resource_type: *of,
        watermark: known.watermarks.get(of).map(|watermark| watermark.instant()),
        data_as_of: freshness.data_as_of.get(of).copied(),
        table_version: known.tables.get(of).map(|table| table.version),
        last_end: freshness.ends.get(of).cloned(),
        reload: known.reload.get(of).map(ToString::to_string),
        unconfirmed_since: known.unconfirmed.get(of).copied(),
    };
    ShownExport {
        types: types.into_iter().map(of_type).collect(),
        name,
        jobs: known.jobs.len(),
        last_complete_at: known.last_complete_at,
        last_full_refresh_at: known.last_full_refresh_at,
        last_outcome: freshness.last_outcome,
        failures_in_a_row: freshness.failures_in_a_row,
        warnings: freshness.warnings.clone(),
        asked: known.asked,
    }
}

async fn set(arguments: SetSince) -> Result<(), Exit> {
    let config = look::configuration(&arguments.config.path)?;
    let exports = || config.exports.iter().map(|scheduled| &scheduled.export);
    let Some(export) = exports().find(|export| export.name == arguments.export).cloned() else {
        return Err(look::no_such_export(&arguments.export, exports().map(|export| export.name.as_str())));
    };
    let types = match arguments.resource_type {
        Some(of) if !export.types.contains(&of) => {
            eprintln!("fhir-sync: the export {:?} does not have the type {of}", export.name);
            return Err(CONFIGURATION);
        }
        Some(of) => vec![of],
        None => export.types.clone(),
    };
    let since = TransactionTime::from(arguments.since);
    let place = config.state.clone();
    let by_hand = ByHand::open(config, Ok).await?;
    let done = by_hand.work(Work::SetSince { export: export.clone(), types, since }).await;
    by_hand.close().await;
    let Answer::SinceSet(done) = done? else { return Err(unexpected()) };
    let is_refused = done.iter().any(|(_, becomes)| becomes.is_refused());
    let shown = done.iter().filter(|(_, becomes)| becomes.is_refused() || !is_refused);
    let lines = shown.map(|(of, becomes)| format!("{of}: {}", sentence(*becomes, since, &export.name)));
    let text = lines.collect::<Vec<_>>().join("\n");
    if is_refused {
        return Err(failed(&text));
    }
    look::print(&format!("{text}\n"))?;
    if done.iter().all(|(_, becomes)| !matches!(becomes, SinceSet::Lowered { .. })) {
        return Ok(());
    }
    let state = place.peek().await.map_err(|error| failed(&chain(&error)))?;
    let jobs = state.exports.get(&export.name).map(|known| known.jobs.clone()).unwrap_or_default();
    let in_progress = done.iter().filter(|(of, becomes)| {
        matches!(becomes, SinceSet::Lowered { .. }) && jobs.iter().any(|job| job.types.contains(of))
    });
    let in_progress: Vec<_> = in_progress.map(|(of, _)| of.to_string()).collect();
    if in_progress.is_empty() {
        return Ok(());
    }
    look::print(&format!(
        "an export of {} is in progress: the next sync reads it first, and the one after it asks from {since}. To ask at \
         once: fhir-sync job cancel {}\n",
        in_progress.join(", "),
        export.name
    ))
}

/// What became of the watermark of a type.
fn sentence(becomes: SinceSet, since: TransactionTime, export: &str) -> String {
    match becomes {
        SinceSet::Later { watermark } => format!(
            "{since} is later than its watermark {watermark}; what changed in between would never be asked for. Nothing \
             was changed"
        ),
        SinceSet::InProgress => format!(
            "an export in progress asks for it since {since} or earlier, and would move the watermark again. Nothing was \
             changed; first: fhir-sync job cancel {export}"
        ),
        SinceSet::Lowered { from } => format!("the watermark was {from}, now it is {since}"),
        SinceSet::Already => format!("the watermark is {since} already"),
        SinceSet::NoWatermark => "has no watermark; the next sync loads all of it".to_owned(),
    }
}
