//! The engine: who reads and writes the tables of resources. All other tables are our own in any case.

use std::{collections::BTreeSet, path::Path};

use arrow::datatypes::SchemaRef;

#[cfg(feature = "spark")]
use crate::spark::{Spark, SparkTable};
use crate::{
    fhir::{ResourceType, TransactionTime},
    spark,
    table::{self, ChangeSet, Committed, MemoryBudget, Root, RunCommit, Table, TableDefinition, Upsert, is_first_load},
};

#[derive(Clone, Debug)]
pub enum Engine {
    /// This program.
    Delta(Root),
    #[cfg(feature = "spark")]
    Spark(Box<Spark>),
}

/// The table of a resource type as it was when it was opened.
pub enum ResourceTable {
    Delta(Box<Table>),
    #[cfg(feature = "spark")]
    Spark(Box<SparkTable>),
}

/// Where received rows go while they arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RowsGo {
    /// They become part of the table when its commit names the files: a first load.
    IntoDataFiles,
    /// They wait for the commit.
    IntoSpool,
}

impl RowsGo {
    pub fn on(is_first_load: bool) -> Self {
        if is_first_load { Self::IntoDataFiles } else { Self::IntoSpool }
    }
}

impl Engine {
    /// Without settings of Spark, this program writes the tables itself.
    pub fn of(root: &Root, config: Option<&spark::Config>) -> Result<Self, table::Error> {
        #[cfg(feature = "spark")]
        if let Some(config) = config {
            let spark = Spark::new(config, root).map_err(|error| error.of_table(&config.address.place()))?;
            return Ok(Self::Spark(Box::new(spark)));
        }
        // A program without the client has refused such a configuration.
        let _ = config;
        Ok(Self::Delta(root.clone()))
    }

    /// The same engine for work on `root`, which has the leases that this work needs.
    #[must_use]
    pub fn on(&self, root: &Root) -> Self {
        match self {
            Self::Delta(_) => Self::Delta(root.clone()),
            #[cfg(feature = "spark")]
            Self::Spark(spark) => Self::Spark(Box::new(spark.on(root))),
        }
    }

    /// The version of a server that writes the tables; `None` in a program without the client. Needs no tables.
    #[cfg_attr(not(feature = "spark"), expect(clippy::unused_async, reason = "only another engine is asked"))]
    pub async fn server_version(config: &spark::Config) -> Result<Option<String>, table::Error> {
        #[cfg(feature = "spark")]
        return match Spark::version(config).await {
            Ok(version) => Ok(Some(version)),
            Err(error) => Err(error.of_table(&config.address.place())),
        };
        #[cfg(not(feature = "spark"))]
        {
            let _ = config;
            Ok(None)
        }
    }

    /// Does Spark write the tables of resources? Then their maintenance is somebody else's.
    pub fn is_spark(&self) -> bool {
        match self {
            Self::Delta(_) => false,
            #[cfg(feature = "spark")]
            Self::Spark(_) => true,
        }
    }

    /// The table of a type; `None` where there is none.
    pub async fn open(&self, of: ResourceType) -> Result<Option<ResourceTable>, table::Error> {
        match self {
            Self::Delta(root) => Ok(root.open(of).await?.map(|table| ResourceTable::Delta(Box::new(table)))),
            #[cfg(feature = "spark")]
            Self::Spark(spark) => Ok(spark.open(of).await?.map(|table| ResourceTable::Spark(Box::new(table)))),
        }
    }

    /// The same, with all columns of the definition; a table that is not there is created.
    pub async fn open_or_create(
        &self,
        of: ResourceType,
        definition: &TableDefinition,
    ) -> Result<ResourceTable, table::Error> {
        match self {
            Self::Delta(root) => Ok(ResourceTable::Delta(Box::new(root.open_or_create(of, definition).await?))),
            #[cfg(feature = "spark")]
            Self::Spark(spark) => Ok(ResourceTable::Spark(Box::new(spark.open_or_create(of, definition).await?))),
        }
    }
}

impl ResourceTable {
    /// Of the table, which another one in its place does not have.
    pub fn id(&self) -> Result<String, table::Error> {
        match self {
            Self::Delta(table) => table.id(),
            #[cfg(feature = "spark")]
            Self::Spark(table) => Ok(table.id().to_owned()),
        }
    }

