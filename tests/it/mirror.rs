use std::{fs, path::PathBuf, time::Duration};

use fhir_sync::sync::{Mode, Outcome, Report};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{PATIENT, Setup, eventually, failure, json_of};

fn log(setup: &Setup, version: u64) -> PathBuf {
    setup.table_folder(PATIENT).join(format!("_delta_log/{version:020}.json"))
}

fn actions(setup: &Setup, version: u64) -> Vec<Value> {
    let commit = fs::read_to_string(log(setup, version)).unwrap();
    commit.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A commit as RESTORE makes it: the files of `newest` leave, and those of the version before come back.
pub fn restore(setup: &Setup, newest: u64) {
    let (before, now) = (actions(setup, newest - 1), actions(setup, newest));
    let info = json!({"commitInfo": {"timestamp": 1_800_000_000_000_i64, "operation": "RESTORE"}});
    let removed = now.iter().filter_map(|action| action.get("add")).map(|add| {
        let mut remove = json!({"path": add["path"], "deletionTimestamp": 1_800_000_000_000_i64, "dataChange": true});
        if add.get("deletionVector").is_some_and(|vector| !vector.is_null()) {
            remove["deletionVector"] = add["deletionVector"].clone();
        }
        json!({"remove": remove})
    });
    let added = before.iter().filter(|action| action.get("add").is_some()).cloned();
    let lines: Vec<_> = [info].into_iter().chain(removed).chain(added).map(|action| action.to_string()).collect();
    fs::write(log(setup, newest + 1), lines.join("\n")).unwrap();
}

fn assert_says(report: &Report, what: &str) {
    assert!(report.notes.iter().any(|note| note.contains(what)), "{report:#?}");
}

#[tokio::test]
async fn a_table_that_was_restored_to_an_earlier_version_is_loaded_in_full_and_equals_the_server() {
    let mut setup = Setup::new().await;
    setup.config.reconcile.max_missing = 20;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "female"}));
        world.put(PATIENT, "p9", json!({}));
        world.delete(PATIENT, "p2");
    });
    setup.complete().await;
    let newest = setup.root().open(PATIENT).await.unwrap().unwrap().version();
    restore(&setup, newest);
    assert!(setup.lines(PATIENT).await.iter().any(|line| line.contains("\"p2\"")), "p2 is back, p9 is gone");
    let report = setup.complete().await;
    assert_says(&report, "Patient: loaded in full, because its table was restored to an earlier version");
    setup.assert_same_as_server().await;
    assert_eq!(setup.complete().await.notes, Vec::<String>::new());
}

/// A patient is deleted, and the table is restored to the version before: the deletion is in no export but the one before.
async fn with_a_deletion_undone(mut setup: Setup) -> Setup {
    setup.config.reconcile.max_missing_percent = 0.0;
    setup.complete().await;
    setup.later(|world| _ = world.delete(PATIENT, "p2"));
    setup.complete().await;
    let newest = setup.root().open(PATIENT).await.unwrap().unwrap().version();
    restore(&setup, newest);
    assert!(setup.lines(PATIENT).await.iter().any(|line| line.contains("\"p2\"")), "p2 is back");
    setup
}

/// (rules 94 and 98)
#[tokio::test]
async fn in_a_table_that_was_restored_no_resource_stays_whose_deletion_was_reported() {
    for reconciles in [false, true] {
        let mut setup = Setup::new().await;
        if !reconciles {
            setup.export.reconciled.clear();
        }
        let setup = with_a_deletion_undone(setup).await;
        let report = setup.complete().await;
        let counts = report.types[&PATIENT].counts;
        assert_eq!(
            (counts.removed, counts.missing),
            (1, 0),
            "its tombstone is evidence, whatever the limit: {report:#?}"
        );
        setup.assert_same_as_server().await;
    }
}

#[tokio::test]
async fn in_a_table_that_was_restored_a_resource_stays_that_the_server_has_again() {
    let setup = Setup::new().await;
    let backup = setup.server.world(|world| world.clone());
    let setup = with_a_deletion_undone(setup).await;
    setup.server.world(|world| world.restore(backup));
    setup.later(|world| world.advance(Duration::from_hours(1)));
    setup.complete().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn in_a_table_that_was_restored_rows_stay_while_the_server_sends_none() {
    let mut setup = Setup::new().await;
    setup.export.reconciled.clear();
    let setup = with_a_deletion_undone(setup).await;
    setup.server.scenario(|scenario| _ = scenario.left_out.insert(PATIENT));
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    assert_eq!(setup.lines(PATIENT).await.len(), 5);
}

#[tokio::test]
async fn an_increment_in_progress_does_not_stand_for_a_table_that_was_restored_meanwhile() {
    let mut setup = Setup::new().await;
    setup.config.reconcile.max_missing = 20;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p9", json!({}));
        world.advance(Duration::from_hours(1));
    });
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p10", json!({}));
    });
    setup.server.scenario(|scenario| scenario.hold = true);
    let process = setup.start("sync", &[]);
    eventually("a poll", async || setup.server.jobs().last().filter(|job| job.polls > 0).map(drop)).await;
    process.kill().await;
    setup.server.scenario(|scenario| scenario.hold = false);
    let newest = setup.root().open(PATIENT).await.unwrap().unwrap().version();
    restore(&setup, newest);
    let report = setup.sync().await;
    assert_says(&report, "Patient: loaded in full, because its table was restored to an earlier version");
    setup.assert_same_as_server().await;
    setup.complete().await;
    setup.assert_same_as_server().await;
}

