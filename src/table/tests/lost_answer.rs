//! A store that fails at the commit: what landed counts once, what did not is told, and the next run goes on.

use std::{fmt, ops::Range, pin::Pin, sync::Mutex as StdMutex};

use bytes::Bytes;
use deltalake::logstore::{StorageConfig, logstore_with};
use futures::stream::BoxStream;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, local::LocalFileSystem, path::Path as StorePath,
};

use super::*;

/// What happens when a commit is put.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// It is there, but the answer is an error.
    AnswerLost,
    /// It is there, and the client asks again by itself: somebody, ourselves, was there first.
    AnswerLostAndAskedAgain,
    /// It is not there, and the answer is an error.
    Refused,
    /// Another writer is there first, with this text, and only then the answer is lost.
    Overtaken(&'static str),
}

/// A local folder whose next puts of commits go wrong.
#[derive(Debug)]
struct Unreliable {
    disk: LocalFileSystem,
    faults: StdMutex<Vec<Fault>>,
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
    async fn put_commit(
        &self,
        fault: Fault,
        location: &StorePath,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        match fault {
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
                Err(no_answer())
            }
        }
    }
}

/// What an async function of a trait becomes.
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
            let is_commit = location.extension() == Some("json");
            let fault = is_commit.then(|| self.faults.lock().unwrap().pop()).flatten();
            match fault {
                Some(fault) => self.put_commit(fault, location, payload, options).await,
                None => self.disk.put_opts(location, payload, options).await,
            }
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
        self.disk.list(prefix)
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

/// The table, reached through a store whose next commits fail like this, the last of them first.
async fn unreliable(lake: &Lake, faults: &[Fault]) -> Table {
    failing(lake.table().await, faults).await
}

pub(super) async fn failing(table: Table, faults: &[Fault]) -> Table {
    let store = Unreliable { disk: LocalFileSystem::new(), faults: StdMutex::new(faults.to_vec()) };
    let log_store = logstore_with(Arc::new(store), table.delta.table_url(), StorageConfig::default()).unwrap();
    let mut delta = DeltaTable::new(log_store);
    delta.load().await.unwrap();
    Table { delta, ..table }
}

async fn lake() -> Lake {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, ""), line("c", 1, "")]], 5).await;
    lake
}

fn came() -> Vec<Change> {
    vec![line("a", 2, "new"), line("d", 1, "new"), deletion("c", Some("2026-01-01T00:00:30Z"))]
}

const COUNTS: Counts =
    Counts { inserted: 1, updated: 1, deleted: 1, unchanged: 0, stale: 0, duplicate: 0, removed: 0, gone: 0 };

async fn assert_applied(lake: &Lake) {
    let rows = lake.rows().await;
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["a", "b", "d"]);
    assert!(rows["a"].contains("new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_landed_although_its_answer_was_lost_counts_once() {
    for fault in [Fault::AnswerLost, Fault::AnswerLostAndAskedAgain] {
        for watermark in [Some(time(6)), None] {
            let lake = lake().await;
            let table = unreliable(&lake, std::slice::from_ref(&fault)).await;
            let changes = lake.change_set(&[came()], 6);
            let committed = table.upsert(&changes, &Upsert { watermark, ..upsert(6) }).await.unwrap();
            assert_eq!((committed.version, committed.counts), (2, COUNTS), "{fault:?} {watermark:?}");
            assert_eq!(lake.root.open(patient()).await.unwrap().unwrap().version(), 2);
            assert_eq!(lake.watermark().await, Some(watermark.unwrap_or(time(5))));
            assert_applied(&lake).await;
            let again = lake.upsert(&[came()], 6).await;
            assert_eq!((again.counts.unchanged, again.bytes_written), (3, 0));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_was_refused_is_an_error_and_the_next_upsert_succeeds() {
    for watermark in [Some(time(6)), None] {
        let lake = lake().await;
        let before = lake.rows().await;
        let table = unreliable(&lake, &[Fault::Refused]).await;
        let changes = lake.change_set(&[came()], 6);
        let error = table.upsert(&changes, &Upsert { watermark, ..upsert(6) }).await.unwrap_err();
        assert!(matches!(error, Error::Delta { .. }), "{error:?}");
        assert_eq!(lake.rows().await, before);
        assert_eq!(lake.watermark().await, Some(time(5)));
        let next = lake.table().await.upsert(&changes, &Upsert { watermark, ..upsert(6) }).await.unwrap();
        assert_eq!((next.version, next.counts), (2, COUNTS), "the same change set can be asked again");
        assert_applied(&lake).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_a_commit_that_only_moves_the_watermark_counts_once() {
    let lake = lake().await;
    let table = unreliable(&lake, &[Fault::AnswerLost]).await;
    let committed = table.upsert(&lake.change_set(&[], 6), &upsert(6)).await.unwrap();
    assert_eq!((committed.version, lake.watermark().await), (2, Some(time(6))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_load_whose_answer_was_lost_keeps_its_files_and_one_that_was_refused_brings_them_the_next_time() {
    for faults in [[Fault::AnswerLost], [Fault::Refused]] {
        let lake = Lake::new();
        let table = unreliable(&lake, &faults).await;
        let changes =
            table.change_set(&lake.shape().schema(), Share::alone(1 << 20), lake.folder.path()).await.unwrap();
        let file = vec![line("a", 1, "old"), line("b", 1, ""), line("a", 2, "new")];
        tokio::task::block_in_place(|| lake.fill(&changes, &[file], 5));
        let counts = match table.upsert(&changes, &upsert(5)).await {
            Ok(committed) => committed.counts,
            Err(error) => {
                assert!(matches!((&faults[0], &error), (Fault::Refused, Error::Delta { .. })), "{error:?}");
                lake.table().await.upsert(&changes, &upsert(5)).await.unwrap().counts
            }
        };
        assert_eq!(counts, Counts { inserted: 2, duplicate: 1, ..Counts::default() }, "{faults:?}");
        assert_eq!(lake.table().await.version(), 1);
        let rows = lake.rows().await;
        assert!(rows.len() == 2 && rows["a"].contains("new"), "{faults:?}");
    }
}

/// A commit of another writer that touches no row.
pub(super) const VACUUM: &str =
    r#"{"commitInfo":{"timestamp":1700000000000,"operation":"VACUUM START","operationParameters":{}}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_not_taken_for_success_where_the_version_is_another_writers() {
    let lake = lake().await;
    let table = unreliable(&lake, &[Fault::Overtaken(VACUUM)]).await;
    let committed = table.upsert(&lake.change_set(&[came()], 6), &upsert(6)).await.unwrap();
    assert_eq!((committed.version, committed.counts), (3, COUNTS));
    assert_applied(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_who_is_always_faster_makes_an_error_and_loses_no_row() {
    let lake = lake().await;
    let before = lake.rows().await;
    let table = unreliable(&lake, &vec![Fault::Overtaken(VACUUM); 9]).await;
    let error = table.upsert(&lake.change_set(&[came()], 6), &upsert(6)).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { attempts: 5, .. }), "{error:?}");
    assert_eq!(lake.rows().await, before);
    lake.upsert(&[came()], 6).await;
    assert_applied(&lake).await;
}
