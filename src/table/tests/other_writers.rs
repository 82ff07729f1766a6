//! Other writers change rows and leave our columns as they were: only what the server sends repairs such rows.

use super::{race::update, *};
use crate::table::data_file::fill;

/// All columns of a row except those that describe the run.
fn seen(lake: &Lake) -> String {
    lake.drawn(&["id", "gender", "active", "birthDate", "meta", "resource_json"])
}

fn patients() -> Vec<Change> {
    let line = |id: &str| {
        Change::Line(format!(
            r#"{{"resourceType":"Patient","id":"{id}","meta":{{"versionId":"1","lastUpdated":"2026-01-01T00:00:01Z"}},"gender":"female","birthDate":"1970-01-01"}}"#
        ))
    };
    ["a", "b", "c", "d", "e"].map(line).to_vec()
}

async fn delta(lake: &Lake) -> deltalake::DeltaTable {
    lake.root.open(patient()).await.unwrap().unwrap().delta
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_another_writer_changed_without_its_hash_is_repaired_when_the_server_sends_it_again() {
    for (column, value) in [("gender", "male"), ("resource_json", "{}"), ("active", "true")] {
        let lake = Lake::new();
        lake.upsert(&[patients()], 5).await;
        let before = seen(&lake);
        let value = if column == "active" { "true" } else { value };
        update(delta(&lake).await, "b", column, value).await;
        assert_ne!(seen(&lake), before, "{column}");
        let healed = lake.upsert(&[patients()], 6).await;
        assert_eq!(healed.counts, Counts { updated: 1, unchanged: 4, ..Counts::default() }, "{column}");
        assert_eq!(healed.foreign, 1);
        assert_eq!(seen(&lake), before, "{column}");
        let again = lake.upsert(&[patients()], 7).await;
        assert_eq!(again.counts, Counts { unchanged: 5, ..Counts::default() }, "{column}");
        assert_eq!((again.foreign, again.bytes_written), (0, 0), "{column}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_another_writer_deleted_returns_when_the_server_sends_it_again() {
    let lake = Lake::new();
    lake.upsert(&[patients()], 5).await;
    let before = seen(&lake);
    delta(&lake).await.delete().with_predicate("id = 'c'").await.unwrap();
    let healed = lake.upsert(&[patients()], 6).await;
    assert_eq!(healed.counts, Counts { inserted: 1, unchanged: 4, ..Counts::default() });
    assert_eq!(healed.foreign, 1);
    assert_eq!(seen(&lake), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_another_writer_only_moved_are_unchanged_and_nothing_is_written() {
    let lake = Lake::new();
    lake.upsert(&[patients()[..3].to_vec()], 4).await;
    lake.upsert(&[patients()[3..].to_vec()], 5).await;
    let (_, metrics) = delta(&lake).await.optimize().await.unwrap();
    assert_eq!((metrics.num_files_added, metrics.num_files_removed), (1, 2));
    let again = lake.upsert(&[patients()], 6).await;
    assert_eq!(again.counts, Counts { unchanged: 5, ..Counts::default() });
    assert_eq!((again.foreign, again.bytes_written), (0, 0), "it changed no rows, and said so");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_another_writer_moved_and_we_moved_again_are_still_compared_by_content() {
    for update_mode in [UpdateMode::DeletionVectors, UpdateMode::CopyOnWrite] {
        let lake = Lake::new();
        lake.upsert(&[patients()], 5).await;
        update(delta(&lake).await, "b", "gender", "male").await;
        // Enough deleted rows for the other writer's file to be rewritten as one of ours.
        let table = lake.root_with(update_mode).open(patient()).await.unwrap().unwrap();
        let gone = ["d", "e"].map(|id| deletion(id, Some("2026-01-01T00:00:02Z")));
        let committed = table.upsert(&lake.change_set(&[gone.to_vec()], 6), &upsert(6)).await.unwrap();
        assert_eq!(committed.counts.deleted, 2);
        let files = lake.root.open(patient()).await.unwrap().unwrap().stored_files().await.unwrap();
        assert!(files.iter().all(|file| file.own && file.dead.is_empty()));
        let received = patients()[..3].to_vec();
        lake.upsert(std::slice::from_ref(&received), 7).await;
        assert!(!seen(&lake).contains(" male "));
        let again = lake.upsert(&[received], 8).await;
        assert_eq!((again.counts.unchanged, again.bytes_written), (3, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_another_writer_doubled_is_single_after_its_next_version() {
    let lake = Lake::new();
    lake.upsert(&[patients()], 5).await;
    let table = lake.root.open(patient()).await.unwrap().unwrap();
    let file = &table.stored_files().await.unwrap()[0];
    let rows: Vec<_> = futures::StreamExt::collect::<Vec<_>>(table.rows(file).await.unwrap()).await;
    let columns = table.columns().unwrap();
    let rows = rows.into_iter().map(|rows| fill::fit(&rows.unwrap(), &columns).unwrap()).collect::<Vec<_>>();
    table.delta.clone().write(rows).await.unwrap();
    let mut received = patients();
    received[0] = line("a", 2, "new");
    let committed = lake.upsert(&[received], 6).await;
    assert_eq!(committed.counts, Counts { updated: 1, unchanged: 4, ..Counts::default() });
    assert_eq!(lake.rows().await.len(), 5);
}
