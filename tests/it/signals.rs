use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tokio::{net::UnixDatagram, task::JoinSet};

use crate::harness::{Daemon, PATIENT, Setup, eventually};

const RELOADED: &str = "the configuration was reloaded; runs that have begun keep theirs";

/// The file of a daemon that was started with [`Daemon::with_config`].
fn file(setup: &Setup) -> PathBuf {
    setup.folder.path().join("daemon.toml")
}

#[tokio::test]
async fn a_reload_changes_schedule_and_filter_while_a_sync_goes_on() {
    let mut setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold = true);
    let config = setup.config().replace("filter = \"trace\"", "filter = \"info\"");
    let daemon = Daemon::with_config(&setup, &config, &[]).await;
    eventually("a poll", async || setup.server.jobs().first().filter(|job| job.polls > 0).map(drop)).await;
    setup.schedule = "* * * * * *";
    fs::write(file(&setup), setup.config()).unwrap();
    daemon.process.signal("HUP").await;
    daemon.process.logged(RELOADED).await;
    daemon.process.logged("the previous run is not done; this tick joins the waiting one").await;
    assert_eq!(setup.server.jobs().len(), 1, "the sync that was running goes on");
    setup.server.scenario(|scenario| scenario.hold = false);
    eventually("a sync by the new schedule", async || (setup.server.jobs().len() >= 2).then_some(())).await;
    daemon.process.logged("the turn begins").await;
    daemon.stop().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_configuration_that_cannot_be_used_changes_nothing_and_what_needs_a_restart_is_named() {
    let setup = Setup::new().await;
    let daemon = Daemon::with_config(&setup, &setup.config(), &[]).await;
    daemon.process.logged("sync complete").await;
    fs::write(file(&setup), setup.config().replace("[tables]", "[table]")).unwrap();
    daemon.process.signal("HUP").await;
    let refused = daemon.process.logged("the configuration cannot be used; the one of before stays").await;
    assert!(refused["mistakes"].as_str().unwrap().contains("table: is not a key"), "{refused}");
    assert_eq!((&refused["level"], daemon.get("/readyz").await.0), (&json!("ERROR"), 200));
    let changed = setup.config().replace("127.0.0.1:0", "127.0.0.1:1").replace("hospital", "clinic");
    fs::write(file(&setup), changed.replace("\"Observation\", ", "")).unwrap();
    daemon.process.signal("HUP").await;
    daemon.process.logged(RELOADED).await;
    let named = daemon.process.logged("these changes take effect after a restart of the service only").await;
    assert_eq!(named["keys"], json!("server.source, health.listen, the export \"all\""));
    assert_eq!((&named["level"], daemon.get("/readyz").await.0), (&json!("WARN"), 200));
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    daemon.process.signal("USR1").await;
    eventually("a sync", async || (setup.server.jobs().len() == 2).then_some(())).await;
    eventually("its end", async || setup.server.jobs()[1].deleted.then_some(())).await;
    daemon.stop().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_hangup_during_a_reload_has_the_configuration_read_once_more() {
    let setup = Setup::new().await;
    let daemon = Daemon::with_config(&setup, &setup.config(), &[("PATH", "/usr/bin:/bin")]).await;
    let pipe = setup.folder.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let waits = format!("{}[notify]\nwebhook_url_exec = [\"cat\", \"{}\"]\n", setup.config(), pipe.display());
    fs::write(file(&setup), waits).unwrap();
    daemon.process.signal("HUP").await;
    // Opening the pipe waits for the command that reads it.
    let into = pipe.clone();
    let mut opening = JoinSet::new();
    opening.spawn_blocking(move || fs::File::create(into).unwrap());
    let mut writer = opening.join_next().await.unwrap().unwrap();
    fs::write(file(&setup), setup.config().replace("hospital", "clinic")).unwrap();
    daemon.process.signal("HUP").await;
    daemon.process.logged("SIGHUP: the configuration is being read; it is read once more afterwards").await;
    std::io::Write::write_all(&mut writer, b"http://127.0.0.1:9/hook").unwrap();
    drop(writer);
    let named = daemon.process.logged("these changes take effect after a restart of the service only").await;
    assert_eq!(named["keys"], json!("server.source"));
    daemon.stop().await;
}

#[tokio::test]
async fn a_signal_syncs_every_export_now() {
    let setup = Setup::new().await;
    setup.complete().await;
    let daemon = Daemon::start(&setup, &[]).await;
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    daemon.process.signal("USR1").await;
    daemon.process.logged("sync complete").await;
    setup.assert_same_as_server().await;
    daemon.stop().await;
}

/// Waits for a notification with this line.
async fn notified(systemd: &UnixDatagram, line: &str) -> String {
    let mut bytes = [0; 4096];
    eventually(line, async || {
        let read = systemd.recv(&mut bytes).await.unwrap();
        let text = String::from_utf8_lossy(&bytes[..read]).into_owned();
        text.lines().any(|found| found == line).then_some(text)
    })
    .await
}

#[tokio::test]
async fn systemd_is_told_when_a_reload_begins_and_ends() {
    let setup = Setup::new().await;
    let socket = setup.folder.path().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    let daemon = Daemon::start(&setup, &[("NOTIFY_SOCKET", socket.to_str().unwrap())]).await;
    notified(&systemd, "READY=1").await;
    daemon.process.signal("HUP").await;
    let begins = notified(&systemd, "RELOADING=1").await;
    assert!(begins.contains("MONOTONIC_USEC="), "{begins}");
    notified(&systemd, "READY=1").await;
    daemon.process.terminate().await;
    notified(&systemd, "STOPPING=1").await;
    assert_eq!(daemon.process.end().await.code, Some(0));
}

#[tokio::test]
async fn a_sync_that_hangs_is_named_and_the_watchdog_is_no_longer_fed() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold_files = true);
    let socket = setup.folder.path().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    let settings = [("NOTIFY_SOCKET", socket.to_str().unwrap()), ("FHIR_SYNC__DAEMON__STALL_TIMEOUT", "1s")];
    let daemon = Daemon::start(&setup, &settings).await;
    notified(&systemd, "WATCHDOG=1").await;
    let hangs = "no progress within daemon.stall_timeout: it hangs, and /livez fails until it advances or the process \
                 is started again";
    let named = daemon.process.logged(hangs).await;
    assert_eq!((&named["level"], &named["export"]), (&json!("ERROR"), &json!("all")));
    assert_eq!(named["step"], json!("streaming files"));
    assert_ne!(named["since_s"], Value::Null);
    eventually("the liveness probe", async || (daemon.get("/livez").await.0 == 503).then_some(())).await;
    setup.server.scenario(|scenario| scenario.hold_files = false);
    eventually("the liveness probe", async || (daemon.get("/livez").await.0 == 200).then_some(())).await;
    daemon.stop().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_hangup_ends_a_sync_by_hand_as_it_ends_any_program() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold = true);
    let sync = setup.start("sync", &[]);
    eventually("a job", async || (setup.server.jobs().len() == 1).then_some(())).await;
    sync.signal("HUP").await;
    assert_eq!(sync.end().await.code, None, "a signal ended it");
    setup.server.scenario(|scenario| scenario.hold = false);
    setup.complete().await;
}
