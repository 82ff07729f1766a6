use std::fs;

use fhir_sync::{
    state::{Found, OpenState, peek},
    sync::{Mode, Outcome},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{PATIENT, Setup, eventually, json_of};

/// A setup after its first sync, with a new resource on the server.
async fn synced() -> Setup {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    setup
}

/// The next sync is incremental and leaves a valid state file.
async fn assert_next_sync_is_incremental(setup: &Setup) {
    setup.complete().await;
    assert_eq!(setup.server.jobs().last().unwrap().since.as_deref(), Some("2026-01-01T00:55:00.000Z"));
    setup.assert_same_as_server().await;
    let (open_state, found) = OpenState::open(&setup.state_file()).unwrap();
    assert_eq!(found, Found::Whole);
    assert_eq!(open_state.state().exports["all"].watermarks.get(&PATIENT).copied(), setup.watermark(PATIENT).await);
}

fn previous(setup: &Setup) -> std::path::PathBuf {
    setup.state_file().with_file_name("state.json.previous")
}

/// (rule 137)
#[tokio::test]
async fn a_lost_state_file_is_recreated_from_the_tables() {
    let setup = synced().await;
    fs::remove_dir_all(setup.folder.path().join("state")).unwrap();
    assert_next_sync_is_incremental(&setup).await;
}

#[tokio::test]
async fn a_broken_state_file_is_replaced_by_the_one_before_it() {
    let setup = synced().await;
    fs::write(setup.state_file(), "{\"format\": 1, \"chec").unwrap();
    assert_next_sync_is_incremental(&setup).await;
}

#[tokio::test]
async fn two_broken_state_files_are_recreated_from_the_tables_and_one_is_kept() {
    let setup = synced().await;
    for path in [setup.state_file(), previous(&setup)] {
        fs::write(path, "garbage").unwrap();
    }
    assert_next_sync_is_incremental(&setup).await;
    assert_eq!(fs::read_to_string(setup.state_file().with_file_name("state.json.broken")).unwrap(), "garbage");
}

#[tokio::test]
async fn a_broken_state_file_is_shown_as_it_was_before_and_two_broken_ones_are_not_shown_as_empty() {
    let setup = synced().await;
    let before = peek(&previous(&setup)).unwrap();
    fs::write(setup.state_file(), "{\"format\": 1, \"chec").unwrap();
    assert_eq!(peek(&setup.state_file()).unwrap(), before);
    let shown = setup.command(&["state", "show"], &[]).await;
    assert_eq!(shown.code, Some(0), "{}", shown.output());
    fs::write(previous(&setup), "garbage").unwrap();
    for words in [["state", "show"], ["job", "show"]] {
        let shown = setup.command(&words, &[]).await;
        assert_eq!((shown.code, shown.stdout.as_str()), (Some(1), ""), "{}", shown.output());
        assert!(shown.stderr.contains("its previous generation is missing or broken too"), "{}", shown.stderr);
    }
}

/// (rule 136)
#[tokio::test]
async fn a_broken_state_file_without_tables_stops_with_a_sentence_before_any_request() {
    let setup = Setup::new().await;
    fs::create_dir_all(setup.folder.path().join("state")).unwrap();
    fs::write(setup.state_file(), "garbage").unwrap();
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.output());
    let place = setup.state_file().display().to_string();
    assert!(ended.stderr.contains(&format!("delete {place} to start again with a full load")), "{}", ended.stderr);
    assert_eq!(fs::read_to_string(setup.state_file()).unwrap(), "garbage", "the refusal wrote over it");
    assert_eq!(setup.process(&[]).await.code, Some(1), "the second start did not load everything again");
    assert!(setup.server.requests().is_empty());
    fs::remove_file(setup.state_file()).unwrap();
    setup.complete().await;
    setup.assert_same_as_server().await;
}

/// (rule 136)
#[tokio::test]
async fn a_state_file_of_a_newer_format_stops_with_a_sentence_and_is_not_changed() {
    let setup = synced().await;
    let newer = r#"{"format": 9, "checksum": "", "state": {}}"#;
    fs::write(setup.state_file(), newer).unwrap();
    let before = setup.server.requests().len();
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.output());
    assert!(ended.stderr.contains("state.json has format 9, which only a newer fhir-sync reads"), "{}", ended.stderr);
    assert_eq!(setup.server.requests().len(), before);
    assert_eq!(fs::read_to_string(setup.state_file()).unwrap(), newer);
}

