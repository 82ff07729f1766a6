//! A store that fails at commits: a local folder whose puts of commits fail, for one table or for a whole root.

use std::{collections::VecDeque, fmt, ops::Range, pin::Pin, sync::Mutex as StdMutex};

use bytes::Bytes;
use deltalake::{
    DeltaTable,
    logstore::{StorageConfig, logstore_with},
};
use futures::{
    StreamExt as _, TryFutureExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, local::LocalFileSystem, path::Path as StorePath,
};
use url::Url;

use super::*;

/// What happens to a put of a commit.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The commit landed, but the answer is an error.
    AnswerLost,
    /// The commit landed and the client retries by itself: the answer is that the version is taken, by its own commit.
    AnswerLostAndAskedAgain,
    /// The commit did not land, and the answer is an error.
    Refused,
    /// Another writer's commit with this text lands first.
    Overtaken(String),
    /// The same, and the answer is lost.
    OvertakenAndAnswerLost(String),
    /// This put succeeds.
    None,
}

/// A local folder where the next puts of commits to `table` fail in this order.
#[derive(Clone, Debug)]
struct Unreliable {
    disk: Arc<LocalFileSystem>,
    table: String,
    faults: Arc<StdMutex<VecDeque<Fault>>>,
}

impl fmt::Display for Unreliable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "unreliable {}", self.disk)
    }
}

fn no_answer() -> object_store::Error {
    object_store::Error::Generic { store: "unreliable", source: "500 Internal Server Error".into() }
}

impl Unreliable {
    fn new(table: &str, faults: &[Fault]) -> Self {
        let faults = Arc::new(StdMutex::new(faults.iter().cloned().collect()));
        Self { disk: Arc::new(LocalFileSystem::new()), table: table.to_owned(), faults }
    }

    async fn put_commit(
        &self,
        fault: Fault,
        location: &StorePath,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        match fault {
            Fault::None => self.disk.put_opts(location, payload, options).await,
            Fault::Refused => Err(no_answer()),
            Fault::AnswerLost => {
                self.disk.put_opts(location, payload, options).await?;
                Err(no_answer())
            }
            Fault::AnswerLostAndAskedAgain => {
                self.disk.put_opts(location, payload.clone(), options.clone()).await?;
                self.disk.put_opts(location, payload, options).await
            }
            Fault::Overtaken(commit) => {
                self.disk.put(location, commit.into()).await?;
                self.disk.put_opts(location, payload, options).await
            }
            Fault::OvertakenAndAnswerLost(commit) => {
                self.disk.put(location, commit.into()).await?;
                Err(no_answer())
            }
        }
    }
}

/// What `async_trait` makes of an async function.
type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

impl ObjectStore for Unreliable {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b StorePath,
        payload: PutPayload,
        options: PutOptions,
    ) -> Answer<'c, PutResult>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            let log = format!("{}/_delta_log/", self.table);
            let is_commit = location.as_ref().contains(&log) && location.extension() == Some("json");
            let fault = is_commit.then(|| self.faults.lock().unwrap().pop_front()).flatten();
            self.put_commit(fault.unwrap_or(Fault::None), location, payload, options).await
        })
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b StorePath,
        options: PutMultipartOptions,
    ) -> Answer<'c, Box<dyn MultipartUpload>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.disk.put_multipart_opts(location, options)
    }

    fn get_opts<'a, 'b, 'c>(&'a self, location: &'b StorePath, options: GetOptions) -> Answer<'c, GetResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.disk.get_opts(location, options)
    }

    fn get_ranges<'a, 'b, 'd, 'c>(&'a self, location: &'b StorePath, ranges: &'d [Range<u64>]) -> Answer<'c, Vec<Bytes>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        self.disk.get_ranges(location, ranges)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<StorePath>>) -> BoxStream<'static, Result<StorePath>> {
        self.disk.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&StorePath>) -> BoxStream<'static, Result<ObjectMeta>> {
        // In the order of the names, as object stores do.
        let listed = self.disk.list(prefix).try_collect::<Vec<_>>().map_ok(|mut listed| {
            listed.sort_by(|one, other| one.location.cmp(&other.location));
            stream::iter(listed.into_iter().map(Ok))
        });
        stream::once(listed).try_flatten().boxed()
    }

    fn list_with_delimiter<'a, 'b, 'c>(&'a self, prefix: Option<&'b StorePath>) -> Answer<'c, ListResult>
    where
        'a: 'c,
        'b: 'c,
    {
        self.disk.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(
        &'a self,
        from: &'b StorePath,
        to: &'d StorePath,
        options: CopyOptions,
    ) -> Answer<'c, ()>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        self.disk.copy_opts(from, to, options)
    }
}

/// The table of the lake, reached through a store whose next commits fail like this.
pub(super) async fn unreliable(lake: &Lake, faults: &[Fault]) -> Table {
    failing(lake.table().await, faults).await
}

/// The table, reached through such a store.
pub(super) async fn failing(table: Table, faults: &[Fault]) -> Table {
    let store = Unreliable::new(&table.name.directory(), faults);
    let log_store = logstore_with(Arc::new(store), table.delta.table_url(), StorageConfig::default()).unwrap();
    let mut delta = DeltaTable::new(log_store);
    delta.load().await.unwrap();
    Table { delta, ..table }
}

/// The same lake by another process, as one in an object store, where the next commits to `table` fail like this.
pub(super) fn unreliable_root(
    lake: &Lake,
    table: &str,
    faults: &[Fault],
    change: impl FnOnce(Config) -> Config,
) -> Root {
    let url = format!("store://lake{}", lake.folder.path().join("lake").display());
    let config = Config::new(Location::ObjectStore(Url::parse(&url).unwrap()));
    Root::over(Arc::new(Unreliable::new(table, faults)), change(config)).unwrap()
}
