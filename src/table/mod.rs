//! Delta tables: one per resource type. The only room that names deltalake.
//!
//! A table exists only from its first commit on. A commit carries the rows of one run *and* the watermark they stand for
//! (an application transaction), so the two cannot disagree.

mod change_set;
mod commit;
mod data_file;
mod decide;
mod error;
mod query;
mod rebuild;
mod upsert;

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use arrow::datatypes::{Schema, SchemaRef};
use deltalake::{
    DeltaTable, DeltaTableBuilder, DeltaTableError,
    kernel::{StructType, engine::arrow_conversion::TryIntoKernel as _},
    operations::create::CreateBuilder,
    protocol::SaveMode,
};
use url::Url;

pub use self::{
    change_set::{ChangeSet, probe_spool_folder},
    error::Error,
    upsert::{Committed, Counts, Reconcile, Upsert, writer_properties},
};
use crate::fhir::{ResourceType, TransactionTime};

#[cfg(test)]
mod tests;

/// Where the tables are and how they are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A folder, or the URL of a place in an object store.
    pub root: Location,
    /// deltalake's names, such as `aws_endpoint`; environment variables of the same names count as well.
    pub storage_options: HashMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    Folder(PathBuf),
    ObjectStore(Url),
}

/// The columns of a new table; the first `leading` of them get statistics in the log.
#[derive(Clone, Debug)]
pub struct Layout {
    pub schema: SchemaRef,
    pub leading: usize,
    /// What the table says of itself, such as the version of its schema.
    pub properties: Vec<(&'static str, String)>,
}

/// The folder of all tables.
#[derive(Clone, Debug)]
pub struct Root {
    url: Url,
    folder: Option<PathBuf>,
    storage_options: HashMap<String, String>,
}

impl Root {
    /// Makes the folder where it is a local one, and sees that it can be written. Blocks on the disk.
    pub fn new(config: Config) -> Result<Self, Error> {
        let (url, folder) = match config.root {
            Location::Folder(folder) => {
                let folder = writable_folder(&folder).map_err(|error| Error::Root {
                    place: folder.display().to_string(),
                    reason: format!("{error}; check its owner and mode, or choose another `tables.root`"),
                })?;
                let url = Url::from_directory_path(&folder).map_err(|()| Error::Root {
                    place: folder.display().to_string(),
                    reason: "not an absolute path".to_owned(),
                })?;
                (url, Some(folder))
            }
            Location::ObjectStore(url) => (with_trailing_slash(url), None),
        };
        register_object_stores();
        Ok(Self { url, folder, storage_options: config.storage_options })
    }

    /// The table of a resource type, as of now; `None` before its first commit.
    pub async fn open(&self, resource_type: ResourceType) -> Result<Option<Table>, Error> {
        let place = self.place(resource_type);
        if self.folder.as_ref().is_some_and(|folder| !folder.join(directory(resource_type)).join("_delta_log").exists())
        {
            return Ok(None);
        }
        let mut delta = self.delta(resource_type)?;
        if !delta.verify_deltatable_existence().await.map_err(|error| Error::delta(&place, error))? {
            return Ok(None);
        }
        delta.load().await.map_err(|error| Error::delta(&place, error))?;
        Ok(Some(Table { resource_type, place, delta }))
    }

    /// The table of a resource type; an empty first commit makes it where there is none.
    pub async fn open_or_create(&self, resource_type: ResourceType, layout: &Layout) -> Result<Table, Error> {
        if let Some(table) = self.open(resource_type).await? {
            return table.evolve(layout).await;
        }
        let place = self.place(resource_type);
        if let Some(folder) = &self.folder {
            // deltalake wants the folder to be there; it stays without a log only if we are killed right here.
            std::fs::create_dir_all(folder.join(directory(resource_type)))
                .map_err(|error| Error::delta(&place, error))?;
        }
        let schema = kernel_schema(&layout.schema, &place)?;
        let delta = CreateBuilder::new()
            .with_log_store(self.delta(resource_type)?.log_store())
            .with_save_mode(SaveMode::ErrorIfExists)
            .with_table_name(resource_type.as_str())
            .with_columns(schema.fields().cloned())
            .with_configuration(properties(layout))
            .with_raise_if_key_not_exists(false)
            .await
            .map_err(|error| Error::delta(&place, error))?;
        Ok(Table { resource_type, place, delta })
    }

    /// Hands everything written so far to the disk. deltalake itself never calls fsync, so without this the state file
    /// could outlive the commits that it speaks of. Blocks; nothing to do on an object store.
    pub fn sync_to_disk(&self) -> Result<(), Error> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let place = folder.display().to_string();
        let directory = std::fs::File::open(folder).map_err(|error| Error::delta(&place, error))?;
        rustix::fs::syncfs(&directory).map_err(|error| Error::delta(&place, std::io::Error::from(error)))
    }

