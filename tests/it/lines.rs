use std::os::unix::fs::PermissionsExt as _;

use fhir_sync::{
    demo::{Fault, StatusCode},
    sync::{Outcome, TypeEnd},
};
use serde_json::json;

use crate::harness::{OBSERVATION, PATIENT, Stage, end_of, failure};

/// Part of every bad line of these tests, and of nothing else.
const MARK: &str = "Mustermann-7c1f";

/// Three lines behind the five patients that can be no rows.
fn push_bad_lines(stage: &Stage) {
    stage.server.world(|world| {
        world.push_line(PATIENT, format!("{{\"resourceType\":\"Patient\",\"id\":\"x1\",\"name\":\"{MARK}"));
        world.push_line(PATIENT, json!({"resourceType": "Patient", "name": [{"family": MARK}]}).to_string());
        world.push_line(PATIENT, json!({"resourceType": "Practitioner", "id": MARK}).to_string());
    });
}

#[tokio::test]
async fn bad_lines_within_the_limit_are_counted_and_kept_and_cost_nothing_else() {
    let mut stage = Stage::set().await;
    stage.config.max_quarantined_percent = 50.0;
    push_bad_lines(&stage);
    let report = stage.sync().await;
    assert_eq!((report.outcome, report.types[&PATIENT].quarantined), (Outcome::Partial, 3));
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::Committed { .. }), "{report:#?}");
    assert!(stage.watermark(PATIENT).await.is_some());
    stage.assert_in_step().await;
    let kept = stage.quarantine();
    let places: Vec<_> =
        kept.iter().map(|kept| (kept["line"].as_u64().unwrap(), kept["reason"].as_str().unwrap())).collect();
    assert_eq!(places, [(6, "not-json"), (7, "no-id"), (8, "other-type")]);
    for line in &kept {
        assert_eq!((&line["resource_type"], &line["file"]), (&json!("Patient"), &json!("Patient file 1 of 1")));
        assert!(line["text"].as_str().unwrap().contains(MARK));
    }
}

#[tokio::test]
async fn a_few_bad_lines_never_fail_a_type_however_few_lines_came() {
    let mut stage = Stage::set().await;
    (stage.config.max_quarantined, stage.config.max_quarantined_percent) = (3, 0.0);
    push_bad_lines(&stage);
    let report = stage.sync().await;
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::Committed { .. }), "{report:#?}");
    stage.assert_in_step().await;
}

#[tokio::test]
async fn the_quarantine_is_for_its_owner_only() {
    let mut stage = Stage::set().await;
    stage.config.max_quarantined_percent = 50.0;
    push_bad_lines(&stage);
    stage.sync().await;
    let folder = stage.folder.path().join("state/quarantine");
    let file = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    for (place, expected) in [(folder, 0o700), (file, 0o600)] {
        assert_eq!(std::fs::metadata(place).unwrap().permissions().mode() & 0o777, expected);
    }
}

