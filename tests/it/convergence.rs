use fhir_sync::{
    demo::Fault,
    sync::{Mode, Outcome},
};
use serde_json::json;

use crate::harness::{HOUR, OBSERVATION, PATIENT, Setup};

/// (rules 84 and 103)
#[tokio::test]
async fn the_first_load_stores_every_resource_byte_for_byte() {
    let setup = Setup::new().await;
    let report = setup.complete().await;
    setup.assert_same_as_server().await;
    assert_eq!(report.types[&PATIENT].counts.inserted, 5);
    assert_eq!(report.types[&OBSERVATION].counts.inserted, 4);
    let jobs = setup.server.jobs();
    assert_eq!(jobs.len(), 1);
    assert_eq!((&jobs[0].since, jobs[0].deleted), (&None, true), "the server may forget the files afterwards");
}

#[tokio::test]
async fn an_incremental_sync_receives_only_what_was_created_or_updated() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p2", json!({"gender": "male"}));
        world.put(PATIENT, "p6", json!({"gender": "other"}));
        world.put(OBSERVATION, "o1", json!({"status": "amended"}));
    });
    let report = setup.complete().await;
    setup.assert_same_as_server().await;
    let patients = &report.types[&PATIENT];
    assert_eq!((patients.received, patients.counts.inserted, patients.counts.updated), (2, 1, 1));
    assert_eq!((report.types[&OBSERVATION].received, report.types[&OBSERVATION].counts.updated), (1, 1));
}

/// (rule 94)
#[tokio::test]
async fn a_deleted_resource_is_removed_from_its_table() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| assert!(world.delete(PATIENT, "p3")));
    let report = setup.complete().await;
    assert_eq!(report.types[&PATIENT].counts.deleted, 1);
    setup.assert_same_as_server().await;
    setup.later(|world| {
        world.put(PATIENT, "p3", json!({"gender": "unknown"}));
    });
    setup.complete().await;
    setup.assert_same_as_server().await;
}

/// (rule 95)
#[tokio::test]
async fn a_deletion_of_an_unknown_id_changes_nothing() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "ghost", json!({}));
        assert!(world.delete(PATIENT, "ghost"));
    });
    let report = setup.complete().await;
    let patients = &report.types[&PATIENT];
    assert_eq!((patients.received, patients.counts.unchanged, patients.counts.deleted), (1, 1, 0));
    assert_eq!((report.changed(), patients.bytes_written), (0, 0));
    setup.assert_same_as_server().await;
}

/// (rule 96)
#[tokio::test]
async fn an_old_version_in_the_same_export_does_not_restore_a_deleted_resource() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        let old = world.line(PATIENT, "p1").unwrap().to_owned();
        assert!(world.delete(PATIENT, "p1"));
        world.push_line(PATIENT, old);
    });
    let report = setup.complete().await;
    assert_eq!((report.types[&PATIENT].counts.deleted, report.types[&PATIENT].counts.duplicate), (1, 1));
    setup.assert_same_as_server().await;
}

/// (rule 81, Q-49)
#[tokio::test]
async fn duplicate_lines_within_a_file_and_across_files_become_one_row() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.lines_per_file = 2);
    setup.server.world(|world| {
        for id in ["p1", "p5", "p5", "p2"] {
            let line = world.line(PATIENT, id).unwrap().to_owned();
            world.push_line(PATIENT, line);
        }
    });
    let report = setup.complete().await;
    let patients = &report.types[&PATIENT];
    assert_eq!((patients.files, patients.received, patients.counts.inserted, patients.counts.duplicate), (5, 9, 5, 4));
    setup.assert_same_as_server().await;
}

/// (rules 17 and 83)
#[tokio::test]
async fn an_older_version_that_arrives_late_does_not_replace_a_newer_one() {
    let setup = Setup::new().await;
    let old = setup.server.world(|world| world.line(PATIENT, "p1").unwrap().to_owned());
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.advance(HOUR);
    });
    setup.complete().await;
    setup.later(|world| world.push_line(PATIENT, old));
    let report = setup.complete().await;
    assert_eq!((report.types[&PATIENT].counts.stale, report.changed()), (1, 0));
    setup.assert_same_as_server().await;
}

/// (rule 81, Q-52, Q-75)
#[tokio::test]
async fn of_two_versions_in_one_export_the_newer_one_is_kept_in_either_order() {
    let setup = Setup::new().await;
    let old = setup.server.world(|world| world.line(PATIENT, "p1").unwrap().to_owned());
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.push_line(PATIENT, old);
    });
    let report = setup.complete().await;
    assert_eq!(report.types[&PATIENT].counts.duplicate, 1);
    setup.assert_same_as_server().await;
}

