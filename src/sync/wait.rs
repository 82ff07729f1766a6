//! The wait for an export: polls until the server has completed it.

use std::{pin::pin, time::Duration};

use tokio::sync::watch;

use super::{CompletedExport, Error, Run, Step, stop::unless_stopped};
use crate::{
    export::{Job, PollProgress, Waited},
    fhir::TransactionTime,
    state::{ExportState, JobInFlight},
};

impl Run<'_> {
    /// Polls until the server has completed the export.
    pub(super) async fn wait(&mut self, mut asked: JobInFlight) -> Result<CompletedExport, Error> {
        let (syncer, stop, progress) = (self.syncer, self.stop, self.progress.clone());
        let waiting = |polls, server_says| progress.step(Step::Waiting { polls, server_says });
        let (told, mut server_time) = watch::channel(None);
        let on_progress = |poll: PollProgress| {
            told.send_replace(poll.server_time);
            waiting(poll.polls, poll.x_progress);
        };
        let job = Job {
            status_url: asked.status_url.clone(),
            kicked_off_at: asked.bound(),
            polling_since: asked.polling_since,
        };
        waiting(0, None);
        if !self.export.allow_partial_manifests {
            let completed = async { Ok(job.wait(&syncer.client, &on_progress).await?) };
            let completed = self.wait_and_remember(&asked, &mut server_time, completed);
            let completed = unless_stopped(stop, Duration::ZERO, completed).await?;
            self.remember_answer(&asked, completed.bound).await?;
            return Ok(CompletedExport { asked, completed });
        }
        let mut following = job.follow(&syncer.client, &on_progress, syncer.config.partial_interval);
        loop {
            let waited = async { Ok(following.next().await?) };
            let waited = self.wait_and_remember(&asked, &mut server_time, waited);
            match unless_stopped(stop, Duration::ZERO, waited).await? {
                Waited::Complete(completed) => {
                    self.remember_answer(&asked, completed.bound).await?;
                    return Ok(CompletedExport { asked, completed });
                }
                Waited::Partial(partial) => {
                    self.remember_answer(&asked, partial.bound).await?;
                    self.read_early(&mut asked, &partial).await?;
                }
            }
            waiting(0, None);
        }
    }

    /// Waits for the server, and remembers its clock as soon as it is told.
    async fn wait_and_remember<T>(
        &self,
        asked: &JobInFlight,
        server_time: &mut watch::Receiver<Option<TransactionTime>>,
        waiting: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut waiting = pin!(waiting);
        let told = async { server_time.wait_for(Option::is_some).await.ok().and_then(|told| *told) };
        let told = tokio::select! {
            biased;
            ended = &mut waiting => return ended,
            told = told => told,
        };
        self.remember_answer(asked, told).await?;
        waiting.await
    }

    /// So that a run which resumes the job does not take a later answer for the earliest (rule 51).
    async fn remember_answer(&self, asked: &JobInFlight, told: Option<TransactionTime>) -> Result<(), Error> {
        let is_meant = |job: &JobInFlight| job.status_url == asked.status_url && job.bound().is_none();
        let Some(answered_at) = told.filter(|_| self.syncer.export_state(self.export).jobs.iter().any(is_meant)) else {
            return Ok(());
        };
        let status_url = asked.status_url.clone();
        let remember = move |state: &mut ExportState| {
            for job in state.jobs.iter_mut().filter(|job| job.status_url == status_url) {
                job.answered_at = Some(answered_at);
            }
        };
        self.syncer.remember_export(self.export, remember).await
    }
}
