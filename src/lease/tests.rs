use std::sync::Arc;

use object_store::memory::InMemory;

use super::*;
use crate::table::{Config, Location, Root};

fn root(folder: &std::path::Path) -> Root {
    Root::new(Config::new(Location::Folder(folder.to_owned()))).unwrap()
}

fn place(store: &Arc<InMemory>) -> LeasePlace {
    let store: Arc<dyn deltalake::ObjectStore> = Arc::<InMemory>::clone(store);
    LeasePlace::in_store(store, "memory:///_fhir_sync")
}

/// A holder on another host, of which nobody here can say whether it is alive.
fn elsewhere(holder: &str) -> Holder {
    let mut text = serde_json::to_value(Holder::ourselves(holder)).unwrap();
    text["process"] = serde_json::Value::Null;
    serde_json::from_value(text).unwrap()
}

async fn take(store: &Arc<InMemory>, holder: &str) -> Result<Lease, Error> {
    Lease::take_for(place(store), elsewhere(holder)).await
}

fn is_lost(result: &Result<(), Error>) -> bool {
    matches!(result, Err(Error::LeaseLost { .. }))
}

#[tokio::test]
async fn a_second_holder_of_a_folder_is_refused_until_the_first_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (mut first, mut second) = (root(folder.path()), root(folder.path()));
    first.take_lease("a").await.unwrap();
    let error = second.take_lease("b").await.unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(first);
    second.take_lease("b").await.unwrap();
    second.check_lease().await.unwrap();
}

#[tokio::test]
async fn the_lease_of_a_process_that_ended_is_taken_over_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = root(folder.path());
    let place = LeasePlace::Folder(folder.path().join("_fhir_sync"));
    let mut ended = serde_json::to_value(Holder::ourselves("a")).unwrap();
    ended["process"]["started"] = 1.into();
    let holder: Holder = serde_json::from_value(ended).unwrap();
    let record = Record { epoch: 4, holder, renewals: 9, renewed_at: now(), released: false };
    assert!(matches!(place.swap(None, &record).await.unwrap(), Swapped::Done));
    first.take_lease("b").await.unwrap();
    assert_eq!(place.read().await.unwrap().unwrap().record().unwrap().epoch, 5);
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
    first.take_lease("a").await.unwrap();
    std::fs::remove_dir_all(folder.path().join("_fhir_sync")).unwrap();
    first.check_lease().await.unwrap();
    assert!(matches!(root(folder.path()).take_lease("b").await, Err(Error::InUse { .. })));
}

#[tokio::test]
async fn of_two_that_replace_the_same_lease_one_is_overtaken_and_gets_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let place = LeasePlace::Folder(folder.path().join("_fhir_sync"));
    let record = |holder| Record {
        epoch: 1,
        holder: Holder::ourselves(holder),
        renewals: 0,
        renewed_at: now(),
        released: false,
    };
    assert!(matches!(place.swap(None, &record("a")).await.unwrap(), Swapped::Done));
    assert!(matches!(place.swap(None, &record("b")).await.unwrap(), Swapped::Overtaken));
    let stored = place.read().await.unwrap();
    assert!(matches!(place.swap(stored.as_ref(), &record("c")).await.unwrap(), Swapped::Done));
    assert!(matches!(place.swap(stored.as_ref(), &record("d")).await.unwrap(), Swapped::Overtaken));
}
