//! The wait for an export: polls until the server has completed it.

use std::{pin::pin, time::Duration};

use tokio::sync::watch;

use super::{CompletedJob, Error, Run, Step, jobs::on_server, stop::unless_stopped};
use crate::{
    export::{PollProgress, Waited},
    fhir::TransactionTime,
    state::{ExportState, JobInFlight},
};

impl Run<'_> {
    /// Polls until the server has completed the export.
    pub(super) async fn wait(&mut self, mut job: JobInFlight) -> Result<CompletedJob, Error> {
        let (syncer, stop, progress) = (self.syncer, self.stop, self.progress.clone());
        let waiting = |polls, server_says| progress.step(Step::Waiting { polls, server_says });
        let (clock, mut server_time) = watch::channel(None);
        let on_progress = |poll: PollProgress| {
            clock.send_replace(poll.server_time);
            waiting(poll.polls, poll.x_progress);
        };
        let polled = on_server(&job);
        waiting(0, None);
        if !self.export.allow_partial_manifests {
            let completed = async { Ok(polled.wait(&syncer.client, &on_progress).await?) };
            let completed = self.wait_and_remember(&job, &mut server_time, completed);
            let completed = unless_stopped(stop, Duration::ZERO, completed).await?;
            self.remember_server_time(&job, completed.server_time).await?;
            return Ok(CompletedJob::new(job, completed));
        }
        let mut following = polled.follow(&syncer.client, &on_progress, syncer.config.partial_interval);
        loop {
            let waited = async { Ok(following.next().await?) };
            let waited = self.wait_and_remember(&job, &mut server_time, waited);
            match unless_stopped(stop, Duration::ZERO, waited).await? {
                Waited::Complete(completed) => {
                    self.remember_server_time(&job, completed.server_time).await?;
                    return Ok(CompletedJob::new(job, completed));
                }
                Waited::Partial(partial) => {
                    self.remember_server_time(&job, partial.server_time).await?;
                    self.read_early(&mut job, &partial).await?;
                }
            }
            waiting(0, None);
        }
    }

    /// Waits for the server, and remembers its clock as soon as an answer has it.
    async fn wait_and_remember<T>(
        &self,
        job: &JobInFlight,
        server_time: &mut watch::Receiver<Option<TransactionTime>>,
        waiting: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        let mut waiting = pin!(waiting);
        let known = async { server_time.wait_for(Option::is_some).await.ok().and_then(|server_time| *server_time) };
        let server_time = tokio::select! {
            biased;
            ended = &mut waiting => return ended,
            server_time = known => server_time,
        };
        self.remember_server_time(job, server_time).await?;
        waiting.await
    }

    /// So that a run which resumes the job does not take a later answer for the earliest (rule 51).
    async fn remember_server_time(&self, job: &JobInFlight, server_time: Option<TransactionTime>) -> Result<(), Error> {
        let is_meant = |known: &JobInFlight| known.status_url == job.status_url && known.server_time().is_none();
        let is_news = self.syncer.export_state(self.export).jobs.iter().any(is_meant);
        if server_time.is_none() || !is_news {
            return Ok(());
        }
        let status_url = job.status_url.clone();
        let remember = move |state: &mut ExportState| {
            for job in state.jobs.iter_mut().filter(|job| job.status_url == status_url) {
                job.server_time_later = server_time;
            }
        };
        self.syncer.remember_export(self.export, remember).await
    }
}
