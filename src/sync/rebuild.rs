//! A rebuild of one type's table from its own lines. The only request to the server is for its FHIR version.

use std::sync::Arc;

use tokio::runtime::Handle;

use super::{Error, Syncer, blocking::blocking, clock::now, columns::definition};
use crate::{
    fhir::ResourceType,
    resource::{Decoded, Decoder, Line, MappingPool},
    table::{self, Committed},
};

impl Syncer {
    /// Writes every row of a table again, with the columns that the configuration asks for; `None` where there is no
    /// table.
    pub async fn rebuild(&self, resource_type: ResourceType) -> Result<Option<Committed>, Error> {
        if self.engine.is_spark() {
            let reason = "Spark writes it (tables.engine); a full refresh writes its rows again".to_owned();
            return Err(table::Error::Rebuild { place: self.root.place_of_table(resource_type.into()), reason }.into());
        }
        let Some(table) = self.root.open(resource_type).await? else { return Ok(None) };
        let shape = self.shape(resource_type).await?;
        let decoder = Decoder {
            mappings: MappingPool::of(&shape),
            shape: Arc::clone(&shape),
            source: Arc::clone(&self.config.source),
            run_started_micros: now().timestamp_micros(),
            transaction_time: None,
            job: "rebuild".into(),
        };
        let decode = move |lines: Vec<Vec<u8>>| {
            let lines = (1..)
                .zip(lines)
                .map(|(number, bytes)| Line { number, offset: 0, bytes: bytes.into() })
                .collect::<Vec<_>>();
            let decoded = decoder.decode(&lines).and_then(Decoded::in_line_order).map_err(|error| error.to_string())?;
            match decoded.bad.first() {
                None => Ok(decoded.rows),
                Some(bad) => Err(format!("a line can no longer be decoded: {}", bad.reason)),
            }
        };
        let definition = definition(&shape);
        let runtime = Handle::current();
        let committed = blocking(move || runtime.block_on(table::rebuild(table, &definition, &decode))).await?;
        let root = self.root.clone();
        blocking(move || root.sync_to_disk()).await?;
        Ok(Some(committed))
    }
}
