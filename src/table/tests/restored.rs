//! A table that is restored to an earlier version while it is written to.

use serde_json::{Value, json};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_upsert_that_a_restore_overtakes_is_not_made_and_leaves_no_file() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, "")]], 4).await;
    lake.upsert(&[vec![line("b", 1, "")]], 5).await;
    let opened = lake.root.open(patient()).await.unwrap().unwrap();
    let log = |version: u64| lake.table_folder().join(format!("_delta_log/{version:020}.json"));
    let newest = std::fs::read_to_string(log(2)).unwrap();
    let added = newest.lines().find_map(|line| serde_json::from_str::<Value>(line).unwrap().get("add").cloned());
    let remove =
        json!({"path": added.unwrap()["path"], "deletionTimestamp": 1_800_000_000_000_i64, "dataChange": true});
    let info = json!({"timestamp": 1_800_000_000_000_i64, "operation": "RESTORE"});
    let restore = [json!({"commitInfo": info}), json!({"remove": remove})].map(|action| action.to_string());
    std::fs::write(log(3), restore.join("\n")).unwrap();
    let files = || std::fs::read_dir(lake.table_folder()).unwrap().count();
    let before = files();
    let changes = lake.change_set(&[vec![line("c", 1, "")]], 6);
    let restored = opened.upsert(&changes, &upsert(6)).await;
    assert!(matches!(restored, Err(Error::Restored { .. })), "{restored:?}");
    assert_eq!(lake.rows().await.into_keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!((files(), lake.watermark().await), (before, Some(time(5))));
}