/// (rule 16, Q-74, Q-76)
#[tokio::test]
async fn the_same_export_twice_leaves_the_same_table_and_writes_nothing() {
    let mut setup = Setup::new().await;
    setup.config.overlap = chrono::TimeDelta::days(1);
    setup.complete().await;
    let files = [setup.data_files(PATIENT), setup.data_files(OBSERVATION)];
    let report = setup.complete().await;
    assert_eq!((report.received(), report.types[&PATIENT].counts.unchanged), (9, 5));
    assert_eq!((report.changed(), report.types[&PATIENT].bytes_written), (0, 0));
    assert_eq!([setup.data_files(PATIENT), setup.data_files(OBSERVATION)], files);
    setup.assert_same_as_server().await;
}

/// (Q-66)
#[tokio::test]
async fn a_server_without_since_is_asked_for_everything_each_time_and_only_changes_are_written() {
    let mut setup = Setup::new().await;
    setup.config.supports_since = false;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.delete(PATIENT, "p2");
    });
    setup.config.reconcile.max_missing = 5;
    let report = setup.complete().await;
    let of = &report.types[&PATIENT];
    assert_eq!((of.received, of.counts.updated, of.counts.removed), (4, 1, 1), "{report:#?}");
    assert!(setup.server.jobs().iter().all(|job| job.since.is_none()));
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_full_refresh_has_no_since_and_changes_nothing() {
    let setup = Setup::new().await;
    setup.complete().await;
    let files = setup.data_files(PATIENT);
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!((report.received(), report.changed()), (9, 0));
    assert_eq!(setup.data_files(PATIENT), files);
    assert_eq!(setup.server.jobs().last().unwrap().since, None);
    setup.assert_same_as_server().await;
}

/// (rule 66, Q-38, Q-39)
#[tokio::test]
async fn an_export_with_several_pages_and_many_files_is_read_completely() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| {
        scenario.lines_per_file = 1;
        scenario.pages = Some(2);
        scenario.polls_before_done = 3;
    });
    let report = setup.complete().await;
    assert_eq!((report.types[&PATIENT].files, report.types[&OBSERVATION].files), (5, 4));
    setup.assert_same_as_server().await;
}

/// (rule 98, Q-67, Q-72)
#[tokio::test]
async fn a_full_refresh_removes_rows_whose_deletion_was_not_reported() {
    let mut setup = Setup::new().await;
    setup.config.reconcile.max_missing_percent = 20.0;
    setup.complete().await;
    setup.later(|world| assert!(world.delete(PATIENT, "p3")));
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!((report.outcome, report.types[&PATIENT].counts.removed), (Outcome::Complete, 1));
    setup.assert_same_as_server().await;
}

/// (rule 98, Q-54)
#[tokio::test]
async fn a_full_refresh_with_too_many_missing_rows_removes_none_and_reports_it() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| assert!(world.delete(PATIENT, "p3")));
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!((report.outcome, report.types[&PATIENT].counts.missing), (Outcome::Partial, 1));
    assert!(report.remarks.join("; ").contains("Patient"), "{report:#?}");
    assert_eq!(setup.lines(PATIENT).await.len(), 5);
}

/// (rule 98)
#[tokio::test]
async fn a_full_refresh_with_a_failed_file_removes_nothing() {
    let mut setup = Setup::new().await;
    setup.config.reconcile.max_missing_percent = 100.0;
    setup.complete().await;
    setup.server.scenario(|scenario| {
        (scenario.lines_per_file, scenario.omit_counts, scenario.gzip) = (2, true, false);
        scenario.faults = vec![Fault::EndAfter { path_contains: "/Patient.2".to_owned(), bytes: 10, times: 2 }];
    });
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!(report.outcome, Outcome::Partial);
    setup.assert_same_as_server().await;
}

/// The file of the patients is there and has no line; the manifest says so, too.
fn empty_patient_file(scenario: &mut fhir_sync::demo::Scenario) {
    (scenario.gzip, scenario.count_offset) = (false, [(PATIENT, -5)].into());
    scenario.faults = vec![Fault::EndAfter { path_contains: "/Patient.1".to_owned(), bytes: 0, times: 9 }];
}

/// (rule 98, Q-54)
#[tokio::test]
async fn a_full_refresh_never_removes_all_rows_of_a_table_however_few_they_are() {
    let mut setup = Setup::new().await;
    (setup.config.reconcile.max_missing, setup.config.reconcile.max_missing_percent) = (20, 100.0);
    setup.complete().await;
    setup.server.scenario(empty_patient_file);
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!((report.types[&PATIENT].counts.missing, report.types[&PATIENT].counts.removed), (5, 0));
    assert_eq!(report.outcome, Outcome::Partial);
    let remarks = report.remarks.join("; ");
    assert!(remarks.contains("--allow-empty Patient"), "{remarks}");
    setup.server.scenario(|scenario| *scenario = fhir_sync::demo::Scenario::default());
    setup.assert_same_as_server().await;
}

