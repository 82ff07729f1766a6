//! The root: the folder of all tables, and a table at one version.

use std::{collections::BTreeMap, os::unix::fs::DirBuilderExt as _, path::PathBuf, sync::Arc};

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use deltalake::{
    DeltaTable, DeltaTableBuilder, DeltaTableError, ObjectStore,
    kernel::{
        LogicalFileView, StructType, engine::arrow_conversion::TryIntoKernel as _, transaction::CommitProperties,
    },
    logstore::{StorageConfig, default_logstore},
    operations::create::CreateBuilder,
    protocol::SaveMode,
    table::state::DeltaTableState,
};
use futures::{Stream, TryStreamExt as _};
use tokio::sync::Mutex;
use url::Url;

use super::{
    Config, Error, TableName,
    config::{check_readable, exists, is_open_to_all},
    data_file::UpdateMode,
    data_file::rolling::FileTarget,
    data_file::stored::{DamagedFile, StoredFile, stored_files, whole_files},
    date_partition::{DatePartition, of_data_files},
    name::OWN_DIRECTORY,
    parallel::ReadFrom,
    properties::{CHECKPOINT_INTERVAL, ENABLE_CHANGE_DATA_FEED, ENABLE_DELETION_VECTORS, INDEXED_COLUMNS},
};
use crate::{
    fhir::ResourceType,
    lease::{self, Holder, Lease, Subject},
    store::{
        self, Document, Documents, Location, Readers,
        cache::{Cache, Cached},
        metered::{Metered, Meters, Requests},
    },
    telemetry::metrics,
};

/// The columns of a new table; the first `leading` of them get statistics in the log.
#[derive(Clone, Debug)]
pub struct TableDefinition {
    pub schema: SchemaRef,
    pub leading: usize,
    /// Table properties, such as the version of the schema.
    pub properties: Vec<(&'static str, String)>,
}

/// The folder of all tables.
#[derive(Clone, Debug)]
pub struct Root {
    pub(super) url: Url,
    pub(super) folder: Option<PathBuf>,
    /// The client of the object store; `None` for a folder.
    pub(super) store: Option<Arc<dyn ObjectStore>>,
    cache: Option<Arc<Cache>>,
    /// What was requested of the store; nothing is counted in a folder.
    meters: Arc<Meters>,
    no_logs: Arc<super::lost_log::NoLogs>,
    pub(super) update_mode: UpdateMode,
    pub(super) change_data_feed: bool,
    pub(super) row_groups_bytes: usize,
    pub(super) partitions: Arc<BTreeMap<ResourceType, DatePartition>>,
    /// Held while a run writes to the table of tombstones, which all types share.
    pub(super) tombstone_lock: Arc<Mutex<()>>,
    /// Of a process that writes; they are checked before each commit.
    pub(super) leases: Vec<Arc<Lease>>,
}

impl Root {
    /// Creates the folder if it is a local one, for its owner only, and checks that it can be written to. Says so when
    /// every user may enter it. Blocks on the disk.
    pub fn new(config: Config) -> Result<Self, Error> {
        let root = Self::with_folder(config, writable_folder)?;
        if root.is_open_to_all() {
            tracing::warn!(
                place = root.place(),
                "every user of this machine may enter the folder of the tables; {CLOSE_IT}"
            );
        }
        Ok(root)
    }

    /// Whether every user of this machine may enter the folder. Analysts who read the tables are in its group.
    pub fn is_open_to_all(&self) -> bool {
        self.folder.as_deref().is_some_and(is_open_to_all)
    }

    fn with_folder(
        config: Config,
        absolute: impl FnOnce(&std::path::Path) -> std::io::Result<PathBuf>,
    ) -> Result<Self, Error> {
        let folder = match &config.root {
            Location::Folder(folder) => folder,
            Location::ObjectStore(url) => return Self::over(store::connect(url, &config.storage_options)?, config),
        };
        let place = || folder.display().to_string();
        if folder.is_file() {
            return Err(Error::NotARoot { place: place(), what: "no folder" });
        }
        let folder = absolute(folder).map_err(|error| Error::Root {
            place: place(),
            reason: format!("{error}; check its owner and mode, or choose another `tables.root`"),
        })?;
        let url = Url::from_directory_path(&folder)
            .map_err(|()| Error::Root { place: place(), reason: "not an absolute path".to_owned() })?;
        Ok(Self::at(url, Some(folder), None, config))
    }

