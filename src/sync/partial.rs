//! Partial manifests: files that are ready are committed while the server still works on the export (rule 64).
//!
//! They are committed as instalments, without a watermark, and the job remembers them: they are not read again when the
//! export is complete. Whatever goes wrong with them is left to the complete export, which is judged as if there had been
//! no partial manifest.

use super::{
    Error, Run, chain,
    intake::{self, Instalments},
    upsert::Commits,
};
use crate::{export::PartialExport, state::JobInFlight};

impl Run<'_> {
    /// Reads the files that are ready and have not been read. Only a request to stop ends the run here.
    pub(super) async fn read_early(&mut self, asked: &mut JobInFlight, partial: &PartialExport) -> Result<(), Error> {
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
        let upsert = Commits::of_job(asked, manifest, *bound).instalment(self);
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
