use chrono::TimeDelta;
use fhir_sync::{
    demo::{Fault, StatusCode},
    state::OpenState,
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{CONDITION, Daemon, Made, PATIENT, Setup, eventually, json_of, ndjson};

/// One type of the export in an answer.
fn of_type<'a>(body: &'a Value, name: &str) -> &'a Value {
    &body["exports"]["all"]["types"][name]
}

fn last_outcome(body: &Value) -> &Value {
    &body["exports"]["all"]["last_outcome"]
}

#[tokio::test]
async fn health_becomes_unhealthy_when_the_data_are_too_old() {
    let setup = Setup::new().await;
    setup.complete().await;
    let daemon = Daemon::start(&setup, &[("FHIR_SYNC__HEALTH__MAX_AGE", "1s")]).await;
    let body = daemon.eventually_health("old age", |status, _| status == 503).await;
    assert_eq!((&body["status"], &body["max_age_seconds"]), (&json!("unhealthy"), &json!(1)));
    assert!(body["data_age_seconds"].as_u64().is_some_and(|age_seconds| age_seconds >= 1), "{body}");
    assert_eq!(daemon.get("/readyz").await.0, 200);
    daemon.stop().await;
}

/// (Q-68)
#[tokio::test]
async fn a_failed_sync_is_counted_in_health_until_the_next_one_succeeds() {
    let mut setup = Setup::new().await;
    setup.schedule = "* * * * * *";
    setup.server.scenario(|scenario| {
        scenario.faults = vec![Fault::Status {
            path_contains: "$export".to_owned(),
            status: StatusCode::FORBIDDEN,
            // The request for both types, then for each of them.
            times: 3,
            retry_after: None,
            body: String::new(),
        }];
        scenario.hold = true;
    });
    let daemon = Daemon::start(&setup, &[]).await;
    let failed = |_, body: &Value| body["exports"]["all"]["failures_in_a_row"] == json!(1);
    let body = daemon.eventually_health("a failure", failed).await;
    assert_eq!(body["exports"]["all"]["last_outcome"], json!("failed"));
    setup.server.scenario(|scenario| scenario.hold = false);
    let has_succeeded = |status, body: &Value| status == 200 && body["exports"]["all"]["failures_in_a_row"] == json!(0);
    daemon.eventually_health("health", has_succeeded).await;
    daemon.stop().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn data_are_as_old_as_the_kick_off_of_a_job_that_was_resumed() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold = true);
    let stop = CancellationToken::new();
    {
        let syncer = setup.open().await.unwrap();
        let kicked_off = eventually("a job", async || (setup.server.jobs().len() == 1).then(|| stop.cancel()));
        let (report, ()) =
            tokio::join!(syncer.run(&setup.export, fhir_sync::sync::Mode::Incremental, &stop), kicked_off);
        assert_eq!(report.outcome, fhir_sync::sync::Outcome::Stopped);
        syncer.close().await;
    }
    {
        let (mut open_state, _) = OpenState::open(&setup.state_file()).unwrap();
        let hours_ago = |state: &mut fhir_sync::state::State| {
            let job = &mut state.exports.get_mut("all").unwrap().jobs[0];
            job.kicked_off_locally_at -= TimeDelta::hours(3);
        };
        open_state.update(hours_ago).unwrap();
    }
    setup.server.scenario(|scenario| scenario.hold = false);
    let daemon = Daemon::start(&setup, &[("FHIR_SYNC__HEALTH__MAX_AGE", "2h")]).await;
    let is_complete = |_, body: &Value| *last_outcome(body) == json!("complete");
    let body = daemon.eventually_health("the resumed sync", is_complete).await;
    assert_eq!(body["status"], json!("unhealthy"), "{body}");
    assert!(body["age_seconds"].as_u64().is_some_and(|age_seconds| age_seconds < 60), "{body}");
    assert!(body["data_age_seconds"].as_u64().is_some_and(|age_seconds| age_seconds >= 3 * 3600), "{body}");
    daemon.stop().await;
    assert_eq!(setup.server.jobs().len(), 1);
}

#[tokio::test]
async fn data_are_too_old_when_the_sync_took_longer_than_they_may_be() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold = true);
    let daemon = Daemon::start(&setup, &[("FHIR_SYNC__HEALTH__MAX_AGE", "1s")]).await;
    // At most 20 polls in a second.
    eventually("a long wait", async || (setup.server.jobs().first()?.polls >= 60).then_some(())).await;
    setup.server.scenario(|scenario| scenario.hold = false);
    let is_complete = |_, body: &Value| *last_outcome(body) == json!("complete");
    let body = daemon.eventually_health("the sync", is_complete).await;
    assert_eq!(body["status"], json!("unhealthy"), "{body}");
    daemon.stop().await;
}

