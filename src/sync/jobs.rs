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
    fhir::ResourceType,
    state::JobInFlight,
};

impl Run<'_> {
    /// Follows the jobs that earlier runs left in flight; gives the types that need no other export in this run.
    pub(super) async fn resume(&mut self) -> Result<Vec<ResourceType>, Error> {
        let mut resumed = Vec::new();
        for mut job in self.syncer.export_state(self.export).jobs {
            if let Some(reason) = self.is_foreign(&job) {
                tracing::warn!(reason, "the export in progress is not the one that is asked for now; it is cancelled");
                self.give_up(&job).await?;
                continue;
            }
            self.narrow(&mut job).await?;
            if job.types.is_empty() {
                // Settled or given up, but the process ended before the DELETE; or nobody wants one of its types any more.
                self.give_up(&job).await?;
                continue;
            }
            tracing::info!(
                since = job.since,
                types = events::list(&job.types),
                "resuming the export in progress on the server"
            );
            let types = job.types.clone();
            // What an incremental run asked for does not make a full refresh.
            let is_enough = (self.mode == Mode::Incremental || job.full_refresh) && job.patients.is_empty();
            match self.follow(job.clone()).await {
                // The tables still have their old watermarks, so a new export loses nothing.
                Err(Error::Export(export::Error::JobLost { .. })) => {
                    tracing::warn!("the server no longer knows the export in progress; requesting another");
                    self.syncer.forget_job(self.export, job.status_url).await?;
                    continue;
                }
                Err(error) => self.failed(&types, Some(&job), error).await?,
                Ok(()) => {}
            }
            if is_enough {
                resumed.extend(types);
            }
        }
        Ok(resumed)
    }

    /// The types that are no longer configured leave the job, and so do those of an increment that are to be loaded in
    /// full: what changed since then does not bring back what their tables lack.
    async fn narrow(&self, job: &mut JobInFlight) -> Result<(), Error> {
        let reload = self.syncer.export_state(self.export).reload;
        let is_replaced = |of: &ResourceType| job.since.is_some() && reload.contains_key(of);
        let types = job.types.iter().copied().filter(|of| self.export.types.contains(of) && !is_replaced(of)).collect();
        if job.types != types {
            job.types = types;
            self.syncer.narrow_job(self.export, job).await?;
        }
        Ok(())
    }

    /// Why a job cannot be followed: it is another server's, or it does not bring what is asked for now.
    fn is_foreign(&self, job: &JobInFlight) -> Option<String> {
        let here = &self.syncer.server;
        match &job.server {
            Some(server) if server != here => return Some("server.url has changed".to_owned()),
            // A job of an earlier version.
            None if job.status_url.origin() != here.origin() => return Some("it is at another server".to_owned()),
            _ => {}
        }
        job.asked.as_ref()?.change_to(&self.export.asked(&self.syncer.config.source))
    }

    /// A request, or the job that it became, has failed. Decides what becomes of the job, and whether the other
    /// requests are still sent: an error that each of them would meet ends the run.
    pub(super) async fn failed(
        &mut self,
        types: &[ResourceType],
        job: Option<&JobInFlight>,
        error: Error,
    ) -> Result<(), Error> {
        let kept = job.filter(|job| is_worth_keeping(job, recovery(&error).job, is_denied(&error)));
        if let (Some(job), None) = (job, kept) {
            self.give_up(job).await?;
        }
        if concerns_all(&error) {
            return Err(error);
        }
        if let Some(job) = kept {
            self.syncer.remember_denied(self.export, job, is_denied(&error)).await?;
        }
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
        Ok(())
    }

    /// Cancels a job that nobody will follow, then forgets it.
    pub(super) async fn give_up(&self, job: &JobInFlight) -> Result<(), Error> {
        self.syncer.follow_no_more(self.export.name.clone(), job.status_url.clone()).await?;
        self.delete(job, CANCEL_PATIENCE).await;
        self.syncer.forget_job(self.export, job.status_url.clone()).await
    }

    async fn delete(&self, job: &JobInFlight, patience: Duration) {
        let at = job.status_url.clone();
        let on_server = Job { status_url: at, kicked_off_at: job.kicked_off_at, polling_since: job.polling_since };
        let deleted = async { Ok(on_server.delete(&self.syncer.client).await?) };
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
        if is_done { self.give_up(job).await } else { Ok(()) }
    }

    fn may_still_come(&self, job: &JobInFlight, resource_type: ResourceType) -> bool {
        match self.report.types.get(&resource_type).map(|report| &report.end) {
            Some(TypeEnd::Failed(failure)) => is_worth_keeping(job, failure.recovery.job, failure.is_denied),
            _ => false,
        }
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