    /// The root in an object store that this client reaches.
    pub fn over(client: Arc<dyn ObjectStore>, config: Config) -> Result<Self, Error> {
        match &config.root {
            Location::ObjectStore(url) => Ok(Self::at(with_trailing_slash(url.clone()), None, Some(client), config)),
            Location::Folder(folder) => {
                Err(Error::Root { place: folder.display().to_string(), reason: "not in an object store".to_owned() })
            }
        }
    }

    fn at(url: Url, folder: Option<PathBuf>, store: Option<Arc<dyn ObjectStore>>, config: Config) -> Self {
        let Config { update_mode, change_data_feed, row_groups_bytes, partitions, cache, .. } = config;
        let cache = cache.filter(|_| store.is_some()).map(|settings| Arc::new(Cache::new(settings)));
        Self {
            url,
            folder,
            store,
            cache,
            meters: Arc::default(),
            no_logs: Arc::default(),
            update_mode,
            change_data_feed,
            row_groups_bytes,
            partitions: Arc::new(partitions),
            tombstone_lock: Arc::default(),
            leases: Vec::new(),
        }
    }

    /// The same for commands that only read: nothing is created, and nothing is tried out.
    pub fn for_reading(config: Config) -> Result<Self, Error> {
        if let Location::Folder(folder) = &config.root {
            check_readable(folder)?;
        }
        // The folder of the cache is that of a process that writes.
        Self::with_folder(Config { cache: None, ..config }, std::path::Path::canonicalize)
    }

    /// Takes the lease of this root for the holder of a state; the holder renews it with [`Lease::keep`]. Waits for up
    /// to a minute where nobody can say whether another holder is alive; one of the name `ended` is known not to be.
    pub async fn take_lease(&mut self, holder: &str, ended: Option<&str>) -> Result<Arc<Lease>, Error> {
        self.leased(Lease::take(Subject::Tables, self.lease_document(), Holder::ourselves(holder), ended).await)
    }

    /// Joins the group of processes that hold the lease of this root together, for the holder of a state.
    pub async fn join_lease(&mut self, holder: &str, group: &str) -> Result<Arc<Lease>, Error> {
        let us = Holder::ourselves(holder);
        metrics::lease_shared();
        self.leased(Lease::join(Subject::Tables, self.lease_document(), us, Some(group)).await)
    }

    fn leased(&mut self, taken: Result<Lease, lease::Error>) -> Result<Arc<Lease>, Error> {
        metrics::lease_held(taken.is_ok());
        let lease = Arc::new(taken?);
        self.leases = vec![Arc::clone(&lease)];
        Ok(lease)
    }

    /// The same root for work that needs these leases as well.
    #[must_use]
    pub fn under(&self, leases: impl IntoIterator<Item = Arc<Lease>>) -> Self {
        let mut root = self.clone();
        root.leases.extend(leases);
        root
    }

    fn lease_document(&self) -> Document {
        let documents = match &self.store {
            Some(store) => Documents::in_store(self.metered(store, OWN_DIRECTORY), &self.url),
            None => Documents::of_folder(self.folder.clone().unwrap_or_default(), Readers::OfFolder),
        };
        documents.document(&format!("{OWN_DIRECTORY}/{LEASE}"))
    }

    /// Whether this process may still write below the root. A root that is only read has no lease, and nothing to
    /// check.
    pub async fn check_lease(&self) -> Result<(), Error> {
        for lease in &self.leases {
            lease.check().await?;
        }
        Ok(())
    }

    /// The table of a resource type at its newest version; `None` before its first commit.
    pub async fn open(&self, resource_type: ResourceType) -> Result<Option<Table>, Error> {
        self.load(resource_type.into()).await
    }

