//! A refused kick-off: which of its types are asked for again, and what becomes of those that the server does not
//! export.

use std::collections::BTreeMap;

use super::{Error, PlannedRequest, Run, TypeEnd, plan::AfterRefusal};
use crate::fhir::ResourceType;

impl Run<'_> {
    /// The requests that are sent instead. A type that the server names fails alone, or is left out where the operator
    /// says so.
    pub(super) async fn refused(
        &mut self,
        request: &PlannedRequest,
        error: Error,
    ) -> Result<Vec<PlannedRequest>, Error> {
        let Some(AfterRefusal { again, unsupported }) = request.after_refusal(&error) else {
            self.kick_off_failed(&request.types, error)?;
            return Ok(Vec::new());
        };
        if let Some((of, words)) = unsupported {
            if self.syncer.config.drop_unsupported_types {
                self.mark_unsupported(of, words).await?;
            } else {
                self.kick_off_failed(&[of], error)?;
            }
        }
        Ok(again)
    }

    /// Its table and watermark stay as they are. When the server exports it again, all of it is asked for: what it did
    /// not export meanwhile, nobody knows.
    async fn mark_unsupported(&mut self, of: ResourceType, words: String) -> Result<(), Error> {
        tracing::warn!(resource_type = %of, words, "{of}: denied, the server refuses the type");
        self.report.remarks.push(format!(
            "{of} is denied: the server refuses the type, {words}; it was left out, and all of it is asked for by the next \
             sync"
        ));
        self.report.types.entry(of).or_default().end = TypeEnd::Unsupported { words };
        let reason = "the server refused the type before".to_owned();
        self.syncer.remember_reload(self.export, BTreeMap::from([(of, reason)])).await
    }
}
