use fhir_sync::{
    demo::Fault,
    sync::{Mode, Outcome},
};
use serde_json::json;

use crate::harness::{HOUR, OBSERVATION, PATIENT, Stage};

#[tokio::test]
async fn the_first_load_brings_every_resource_byte_for_byte() {
    let stage = Stage::set().await;
    let report = stage.complete().await;
    stage.assert_in_step().await;
    assert_eq!(report.types[&PATIENT].counts.inserted, 5);
    assert_eq!(report.types[&OBSERVATION].counts.inserted, 4);
    let jobs = stage.server.jobs();
    assert_eq!(jobs.len(), 1);
    assert_eq!((&jobs[0].since, jobs[0].deleted), (&None, true), "the server may forget the files afterwards");
}

#[tokio::test]
async fn an_increment_brings_what_was_updated_and_created_and_nothing_else() {
    let stage = Stage::set().await;
    stage.complete().await;
    stage.later(|world| {
        world.put(PATIENT, "p2", json!({"gender": "male"}));
        world.put(PATIENT, "p6", json!({"gender": "other"}));
        world.put(OBSERVATION, "o1", json!({"status": "amended"}));
    });
    let report = stage.complete().await;
    stage.assert_in_step().await;
    let patients = &report.types[&PATIENT];
    assert_eq!((patients.received, patients.counts.inserted, patients.counts.updated), (2, 1, 1));
    assert_eq!((report.types[&OBSERVATION].received, report.types[&OBSERVATION].counts.updated), (1, 1));
}

#[tokio::test]
async fn a_deleted_resource_leaves_its_table() {
    let stage = Stage::set().await;
    stage.complete().await;
    stage.later(|world| assert!(world.delete(PATIENT, "p3")));
    let report = stage.complete().await;
    assert_eq!(report.types[&PATIENT].counts.deleted, 1);
    stage.assert_in_step().await;
    stage.later(|world| {
        world.put(PATIENT, "p3", json!({"gender": "unknown"}));
    });
    stage.complete().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_deletion_of_an_id_that_never_came_changes_nothing() {
    let stage = Stage::set().await;
    stage.complete().await;
    stage.later(|world| {
        world.put(PATIENT, "ghost", json!({}));
        assert!(world.delete(PATIENT, "ghost"));
    });
    let report = stage.complete().await;
    let patients = &report.types[&PATIENT];
    assert_eq!((patients.received, patients.counts.unchanged, patients.counts.deleted), (1, 1, 0));
    assert_eq!((report.changed(), patients.bytes_written), (0, 0));
    stage.assert_in_step().await;
}

#[tokio::test]
async fn an_old_version_in_the_same_export_does_not_bring_a_deleted_resource_back() {
    let stage = Stage::set().await;
    stage.complete().await;
    stage.later(|world| {
        let old = world.line(PATIENT, "p1").unwrap().to_owned();
        assert!(world.delete(PATIENT, "p1"));
        world.push_line(PATIENT, old);
    });
    let report = stage.complete().await;
    assert_eq!((report.types[&PATIENT].counts.deleted, report.types[&PATIENT].counts.duplicate), (1, 1));
    stage.assert_in_step().await;
}

#[tokio::test]
async fn duplicate_lines_within_a_file_and_across_files_are_one_row() {
    let stage = Stage::set().await;
    stage.server.scenario(|scenario| scenario.lines_per_file = 2);
    stage.server.world(|world| {
        for id in ["p1", "p5", "p5", "p2"] {
            let line = world.line(PATIENT, id).unwrap().to_owned();
            world.push_line(PATIENT, line);
        }
    });
    let report = stage.complete().await;
    let patients = &report.types[&PATIENT];
    assert_eq!((patients.files, patients.received, patients.counts.inserted, patients.counts.duplicate), (5, 9, 5, 4));
    stage.assert_in_step().await;
}

#[tokio::test]
async fn an_older_version_that_comes_late_does_not_replace_a_newer_one() {
    let stage = Stage::set().await;
    let old = stage.server.world(|world| world.line(PATIENT, "p1").unwrap().to_owned());
    stage.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.advance(HOUR);
    });
    stage.complete().await;
    stage.later(|world| world.push_line(PATIENT, old));
    let report = stage.complete().await;
    assert_eq!((report.types[&PATIENT].counts.stale, report.changed()), (1, 0));
    stage.assert_in_step().await;
}

