//! Commits whose answer is lost: what landed counts once, what did not land is an error, and the next run continues.

use futures::StreamExt as _;

use super::{
    maintain::{in_days, maintenance},
    unreliable::{Fault, unreliable, unreliable_root},
    *,
};
use crate::table::{DryRun, Maintained, MaintenanceStep, tombstones::TombstoneTable};

async fn lake() -> Lake {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, ""), line("c", 1, "")]], 5).await;
    lake
}

fn received() -> Vec<Change> {
    vec![line("a", 2, "new"), line("d", 1, "new"), deletion("c", Some("2026-01-01T00:00:30Z"))]
}

const COUNTS: Counts = Counts {
    inserted: 1,
    updated: 1,
    deleted: 1,
    unchanged: 0,
    stale: 0,
    duplicate: 0,
    removed: 0,
    missing: 0,
    conflicts: 0,
    overruled: 0,
};

async fn assert_applied(lake: &Lake) {
    let rows = lake.rows().await;
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["a", "b", "d"]);
    assert!(rows["a"].contains("new"));
}

/// (rule 137)
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_landed_although_its_answer_was_lost_counts_once() {
    for fault in [Fault::AnswerLost, Fault::AnswerLostAndAskedAgain] {
        for watermark in [NewWatermark::Raised(time(6)), NewWatermark::Stays] {
            let lake = lake().await;
            let table = unreliable(&lake, std::slice::from_ref(&fault)).await;
            let changes = lake.change_set(&[received()], 6);
            let committed = table.upsert(&changes, &Upsert { watermark, ..upsert(6) }).await.unwrap();
            assert_eq!((committed.version, committed.counts), (2, COUNTS), "{fault:?} {watermark:?}");
            assert_eq!(lake.root.open(patient()).await.unwrap().unwrap().version(), 2);
            assert_eq!(lake.watermark().await, Some(watermark.time().unwrap_or(time(5))));
            assert_applied(&lake).await;
            let again = lake.upsert(&[received()], 6).await;
            assert_eq!((again.counts.unchanged, again.bytes_written), (3, 0));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_commit_is_an_error_and_the_next_upsert_succeeds() {
    for watermark in [NewWatermark::Raised(time(6)), NewWatermark::Stays] {
        let lake = lake().await;
        let before = lake.rows().await;
        let table = unreliable(&lake, &[Fault::Refused]).await;
        let changes = lake.change_set(&[received()], 6);
        let error = table.upsert(&changes, &Upsert { watermark, ..upsert(6) }).await.unwrap_err();
        assert!(matches!(error, Error::Delta { .. }), "{error:?}");
        assert_eq!(lake.rows().await, before);
        assert_eq!(lake.watermark().await, Some(time(5)));
        let next = lake.table().await.upsert(&changes, &Upsert { watermark, ..upsert(6) }).await.unwrap();
        assert_eq!((next.version, next.counts), (2, COUNTS), "the same change set can be asked again");
        assert_applied(&lake).await;
    }
}

/// (rule 137)
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_to_a_commit_that_only_moves_the_watermark_counts_once() {
    let lake = lake().await;
    let table = unreliable(&lake, &[Fault::AnswerLost]).await;
    let committed = table.upsert(&lake.change_set(&[], 6), &upsert(6)).await.unwrap();
    assert_eq!((committed.version, lake.watermark().await), (2, Some(time(6))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_load_keeps_its_files_when_its_answer_is_lost_or_its_commit_refused() {
    for faults in [[Fault::AnswerLost], [Fault::Refused]] {
        let lake = Lake::new();
        let table = unreliable(&lake, &faults).await;
        let file = vec![line("a", 1, "old"), line("b", 1, ""), line("a", 2, "new")];
        let changes = lake.first_load(&table, &[file], 5);
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

#[tokio::test(flavor = "multi_thread")]
async fn a_first_load_without_a_file_that_could_not_be_finished_is_refused() {
    let lake = Lake::new();
    let (table, folder) = (lake.table().await, lake.table_folder());
    let changes = lake.first_load(&table, &[vec![line("a", 1, "")]], 5);
    let elsewhere = folder.with_extension("elsewhere");
    std::fs::rename(&folder, &elsewhere).unwrap();
    std::fs::write(&folder, "not a folder").unwrap();
    tokio::task::block_in_place(|| changes.flush()).unwrap_err();
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&elsewhere, &folder).unwrap();
    table.upsert(&changes, &upsert(5)).await.unwrap_err();
    assert_eq!(lake.table().await.version(), 0);
}

/// A commit of another writer that touches no row.
pub(super) const VACUUM: &str =
    r#"{"commitInfo":{"timestamp":1700000000000,"operation":"VACUUM START","operationParameters":{}}}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_does_not_count_as_success_if_the_version_is_another_writers() {
    let lake = lake().await;
    let table = unreliable(&lake, &[Fault::OvertakenAndAnswerLost(VACUUM.to_owned())]).await;
    let committed = table.upsert(&lake.change_set(&[received()], 6), &upsert(6)).await.unwrap();
    assert_eq!((committed.version, committed.counts), (3, COUNTS));
    assert_applied(&lake).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_always_faster_causes_an_error_and_no_lost_row() {
    let lake = lake().await;
    let before = lake.rows().await;
    let table = unreliable(&lake, &vec![Fault::Overtaken(VACUUM.to_owned()); 9]).await;
    let error = table.upsert(&lake.change_set(&[received()], 6), &upsert(6)).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { attempts: 5, .. }), "{error:?}");
    assert_eq!(lake.rows().await, before);
    lake.upsert(&[received()], 6).await;
    assert_applied(&lake).await;
}

const LANDED: [Fault; 2] = [Fault::AnswerLost, Fault::AnswerLostAndAskedAgain];
const DELETED: &str = "_fhir_sync/deleted";

/// The commits of a table; no two of them may add the same data file.
fn commits(lake: &Lake, table: &str) -> Vec<String> {
    let log = lake.folder.path().join("lake").join(table).join("_delta_log");
    let mut paths: Vec<_> = std::fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    let commits: Vec<_> = paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let mut added = std::collections::BTreeSet::new();
    for line in commits.iter().flat_map(|commit| commit.lines()) {
        let action: serde_json::Value = serde_json::from_str(line).unwrap();
        if let (Some(path), None) = (action["add"]["path"].as_str(), action["add"]["deletionVector"].as_object()) {
            assert!(added.insert(path.to_owned()), "{table} has {path} twice");
        }
    }
    commits
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_created_once_although_the_answer_was_lost() {
    for fault in LANDED {
        let lake = Lake::new();
        let root = unreliable_root(&lake, "Patient.parquet", std::slice::from_ref(&fault), |config| config);
        let table = root.open_or_create(patient(), &definition_of(&shape())).await.unwrap();
        assert_eq!(commits(&lake, "Patient.parquet").len(), 1, "{fault:?}");
        table.upsert(&lake.change_set(&[vec![line("a", 1, "")]], 5), &upsert(5)).await.unwrap();
        assert_eq!((lake.rows().await.len(), commits(&lake, "Patient.parquet").len()), (1, 2), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_created_concurrently_with_the_same_columns_stays_as_it_is() {
    let other = Lake::new();
    other.table().await;
    let made = commits(&other, "Patient.parquet");
    for fault in [Fault::Overtaken(made[0].clone()), Fault::OvertakenAndAnswerLost(made[0].clone())] {
        let lake = Lake::new();
        let root = unreliable_root(&lake, "Patient.parquet", std::slice::from_ref(&fault), |config| config);
        let table = root.open_or_create(patient(), &definition_of(&shape())).await.unwrap();
        assert_eq!((table.version(), &commits(&lake, "Patient.parquet")), (0, &made), "{fault:?}");
        table.upsert(&lake.change_set(&[vec![line("a", 1, "")]], 5), &upsert(5)).await.unwrap();
        assert_eq!(lake.rows().await.len(), 1, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_created_concurrently_with_fewer_columns_is_evolved() {
    let other = Lake::new();
    other.root_with(UpdateMode::CopyOnWrite).open_or_create(patient(), &definition_of(&shape())).await.unwrap();
    let fault = Fault::Overtaken(commits(&other, "Patient.parquet")[0].clone());
    let lake = Lake::new();
    let root = unreliable_root(&lake, "Patient.parquet", &[fault], |config| config);
    let table = root.open_or_create(patient(), &definition_of(&shape())).await.unwrap();
    assert!(table.version() == 1 && table.has_feature("deletionVectors").unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_could_not_be_created_is_an_error_and_is_created_the_next_time() {
    let lake = Lake::new();
    let root = unreliable_root(&lake, "Patient.parquet", &[Fault::Refused], |config| config);
    let error = root.open_or_create(patient(), &definition_of(&shape())).await.err();
    assert!(matches!(error, Some(Error::Delta { .. })), "{error:?}");
    assert_eq!(root.open_or_create(patient(), &definition_of(&shape())).await.unwrap().version(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_evolves_once_although_the_answer_was_lost() {
    for fault in LANDED {
        let lake = lake().await;
        let root = unreliable_root(&lake, "Patient.parquet", std::slice::from_ref(&fault), |config| Config {
            change_data_feed: true,
            ..config
        });
        let table = root.open_or_create(patient(), &definition_of(&shape())).await.unwrap();
        assert_eq!((table.version(), commits(&lake, "Patient.parquet").len()), (2, 3), "{fault:?}");
        table.upsert(&lake.change_set(&[received()], 6), &upsert(6)).await.unwrap();
        assert_applied(&lake).await;
    }
}

/// How many tombstones the lake has of each id.
async fn tombstones(lake: &Lake) -> BTreeMap<String, usize> {
    let table = TombstoneTable::open(&lake.root).await.unwrap().table.unwrap();
    let mut tombstones = BTreeMap::new();
    for stored in table.stored_files().await.unwrap() {
        let batches: Vec<_> = table.rows(&stored).await.unwrap().map(Result::unwrap).collect().await;
        for batch in batches {
            let ids =
                arrow::compute::cast(batch.column_by_name("id").unwrap(), &arrow::datatypes::DataType::Utf8).unwrap();
            for id in arrow::array::AsArray::as_string::<i32>(&ids).iter().flatten() {
                *tombstones.entry(id.to_owned()).or_default() += 1;
            }
        }
    }
    tombstones
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_is_written_once_although_the_answer_was_lost() {
    for fault in LANDED {
        // The lost answers are those to the commit that creates the table and to the commit of the tombstone.
        for faults in [vec![fault.clone()], vec![Fault::None, fault.clone()], vec![fault.clone(), fault.clone()]] {
            let lake = lake().await;
            let root = unreliable_root(&lake, DELETED, &faults, |config| config);
            let table = root.open(patient()).await.unwrap().unwrap();
            let committed = table.upsert(&lake.change_set(&[received()], 6), &upsert(6)).await.unwrap();
            assert_eq!(committed.counts, COUNTS, "{faults:?}");
            assert_applied(&lake).await;
            assert_eq!(tombstones(&lake).await, BTreeMap::from([("c".to_owned(), 1)]), "{faults:?}");
            assert_eq!(commits(&lake, DELETED).len(), 2, "{faults:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_is_written_although_another_writer_commits_first() {
    for fault in [Fault::Overtaken(VACUUM.to_owned()), Fault::OvertakenAndAnswerLost(VACUUM.to_owned())] {
        let lake = lake().await;
        let root = unreliable_root(&lake, DELETED, &[Fault::None, fault.clone()], |config| config);
        let table = root.open(patient()).await.unwrap().unwrap();
        table.upsert(&lake.change_set(&[received()], 6), &upsert(6)).await.unwrap();
        assert_applied(&lake).await;
        assert_eq!(tombstones(&lake).await, BTreeMap::from([("c".to_owned(), 1)]), "{fault:?}");
        assert_eq!(commits(&lake, DELETED).len(), 3, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_that_cannot_be_written_stops_the_commit_until_the_next_time() {
    let lake = lake().await;
    let before = lake.rows().await;
    let root = unreliable_root(&lake, DELETED, &[Fault::None, Fault::Refused], |config| config);
    let changes = lake.change_set(&[received()], 6);
    let table = root.open(patient()).await.unwrap().unwrap();
    let error = table.upsert(&changes, &upsert(6)).await.unwrap_err();
    assert!(matches!(error, Error::Delta { .. }), "{error:?}");
    assert_eq!((lake.rows().await, lake.watermark().await), (before, Some(time(5))));
    lake.table().await.upsert(&changes, &upsert(6)).await.unwrap();
    assert_applied(&lake).await;
    assert_eq!(tombstones(&lake).await, BTreeMap::from([("c".to_owned(), 1)]));
}

/// A lake with three small files, one of them with a deleted row.
async fn to_be_maintained() -> Lake {
    let lake = lake().await;
    lake.upsert(&[received()], 6).await;
    lake.upsert(&[vec![line("e", 1, "")]], 7).await;
    lake
}

async fn maintain(lake: &Lake, faults: &[Fault]) -> Result<Maintained, Error> {
    let root = unreliable_root(lake, "Patient.parquet", faults, |config| config);
    let all = maintenance(&MaintenanceStep::ALL);
    root.maintain(patient(), &all, DryRun::No, in_days(0), &|| true).await.map(Option::unwrap)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compaction_whose_answer_was_lost_counts_once_and_keeps_its_file() {
    for fault in LANDED {
        let lake = to_be_maintained().await;
        let before = lake.rows().await;
        let done = maintain(&lake, std::slice::from_ref(&fault)).await.unwrap();
        assert_eq!((done.rewritten.files, done.written.files), (3, 1), "{fault:?}");
        assert_eq!((lake.rows().await, lake.watermark().await), (before, Some(time(7))), "{fault:?}");
        assert_eq!(commits(&lake, "Patient.parquet").len(), 5, "{fault:?}");
        assert_eq!(lake.maintain(&MaintenanceStep::ALL, in_days(0)).await, Maintained::default(), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_or_overtaken_compaction_is_an_error_and_is_done_the_next_time() {
    for fault in [Fault::Refused, Fault::Overtaken(VACUUM.to_owned())] {
        let lake = to_be_maintained().await;
        let before = lake.rows().await;
        let error = maintain(&lake, std::slice::from_ref(&fault)).await.unwrap_err();
        let expected = matches!((&fault, &error), (Fault::Refused, Error::Delta { .. }) | (_, Error::Conflict { .. }));
        assert!(expected, "{fault:?} {error:?}");
        assert_eq!(lake.rows().await, before, "{fault:?}");
        assert_eq!(maintain(&lake, &[]).await.unwrap().written.files, 1, "{fault:?}");
        assert_eq!((lake.rows().await, lake.watermark().await), (before, Some(time(7))), "{fault:?}");
    }
}
