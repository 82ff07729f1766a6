//! Waiting for an export, and reading its files while the server still works on it (rule 64).
//!
//! A partial manifest names files that are ready. They are committed as instalments, without a watermark, and the job
//! remembers them: they are not read again when the export is complete. Whatever goes wrong with them is left to the
//! complete export, which is judged as if there had been no partial manifest.

use std::time::Duration;

use super::{
    CompletedExport, Error, Run, Step,
    blocking::unless_stopped,
    chain,
    intake::{self, Instalments},
    upsert::Commits,
};
use crate::{
    export::{Job, PartialExport, PollProgress, Waited},
    state::JobInFlight,
};

impl Run<'_> {
    /// Polls until the server has completed the export.
    pub(super) async fn wait(&mut self, mut asked: JobInFlight) -> Result<CompletedExport, Error> {
        let (syncer, stop, progress) = (self.syncer, self.stop, self.progress.clone());
        let waiting = |polls, server_says| progress.step(Step::Waiting { polls, server_says });
        let on_progress = |poll: PollProgress| waiting(poll.polls, poll.x_progress);
        let job = Job {
            status_url: asked.status_url.clone(),
            kicked_off_at: asked.kicked_off_at,
            polling_since: asked.polling_since,
        };
        waiting(0, None);
        if !self.export.allow_partial_manifests {
            let completed = async { Ok(job.wait(&syncer.client, &on_progress).await?) };
            let completed = unless_stopped(stop, Duration::ZERO, completed).await?;
            return Ok(CompletedExport { asked, completed });
        }
        let mut following = job.follow(&syncer.client, &on_progress, syncer.config.partial_interval);
        loop {
            let waited = async { Ok(following.next().await?) };
            match unless_stopped(stop, Duration::ZERO, waited).await? {
                Waited::Complete(completed) => return Ok(CompletedExport { asked, completed }),
                Waited::Partial(partial) => self.read_early(&mut asked, &partial).await?,
            }
            waiting(0, None);
        }
    }

    /// Reads the files that are ready and have not been read. Only a request to stop ends the run here.
    async fn read_early(&mut self, asked: &mut JobInFlight, partial: &PartialExport) -> Result<(), Error> {
        match self.commit_early(asked, partial).await {
            Err(Error::Stopped) => return Err(Error::Stopped),
            Err(error) => tracing::warn!(
                error = chain(&error),
                "files of the export in progress could not be read; they are read when it is complete"
            ),
            Ok(()) => {}
        }
        let jobs = self.syncer.export_state(self.export).jobs;
        if let Some(job) = jobs.into_iter().find(|job| job.status_url == asked.status_url) {
            *asked = job;
        }
        Ok(())
    }

    async fn commit_early(&mut self, asked: &JobInFlight, partial: &PartialExport) -> Result<(), Error> {
        let PartialExport { manifest, bound } = partial;
        let upsert = Commits::of_part(asked, manifest, *bound).instalment(self);
        let mut instalments = Instalments::begin_early(self, asked, manifest, upsert).await;
        let types = instalments.types_to_read(manifest);
        if types.is_empty() {
            return Ok(());
        }
        let provenance = self.provenance(manifest, *bound);
        let turn = self.syncer.turns.take(&self.progress, self.stop).await?;
        let (quarantine, stop) = (&self.quarantine, self.stop);
        let read = intake::receive_early(&mut instalments, manifest, &types, provenance, quarantine, stop).await;
        let made = instalments.made();
        self.report.instalments.extend(made);
        self.close_quarantine().await;
        drop(turn);
        read
    }
}
