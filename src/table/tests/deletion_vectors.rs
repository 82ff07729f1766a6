//! What a commit says: which files get deletion vectors, which are rewritten, and the figures that readers trust.

use serde_json::Value;

use super::*;
use crate::table::ids::Ids;

fn rows(count: u32, version: u32) -> Vec<Change> {
    (0..count).map(|id| line(&format!("id{id}"), version, "")).collect()
}

fn ids<const COUNT: usize>(of: [&str; COUNT]) -> Ids {
    let mut ids = Ids::default();
    ids.extend(of.into_iter());
    ids
}

/// The actions of one kind.
fn of(actions: &[Value], kind: &str) -> Vec<Value> {
    actions.iter().filter_map(|action| action.get(kind).cloned()).collect()
}

fn stats(add: &Value) -> Value {
    serde_json::from_str(add["stats"].as_str().unwrap()).unwrap()
}

/// The actions of an upsert that replaces `dead` of ten rows in one file.
async fn replace(update_mode: UpdateMode, dead: u32) -> (Lake, Vec<Value>) {
    let lake = Lake::new();
    let lake = Lake { root: lake.root_with(update_mode), ..lake };
    lake.upsert(&[rows(10, 1)], 5).await;
    lake.upsert(&[rows(dead, 2)], 6).await;
    let actions = lake.actions(2);
    (lake, actions)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_up_to_thirty_percent_deleted_rows_gets_a_deletion_vector() {
    let (lake, actions) = replace(UpdateMode::DeletionVectors, 3).await;
    let [removed] = &of(&actions, "remove")[..] else { panic!("{actions:?}") };
    assert!(removed["deletionVector"].is_null() && removed["dataChange"] == true, "{removed}");
    let adds = of(&actions, "add");
    let marked = adds.iter().find(|add| add["path"] == removed["path"]).unwrap();
    assert_eq!(marked["deletionVector"]["cardinality"], 3);
    assert_eq!(stats(marked)["numRecords"], 10, "dead ones included");
    assert_eq!(stats(marked)["tightBounds"], false);
    let new = adds.iter().find(|add| add["path"] != removed["path"]).unwrap();
    assert_eq!((adds.len(), &stats(new)["numRecords"]), (2, &3.into()));
    assert!(new["deletionVector"].is_null() && stats(new)["tightBounds"] != false, "{new}");
    assert_eq!(lake.rows().await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_larger_deletion_vector_replaces_the_one_before() {
    let lake = Lake::new();
    lake.upsert(&[rows(10, 1)], 5).await;
    lake.upsert(&[rows(1, 2)], 6).await;
    let before = of(&lake.actions(2), "add").into_iter().find(|add| !add["deletionVector"].is_null()).unwrap();
    lake.upsert(&[vec![line("id7", 2, "")]], 7).await;
    let actions = lake.actions(3);
    let [removed] = &of(&actions, "remove")[..] else { panic!("{actions:?}") };
    assert_eq!((&removed["path"], &removed["deletionVector"]), (&before["path"], &before["deletionVector"]));
    let after = of(&actions, "add").into_iter().find(|add| add["path"] == before["path"]).unwrap();
    assert_eq!(after["deletionVector"]["cardinality"], 2);
    assert_ne!(after["deletionVector"]["pathOrInlineDv"], before["deletionVector"]["pathOrInlineDv"]);
    assert_eq!(stats(&after)["numRecords"], 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_more_deleted_rows_or_without_deletion_vectors_is_rewritten() {
    for (update_mode, dead) in [(UpdateMode::DeletionVectors, 4), (UpdateMode::CopyOnWrite, 1)] {
        let (lake, actions) = replace(update_mode, dead).await;
        let [removed] = &of(&actions, "remove")[..] else { panic!("{actions:?}") };
        let adds = of(&actions, "add");
        assert!(
            adds.iter().all(|add| add["path"] != removed["path"] && add["deletionVector"].is_null()),
            "{update_mode:?}"
        );
        let mut records: Vec<_> = adds.iter().map(|add| stats(add)["numRecords"].as_u64().unwrap()).collect();
        records.sort_unstable();
        let (dead, alive) = (u64::from(dead), u64::from(10 - dead));
        assert_eq!(records, [dead.min(alive), dead.max(alive)]);
        assert_eq!(lake.rows().await.len(), 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_rows_are_all_deleted_is_only_removed() {
    for update_mode in [UpdateMode::DeletionVectors, UpdateMode::CopyOnWrite] {
        let (lake, actions) = replace(update_mode, 10).await;
        assert_eq!((of(&actions, "remove").len(), of(&actions, "add").len()), (1, 1), "{update_mode:?}");
        assert_eq!(lake.rows().await.len(), 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_rows_are_read_a_few_at_a_time() {
    let lake = Lake::new();
    let long = "x".repeat(1 << 20);
    let rows = (0..20).map(|id| line(&format!("id{id}"), 1, &long));
    lake.upsert(&[rows.collect(), (20..30).map(|id| line(&format!("id{id}"), 1, "")).collect()], 5).await;
    let table = lake.table().await;
    let stored = table.stored_files().await.unwrap();
    assert_eq!(stored.len(), 1);
    let mut batches = std::pin::pin!(table.rows(&stored[0]).await.unwrap());
    let mut rows = 0;
    while let Some(batch) = futures::StreamExt::next(&mut batches).await {
        let batch = batch.unwrap();
        assert!(batch.num_rows() <= 8, "{}", batch.num_rows());
        rows += batch.num_rows();
    }
    assert_eq!(rows, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_load_marks_its_superseded_rows_in_its_own_commit() {
    let lake = Lake::new();
    let table = lake.table().await;
    let files = [rows(10, 2), rows(2, 1), vec![line("id0", 3, "newest")]];
    let changes = lake.first_load(&table, &files, 5);
    let committed = table.upsert(&changes, &upsert(5)).await.unwrap();
    assert_eq!(committed.counts, Counts { inserted: 10, duplicate: 3, ..Counts::default() });
    let actions = lake.actions(1);
    let adds = of(&actions, "add");
    let alive = |add: &Value| {
        stats(add)["numRecords"].as_u64().unwrap() - add["deletionVector"]["cardinality"].as_u64().unwrap_or_default()
    };
    assert_eq!((of(&actions, "remove").len(), adds.iter().map(alive).sum::<u64>()), (0, 10));
    let rows = lake.rows().await;
    assert!(rows.len() == 10 && rows["id0"].contains("newest"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_ids_in_the_range_is_not_read() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a1", 1, ""), line("a9", 1, "")]], 5).await;
    lake.upsert(&[vec![line("b1", 1, ""), line("b9", 1, "")]], 6).await;
    for stored in lake.table().await.stored_files().await.unwrap() {
        if stored.may_have(&ids(["b0", "b2"])) {
            continue;
        }
        std::fs::remove_file(lake.table_folder().join(stored.file.path.as_ref())).unwrap();
    }
    let committed = lake.upsert(&[vec![line("b1", 2, "new"), line("b5", 1, "")]], 7).await;
    assert_eq!(committed.counts, Counts { updated: 1, inserted: 1, ..Counts::default() });
    let mut files: Vec<_> = lake.table().await.stored_files().await.unwrap();
    files.retain(|stored| stored.may_have(&ids(["a9", "b0"])));
    assert_eq!(files.len(), 1, "from the last id of the one file to before the first of the others");
    files.retain(|stored| stored.may_have(&ids(["a0", "b0"])));
    assert!(files.is_empty(), "before the first id and behind the last one, and none in between");
}
