//! A query: SQL over the tables, for people who look at a result.

use deltalake::{
    arrow::util::pretty::pretty_format_batches,
    datafusion::{
        common::TableReference,
        error::DataFusionError,
        prelude::{SessionConfig, SessionContext},
    },
};

use super::{Error, Root};
use crate::fhir::ResourceType;

impl Root {
    /// Runs `sql` over the tables of `resource_types`, each under its type's name, and draws the answer as text.
    pub async fn query(&self, resource_types: &[ResourceType], sql: &str) -> Result<String, Error> {
        let place = self.url.to_string();
        let failed = |error: DataFusionError| Error::delta(&place, error);
        // Names are taken as they are written: most of those of FHIR have capital letters, and SQL ignores case.
        let settings = SessionConfig::new().set_bool("datafusion.sql_parser.enable_ident_normalization", false);
        let context = SessionContext::new_with_config(settings);
        for resource_type in resource_types {
            let Some(table) = self.open(*resource_type).await? else { continue };
            let provider = table.delta.table_provider().await.map_err(|error| table.failed(error))?;
            context.register_table(TableReference::bare(resource_type.as_str()), provider).map_err(failed)?;
        }
        let batches = context.sql(sql).await.map_err(failed)?.collect().await.map_err(failed)?;
        let drawn = pretty_format_batches(&batches).map_err(|error| failed(error.into()))?;
        Ok(drawn.to_string())
    }
}
