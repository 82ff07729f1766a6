//! The table of tombstones: maintained, written by several runs, and read only where it can have an id.

use std::{collections::BTreeSet, fs};

use futures::StreamExt as _;
use serde_json::Value;

use super::{
    lost_answer::VACUUM,
    maintain::{in_days, maintenance},
    unreliable::{Fault, failing},
    *,
};
use crate::table::{
    maintain::{DryRun, Maintained, MaintenanceStep},
    tombstones::{NewTombstone, TombstoneTable},
    upsert::{append_tombstones, decide::decide},
};

/// A second of the first minute of 2026.
fn micros(second: u32) -> i64 {
    crate::fhir::parse_instant(&at(second)).unwrap().timestamp_micros()
}

fn at(second: u32) -> String {
    format!("2026-01-01T00:00:{second:02}Z")
}

impl Lake {
    async fn fold(&self) -> Maintained {
        let all = maintenance(&MaintenanceStep::ALL);
        self.root.maintain(TableName::Tombstones, &all, DryRun::No, in_days(0), &|| true).await.unwrap().unwrap()
    }

    async fn tombstone_table(&self) -> Table {
        self.root.load(TableName::Tombstones).await.unwrap().unwrap()
    }

    /// The ids of each file, in their order.
    async fn deleted_ids(&self) -> Vec<Vec<String>> {
        let table = self.tombstone_table().await;
        let mut files = Vec::new();
        for stored in table.stored_files().await.unwrap() {
            let ids: Vec<_> =
                table.rows(&stored).await.unwrap().map(|rows| texts(&rows.unwrap(), "id")).collect().await;
            files.push(ids.concat());
        }
        files.sort();
        files
    }

    fn deleted_folder(&self) -> std::path::PathBuf {
        self.folder.path().join("lake/_fhir_sync/deleted")
    }