    /// Is there a table of tombstones? Without it, a row that was deleted can come back.
    pub async fn has_tombstones(&self) -> Result<bool, Error> {
        Ok(self.load(TableName::Tombstones).await?.is_some())
    }

    /// What was requested of the object store for a table since the process began; `None` in a folder.
    pub fn requests(&self, name: TableName) -> Option<Requests> {
        self.store.as_ref().map(|_| self.meters.of(&name.directory()).read())
    }

    pub(super) async fn load(&self, name: TableName) -> Result<Option<Table>, Error> {
        let directory = name.directory();
        let place = self.place_of(&directory);
        if let Some(folder) = &self.folder
            && !exists(&folder.join(&directory).join("_delta_log"))?
        {
            return Ok(None);
        }
        let mut delta = self.delta(&directory)?;
        match delta.load().await {
            Ok(()) => Ok(Some(self.table(name, place, delta))),
            // Asking whether it exists before loading it would list the whole log.
            Err(DeltaTableError::NotATable(_)) => self.no_logs.check(&delta, &place).await.map(|()| None),
            Err(error) => Err(Error::delta(&place, error)),
        }
    }

    fn table(&self, name: TableName, place: String, delta: DeltaTable) -> Table {
        self.no_logs.has_log(&place);
        Table { name, place, delta, root: self.clone() }
    }

    /// Creates a table by its empty first commit. No data file may be in its folder before that.
    pub(super) async fn create(&self, name: TableName, create: CreateBuilder) -> Result<Table, Error> {
        self.check_lease().await?;
        let directory = name.directory();
        let place = self.place_of(&directory);
        if let Some(folder) = &self.folder {
            // deltalake needs the folder. It is left without a log only if the process is killed right here.
            let mut create = std::fs::DirBuilder::new();
            if name == TableName::Quarantine {
                // Nobody looks for lines of patients there.
                create.mode(0o700);
            }
            let created = create.recursive(true).create(folder.join(&directory));
            created.map_err(|error| Error::delta(&place, error))?;
        }
        let created = create
            .with_log_store(self.delta(&directory)?.log_store())
            .with_save_mode(SaveMode::ErrorIfExists)
            .with_raise_if_key_not_exists(false)
            // deltalake's own retry would create the table a second time, on top of the first.
            .with_commit_properties(CommitProperties::default().with_max_retries(0))
            .await;
        match created {
            Ok(delta) => Ok(self.table(name, place, delta)),
            // The table may exist now: created by another process, or by us although the answer was lost.
            Err(error) => self.load(name).await?.ok_or_else(|| Error::delta(&place, error)),
        }
    }

    /// Flushes everything that was written to the disk. deltalake never calls fsync, so without this a power failure
    /// could leave the state file in place and lose the commits that it refers to. Blocks. Does nothing on an object
    /// store.
    pub fn sync_to_disk(&self) -> Result<(), Error> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let place = folder.display().to_string();
        let directory = std::fs::File::open(folder).map_err(|error| Error::delta(&place, error))?;
        rustix::fs::syncfs(&directory).map_err(|error| Error::delta(&place, std::io::Error::from(error)))
    }

    /// Where the tables are, for people: without credentials, which a URL of a store never has.
    pub fn place(&self) -> String {
        self.place_of("")
    }

    /// Where a table is, for people.
    pub fn place_of_table(&self, name: TableName) -> String {
        self.place_of(&name.directory())
    }

    pub(super) fn place_of(&self, directory: &str) -> String {
        match &self.folder {
            Some(folder) => folder.join(directory).display().to_string(),
            None => format!("{}{directory}", self.url),
        }
    }

    pub(super) fn delta(&self, directory: &str) -> Result<DeltaTable, Error> {
        let place = self.place_of(directory);
        let url = self
            .url
            .join(&format!("{directory}/"))
            .map_err(|error| Error::Root { place: place.clone(), reason: error.to_string() })?;
        let failed = |error: DeltaTableError| Error::delta(&place, error);
        let Some(store) = &self.store else {
            return DeltaTableBuilder::from_url(url).and_then(DeltaTableBuilder::build).map_err(failed);
        };
        let metered = self.metered(store, directory);
        let store: Arc<dyn ObjectStore> = match &self.cache {
            Some(cache) => Arc::new(Cached::new(metered, Arc::clone(cache))),
            None => metered,
        };
        let settings = StorageConfig::default();
        let of_table = settings.decorate_store(Arc::clone(&store), &url).map_err(failed)?;
        Ok(DeltaTable::new(default_logstore(Arc::from(of_table), store, &url, &settings)))
    }

