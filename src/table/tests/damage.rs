//! Files that a power failure has emptied or lost: the upsert says so, and a full refresh brings the rows again.

use std::fs;

use super::*;

async fn lake() -> Lake {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, "")]], 5).await;
    lake.upsert(&[vec![line("c", 1, "")]], 6).await;
    lake
}

/// Does this to the files of the last commit with this ending.
fn damage(lake: &Lake, ending: &str, change: impl Fn(&std::path::Path)) {
    let table = lake.table_folder();
    let of_type = fs::read_dir(&table).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = of_type.filter(|path| path.to_str().unwrap().ends_with(ending)).collect();
    files.sort_by_key(|path| fs::metadata(path).unwrap().modified().unwrap());
    change(files.last().unwrap());
}

async fn assert_named_and_healed(lake: &Lake, named: &str) {
    let changes = lake.change_set(&[vec![line("c", 2, "new"), line("a", 2, "new")]], 7);
    let error = lake.table().await.upsert(&changes, &upsert(7)).await.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
    let error = error.to_string();
    assert!(error.contains(named) && error.contains("--full-refresh") && error.contains("Patient.parquet"), "{error}");
    let changes = lake.change_set(&[vec![line("a", 1, ""), line("b", 1, ""), line("c", 1, "")]], 8);
    lake.table().await.upsert(&changes, &full_refresh(8, 100.0)).await.unwrap();
    assert_eq!(lake.rows().await.into_keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(lake.upsert(&[vec![line("c", 2, "new")]], 9).await.counts.updated, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_data_file_is_named_and_a_full_refresh_brings_its_rows_again() {
    let lake = lake().await;
    damage(&lake, ".parquet", |path| fs::write(path, "").unwrap());
    assert_named_and_healed(&lake, "is empty").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_data_file_is_named_and_a_full_refresh_brings_its_rows_again() {
    let lake = lake().await;
    damage(&lake, ".parquet", |path| fs::remove_file(path).unwrap());
    assert_named_and_healed(&lake, "is missing").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_file_of_zeros_is_named_and_a_full_refresh_brings_its_rows_again() {
    let lake = lake().await;
    damage(&lake, ".parquet", |path| fs::write(path, vec![0; fs::read(path).unwrap().len()]).unwrap());
    assert_named_and_healed(&lake, "is not a readable").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_deletion_vector_is_named_and_a_full_refresh_brings_its_rows_again() {
    let lake = Lake::new();
    let many: Vec<_> = (1..=9).map(|number| line(&format!("x{number}"), 1, "")).collect();
    let all = [many.clone(), vec![line("a", 1, ""), line("b", 1, ""), line("c", 1, "")]].concat();
    lake.upsert(&[all], 5).await;
    let gone = many.iter().map(|_| ()).zip(1..=2).map(|((), number)| deletion(&format!("x{number}"), None)).collect();
    lake.upsert(&[gone], 6).await;
    damage(&lake, ".bin", |path| fs::remove_file(path).unwrap());
    let changes = lake.change_set(&[vec![line("a", 2, "")]], 7);
    let error = lake.table().await.upsert(&changes, &upsert(7)).await.unwrap_err().to_string();
    assert!(error.contains("has lost its deletion vector"), "{error}");
    let changes = lake.change_set(&[vec![line("a", 1, ""), line("b", 1, "")]], 8);
    // Also by one with a gap, such as a line that stays in quarantine for ever.
    let refresh = Upsert { extent: Extent::WithGap, reconcile: Some(Reconcile::NONE), ..full_refresh(8, 100.0) };
    assert_eq!(lake.table().await.upsert(&changes, &refresh).await.unwrap().damaged, 1);
    assert_eq!(lake.rows().await.into_keys().collect::<Vec<_>>(), ["a", "b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_lost_its_files_is_named_and_a_full_refresh_brings_their_rows_again() {
    let lake = lake().await;
    let commit = lake.table_folder().join("_delta_log/00000000000000000002.json");
    let text = fs::read_to_string(&commit).unwrap();
    let kept: Vec<_> = text.lines().filter(|line| !line.contains(r#"{"add":"#)).collect();
    assert_eq!(kept.len(), text.lines().count() - 1);
    fs::write(commit, kept.join("\n")).unwrap();
    assert_named_and_healed(&lake, "version 2 of its log").await;
}

/// Leaves only checksum files of the log.
fn lose(log: &std::path::Path) {
    for file in fs::read_dir(log).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    fs::write(log.join("00000000000000000001.crc"), "{}").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_which_only_checksums_are_left_is_named_and_no_table_is_created_on_top_of_it() {
    let lake = lake().await;
    let log = lake.table_folder().join("_delta_log");
    lose(&log);
    let opened = lake.root.open(patient()).await.map(|_| ()).unwrap_err();
    let created = lake.root.open_or_create(patient(), &definition_of(&lake.shape())).await.map(|_| ()).unwrap_err();
    for error in [opened, created] {
        assert!(matches!(error, Error::LogLost { .. }), "{error:?}");
        let error = error.to_string();
        assert!(
            error.contains("Patient.parquet is lost: 00000000000000000001.crc") && error.contains("or move"),
            "{error}"
        );
    }
    assert_eq!(fs::read_dir(log).unwrap().count(), 1);
}

/// The daemon that created the table has seen its folder without a log.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_is_lost_later_is_missed_by_the_process_that_created_the_table_too() {
    let lake = Lake::new();
    fs::create_dir_all(lake.table_folder().join("_delta_log")).unwrap();
    assert!(lake.root.open(patient()).await.unwrap().is_none());
    lake.upsert(&[vec![line("a", 1, "")]], 5).await;
    lose(&lake.table_folder().join("_delta_log"));
    let error = lake.root.open(patient()).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, Error::LogLost { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_creation_leaves_of_a_log_is_no_table_and_no_error() {
    let lake = Lake::new();
    let log = lake.table_folder().join("_delta_log");
    fs::create_dir_all(&log).unwrap();
    assert!(lake.root.open(patient()).await.unwrap().is_none());
    fs::write(log.join("_commit_2b0e.json.tmp"), "{}").unwrap();
    assert!(lake.root.open(patient()).await.unwrap().is_none());
    lake.upsert(&[vec![line("a", 1, "")]], 5).await;
    assert_eq!(lake.rows().await.len(), 1);
}
