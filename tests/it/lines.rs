use std::os::unix::fs::PermissionsExt as _;

use fhir_sync::{
    demo::{Fault, StatusCode},
    sync::{Mode, Outcome, QuarantineLimit, TypeEnd},
};
use serde_json::json;

use crate::harness::{Made, OBSERVATION, PATIENT, Setup, end_of, failure, ndjson};

/// In every bad line of these tests, and nowhere else.
const MARK: &str = "Mustermann-7c1f";

/// Two invalid lines after the five patients.
fn push_bad_lines(setup: &Setup) {
    setup.server.world(|world| {
        world.push_line(PATIENT, format!("{{\"resourceType\":\"Patient\",\"id\":\"x1\",\"name\":\"{MARK}"));
        world.push_line(PATIENT, json!({"resourceType": "Patient", "name": [{"family": MARK}]}).to_string());
    });
}

/// (rules 86 and 88)
#[tokio::test]
async fn bad_lines_within_the_limit_are_quarantined_and_nothing_else_is_lost() {
    let mut setup = Setup::new().await;
    setup.config.quarantine.max_quarantined_percent = 50.0;
    push_bad_lines(&setup);
    let report = setup.sync().await;
    assert_eq!((report.outcome, report.types[&PATIENT].quarantined), (Outcome::Partial, 2));
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::Committed { .. }), "{report:#?}");
    assert!(setup.watermark(PATIENT).await.is_some());
    setup.assert_same_as_server().await;
    let kept = setup.quarantine().await;
    let places: Vec<_> = kept.iter().map(|kept| (kept.line, kept.reason.as_str())).collect();
    assert_eq!(places, [(6, "not-json"), (7, "no-id")]);
    let sent = setup.server.world(|world| world.lines(PATIENT, None)).join("\n");
    for line in kept {
        assert_eq!((line.resource_type.as_deref(), line.file.as_str()), (Some("Patient"), "Patient file 1 of 1"));
        let text = String::from_utf8(line.content.unwrap()).unwrap();
        assert!(text.contains(MARK) && text.len() as u64 == line.bytes, "{text}");
        assert!(sent[usize::try_from(line.byte_offset).unwrap()..].starts_with(&text), "{text}");
    }
}

#[tokio::test]
async fn a_few_bad_lines_do_not_fail_even_a_small_type() {
    let mut setup = Setup::new().await;
    setup.config.quarantine = QuarantineLimit { max_quarantined: 2, max_quarantined_percent: 0.0 };
    push_bad_lines(&setup);
    let report = setup.sync().await;
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::Committed { .. }), "{report:#?}");
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn the_quarantine_is_readable_by_its_owner_only() {
    let mut setup = Setup::new().await;
    setup.config.quarantine.max_quarantined_percent = 50.0;
    push_bad_lines(&setup);
    setup.sync().await;
    let folder = setup.lake().join("_fhir_sync/quarantine");
    assert_eq!(std::fs::metadata(folder).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_bad_line_that_arrives_again_is_not_kept_again() {
    let mut setup = Setup::new().await;
    setup.config.quarantine.max_quarantined_percent = 50.0;
    push_bad_lines(&setup);
    for _ in 0..3 {
        let report = setup.run(Mode::FullRefresh).await;
        assert_eq!((report.types[&PATIENT].quarantined, setup.quarantine().await.len()), (2, 2));
        assert!(report.remarks.iter().any(|remark| remark.contains("2 lines are not resources")), "{report:#?}");
    }
}

#[tokio::test]
async fn a_full_quarantine_fails_its_type_and_names_the_setting() {
    let mut setup = Setup::new().await;
    setup.config.quarantine.max_quarantined_percent = 50.0;
    setup.config.max_quarantine_bytes = 300;
    push_bad_lines(&setup);
    let report = setup.sync().await;
    let reason = failure(&report, PATIENT);
    assert!(reason.contains("sync.max_quarantine_size"), "{reason}");
    assert_eq!((setup.watermark(PATIENT).await, setup.quarantine().await.len()), (None, 0));
    assert!(setup.watermark(OBSERVATION).await.is_some());
    setup.config.max_quarantine_bytes = 1 << 20;
    let report = setup.sync().await;
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::Committed { .. }), "{report:#?}");
}