    fn metered(&self, client: &Arc<dyn ObjectStore>, directory: &str) -> Arc<dyn ObjectStore> {
        Arc::new(Metered::new(Arc::clone(client), self.meters.of(directory)))
    }

    pub(super) fn properties(&self, definition: &TableDefinition) -> Vec<(&'static str, Option<String>)> {
        let own = definition.properties.iter().map(|(name, value)| (*name, Some(value.clone())));
        let vectors = (self.update_mode == UpdateMode::DeletionVectors).then_some(ENABLE_DELETION_VECTORS);
        let feed = self.change_data_feed.then_some(ENABLE_CHANGE_DATA_FEED);
        own.chain(vectors.into_iter().chain(feed).map(|name| (name, Some("true".to_owned()))))
            .chain([
                (INDEXED_COLUMNS, Some(definition.leading.to_string())),
                // Two commits an hour add 17,000 files a year to a log. This makes a checkpoint about every two days.
                (CHECKPOINT_INTERVAL, Some("100".to_owned())),
            ])
            .collect()
    }
}

/// One table at one version.
pub struct Table {
    pub(super) name: TableName,
    pub(super) place: String,
    pub(super) delta: DeltaTable,
    pub(super) root: Root,
}

impl Table {
    pub fn version(&self) -> u64 {
        self.delta.version().unwrap_or_default()
    }

    /// The id that the table was created with (`metaData.id`): another table at the same place has another one.
    pub fn id(&self) -> Result<String, Error> {
        Ok(self.snapshot()?.metadata().id().to_owned())
    }

    /// How many live rows the log states; `None` where a file of another writer does not state its rows.
    pub async fn row_count(&self) -> Result<Option<u64>, Error> {
        let rows = self.files().await?.into_iter().map(|file| {
            let dead = file.deletion_vector_descriptor().map_or(0, |vector| vector.cardinality);
            let rows = i64::try_from(file.num_records()?).ok()?;
            u64::try_from(rows - dead).ok()
        });
        Ok(rows.sum())
    }

    pub(super) fn read_from(&self) -> ReadFrom {
        if self.root.store.is_some() { ReadFrom::Store } else { ReadFrom::Disk }
    }

    /// The error of something that was done to this table.
    pub(super) fn failed(&self, error: impl Into<DeltaTableError>) -> Error {
        Error::delta(&self.place, error)
    }

    pub(super) fn snapshot(&self) -> Result<&DeltaTableState, Error> {
        self.delta.snapshot().map_err(|error| self.failed(error))
    }

    /// All columns, the partition columns included.
    pub fn columns(&self) -> Result<SchemaRef, Error> {
        Ok(Arc::clone(&self.snapshot()?.snapshot().arrow_schema()))
    }

    pub(super) fn partition_columns(&self) -> Result<Vec<String>, Error> {
        Ok(self.snapshot()?.metadata().partition_columns().to_vec())
    }

    /// The value of a table property; `None` where nobody has set it.
    pub(super) fn property(&self, name: &str) -> Result<Option<&str>, Error> {
        Ok(self.snapshot()?.metadata().configuration().get(name).map(String::as_str))
    }

    pub(super) fn property_is_true(&self, name: &str) -> Result<bool, Error> {
        Ok(self.property(name)?.is_some_and(|value| value.eq_ignore_ascii_case("true")))
    }

    /// What the table requires of writers, by the protocol's names of features.
    pub(super) fn features(&self) -> Result<Vec<String>, Error> {
        let protocol = self.snapshot()?.protocol();
        let features = protocol.writer_features().unwrap_or_default();
        let mut names: Vec<_> = features.iter().map(ToString::to_string).collect();
        if features.is_empty() && protocol.min_writer_version() > MAX_NUMBERED_VERSION {
            names.push(format!("set of writer version {}", protocol.min_writer_version()));
        }
        Ok(names)
    }

