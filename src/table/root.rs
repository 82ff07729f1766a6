//! Delta tables: one per resource type. The only room that names deltalake.
//!
//! A table exists only from its first commit on. A commit carries the rows of one run *and* the watermark they stand for
//! (an application transaction), so the two cannot disagree.

mod change_set;
mod commit;
mod data_file;
mod error;
mod evolve;
mod maintain;
mod name;
mod parallel;
#[cfg(feature = "sql")]
mod query;
mod rebuild;
mod requirements;
mod tombstones;
mod upsert;
mod value_counts;

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::datatypes::{Schema, SchemaRef};
use deltalake::{
    DeltaTable, DeltaTableBuilder,
    kernel::{StructType, engine::arrow_conversion::TryIntoKernel as _, transaction::CommitProperties},
    operations::create::CreateBuilder,
    protocol::SaveMode,
};
use tokio::sync::Mutex;
use url::Url;

use self::{
    change_set::first_load::LEAST_WRITER_BYTES,
    data_file::ROW_GROUP_BYTES,
    data_file::partitioned::{PARTITION_DATE, of_data_files},
    data_file::rolling::{Kind, Target},
    evolve::evolve,
    upsert::change_feed::ENABLE_CHANGE_DATA_FEED,
    upsert::write::ENABLE_DELETION_VECTORS,
};
pub use self::{
    change_set::memory_budget::{Share, Sharers},
    change_set::{ChangeSet, probe_spool_folder},
    data_file::partitioned::{DatePart, DatePartition},
    data_file::writer_properties,
    error::Error,
    maintain::{Amount, DryRun, Maintained, Maintenance, Retention, Step},
    name::TableName,
    upsert::{Committed, Counts, Reconcile, Upsert},
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
    pub merge: Merge,
    /// Whether tables are told to record what happens to their rows. Those that others have told otherwise are not.
    pub change_data_feed: bool,
    /// The types whose tables are partitioned.
    pub partitions: BTreeMap<ResourceType, DatePartition>,
}

impl Config {
    /// Everything as it is unless set.
    pub fn new(root: Location) -> Self {
        Self {
            root,
            storage_options: HashMap::new(),
            merge: Merge::default(),
            change_data_feed: false,
            partitions: BTreeMap::new(),
        }
    }
}

