//! The work of a command, and its answer: the same whether the daemon does it or the command itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::Error;
pub use crate::sync::SinceSet;
use crate::{
    fhir::{ResourceType, TransactionTime},
    notify::Notifier,
    sync::{
        self, Activity, Counts, DryRun, Export, Leases, Maintained, MaintenanceRun, Mode, Report, Syncer, TableName,
        chain,
    },
};

/// What a command asks for.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub enum Work {
    Sync {
        export: Export,
        mode: Mode,
        allow_empty: BTreeSet<ResourceType>,
    },
    Maintain {
        tables: Vec<TableName>,
        maintenance: MaintenanceRun,
        dry_run: DryRun,
    },
    Rebuild(ResourceType),
    /// Of one export, or of all.
    CancelJobs {
        export: Option<String>,
        forget: bool,
    },
    SetSince {
        export: Export,
        types: Vec<ResourceType>,
        since: TransactionTime,
    },
    Replay(Replay),
    Purge(Purge),
}

/// Which lines of the quarantine are replayed, by the beginnings of their ids.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub enum Replay {
    All,
    Lines(Vec<String>),
    /// This text takes the place of one line.
    Corrected {
        id: String,
        text: String,
    },
}

/// Which lines of the quarantine are purged.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub enum Purge {
    All,
    Lines(Vec<String>),
    OlderThan(Duration),
}

/// How the work ended.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub enum Answer {
    Synced(Box<Report>),
    Maintained(Vec<(TableName, Result<Maintained, String>)>),
    /// `None` where there is no table.
    Rebuilt(Option<Rebuilt>),
    Cancelled(Vec<CancelledJob>),
    SinceSet(Vec<(ResourceType, SinceSet)>),
    Replayed(ReplayedLines),
    /// This many lines.
    Purged(u64),
}

#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rebuilt {
    pub rows: u64,
    pub version: u64,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct CancelledJob {
    pub export: String,
    /// Its status URL without the query.
    pub place: String,
    /// Why the server could not be told.
    pub result: Result<(), String>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct ReplayedLines {
    pub tables: Vec<(ResourceType, Result<Counts, String>)>,
    pub lines: u64,
    /// Lines that stay in the quarantine, with the reason.
    pub left: BTreeMap<String, String>,
}

impl Work {
    /// The command, as it is typed.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Sync { .. } => "sync",
            Self::Maintain { .. } => "maintain",
            Self::Rebuild(_) => "maintain --rebuild",
            Self::CancelJobs { .. } => "job cancel",
            Self::SetSince { .. } => "state set-since",
            Self::Replay(_) => "quarantine replay",
            Self::Purge(_) => "quarantine purge",
        }
    }

    /// Whose progress is that of this work. Of each activity, one is at work at a time.
    pub fn activity(&self) -> Activity {
        match self {
            Self::Sync { export, .. } => Activity::Sync { export: export.name.clone() },
            Self::Maintain { .. } => Activity::Maintenance,
            Self::Rebuild(_) | Self::CancelJobs { .. } | Self::SetSince { .. } | Self::Replay(_) | Self::Purge(_) => {
                Activity::ByHand
            }
        }
    }
}

/// Does the work; `exports` are those of the configuration, and `notifier` reports on syncs. A cancelled `stop` ends it
/// at its next safe point.
pub async fn carry_out(
    syncer: &Syncer,
    exports: &[Export],
    notifier: &Notifier,
    work: Work,
    stop: &CancellationToken,
) -> Result<Answer, Error> {
    match work {
        Work::Sync { export, mode, allow_empty } => {
            // Another process may have run it; if that cannot be read now, neither can the run begin.
            if let Err(error) = syncer.read_shared_state().await {
                tracing::warn!(error = chain(&error), "what other processes do could not be read");
            }
            let before = syncer.outcome_before(&export.name);
            let syncer = syncer.allowing_empty(allow_empty);
            let report = notifier.around(&export.name, before, syncer.run(&export, mode, stop)).await;
            Ok(Answer::Synced(Box::new(report)))
        }
        Work::Maintain { tables, maintenance, dry_run } => {
            let done = syncer.maintain(&tables, &maintenance, dry_run, stop).await.map_err(not_maintained)?;
            let done = done.into_iter().map(|(table, result)| (table, result.map_err(|error| chain(&error))));
            Ok(Answer::Maintained(done.collect()))
        }
        Work::Rebuild(_) | Work::CancelJobs { .. } | Work::SetSince { .. } | Work::Replay(_) => {
            let leases = take_leases(syncer, exports, &work).await.map_err(failed)?;
            let done = carry_out_leased(&leases.syncer, exports, work, stop).await;
            leases.release().await;
            done
        }
        Work::Purge(lines) => {
            let which = lines_to_purge(syncer, lines).await?;
            syncer.in_turn(stop, syncer.purge_quarantine(which)).await.map(Answer::Purged).map_err(failed)
        }
    }
}

