use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
};

use chrono::TimeDelta;
use fhir_sync::state::peek;
use serde_json::json;

use crate::harness::{Daemon, Ended, PATIENT, Process, Setup, eventually};

/// The settings of a server that needs a key, which only the service has.
const KEY_ELSEWHERE: [(&str, &str); 2] =
    [("FHIR_SYNC__SERVER__CLIENT_ID", "client"), ("FHIR_SYNC__SERVER__PRIVATE_KEY_FILE", "/run/credentials/none/key")];

fn socket(setup: &Setup) -> std::path::PathBuf {
    setup.folder.path().join("state/state.json.socket")
}

/// A daemon whose tables have two small files of patients, and nothing to do.
async fn idle() -> (Setup, Daemon) {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    setup.complete().await;
    let daemon = Daemon::start(&setup, &[]).await;
    (setup, daemon)
}

fn assert_code(ended: &Ended, code: i32) {
    assert_eq!(ended.code, Some(code), "{}", ended.output());
}

#[tokio::test]
async fn the_running_daemon_maintains_on_command_and_the_output_is_that_of_the_command_alone() {
    let (setup, daemon) = idle().await;
    assert_eq!(fs::metadata(socket(&setup)).unwrap().permissions().mode() & 0o777, 0o600);
    let dry_run = setup.command(&["maintain", "--dry-run"], &KEY_ELSEWHERE).await;
    assert_code(&dry_run, 0);
    assert!(dry_run.stdout.contains("dry run: nothing was changed"), "{}", dry_run.stdout);
    let vacuum_only = [("FHIR_SYNC__MAINTENANCE__STEPS", "vacuum")];
    assert_code(&setup.command(&["maintain"], &vacuum_only).await, 0);
    assert_eq!(setup.data_files(PATIENT).len(), 2, "the settings of the command were those of the work");
    assert_code(&setup.command(&["maintain"], &[]).await, 0);
    assert_eq!(setup.data_files(PATIENT).len(), 3, "two files, and the one that replaces them");
    let rebuilt = setup.command(&["maintain", "--rebuild", "Patient", "Encounter"], &KEY_ELSEWHERE).await;
    assert_code(&rebuilt, 0);
    let expected = "Patient: 6 rows rebuilt, version 4\nEncounter: there is no table\n";
    assert_eq!(rebuilt.stdout, expected, "{}", rebuilt.output());
    let by_daemon = setup.command(&["maintain", "--dry-run"], &[]).await;
    daemon.process.logged("a command by hand begins").await;
    daemon.stop().await;
    assert!(!socket(&setup).exists(), "a daemon that has stopped takes no commands");
    let alone = setup.command(&["maintain", "--dry-run"], &[]).await;
    assert_eq!((alone.code, alone.stdout), (by_daemon.code, by_daemon.stdout));
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_sync_by_hand_is_done_by_the_running_daemon_without_the_key() {
    let (setup, daemon) = idle().await;
    setup.later(|world| {
        world.put(PATIENT, "p7", json!({}));
    });
    let ended = setup.command(&["sync"], &KEY_ELSEWHERE).await;
    assert_code(&ended, 0);
    assert!(ended.stdout.contains("complete after"), "{}", ended.stdout);
    assert!(ended.stdout.contains("1 row changed"), "{}", ended.stdout);
    setup.assert_same_as_server().await;
    let full = setup.command(&["sync", "--full-refresh", "--allow-empty", "Patient"], &[]).await;
    assert_code(&full, 0);
    assert!(full.stdout.contains(", full refresh\n"), "{}", full.stdout);
    setup.server.world(|world| world.push_line(PATIENT, "{not json}"));
    assert_code(&setup.command(&["sync"], &[]).await, 3);
    assert_eq!(daemon.health().await.1["exports"]["all"]["last_outcome"], json!("partial"));
    daemon.stop().await;
}

#[tokio::test]
async fn a_command_that_is_interrupted_ends_what_it_asked_for_and_nothing_else() {
    let (setup, daemon) = idle().await;
    setup.server.scenario(|scenario| scenario.hold = true);
    let command = setup.start("sync", &[]);
    eventually("a job", async || (setup.server.jobs().len() == 3).then_some(())).await;
    command.terminate().await;
    let ended = command.end().await;
    assert_code(&ended, 130);
    assert!(ended.stdout.contains("stopped after"), "{}", ended.stdout);
    assert_eq!(peek(&setup.state_file()).unwrap().exports["all"].jobs.len(), 1, "the next sync continues");
    let killed = setup.start("sync", &[]);
    daemon.eventually_health("a sync", |_, body| !body["exports"]["all"]["now"].is_null()).await;
    killed.kill().await;
    daemon.eventually_health("its end", |_, body| body["exports"]["all"]["now"].is_null()).await;
    assert_eq!(daemon.get("/readyz").await.0, 200);
    setup.server.scenario(|scenario| scenario.hold = false);
    assert_code(&setup.command(&["sync"], &[]).await, 0);
    assert_eq!(setup.server.jobs().len(), 3);
    daemon.stop().await;
}

#[tokio::test]
async fn cancelling_the_export_for_which_the_daemon_waits_ends_its_sync_first() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold = true);
    let daemon = Daemon::start(&setup, &[]).await;
    eventually("a poll", async || setup.server.jobs().first().filter(|job| job.polls > 0).map(drop)).await;
    let ended = setup.command(&["job", "cancel", "all"], &KEY_ELSEWHERE).await;
    assert_code(&ended, 0);
    assert!(ended.stdout.contains("was cancelled"), "{}", ended.stdout);
    assert!(setup.server.jobs()[0].deleted);
    daemon.process.logged("sync stopped").await;
    assert_eq!(peek(&setup.state_file()).unwrap().exports["all"].jobs, []);
    setup.server.scenario(|scenario| scenario.hold = false);
    assert_code(&setup.command(&["sync"], &[]).await, 0);
    assert_eq!(setup.server.jobs().len(), 2, "nobody asked for another export meanwhile");
    daemon.stop().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn watermarks_and_the_quarantine_are_changed_beside_the_running_daemon() {
    let (setup, daemon) = idle().await;
    let watermark = setup.watermark(PATIENT).await.unwrap();
    let at = |minutes| (watermark.instant() + TimeDelta::minutes(minutes)).to_rfc3339();
    assert_code(&setup.command(&["state", "set-since", "all", "Patient", &at(-40)], &KEY_ELSEWHERE).await, 0);
    assert_eq!(setup.watermark(PATIENT).await, Some((watermark.instant() - TimeDelta::minutes(40)).into()));
    let later = setup.command(&["state", "set-since", "all", "Patient", &at(-5)], &[]).await;
    assert_code(&later, 1);
    assert!(later.stderr.contains("is later than its watermark"), "{}", later.stderr);
    setup.later(|world| {
        for number in 0..2 {
            world.push_line(PATIENT, format!("{{not json {number}}}"));
        }
    });
    assert_code(&setup.command(&["sync"], &[]).await, 3);
    let ids: Vec<_> = setup.quarantine().await.into_iter().map(|row| row.id).collect();
    let corrected = setup.folder.path().join("mended.json");
    fs::write(&corrected, r#"{"resourceType":"Patient","id":"mended"}"#).unwrap();
    let corrected = corrected.to_str().unwrap();
    let replayed = setup.command(&["quarantine", "replay", &ids[0][..12], "--file", corrected], &KEY_ELSEWHERE).await;
    assert_code(&replayed, 0);
    assert!(replayed.stdout.contains("1 line replayed, 0 stay"), "{}", replayed.stdout);
    let nothing = setup.command(&["quarantine", "purge", "zz"], &[]).await;
    assert_code(&nothing, 1);
    assert!(nothing.stderr.contains("no line in the quarantine"), "{}", nothing.stderr);
    let purged = setup.command(&["quarantine", "purge", "--all"], &KEY_ELSEWHERE).await;
    assert_code(&purged, 0);
    assert!(purged.stdout.starts_with("2 lines purged"), "{}", purged.stdout);
    daemon.stop().await;
}

#[tokio::test]
async fn a_command_with_another_configuration_than_the_daemon_is_refused() {
    let (setup, daemon) = idle().await;
    let elsewhere = setup.folder.path().join("elsewhere").display().to_string();
    let ended = setup.command(&["maintain"], &[("FHIR_SYNC__TABLES__ROOT", &elsewhere)]).await;
    assert_code(&ended, 78);
    assert!(ended.stderr.contains("keeps the tables in"), "{}", ended.stderr);
    let path = setup.folder.path().join("changed.toml");
    fs::write(&path, setup.config().replace("\"Observation\", ", "")).unwrap();
    let ended = Process::start(&["sync", "--config", path.to_str().unwrap()], &[]).end().await;
    assert_code(&ended, 78);
    assert!(ended.stderr.contains("if its configuration was changed, restart the service"), "{}", ended.stderr);
    daemon.stop().await;
}

#[tokio::test]
async fn the_socket_of_a_killed_daemon_is_ignored_and_the_next_daemon_replaces_it() {
    let (setup, daemon) = idle().await;
    daemon.process.kill().await;
    assert!(socket(&setup).exists());
    assert_code(&setup.command(&["maintain", "--dry-run"], &[]).await, 0);
    let daemon = Daemon::start(&setup, &[]).await;
    assert_code(&setup.command(&["maintain", "--dry-run"], &[]).await, 0);
    daemon.process.logged("a command by hand ends").await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_does_not_ask_the_server_needs_no_key_and_a_sync_without_one_names_the_way_out() {
    let setup = Setup::new().await;
    setup.complete().await;
    let patient = [("FHIR_SYNC__SERVER__CLIENT_ID", "client"), KEY_ELSEWHERE[1]];
    for words in [
        &["maintain"][..],
        &["maintain", "--dry-run"],
        &["maintain", "--rebuild", "Patient"],
        &["verify"],
        &["status"],
        &["runs"],
        &["quarantine", "list"],
        &["quarantine", "purge", "--all"],
        &["state", "show"],
        &["job", "show"],
    ] {
        assert_code(&setup.command(words, &patient).await, 0);
    }
    #[cfg(feature = "sql")]
    assert_code(&setup.command(&["query", "SELECT count(*) FROM Patient"], &patient).await, 0);
    let ended = setup.command(&["sync"], &KEY_ELSEWHERE).await;
    assert_code(&ended, 78);
    assert!(ended.stderr.contains("start the service, and give the command again"), "{}", ended.stderr);
}

#[tokio::test]
async fn the_commands_that_only_look_work_beside_a_daemon_that_is_syncing() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|_| {});
    setup.server.scenario(|scenario| scenario.hold = true);
    let daemon = Daemon::start(&setup, &[]).await;
    let sync = setup.start("sync", &[]);
    eventually("a job", async || (setup.server.jobs().len() == 2).then_some(())).await;
    for words in [&["verify"][..], &["status"], &["runs"], &["quarantine", "list"], &["state", "show"]] {
        assert_code(&setup.command(words, &KEY_ELSEWHERE).await, 0);
    }
    #[cfg(feature = "sql")]
    assert_code(&setup.command(&["query", "SELECT count(*) FROM Patient"], &KEY_ELSEWHERE).await, 0);
    setup.server.scenario(|scenario| scenario.hold = false);
    assert_code(&sync.end().await, 0);
    daemon.stop().await;
}

