//! The mirror: what the state file knows of the tables, compared with the tables as they are.
//!
//! The tables decide how far they are. What they cannot tell is that they are not the tables of the last sync: another
//! one is at the same place, an earlier version was restored, the volume is not mounted. A watermark says nothing about
//! such a table, so it is loaded in full, and the report says why. Tables are compared when a run begins, and each once
//! more when it is committed: a server may take hours for an export.

use std::collections::BTreeMap;

use futures::future::join_all;

use super::{Error, Export, Mode, ResourceTable, Run, Syncer, events, watermarks::TABLES_AT_ONCE};
use crate::{fhir::ResourceType, state::KnownTable, table};

impl Run<'_> {
    /// Finds the tables that were restored or replaced since our last commit; they are loaded in full by this run.
    pub(super) async fn compare_with_the_tables(&mut self) -> Result<(), Error> {
        let state = self.syncer.export_state(self.export);
        let mut known = state.tables;
        known.retain(|resource_type, _| self.export.types.contains(resource_type));
        if known.is_empty() {
            return Ok(());
        }
        let mut reasons = BTreeMap::new();
        let mut is_any_there = false;
        let tables: Vec<_> = known.iter().collect();
        for tables in tables.chunks(TABLES_AT_ONCE) {
            let differences = tables.iter().map(|(of, table)| self.syncer.difference(**of, table));
            let differences = join_all(differences).await;
            for ((resource_type, _), difference) in tables.iter().zip(differences) {
                is_any_there |= !matches!(difference, Ok(Some(Difference::Gone)));
                // A table that cannot be opened fails its type when the run is planned; what else cannot be read now, the
                // commit of the type reads again, or fails.
                if let Ok(Some(difference)) = difference {
                    reasons.insert(**resource_type, difference.to_string());
                }
            }
        }
        if !is_any_there && self.mode != Mode::FullRefresh {
            self.syncer.forget_data(self.export, known.into_keys().collect()).await?;
            return Err(Error::TablesGone { root: self.syncer.root.place() });
        }
        if state.has_tombstones && !self.syncer.root.has_tombstones().await? {
            let of_all = known.keys().map(|resource_type| (*resource_type, Difference::NoTombstones.to_string()));
            reasons = of_all.chain(reasons).collect();
        }
        self.syncer.remember_reload(self.export, reasons).await
    }

    /// Finds the tables with rows and without a watermark: an earlier load was held, or its job was lost. What the
    /// server has deleted since then is in no export but a full one, and nothing says that it is gone.
    pub(super) async fn find_unfinished(&self) -> Result<(), Error> {
        let state = self.syncer.export_state(self.export);
        let mut reasons = BTreeMap::new();
        for (resource_type, watermark) in self.syncer.watermarks(self.export).await {
            let is_asked = state.jobs.iter().any(|job| job.types.contains(&resource_type));
            let is_known = state.reload.contains_key(&resource_type) || state.unconfirmed.contains_key(&resource_type);
            if is_asked || is_known || !matches!(watermark, Ok(None)) {
                continue;
            }
            let Some(table) = self.syncer.engine.open(resource_type).await? else { continue };
            if !table.is_unloaded().await? {
                reasons.insert(resource_type, Difference::Unfinished.to_string());
            }
        }
        self.syncer.remember_reload(self.export, reasons).await
    }
}

impl Syncer {
    /// The types of an export whose data cannot be counted on: the table is not there, is not the one of the last sync,
    /// or its watermark is of another source, level or group. `/health` must not call them fresh, even before the next
    /// run.
    pub async fn forget_lost_data(&self, export: &Export) -> Result<(), Error> {
        // Only its holder may write it, and its next run looks anyway.
        if self.shares_exports() {
            return Ok(());
        }
        let known = self.export_state(export);
        let mut lost = Vec::new();
        for (resource_type, watermark) in self.watermarks(export).await {
            let is_there = match (watermark, known.tables.get(&resource_type)) {
                (Ok(Some(_)), Some(table)) => matches!(self.difference(resource_type, table).await, Ok(None)),
                (Ok(watermark), _) => watermark.is_some(),
                (Err(_), _) => false,
            };
            if !is_there && known.freshness.data_as_of.contains_key(&resource_type) {
                lost.push(resource_type);
            }
        }
        self.forget_data(export, lost).await
    }

    async fn forget_data(&self, export: &Export, lost: Vec<ResourceType>) -> Result<(), Error> {
        if lost.is_empty() {
            return Ok(());
        }
        tracing::warn!(export = export.name, types = events::list(&lost), "the tables are not those of the last sync");
        self.remember_export(export, move |state| {
            state.freshness.data_as_of.retain(|resource_type, _| !lost.contains(resource_type));
        })
        .await
    }

    /// Why the rows that the table had are not, or may not be, in it any more.
    pub(super) async fn difference(
        &self,
        resource_type: ResourceType,
        known: &KnownTable,
    ) -> Result<Option<Difference>, table::Error> {
        match self.engine.open(resource_type).await? {
            Some(table) => difference(&table, known).await,
            None => Ok(Some(Difference::Gone)),
        }
    }
}

/// The same of a table that is open.
pub async fn difference(table: &ResourceTable, known: &KnownTable) -> Result<Option<Difference>, table::Error> {
    if table.id()? != known.id {
        return Ok(Some(Difference::AnotherTable));
    }
    if table.version() < known.version {
        return Ok(Some(Difference::Older { found: table.version(), known: known.version }));
    }
    Ok(table.restored_since(known.version).await?.then_some(Difference::Restored))
}

/// Fails if the table has lost rows since one of these records. A table that was restored still has the watermarks that
/// its rows no longer stand for. The next run finds the difference again.
pub async fn check_is_unchanged(
    table: &ResourceTable,
    known: impl IntoIterator<Item = &KnownTable>,
) -> Result<(), Error> {
    for known in known {
        if let Some(difference) = difference(table, known).await? {
            return Err(Error::TableChanged { difference: difference.to_string() });
        }
    }
    Ok(())
}

#[derive(thiserror::Error, Debug)]
pub enum Difference {
    #[error("its table is gone")]
    Gone,
    #[error("another table is in the place of its table")]
    AnotherTable,
    #[error("its table is at version {found}, and was at version {known} after the last sync")]
    Older { found: u64, known: u64 },
    #[error("its table was restored to an earlier version")]
    Restored,
    #[error("its table has rows and no watermark of this export")]
    Unfinished,
    #[error("the tombstones in _fhir_sync/deleted are gone")]
    NoTombstones,
}
