use serde_json::{Value, json};

use crate::harness::{Daemon, HOUR, OBSERVATION, PATIENT, Process, RARELY, Setup, eventually};

#[tokio::test]
async fn a_new_daemon_syncs_at_once_and_is_healthy_afterwards() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold = true);
    let daemon = Daemon::start(&setup, &[]).await;
    let (status, body) = daemon.health().await;
    assert_eq!((status, &body["status"], &body["last_sync"]), (503, &json!("unhealthy"), &Value::Null));
    let waiting = |_, body: &Value| body["exports"]["all"]["now"].as_str().is_some_and(|now| now.contains("waiting"));
    daemon.eventually_health("the wait for the server", waiting).await;
    assert_eq!((daemon.get("/livez").await.0, daemon.get("/readyz").await.0), (200, 200));
    assert_eq!(daemon.healthcheck().await.code, Some(1));
    setup.server.scenario(|scenario| scenario.hold = false);
    // The data are fresh a little before the run has ended.
    let is_complete = |status, body: &Value| status == 200 && body["last_sync"] != Value::Null;
    let body = daemon.eventually_health("health", is_complete).await;
    assert_eq!((&body["status"], &body["exports"]["all"]["status"]), (&json!("healthy"), &json!("healthy")));
    let last_sync = body["last_sync"].as_str().unwrap();
    assert!(fhir_sync::fhir::parse_instant(last_sync).is_some(), "{last_sync}");
    assert!(body["age_seconds"].as_u64().is_some_and(|age_seconds| age_seconds < 60), "{body}");
    assert_eq!(body["exports"]["all"]["last_outcome"], json!("complete"));
    let ended = daemon.healthcheck().await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    daemon.stop().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_healthcheck_without_a_daemon_fails_with_a_sentence() {
    let ended = Process::start(&["healthcheck", "--url", "http://127.0.0.1:1/health"], &[]).end().await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("http://127.0.0.1:1/health does not answer"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_restarted_daemon_knows_the_age_of_its_data() {
    let setup = Setup::new().await;
    setup.complete().await;
    let daemon = Daemon::start(&setup, &[]).await;
    assert_eq!(daemon.health().await.0, 200);
    daemon.stop().await;
    assert_eq!(setup.server.jobs().len(), 1, "nothing was overdue");
}

/// (rule 135)
#[tokio::test]
async fn each_tick_starts_a_sync_and_never_two_at_once() {
    let mut setup = Setup::new().await;
    setup.schedule = "* * * * * *";
    // The server answers 429 to a second kick-off before the DELETE of the first export.
    setup.server.scenario(|scenario| (scenario.max_jobs, scenario.hold) = (1, true));
    let daemon = Daemon::start(&setup, &[]).await;
    daemon.process.logged("the previous run is not done; this tick joins the waiting one").await;
    assert_eq!(setup.server.jobs().len(), 1);
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
        world.advance(HOUR);
    });
    setup.server.scenario(|scenario| scenario.hold = false);
    eventually("a third export", async || (setup.server.jobs().len() >= 3).then_some(())).await;
    daemon.stop().await;
    assert!(setup.server.requests().iter().all(|request| request.status != 429));
    setup.server.scenario(|scenario| scenario.max_jobs = 10);
    setup.complete().await;
    setup.assert_same_as_server().await;
}

/// (rule 48)
#[tokio::test]
async fn while_an_export_waits_for_the_server_others_are_synced_and_tables_maintained() {
    let mut setup = Setup::new().await;
    setup.export.types = vec![OBSERVATION];
    setup.server.scenario(|scenario| _ = scenario.held_types.insert(PATIENT));
    let slow = format!("[[export]]\nname = \"a-slow\"\ntypes = [\"Patient\"]\nincremental = \"{RARELY}\"\n");
    let config = setup.config() + &slow;
    let daemon = Daemon::with_config(&setup, &config, &[("FHIR_SYNC__MAINTENANCE__SCHEDULE", "* * * * * *")]).await;
    let others_done = |_, body: &Value| {
        let waits =
            body["exports"]["a-slow"]["now"].as_str().is_some_and(|now| now.starts_with("waiting for the server"));
        waits && body["exports"]["all"]["last_outcome"] == json!("complete") && body["exports"]["all"]["now"].is_null()
    };
    daemon.eventually_health("the other export", others_done).await;
    daemon.process.logged("table maintained").await;
    let body = daemon.health().await.1;
    assert_eq!(body["exports"]["a-slow"]["last_outcome"], Value::Null);
    setup.server.scenario(|scenario| scenario.held_types.clear());
    daemon.eventually_health("health", |status, _| status == 200).await;
    daemon.stop().await;
    setup.export.types = vec![OBSERVATION, PATIENT];
    setup.assert_same_as_server().await;
    let runs = setup.root().ledger().await.unwrap();
    let numbers: std::collections::BTreeSet<_> = runs.iter().map(|row| (row.run, row.export.clone())).collect();
    assert_eq!(numbers.len(), 2, "each run has its number: {numbers:?}");
}

