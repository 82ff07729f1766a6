//! Partial manifests: files that are ready are committed while the server still works on the export (rule 64).
//!
//! They are committed as instalments, without a watermark, and the job remembers them: they are not read again when the
//! export is complete. Whatever goes wrong with them is left to the complete export, which is judged as if there had been
//! no partial manifest.

use super::{
    Coverage, Error, Run, chain,
    clock::now,
    intake::{self, Instalments},
};
use crate::{export::PartialExport, state::JobInFlight};

impl Run<'_> {
    /// Reads the files that are ready and have not been read. Only a request to stop ends the run here.
    pub(super) async fn read_early(&mut self, job: &mut JobInFlight, partial: &PartialExport) -> Result<(), Error> {
        match self.commit_early(job, partial).await {
            Err(Error::Stopped) => return Err(Error::Stopped),
            Err(error) => tracing::warn!(
                error = chain(&error),
                "files of the export in progress could not be read; they are read when it is complete"
            ),
            Ok(()) => {}
        }
        let jobs = self.syncer.export_state(self.export).jobs;
        if let Some(known) = jobs.into_iter().find(|known| known.status_url == job.status_url) {
            *job = known;
        }
        Ok(())
    }

    async fn commit_early(&mut self, job: &JobInFlight, partial: &PartialExport) -> Result<(), Error> {
        let PartialExport { manifest, server_time } = partial;
        // Where the server's clock is ahead of ours, there is nothing to read: the complete export says so.
        let (coverage, _) = Coverage::of(job, manifest, *server_time, now());
        let mut instalments = Instalments::begin_early(self, job, manifest, coverage).await;
        let types = instalments.types_to_read(manifest);
        if types.is_empty() {
            return Ok(());
        }
        let provenance = self.provenance(coverage);
        let turn = self.syncer.turns.take(&self.progress, self.stop).await?;
        let read = intake::receive_early(&mut instalments, manifest, &types, provenance).await;
        let made = instalments.made();
        self.report.instalments.extend(made);
        self.close_quarantine().await;
        drop(turn);
        read
    }
}