#[tokio::test]
async fn bad_lines_over_the_limit_fail_their_type_and_no_other() {
    let stage = Stage::set().await;
    push_bad_lines(&stage);
    let report = stage.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    let reason = failure(&report, PATIENT);
    assert!(reason.contains("3 of 8 lines of Patient") && reason.contains("sync.max_quarantined_percent"), "{reason}");
    assert_eq!((stage.watermark(PATIENT).await, stage.lines(PATIENT).await.len()), (None, 0));
    assert!(stage.watermark(OBSERVATION).await.is_some());
    assert_eq!(stage.quarantine().len(), 3);
    stage.server.world(fhir_sync::demo::World::clear_pushed_lines);
    stage.complete().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn the_content_of_a_bad_line_is_never_printed() {
    let stage = Stage::set().await;
    push_bad_lines(&stage);
    for (limit, code) in [("50", 3), ("1", 3)] {
        let limits = [("FHIR_SYNC__SYNC__MAX_QUARANTINED", "0"), ("FHIR_SYNC__SYNC__MAX_QUARANTINED_PERCENT", limit)];
        let ended = stage.process(&limits).await;
        assert_eq!(ended.code, Some(code), "{}", ended.said());
        assert!(ended.stderr.contains("3 lines are no resources; they are kept in"), "{}", ended.stderr);
        assert!(ended.stderr.contains("DEBUG"), "{}", ended.stderr);
        assert!(!ended.said().contains(MARK), "{}", ended.said());
        assert!(!ended.said().contains("1970-01-01"), "the content of a good line was printed: {}", ended.said());
    }
}

#[tokio::test]
async fn fewer_lines_than_announced_fail_their_type_alone_and_the_next_sync_loads_it() {
    let stage = Stage::set().await;
    stage.server.scenario(|scenario| {
        scenario.count_offset.insert(PATIENT, 2);
    });
    let ended = stage.process(&[]).await;
    assert_eq!(ended.code, Some(3), "{}", ended.said());
    assert!(ended.stdout.contains("Patient file 1 of 1: 7 lines were announced and 5 came"), "{}", ended.stdout);
    assert_eq!((stage.watermark(PATIENT).await, stage.lines(PATIENT).await.len()), (None, 0));
    assert!(stage.watermark(OBSERVATION).await.is_some());
    stage.server.scenario(|scenario| scenario.count_offset.clear());
    stage.complete().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn more_lines_than_announced_are_all_taken() {
    let stage = Stage::set().await;
    stage.server.scenario(|scenario| {
        scenario.count_offset.insert(PATIENT, -2);
    });
    stage.complete().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_file_that_was_cut_is_read_to_its_end_with_every_row_once() {
    for gzip in [true, false] {
        let stage = Stage::set().await;
        stage.server.scenario(|scenario| {
            scenario.gzip = gzip;
            let path_contains = "/Patient.1".to_owned();
            scenario.faults = vec![Fault::CutAfter { path_contains, bytes: if gzip { 40 } else { 300 }, times: 1 }];
        });
        let report = stage.complete().await;
        assert_eq!((report.types[&PATIENT].received, report.types[&PATIENT].counts.duplicate), (5, 0));
        assert_eq!(stage.file_requests(), 3);
        stage.assert_in_step().await;
    }
}

#[tokio::test]
async fn a_file_that_changed_between_two_readings_fails_its_type_and_the_next_sync_loads_it() {
    let stage = Stage::set().await;
    let path_contains = "/Patient.1".to_owned();
    let mut lines = stage.server.world(|world| world.lines(PATIENT, None));
    lines[0] = lines[0].replace("female", "sealed").into();
    stage.server.scenario(|scenario| {
        (scenario.gzip, scenario.omit_counts) = (false, true);
        scenario.faults = vec![
            Fault::CutAfter { path_contains: path_contains.clone(), bytes: 300, times: 1 },
            Fault::Status {
                path_contains,
                status: StatusCode::OK,
                times: 1,
                retry_after: None,
                body: lines.join("\n") + "\n",
            },
        ];
    });
    let report = stage.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(failure(&report, PATIENT).contains("changed between two readings"), "{report:#?}");
    assert_eq!(stage.lines(PATIENT).await.len(), 0);
    stage.complete().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_file_that_ends_in_the_middle_of_a_line_fails_its_type_and_the_next_sync_loads_it() {
    let stage = Stage::set().await;
    stage.server.scenario(|scenario| {
        // Nothing but the line itself tells that something is missing.
        (scenario.gzip, scenario.omit_counts) = (false, true);
        scenario.faults = vec![Fault::EndAfter { path_contains: "/Patient.1".to_owned(), bytes: 300, times: 1 }];
    });
    let report = stage.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    let reason = failure(&report, PATIENT);
    assert!(reason.contains("Patient file 1 of 1") && reason.contains("middle of a line"), "{reason}");
    assert_eq!((stage.watermark(PATIENT).await, stage.lines(PATIENT).await.len()), (None, 0));
    stage.complete().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_file_that_the_server_lost_fails_its_type_and_the_next_sync_loads_it() {
    let stage = Stage::set().await;
    stage.server.scenario(|scenario| {
        scenario.faults = vec![Fault::Status {
            path_contains: "/Patient.1".to_owned(),
            status: StatusCode::GONE,
            times: 1,
            retry_after: None,
            body: String::new(),
        }];
    });
    let report = stage.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(failure(&report, PATIENT).contains("no longer has it"), "{report:#?}");
    assert!(stage.watermark(OBSERVATION).await.is_some());
    stage.complete().await;
    stage.assert_in_step().await;
}