#[tokio::test]
async fn tables_that_are_not_those_of_the_last_sync_are_unhealthy_at_once() {
    let setup = Setup::new().await;
    setup.complete().await;
    let other = setup.folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    let daemon = Daemon::start(&setup, &[("FHIR_SYNC__TABLES__ROOT", other.to_str().unwrap())]).await;
    let (status, body) = daemon.health().await;
    assert_eq!((status, of_type(&body, "Patient")["data_as_of"].clone()), (503, Value::Null), "{body}");
    assert_ne!(body["last_sync"], Value::Null, "there was a sync");
    let failed = |_, body: &Value| *last_outcome(body) == json!("failed");
    let body = daemon.eventually_health("the sync that was started at once", failed).await;
    let warnings = body["exports"]["all"]["warnings"].to_string();
    assert!(warnings.contains("none of the tables of the last sync is in"), "{warnings}");
    daemon.stop().await;
    let daemon = Daemon::start(&setup, &[]).await;
    daemon.eventually_health("the tables again", |status, _| status == 200).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_type_that_was_never_loaded_is_unhealthy_and_asked_for_at_once() {
    let mut setup = Setup::new().await;
    setup.complete().await;
    setup.server.world(|world| world.put(CONDITION, "c1", json!({})));
    setup.export.types.push(CONDITION);
    setup.server.scenario(|scenario| scenario.hold = true);
    let daemon = Daemon::start(&setup, &[]).await;
    let (status, body) = daemon.health().await;
    assert_eq!(status, 503);
    assert_eq!(body["exports"]["all"]["oldest_type"], json!("Condition"));
    assert_eq!(of_type(&body, "Patient")["status"], json!("healthy"));
    eventually("an export", async || (setup.server.jobs().len() == 2).then_some(())).await;
    setup.server.scenario(|scenario| scenario.hold = false);
    // The data are fresh a little before the run has ended.
    let is_committed =
        |status, body: &Value| status == 200 && of_type(body, "Condition")["last_end"] == json!("committed");
    daemon.eventually_health("health", is_committed).await;
    daemon.stop().await;
}

#[tokio::test]
async fn the_time_of_the_script_is_in_health_and_no_success_of_ours() {
    let setup = Setup::new().await;
    std::fs::create_dir_all(setup.folder.path().join("state")).unwrap();
    std::fs::write(setup.state_file(), r#"{"last_sync_time": "2026-01-01T00:30:00+00:00"}"#).unwrap();
    setup.server.scenario(|scenario| scenario.hold = true);
    let daemon = Daemon::start(&setup, &[]).await;
    eventually("an export", async || (setup.server.jobs().len() == 1).then_some(())).await;
    let loads = |_, body: &Value| body["exports"]["all"]["now"] != Value::Null;
    let body = daemon.eventually_health("the first load", loads).await;
    assert_eq!((&body["status"], &body["last_sync"]), (&json!("unhealthy"), &json!("2026-01-01T00:30:00Z")), "{body}");
    let success = "fhir_sync_last_success_timestamp_seconds{export=\"all\"} 0\n";
    assert!(daemon.get("/metrics").await.1.contains(success), "nothing of ours was complete");
    let page = daemon.get("/").await.1;
    assert!(page.contains("<h1>The first load is in progress</h1>"), "{page}");
    setup.server.scenario(|scenario| scenario.hold = false);
    daemon.stop().await;
}

#[tokio::test]
async fn a_line_in_quarantine_is_a_warning_and_the_data_are_fresh() {
    let setup = Setup::new().await;
    let patients: Vec<Value> = (1..=200).map(|id| json!({"resourceType": "Patient", "id": format!("p{id}")})).collect();
    let lines = format!("{}not json\n", ndjson(&patients));
    let observations = ndjson(&[json!({"resourceType": "Observation", "id": "o1", "status": "final", "code": {}})]);
    Made::default().output("Patient", None, &lines).output("Observation", None, &observations).serve(&setup);
    let daemon = Daemon::start(&setup, &[]).await;
    let partial = |_, body: &Value| *last_outcome(body) == json!("partial");
    let body = daemon.eventually_health("a partial sync", partial).await;
    assert_eq!((&body["status"], &body["last_sync"]), (&json!("healthy"), &Value::Null), "{body}");
    assert!(body["exports"]["all"]["warnings"].to_string().contains("quarantine"), "{body}");
    daemon.stop().await;
}

#[tokio::test]
async fn what_the_last_run_left_open_survives_a_restart() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.server.scenario(|scenario| {
        scenario.faults = vec![Fault::Status {
            path_contains: "$export".to_owned(),
            status: StatusCode::FORBIDDEN,
            times: 9,
            retry_after: None,
            body: String::new(),
        }];
    });
    let report = setup.sync().await;
    let daemon = Daemon::start(&setup, &[]).await;
    let (status, body) = daemon.health().await;
    let export = &body["exports"]["all"];
    assert_eq!(status, 200, "the data are fresh: {body}");
    assert_eq!((&export["last_outcome"], &export["failures_in_a_row"]), (&json!("failed"), &json!(1)));
    assert_eq!(export["warnings"], json!(report.warnings()));
    assert_eq!(of_type(&body, "Patient")["last_end"], json!("not reached"));
    daemon.stop().await;
    setup.server.scenario(|scenario| scenario.faults.clear());
    setup.complete().await;
    let known = fhir_sync::state::peek(&setup.state_file()).unwrap().exports["all"].freshness.clone();
    assert_eq!((known.failures_in_a_row, known.warnings.len()), (0, 0));
    assert!(known.data_as_of.contains_key(&PATIENT));
}

#[tokio::test]
async fn a_checker_may_ask_for_one_export_and_set_its_own_bar() {
    let setup = Setup::new().await;
    setup.complete().await;
    let daemon = Daemon::start(&setup, &[]).await;
    eventually("an age of a second", async || {
        let is_older = daemon.health().await.1["data_age_seconds"].as_u64() >= Some(1);
        is_older.then_some(())
    })
    .await;
    let (status, body) = daemon.get("/health/all?max_age=1ms").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["status"], &body["max_age_seconds"]), (503, &json!("unhealthy"), &json!(0)));
    assert_eq!(daemon.get("/health?max_age=1ms").await.0, 503);
    assert_eq!(daemon.get("/health?max_age=90m").await.0, 200);
    assert_eq!(daemon.get("/health/all").await.0, 200);
    let (status, sentence) = daemon.get("/health/other").await;
    assert_eq!((status, sentence.as_str()), (404, "there is no such export; the exports are all\n"));
    for query in ["max_age=soon", "max_age=0s", "maxage=90m", "max_age=1h&max_age=2h"] {
        let (status, sentence) = daemon.get(&format!("/health?{query}")).await;
        assert_eq!(status, 400, "{query}");
        assert!(sentence.starts_with("max_age is "), "{sentence}");
        assert_eq!(daemon.get(&format!("/health/all?{query}")).await.0, 400, "{query}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn every_answer_is_of_this_moment_and_head_has_no_body() {
    let setup = Setup::new().await;
    setup.complete().await;
    let daemon = Daemon::start(&setup, &[]).await;
    for path in ["/health", "/health/all", "/health/other", "/health?wrong", "/livez", "/readyz", "/nothing"] {
        let response = daemon.response(Method::HEAD, path).await;
        assert_eq!(response.headers()["cache-control"], "no-store", "{path}");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff", "{path}");
        let status = response.status();
        assert!(response.bytes().await.unwrap().is_empty(), "{path}");
        assert_eq!(daemon.get(path).await.0, status.as_u16(), "{path}");
    }
    assert_eq!(daemon.response(Method::POST, "/health").await.status(), 405, "nothing can be changed over HTTP");
    daemon.stop().await;
}

#[tokio::test]
async fn a_healthcheck_takes_the_address_from_the_configuration() {
    let setup = Setup::new().await;
    setup.complete().await;
    let daemon = Daemon::start(&setup, &[]).await;
    let address = daemon.address().to_owned();
    let settings = [("FHIR_SYNC__HEALTH__LISTEN", address.as_str())];
    let fresh = setup.command(&["healthcheck"], &settings).await;
    assert_eq!(fresh.code, Some(0), "{}", fresh.output());
    for (url, code) in [("", 0), ("/", 0), ("/health/all", 0), ("/livez", 1), ("/nothing", 1), ("/metrics", 1)] {
        let asked = setup.command(&["healthcheck", "--url", &format!("http://{address}{url}")], &[]).await;
        assert_eq!(asked.code, Some(code), "{url}: {}", asked.output());
    }
    let strict = setup.command(&["healthcheck", "--max-age", "1ms"], &settings).await;
    assert_eq!((strict.code, strict.stdout.contains("unhealthy")), (Some(1), true), "{}", strict.output());
    daemon.stop().await;
    let ended = setup.command(&["healthcheck"], &settings).await;
    let says = format!("http://{}/health does not answer", settings[0].1);
    assert!(ended.code == Some(1) && ended.stderr.contains(&says), "{}", ended.output());
}

#[tokio::test]
async fn status_says_by_its_exit_code_whether_data_are_too_old() {
    let setup = Setup::new().await;
    setup.complete().await;
    for (max_age, code) in [("3h", 0), ("0s", 1)] {
        let ended = setup.command(&["status", "--json", "--max-age", max_age], &[]).await;
        assert_eq!(ended.code, Some(code), "{}", ended.output());
        assert_eq!(ended.stderr.contains("all: the data of Patient are of "), code == 1, "{}", ended.output());
        assert!(json_of(&ended)["exports"][0]["types"][0]["data_as_of"].is_string(), "{}", ended.output());
    }
}
