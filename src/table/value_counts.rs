//! Value counts: how many rows have each value of a text column. The demo shows them.

use std::collections::BTreeMap;

use arrow::{array::AsArray as _, compute::cast, datatypes::DataType};
use futures::TryStreamExt as _;

use super::{Error, Root};
use crate::fhir::ResourceType;

impl Root {
    /// The number of rows for each value of a top-level text column, NULL included; empty where there is no table.
    pub async fn value_counts(
        &self,
        resource_type: ResourceType,
        column: &str,
    ) -> Result<BTreeMap<Option<String>, u64>, Error> {
        let mut counts = BTreeMap::new();
        let Some(table) = self.open(resource_type).await? else { return Ok(counts) };
        for file in table.stored_files().await? {
            let mut batches = std::pin::pin!(table.rows(&file).await?);
            while let Some(batch) = batches.try_next().await? {
                // A data file leaves out columns that are NULL in all of its rows.
                let Some(values) = batch.column_by_name(column) else {
                    *counts.entry(None).or_default() += batch.num_rows() as u64;
                    continue;
                };
                let values = cast(values, &DataType::Utf8).map_err(|error| table.failed(error))?;
                for value in values.as_string::<i32>() {
                    *counts.entry(value.map(ToOwned::to_owned)).or_default() += 1;
                }
            }
        }
        Ok(counts)
    }
}