#[tokio::test]
async fn a_stop_while_two_exports_wait_keeps_both_jobs() {
    let mut setup = Setup::new().await;
    setup.export.types = vec![OBSERVATION];
    setup.server.scenario(|scenario| scenario.hold = true);
    let other = format!("[[export]]\nname = \"other\"\ntypes = [\"Patient\"]\nincremental = \"{RARELY}\"\n");
    let config = setup.config() + &other;
    let daemon = Daemon::with_config(&setup, &config, &[]).await;
    eventually("two jobs", async || {
        (setup.server.jobs().iter().filter(|job| job.polls > 0).count() == 2).then_some(())
    })
    .await;
    daemon.stop().await;
    let state = fhir_sync::state::peek(&setup.state_file()).unwrap();
    assert!(["all", "other"].iter().all(|name| state.exports[*name].jobs.len() == 1));
    setup.server.scenario(|scenario| scenario.hold = false);
    let daemon = Daemon::with_config(&setup, &config, &[]).await;
    daemon.eventually_health("health", |status, _| status == 200).await;
    daemon.stop().await;
    assert_eq!(setup.server.jobs().len(), 2);
}

#[tokio::test]
async fn health_answers_while_tables_are_written() {
    let mut setup = Setup::new().await;
    let names = ["Account", "Basic", "Condition", "Device", "Encounter", "Flag", "Goal", "Immunization", "List"];
    setup.export.types = names.map(|name| name.parse().unwrap()).to_vec();
    setup.server.world(|world| {
        for resource_type in &setup.export.types {
            world.put(*resource_type, "one", json!({}));
        }
    });
    let daemon = Daemon::start(&setup, &[("FHIR_SYNC__SYNC__PARALLEL_UPSERTS", "1")]).await;
    let (first, last) = (setup.lake().join("Account.parquet"), setup.lake().join("List.parquet"));
    eventually("the first table", async || first.exists().then_some(())).await;
    assert_eq!((daemon.health().await.0, daemon.get("/livez").await.0), (503, 200));
    assert!(!last.exists(), "the answer came too late to prove anything");
    daemon.eventually_health("health", |status, _| status == 200).await;
    daemon.stop().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_daemon_without_a_schedule_says_what_to_set() {
    let mut setup = Setup::new().await;
    setup.schedule = "";
    let config = setup.config().replace("incremental = \"\"\n", "");
    let path = setup.folder.path().join("unscheduled.toml");
    std::fs::write(&path, config).unwrap();
    let ended = Process::start(&["run", "--config", path.to_str().unwrap()], &[]).end().await;
    assert_eq!(ended.code, Some(78), "{}", ended.output());
    assert!(ended.stderr.contains("no export has a schedule; set `incremental`"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_health_address_in_use_stops_the_start_and_is_named() {
    let setup = Setup::new().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = setup.start("run", &[("FHIR_SYNC__HEALTH__LISTEN", &address)]).end().await;
    assert_eq!(ended.code, Some(75), "it may be free again: {}", ended.output());
    let events: Vec<Value> = ended.stderr.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let last = events.last().unwrap();
    assert_eq!(last["message"], json!("the daemon did not start"), "in the log's own format");
    assert!(last["error"].as_str().unwrap().contains(&format!("cannot listen on {address}")), "{last}");
    assert!(setup.server.jobs().is_empty());
}

#[tokio::test]
async fn the_log_begins_with_what_runs_and_with_what() {
    let setup = Setup::new().await;
    let daemon = Daemon::start(&setup, &[]).await;
    let start = daemon.process.logged("fhir-sync starts").await;
    assert_eq!(start["version"], json!(env!("CARGO_PKG_VERSION")));
    assert!(start["config"].as_str().unwrap().ends_with("fhir-sync.toml"), "{start}");
    assert_eq!(start["server"], json!(setup.server.url().origin().ascii_serialization()), "without path and query");
    assert_eq!((&start["tables"], &start["exports"]), (&json!(setup.lake()), &json!("all")));
    let next_run = daemon.process.logged("ready").await["next_run"].clone();
    assert!(fhir_sync::fhir::parse_instant(next_run.as_str().unwrap()).is_some(), "{next_run}");
    daemon.stop().await;
}