fn is_root() -> bool {
    fs::metadata("/proc/self").map(|process| process.uid()).unwrap() == 0
}

/// Gives the folder and all in it to `nobody`.
fn give_away(folder: &std::path::Path) {
    std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            give_away(&path);
        } else {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
}

const NOBODY: u32 = 65534;

/// Files below a folder that do not belong to `nobody`.
fn of_others(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(of_others(&path));
        }
        if fs::symlink_metadata(&path).unwrap().uid() != NOBODY {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn a_command_by_root_leaves_no_file_that_the_service_cannot_write() {
    if !is_root() {
        return; // Only root can give a file away.
    }
    for is_reachable in [true, false] {
        let setup = Setup::new().await;
        setup.complete().await;
        setup.later(|world| {
            world.put(PATIENT, "p6", json!({}));
        });
        let folders = [setup.folder.path().join("state"), setup.lake()];
        for folder in &folders {
            give_away(folder);
        }
        let mode = if is_reachable { 0o755 } else { 0o700 };
        fs::set_permissions(setup.folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        assert_code(&setup.command(&["sync"], &[]).await, 0);
        assert_code(&setup.command(&["maintain"], &[]).await, 0);
        for folder in &folders {
            assert_eq!(of_others(folder), Vec::<std::path::PathBuf>::new(), "reachable: {is_reachable}");
        }
        setup.assert_same_as_server().await;
    }
}

/// The test of this name, run as another user, is the client.
const AS_ANOTHER_USER: &str = "FHIR_SYNC_TEST_SOCKET";

#[tokio::test]
async fn another_user_cannot_give_a_command_to_the_daemon() {
    if let Some(socket) = std::env::var_os(AS_ANOTHER_USER) {
        let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let mut answer = String::new();
        // The daemon may have closed it already.
        let _ = stream.write_all(b"{\"protocol\":1}\n");
        let _ = stream.read_to_string(&mut answer);
        assert_eq!(answer, "");
        return;
    }
    if !is_root() {
        return; // Only root can become another user.
    }
    let (setup, daemon) = idle().await;
    for folder in [setup.folder.path().to_owned(), setup.folder.path().join("state")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // Whoever may open the socket is still asked who he is.
    fs::set_permissions(socket(&setup), fs::Permissions::from_mode(0o666)).unwrap();
    let client = tokio::process::Command::new("/proc/self/exe")
        .args(["--exact", "control::another_user_cannot_give_a_command_to_the_daemon"])
        .env(AS_ANOTHER_USER, socket(&setup))
        .uid(NOBODY)
        .output();
    let client = client.await.unwrap();
    assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stdout));
    daemon.process.logged("a command of another user was refused").await;
    daemon.stop().await;
}
