//! The columns of a type's table: those of FHIR R4 where the server speaks it, else the leading ones and
//! `resource_json`.

use std::sync::Arc;

use super::{Error, Syncer};
use crate::{fhir::ResourceType, resource::Shape, table::TableDefinition};

/// Whether the server speaks R4, whose elements have columns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FhirRelease {
    R4(bool),
    /// It was asked in this run, and did not say.
    Unknown,
}

impl Syncer {
    /// The columns that a type's table gets, or keeps: a server that did not tell its version in this run changes none.
    pub(super) async fn shape(&self, resource_type: ResourceType) -> Result<Arc<Shape>, Error> {
        let options = self.config.columns;
        let typed = Shape::of(resource_type, options);
        let untyped = Shape::untyped(resource_type, options);
        let is_typed = self.config.typed
            && match self.fhir_release().await? {
                FhirRelease::R4(is_r4) => is_r4,
                FhirRelease::Unknown => {
                    let of_table = self.has_typed_columns(resource_type, &typed, &untyped).await;
                    // Its lines are kept in any case.
                    of_table.or(self.current_state().speaks_r4).unwrap_or(true)
                }
            };
        Ok(if is_typed { typed } else { untyped })
    }

    /// A server that failed to say is asked again in the next run.
    pub(super) async fn forget_unknown_release(&self) {
        let mut release = self.fhir_release.lock().await;
        if *release == Some(FhirRelease::Unknown) {
            *release = None;
        }
    }

    async fn fhir_release(&self) -> Result<FhirRelease, Error> {
        let mut release = self.fhir_release.lock().await;
        if let Some(known) = *release {
            return Ok(known);
        }
        let asked = self.ask_version().await;
        if let FhirRelease::R4(is_r4) = asked
            && self.current_state().speaks_r4 != Some(is_r4)
        {
            self.remember(move |state| state.speaks_r4 = Some(is_r4)).await?;
        }
        Ok(*release.insert(asked))
    }

    async fn ask_version(&self) -> FhirRelease {
        let Some(version) = self.client.fhir_version().await else {
            tracing::warn!("the server does not say which FHIR version it speaks; all tables keep their columns");
            return FhirRelease::Unknown;
        };
        let is_r4 = version.starts_with("4.0");
        if !is_r4 {
            tracing::warn!(
                fhir_version = version,
                "the server does not speak FHIR R4 (4.0): its tables get the leading columns and resource_json only; \
                 tables.typed = false says the same without asking"
            );
        }
        FhirRelease::R4(is_r4)
    }

    /// `None` where there is no table, or where its type has no typed columns. One that cannot be opened fails its type
    /// when its rows are there.
    async fn has_typed_columns(&self, resource_type: ResourceType, typed: &Shape, untyped: &Shape) -> Option<bool> {
        let there = self.engine.open(resource_type).await.ok()??.columns().ok()?;
        let (with, without) = (typed.schema(), untyped.schema());
        let of_element = with.fields().iter().find(|field| without.field_with_name(field.name()).is_err())?;
        Some(there.field_with_name(of_element.name()).is_ok())
    }
}

pub fn definition(shape: &Shape) -> TableDefinition {
    TableDefinition { schema: shape.schema(), leading: shape.leading(), properties: shape.properties() }
}