/// How rows leave a data file that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Merge {
    /// They are named as dead: writes little, and needs readers that know deletion vectors.
    #[default]
    DeletionVectors,
    /// The file is written again without them: for every reader.
    CopyOnWrite,
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
    merge: Merge,
    change_data_feed: bool,
    partitions: Arc<BTreeMap<ResourceType, DatePartition>>,
    /// Held while somebody writes to the table of deletions, which all types share.
    deletions: Arc<Mutex<()>>,
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
        let Config { storage_options, merge, change_data_feed, partitions, .. } = config;
        let (partitions, deletions) = (Arc::new(partitions), Arc::default());
        Ok(Self { url, folder, storage_options, merge, change_data_feed, partitions, deletions })
    }

    /// The table of a resource type, as of now; `None` before its first commit.
    pub async fn open(&self, resource_type: ResourceType) -> Result<Option<Table>, Error> {
        self.load(resource_type.into()).await
    }

    async fn load(&self, name: TableName) -> Result<Option<Table>, Error> {
        let directory = name.directory();
        let place = self.place_of(&directory);
        if self.folder.as_ref().is_some_and(|folder| !folder.join(&directory).join("_delta_log").exists()) {
            return Ok(None);
        }
        let mut delta = self.delta(&directory)?;
        if !delta.verify_deltatable_existence().await.map_err(|error| Error::delta(&place, error))? {
            return Ok(None);
        }
        delta.load().await.map_err(|error| Error::delta(&place, error))?;
        Ok(Some(Table { name, place, delta, root: self.clone() }))
    }

    /// The table of a resource type; an empty first commit makes it where there is none.
    pub async fn open_or_create(&self, resource_type: ResourceType, layout: &Layout) -> Result<Table, Error> {
        let name = TableName::from(resource_type);
        let place = self.place_of(&name.directory());
        let by = self.partitions.get(&resource_type);
        if let Some(by) = by
            && layout.schema.field_with_name(&by.source()).is_err()
        {
            return Err(Error::Unsupported {
                place,
                feature: format!("partitions by {}, for which it has no column", by.date),
                way_out: "tables are typed only where the server speaks R4; take its [tables.<type>] out of the configuration",
            });
        }
        if let Some(table) = self.open(resource_type).await? {
            return evolve(table, layout).await;
        }
        let schema = columns(layout, by);
        let schema = kernel_schema(&schema, &place)?;
        let of_partition = by.map(|by| (PARTITION_DATE, Some(by.date.clone())));
        let create = CreateBuilder::new()
            .with_table_name(name.as_str())
            .with_columns(schema.fields().cloned())
            .with_partition_columns(by.iter().flat_map(|by| by.columns()))
            .with_configuration(self.properties(layout).into_iter().chain(of_partition));
        // Another process may have made it at the same moment, with fewer columns.
        evolve(self.create(name, create).await?, layout).await
    }

    /// Makes a table by its empty first commit: before that, no data file may lie in its folder.
    async fn create(&self, name: TableName, create: CreateBuilder) -> Result<Table, Error> {
        let directory = name.directory();
        let place = self.place_of(&directory);
        if let Some(folder) = &self.folder {
            // deltalake wants the folder to be there; it stays without a log only if we are killed right here.
            std::fs::create_dir_all(folder.join(&directory)).map_err(|error| Error::delta(&place, error))?;
        }
        let created = create
            .with_log_store(self.delta(&directory)?.log_store())
            .with_save_mode(SaveMode::ErrorIfExists)
            .with_raise_if_key_not_exists(false)
            // deltalake's own retry would make the table a second time, on top of what is there.
            .with_commit_properties(CommitProperties::default().with_max_retries(0))
            .await;
        match created {
            Ok(delta) => Ok(Table { name, place, delta, root: self.clone() }),
            // It may be there by now: made by another process, or by us although the answer was lost.
            Err(error) => self.load(name).await?.ok_or_else(|| Error::delta(&place, error)),
        }
    }

    /// Hands everything written so far to the disk. deltalake itself never calls fsync, so without this the state file
    /// could outlive the commits that it speaks of. Blocks; nothing to do on an object store.
    pub fn sync_to_disk(&self) -> Result<(), Error> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let place = folder.display().to_string();
        let directory = std::fs::File::open(folder).map_err(|error| Error::delta(&place, error))?;
        rustix::fs::syncfs(&directory).map_err(|error| Error::delta(&place, std::io::Error::from(error)))
    }

    fn place_of(&self, directory: &str) -> String {
        match &self.folder {
            Some(folder) => folder.join(directory).display().to_string(),
            None => format!("{}{directory}", self.url),
        }
    }

    fn delta(&self, directory: &str) -> Result<DeltaTable, Error> {
        let place = self.place_of(directory);
        let url = self
            .url
            .join(&format!("{directory}/"))
            .map_err(|error| Error::Root { place: place.clone(), reason: error.to_string() })?;
        DeltaTableBuilder::from_url(url)
            .map(|builder| builder.with_storage_options(self.storage_options.clone()))
            .and_then(DeltaTableBuilder::build)
            .map_err(|error| Error::delta(&place, error))
    }

    fn properties(&self, layout: &Layout) -> Vec<(&'static str, Option<String>)> {
        let own = layout.properties.iter().map(|(name, value)| (*name, Some(value.clone())));
        let vectors = (self.merge == Merge::DeletionVectors).then_some(ENABLE_DELETION_VECTORS);
        let feed = self.change_data_feed.then_some(ENABLE_CHANGE_DATA_FEED);
        own.chain(vectors.into_iter().chain(feed).map(|name| (name, Some("true".to_owned()))))
            .chain([
                ("delta.dataSkippingNumIndexedCols", Some(layout.leading.to_string())),
                // Two commits an hour would make 17,000 files a year in each log; every hundredth becomes a checkpoint.
                ("delta.checkpointInterval", Some("100".to_owned())),
            ])
            .collect()
    }
}