    /// The place of a type's table, for people.
    pub fn place(&self, resource_type: ResourceType) -> String {
        match &self.folder {
            Some(folder) => folder.join(directory(resource_type)).display().to_string(),
            None => format!("{}{}", self.url, directory(resource_type)),
        }
    }

    fn delta(&self, resource_type: ResourceType) -> Result<DeltaTable, Error> {
        let place = self.place(resource_type);
        let url = self
            .url
            .join(&format!("{}/", directory(resource_type)))
            .map_err(|error| Error::Root { place: place.clone(), reason: error.to_string() })?;
        DeltaTableBuilder::from_url(url)
            .map(|builder| builder.with_storage_options(self.storage_options.clone()))
            .and_then(DeltaTableBuilder::build)
            .map_err(|error| Error::delta(&place, error))
    }
}

/// One table at one version.
pub struct Table {
    resource_type: ResourceType,
    place: String,
    delta: DeltaTable,
}

impl Table {
    pub fn version(&self) -> u64 {
        self.delta.version().unwrap_or_default()
    }

    /// Gives the table the columns that it does not have yet, in a commit of its own. Only whole columns can be added;
    /// what lies inside a struct stays as it was made.
    async fn evolve(self, layout: &Layout) -> Result<Self, Error> {
        let Self { resource_type, place, delta } = self;
        let failed = |error: DeltaTableError| Error::delta(&place, error);
        let there = arrow_schema(&delta).map_err(failed)?;
        let known = |name: &str| there.field_with_name(name).is_ok();
        let missing: Vec<_> = layout.schema.fields().iter().filter(|field| !known(field.name())).cloned().collect();
        // A table without our keys was made by others, and is not ours to change.
        let ours = layout.schema.fields().iter().take(OWN_COLUMNS).all(|field| known(field.name()));
        if missing.is_empty() || !ours {
            return Ok(Self { resource_type, place, delta });
        }
        tracing::info!(%resource_type, columns = missing.len(), "the table gains columns");
        let fields = kernel_schema(&Schema::new(missing), &place)?;
        let delta =
            delta.add_columns().with_fields(fields.fields().cloned().collect::<Vec<_>>()).await.map_err(failed)?;
        let properties = layout.properties.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let set = delta.set_tbl_properties().with_properties(properties).with_raise_if_not_exists(false);
        let delta = set.await.map_err(failed)?;
        Ok(Self { resource_type, place, delta })
    }

    /// How far the export with this application id has brought the table.
    pub async fn watermark(&self, app_id: &str) -> Result<Option<TransactionTime>, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| Error::delta(&self.place, error))?;
        let micros = snapshot
            .transaction_version(self.delta.log_store().as_ref(), app_id)
            .await
            .map_err(|error| Error::delta(&self.place, error))?;
        Ok(micros.and_then(TransactionTime::from_micros))
    }
}

/// The suffix is what lets Pathling's `read.delta` find the tables.
fn directory(resource_type: ResourceType) -> String {
    format!("{resource_type}.parquet")
}

/// `id` and the columns of the sync itself: a table without one of them was made by others.
const OWN_COLUMNS: usize = 4;

fn kernel_schema(schema: &Schema, place: &str) -> Result<StructType, Error> {
    schema.try_into_kernel().map_err(|error| Error::Root {
        place: place.to_owned(),
        reason: format!("its columns cannot be Delta columns: {error}"),
    })
}

fn properties(layout: &Layout) -> impl Iterator<Item = (&'static str, Option<String>)> {
    let own = layout.properties.iter().map(|(name, value)| (*name, Some(value.clone())));
    own.chain([
        ("delta.dataSkippingNumIndexedCols", Some(layout.leading.to_string())),
        // Two commits an hour would make 17,000 files a year in each log; every hundredth commit becomes a checkpoint.
        ("delta.checkpointInterval", Some("100".to_owned())),
    ])
}

fn writable_folder(folder: &std::path::Path) -> std::io::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let folder = folder.canonicalize()?;
    tempfile::tempfile_in(&folder)?;
    Ok(folder)
}

fn with_trailing_slash(mut url: Url) -> Url {
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    url
}

/// Which object stores this binary was built for.
pub const OBJECT_STORES: &[&str] = &[
    #[cfg(feature = "s3")]
    "s3",
    #[cfg(feature = "s3")]
    "s3a",
    #[cfg(feature = "azure")]
    "abfs",
    #[cfg(feature = "azure")]
    "abfss",
    #[cfg(feature = "azure")]
    "az",
    #[cfg(feature = "gcs")]
    "gs",
];

fn register_object_stores() {
    #[cfg(feature = "s3")]
    deltalake::aws::register_handlers(None);
    #[cfg(feature = "azure")]
    deltalake::azure::register_handlers(None);
    #[cfg(feature = "gcs")]
    deltalake::gcp::register_handlers(None);
}

fn arrow_schema(table: &DeltaTable) -> Result<SchemaRef, deltalake::DeltaTableError> {
    Ok(Arc::clone(&table.snapshot()?.snapshot().arrow_schema()))
}
