//! The jobs in flight: exports that the server works on, or has completed, and that are not settled yet.
//!
//! A job is worth hours. It leaves the state file when none of its types may still come from it, and only after its
//! DELETE: a process that is killed in between leaves no job on the server that nobody knows (rules 103 to 105).

use std::time::Duration;

use chrono::TimeDelta;

use super::{
    CANCEL_PATIENCE, Error, Mode, REQUEST_PATIENCE, Run, Step, TypeEnd, blocking, chain,
    error::{JobFate, is_denied},
    events, now, recovery, unless_stopped,
};
use crate::{
    export::{self, Job},
    fhir::{ResourceType, TransactionTime},
    state::{JobInFlight, JobKind},
};

impl Run<'_> {
    /// Follows the jobs that earlier runs left in flight; gives the types that need no other export in this run.
    pub(super) async fn resume(&mut self) -> Result<Vec<ResourceType>, Error> {
        let mut resumed = Vec::new();
        for mut job in self.syncer.export_state(self.export).jobs {
            if let Some(reason) = self.why_not_followed(&job) {
                tracing::warn!(reason, "the export in progress is not the one that is asked for now; it is cancelled");
                self.delete_job(&job).await?;
                continue;
            }
            self.narrow(&mut job).await?;
            if job.types.is_empty() {
                // Settled or given up, but the process ended before the DELETE; or nobody wants one of its types any more.
                self.delete_job(&job).await?;
                continue;
            }
            tracing::info!(
                since = job.since.map(TransactionTime::as_since),
                types = events::list(&job.types),
                "resuming the export in progress on the server"
            );
            // A job of an incremental run does not replace the full refresh of this run.
            let is_enough = match job.kind() {
                JobKind::Increment(_) | JobKind::FullLoad => self.mode == Mode::Incremental,
                JobKind::FullRefresh => true,
                JobKind::Joiners => false,
            };
            match self.follow(job.clone()).await {
                // The tables still have their old watermarks, so a new export loses nothing.
                Err(Error::Export(export::Error::JobLost { .. })) => {
                    tracing::warn!("the server no longer knows the export in progress; requesting another");
                    self.syncer.forget_job(self.export, job.status_url).await?;
                    continue;
                }
                Err(error) => self.job_failed(&job, error).await?,
                Ok(()) => {}
            }
            if is_enough {
                resumed.extend(job.types);
            }
        }
        Ok(resumed)
    }

    /// The types that are no longer configured leave the job, and so do those of an increment that are to be loaded in
    /// full: what changed since then does not bring back what their tables lack.
    async fn narrow(&self, job: &mut JobInFlight) -> Result<(), Error> {
        let reload = self.syncer.export_state(self.export).reload;
        let is_increment = matches!(job.kind(), JobKind::Increment(_));
        let is_replaced = |of: &ResourceType| is_increment && reload.contains_key(of);
        let types = job.types.iter().copied().filter(|of| self.export.types.contains(of) && !is_replaced(of)).collect();
        if job.types != types {
            job.types = types;
            self.syncer.narrow_job(self.export, job).await?;
        }
        Ok(())
    }

    /// Why a job cannot be followed: it is another server's, or it does not bring what is asked for now.
    fn why_not_followed(&self, job: &JobInFlight) -> Option<String> {
        let here = &self.syncer.server;
        match &job.server {
            Some(server) if server != here => return Some("server.url has changed".to_owned()),
            // A job of an earlier version.
            None if job.status_url.origin() != here.origin() => return Some("it is at another server".to_owned()),
            _ => {}
        }
        job.asked.as_ref()?.change_to(&self.export.asked(&self.syncer.config.source))
    }

    /// A request was refused, or not answered. Decides whether the other requests are still sent: an error that each of
    /// them would meet ends the run.
    pub(super) fn kick_off_failed(&mut self, types: &[ResourceType], error: Error) -> Result<(), Error> {
        if concerns_all(&error) {
            return Err(error);
        }
        self.tolerate(types, error);
        Ok(())
    }

    /// A job has failed. Decides the same, and what becomes of the job.
    pub(super) async fn job_failed(&mut self, job: &JobInFlight, error: Error) -> Result<(), Error> {
        let is_kept = is_worth_keeping(job, recovery(&error).job, is_denied(&error));
        if !is_kept {
            self.delete_job(job).await?;
        }
        if concerns_all(&error) {
            return Err(error);
        }
        if is_kept {
            self.syncer.remember_whether_denied(self.export, job, is_denied(&error)).await?;
        }
        self.tolerate(&job.types, error);
        Ok(())
    }

    /// The error ends neither the run nor the other exports.
    fn tolerate(&mut self, types: &[ResourceType], error: Error) {
        tracing::error!(
            types = events::list(types),
            error = chain(&error),
            "an export failed; the others are still requested"
        );
        let remark = chain(&error);
        if !self.report.remarks.contains(&remark) {
            self.report.remarks.push(remark);
        }
        self.tolerated.get_or_insert(error);
    }

    /// Deletes the job on the server, then removes it from the state.
    pub(super) async fn delete_job(&self, job: &JobInFlight) -> Result<(), Error> {
        self.syncer.follow_no_more(self.export.name.clone(), job.status_url.clone()).await?;
        self.delete_on_server(job, CANCEL_PATIENCE).await;
        self.syncer.forget_job(self.export, job.status_url.clone()).await
    }

    async fn delete_on_server(&self, job: &JobInFlight, patience: Duration) {
        let deleted = async { Ok(on_server(job).delete(&self.syncer.client).await?) };
        match tokio::time::timeout(patience, unless_stopped(self.stop, REQUEST_PATIENCE, deleted)).await {
            Ok(Ok(())) => tracing::debug!("the export was deleted on the server"),
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "the export could not be deleted; the server keeps its files");
            }
            Err(_) => tracing::warn!("the export could not be deleted: the server did not answer in time"),
        }
    }

    /// The tables to the disk, then the state file, then the end of the export on the server; in this order, because
    /// without the export's files a lost commit could not be repeated. Types that may still come from it keep the job.
    pub(super) async fn settle(&self, job: &JobInFlight) -> Result<(), Error> {
        self.progress.step(Step::Settling);
        let root = self.syncer.root.clone();
        blocking(move || root.sync_to_disk()).await?;
        let left: Vec<_> =
            job.types.iter().copied().filter(|resource_type| self.may_still_come(job, *resource_type)).collect();
        let is_done = left.is_empty();
        if !is_done {
            tracing::info!(types = events::list(&left), "the next sync reads these types from the same export again");
        }
        self.syncer.remember_settled(self.export, &self.report, job, left).await?;
        if is_done { self.delete_job(job).await } else { Ok(()) }
    }

    fn may_still_come(&self, job: &JobInFlight, resource_type: ResourceType) -> bool {
        match self.report.types.get(&resource_type).map(|report| &report.end) {
            Some(TypeEnd::Failed(failure)) => is_worth_keeping(job, failure.recovery.job, failure.is_denied),
            _ => false,
        }
    }
}