/// (rule 86)
#[tokio::test]
async fn bad_lines_over_the_limit_fail_their_type_only() {
    let setup = Setup::new().await;
    push_bad_lines(&setup);
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    let reason = failure(&report, PATIENT);
    assert!(reason.contains("2 of 7 lines of Patient") && reason.contains("sync.max_quarantined_percent"), "{reason}");
    assert_eq!((setup.watermark(PATIENT).await, setup.lines(PATIENT).await.len()), (None, 0));
    assert!(setup.watermark(OBSERVATION).await.is_some());
    assert_eq!(setup.quarantine().await.len(), 2);
    setup.server.world(fhir_sync::demo::World::clear_pushed_lines);
    setup.complete().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_broken_line_is_kept_whole_up_to_the_longest_that_is_allowed() {
    let mut setup = Setup::new().await;
    setup.config.quarantine.max_quarantined_percent = 50.0;
    setup.config.max_line_bytes = 4000;
    let broken = format!("{{\"resourceType\":\"Patient\",\"id\":\"{}", "x".repeat(4000));
    setup.server.world(|world| {
        world.push_line(PATIENT, broken[..4000].to_owned());
        world.push_line(PATIENT, json!({"resourceType": "Patient", "id": "last"}).to_string());
    });
    let report = setup.sync().await;
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::Committed { .. }), "{report:#?}");
    assert_eq!(report.types[&PATIENT].quarantined, 1);
    let kept = setup.quarantine().await;
    assert_eq!(
        kept.iter().map(|row| row.content.as_deref().unwrap()).collect::<Vec<_>>(),
        [&broken.as_bytes()[..4000]]
    );
}

/// (rule 75)
#[tokio::test]
async fn a_line_that_is_too_long_to_be_kept_holds_the_watermark_of_its_type_and_no_row_of_it() {
    for pushed in [format!("{{\"resourceType\":\"Patient\",\"id\":\"{}", "x".repeat(4000)), "x".repeat(9_000_000)] {
        let mut setup = Setup::new().await;
        let last = json!({"resourceType": "Patient", "id": "last"}).to_string();
        setup.config.max_line_bytes = 4000;
        setup.config.quarantine.max_quarantined_percent = 50.0;
        setup.server.world(|world| {
            world.push_line(PATIENT, pushed.clone());
            world.push_line(PATIENT, last.clone());
        });
        for _ in 0..2 {
            let report = setup.sync().await;
            assert!(matches!(end_of(&report, PATIENT), TypeEnd::WatermarkHeld { .. }), "{report:#?}");
            assert_eq!((report.types[&PATIENT].quarantined, setup.lines(PATIENT).await.len()), (1, 6));
            assert!(
                report.remarks.iter().any(|remark| remark.contains("line 6 is longer than 4000 bytes")),
                "{report:#?}"
            );
            assert_eq!((setup.watermark(PATIENT).await, setup.watermark(OBSERVATION).await.is_some()), (None, true));
        }
        let kept = setup.quarantine().await;
        let places: Vec<_> = kept.iter().map(|row| (row.line, row.bytes, row.reason.as_str(), &row.content)).collect();
        assert_eq!(places, [(6, pushed.len() as u64, "too-long", &None)]);
        setup.server.world(|world| {
            world.clear_pushed_lines();
            world.push_line(PATIENT, last);
        });
        setup.complete().await;
    }
}

#[tokio::test]
async fn a_line_that_is_too_long_in_a_file_of_deletions_holds_every_type() {
    let mut setup = Setup::new().await;
    setup.config.max_line_bytes = 4000;
    let patient = json!({"resourceType": "Patient", "id": "p1"});
    Made::default()
        .output("Patient", 1, &ndjson([&patient]))
        .deleted(None, &format!("{{{}", "x".repeat(5000)))
        .serve(&setup);
    let report = setup.sync().await;
    assert!(report.remarks.iter().any(|remark| remark.contains("longer than 4000 bytes")), "{report:#?}");
    assert_eq!((setup.watermark(PATIENT).await, setup.watermark(OBSERVATION).await), (None, None));
}

