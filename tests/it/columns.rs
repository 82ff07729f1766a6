use fhir_sync::{
    demo::{Fault, StatusCode},
    resource::{Layout, Options},
};
use serde_json::json;

use crate::{
    harness::{CONDITION, PATIENT, Setup},
    read_back,
};

fn patients(setup: &Setup, columns: &[&str]) -> String {
    read_back::draw(&read_back::read(&setup.table_folder(PATIENT), columns).unwrap())
}

fn has_column(setup: &Setup, column: &str) -> bool {
    read_back::read(&setup.table_folder(PATIENT), &[column]).is_ok()
}

#[tokio::test]
async fn each_element_has_a_column() {
    let setup = Setup::new().await;
    setup.server.world(|world| {
        world.put(PATIENT, "p1", json!({"gender": "female", "birthDate": "1970-05", "colour": "red"}));
    });
    setup.complete().await;
    let drawn = patients(&setup, &["id", "gender", "birthDate", "__birthDate_end", "_sync_issues"]);
    let row = drawn.lines().find(|line| line.contains("p1")).unwrap();
    for cell in ["female", "1970-05 ", "1970-05-31T23:59:59.999999Z", "unmapped: Patient.colour"] {
        assert!(row.contains(cell), "{cell} is not in {row}");
    }
}

#[tokio::test]
async fn tables_of_another_fhir_version_have_the_leading_columns_and_the_line() {
    let setup = Setup::new().await;
    let statement = json!({"resourceType": "CapabilityStatement", "fhirVersion": "5.0.0"});
    let fault = Fault::Status {
        path_contains: "/metadata".to_owned(),
        status: StatusCode::OK,
        times: 9,
        retry_after: None,
        body: statement.to_string(),
    };
    setup.server.scenario(|scenario| scenario.faults.push(fault));
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert_eq!(ended.stderr.matches("does not speak FHIR R4").count(), 1, "{}", ended.stderr);
    setup.assert_same_as_server().await;
    assert!(!has_column(&setup, "gender"));
}

/// What `/metadata` answers from now on.
fn metadata(setup: &Setup, status: StatusCode, body: &str) {
    let fault = Fault::Status {
        path_contains: "/metadata".to_owned(),
        status,
        times: 99,
        retry_after: None,
        body: body.to_owned(),
    };
    setup.server.scenario(|scenario| scenario.faults = vec![fault]);
}

fn version(of: &str) -> String {
    json!({"resourceType": "CapabilityStatement", "fhirVersion": of}).to_string()
}

#[tokio::test]
async fn a_server_that_fails_to_say_its_version_changes_no_columns_and_rewrites_nothing() {
    for of in ["4.0.1", "4.3.0", "5.0.0"] {
        let mut setup = Setup::new().await;
        metadata(&setup, StatusCode::OK, &version(of));
        setup.complete().await;
        let is_typed = of == "4.0.1";
        assert_eq!(has_column(&setup, "gender"), is_typed, "{of}");
        let files = setup.data_files(PATIENT);
        for (status, body) in [
            (StatusCode::INTERNAL_SERVER_ERROR, ""),
            (StatusCode::OK, "<html>maintenance"),
            (StatusCode::OK, r#"{"resourceType":"CapabilityStatement"}"#),
        ] {
            metadata(&setup, status, body);
            setup.later(|world| {
                world.put(PATIENT, "p1", json!({"gender": "male"}));
            });
            setup.complete().await;
            assert_eq!(has_column(&setup, "gender"), is_typed, "{of}: {status} {body}");
        }
        assert!(setup.data_files(PATIENT).is_superset(&files), "nothing was written again");
        setup.assert_same_as_server().await;

        setup.export.types.push(CONDITION);
        setup.server.world(|world| world.put(CONDITION, "c1", json!({"recordedDate": "2020-01-01"})));
        setup.complete().await;
        let has_elements = read_back::read(&setup.table_folder(CONDITION), &["recordedDate"]).is_ok();
        assert_eq!(has_elements, is_typed, "a new table is like those of the version that was told last");
    }
}

#[tokio::test]
async fn the_columns_of_a_table_say_what_the_server_spoke_where_the_state_file_is_lost() {
    let setup = Setup::new().await;
    metadata(&setup, StatusCode::OK, &version("4.3.0"));
    setup.complete().await;
    metadata(&setup, StatusCode::INTERNAL_SERVER_ERROR, "");
    std::fs::remove_file(setup.state_file()).unwrap();
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
    });
    setup.complete().await;
    assert!(!has_column(&setup, "gender"));
}

