use std::sync::Arc;

use object_store::{ObjectStore, memory::InMemory};
use tokio::time::Instant;

use super::*;
use crate::{
    store::{Documents, Readers},
    table::{Config, Location, Root},
};

fn root(folder: &std::path::Path) -> Root {
    Root::new(Config::new(Location::Folder(folder.to_owned()))).unwrap()
}

fn in_memory(store: &Arc<InMemory>) -> Document {
    let store: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(store);
    Documents::in_store(store, &"memory:///_fhir_sync".parse().unwrap()).document("lease.json")
}

fn in_folder(folder: &std::path::Path) -> Document {
    let folder = folder.join("_fhir_sync");
    Documents::Folder { folder, readers: Readers::OfFolder }.document("lease.json")
}

/// A holder on another host, of which nobody here can say whether it is alive.
fn elsewhere(holder: &str) -> Holder {
    let mut text = serde_json::to_value(Holder::ourselves(holder)).unwrap();
    text["process"] = serde_json::Value::Null;
    serde_json::from_value(text).unwrap()
}

async fn take(store: &Arc<InMemory>, holder: &str) -> Result<Lease, Error> {
    Lease::take(Subject::Tables, in_memory(store), elsewhere(holder), None).await
}

fn is_lost(result: &Result<(), Error>) -> bool {
    matches!(result, Err(Error::Lost { .. }))
}

#[tokio::test]
async fn a_second_holder_of_a_folder_is_refused_until_the_first_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (root(folder.path()), root(folder.path()));
    first.take_lease("a", None).await.unwrap();
    let error = second.take_lease("b", None).await.unwrap_err();
    assert!(matches!(error, crate::table::Error::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(first);
    second.take_lease("b", None).await.unwrap();
    second.check_lease().await.unwrap();
}

#[tokio::test]
async fn the_lease_of_a_process_that_ended_is_taken_over_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = root(folder.path());
    let document = in_folder(folder.path());
    let mut ended = serde_json::to_value(Holder::ourselves("a")).unwrap();
    ended["process"]["started"] = 1.into();
    let holder: Holder = serde_json::from_value(ended).unwrap();
    let record = Record { epoch: 4, holder, renewals: 9, renewed_at: now(), released: false, group: None };
    assert!(matches!(document.swap(None, text(&record)).await.unwrap(), Swapped::Done(_)));
    first.take_lease("b", None).await.unwrap();
    assert_eq!(super::record(&document.read().await.unwrap().unwrap()).unwrap().epoch, 5);
}

#[tokio::test]
async fn a_process_with_the_same_state_file_takes_over_the_lease_and_the_former_holder_writes_no_more() {
    let store = Arc::new(InMemory::new());
    let first = take(&store, "a").await.unwrap();
    let second = take(&store, "a").await.unwrap();
    let lost = first.check().await;
    assert!(is_lost(&lost), "{lost:?}");
    first.release().await;
    second.check().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_does_not_change_for_a_minute_is_taken_over() {
    let store = Arc::new(InMemory::new());
    let first = take(&store, "a").await.unwrap();
    let begin = Instant::now();
    let second = take(&store, "b").await.unwrap();
    assert!(begin.elapsed() >= STALE_AFTER && begin.elapsed() < STALE_AFTER * 2, "{:?}", begin.elapsed());
    assert!(is_lost(&first.check().await));
    second.check().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_renewed_is_never_taken_over() {
    let store = Arc::new(InMemory::new());
    let first = Arc::new(take(&store, "a").await.unwrap());
    let mut keeper = tokio::task::JoinSet::new();
    keeper.spawn(Lease::keep(Arc::downgrade(&first)));
    let begin = Instant::now();
    assert!(matches!(take(&store, "b").await, Err(Error::InUse { .. })));
    assert!(begin.elapsed() <= RENEWED_EVERY + WATCHED_EVERY * 2, "{:?}", begin.elapsed());
    first.check().await.unwrap();
    first.release().await;
    take(&store, "b").await.unwrap();
}

#[tokio::test]
async fn a_lease_that_was_removed_with_its_folder_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = root(folder.path());
    first.take_lease("a", None).await.unwrap();
    std::fs::remove_dir_all(folder.path().join("_fhir_sync")).unwrap();
    first.check_lease().await.unwrap();
    assert!(matches!(root(folder.path()).take_lease("b", None).await, Err(crate::table::Error::InUse { .. })));
}

#[tokio::test]
async fn a_holder_that_is_known_to_have_ended_is_not_waited_for() {
    let store = Arc::new(InMemory::new());
    let first = take(&store, "a").await.unwrap();
    let second = Lease::take(Subject::Tables, in_memory(&store), elsewhere("b"), Some("a")).await.unwrap();
    assert_eq!(second.predecessor(), Some("a"));
    assert!(is_lost(&first.check().await));
}

async fn join(store: &Arc<InMemory>, holder: &str, group: Option<&str>) -> Result<Lease, Error> {
    Lease::join(Subject::Tables, in_memory(store), elsewhere(holder), group).await
}

#[tokio::test(start_paused = true)]
async fn processes_that_share_hold_a_lease_together_and_keep_a_single_holder_away() {
    let store = Arc::new(InMemory::new());
    let first = Arc::new(join(&store, "a", None).await.unwrap());
    let second = join(&store, "b", None).await.unwrap();
    assert_eq!(first.group(), second.group());
    first.check().await.unwrap();
    second.check().await.unwrap();
    first.release().await;
    second.check().await.unwrap();
    let mut keeper = tokio::task::JoinSet::new();
    keeper.spawn(Lease::keep(Arc::downgrade(&first)));
    assert!(matches!(take(&store, "c").await, Err(Error::InUse { .. })));
    assert!(matches!(join(&store, "d", Some("another group")).await, Err(Error::InUse { .. })));
    second.check().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_group_of_which_nobody_is_left_gives_way_after_a_minute_and_a_single_holder_keeps_a_group_away() {
    let store = Arc::new(InMemory::new());
    let member = join(&store, "a", None).await.unwrap();
    let begin = Instant::now();
    let single = Arc::new(take(&store, "b").await.unwrap());
    assert!(begin.elapsed() >= STALE_AFTER, "{:?}", begin.elapsed());
    assert!(is_lost(&member.check().await));
    let mut keeper = tokio::task::JoinSet::new();
    keeper.spawn(Lease::keep(Arc::downgrade(&single)));
    assert!(matches!(join(&store, "c", None).await, Err(Error::InUse { .. })));
    single.release().await;
    join(&store, "c", None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_attempt_does_not_wait_and_succeeds_when_the_holder_was_silent_for_a_minute() {
    let store = Arc::new(InMemory::new());
    let first = take(&store, "a").await.unwrap();
    let (us, document, mut watch) = (elsewhere("b"), in_memory(&store), Watch::default());
    let mut attempts = 0;
    let begin = Instant::now();
    let second = loop {
        attempts += 1;
        match Lease::attempt(Subject::Export("all".to_owned()), &document, &us, &mut watch).await.unwrap() {
            Attempt::Taken(lease) => break lease,
            Attempt::Held { .. } => sleep(RENEWED_EVERY).await,
        }
    };
    assert_eq!((attempts, begin.elapsed()), (5, STALE_AFTER));
    assert!(is_lost(&first.check().await));
    second.check().await.unwrap();
}
