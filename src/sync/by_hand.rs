//! By hand: what an operator does to an export.
//!
//! A job loses its types before its DELETE; all else in the state file changes after the server or the tables: whatever
//! interrupts a command, it can be given again.

use std::{collections::BTreeSet, future::Future};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{Activity, Config, Error, Export, Step, Syncer, jobs::on_server, watermarks::watermark};
use crate::{
    fhir::{ResourceType, TransactionTime},
    state::{ExportState, JobInFlight},
};

/// What became of a job that was to be cancelled.
pub struct Cancelled {
    pub export: String,
    pub job: JobInFlight,
    /// An error leaves the job in the state file. The next run deletes it, and asks for another.
    pub result: Result<(), Error>,
}

impl Syncer {
    /// This syncer, for a run in which a full refresh may remove all rows of these types.
    #[must_use]
    pub fn allowing_empty(&self, types: BTreeSet<ResourceType>) -> Self {
        self.with_config(Config { allow_empty: types, ..self.config.clone() })
    }

    /// Does something that writes, in its turn, which ends with it.
    ///
    /// # Errors
    /// [`Error::Stopped`] where `stop` is cancelled before its turn: then nothing has begun.
    pub async fn in_turn<T>(
        &self,
        stop: &CancellationToken,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let progress = self.progress.of(Activity::ByHand);
        let turn = self.turns.take(&progress, stop).await;
        let done = async {
            let _turn = turn?;
            progress.step(Step::ByHand);
            work.await
        };
        let done = done.await;
        progress.end();
        done
    }

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
                self.follow_no_more(name.clone(), job.status_url.clone()).await?;
                let result = on_server(&job).delete(&self.client).await.map_err(Error::from);
                if forget || result.is_ok() {
                    self.forget_job_of(name.clone(), job.status_url.clone()).await?;
                }
                cancelled.push(Cancelled { export: name.clone(), job, result });
            }
        }
        Ok(cancelled)
    }
}

/// What became of a watermark that was to be lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

impl Syncer {
    /// Sets the watermarks of these types to an earlier instant: in the tables, then in the state file. The next sync
    /// asks for everything since then.
    pub async fn set_since(
        &self,
        export: &Export,
        types: &[ResourceType],
        since: TransactionTime,
    ) -> Result<Vec<(ResourceType, SinceSet)>, Error> {
        let source = &self.config.source;
        let ExportState { reload, jobs, .. } = self.export_state(export);
        let mut asked = Vec::new();
        for resource_type in types {
            let opened = self.engine.open(*resource_type).await;
            let opened = opened.map_err(|error| Error::of_opening(*resource_type, error))?;
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
                // One after the other: what is interrupted leaves tables and mirror alike for all but one type.
                self.remember_export(export, move |known| {
                    known.watermarks.insert(resource_type, since);
                    // The data are from when the server had reached this instant.
                    if let Some(as_of) = known.freshness.data_as_of.get_mut(&resource_type) {
                        *as_of -= from.instant() - since.instant();
                    }
                })
                .await?;
            }
            done.push((resource_type, becomes));
        }
        Ok(done)
    }
}

/// Whether the watermark moves from this instant when the job's export is read: see `known` in `sync/upsert.rs`.
fn moves_watermark(job: &JobInFlight, of: ResourceType, since: TransactionTime) -> bool {
    job.types.contains(&of) && job.since.is_none_or(|of_job| of_job <= since)
}