#[tokio::test]
async fn for_untyped_tables_the_server_is_not_asked_for_its_version() {
    let mut setup = Setup::new().await;
    setup.config.typed = false;
    setup.complete().await;
    setup.assert_same_as_server().await;
    assert!(setup.server.requests().iter().all(|request| !request.path.contains("metadata")));
    assert!(!has_column(&setup, "gender"));
}

#[tokio::test]
async fn untyped_tables_get_their_columns_when_typed_is_switched_on() {
    let mut setup = Setup::new().await;
    setup.config.typed = false;
    setup.complete().await;
    setup.config.typed = true;
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "female"}));
    });
    setup.complete().await;
    setup.assert_same_as_server().await;
    assert!(patients(&setup, &["id", "gender"]).contains("female"));
    assert_eq!(
        patients(&setup, &["id", "id_versioned"]).matches("Patient/").count(),
        1,
        "the others were not written again"
    );
    let before = patients(&setup, &["id", "_sync_at", "_sync_source", "_sync_hash", "resource_json"]);
    let watermark = setup.watermark(PATIENT).await;
    let rebuilt = setup.open().await.unwrap().rebuild(PATIENT).await.unwrap().unwrap();
    assert_eq!(rebuilt.counts.updated, 5);
    assert_eq!(patients(&setup, &["id", "id_versioned"]).matches("Patient/").count(), 5);
    assert_eq!(patients(&setup, &["id", "_sync_at", "_sync_source", "_sync_hash", "resource_json"]), before);
    assert_eq!(setup.watermark(PATIENT).await, watermark);
    setup.later(|_| ());
    assert_eq!(setup.complete().await.changed(), 0);
}

/// In one data file, the rows of before have no `meta`.
#[tokio::test]
async fn rows_of_before_typed_was_switched_on_keep_their_versions_when_they_are_compacted_with_others() {
    let mut setup = Setup::new().await;
    setup.config.typed = false;
    let old = setup.server.world(|world| world.line(PATIENT, "p2").unwrap().to_owned());
    setup.later(|world| {
        world.put(PATIENT, "p2", json!({"gender": "male"}));
        world.advance(crate::harness::HOUR);
    });
    setup.complete().await;
    setup.config.typed = true;
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "female"}));
    });
    setup.complete().await;
    let ended = setup.command(&["maintain"], &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    setup.later(|world| world.push_line(PATIENT, old));
    let report = setup.complete().await;
    assert_eq!((report.types[&PATIENT].counts.stale, report.changed()), (1, 0));
    setup.server.world(fhir_sync::demo::World::clear_pushed_lines);
    setup.assert_same_as_server().await;
}

/// The decoder makes neighbours of rows with the same members; the rows of a compacted file are in another order.
#[tokio::test]
async fn a_rebuild_of_resources_with_different_members_keeps_each_in_its_row() {
    let setup = Setup::new().await;
    setup.complete().await;
    for number in 0..5 {
        setup.later(|world| {
            let member = if number % 2 == 0 { json!({"gender": "female"}) } else { json!({"birthDate": "1970"}) };
            world.put(PATIENT, &format!("of-{number}"), member);
        });
        setup.complete().await;
    }
    let ended = setup.command(&["maintain"], &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    let columns = ["id", "gender", "birthDate", "_sync_at", "_sync_job", "_sync_hash"];
    let before = patients(&setup, &columns);
    setup.open().await.unwrap().rebuild(PATIENT).await.unwrap().unwrap();
    assert_eq!(patients(&setup, &columns), before);
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_rebuild_changes_fields_inside_structs_in_one_commit() {
    let mut setup = Setup::new().await;
    setup.complete().await;
    let version = async |setup: &Setup| setup.root().open(PATIENT).await.unwrap().unwrap().version();
    let before = version(&setup).await;
    setup.config.columns = Options { layout: Layout::Wide, raw_json: true };
    setup.open().await.unwrap().rebuild(PATIENT).await.unwrap().unwrap();
    assert_eq!(version(&setup).await, before + 1);
    setup.assert_same_as_server().await;
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "female"}));
    });
    setup.complete().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn an_older_version_is_still_recognised_without_the_stored_line() {
    let mut setup = Setup::new().await;
    setup.config.columns = Options { layout: Layout::Wide, raw_json: false };
    let old = setup.server.world(|world| world.line(PATIENT, "p1").unwrap().to_owned());
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.advance(crate::harness::HOUR);
    });
    setup.complete().await;
    setup.later(|world| world.push_line(PATIENT, old));
    let report = setup.complete().await;
    assert_eq!((report.types[&PATIENT].counts.stale, report.changed()), (1, 0));
    assert!(patients(&setup, &["id", "gender"]).contains("male"));
    assert!(!has_column(&setup, "resource_json"));
}
