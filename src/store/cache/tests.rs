use object_store::{ObjectStoreExt as _, memory::InMemory};

use super::*;
use crate::store::metered::{Metered, Meters};

/// A store behind a cache and a meter.
struct Setup {
    cached: Cached,
    meters: Meters,
    store: Arc<InMemory>,
    _folder: tempfile::TempDir,
}

impl Setup {
    fn new() -> Self {
        let (folder, store, meters) = (tempfile::tempdir().unwrap(), Arc::new(InMemory::new()), Meters::default());
        let cache = Cache::new(Settings { folder: folder.path().to_owned(), max_bytes: 64 * 1024 * 1024 });
        let metered = Metered::new(store.clone(), meters.of("t"));
        Self { cached: Cached::new(Arc::new(metered), Arc::new(cache)), meters, store, _folder: folder }
    }

    fn gets(&self) -> u64 {
        self.meters.of("t").read().get
    }

    /// The same cache behind another client, as another table of the process has it.
    fn again(&self) -> Cached {
        let metered = Metered::new(self.store.clone(), self.meters.of("t"));
        Cached::new(Arc::new(metered), Arc::clone(&self.cached.cache))
    }
}

async fn list(store: &Cached) {
    store.list(Some(&Path::from("t/_delta_log"))).for_each(|_| async {}).await;
}

async fn read(store: &Cached, path: &Path) -> Bytes {
    store.get(path).await.unwrap().bytes().await.unwrap()
}

const COMMIT: &str = "t/_delta_log/00000000000000000007.json";

#[tokio::test]
async fn a_commit_that_was_listed_is_read_once() {
    let setup = Setup::new();
    let commit = Path::from(COMMIT);
    setup.store.put(&commit, "first".into()).await.unwrap();
    // Without a listing nobody knows whether the content is still the same.
    assert_eq!(
        (read(&setup.cached, &commit).await, read(&setup.cached, &commit).await),
        ("first".into(), "first".into())
    );
    assert_eq!(setup.gets(), 2);
    list(&setup.cached).await;
    assert_eq!(
        (read(&setup.cached, &commit).await, read(&setup.cached, &commit).await),
        ("first".into(), "first".into())
    );
    assert_eq!(setup.gets(), 3);
    let again = setup.again();
    list(&again).await;
    assert_eq!((read(&again, &commit).await, setup.gets()), ("first".into(), 3));
}

#[tokio::test]
async fn a_commit_of_our_own_is_not_read_at_all() {
    let setup = Setup::new();
    let commit = Path::from(COMMIT);
    setup.cached.put(&commit, "ours".into()).await.unwrap();
    list(&setup.cached).await;
    assert_eq!((read(&setup.cached, &commit).await, setup.gets()), ("ours".into(), 0));
}

#[tokio::test]
async fn a_table_that_was_created_again_at_the_same_place_is_read_again() {
    let setup = Setup::new();
    let commit = Path::from(COMMIT);
    setup.cached.put(&commit, "of the table before".into()).await.unwrap();
    setup.store.put(&commit, "of the table now".into()).await.unwrap();
    list(&setup.cached).await;
    assert_eq!(read(&setup.cached, &commit).await, "of the table now");
    assert_eq!(read(&setup.again(), &commit).await, "of the table now");
}

#[tokio::test]
async fn the_last_checkpoint_is_always_read() {
    let setup = Setup::new();
    let last = Path::from("t/_delta_log/_last_checkpoint");
    setup.cached.put(&last, "1".into()).await.unwrap();
    list(&setup.cached).await;
    assert_eq!((read(&setup.cached, &last).await, read(&setup.cached, &last).await), ("1".into(), "1".into()));
    assert_eq!(setup.gets(), 2);
}

#[tokio::test]
async fn a_part_of_a_data_file_is_kept_only_where_the_reader_asks_for_it() {
    let setup = Setup::new();
    let file = Path::from("t/fhir-sync-1.parquet");
    setup.store.put(&file, "0123456789".into()).await.unwrap();
    for (options, gets) in [(Keep::range(2..5), 1), (Keep::range(2..5), 1), (Keep::range(2..6), 2)] {
        let expected = if gets == 1 { "234" } else { "2345" };
        let got = setup.cached.get_opts(&file, options).await.unwrap();
        assert_eq!(
            (got.range.end - got.range.start, got.bytes().await.unwrap()),
            (expected.len() as u64, expected.into())
        );
        assert_eq!(setup.gets(), gets);
    }
    setup.cached.get_range(&file, 2..5).await.unwrap();
    setup.cached.get_range(&file, 2..5).await.unwrap();
    assert_eq!(setup.gets(), 4);
}

#[tokio::test]
async fn each_kind_of_request_and_its_bytes_are_counted() {
    let setup = Setup::new();
    let file = Path::from("t/a");
    setup.cached.put(&file, "0123456789".into()).await.unwrap();
    setup.cached.get(&file).await.unwrap().bytes().await.unwrap();
    setup.cached.head(&file).await.unwrap();
    setup.cached.get_ranges(&file, &[0..2, 4..6]).await.unwrap();
    let mut upload = setup.cached.put_multipart(&Path::from("t/b")).await.unwrap();
    upload.put_part("abc".into()).await.unwrap();
    upload.put_part("de".into()).await.unwrap();
    upload.complete().await.unwrap();
    setup.cached.list(None).for_each(|_| async {}).await;
    setup.cached.delete(&file).await.unwrap();
    let requests = setup.meters.of("t").read();
    // The two ranges are one request, and an upload in two parts is four.
    let expected =
        super::super::metered::Requests { get: 3, put: 5, list: 1, delete: 1, bytes_read: 16, bytes_written: 15 };
    assert_eq!(requests, expected);
}
