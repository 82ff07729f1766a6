//! A query: SQL over the tables, for people who look at a result. It changes nothing.

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use deltalake::datafusion::{
    common::TableReference,
    error::DataFusionError,
    execution::{SendableRecordBatchStream, context::SQLOptions},
    prelude::{SessionConfig, SessionContext},
};
use futures::StreamExt as _;

use super::{Error, Root};
use crate::fhir::ResourceType;

/// The rows of an answer, which are read as they are taken.
pub struct Answer {
    pub schema: SchemaRef,
    stream: SendableRecordBatchStream,
    place: String,
}

impl Answer {
    /// The next rows; `None` when there are no more.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, Error> {
        self.stream.next().await.transpose().map_err(|error| Error::delta(&self.place, error))
    }
}

impl Root {
    /// Runs one statement that only reads over the tables of `resource_types`, each under its type's name.
    pub async fn query(&self, resource_types: &[ResourceType], sql: &str) -> Result<Answer, Error> {
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
        // Without this, SQL can create files and tables.
        let reads_only = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        let rows = context.sql_with_options(sql, reads_only).await.map_err(failed)?;
        let stream = rows.execute_stream().await.map_err(failed)?;
        Ok(Answer { schema: stream.schema(), stream, place })
    }
}
