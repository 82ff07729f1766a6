use fhir_sync::demo::{Fault, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Ended, HOUR, PATIENT, Process, Stage, eventually};

/// A daemon at work, and where its health is to be seen.
struct Daemon {
    process: Process,
    origin: String,
}

impl Daemon {
    async fn start(stage: &Stage, settings: &[(&str, &str)]) -> Self {
        let process = stage.start("run", settings);
        let origin = process.health().await;
        Self { process, origin }
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("{}{path}", self.origin)).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn health(&self) -> (u16, Value) {
        let (status, body) = self.get("/health").await;
        (status, serde_json::from_str(&body).unwrap())
    }

    async fn eventually_health(&self, what: &str, is: impl Fn(u16, &Value) -> bool) -> Value {
        let look = async || Some(self.health().await).filter(|(status, body)| is(*status, body));
        eventually(what, look).await.1
    }

    async fn healthcheck(&self) -> Ended {
        Process::start(&["healthcheck", "--url", &format!("{}/health", self.origin)], &[]).end().await
    }

    async fn stop(self) {
        self.process.terminate().await;
        let ended = self.process.end().await;
        assert_eq!(ended.code, Some(0), "{}", ended.said());
    }
}

#[tokio::test]
async fn a_daemon_that_never_synced_does_so_at_once_and_is_healthy_from_then_on() {
    let stage = Stage::set().await;
    stage.server.scenario(|scenario| scenario.hold = true);
    let daemon = Daemon::start(&stage, &[]).await;
    let (status, body) = daemon.health().await;
    assert_eq!((status, &body["status"], &body["last_sync"]), (503, &json!("unhealthy"), &Value::Null));
    let waiting = |_, body: &Value| body["exports"]["all"]["now"].as_str().is_some_and(|now| now.contains("waiting"));
    daemon.eventually_health("the wait for the server", waiting).await;
    assert_eq!((daemon.get("/livez").await.0, daemon.get("/readyz").await.0), (200, 200));
    assert_eq!(daemon.healthcheck().await.code, Some(1));
    stage.server.scenario(|scenario| scenario.hold = false);
    let body = daemon.eventually_health("health", |status, _| status == 200).await;
    assert_eq!((&body["status"], &body["exports"]["all"]["status"]), (&json!("healthy"), &json!("healthy")));
    let last_sync = body["last_sync"].as_str().unwrap();
    assert!(fhir_sync::fhir::parse_instant(last_sync).is_some(), "{last_sync}");
    assert!(body["age_seconds"].as_u64().is_some_and(|age_seconds| age_seconds < 60), "{body}");
    assert_eq!(body["exports"]["all"]["last_outcome"], json!("complete"));
    let ended = daemon.healthcheck().await;
    assert_eq!(ended.code, Some(0), "{}", ended.said());
    daemon.stop().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_healthcheck_of_nobody_fails_with_a_sentence() {
    let ended = Process::start(&["healthcheck", "--url", "http://127.0.0.1:1/health"], &[]).end().await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("http://127.0.0.1:1/health does not answer"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_daemon_that_starts_again_remembers_how_old_its_data_are() {
    let stage = Stage::set().await;
    stage.complete().await;
    let daemon = Daemon::start(&stage, &[]).await;
    assert_eq!(daemon.health().await.0, 200);
    daemon.stop().await;
    assert_eq!(stage.server.jobs().len(), 1, "nothing was overdue");
}

#[tokio::test]
async fn ticks_sync_again_and_again_and_never_two_at_once() {
    let mut stage = Stage::set().await;
    stage.schedule = "* * * * * *";
    // A second kick-off before the first export is done with would be answered 429.
    stage.server.scenario(|scenario| (scenario.max_jobs, scenario.hold) = (1, true));
    let daemon = Daemon::start(&stage, &[]).await;
    daemon.process.logged("the run before is not done; this tick joins the waiting one").await;
    assert_eq!(stage.server.jobs().len(), 1);
    stage.later(|world| {
        world.put(PATIENT, "p6", json!({}));
        world.advance(HOUR);
    });
    stage.server.scenario(|scenario| scenario.hold = false);
    eventually("a third export", async || (stage.server.jobs().len() >= 3).then_some(())).await;
    daemon.stop().await;
    assert!(stage.server.requests().iter().all(|seen| seen.status != 429));
    stage.server.scenario(|scenario| scenario.max_jobs = 10);
    stage.complete().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn health_answers_while_tables_are_written() {
    let mut stage = Stage::set().await;
    let names = ["Account", "Basic", "Condition", "Device", "Encounter", "Flag", "Goal", "Immunization", "List"];
    stage.export.types = names.map(|name| name.parse().unwrap()).to_vec();
    stage.server.world(|world| {
        for resource_type in &stage.export.types {
            world.put(*resource_type, "one", json!({}));
        }
    });
    let daemon = Daemon::start(&stage, &[("FHIR_SYNC__SYNC__PARALLEL_UPSERTS", "1")]).await;
    let (first, last) = (stage.lake().join("Account.parquet"), stage.lake().join("List.parquet"));
    eventually("the first table", async || first.exists().then_some(())).await;
    assert_eq!((daemon.health().await.0, daemon.get("/livez").await.0), (503, 200));
    assert!(!last.exists(), "the answer came too late to prove anything");
    daemon.eventually_health("health", |status, _| status == 200).await;
    daemon.stop().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn health_turns_when_the_data_are_too_old() {
    let stage = Stage::set().await;
    stage.complete().await;
    let daemon = Daemon::start(&stage, &[("FHIR_SYNC__HEALTH__MAX_AGE", "1s")]).await;
    let body = daemon.eventually_health("old age", |status, _| status == 503).await;
    assert_eq!((&body["status"], &body["max_age_seconds"]), (&json!("unhealthy"), &json!(1)));
    assert!(body["age_seconds"].as_u64().is_some_and(|age_seconds| age_seconds >= 1), "{body}");
    assert_eq!(daemon.get("/readyz").await.0, 200);
    daemon.stop().await;
}

#[tokio::test]
async fn a_sync_that_fails_is_counted_in_health_and_the_next_tick_mends_it() {
    let mut stage = Stage::set().await;
    stage.schedule = "* * * * * *";
    stage.server.scenario(|scenario| {
        scenario.faults = vec![Fault::Status {
            path_contains: "$export".to_owned(),
            status: StatusCode::FORBIDDEN,
            times: 1,
            retry_after: None,
            body: String::new(),
        }];
        scenario.hold = true;
    });
    let daemon = Daemon::start(&stage, &[]).await;
    let failed = |_, body: &Value| body["exports"]["all"]["failures_in_a_row"] == json!(1);
    let body = daemon.eventually_health("a failure", failed).await;
    assert_eq!(body["exports"]["all"]["last_outcome"], json!("failed"));
    stage.server.scenario(|scenario| scenario.hold = false);
    let body = daemon.eventually_health("health", |status, _| status == 200).await;
    assert_eq!(body["exports"]["all"]["failures_in_a_row"], json!(0));
    daemon.stop().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_daemon_without_a_schedule_says_what_to_set() {
    let mut stage = Stage::set().await;
    stage.schedule = "";
    let config = stage.config().replace("incremental = \"\"\n", "");
    let path = stage.folder.path().join("unscheduled.toml");
    std::fs::write(&path, config).unwrap();
    let ended = Process::start(&["run", "--config", path.to_str().unwrap()], &[]).end().await;
    assert_eq!(ended.code, Some(78), "{}", ended.said());
    assert!(ended.stderr.contains("no export has a schedule; set `incremental`"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_health_address_that_is_taken_stops_the_start_with_its_name() {
    let stage = Stage::set().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let ended = stage.start("run", &[("FHIR_SYNC__HEALTH__LISTEN", &address)]).end().await;
    assert_eq!(ended.code, Some(78), "{}", ended.said());
    assert!(ended.stderr.contains(&format!("{address} cannot be listened on")), "{}", ended.stderr);
    assert!(stage.server.jobs().is_empty());
}