/// The job as its server knows it.
pub fn on_server(job: &JobInFlight) -> Job {
    Job {
        status_url: job.status_url.clone(),
        server_time: job.server_time(),
        kicked_off_locally_at: job.kicked_off_locally_at,
    }
}

/// How long the server may deny the files of a job. Afterwards they are asked for anew: servers and stores delete them
/// some day, and some say no more about that than that access is denied.
const MAX_DENIED: TimeDelta = TimeDelta::days(3);

/// Whether the job is followed again by the next run.
pub fn is_worth_keeping(job: &JobInFlight, fate: JobFate, is_denied: bool) -> bool {
    let is_over = job.denied_since.is_some_and(|since| now() - since > MAX_DENIED);
    fate == JobFate::Kept && !(is_denied && is_over)
}

/// Whether every other request would fail for the same reason.
fn concerns_all(error: &Error) -> bool {
    use export::Error as E;
    match error {
        Error::Stopped | Error::State(_) | Error::LeasedByOther { .. } | Error::SpoolFolder { .. } => true,
        Error::Export(error) => matches!(
            error,
            E::Unreachable { .. }
                | E::Busy { .. }
                | E::AuthorizationRequired { .. }
                | E::TokenDenied { .. }
                | E::NoTokenEndpoint { .. }
                | E::ForeignTokenEndpoint { .. }
                | E::Config { .. }
                | E::Key { .. }
                | E::Algorithm { .. }
                | E::Setup { .. }
                | E::UnusableUrl { .. }
                | E::RefusedAddress { .. }
        ),
        _ => false,
    }
}
