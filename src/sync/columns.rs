//! The columns of a type's table: those of FHIR R4 where the server speaks it, else the leading ones and
//! `resource_json`.

use std::sync::Arc;

use super::Syncer;
use crate::{fhir::ResourceType, resource::Shape, table::TableDefinition};

impl Syncer {
    pub(super) async fn shape(&self, resource_type: ResourceType) -> Arc<Shape> {
        if self.config.typed && *self.speaks_r4.get_or_init(|| self.ask_version()).await {
            Shape::of(resource_type, self.config.columns)
        } else {
            Shape::untyped(resource_type, self.config.columns)
        }
    }

    /// Whether the server speaks R4. One that does not say is treated as R4: its lines are kept in any case.
    async fn ask_version(&self) -> bool {
        let Some(version) = self.client.fhir_version().await else { return true };
        let is_r4 = version.starts_with("4.0");
        if !is_r4 {
            tracing::warn!(
                fhir_version = version,
                "the server does not speak FHIR R4 (4.0): its tables get the leading columns and resource_json only; \
                 tables.typed = false says the same without asking"
            );
        }
        is_r4
    }
}

pub fn definition(shape: &Shape) -> TableDefinition {
    TableDefinition { schema: shape.schema(), leading: shape.leading(), properties: shape.properties() }
}
