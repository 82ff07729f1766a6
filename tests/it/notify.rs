use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use axum::{Router, extract::Request, http::StatusCode};
use fhir_sync::{demo::Fault, state::LeasedBy};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use crate::harness::{Daemon, PATIENT, Setup, eventually};

const SECRET: &str = "Zk9SecretOfTheReceiver";

/// A receiver of notifications, and what the state file said when each of them arrived.
struct Receiver {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    _serving: JoinSet<()>,
}

#[derive(Clone)]
struct Received {
    path: String,
    body: Value,
    /// Of the export at that moment.
    last_outcome: Option<String>,
}

impl Receiver {
    /// Answers each request with this status; without one, never.
    async fn start(setup: &Setup, status: Option<StatusCode>) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let (seen, state_file) = (Arc::clone(&received), setup.state_file());
        let answer = move |request: Request| {
            let (seen, state_file) = (Arc::clone(&seen), state_file.clone());
            async move {
                let path = request.uri().path().to_owned();
                let bytes = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
                // Before the first sync there may be none.
                let state = fhir_sync::state::peek(&state_file).unwrap_or_default();
                let last_outcome = state.exports.get("all").and_then(|export| export.freshness.last_outcome);
                seen.lock().unwrap().push(Received {
                    path: path.replace(SECRET, "secret"),
                    body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
                    last_outcome: last_outcome.map(|outcome| outcome.to_string()),
                });
                match status {
                    Some(status) => status,
                    None => std::future::pending().await,
                }
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
        Self { address, received, _serving: serving }
    }

    fn url(&self, of: &str) -> String {
        format!("http://{}/{of}/{SECRET}", self.address)
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    fn paths(&self) -> Vec<String> {
        self.received().into_iter().map(|received| received.path).collect()
    }
}

/// A file of the setup that only its owner can read.
fn secret_file(setup: &Setup, name: &str, text: &str) -> PathBuf {
    let path = setup.folder.path().join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

const HEARTBEAT: &str = "FHIR_SYNC__NOTIFY__HEARTBEAT_URL";
const HEARTBEAT_FILE: &str = "FHIR_SYNC__NOTIFY__HEARTBEAT_URL_FILE";
const WEBHOOK: &str = "FHIR_SYNC__NOTIFY__WEBHOOK_URL";

#[tokio::test]
async fn a_sync_is_announced_before_it_begins_and_reported_when_the_state_file_has_its_end() {
    let setup = Setup::new().await;
    let receiver = Receiver::start(&setup, Some(StatusCode::OK)).await;
    let heartbeat = secret_file(&setup, "heartbeat-url", &receiver.url("beat"));
    let settings = [(HEARTBEAT_FILE, heartbeat.to_str().unwrap()), (WEBHOOK, &receiver.url("hook"))];
    let ended = setup.process(&settings).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    let received = receiver.received();
    assert_eq!(received[0].path, "/beat/secret/start", "{:?}\n{}", receiver.paths(), ended.output());
    assert_eq!(received[0].last_outcome, None);
    let mut later: Vec<_> = received[1..].iter().map(|received| received.path.as_str()).collect();
    later.sort_unstable();
    assert_eq!(later, ["/beat/secret", "/hook/secret"]);
    assert!(received[1..].iter().all(|received| received.last_outcome.as_deref() == Some("complete")));
    let message = &received[1..].iter().find(|received| received.path == "/hook/secret").unwrap().body;
    assert_eq!((&message["outcome"], &message["types"]["Patient"]["inserted"]), (&json!("complete"), &json!(5)));

    // Nothing changes, so there is no message.
    assert_eq!(setup.process(&settings).await.code, Some(0));
    assert_eq!(receiver.paths()[3..], ["/beat/secret/start", "/beat/secret"]);
    setup.server.scenario(|scenario| scenario.faults.push(outage()));
    assert_eq!(setup.process(&settings).await.code, Some(1));
    let received = receiver.received();
    assert_eq!(received[5].path, "/beat/secret/start");
    let message = &received[6..].iter().find(|received| received.path == "/hook/secret").unwrap().body;
    assert_eq!((&message["outcome"], &message["outcome_before"]), (&json!("failed"), &json!("complete")));
    assert!(receiver.paths()[6..].contains(&"/beat/secret/fail".to_owned()));
    let origin = setup.server.url().origin().ascii_serialization();
    assert!(message["warnings"][0].as_str().unwrap().contains(&format!("{origin}/…")), "{message}");
}

#[tokio::test]
async fn a_receiver_that_fails_disturbs_no_sync_and_its_url_is_in_no_log_line() {
    let setup = Setup::new().await;
    let receiver = Receiver::start(&setup, Some(StatusCode::NOT_FOUND)).await;
    let settings = [(HEARTBEAT, receiver.url("beat")), (WEBHOOK, receiver.url("hook"))];
    let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
    let ended = setup.process(&settings).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    let output = ended.output();
    assert!(!output.contains(SECRET), "{output}");
    assert!(output.contains("the heartbeat was not delivered") && output.contains("the webhook was not delivered"));
    assert!(output.contains("the receiver answered 404"), "{output}");
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_receiver_that_hangs_or_is_down_delays_neither_syncs_nor_the_stop() {
    let down = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for hangs in [true, false] {
        let mut setup = Setup::new().await;
        setup.schedule = "* * * * * *";
        let receiver = Receiver::start(&setup, None).await;
        let url = if hangs { receiver.url("beat") } else { format!("http://{down}/{SECRET}") };
        let daemon = Daemon::start(&setup, &[(HEARTBEAT, &url), (WEBHOOK, &url)]).await;
        let jobs = async || (setup.server.jobs().len() >= 3).then_some(());
        eventually("a third export", jobs).await;
        daemon.process.terminate().await;
        let ended = daemon.process.end().await;
        assert_eq!(ended.code, Some(0), "{}", ended.output());
        assert!(!ended.output().contains(SECRET), "{}", ended.output());
        assert_eq!(receiver.paths().is_empty(), !hangs);
    }
}

#[tokio::test]
async fn an_export_that_loses_a_type_is_reported_by_the_daemon() {
    let setup = Setup::new().await;
    let receiver = Receiver::start(&setup, Some(StatusCode::OK)).await;
    setup.server.scenario(|scenario| {
        _ = scenario.left_out.insert(PATIENT);
        scenario.answers_counts = true;
    });
    let daemon = Daemon::start(&setup, &[(HEARTBEAT, &receiver.url("beat"))]).await;
    eventually("two pings", async || (receiver.paths().len() == 2).then_some(())).await;
    assert_eq!(receiver.paths(), ["/beat/secret/start", "/beat/secret/fail"]);
    daemon.stop().await;
}

#[tokio::test]
async fn the_recovery_from_an_outage_that_another_process_had_is_reported() {
    let setup = Setup::new().await.with_state_leased_by(LeasedBy::Several);
    let receiver = Receiver::start(&setup, Some(StatusCode::OK)).await;
    let daemon = Daemon::start(&setup, &[(WEBHOOK, &receiver.url("hook"))]).await;
    eventually("the first message", async || (receiver.received().len() == 1).then_some(())).await;
    setup.server.scenario(|scenario| scenario.faults.push(outage()));
    let elsewhere = setup.folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let ended = setup.process(&[("FHIR_SYNC__SYNC__SPOOL_FOLDER", elsewhere.to_str().unwrap())]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.output());
    setup.server.scenario(|scenario| scenario.faults.clear());
    daemon.process.signal("USR1").await;
    eventually("the second message", async || (receiver.received().len() == 2).then_some(())).await;
    let messages: Vec<_> = receiver.received().into_iter().map(|received| received.body).collect();
    let outcomes = messages.iter().map(|message| (&message["outcome"], &message["outcome_before"]));
    let (complete, failed) = (json!("complete"), json!("failed"));
    assert_eq!(outcomes.collect::<Vec<_>>(), [(&complete, &Value::Null), (&complete, &failed)]);
    daemon.stop().await;
}

#[tokio::test]
async fn a_url_in_the_configuration_file_or_in_a_file_that_others_can_read_is_refused_and_not_printed() {
    let setup = Setup::new().await;
    let url = format!("https://hooks.example.org/{SECRET}");
    let open = secret_file(&setup, "open-url", &url);
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    let unencrypted = secret_file(&setup, "unencrypted-url", &url.replace("https", "http"));
    let cases = [
        (format!("webhook_url = \"{url}\""), "notify.webhook_url: is a secret; write it to a file"),
        (format!("webhook_url_file = \"{url}\""), "notify.webhook_url_file: is the secret itself"),
        (format!("heartbeat_url_file = \"{}\"", open.display()), "can be read by other users; run chmod 600"),
        (format!("heartbeat_url_file = \"{}\"", unencrypted.display()), "is not an https URL"),
    ];
    for (line, expected) in cases {
        let path = setup.folder.path().join("secrets.toml");
        fs::write(&path, format!("{}[notify]\n{line}\n", setup.config())).unwrap();
        let ended = crate::harness::Process::start(&["check", "--config", path.to_str().unwrap()], &[]).end().await;
        assert_eq!(ended.code, Some(78), "{}", ended.output());
        assert!(ended.output().contains(expected), "{expected}\nnot in\n{}", ended.output());
        assert!(!ended.output().contains(SECRET), "{}", ended.output());
    }
}

fn outage() -> Fault {
    Fault::Status {
        path_contains: "$export".to_owned(),
        status: StatusCode::BAD_GATEWAY,
        times: u32::MAX,
        retry_after: None,
        body: String::new(),
    }
}