/// One table at one version.
pub struct Table {
    name: TableName,
    place: String,
    delta: DeltaTable,
    root: Root,
}

impl Table {
    pub fn version(&self) -> u64 {
        self.delta.version().unwrap_or_default()
    }

    fn columns(&self) -> Result<SchemaRef, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        Ok(Arc::clone(&snapshot.snapshot().arrow_schema()))
    }

    /// Do the rows of a change set become data files as they come? While the table is empty, unless it has partitions: most
    /// of them will be what the commit brings.
    pub async fn appends(&self) -> Result<bool, Error> {
        Ok(self.partitioned_by().is_none() && self.files().await?.is_empty())
    }

    /// A change set for this table, of rows with `schema`. See [`ChangeSet::new`].
    pub async fn change_set(&self, schema: &SchemaRef, share: Share, spool_folder: &Path) -> Result<ChangeSet, Error> {
        if share.appending_bytes < LEAST_WRITER_BYTES || !self.appends().await? {
            return Ok(ChangeSet::new(schema, share, spool_folder));
        }
        let changes = ChangeSet::new(schema, Share { waiting_bytes: 0, ..share }, spool_folder);
        Ok(changes.appending(self.target()?, share.appending_bytes))
    }

    /// How many columns from the left have statistics, as the table itself says.
    fn leading_columns(&self) -> Result<usize, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        let stated = snapshot.metadata().configuration().get("delta.dataSkippingNumIndexedCols");
        Ok(stated.and_then(|stated| stated.parse().ok()).unwrap_or(OWN_COLUMNS))
    }

    /// What new data files of the table are made by.
    fn target(&self) -> Result<Target, Error> {
        Ok(Target {
            kind: Kind::Data,
            store: self.delta.object_store(),
            columns: Arc::new(of_data_files(&self.columns()?, &self.partition_columns()?)),
            by: self.partitioned_by().cloned(),
            leading: self.leading_columns()?,
            file_bytes: TARGET_FILE_BYTES,
            row_group_bytes: ROW_GROUP_BYTES,
        })
    }

    /// How the configuration wants the table to be partitioned; [`Self::check_writable`] holds the table to it.
    fn partitioned_by(&self) -> Option<&DatePartition> {
        match &self.name {
            TableName::Resources(resource_type) => self.root.partitions.get(resource_type),
            TableName::Deletions => None,
        }
    }

    fn partition_columns(&self) -> Result<Vec<String>, Error> {
        let snapshot = self.delta.snapshot().map_err(|error| self.failed(error))?;
        Ok(snapshot.metadata().partition_columns().to_vec())
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

/// Files of about this size are what readers of a lake like.
const TARGET_FILE_BYTES: u64 = 128 * 1024 * 1024;

/// `id` and the columns of the sync itself: a table without one of them was made by others.
const OWN_COLUMNS: usize = 4;

/// All columns of a table: those of the rows, then those of the partitions.
fn columns(layout: &Layout, by: Option<&DatePartition>) -> SchemaRef {
    by.map_or_else(|| Arc::clone(&layout.schema), |by| Arc::new(by.with_columns(&layout.schema)))
}

fn kernel_schema(schema: &Schema, place: &str) -> Result<StructType, Error> {
    schema.try_into_kernel().map_err(|error| Error::Root {
        place: place.to_owned(),
        reason: format!("its columns cannot be Delta columns: {error}"),
    })
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