    pub fn version(&self) -> u64 {
        match self {
            Self::Delta(table) => table.version(),
            #[cfg(feature = "spark")]
            Self::Spark(table) => table.version(),
        }
    }

    /// How far the export with this application id has brought the table.
    pub async fn watermark(&self, app_id: &str) -> Result<Option<TransactionTime>, table::Error> {
        match self {
            Self::Delta(table) => table.watermark(app_id).await,
            #[cfg(feature = "spark")]
            Self::Spark(table) => Ok(table.watermark(app_id)),
        }
    }

    /// Sets the watermark to exactly this instant, in a commit of its own.
    pub async fn set_watermark(&mut self, app_id: &str, watermark: TransactionTime) -> Result<u64, table::Error> {
        match self {
            Self::Delta(table) => table.set_watermark(app_id, watermark).await,
            #[cfg(feature = "spark")]
            Self::Spark(table) => table.set_watermark(app_id, watermark).await,
        }
    }

    /// Was the table restored to an earlier version after this version?
    pub async fn restored_since(&self, version: u64) -> Result<bool, table::Error> {
        match self {
            Self::Delta(table) => table.restored_since(version).await,
            #[cfg(feature = "spark")]
            Self::Spark(table) => Ok(table.restored_since(version)),
        }
    }

    /// What these runs committed, as far as the log still has it.
    pub async fn commits_of(&self, runs: &BTreeSet<u64>) -> Result<Vec<RunCommit>, table::Error> {
        match self {
            Self::Delta(table) => table.commits_of(runs).await,
            #[cfg(feature = "spark")]
            Self::Spark(table) => Ok(table.commits_of(runs)),
        }
    }

    pub fn columns(&self) -> Result<SchemaRef, table::Error> {
        match self {
            Self::Delta(table) => table.columns(),
            #[cfg(feature = "spark")]
            Self::Spark(table) => Ok(table.columns()),
        }
    }

    /// How many live rows there are; `None` where that is not known without reading them.
    pub async fn row_count(&self) -> Result<Option<u64>, table::Error> {
        match self {
            Self::Delta(table) => table.row_count().await,
            #[cfg(feature = "spark")]
            Self::Spark(table) => table.row_count().await,
        }
    }

    /// Has nothing been loaded into it?
    pub async fn is_unloaded(&self) -> Result<bool, table::Error> {
        match self {
            Self::Delta(table) => is_first_load(table).await,
            #[cfg(feature = "spark")]
            Self::Spark(table) => Ok(table.is_empty()),
        }
    }

    /// Where the rows of the next change set go; `continues_first_load` says that earlier instalments were a first load.
    pub async fn rows_go(&self, continues_first_load: bool) -> Result<RowsGo, table::Error> {
        match self {
            Self::Delta(table) => Ok(RowsGo::on(continues_first_load || is_first_load(table).await?)),
            #[cfg(feature = "spark")]
            Self::Spark(_) => Ok(RowsGo::IntoSpool),
        }
    }

    /// An empty change set for the table.
    pub fn change_set(
        &self,
        rows_go: RowsGo,
        schema: &SchemaRef,
        budget: MemoryBudget,
        spool_folder: &Path,
    ) -> Result<ChangeSet, table::Error> {
        match self {
            Self::Delta(table) => match rows_go {
                RowsGo::IntoDataFiles => ChangeSet::for_first_load(table, schema, budget, spool_folder),
                RowsGo::IntoSpool => Ok(ChangeSet::for_rows(table, schema, budget, spool_folder)),
            },
            #[cfg(feature = "spark")]
            Self::Spark(_) => Ok(ChangeSet::new(schema, budget, spool_folder)),
        }
    }

    /// Brings the changes into the table. Blocks.
    pub async fn upsert(self, changes: &ChangeSet, upsert: &Upsert) -> Result<Committed, table::Error> {
        match self {
            Self::Delta(table) => table.upsert(changes, upsert).await,
            #[cfg(feature = "spark")]
            Self::Spark(table) => table.upsert(changes, upsert).await,
        }
    }
}