#[tokio::test]
async fn the_old_state_file_with_one_field_is_accepted_and_the_first_sync_loads_everything() {
    let setup = Setup::new().await;
    fs::create_dir_all(setup.folder.path().join("state")).unwrap();
    fs::write(setup.state_file(), r#"{"last_sync_time": "2026-01-01T00:30:00+00:00"}"#).unwrap();
    setup.complete().await;
    assert_eq!(setup.server.jobs()[0].since, None);
    setup.assert_same_as_server().await;
    assert_eq!(peek(&setup.state_file()).unwrap().last_sync_before_migration, None, "no longer needed");
}

/// (rule 137)
#[tokio::test]
async fn where_tables_and_state_file_disagree_the_tables_decide() {
    let setup = synced().await;
    {
        let (mut open_state, _) = OpenState::open(&setup.state_file()).unwrap();
        let later = fhir_sync::fhir::parse_instant("2026-06-01T00:00:00Z").unwrap().into();
        open_state.update(|state| _ = state.exports.get_mut("all").unwrap().watermarks.insert(PATIENT, later)).unwrap();
    }
    assert_next_sync_is_incremental(&setup).await;
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_created_stops_before_any_request() {
    let setup = Setup::new().await;
    fs::write(setup.folder.path().join("state"), "in the way").unwrap();
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(75), "{}", ended.output());
    let place = setup.folder.path().join("state").display().to_string();
    assert!(ended.stderr.contains(&format!("{place} cannot be used; check the folder's owner")), "{}", ended.stderr);
    assert!(setup.server.requests().is_empty());
    fs::remove_file(&place).unwrap();
    assert_eq!(setup.sync().await.outcome, Outcome::Complete);
}

/// A sync with something else in the place of a file of the state must be refused with this text, before any request.
async fn assert_refused(put: impl FnOnce(&std::path::Path), text: &str) {
    let setup = Setup::new().await;
    let state = setup.folder.path().join("state");
    fs::create_dir_all(&state).unwrap();
    put(&state);
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.output());
    assert!(ended.stderr.contains(text), "{}", ended.stderr);
    assert!(setup.server.requests().is_empty());
}

#[tokio::test]
async fn a_link_in_the_place_of_a_state_file_is_not_followed() {
    let victim = tempfile::NamedTempFile::new().unwrap();
    fs::write(victim.path(), "of somebody else").unwrap();
    let link = |name: &'static str| {
        let victim = victim.path();
        move |state: &std::path::Path| std::os::unix::fs::symlink(victim, state.join(name)).unwrap()
    };
    assert_refused(link("state.json"), "state.json cannot be used: it is a symbolic link").await;
    assert_refused(link("state.json.lock"), "state.json.lock cannot be used: it is a symbolic link").await;
    let setup = Setup::new().await;
    setup.complete().await;
    for name in ["state.json.new", "state.json.previous", "state.json.broken"] {
        let _ = fs::remove_file(setup.state_file().with_file_name(name));
        link(name)(setup.state_file().parent().unwrap());
    }
    setup.complete().await;
    assert_eq!(fs::read_to_string(victim.path()).unwrap(), "of somebody else");
}

#[tokio::test]
async fn a_fifo_or_a_folder_in_the_place_of_the_state_file_is_named() {
    let fifo = |state: &std::path::Path| {
        let made = std::process::Command::new("mkfifo").arg(state.join("state.json")).status().unwrap();
        assert!(made.success());
    };
    assert_refused(fifo, "state.json cannot be used: it is a FIFO").await;
    let folder = |state: &std::path::Path| fs::create_dir(state.join("state.json")).unwrap();
    assert_refused(folder, "state.json cannot be used: it is a folder").await;
}

#[tokio::test]
async fn a_state_folder_that_every_user_may_write_to_is_reported() {
    use std::os::unix::fs::PermissionsExt as _;
    let setup = synced().await;
    fs::set_permissions(setup.folder.path().join("state"), fs::Permissions::from_mode(0o777)).unwrap();
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert!(ended.output().contains("other users can replace the state file"), "{}", ended.output());
}

#[tokio::test]
async fn a_state_file_of_another_user_is_refused() {
    if fs::metadata("/proc/self").map(|process| std::os::unix::fs::MetadataExt::uid(&process)).unwrap() != 0 {
        return; // Only root can give a file away.
    }
    let setup = synced().await;
    std::os::unix::fs::chown(setup.state_file().with_extension("json.lock"), Some(65534), None).unwrap();
    let before = setup.server.requests().len();
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.output());
    let text = "state.json.lock cannot be used: it belongs to user 65534, and fhir-sync runs as user 0";
    assert!(ended.stderr.contains(text), "{}", ended.stderr);
    assert_eq!(setup.server.requests().len(), before);
}

/// The documents of the state, in a folder that several machines could share.
fn shared(setup: &Setup, name: &str) -> std::path::PathBuf {
    setup.folder.path().join("shared").join(name)
}

