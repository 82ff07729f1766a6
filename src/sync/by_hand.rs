//! By hand: what an operator does to an export while no daemon runs.
//!
//! Both commands need the lock of the state file, and change it only after the server or the tables: whatever
//! interrupts them, they can be given again.

use std::path::Path;

use tokio::task::JoinSet;

use super::{Error, Export, Syncer, blocking::blocking, memory::watermark};
use crate::{
    export::Job,
    fhir::{ResourceType, TransactionTime, parse_instant},
    state::{ExportState, JobInFlight, Store},
    table::{self, Lease, Root},
};

/// What became of a job that was to be cancelled.
pub struct Cancelled {
    pub export: String,
    pub job: JobInFlight,
    /// An error leaves the job in the state file.
    pub result: Result<(), Error>,
}

impl Syncer {
    /// Cancels the jobs in flight on their server, then forgets them: of one export, or of all, also of those that are
    /// no longer configured. With `forget`, a server that does not answer is not waited for a second time: the job is
    /// forgotten whatever its DELETE says.
    pub async fn cancel_jobs(&self, export: Option<&str>, forget: bool) -> Result<Vec<Cancelled>, Error> {
        let mut cancelled = Vec::new();
        for (name, known) in self.state().exports {
            if export.is_some_and(|export| export != name) {
                continue;
            }
            for job in known.jobs {
                let result = job_of(&job).delete(&self.client).await.map_err(Error::from);
                if forget || result.is_ok() {
                    self.forget_job_of(name.clone(), job.status_url.clone()).await?;
                }
                cancelled.push(Cancelled { export: name.clone(), job, result });
            }
        }
        Ok(cancelled)
    }
}

fn job_of(job: &JobInFlight) -> Job {
    let JobInFlight { status_url, kicked_off_at, polling_since, .. } = job.clone();
    Job { status_url, kicked_off_at, polling_since }
}

/// What became of a watermark that was to be lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinceSet {
    Lowered {
        from: TransactionTime,
    },
    /// It is at this instant.
    Already,
    /// The type is loaded in full anyway.
    NoWatermark,
    /// The watermark is earlier, so nothing was written for any type: what changed in between would never be asked for.
    Later {
        watermark: TransactionTime,
    },
    /// Nothing was written for any type either: a job in flight asks for the type since then or earlier, so what it
    /// brings would move the watermark again.
    InProgress,
}

impl SinceSet {
    /// Whether nothing was written because of this type.
    pub fn is_refused(self) -> bool {
        matches!(self, Self::Later { .. } | Self::InProgress)
    }
}

/// Sets the watermarks of these types to an earlier instant: in the tables, then in the state file. The next sync asks
/// for everything since then. It needs no server and no key.
pub async fn set_since(
    tables: table::Config,
    state_file: &Path,
    source: &str,
    export: &Export,
    types: &[ResourceType],
    since: TransactionTime,
) -> Result<Vec<(ResourceType, SinceSet)>, Error> {
    let (mut store, _) = Store::open(state_file)?;
    let mut root = Root::new(tables)?;
    let lease = root.take_lease(store.holder()).await?;
    let mut keeper = JoinSet::new();
    keeper.spawn(Lease::keep(std::sync::Arc::downgrade(&lease)));
    let ExportState { reload, jobs, .. } = store.state().exports.get(&export.name).cloned().unwrap_or_default();
    let mut asked = Vec::new();
    for resource_type in types {
        let opened = root.open(*resource_type).await.map_err(|error| Error::of_opening(*resource_type, error))?;
        let table = opened.filter(|_| !reload.contains_key(resource_type));
        let watermark = match &table {
            Some(table) => watermark(table, export, source).await?,
            None => None,
        };
        let becomes = match watermark {
            None => SinceSet::NoWatermark,
            Some(watermark) if watermark < since => SinceSet::Later { watermark },
            Some(watermark) if watermark == since => SinceSet::Already,
            Some(_) if jobs.iter().any(|job| moves_watermark(job, *resource_type, since)) => SinceSet::InProgress,
            Some(from) => SinceSet::Lowered { from },
        };
        asked.push((*resource_type, table, becomes));
    }
    let is_refused = asked.iter().any(|(_, _, becomes)| becomes.is_refused());
    let mut done = Vec::new();
    for (resource_type, table, becomes) in asked {
        if let (Some(mut table), SinceSet::Lowered { from }, false) = (table, becomes, is_refused) {
            table.set_watermark(&export.app_id(source), since).await?;
            let name = export.name.clone();
            // One after the other: what is interrupted leaves tables and mirror alike for all but one type.
            store = blocking(move || {
                store.update(|state| {
                    let known = state.exports.entry(name).or_default();
                    known.watermarks.insert(resource_type, since);
                    // The data are from when the server had reached this instant.
                    if let Some(as_of) = known.freshness.data_as_of.get_mut(&resource_type) {
                        *as_of -= from.instant() - since.instant();
                    }
                })?;
                Ok::<_, Error>(store)
            })
            .await?;
        }
        done.push((resource_type, becomes));
    }
    lease.release().await;
    Ok(done)
}

/// Whether the watermark moves from this instant when the job's export is read: see `known` in `sync/upsert.rs`.
fn moves_watermark(job: &JobInFlight, of: ResourceType, since: TransactionTime) -> bool {
    let asked_since = job.since.as_deref().and_then(parse_instant).map(TransactionTime::from);
    job.types.contains(&of) && asked_since.is_none_or(|asked| asked <= since)
}