    pub(super) fn has_feature(&self, name: &str) -> Result<bool, Error> {
        Ok(self.features()?.iter().any(|feature| feature == name))
    }

    /// How many columns from the left have statistics, as the table itself says.
    pub(super) fn leading_columns(&self) -> Result<usize, Error> {
        let stated = self.property(INDEXED_COLUMNS)?;
        Ok(stated.and_then(|stated| stated.parse().ok()).unwrap_or(OWN_COLUMNS))
    }

    /// How the table is partitioned according to the configuration; `requirements` checks that it is.
    pub(super) fn partitioned_by(&self) -> Option<&DatePartition> {
        match &self.name {
            TableName::Resources(resource_type) => self.root.partitions.get(resource_type),
            TableName::Tombstones | TableName::Runs | TableName::Quarantine | TableName::Members => None,
        }
    }

    /// How new data files of the table are written.
    pub(super) fn target(&self) -> Result<FileTarget, Error> {
        let columns = of_data_files(&self.columns()?, &self.partition_columns()?);
        let by = self.partitioned_by().cloned();
        Ok(FileTarget::new(self.delta.object_store(), Arc::new(columns), by, self.leading_columns()?))
    }

    /// The files of this version, as the log has them.
    pub(super) async fn files(&self) -> Result<Vec<LogicalFileView>, Error> {
        let log_store = self.delta.log_store();
        let files = self.snapshot()?.snapshot().file_views(log_store.as_ref(), None);
        files.try_collect().await.map_err(|error| self.failed(error))
    }

    /// The files of this version, with their deletion vectors.
    pub(super) async fn stored_files(&self) -> Result<Vec<StoredFile>, Error> {
        let files = stored_files(&self.delta.object_store(), self.files().await?).await;
        files.map_err(|error| self.failed(error))
    }

    /// The files of this version, apart from those whose rows are lost. Looks at every file.
    pub(super) async fn whole_files(&self) -> Result<(Vec<StoredFile>, Vec<DamagedFile>), Error> {
        let files = whole_files(&self.delta.object_store(), self.files().await?).await;
        files.map_err(|error| self.failed(error))
    }

    /// The live rows of a file, in order, with the columns that the file has.
    pub(super) async fn rows(
        &self,
        stored: &StoredFile,
    ) -> Result<impl Stream<Item = Result<RecordBatch, Error>> + use<'_>, Error> {
        let rows = stored.rows().await.map_err(|error| self.failed(error))?;
        Ok(rows.map_err(|error| self.failed(error)))
    }
}

/// The way out where every user may enter the folder of the tables.
pub const CLOSE_IT: &str = "they are data of patients: take the rights of others away (chmod o= FOLDER), and put those \
                            who read the tables into its group";

/// The document of the lease, in [`OWN_DIRECTORY`].
const LEASE: &str = "lease.json";

/// The last version of the writer protocol that implies a fixed set of features; later ones name theirs.
const MAX_NUMBERED_VERSION: i32 = 4;

/// `id` and the columns of the sync itself: a table without one of them was created by another writer.
pub(super) const OWN_COLUMNS: usize = 4;

/// All columns of a table: those of the rows, then those of the partitions.
pub(super) fn columns(definition: &TableDefinition, by: Option<&DatePartition>) -> SchemaRef {
    by.map_or_else(|| Arc::clone(&definition.schema), |by| Arc::new(by.with_columns(&definition.schema)))
}

pub(super) fn kernel_schema(schema: &Schema, place: &str) -> Result<StructType, Error> {
    schema.try_into_kernel().map_err(|error| Error::Root {
        place: place.to_owned(),
        reason: format!("its columns cannot be Delta columns: {error}"),
    })
}

fn writable_folder(folder: &std::path::Path) -> std::io::Result<PathBuf> {
    // The tables are data of patients. A folder that is there keeps its mode: somebody has chosen it.
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
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