#[tokio::test]
async fn a_process_on_another_machine_continues_with_the_state_that_a_killed_one_left_in_the_store() {
    let setup = Setup::new().await.with_state_in_documents();
    setup.server.scenario(|scenario| scenario.hold = true);
    let [first, second] = ["first", "second"].map(|name| setup.folder.path().join(name));
    for folder in [&first, &second] {
        fs::create_dir(folder).unwrap();
    }
    let killed = setup.start("sync", &[("FHIR_SYNC__SYNC__SPOOL_FOLDER", first.to_str().unwrap())]);
    eventually("a poll", async || setup.server.jobs().first().filter(|job| job.polls > 0).map(drop)).await;
    killed.kill().await;
    let state = setup.state.peek().await.unwrap();
    assert_eq!((state.run, state.exports["all"].jobs.len()), (1, 1));
    setup.server.scenario(|scenario| scenario.hold = false);
    let ended = setup.process(&[("FHIR_SYNC__SYNC__SPOOL_FOLDER", second.to_str().unwrap())]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert_eq!(setup.server.jobs().len(), 1, "the job in flight was resumed");
    setup.assert_same_as_server().await;
    let state = setup.state.peek().await.unwrap();
    assert_eq!((state.run, state.exports["all"].jobs.len()), (2, 0));
    assert!(!setup.state_file().exists(), "nothing of the state is on the machine");
}

#[tokio::test]
async fn commands_read_and_change_the_state_in_the_store_beside_a_daemon() {
    let mut setup = Setup::new().await.with_state_in_documents();
    let spool = setup.folder.path().join("state").display().to_string();
    let settings = [("FHIR_SYNC__SYNC__SPOOL_FOLDER", spool.as_str())];
    setup.schedule = "0 0 5 29 2 *";
    let daemon = setup.start("run", &settings);
    daemon.health().await;
    let first_sync = async || {
        let state = setup.state.peek().await.unwrap();
        state.exports.get("all").is_some_and(|known| known.last_complete_at.is_some()).then_some(())
    };
    eventually("the first sync", first_sync).await;
    let synced = setup.command(&["sync"], &settings).await;
    assert_eq!(synced.code, Some(0), "the daemon does it: {}", synced.output());
    let shown = setup.command(&["state", "show"], &settings).await;
    assert!(shown.stdout.starts_with(&format!("{}: last run 2", setup.state.shown())), "{}", shown.output());
    let status = setup.command(&["status", "--json"], &settings).await;
    assert_eq!(json_of(&status)["run"], 2);
    daemon.terminate().await;
    assert_eq!(daemon.end().await.code, Some(0));
    let lease: serde_json::Value = serde_json::from_slice(&fs::read(shared(&setup, "lease.json")).unwrap()).unwrap();
    assert_eq!(lease["released"], true);
}

#[tokio::test]
async fn a_lost_or_broken_state_in_the_store_is_recreated_from_the_tables() {
    for name in ["state.json", "exports/all.json"] {
        for text in [None, Some("garbage")] {
            let setup = Setup::new().await.with_state_in_documents();
            setup.complete().await;
            for path in [shared(&setup, name), shared(&setup, &format!("{name}.previous"))] {
                match text {
                    Some(text) => fs::write(path, text).unwrap(),
                    None => fs::remove_file(path).unwrap(),
                }
            }
            setup.later(|world| {
                world.put(PATIENT, "p6", json!({}));
            });
            setup.complete().await;
            assert_eq!(setup.server.jobs().last().unwrap().since.as_deref(), Some("2026-01-01T00:55:00.000Z"));
            setup.assert_same_as_server().await;
        }
    }
}

#[tokio::test]
async fn a_process_that_lost_the_state_to_another_one_asks_the_server_for_nothing() {
    let setup = Setup::new().await.with_state_in_documents();
    setup.complete().await;
    let syncer = setup.open().await.unwrap();
    let mut taken: serde_json::Value =
        serde_json::from_slice(&fs::read(shared(&setup, "lease.json")).unwrap()).unwrap();
    taken["epoch"] = (taken["epoch"].as_u64().unwrap() + 1).into();
    taken["name"] = "somebody else".into();
    fs::write(shared(&setup, "lease.json"), taken.to_string()).unwrap();
    let text = fs::read_to_string(shared(&setup, "state.json")).unwrap();
    fs::write(shared(&setup, "state.json"), text + "\n").unwrap();
    let requests = setup.server.requests().len();
    let report = syncer.run(&setup.export, Mode::Incremental, &CancellationToken::new()).await;
    assert_eq!(report.outcome, Outcome::Failed, "{report:#?}");
    assert!(report.remarks[0].contains("another fhir-sync has taken over the state"), "{report:#?}");
    assert_eq!(setup.server.requests().len(), requests);
}