#[tokio::test]
async fn the_content_of_a_bad_line_is_never_printed() {
    let setup = Setup::new().await;
    push_bad_lines(&setup);
    for (limit, code) in [("50", 3), ("1", 3)] {
        let limits = [("FHIR_SYNC__SYNC__MAX_QUARANTINED", "0"), ("FHIR_SYNC__SYNC__MAX_QUARANTINED_PERCENT", limit)];
        let ended = setup.process(&limits).await;
        assert_eq!(ended.code, Some(code), "{}", ended.output());
        assert!(ended.stderr.contains("2 lines are not resources; they are kept in"), "{}", ended.stderr);
        assert!(ended.stderr.contains("DEBUG"), "{}", ended.stderr);
        assert!(!ended.output().contains(MARK), "{}", ended.output());
        assert!(!ended.output().contains("1970-01-01"), "the content of a good line was printed: {}", ended.output());
    }
}

/// (rules 56 and 76)
#[tokio::test]
async fn fewer_lines_than_announced_fail_their_type_only_and_the_next_sync_loads_it() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| {
        scenario.count_offset.insert(PATIENT, 2);
    });
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(3), "{}", ended.output());
    assert!(ended.stdout.contains("Patient file 1 of 1: 7 lines were announced and 5 received"), "{}", ended.stdout);
    assert_eq!((setup.watermark(PATIENT).await, setup.lines(PATIENT).await.len()), (None, 0));
    assert!(setup.watermark(OBSERVATION).await.is_some());
    setup.server.scenario(|scenario| scenario.count_offset.clear());
    setup.complete().await;
    setup.assert_same_as_server().await;
}

/// (rule 56)
#[tokio::test]
async fn more_lines_than_announced_are_all_stored() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| {
        scenario.count_offset.insert(PATIENT, -2);
    });
    setup.complete().await;
    setup.assert_same_as_server().await;
}

/// (rules 76 and 77)
#[tokio::test]
async fn a_download_that_was_cut_is_completed_with_every_row_once() {
    for gzip in [true, false] {
        let setup = Setup::new().await;
        setup.server.scenario(|scenario| {
            scenario.gzip = gzip;
            let path_contains = "/Patient.1".to_owned();
            scenario.faults = vec![Fault::CutAfter { path_contains, bytes: if gzip { 40 } else { 300 }, times: 1 }];
        });
        let report = setup.complete().await;
        assert_eq!((report.types[&PATIENT].received, report.types[&PATIENT].counts.duplicate), (5, 0));
        assert_eq!(setup.file_requests(), 3);
        setup.assert_same_as_server().await;
    }
}

/// (rule 77)
#[tokio::test]
async fn a_file_that_changed_between_two_attempts_fails_its_type_and_the_next_sync_loads_it() {
    let setup = Setup::new().await;
    let path_contains = "/Patient.1".to_owned();
    let mut lines = setup.server.world(|world| world.lines(PATIENT, None));
    lines[0] = lines[0].replace("female", "sealed").into();
    setup.server.scenario(|scenario| {
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
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(failure(&report, PATIENT).contains("changed between two readings"), "{report:#?}");
    assert_eq!(setup.lines(PATIENT).await.len(), 0);
    setup.complete().await;
    setup.assert_same_as_server().await;
}

/// (rule 76, Q-48, Q-85, F3)
#[tokio::test]
async fn a_file_that_ends_in_the_middle_of_a_line_fails_its_type_and_the_next_sync_loads_it() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| {
        // Only the line itself shows that something is missing.
        (scenario.gzip, scenario.omit_counts) = (false, true);
        scenario.faults = vec![Fault::EndAfter { path_contains: "/Patient.1".to_owned(), bytes: 300, times: 2 }];
    });
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    let reason = failure(&report, PATIENT);
    assert!(reason.contains("Patient file 1 of 1") && reason.contains("middle of a line"), "{reason}");
    assert_eq!((setup.watermark(PATIENT).await, setup.lines(PATIENT).await.len()), (None, 0));
    setup.complete().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_file_that_the_server_lost_fails_its_type_and_the_next_sync_loads_it() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| {
        scenario.faults = vec![Fault::Status {
            path_contains: "/Patient.1".to_owned(),
            status: StatusCode::GONE,
            // The first link, and that of the manifest that is fetched again.
            times: 2,
            retry_after: None,
            body: String::new(),
        }];
    });
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(failure(&report, PATIENT).contains("no longer has this file"), "{report:#?}");
    assert!(setup.watermark(OBSERVATION).await.is_some());
    setup.complete().await;
    setup.assert_same_as_server().await;
}