/// Patients have changed, and one was deleted, in the newest version of their table; another change is not asked for yet.
async fn with_a_change_to_undo() -> Setup {
    let mut setup = Setup::new().await;
    setup.config.reconcile.max_missing = 20;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p9", json!({}));
        world.delete(PATIENT, "p2");
        world.advance(Duration::from_hours(1));
    });
    setup.complete().await;
    setup.later(|world| _ = world.put(PATIENT, "p10", json!({})));
    setup
}

/// Does something while the server works on the export that a run has asked for.
async fn during_a_run(setup: &Setup, mode: Mode, act: impl AsyncFnOnce()) -> Report {
    setup.server.scenario(|scenario| scenario.hold = true);
    let before = setup.server.jobs().len();
    let acting = async {
        eventually("a poll", async || {
            let jobs = setup.server.jobs();
            jobs.get(before).filter(|job| job.polls > 0).map(drop)
        })
        .await;
        act().await;
        setup.server.scenario(|scenario| scenario.hold = false);
    };
    tokio::join!(setup.run(mode), acting).0
}

async fn newest(setup: &Setup) -> u64 {
    setup.root().open(PATIENT).await.unwrap().unwrap().version()
}

#[tokio::test]
async fn a_table_that_is_restored_during_a_run_is_not_committed_and_the_next_sync_loads_it_in_full() {
    for mode in [Mode::Incremental, Mode::FullRefresh] {
        let setup = with_a_change_to_undo().await;
        let (before, newest) = (setup.watermark(PATIENT).await, newest(&setup).await);
        let report = during_a_run(&setup, mode, async || restore(&setup, newest)).await;
        assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
        let cause = failure(&report, PATIENT);
        assert!(cause.contains("while its export was in progress: its table was restored"), "{cause}");
        assert_eq!(setup.watermark(PATIENT).await, before);
        let report = setup.complete().await;
        assert_says(&report, "Patient: loaded in full, because its table was restored to an earlier version");
        setup.assert_same_as_server().await;
        assert_eq!(setup.complete().await.notes, Vec::<String>::new());
    }
}

/// The log is read from a checkpoint, so that the commit of the restore is read by nothing but the search for it.
#[tokio::test]
async fn where_it_cannot_be_read_whether_a_table_was_restored_nothing_is_taken_for_complete() {
    let setup = with_a_change_to_undo().await;
    for _ in 0..10 {
        setup.complete().await;
        setup.later(|_| ());
    }
    setup.later(|world| _ = world.put(PATIENT, "p11", json!({})));
    setup.complete().await;
    let newest = newest(&setup).await;
    restore(&setup, newest);
    let maintained = setup.command(&["maintain", "--json", "Patient"], &[]).await;
    assert!(json_of(&maintained)["tables"][0]["checkpoint"].is_u64(), "{}", maintained.output());
    let (commit, aside) = (log(&setup, newest + 1), setup.folder.path().join("aside"));
    fs::rename(&commit, &aside).unwrap();
    let unreadable = std::os::unix::net::UnixListener::bind(&commit).unwrap();
    let report = during_a_run(&setup, Mode::Incremental, async || {
        drop(unreadable);
        fs::rename(&aside, &commit).unwrap();
    })
    .await;
    assert!(failure(&report, PATIENT).contains("restored to an earlier version"), "{report:#?}");
    setup.complete().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_table_that_is_gone_is_loaded_in_full_and_the_report_says_so() {
    let setup = Setup::new().await;
    setup.complete().await;
    fs::remove_dir_all(setup.table_folder(PATIENT)).unwrap();
    let report = setup.complete().await;
    assert_says(&report, "Patient: loaded in full, because its table is gone");
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn another_table_in_the_place_of_one_is_not_taken_for_it() {
    let (setup, other) = (Setup::new().await, Setup::new().await);
    setup.complete().await;
    other.complete().await;
    fs::remove_dir_all(setup.table_folder(PATIENT)).unwrap();
    fs::rename(other.table_folder(PATIENT), setup.table_folder(PATIENT)).unwrap();
    let report = setup.complete().await;
    assert_says(&report, "another table is in the place of its table");
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn without_their_tombstones_the_tables_are_loaded_in_full() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.delete(PATIENT, "p2");
    });
    setup.complete().await;
    fs::remove_dir_all(setup.lake().join("_fhir_sync/deleted")).unwrap();
    let report = setup.complete().await;
    assert_says(&report, "the tombstones in _fhir_sync/deleted are gone");
    setup.assert_same_as_server().await;
    assert_eq!(setup.complete().await.notes, Vec::<String>::new());
}

#[tokio::test]
async fn where_all_tables_are_gone_nothing_is_asked_or_written_until_the_operator_says_so() {
    let setup = Setup::new().await;
    setup.complete().await;
    let jobs = setup.server.jobs().len();
    fs::rename(setup.lake(), setup.lake().with_extension("unmounted")).unwrap();
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Failed);
    assert!(report.remarks.iter().any(|remark| remark.contains("not mounted")), "{report:#?}");
    assert_eq!(setup.server.jobs().len(), jobs);
    assert!(!setup.table_folder(PATIENT).exists());
    let syncer = setup.open().await.unwrap();
    let report = syncer.run(&setup.export, Mode::FullRefresh, &CancellationToken::new()).await;
    assert_eq!(report.outcome, Outcome::Complete, "{report:#?}");
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn damaged_files_that_may_have_had_rows_of_another_export_are_named_when_they_are_removed() {
    let mut setup = Setup::new().await;
    setup.export.reconciled.clear();
    setup.complete().await;
    for file in setup.data_files(PATIENT) {
        fs::write(setup.table_folder(PATIENT).join(file), "").unwrap();
    }
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    assert!(report.remarks.iter().any(|remark| remark.contains("1 damaged data files of Patient")), "{report:#?}");
    setup.assert_same_as_server().await;
}
