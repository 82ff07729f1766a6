//! How many requests to an object store an upsert and its commit need: an upper bound for each kind.

use object_store::{ObjectStore, memory::InMemory};
use url::Url;

use super::{traced::Traced, *};
use crate::store::cache;

/// A lake in an object store, with a cache on the local disk.
pub(super) struct StoredLake {
    pub lake: Lake,
    pub store: Traced,
}

impl StoredLake {
    fn new() -> Self {
        Self::over(Arc::new(InMemory::new()))
    }

    /// Another process, with an empty cache.
    fn over(store: Arc<dyn ObjectStore>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = cache::Settings { folder: folder.path().to_owned(), max_bytes: 1 << 30 };
        Self::with(store, folder, Some(settings))
    }

    pub fn without_cache() -> Self {
        Self::with(Arc::new(InMemory::new()), tempfile::tempdir().unwrap(), None)
    }

    fn with(store: Arc<dyn ObjectStore>, folder: tempfile::TempDir, cache: Option<cache::Settings>) -> Self {
        let store = Traced::new(store);
        let config = Config { cache, ..Config::new(Location::ObjectStore(Url::parse("store://lake/lake").unwrap())) };
        let root = Root::over(Arc::new(store.clone()), config).unwrap();
        Self { lake: Lake { root, folder, resource_type: patient() }, store }
    }

    async fn upsert(&self, changes: &[Change], transaction_time: i64) -> Asked {
        self.store.take();
        self.lake.upsert(&[changes.to_vec()], transaction_time).await;
        Asked::of(&self.store.take())
    }
}

/// Requests by what they are for.
#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
struct Asked {
    list: usize,
    /// Of commits and checkpoints.
    get_log: usize,
    /// Of `_last_checkpoint`.
    get_last: usize,
    /// Of data files and deletion vectors.
    get_data: usize,
    put_log: usize,
    put_data: usize,
}

impl Asked {
    fn of(requests: &[String]) -> Self {
        let mut asked = Self::default();
        for request in requests {
            let count = match request.split_once(' ').unwrap() {
                ("list", _) => &mut asked.list,
                ("get", path) if path.contains("_last_checkpoint") => &mut asked.get_last,
                ("get", path) if path.contains("_delta_log") => &mut asked.get_log,
                ("get", _) => &mut asked.get_data,
                ("put", path) if path.contains("_delta_log") => &mut asked.put_log,
                ("put", _) => &mut asked.put_data,
                _ => panic!("{request}"),
            };
            *count += 1;
        }
        println!("{}", requests.join("\n"));
        asked
    }
}

fn lines(ids: std::ops::Range<u32>, version: u32) -> Vec<Change> {
    ids.map(|id| line(&id.to_string(), version, "a")).collect()
}

/// Opening is reading the last checkpoint and listing; a commit lists before and after it.
const WITHOUT_CHANGES: Asked = Asked { list: 3, get_last: 1, put_log: 1, get_log: 0, get_data: 0, put_data: 0 };

#[tokio::test(flavor = "multi_thread")]
async fn an_upsert_of_a_running_process_reads_no_commit_and_no_part_of_a_file_twice() {
    let stored = StoredLake::new();
    stored.lake.table().await;
    let first_load = stored.upsert(&lines(0..50, 1), 1).await;
    // The table of tombstones is looked for, and what may be left of its log.
    assert_eq!(first_load, Asked { list: 5, get_last: 2, put_data: 1, ..WITHOUT_CHANGES });
    assert_eq!(stored.upsert(&[], 2).await, WITHOUT_CHANGES);
    // A data file and a deletion vector are written; a small file is read as a whole.
    let changed = Asked { list: 4, get_last: 2, get_data: 1, put_data: 2, ..WITHOUT_CHANGES };
    assert_eq!(stored.upsert(&lines(0..5, 2), 3).await, changed);
    // The vector that the upsert before has written; its data file has none of these ids, by its bounds.
    assert_eq!(stored.upsert(&lines(5..10, 2), 4).await, changed);
    // A vector and a data file.
    assert_eq!(stored.upsert(&lines(10..15, 2), 5).await, Asked { get_data: 2, ..changed });
    // Nothing but the times.
    let unchanged = Asked { list: 4, get_last: 2, get_data: 2, ..WITHOUT_CHANGES };
    assert_eq!(stored.upsert(&lines(10..15, 2), 6).await, unchanged);
    assert_eq!(stored.upsert(&lines(10..15, 2), 7).await, Asked { get_data: 0, ..unchanged });
    assert_eq!(stored.upsert(&[], 8).await, WITHOUT_CHANGES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_process_reads_each_commit_once() {
    let store = Arc::new(InMemory::new());
    let before = StoredLake::over(store.clone());
    for day in 1..8 {
        before.upsert(&lines(0..50, u32::try_from(day).unwrap()), day).await;
    }
    let stored = StoredLake::over(store);
    // The first commit made the table.
    assert_eq!(stored.upsert(&[], 8).await, Asked { get_log: 8, ..WITHOUT_CHANGES });
    assert_eq!(stored.upsert(&[], 9).await, WITHOUT_CHANGES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_there_costs_three_requests_and_later_two() {
    let stored = StoredLake::new();
    assert!(stored.lake.root.open(patient()).await.unwrap().is_none());
    assert_eq!(Asked::of(&stored.store.take()), Asked { list: 2, get_last: 1, ..Asked::default() });
    // Whether files of a lost log are left is asked once.
    assert!(stored.lake.root.open(patient()).await.unwrap().is_none());
    assert_eq!(Asked::of(&stored.store.take()), Asked { list: 1, get_last: 1, ..Asked::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn all_deletion_vectors_of_a_commit_are_read_in_one_request() {
    let store = Arc::new(InMemory::new());
    let before = StoredLake::over(store.clone());
    for file in 0..5 {
        before.upsert(&lines(file * 10..file * 10 + 10, 1), i64::from(file) + 1).await;
    }
    let of_each_file: Vec<_> = (0..5).map(|file| line(&(file * 10).to_string(), 2, "b")).collect();
    before.upsert(&of_each_file, 9).await;
    let stored = StoredLake::over(store);
    stored.store.take();
    assert_eq!(stored.lake.table().await.stored_files().await.unwrap().len(), 6);
    assert_eq!(Asked::of(&stored.store.take()).get_data, 1);
}

/// A reading for each shard would make a large upsert quadratic.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_set_of_many_shards_reads_the_stored_rows_no_more_often_than_one_of_one_shard() {
    let mut asked = Vec::new();
    for is_sharded in [false, true] {
        let stored = StoredLake::without_cache();
        stored.upsert(&lines(0..200, 1), 1).await;
        let lake = &stored.lake;
        let changes = if is_sharded {
            lake.change_set(&[lines(100..300, 2)], 2)
        } else {
            let at_once = ChangeSet::new(&lake.shape().schema(), MemoryBudget::alone(64 << 20), lake.folder.path());
            lake.fill(&at_once, &[lines(100..300, 2)], 2);
            at_once
        };
        assert_eq!(changes.shards().count() > 10, is_sharded);
        let table = lake.table().await;
        stored.store.take();
        let committed = table.upsert(&changes, &upsert(2)).await.unwrap();
        assert_eq!((committed.counts.updated, committed.counts.inserted), (100, 100));
        asked.push(Asked::of(&stored.store.take()).get_data);
    }
    // Ids and versions come in one request, and not in two.
    assert_eq!(asked[1] + 1, asked[0], "{asked:?}");
}
