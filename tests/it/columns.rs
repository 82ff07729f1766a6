use fhir_sync::{
    demo::{Fault, StatusCode},
    resource::{Options, shape::Layout},
};
use serde_json::json;

use crate::{
    harness::{PATIENT, Stage},
    read_back,
};

fn patients(stage: &Stage, columns: &[&str]) -> String {
    read_back::draw(&read_back::read(&stage.table_folder(PATIENT), columns).unwrap())
}

fn has_column(stage: &Stage, column: &str) -> bool {
    read_back::read(&stage.table_folder(PATIENT), &[column]).is_ok()
}

#[tokio::test]
async fn each_element_has_a_column() {
    let stage = Stage::set().await;
    stage.server.world(|world| {
        world.put(PATIENT, "p1", json!({"gender": "female", "birthDate": "1970-05", "colour": "red"}));
    });
    stage.complete().await;
    let drawn = patients(&stage, &["id", "gender", "birthDate", "__birthDate_end", "_sync_issues"]);
    let row = drawn.lines().find(|line| line.contains("p1")).unwrap();
    for cell in ["female", "1970-05 ", "1970-05-31T23:59:59.999999Z", "unmapped: Patient.colour"] {
        assert!(row.contains(cell), "{cell} is not in {row}");
    }
}

#[tokio::test]
async fn a_server_of_another_fhir_version_gets_the_leading_columns_and_the_line() {
    let stage = Stage::set().await;
    let statement = json!({"resourceType": "CapabilityStatement", "fhirVersion": "5.0.0"});
    let fault = Fault::Status {
        path_contains: "/metadata".to_owned(),
        status: StatusCode::OK,
        times: 9,
        retry_after: None,
        body: statement.to_string(),
    };
    stage.server.scenario(|scenario| scenario.faults.push(fault));
    let ended = stage.process(&[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said());
    assert_eq!(ended.stderr.matches("does not speak FHIR R4").count(), 1, "{}", ended.stderr);
    stage.assert_in_step().await;
    assert!(!has_column(&stage, "gender"));
}

#[tokio::test]
async fn tables_without_types_need_not_ask_for_the_version() {
    let mut stage = Stage::set().await;
    stage.config.typed = false;
    stage.complete().await;
    stage.assert_in_step().await;
    assert!(stage.server.requests().iter().all(|seen| !seen.path.contains("metadata")));
    assert!(!has_column(&stage, "gender"));
}

#[tokio::test]
async fn untyped_tables_gain_their_columns_when_types_are_switched_on() {
    let mut stage = Stage::set().await;
    stage.config.typed = false;
    stage.complete().await;
    stage.config.typed = true;
    stage.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "female"}));
    });
    stage.complete().await;
    stage.assert_in_step().await;
    assert!(patients(&stage, &["id", "gender"]).contains("female"));
    assert_eq!(
        patients(&stage, &["id", "id_versioned"]).matches("Patient/").count(),
        1,
        "the others were not written again"
    );
    let before = patients(&stage, &["id", "_sync_at", "_sync_source", "_sync_hash", "resource_json"]);
    let watermark = stage.watermark(PATIENT).await;
    let rebuilt = stage.open().await.unwrap().rebuild(PATIENT).await.unwrap().unwrap();
    assert_eq!(rebuilt.counts.updated, 5);
    assert_eq!(patients(&stage, &["id", "id_versioned"]).matches("Patient/").count(), 5);
    assert_eq!(patients(&stage, &["id", "_sync_at", "_sync_source", "_sync_hash", "resource_json"]), before);
    assert_eq!(stage.watermark(PATIENT).await, watermark);
    stage.later(|_| ());
    assert_eq!(stage.complete().await.changed(), 0);
}

#[tokio::test]
async fn a_rebuild_changes_what_lies_inside_a_struct_in_one_commit() {
    let mut stage = Stage::set().await;
    stage.complete().await;
    let version = async |stage: &Stage| stage.root().open(PATIENT).await.unwrap().unwrap().version();
    let before = version(&stage).await;
    stage.config.columns = Options { layout: Layout::Wide, raw_json: true };
    stage.open().await.unwrap().rebuild(PATIENT).await.unwrap().unwrap();
    assert_eq!(version(&stage).await, before + 1);
    stage.assert_in_step().await;
    stage.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "female"}));
    });
    stage.complete().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn without_the_line_older_versions_are_still_told_from_newer_ones() {
    let mut stage = Stage::set().await;
    stage.config.columns = Options { layout: Layout::Wide, raw_json: false };
    let old = stage.server.world(|world| world.line(PATIENT, "p1").unwrap().to_owned());
    stage.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.advance(crate::harness::HOUR);
    });
    stage.complete().await;
    stage.later(|world| world.push_line(PATIENT, old));
    let report = stage.complete().await;
    assert_eq!((report.types[&PATIENT].counts.stale, report.changed()), (1, 0));
    assert!(patients(&stage, &["id", "gender"]).contains("male"));
    assert!(!has_column(&stage, "resource_json"));
}
