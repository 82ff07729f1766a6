//! What maintenance does to a real table, and what it never does.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
#[cfg(feature = "sql")]
use futures::StreamExt as _;

use super::*;
#[cfg(feature = "sql")]
use crate::table::data_file::fill;
use crate::table::{DryRun, Error, Maintained, MaintenanceOptions, MaintenanceStep, Retention};

const DAY: Duration = Duration::from_hours(24);

/// The exports of these tests are much older than the files, so the local clock is never trusted without force.
pub(super) fn maintenance(steps: &[MaintenanceStep]) -> MaintenanceOptions {
    MaintenanceOptions {
        steps: steps.iter().copied().collect(),
        target_file_bytes: 128 << 20,
        purge_percent: 10.0,
        vacuum_retention: Retention::Forced(7 * DAY),
        log_retention: 30 * DAY,
        quarantine_retention: 90 * DAY,
    }
}

#[expect(clippy::disallowed_methods, reason = "files have just been written by the same clock")]
pub(super) fn in_days(days: i64) -> DateTime<Utc> {
    Utc::now() + TimeDelta::days(days)
}

impl Lake {
    /// This many upserts, each with a file of its own with one patient.
    async fn small_files(&self, count: u32) {
        for number in 1..=count {
            self.upsert(&[vec![line(&format!("p{number}"), 1, "")]], i64::from(number)).await;
        }
    }

    pub(super) async fn maintain(&self, steps: &[MaintenanceStep], now: DateTime<Utc>) -> Maintained {
        self.try_maintain(&maintenance(steps), DryRun::No, now).await.unwrap()
    }

    async fn try_maintain(
        &self,
        maintenance: &MaintenanceOptions,
        dry_run: DryRun,
        now: DateTime<Utc>,
    ) -> Result<Maintained, Error> {
        Ok(self.root.maintain(patient(), maintenance, dry_run, now, &|| true).await?.unwrap())
    }

    /// Everything below the table's folder, by its path.
    fn files_on_disk(&self) -> BTreeSet<String> {
        let names = |folder: PathBuf| {
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        };
        let mut files: BTreeSet<String> = names(self.table_folder());
        let log: BTreeSet<String> = names(self.table_folder().join("_delta_log"));
        files.extend(log.into_iter().map(|name| format!("_delta_log/{name}")));
        files
    }

    fn data_files_on_disk(&self) -> usize {
        self.files_on_disk().iter().filter(|name| name.ends_with(".parquet") && !name.starts_with('_')).count()
    }

    async fn active_files(&self) -> usize {
        self.root.open(patient()).await.unwrap().unwrap().files().await.unwrap().len()
    }

    async fn dead_rows(&self) -> u64 {
        let files = self.root.open(patient()).await.unwrap().unwrap().stored_files().await.unwrap();
        files.iter().map(|file| file.dead.len()).sum()
    }

    async fn version(&self) -> u64 {
        self.root.open(patient()).await.unwrap().unwrap().version()
    }