/// Where several processes share the exports, the work needs those that it changes.
async fn take_leases(syncer: &Syncer, exports: &[Export], work: &Work) -> Result<Leases, sync::Error> {
    match work {
        Work::Rebuild(of) => syncer.take_leases_of_writers(*of).await,
        Work::SetSince { export, .. } => syncer.take_leases(std::slice::from_ref(&export.name)).await,
        Work::CancelJobs { export: Some(export), .. } => syncer.take_leases(std::slice::from_ref(export)).await,
        Work::CancelJobs { export: None, .. } => {
            syncer.take_leases(&syncer.current_state().exports.keys().cloned().collect::<Vec<_>>()).await
        }
        Work::Replay(_) => {
            syncer.take_leases(&exports.iter().map(|export| export.name.clone()).collect::<Vec<_>>()).await
        }
        Work::Sync { .. } | Work::Maintain { .. } | Work::Purge(_) => syncer.take_leases(&[]).await,
    }
}

async fn carry_out_leased(
    syncer: &Syncer,
    exports: &[Export],
    work: Work,
    stop: &CancellationToken,
) -> Result<Answer, Error> {
    match work {
        Work::CancelJobs { export, forget } => tokio::select! {
            cancelled = syncer.cancel_jobs(export.as_deref(), forget) => cancelled.map(cancelled_jobs).map_err(failed),
            () = stop.cancelled() => Err(Error::Stopped),
        },
        Work::Rebuild(resource_type) => {
            let rebuilt = syncer.in_turn(stop, syncer.rebuild(resource_type)).await.map_err(failed)?;
            let rebuilt = rebuilt.map(|done| Rebuilt { rows: done.counts.updated, version: done.version });
            Ok(Answer::Rebuilt(rebuilt))
        }
        Work::SetSince { export, types, since } => {
            let set = syncer.in_turn(stop, syncer.set_since(&export, &types, since)).await;
            set.map(Answer::SinceSet).map_err(failed)
        }
        Work::Replay(lines) => {
            let of = lines_to_replay(syncer, lines).await?;
            let replayed = syncer.in_turn(stop, syncer.replay(exports, of)).await.map_err(failed)?;
            Ok(Answer::Replayed(replayed_lines(replayed)))
        }
        Work::Sync { .. } | Work::Maintain { .. } | Work::Purge(_) => {
            Err(Error::Failed("no lease is needed".to_owned()))
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that map_err takes")]
fn failed(error: sync::Error) -> Error {
    if matches!(error, sync::Error::Stopped) { Error::Stopped } else { Error::Failed(chain(&error)) }
}

fn not_maintained(error: sync::Error) -> Error {
    Error::Busy(match error {
        sync::Error::LeasedByOther { holder, .. } => {
            format!("another fhir-sync, {holder}, maintains the tables; wait until it has ended")
        }
        error => format!("maintenance could not begin: {}", chain(&error)),
    })
}

fn cancelled_jobs(cancelled: Vec<sync::Cancelled>) -> Answer {
    let of_job = |of: sync::Cancelled| CancelledJob {
        export: of.export,
        place: of.job.place(),
        result: of.result.map_err(|error| chain(&error)),
    };
    Answer::Cancelled(cancelled.into_iter().map(of_job).collect())
}

fn replayed_lines(replayed: sync::Replayed) -> ReplayedLines {
    let sync::Replayed { tables, lines, left } = replayed;
    let of_table = |(of, result): (_, Result<sync::Committed, sync::Error>)| {
        (of, result.map(|committed| committed.counts).map_err(|error| chain(&error)))
    };
    ReplayedLines { tables: tables.into_iter().map(of_table).collect(), lines, left }
}

async fn lines_to_replay(syncer: &Syncer, lines: Replay) -> Result<sync::ReplayOf, Error> {
    Ok(match lines {
        Replay::All => sync::ReplayOf::All,
        Replay::Lines(beginnings) => sync::ReplayOf::Lines(whole_ids(syncer, &beginnings).await?),
        Replay::Corrected { id, text } => {
            let ids = whole_ids(syncer, &[id]).await?;
            sync::ReplayOf::Corrected { id: ids.into_iter().collect(), text: text.into_bytes() }
        }
    })
}

async fn lines_to_purge(syncer: &Syncer, lines: Purge) -> Result<sync::Purge, Error> {
    Ok(match lines {
        Purge::All => sync::Purge::All,
        Purge::OlderThan(age) => sync::Purge::OlderThan(age),
        Purge::Lines(beginnings) => sync::Purge::Lines(whole_ids(syncer, &beginnings).await?),
    })
}

/// The ids that begin so; each beginning names one.
async fn whole_ids(syncer: &Syncer, beginnings: &[String]) -> Result<BTreeSet<String>, Error> {
    let rows = syncer.root.quarantine().await.map_err(|error| Error::Failed(chain(&error)))?;
    let whole = |beginning: &String| {
        let id = the_one(rows.iter().map(|row| row.id.as_str()), beginning);
        id.map(str::to_owned).map_err(Error::Failed)
    };
    beginnings.iter().map(whole).collect()
}

/// The one id of a line that begins so.
pub fn the_one<'a>(ids: impl Iterator<Item = &'a str>, beginning: &str) -> Result<&'a str, String> {
    let mut found = ids.filter(|id| !beginning.is_empty() && id.starts_with(beginning));
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id),
        (None, _) => Err(format!("no line in the quarantine has an id that begins with {beginning:?}")),
        (Some(_), Some(_)) => Err(format!("several lines have an id that begins with {beginning:?}; give more of it")),
    }
}
