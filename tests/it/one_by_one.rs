use std::fs;

use axum::http::StatusCode;
use fhir_sync::{demo::Fault, state::peek, sync::Outcome};
use serde_json::json;

use crate::harness::{OBSERVATION, PATIENT, Setup, failure};

fn refused(path_contains: &str, status: StatusCode, times: u32) -> Fault {
    let path_contains = path_contains.to_owned();
    Fault::Status { path_contains, status, times, retry_after: None, body: String::new() }
}

fn jobs(setup: &Setup) -> Vec<fhir_sync::state::JobInFlight> {
    peek(&setup.state_file()).unwrap().exports.remove("all").unwrap().jobs
}

///
#[tokio::test]
async fn a_type_that_the_server_refuses_does_not_keep_the_others_from_being_asked() {
    for status in [StatusCode::FORBIDDEN, StatusCode::BAD_REQUEST] {
        let setup = Setup::new().await;
        setup.server.scenario(|scenario| scenario.faults = vec![refused("Patient", status, 100)]);
        let report = setup.sync().await;
        assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
        assert_eq!((setup.lines(OBSERVATION).await.len(), setup.lines(PATIENT).await.len()), (4, 0));
        assert!(report.remarks.iter().any(|remark| remark.contains(status.as_str())), "{report:#?}");
        setup.server.scenario(|scenario| scenario.faults.clear());
        setup.complete().await;
        setup.assert_same_as_server().await;
    }
}

#[tokio::test]
async fn a_refused_increment_does_not_keep_a_new_type_from_being_loaded() {
    let mut setup = Setup::new().await;
    setup.export.types = vec![OBSERVATION];
    setup.complete().await;
    setup.export.types = vec![OBSERVATION, PATIENT];
    setup.server.scenario(|scenario| scenario.faults = vec![refused("_since", StatusCode::BAD_REQUEST, 100)]);
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    assert_eq!(setup.lines(PATIENT).await.len(), 5);
}

/// (rules 103 and 104)
#[tokio::test]
async fn a_job_is_kept_for_the_types_that_may_still_come_and_deleted_after_them() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| {
        scenario.faults = vec![refused("Patient.", StatusCode::SERVICE_UNAVAILABLE, 1_000_000)];
    });
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    failure(&report, PATIENT);
    assert!(!setup.server.jobs()[0].deleted, "hours of work of the server");
    assert_eq!(jobs(&setup)[0].types, [PATIENT]);
    setup.server.scenario(|scenario| scenario.faults.clear());
    let report = setup.sync().await;
    assert_eq!(report.types[&PATIENT].counts.inserted, 5, "{report:#?}");
    let of_server = setup.server.jobs();
    assert_eq!((of_server.len(), of_server[0].deleted), (2, true), "the second is the increment of the other type");
    assert!(jobs(&setup).is_empty());
    setup.assert_same_as_server().await;
}

/// (rules 104 and 105, Q-25)
#[tokio::test]
async fn a_job_is_cancelled_before_it_is_given_up() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| {
        scenario.faults = vec![Fault::NotAManifest { body: "<html>maintenance</html>".to_owned(), times: 1_000_000 }];
    });
    assert_eq!(setup.sync().await.outcome, Outcome::Failed);
    assert!(setup.server.jobs()[0].deleted || !jobs(&setup).is_empty());
    setup.server.scenario(|scenario| scenario.faults.clear());
    setup.complete().await;
    let left = setup.server.jobs().into_iter().filter(|job| !job.deleted).count();
    assert_eq!(left, 0, "no job is left on the server");
}

#[tokio::test]
async fn a_table_that_cannot_be_opened_fails_its_type_only() {
    let setup = Setup::new().await;
    setup.complete().await;
    let log = setup.table_folder(PATIENT).join("_delta_log/00000000000000000000.json");
    let whole = fs::read(&log).unwrap();
    fs::write(&log, "{\"protocol\":").unwrap();
    setup.later(|world| {
        world.put(OBSERVATION, "o5", json!({"status": "final"}));
        world.put(PATIENT, "p6", json!({}));
    });
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    assert!(failure(&report, PATIENT).contains("move it away"), "{}", failure(&report, PATIENT));
    assert_eq!(setup.lines(OBSERVATION).await.len(), 5);
    assert_eq!(setup.server.jobs()[1].types, [OBSERVATION], "nothing is asked that could not be stored");
    fs::write(&log, whole).unwrap();
    setup.complete().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_type_that_fails_for_hours_does_not_drag_the_others_back() {
    let setup = Setup::new().await;
    setup.complete().await;
    let log = setup.table_folder(PATIENT).join("_delta_log/00000000000000000000.json");
    let whole = fs::read(&log).unwrap();
    fs::write(&log, "{").unwrap();
    for _ in 0..3 {
        setup.later(|_| {});
        setup.sync().await;
    }
    fs::write(&log, whole).unwrap();
    setup.later(|_| {});
    setup.complete().await;
    let last: Vec<_> = setup.server.jobs().into_iter().skip(4).map(|job| (job.types, job.since.unwrap())).collect();
    assert_eq!(
        last,
        [
            (vec![OBSERVATION], "2026-01-01T03:55:00.000Z".to_owned()),
            (vec![PATIENT], "2026-01-01T00:55:00.000Z".to_owned())
        ]
    );
    setup.assert_same_as_server().await;
}