/// (rule 98)
#[tokio::test]
async fn a_full_refresh_with_other_resources_only_removes_no_stored_row() {
    let mut setup = Setup::new().await;
    (setup.config.reconcile.max_missing, setup.config.reconcile.max_missing_percent) = (20, 100.0);
    setup.complete().await;
    setup.later(|world| {
        (1..=5).for_each(|number| assert!(world.delete(PATIENT, &format!("p{number}"))));
        world.put(PATIENT, "renumbered", json!({}));
    });
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!((report.outcome, report.types[&PATIENT].counts.missing), (Outcome::Partial, 5));
    assert_eq!(setup.lines(PATIENT).await.len(), 6);
}

#[tokio::test]
async fn a_full_refresh_empties_a_table_if_the_operator_says_so() {
    let mut setup = Setup::new().await;
    setup.complete().await;
    setup.server.scenario(empty_patient_file);
    setup.config.allow_empty = [PATIENT].into();
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!(report.types[&PATIENT].counts.removed, 5, "{report:#?}");
    assert!(setup.lines(PATIENT).await.is_empty());
}

#[tokio::test]
async fn a_full_refresh_without_a_file_of_a_type_empties_its_table_if_the_operator_says_so() {
    let mut setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| (1..=5).for_each(|number| assert!(world.delete(PATIENT, &format!("p{number}")))));
    setup.config.allow_empty = [PATIENT].into();
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!(report.types[&PATIENT].counts.removed, 5, "{report:#?}");
    setup.assert_same_as_server().await;
}

/// (rules 21 and 98)
#[tokio::test]
async fn a_full_refresh_without_a_type_that_the_server_says_is_empty_names_the_rows_that_it_keeps() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| (1..=5).for_each(|number| assert!(world.delete(PATIENT, &format!("p{number}")))));
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!((report.outcome, report.types[&PATIENT].counts.missing), (Outcome::Partial, 5), "{report:#?}");
    assert!(report.remarks.join("; ").contains("--allow-empty Patient"), "{report:#?}");
    assert_eq!(setup.lines(PATIENT).await.len(), 5);
}

/// The server is as it was then, but its clock goes on.
fn restore(world: &mut fhir_sync::demo::World, backup: &fhir_sync::demo::World) {
    let age = (world.now() - backup.now()).to_std().unwrap();
    *world = backup.clone();
    world.advance(age);
}

#[tokio::test]
async fn a_full_refresh_follows_a_server_that_was_restored_from_a_backup() {
    let setup = Setup::new().await;
    let backup = setup.server.world(|world| world.clone());
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        assert!(world.delete(PATIENT, "p2"));
        world.advance(HOUR);
    });
    setup.complete().await;
    setup.later(|world| assert!(world.delete(PATIENT, "p3")));
    setup.complete().await;
    setup.later(|world| restore(world, &backup));
    let report = setup.run(Mode::FullRefresh).await;
    setup.assert_same_as_server().await;
    let counts = report.types[&PATIENT].counts;
    assert_eq!((report.outcome, counts.overruled, counts.stale), (Outcome::Complete, 2, 0), "{counts:?}");
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!((report.changed(), report.types[&PATIENT].counts.overruled), (0, 0), "it overrules once");
}

#[tokio::test]
async fn a_full_refresh_takes_back_a_version_with_a_time_of_the_future() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        let poisoned =
            r#"{"resourceType":"Patient","id":"p1","meta":{"versionId":"99","lastUpdated":"2099-01-01T00:00:00Z"}}"#;
        world.push_line(PATIENT, poisoned);
    });
    setup.complete().await;
    setup.later(|world| {
        world.clear_pushed_lines();
        world.put(PATIENT, "p1", json!({"gender": "male"}));
    });
    assert_eq!(setup.complete().await.types[&PATIENT].counts.stale, 1, "an increment does not overrule");
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!((report.outcome, report.types[&PATIENT].counts.overruled), (Outcome::Complete, 1));
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn of_two_versions_that_contradict_each_other_the_later_snapshot_wins() {
    let setup = Setup::new().await;
    let backup = setup.server.world(|world| world.clone());
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.put(PATIENT, "p1", json!({"gender": "other"}));
        world.advance(HOUR);
    });
    setup.complete().await;
    // After the backup the number is 2 again, at a later time.
    setup.later(|world| {
        restore(world, &backup);
        world.put(PATIENT, "p1", json!({"gender": "unknown"}));
    });
    let report = setup.complete().await;
    assert_eq!((report.types[&PATIENT].counts.updated, report.types[&PATIENT].counts.conflicts), (1, 1));
    setup.assert_same_as_server().await;
}
