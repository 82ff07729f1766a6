use std::fs;

use fhir_sync::{
    state::{Found, Store, peek},
    sync::Outcome,
};
use serde_json::json;

use crate::harness::{PATIENT, Stage};

/// A stage after its first sync, on whose server something has changed.
async fn synced() -> Stage {
    let stage = Stage::set().await;
    stage.complete().await;
    stage.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    stage
}

/// The next sync asks for what changed only, and leaves the state file whole.
async fn assert_goes_on(stage: &Stage) {
    stage.complete().await;
    assert_eq!(stage.server.jobs().last().unwrap().since.as_deref(), Some("2026-01-01T00:55:00.000Z"));
    stage.assert_in_step().await;
    let (store, found) = Store::open(&stage.state_file()).unwrap();
    assert_eq!(found, Found::Whole);
    assert_eq!(store.state().exports["all"].watermarks.get(&PATIENT).copied(), stage.watermark(PATIENT).await);
}

fn previous(stage: &Stage) -> std::path::PathBuf {
    stage.state_file().with_file_name("state.json.previous")
}

#[tokio::test]
async fn a_lost_state_file_is_made_again_from_the_tables() {
    let stage = synced().await;
    fs::remove_dir_all(stage.folder.path().join("state")).unwrap();
    assert_goes_on(&stage).await;
}

#[tokio::test]
async fn a_broken_state_file_gives_way_to_the_one_before_it() {
    let stage = synced().await;
    fs::write(stage.state_file(), "{\"format\": 1, \"chec").unwrap();
    assert_goes_on(&stage).await;
}

#[tokio::test]
async fn two_broken_state_files_are_made_again_from_the_tables_and_one_is_kept() {
    let stage = synced().await;
    for path in [stage.state_file(), previous(&stage)] {
        fs::write(path, "garbage").unwrap();
    }
    assert_goes_on(&stage).await;
    assert_eq!(fs::read_to_string(stage.state_file().with_file_name("state.json.broken")).unwrap(), "garbage");
}

#[tokio::test]
async fn a_broken_state_file_without_tables_stops_with_a_sentence_and_asks_nobody() {
    let stage = Stage::set().await;
    fs::create_dir_all(stage.folder.path().join("state")).unwrap();
    fs::write(stage.state_file(), "garbage").unwrap();
    let ended = stage.process(&[]).await;
    assert_eq!(ended.code, Some(78), "{}", ended.said());
    let place = stage.state_file().display().to_string();
    assert!(ended.stderr.contains(&format!("delete {place} to begin anew with a full load")), "{}", ended.stderr);
    assert!(stage.server.requests().is_empty());
    fs::remove_file(stage.state_file()).unwrap();
    stage.complete().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_state_file_of_a_newer_format_stops_with_a_sentence_and_is_left_alone() {
    let stage = synced().await;
    let newer = r#"{"format": 9, "checksum": "", "state": {}}"#;
    fs::write(stage.state_file(), newer).unwrap();
    let before = stage.server.requests().len();
    let ended = stage.process(&[]).await;
    assert_eq!(ended.code, Some(78), "{}", ended.said());
    assert!(ended.stderr.contains("state.json is of format 9, which a newer fhir-sync wrote"), "{}", ended.stderr);
    assert_eq!(stage.server.requests().len(), before);
    assert_eq!(fs::read_to_string(stage.state_file()).unwrap(), newer);
}

#[tokio::test]
async fn the_old_one_field_form_is_accepted_and_the_first_sync_loads_everything() {
    let stage = Stage::set().await;
    fs::create_dir_all(stage.folder.path().join("state")).unwrap();
    fs::write(stage.state_file(), r#"{"last_sync_time": "2026-01-01T00:30:00+00:00"}"#).unwrap();
    stage.complete().await;
    assert_eq!(stage.server.jobs()[0].since, None);
    stage.assert_in_step().await;
    assert_eq!(peek(&stage.state_file()).unwrap().last_sync_before_migration, None, "our own sync speaks for itself");
}

#[tokio::test]
async fn the_tables_are_right_where_the_state_file_disagrees() {
    let stage = synced().await;
    {
        let (mut store, _) = Store::open(&stage.state_file()).unwrap();
        let later = fhir_sync::fhir::parse_instant("2026-06-01T00:00:00Z").unwrap().into();
        store.update(|state| _ = state.exports.get_mut("all").unwrap().watermarks.insert(PATIENT, later)).unwrap();
    }
    assert_goes_on(&stage).await;
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_made_stops_before_anybody_is_asked() {
    let stage = Stage::set().await;
    fs::write(stage.folder.path().join("state"), "in the way").unwrap();
    let ended = stage.process(&[]).await;
    assert_eq!(ended.code, Some(78), "{}", ended.said());
    let place = stage.folder.path().join("state").display().to_string();
    assert!(ended.stderr.contains(&format!("{place} cannot be used; check the folder's owner")), "{}", ended.stderr);
    assert!(stage.server.requests().is_empty());
    fs::remove_file(&place).unwrap();
    assert_eq!(stage.sync().await.outcome, Outcome::Complete);
}
