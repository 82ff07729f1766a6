//! Watermarks: how far the tables are, by their own word.

use futures::future::join_all;

use super::{Error, Export, ResourceTable, Syncer};
use crate::{
    fhir::{ResourceType, TransactionTime},
    table::{self, ADOPTED},
};

/// Tables that are opened at the same time: in an object store the time is spent waiting.
pub(super) const TABLES_AT_ONCE: usize = 16;

impl Syncer {
    /// The watermark of each table of an export, or why it cannot be read. The tables decide; the state file only
    /// mirrors them.
    pub(super) async fn watermarks(
        &self,
        export: &Export,
    ) -> Vec<(ResourceType, Result<Option<TransactionTime>, Error>)> {
        let reload = self.export_state(export).reload;
        let mut watermarks = Vec::new();
        for types in export.types.chunks(TABLES_AT_ONCE) {
            let of_type = |resource_type: ResourceType| async move {
                let watermark = self.watermark(export, resource_type).await;
                (resource_type, watermark.map_err(|error| Error::of_opening(resource_type, error)))
            };
            let of_types = join_all(types.iter().copied().map(of_type)).await;
            // A type that is to be loaded in full has no watermark that counts.
            watermarks.extend(of_types.into_iter().map(|(resource_type, watermark)| {
                let is_reloaded = reload.contains_key(&resource_type);
                (resource_type, watermark.map(|watermark| watermark.filter(|_| !is_reloaded)))
            }));
        }
        watermarks
    }

    async fn watermark(
        &self,
        export: &Export,
        resource_type: ResourceType,
    ) -> Result<Option<TransactionTime>, table::Error> {
        match self.engine.open(resource_type).await? {
            Some(table) => watermark(&table, export, &self.config.source).await,
            None => Ok(None),
        }
    }
}

/// An earlier fhir-sync named watermarks without a fingerprint. Such a watermark counts until our first commit.
pub async fn watermark(
    table: &ResourceTable,
    export: &Export,
    source: &str,
) -> Result<Option<TransactionTime>, table::Error> {
    match table.watermark(&export.app_id(source)).await? {
        Some(watermark) => Ok(Some(watermark)),
        None => Ok(table.watermark(&export.app_id_before()).await?.filter(|watermark| *watermark > ADOPTED)),
    }
}