    fn deleted_commit(&self, version: u64) -> Vec<Value> {
        let commit = self.deleted_folder().join(format!("_delta_log/{version:020}.json"));
        fs::read_to_string(commit).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// One export per deletion.
    async fn delete(&self, id: &str, seconds: impl Iterator<Item = u32>) {
        for second in seconds {
            self.upsert(&[vec![deletion(id, None)]], micros(second)).await;
        }
    }
}

fn texts(rows: &arrow::array::RecordBatch, name: &str) -> Vec<String> {
    use arrow::array::AsArray as _;
    let column = rows.column_by_name(name).unwrap().as_string::<i32>();
    column.iter().map(|text| text.unwrap().to_owned()).collect()
}

fn tombstones(ids: &[&str]) -> Vec<NewTombstone> {
    ids.iter().map(|id| NewTombstone { id: (*id).to_owned(), deleted_at_micros: Some(5) }).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn folded_tombstones_still_stop_a_late_version() {
    let lake = Lake::new();
    lake.delete("a", (10..20).chain([40])).await;
    lake.upsert(&[vec![deletion("b", Some(&at(10))), deletion("c", Some(&at(50)))]], micros(55)).await;
    let done = lake.fold().await;
    assert_eq!((done.rewritten.files, done.written.files, done.folded_rows), (12, 1, 10));
    assert_eq!(lake.deleted_ids().await, [["a", "b", "c"]]);
    let late = lake.upsert(&[vec![line("a", 30, ""), line("b", 11, ""), line("c", 50, "")]], micros(35)).await;
    assert_eq!(late.counts, Counts { inserted: 1, stale: 2, ..Counts::default() });
    assert_eq!(lake.upsert(&[vec![line("a", 41, "")]], micros(56)).await.counts.inserted, 1);
    assert_eq!(lake.fold().await, Maintained::default(), "a second fold has nothing to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_deletion_without_a_time_stops_a_version_from_between_the_two() {
    let lake = Lake::new();
    lake.delete("a", [10, 20].into_iter()).await;
    lake.fold().await;
    let from_between = lake.upsert(&[vec![line("a", 15, "")]], micros(16)).await;
    assert_eq!(from_between.counts, Counts { stale: 1, ..Counts::default() });
}

/// Nothing that comes would be newer than the one, so it does not count; the other does. (rule 52)
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_by_a_former_clock_does_not_hide_one_by_the_right_clock() {
    let lake = Lake::new();
    lake.delete("a", [50].into_iter()).await;
    for (second, change, counts) in [
        (20, deletion("a", None), Counts { unchanged: 1, ..Counts::default() }),
        (21, line("a", 15, ""), Counts { stale: 1, ..Counts::default() }),
        (23, line("a", 22, ""), Counts { inserted: 1, ..Counts::default() }),
    ] {
        let set_back = Upsert { set_back_from: Some(time(micros(50))), ..upsert(micros(second)) };
        let changes = lake.change_set(&[vec![change]], micros(second));
        assert_eq!(lake.table().await.upsert(&changes, &set_back).await.unwrap().counts, counts, "{second}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_syncs_with_deletions_and_maintenance_leave_few_files() {
    let lake = Lake::new();
    let (mut most, mut ids) = (0, BTreeSet::new());
    for second in 1..=50 {
        let fresh = format!("id{second:02}");
        lake.upsert(&[vec![deletion("again", None), deletion(&fresh, Some(&at(second)))]], micros(second)).await;
        ids.extend(["again".to_owned(), fresh]);
        if second % 5 == 0 {
            lake.fold().await;
            most = most.max(lake.deleted_ids().await.len());
        }
    }
    assert!(most <= 3, "{most}");
    let deleted_ids = lake.deleted_ids().await;
    assert!(deleted_ids.iter().all(|ids| ids.is_sorted()), "{deleted_ids:?}");
    assert_eq!(deleted_ids.iter().flatten().cloned().collect::<BTreeSet<_>>(), ids);
    assert!(deleted_ids.concat().len() < 60, "{deleted_ids:?}");
    let late: Vec<_> = ids.iter().map(|id| line(id, 1, "")).collect();
    assert_eq!(lake.upsert(&[late], micros(1)).await.counts.stale, 51);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_maintenance_step_works_on_the_table_of_tombstones() {
    let lake = Lake::new();
    for second in 1..=12 {
        lake.upsert(&[vec![deletion(&format!("id{second}"), None)]], micros(second)).await;
    }
    let all = maintenance(&MaintenanceStep::ALL);
    let maintain = async |dry_run, days| {
        lake.root.maintain(TableName::Tombstones, &all, dry_run, in_days(days), &|| true).await.unwrap().unwrap()
    };
    let announced = maintain(DryRun::Yes, 0).await;
    assert_eq!((announced.rewritten.files, announced.written.files, announced.checkpoint), (12, 0, Some(12)));
    assert_eq!(lake.deleted_ids().await.len(), 12);
    let done = maintain(DryRun::No, 0).await;
    assert_eq!((done.rewritten.files, done.written.files, done.checkpoint), (12, 1, Some(13)));
    let done = maintain(DryRun::No, 31).await;
    assert_eq!((done.log_deleted.files, done.vacuumed.files), (13, 12));
    let folder = lake.deleted_folder().join("resource_type=Patient");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    assert_eq!(lake.deleted_ids().await.concat().len(), 12);
    assert_eq!(lake.upsert(&[vec![line("id1", 1, "")]], micros(1)).await.counts.stale, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_that_a_fold_changes_no_data_and_that_an_append_is_blind() {
    let lake = Lake::new();
    lake.upsert(&[vec![deletion("b", None), deletion("a", None)]], micros(1)).await;
    lake.upsert(&[vec![deletion("c", None)]], micros(2)).await;
    let append = lake.deleted_commit(1);
    let info = append.iter().find_map(|action| action.get("commitInfo")).unwrap();
    assert_eq!((&info["operation"], &info["isBlindAppend"]), (&"WRITE".into(), &true.into()), "{info}");
    assert!(info["fhirSync"]["commit"].is_string() && info["fhirSync"]["run"] == 1, "{info}");
    let add = append.iter().find_map(|action| action.get("add")).unwrap();
    let metrics = &info["operationMetrics"];
    assert_eq!((&metrics["numFiles"], &metrics["numOutputRows"]), (&"1".into(), &"2".into()), "{info}");
    assert_eq!(metrics["numOutputBytes"], add["size"].as_u64().unwrap().to_string(), "{info}");
    let stats: Value = serde_json::from_str(add["stats"].as_str().unwrap()).unwrap();
    assert_eq!((&stats["minValues"]["id"], &stats["maxValues"]["id"]), (&"a".into(), &"b".into()), "{stats}");
    assert_eq!(lake.fold().await.rewritten.files, 2);
    for action in lake.deleted_commit(3).iter().filter_map(|action| action.get("add").or(action.get("remove"))) {
        assert_eq!(action["dataChange"], false, "{action}");
    }
    assert_eq!(lake.deleted_ids().await, [["a", "b", "c"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_tombstone_files_that_may_have_one_of_the_ids_are_read() {
    let lake = Lake::new();
    lake.upsert(&[vec![deletion("a1", None), deletion("a2", None)]], micros(1)).await;
    let folder = lake.deleted_folder().join("resource_type=Patient");
    let file = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    lake.upsert(&[vec![deletion("b1", None)]], micros(2)).await;
    fs::remove_file(file).unwrap();
    assert_eq!(lake.upsert(&[vec![line("b1", 1, ""), line("c", 1, "")]], micros(1)).await.counts.stale, 1);
    let changes = lake.change_set(&[vec![line("a3", 1, ""), line("b1", 1, "")]], micros(1));
    lake.table().await.upsert(&changes, &upsert(micros(1))).await.unwrap();
    let changes = lake.change_set(&[vec![line("a2", 1, "")]], micros(1));
    assert!(lake.table().await.upsert(&changes, &upsert(micros(1))).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_of_one_type_does_not_apply_to_another_type() {
    let lake = Lake::new();
    lake.delete("a", 1..3).await;
    let others = Lake { resource_type: "Binary".parse().unwrap(), root: lake.root.clone(), ..Lake::new() };
    others.delete("a", 3..5).await;
    assert_eq!(lake.fold().await.written.files, 2);
    let line =
        Change::Line(r#"{"resourceType":"Binary","id":"a","meta":{"lastUpdated":"2026-01-01T00:00:04Z"}}"#.into());
    assert_eq!(others.upsert(&[vec![line]], micros(9)).await.counts.stale, 1);
    assert_eq!(lake.upsert(&[vec![super::line("a", 4, "")]], micros(9)).await.counts.inserted, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_of_another_source_does_not_replace_ours() {
    let lake = Lake::new();
    lake.delete("a", 1..3).await;
    let clinic = Upsert { source: "clinic".to_owned(), app_id: "fhir-sync/clinic".to_owned(), ..upsert(micros(9)) };
    let changes = lake.change_set(&[vec![deletion("a", None)]], micros(9));
    lake.table().await.upsert(&changes, &clinic).await.unwrap();
    assert_eq!(lake.fold().await.folded_rows, 1);
    let late = [vec![line("a", 5, "")]];
    assert_eq!(lake.upsert(&late, micros(5)).await.counts.inserted, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_whose_answer_was_lost_counts_once() {
    for fault in [Fault::AnswerLost, Fault::AnswerLostAndAskedAgain] {
        let lake = Lake::new();
        lake.delete("a", 1..2).await;
        let table = failing(lake.tombstone_table().await, std::slice::from_ref(&fault)).await;
        let mut tombstone_table = TombstoneTable { root: lake.root.clone(), table: Some(table) };
        tombstone_table.append(patient().into(), &tombstones(&["c", "b"]), &upsert(5)).await.unwrap();
        assert_eq!(lake.tombstone_table().await.version(), 2, "{fault:?}");
        assert_eq!(lake.deleted_ids().await, [vec!["a"], vec!["b", "c"]], "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_other_writers_overtook_is_tried_again_and_at_most_thirty_times() {
    let lake = Lake::new();
    lake.delete("a", 1..2).await;
    let overtaken = async |times: usize| {
        let table = failing(lake.tombstone_table().await, &vec![Fault::Overtaken(VACUUM.to_owned()); times]).await;
        let mut tombstone_table = TombstoneTable { root: lake.root.clone(), table: Some(table) };
        tombstone_table.append(patient().into(), &tombstones(&["b"]), &upsert(5)).await
    };
    let error = overtaken(30).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { table: TableName::Tombstones, attempts: 30 }), "{error:?}");
    let folder = lake.deleted_folder().join("resource_type=Patient");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1, "files without a commit are deleted");
    overtaken(29).await.unwrap();
    assert_eq!(lake.deleted_ids().await, [["a"], ["b"]]);
    assert_eq!(lake.tombstone_table().await.version(), 61);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_between_tombstone_and_commit_leaves_one_tombstone() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, "")]], micros(2)).await;
    let received = [vec![deletion("a", Some(&at(3)))]];
    let table = failing(lake.table().await, &[Fault::Refused]).await;
    let changes = lake.change_set(&received, micros(4));
    table.upsert(&changes, &upsert(micros(4))).await.unwrap_err();
    assert_eq!((lake.rows().await.len(), lake.deleted_ids().await.concat().len()), (2, 1));
    assert_eq!(lake.upsert(&received, micros(4)).await.counts.deleted, 1);
    assert_eq!(lake.deleted_ids().await, [["a"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upsert_that_is_tried_again_writes_its_tombstones_once() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, "")]], micros(2)).await;
    let table = failing(lake.table().await, &[Fault::Overtaken(VACUUM.to_owned())]).await;
    let changes = lake.change_set(&[vec![deletion("a", None)]], micros(4));
    assert_eq!(table.upsert(&changes, &upsert(micros(4))).await.unwrap().counts.deleted, 1);
    assert_eq!(lake.deleted_ids().await, [["a"]]);
}

/// (rule 97)
#[tokio::test(flavor = "multi_thread")]
async fn no_deletion_is_later_than_its_export() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, "")]], micros(2)).await;
    lake.upsert(&[vec![deletion("a", Some("2099-01-01T00:00:00Z"))]], micros(10)).await;
    let old = lake.upsert(&[vec![line("a", 5, "")]], micros(20)).await;
    assert_eq!(old.counts, Counts { stale: 1, ..Counts::default() });
    let recreated = lake.upsert(&[vec![line("a", 11, "")]], micros(20)).await;
    assert_eq!(recreated.counts, Counts { inserted: 1, ..Counts::default() });
    let both = vec![deletion("a", Some("2099-01-01T00:00:00Z")), line("a", 30, "")];
    let alive = lake.upsert(&[both], micros(30)).await;
    assert_eq!(alive.counts, Counts { updated: 1, duplicate: 1, ..Counts::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_refresh_takes_back_a_deletion_of_an_earlier_export_and_none_of_a_later_one() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, "")]], micros(2)).await;
    lake.upsert(&[vec![deletion("a", None), deletion("b", None)]], micros(10)).await;
    let refresh = async |lines: Vec<Change>, second| {
        let changes = lake.change_set(&[lines], micros(second));
        lake.table().await.upsert(&changes, &full_refresh(micros(second), 100.0)).await.unwrap().counts
    };
    let before = refresh(vec![line("a", 1, "")], 9).await;
    assert_eq!(before, Counts { stale: 1, ..Counts::default() });
    let after = refresh(vec![line("a", 1, "")], 20).await;
    assert_eq!(after, Counts { inserted: 1, overruled: 1, ..Counts::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tombstones_of_removed_rows_are_written_some_at_a_time_and_each_once() {
    let lake = Lake::new();
    let patients = |ids: &[&str]| ids.iter().map(|id| line(id, 1, "")).collect::<Vec<_>>();
    lake.upsert(&[patients(&["a", "b", "c", "d"])], 5).await;
    lake.upsert(&[patients(&["e", "f", "g", "h"])], 6).await;
    let (table, refresh) = (lake.table().await, full_refresh(7, 100.0));
    let changes = lake.change_set(&[patients(&["c"])], 7);
    let mut tombstones = TombstoneTable::open(&lake.root).await.unwrap();
    let decision = decide(&table, &changes, &refresh, &tombstones).await.unwrap();
    assert_eq!(decision.counts, Counts { unchanged: 1, removed: 7, ..Counts::default() });
    append_tombstones(&table, &mut tombstones, &decision, &refresh, 3).await.unwrap();
    let files = lake.deleted_ids().await;
    assert_eq!(files.iter().map(Vec::len).collect::<BTreeSet<_>>(), BTreeSet::from([1, 3]));
    assert!(files.iter().all(|ids| ids.is_sorted()), "{files:?}");
    let mut ids = files.concat();
    ids.sort();
    assert_eq!(ids, ["a", "b", "d", "e", "f", "g", "h"]);
}

/// As in a table that was restored to an earlier version: the tombstones are later than the rows.
#[tokio::test(flavor = "multi_thread")]
async fn rows_whose_deletion_was_reported_after_they_were_stored_are_removed_where_a_whole_export_lacks_them() {
    let lake = Lake::new();
    let ids = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    lake.upsert(&[ids.iter().map(|id| line(id, 1, "")).collect()], 5).await;
    lake.upsert(&[vec![deletion("k", Some(&at(30)))]], 6).await;
    let mut deleted = TombstoneTable::open(&lake.root).await.unwrap();
    let untimed = |id: &&str| NewTombstone { id: (*id).to_owned(), deleted_at_micros: None };
    let untimed: Vec<_> = ids[1..].iter().map(untimed).collect();
    // Reported twice, as by an export that repeats them.
    deleted.append(lake.table().await.name, &untimed, &upsert(5)).await.unwrap();
    deleted.append(lake.table().await.name, &untimed, &upsert(6)).await.unwrap();
    let again = Upsert { extent: Extent::Whole { removes_returned: true }, ..upsert(7) };
    // The server has b, and has gone back to k, whose version is older than its deletion.
    let changes = lake.change_set(&[vec![line("b", 1, ""), line("k", 1, "")]], 7);
    let committed = lake.table().await.upsert(&changes, &again).await.unwrap();
    let counts = Counts { inserted: 1, updated: 1, removed: 7, overruled: 1, ..Counts::default() };
    assert_eq!(committed.counts, counts);
    assert_eq!(lake.rows().await.into_keys().collect::<Vec<_>>(), ["a", "b", "k"]);
    // Another export, which has neither of them.
    let changes = lake.change_set(&[vec![line("a", 1, "")]], 8);
    let committed = lake.table().await.upsert(&changes, &Upsert { exported_at: Some(time(8)), ..again }).await.unwrap();
    let left = (committed.counts.removed, lake.rows().await.len());
    assert_eq!(left, (0, 3), "b and k were brought after their deletion");
}

/// (rule 98)
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_removed_as_deleted_before_do_not_make_the_others_few() {
    let lake = Lake::new();
    let ids = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    lake.upsert(&[ids.iter().map(|id| line(id, 1, "")).collect()], 5).await;
    let mut deleted = TombstoneTable::open(&lake.root).await.unwrap();
    let untimed = |id: &&str| NewTombstone { id: (*id).to_owned(), deleted_at_micros: None };
    let untimed: Vec<_> = ids[..8].iter().map(untimed).collect();
    deleted.append(lake.table().await.name, &untimed, &upsert(6)).await.unwrap();
    let reload = Upsert { extent: Extent::Whole { removes_returned: true }, ..full_refresh(7, 30.0) };
    let changes = lake.change_set(&[vec![line("new", 1, "")]], 7);
    let counts = lake.table().await.upsert(&changes, &reload).await.unwrap().counts;
    assert_eq!(counts, Counts { inserted: 1, removed: 8, missing: 2, ..Counts::default() });
    assert_eq!(lake.rows().await.into_keys().collect::<Vec<_>>(), ["i", "j", "new"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_with_a_gap_that_has_nothing_counts_all_rows_as_missing() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, "")]], 5).await;
    let refresh = Upsert { extent: Extent::WithGap, reconcile: Some(Reconcile::NONE), ..full_refresh(6, 0.0) };
    let committed = lake.table().await.upsert(&lake.change_set(&[], 6), &refresh).await.unwrap();
    assert_eq!(committed.counts, Counts { missing: 2, ..Counts::default() });
}

/// The line of a resource that was created again may be the one in quarantine.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_wins_over_a_newer_row_in_a_full_refresh_without_a_gap_only() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 50, ""), line("b", 50, ""), line("c", 1, "")]], micros(5)).await;
    for (id, second, extent, counts) in [
        ("a", 6, Extent::WithGap, Counts { stale: 1, unchanged: 1, ..Counts::default() }),
        ("b", 7, WHOLE, Counts { deleted: 1, unchanged: 1, overruled: 1, ..Counts::default() }),
    ] {
        let changes = lake.change_set(&[vec![deletion(id, Some(&at(2))), line("c", 1, "")]], micros(second));
        let refresh = Upsert { extent, reconcile: Some(Reconcile::NONE), ..full_refresh(micros(second), 0.0) };
        let found = lake.table().await.upsert(&changes, &refresh).await.unwrap().counts;
        assert_eq!(Counts { missing: 0, ..found }, counts, "{id}");
    }
}
