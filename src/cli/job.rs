//! `job`: the exports that the server works on for us, or has completed, and that are not settled yet.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    ConfigFile,
    by_hand::{ByHand, unexpected, with_key},
    exit::{Exit, FAILED, failed, misconfigured},
    look::{self, Looking, day_and_time},
};
use crate::{
    config,
    control::{Answer, CancelledJob, Work},
    fhir::TransactionTime,
    state::{JobInFlight, State},
    sync::chain,
    telemetry,
};

#[derive(Subcommand, Debug)]
pub(super) enum JobCommand {
    /// Shows them, also beside a running daemon
    Show(ShowJobs),
    /// Cancels them on the server and forgets them; the next sync requests others
    Cancel(Cancel),
}

#[derive(Args, Debug)]
pub(super) struct ShowJobs {
    #[command(flatten)]
    looking: Looking,
    /// Only those of this export
    export: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Cancel {
    #[command(flatten)]
    config: ConfigFile,
    /// Only those of this export
    export: Option<String>,
    /// Forget them even if the server cannot be told; it may then still work on them
    #[arg(long)]
    forget: bool,
}

pub(super) async fn run(command: JobCommand) -> Result<(), Exit> {
    match command {
        JobCommand::Show(arguments) => show(&arguments).await,
        JobCommand::Cancel(arguments) => cancel(arguments).await,
    }
}

#[derive(Serialize)]
struct ShownJob {
    export: String,
    /// By the local clock.
    kicked_off_at: DateTime<Utc>,
    types: Vec<String>,
    /// `_since` as planned; `null` in a full load.
    since: Option<String>,
    full_refresh: bool,
    /// Without its query.
    status_url: String,
}

impl ShownJob {
    fn new(export: &str, job: &JobInFlight) -> Self {
        Self {
            export: export.to_owned(),
            kicked_off_at: job.kicked_off_locally_at,
            types: job.types.iter().map(ToString::to_string).collect(),
            since: job.since.map(TransactionTime::as_since),
            full_refresh: job.full_refresh,
            status_url: job.place(),
        }
    }
}

/// Reads the state file only: needs neither server, key nor lock.
async fn show(arguments: &ShowJobs) -> Result<(), Exit> {
    let config = arguments.looking.configuration()?;
    let state = config.state.peek().await.map_err(|error| failed(&chain(&error)))?;
    if let Some(name) = &arguments.export {
        refuse_unknown(name, config.exports.iter().map(|scheduled| scheduled.export.name.as_str()), &state)?;
    }
    let is_asked_for = |name: &str| arguments.export.as_ref().is_none_or(|export| export == name);
    let exports = state.exports.iter().filter(|(name, _)| is_asked_for(name));
    let jobs: Vec<_> =
        exports.flat_map(|(name, known)| known.jobs.iter().map(|job| ShownJob::new(name, job))).collect();
    if arguments.looking.json {
        return look::print_json(&jobs);
    }
    if jobs.is_empty() {
        return look::print("no export is in progress\n");
    }
    let rows = jobs.iter().map(|job| {
        [
            job.export.clone(),
            day_and_time(Some(job.kicked_off_at)),
            job.since.clone().unwrap_or_else(|| "everything".to_owned()),
            // Settled or cancelled, but not deleted on the server yet.
            if job.types.is_empty() { "-".to_owned() } else { job.types.join(", ") },
            job.status_url.clone(),
        ]
    });
    look::print(&look::columns(&["export", "requested (UTC)", "since", "types", "status URL without query"], rows))
}

/// An export that is no longer configured may still have jobs; a name that nobody knows is a typing error.
fn refuse_unknown<'a>(
    name: &str,
    configured: impl Iterator<Item = &'a str> + Clone,
    state: &State,
) -> Result<(), Exit> {
    if configured.clone().any(|of| of == name) || state.exports.contains_key(name) {
        return Ok(());
    }
    Err(look::no_such_export(name, configured))
}

async fn cancel(arguments: Cancel) -> Result<(), Exit> {
    let path = arguments.config.path;
    let (config, _) = config::check(&path).map_err(misconfigured)?;
    telemetry::start(&config.log);
    if let Some(name) = &arguments.export {
        // A broken state file has no jobs either, and the sync room says what is wrong with it.
        let state = config.state.peek().await.unwrap_or_default();
        refuse_unknown(name, config.exports.iter().map(|scheduled| scheduled.export.name.as_str()), &state)?;
    }
    let by_hand = ByHand::open(config, |_| with_key(&path)).await?;
    let work = Work::CancelJobs { export: arguments.export, forget: arguments.forget };
    let cancelled = by_hand.work(work).await;
    by_hand.close().await;
    let Answer::Cancelled(cancelled) = cancelled? else { return Err(unexpected()) };
    let mut text = String::new();
    for CancelledJob { export, place, result } in &cancelled {
        // Writing to a String cannot fail.
        let _ = match result {
            Ok(()) => writeln!(text, "{export}: the export at {place} was cancelled"),
            Err(error) if arguments.forget => {
                writeln!(text, "{export}: the export at {place} was forgotten, not cancelled: {error}")
            }
            Err(error) => writeln!(
                text,
                "{export}: the export at {place} could not be cancelled and is kept: {error}. The next sync tries again, and \
                 requests another. To forget it at once, add --forget"
            ),
        };
    }
    look::print(if text.is_empty() { "no export is in progress\n" } else { &text })?;
    let is_kept = cancelled.iter().any(|of| of.result.is_err()) && !arguments.forget;
    if is_kept { Err(FAILED) } else { Ok(()) }
}