    fn age(&self, name: &str, days: u32) {
        let file = fs::File::options().write(true).open(self.table_folder().join(name)).unwrap();
        file.set_modified(std::time::SystemTime::now() - DAY * days).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_compacts_small_files_and_changes_no_row_and_no_watermark() {
    let lake = Lake::new();
    lake.small_files(12).await;
    let before = lake.rows().await;
    let done = lake.maintain(&MaintenanceStep::ALL, in_days(0)).await;
    assert_eq!((done.rewritten.files, done.written.files, done.left), (12, 1, 0));
    assert_eq!(done.checkpoint, Some(lake.version().await));
    assert_eq!(lake.rows().await, before);
    assert_eq!(lake.active_files().await, 1);
    assert_eq!(lake.watermark().await, Some(time(12)));
    let version = lake.version().await;
    assert_eq!(
        lake.maintain(&MaintenanceStep::ALL, in_days(0)).await,
        Maintained::default(),
        "the second one has nothing to do"
    );
    assert_eq!(lake.version().await, version);
    let again = lake.upsert(&[vec![line("p1", 1, ""), line("p2", 2, "new")]], 13).await;
    assert_eq!(again.counts, Counts { unchanged: 1, updated: 1, ..Counts::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_file_has_all_columns_of_its_inputs_in_order() {
    let lake = Lake::new();
    let line = |id: &str, member: &str| {
        Change::Line(format!(r#"{{"resourceType":"Patient","id":"{id}","meta":{{"versionId":"1"}},{member}}}"#))
    };
    lake.upsert(&[vec![line("b", r#""gender":"female""#)]], 1).await;
    lake.upsert(&[vec![line("a", r#""birthDate":"1970-01-01""#)]], 2).await;
    lake.maintain(&[MaintenanceStep::Compact], in_days(0)).await;
    assert_eq!(lake.active_files().await, 1);
    let rows = read_back::read(&lake.table_folder(), &["id", "gender", "birthDate", "active"]).unwrap();
    let drawn = arrow::util::pretty::pretty_format_batches(&[rows]).unwrap().to_string();
    let rows: Vec<String> = drawn.lines().skip(3).map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(rows[..2], ["|b|female|||", "|a||1970-01-01||"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_that_a_compaction_changes_no_data() {
    let lake = Lake::new();
    lake.small_files(2).await;
    lake.maintain(&[MaintenanceStep::Compact], in_days(0)).await;
    let commit = lake.table_folder().join(format!("_delta_log/{:020}.json", lake.version().await));
    let commit = fs::read_to_string(commit).unwrap();
    let actions: Vec<serde_json::Value> = commit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let info = actions.iter().find_map(|action| action.get("commitInfo")).unwrap();
    assert_eq!((&info["operation"], &info["readVersion"]), (&"OPTIMIZE".into(), &2.into()), "{info}");
    assert_eq!(info["operationMetrics"]["numRemovedFiles"], "2", "{info}");
    assert_eq!(info["operationMetrics"]["numAddedFiles"], "1", "{info}");
    for action in actions.iter().filter_map(|action| action.get("add").or(action.get("remove"))) {
        assert_eq!(action["dataChange"], false, "{action}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_reports_what_would_be_done_and_changes_nothing() {
    let lake = Lake::new();
    lake.small_files(12).await;
    fs::write(lake.table_folder().join("part-orphan.parquet"), "orphan").unwrap();
    lake.age("part-orphan.parquet", 9);
    let before = lake.files_on_disk();
    let done = lake.try_maintain(&maintenance(&MaintenanceStep::ALL), DryRun::Yes, in_days(0)).await.unwrap();
    assert_eq!((done.rewritten.files, done.written.files, done.checkpoint), (12, 0, Some(12)));
    assert_eq!((done.vacuumed.files, done.vacuumed.bytes), (1, 6));
    assert_eq!(lake.files_on_disk(), before);
    assert_eq!(lake.version().await, 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn vacuum_deletes_files_that_no_version_within_the_retention_needs() {
    let lake = Lake::new();
    lake.small_files(3).await;
    let old: Vec<_> = lake.files_on_disk().into_iter().filter(|name| name.ends_with(".parquet")).collect();
    for name in ["README.md", "part-orphan.parquet", "part-killed.parquet#1"] {
        fs::write(lake.table_folder().join(name), "x").unwrap();
    }
    fs::write(lake.table_folder().join("part-to-be-committed.parquet"), "x").unwrap();
    // Written long ago, and removed by a recent commit.
    for name in old.iter().map(String::as_str).chain(["README.md", "part-orphan.parquet", "part-killed.parquet#1"]) {
        lake.age(name, 60);
    }
    lake.maintain(&[MaintenanceStep::Compact], in_days(0)).await;
    let done = lake.maintain(&[MaintenanceStep::Vacuum], in_days(0)).await;
    assert_eq!(done.vacuumed.files, 2, "the orphan and what a killed process left");
    assert!(old.iter().all(|name| lake.files_on_disk().contains(name)), "readers of the version before need them");
    let done = lake.maintain(&[MaintenanceStep::Vacuum], in_days(8)).await;
    assert_eq!(done.vacuumed.files, 4, "the old files, and what nobody committed in a week");
    assert_eq!(lake.data_files_on_disk(), 1);
    assert!(lake.files_on_disk().contains("README.md"));
    assert_eq!(lake.rows().await.len(), 3);
    assert_eq!(lake.maintain(&[MaintenanceStep::Vacuum], in_days(8)).await, Maintained::default());
}

/// A file with twenty patients, of whom three have changed since.
async fn three_dead_of_twenty(lake: &Lake) {
    let versions = |count, version| (1..=count).map(|number| line(&format!("p{number}"), version, "")).collect();
    lake.upsert(&[versions(20, 1)], 1).await;
    lake.upsert(&[versions(3, 2)], 2).await;
    assert_eq!(lake.dead_rows().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_rows_are_purged_from_the_configured_share_on() {
    let lake = Lake::new();
    three_dead_of_twenty(&lake).await;
    let before = lake.rows().await;
    let stricter = MaintenanceOptions { purge_percent: 16.0, ..maintenance(&[MaintenanceStep::Purge]) };
    assert_eq!(lake.try_maintain(&stricter, DryRun::No, in_days(0)).await.unwrap(), Maintained::default());
    let done = lake.maintain(&[MaintenanceStep::Purge], in_days(0)).await;
    assert_eq!((done.rewritten.files, done.written.files, done.purged_rows), (1, 1, 3));
    assert_eq!((lake.dead_rows().await, lake.active_files().await), (0, 2));
    assert_eq!(lake.rows().await, before);
    let again = lake.upsert(&[vec![line("p1", 1, ""), line("p2", 2, ""), line("p20", 1, "")]], 3).await;
    assert_eq!(again.counts, Counts { unchanged: 2, stale: 1, ..Counts::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compacted_file_has_no_deleted_rows_however_few_there_were() {
    let lake = Lake::new();
    three_dead_of_twenty(&lake).await;
    let before = lake.rows().await;
    let done = lake.maintain(&[MaintenanceStep::Compact], in_days(0)).await;
    assert_eq!((done.rewritten.files, done.written.files, done.purged_rows), (2, 1, 3));
    assert_eq!(lake.dead_rows().await, 0);
    assert_eq!(lake.rows().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn vacuum_keeps_a_replaced_deletion_vector_as_long_as_its_version() {
    let lake = Lake::new();
    three_dead_of_twenty(&lake).await;
    let vectors =
        || lake.files_on_disk().into_iter().filter(|name| name.starts_with("deletion_vector_")).collect::<Vec<_>>();
    let [vector] = &vectors()[..] else { panic!("{:?}", lake.files_on_disk()) };
    lake.age(vector, 60);
    assert_eq!(lake.maintain(&[MaintenanceStep::Vacuum], in_days(0)).await, Maintained::default(), "it is active");
    lake.maintain(&[MaintenanceStep::Purge], in_days(0)).await;
    lake.maintain(&[MaintenanceStep::Vacuum], in_days(0)).await;
    assert_eq!(vectors().len(), 1, "readers of the version before need it");
    assert_eq!(lake.maintain(&[MaintenanceStep::Vacuum], in_days(8)).await.vacuumed.files, 2);
    assert!(vectors().is_empty());
    assert_eq!(lake.rows().await.len(), 20);
}

#[cfg(feature = "sql")]
#[tokio::test(flavor = "multi_thread")]
async fn data_files_of_other_writers_are_not_rewritten() {
    let lake = Lake::new();
    lake.small_files(3).await;
    let table = lake.root.open(patient()).await.unwrap().unwrap();
    let stored = table.stored_files().await.unwrap();
    let rows: Vec<_> = table.rows(&stored[0]).await.unwrap().map(Result::unwrap).collect().await;
    let columns = table.columns().unwrap();
    let rows = rows.iter().map(|rows| fill::fit(rows, &columns).unwrap()).collect::<Vec<_>>();
    table.delta.clone().write(rows).await.unwrap();
    let done = lake.maintain(&[MaintenanceStep::Compact], in_days(0)).await;
    assert_eq!((done.rewritten.files, done.written.files), (3, 1));
    assert_eq!(lake.active_files().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retention_shorter_than_the_tables_is_refused_unless_forced_and_refuses_the_vacuum_only() {
    let lake = Lake::new();
    lake.small_files(12).await;
    let short = |vacuum_retention| MaintenanceOptions { vacuum_retention, ..maintenance(&MaintenanceStep::ALL) };
    let error = lake.try_maintain(&short(Retention::Checked(DAY)), DryRun::No, in_days(0)).await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains("7days") && message.contains("1day") && message.contains("vacuum_retention"), "{message}");
    let before = lake.files_on_disk();
    assert_eq!(before.iter().filter(|file| file.contains(".checkpoint")).count(), 1, "{before:?}");
    assert_eq!((lake.active_files().await, lake.data_files_on_disk()), (1, 13), "compacted, and nothing was deleted");
    let done = lake.try_maintain(&short(Retention::Forced(Duration::ZERO)), DryRun::No, in_days(1)).await.unwrap();
    assert_eq!((done.rewritten.files, done.vacuumed.files), (0, 12));
    assert_eq!(lake.rows().await.len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cleaned_log_keeps_the_commit_of_its_checkpoint_and_the_watermark() {
    let lake = Lake::new();
    lake.small_files(12).await;
    let checkpoint = lake.maintain(&MaintenanceStep::ALL, in_days(0)).await.checkpoint.unwrap();
    lake.upsert(&[vec![line("late", 1, "")]], 20).await;
    let done = lake.maintain(&[MaintenanceStep::CleanLog], in_days(29)).await;
    assert_eq!(done.log_deleted.files, 0);
    let done = lake.maintain(&[MaintenanceStep::CleanLog, MaintenanceStep::Vacuum], in_days(31)).await;
    assert_eq!(done.log_deleted.files, checkpoint, "every commit before the checkpoint");
    assert_eq!(done.vacuumed.files, 12);
    let log = lake.files_on_disk();
    assert!(log.contains(&format!("_delta_log/{checkpoint:020}.json")), "{log:?}");
    assert!(!log.contains(&format!("_delta_log/{:020}.json", checkpoint - 1)), "{log:?}");
    assert_eq!(lake.rows().await.len(), 13);
    assert_eq!(lake.watermark().await, Some(time(20)));
    let other = lake.root.open(patient()).await.unwrap().unwrap().watermark("fhir-sync/other").await.unwrap();
    assert_eq!(other, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watermark_that_only_a_checkpoint_holds_is_still_read() {
    let lake = Lake::new();
    lake.small_files(12).await;
    lake.maintain(&MaintenanceStep::ALL, in_days(0)).await;
    lake.maintain(&[MaintenanceStep::CleanLog], in_days(31)).await;
    assert_eq!(lake.watermark().await, Some(time(12)));
    assert_eq!(lake.upsert(&[vec![line("p1", 1, "")]], 11).await.counts.unchanged, 1);
    assert_eq!(lake.watermark().await, Some(time(12)), "and never goes backwards");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_commits_between_listing_and_commit_wins_and_no_row_is_lost() {
    let lake = Lake::new();
    lake.small_files(3).await;
    let overtake = || {
        let upsert = || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(lake.upsert(&[vec![line("p1", 2, "newer"), line("p4", 1, "")]], 9))
        };
        std::thread::scope(|scope| scope.spawn(upsert).join().unwrap());
        true
    };
    let all = maintenance(&MaintenanceStep::ALL);
    let error = lake.root.maintain(patient(), &all, DryRun::No, in_days(0), &overtake).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    let rows = lake.rows().await;
    assert_eq!(rows.len(), 4);
    assert!(rows["p1"].contains("newer"));
    lake.maintain(&MaintenanceStep::ALL, in_days(0)).await;
    assert_eq!(lake.rows().await, rows);
    assert_eq!((lake.active_files().await, lake.watermark().await), (1, Some(time(9))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_maintenance_leaves_the_rest_for_the_next_time() {
    let lake = Lake::new();
    lake.small_files(3).await;
    let all = maintenance(&MaintenanceStep::ALL);
    let done = lake.root.maintain(patient(), &all, DryRun::No, in_days(0), &|| false).await.unwrap().unwrap();
    assert_eq!((done.left, done.rewritten.files), (1, 0));
    assert_eq!(lake.active_files().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_other_writers_are_not_maintained() {
    let lake = Lake::new();
    let others = Schema::new(vec![arrow::datatypes::Field::new("id", arrow::datatypes::DataType::Utf8, true)]);
    let foreign = TableDefinition { schema: Arc::new(others), leading: 1, properties: Vec::new() };
    lake.root.open_or_create(patient(), &foreign).await.unwrap();
    let error = lake.try_maintain(&maintenance(&MaintenanceStep::ALL), DryRun::No, in_days(60)).await.unwrap_err();
    assert!(matches!(error, Error::NotOurs { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_without_a_table_needs_no_maintenance() {
    let lake = Lake::new();
    let all = maintenance(&MaintenanceStep::ALL);
    assert_eq!(lake.root.maintain(patient(), &all, DryRun::No, in_days(0), &|| true).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_far_ahead_of_the_newest_transaction_time_stops_vacuum_and_log_clean_up() {
    let lake = Lake::new();
    let now = in_days(0);
    for minutes in (0..12).rev() {
        let exported_at = (now - TimeDelta::minutes(minutes)).timestamp_micros();
        lake.upsert(&[vec![line("a", u32::try_from(20 - minutes).unwrap(), "")]], exported_at).await;
    }
    let checked = MaintenanceOptions {
        vacuum_retention: Retention::Checked(7 * DAY),
        log_retention: DAY,
        ..maintenance(&MaintenanceStep::ALL)
    };
    lake.try_maintain(&checked, DryRun::No, now).await.unwrap();
    let done = lake.try_maintain(&checked, DryRun::No, now + TimeDelta::days(400)).await.unwrap();
    assert_eq!((done.vacuumed.files, done.log_deleted.files), (0, 0));
    let forced = MaintenanceOptions { vacuum_retention: Retention::Forced(7 * DAY), ..checked };
    let done = lake.try_maintain(&forced, DryRun::No, now + TimeDelta::days(400)).await.unwrap();
    assert!(done.vacuumed.files > 0, "{done:?}");
}
