//! The server's own counts of resources, for people who compare them with the tables. Asking needs the server's key,
//! and neither lock nor lease.

use std::time::Duration;

use super::{Config, Error, Export, chain, sources};
use crate::{
    export::{self, Client, Granted, Level},
    fhir::ResourceType,
    table::Root,
};

/// A count is not worth a long wait.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct ServerCounts {
    client: Client,
    exports: Vec<Export>,
    /// Other sources whose rows are in the same tables.
    others: Vec<String>,
}

impl ServerCounts {
    pub async fn open(
        server: export::Config,
        root: &Root,
        config: &Config,
        exports: Vec<Export>,
    ) -> Result<Self, Error> {
        let mut others = sources::recorded(root).await?;
        others.retain(|source| *source != *config.source);
        Ok(Self { client: Client::new(server)?, exports, others })
    }

    /// How many resources of a type the server has, where that is what the table should have. On an error, why the two
    /// cannot be compared.
    pub async fn of(&self, resource_type: ResourceType) -> Result<u64, String> {
        if let Some(other) = self.others.first() {
            return Err(format!("the table may have rows of other sources, such as {other:?}"));
        }
        let of_type = |export: &&Export| export.types.contains(&resource_type);
        if !self.exports.iter().filter(of_type).any(|export| export.level == Level::System) {
            return Err("the export has a group or patients only, and the server counts all".to_owned());
        }
        let asked = async {
            match self.client.granted(resource_type).await {
                Granted::No { missing } => Err(format!("the scope {missing} is not granted")),
                Granted::Yes | Granted::Unknown => match self.client.count(resource_type).await {
                    Ok(Some(count)) => Ok(count),
                    Ok(None) => Err("the server does not say how many it has".to_owned()),
                    Err(error) => Err(chain(&error)),
                },
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, asked).await;
        in_time.unwrap_or_else(|_| Err("the server did not say in time how many it has".to_owned()))
    }
}