#[tokio::test]
async fn of_two_versions_in_one_export_the_newer_one_stays_whichever_comes_last() {
    let stage = Stage::set().await;
    let old = stage.server.world(|world| world.line(PATIENT, "p1").unwrap().to_owned());
    stage.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.push_line(PATIENT, old);
    });
    let report = stage.complete().await;
    assert_eq!(report.types[&PATIENT].counts.duplicate, 1);
    stage.assert_in_step().await;
}

#[tokio::test]
async fn the_same_export_twice_leaves_the_same_table_and_writes_nothing() {
    let mut stage = Stage::set().await;
    stage.config.overlap = chrono::TimeDelta::days(1);
    stage.complete().await;
    let files = [stage.data_files(PATIENT), stage.data_files(OBSERVATION)];
    let report = stage.complete().await;
    assert_eq!((report.received(), report.types[&PATIENT].counts.unchanged), (9, 5));
    assert_eq!((report.changed(), report.types[&PATIENT].bytes_written), (0, 0));
    assert_eq!([stage.data_files(PATIENT), stage.data_files(OBSERVATION)], files);
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_full_refresh_asks_without_since_and_changes_nothing() {
    let stage = Stage::set().await;
    stage.complete().await;
    let files = stage.data_files(PATIENT);
    let report = stage.run(Mode::FullRefresh).await;
    assert_eq!((report.received(), report.changed()), (9, 0));
    assert_eq!(stage.data_files(PATIENT), files);
    assert_eq!(stage.server.jobs().last().unwrap().since, None);
    stage.assert_in_step().await;
}

#[tokio::test]
async fn an_export_in_pages_and_many_files_comes_whole() {
    let stage = Stage::set().await;
    stage.server.scenario(|scenario| {
        scenario.lines_per_file = 1;
        scenario.pages = Some(2);
        scenario.polls_before_done = 3;
    });
    let report = stage.complete().await;
    assert_eq!((report.types[&PATIENT].files, report.types[&OBSERVATION].files), (5, 4));
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_full_refresh_removes_what_the_server_no_longer_has_and_never_said() {
    let mut stage = Stage::set().await;
    stage.config.max_missing_percent = 20.0;
    stage.complete().await;
    stage.later(|world| assert!(world.delete(PATIENT, "p3")));
    let report = stage.run(Mode::FullRefresh).await;
    assert_eq!((report.outcome, report.types[&PATIENT].counts.removed), (Outcome::Complete, 1));
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_full_refresh_that_lacks_too_many_rows_removes_none_and_says_so() {
    let stage = Stage::set().await;
    stage.complete().await;
    stage.later(|world| assert!(world.delete(PATIENT, "p3")));
    let report = stage.run(Mode::FullRefresh).await;
    assert_eq!((report.outcome, report.types[&PATIENT].counts.gone), (Outcome::Partial, 1));
    assert!(report.remarks.join("; ").contains("Patient"), "{report:#?}");
    assert_eq!(stage.lines(PATIENT).await.len(), 5);
}

#[tokio::test]
async fn a_full_refresh_with_a_failed_file_removes_nothing() {
    let mut stage = Stage::set().await;
    stage.config.max_missing_percent = 100.0;
    stage.complete().await;
    stage.server.scenario(|scenario| {
        (scenario.lines_per_file, scenario.omit_counts, scenario.gzip) = (2, true, false);
        scenario.faults = vec![Fault::EndAfter { path_contains: "/Patient.2".to_owned(), bytes: 10, times: 1 }];
    });
    let report = stage.run(Mode::FullRefresh).await;
    assert_eq!(report.outcome, Outcome::Partial);
    stage.assert_in_step().await;
}
