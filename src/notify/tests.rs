//! Heartbeats and messages against a real receiver.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::Request, http::StatusCode};
use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::net::TcpListener;

use super::{heartbeat::Ping, *};
use crate::{
    fhir::{ResourceType, TransactionTime},
    sync::{Mode, Outcome, TypeEnd},
};

/// A receiver of notifications on a real port: what it received, and what it answers.
struct Receiver {
    address: SocketAddr,
    received: Arc<Mutex<Vec<(String, Value)>>>,
    _serving: JoinSet<()>,
}

#[derive(Clone, Copy)]
enum Answers {
    /// Each with the next status; the last one stays.
    Statuses(&'static [u16]),
    Never,
}

impl Receiver {
    async fn start(answers: Answers) -> Self {
        let received = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&received);
        let answer = move |request: Request| {
            let seen = Arc::clone(&seen);
            async move {
                let line = format!("{} {}", request.method(), request.uri());
                let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap_or_else(|_| Bytes::new());
                let number = {
                    let mut seen = seen.lock().unwrap();
                    seen.push((line, serde_json::from_slice(&body).unwrap_or(Value::Null)));
                    seen.len() - 1
                };
                match answers {
                    Answers::Statuses(statuses) => {
                        StatusCode::from_u16(statuses[number.min(statuses.len() - 1)]).unwrap()
                    }
                    Answers::Never => std::future::pending().await,
                }
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
        Self { address, received, _serving: serving }
    }

    fn url(&self, rest: &str) -> SecretUrl {
        SecretUrl::parse(&format!("http://{}/{rest}", self.address)).unwrap()
    }

    fn received(&self) -> Vec<(String, Value)> {
        self.received.lock().unwrap().clone()
    }

    fn lines(&self) -> Vec<String> {
        self.received().into_iter().map(|(line, _)| line).collect()
    }
}

fn config() -> Config {
    Config {
        heartbeat: None,
        heartbeats: BTreeMap::new(),
        heartbeat_style: HeartbeatStyle::Healthchecks,
        webhook: None,
        proxy: Proxy::None,
        patience: Patience {
            // A machine may be busy with other tests.
            answer: Duration::from_secs(20),
            waits: vec![Duration::from_millis(1); 2],
            at_the_end: Duration::from_secs(20),
            after_a_stop: Duration::from_millis(100),
        },
    }
}

fn report(outcome: Outcome, end: TypeEnd) -> Report {
    let at: DateTime<Utc> = "2026-11-28T10:00:00Z".parse().unwrap();
    let mut report = Report::begin("all", 7, Mode::Incremental, &[ResourceType::PATIENT], at);
    (report.outcome, report.is_remembered) = (outcome, true);
    let patient = report.types.get_mut(&ResourceType::PATIENT).unwrap();
    (patient.received, patient.counts.inserted, patient.end) = (5, 5, end);
    report
}

fn complete() -> Report {
    report(Outcome::Complete, TypeEnd::Committed { version: 1, watermark: TransactionTime::EPOCH })
}

/// Runs one after the other, and everything about them delivered or given up.
async fn notified(config: Config, mut before: Option<Outcome>, reports: Vec<Report>) {
    let stop = CancellationToken::new();
    install_crypto();
    let (notifier, couriers) = start(config, ["all".to_owned()], &stop).unwrap();
    for report in reports {
        let outcome = Some(report.outcome).filter(|outcome| report.is_remembered && *outcome != Outcome::Stopped);
        notifier.around("all", before, async { report }).await;
        before = outcome.or(before);
    }
    couriers.finish().await;
}

fn install_crypto() {
    // An error means that another test of this binary has installed it before.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

#[tokio::test]
async fn healthchecks_gets_a_start_and_then_a_success_or_a_failure() {
    let receiver = Receiver::start(Answers::Statuses(&[200])).await;
    let config = Config { heartbeat: Some(receiver.url("ping/secret/?create=1")), ..config() };
    let held = report(Outcome::Partial, TypeEnd::WatermarkHeld { version: 1 });
    let stopped = report(Outcome::Stopped, TypeEnd::NotReached);
    notified(config, None, vec![complete(), held, stopped]).await;
    let [start, fail] = ["start", "fail"].map(|last| format!("GET /ping/secret/{last}?create=1"));
    let success = "GET /ping/secret/?create=1".to_owned();
    assert_eq!(receiver.lines(), [start.clone(), success, start.clone(), fail, start]);
}

#[tokio::test]
async fn uptime_kuma_and_a_plain_switch_get_no_start() {
    let receiver = Receiver::start(Answers::Statuses(&[200])).await;
    let kuma = Config {
        heartbeat: Some(receiver.url("api/push/secret?status=up&msg=OK&ping=")),
        heartbeat_style: HeartbeatStyle::UptimeKuma,
        ..config()
    };
    let failed = || report(Outcome::Failed, TypeEnd::NotReached);
    notified(kuma, None, vec![complete(), failed()]).await;
    let plain =
        Config { heartbeat: Some(receiver.url("beat?key=secret")), heartbeat_style: HeartbeatStyle::Plain, ..config() };
    notified(plain, None, vec![complete(), failed()]).await;
    let expected = [
        "GET /api/push/secret?status=up&msg=OK",
        "GET /api/push/secret?status=down&msg=failed",
        "GET /beat?key=secret",
    ];
    assert_eq!(receiver.lines(), expected);
}

#[test]
fn a_partial_run_is_a_success_for_the_heartbeat_if_it_left_no_type_behind() {
    let ping = |outcome, end| Ping::at_end(&report(outcome, end));
    let committed = || TypeEnd::Committed { version: 1, watermark: TransactionTime::EPOCH };
    assert_eq!(ping(Outcome::Partial, committed()), Some(Ping::Success));
    assert_eq!(ping(Outcome::Partial, TypeEnd::NotReached), Some(Ping::Failure));
    assert_eq!(ping(Outcome::Failed, committed()), Some(Ping::Failure), "the state file could not be written");
    assert_eq!(ping(Outcome::Stopped, committed()), None);
}

#[tokio::test]
async fn an_export_has_its_own_heartbeat_in_place_of_the_general_one() {
    let receiver = Receiver::start(Answers::Statuses(&[200])).await;
    let heartbeats = BTreeMap::from([("all".to_owned(), receiver.url("own"))]);
    let general = Some(receiver.url("general"));
    notified(Config { heartbeat: general, heartbeats, ..config() }, None, vec![complete()]).await;
    assert_eq!(receiver.lines(), ["GET /own/start", "GET /own"]);
}

#[tokio::test]
async fn a_webhook_says_what_changed_since_the_run_before() {
    let receiver = Receiver::start(Answers::Statuses(&[200])).await;
    let url = receiver.url("hook");
    let webhook = Webhook { url, format: WebhookFormat::Json, on: WebhookOn::Change };
    let mut held = report(Outcome::Partial, TypeEnd::WatermarkHeld { version: 1 });
    held.remarks.push("Patient: https://ehr.example.org/files/Smith.ndjson is damaged".to_owned());
    let stopped = report(Outcome::Stopped, TypeEnd::NotReached);
    let reports = vec![complete(), held.clone(), held, stopped, complete()];
    notified(Config { webhook: Some(webhook), ..config() }, Some(Outcome::Complete), reports).await;
    let received = receiver.received();
    let [(line, first), (_, second)] = received.as_slice() else { panic!("{received:?}") };
    assert_eq!(line, "POST /hook");
    let expected = serde_json::json!({
        "message_type": "run_ended", "version": env!("CARGO_PKG_VERSION"), "export": "all", "run": 7,
        "mode": "incremental", "outcome": "partial", "outcome_before": "complete",
        "started_at": "2026-11-28T10:00:00Z", "ended_at": "2026-11-28T10:00:00Z",
        "types": {"Patient": {
            "end": "watermark held", "received": 5, "inserted": 5, "updated": 0, "deleted": 0, "removed": 0,
            "unchanged": 0, "quarantined": 0,
        }},
        "warnings": ["Patient: https://ehr.example.org/… is damaged"],
    });
    assert_eq!(*first, expected);
    assert_eq!((&second["outcome"], &second["outcome_before"]), (&"complete".into(), &"partial".into()));
}

#[tokio::test]
async fn an_outage_of_the_state_is_reported_once_and_so_is_its_end() {
    let receiver = Receiver::start(Answers::Statuses(&[200])).await;
    let webhook = Webhook { url: receiver.url("hook"), format: WebhookFormat::Json, on: WebhookOn::Change };
    let config = Config { webhook: Some(webhook), ..config() };
    let failed = || Report { is_remembered: false, ..report(Outcome::Failed, TypeEnd::NotReached) };
    let stopped = report(Outcome::Stopped, TypeEnd::NotReached);
    let reports = vec![failed(), failed(), stopped, failed(), complete(), complete()];
    notified(config, Some(Outcome::Complete), reports).await;
    let outcomes = |(_, body): (String, Value)| (body["outcome"].clone(), body["outcome_before"].clone());
    let received: Vec<_> = receiver.received().into_iter().map(outcomes).collect();
    assert_eq!(received, [("failed".into(), "complete".into()), ("complete".into(), "failed".into())]);
}

#[tokio::test]
async fn slack_and_teams_get_texts_in_their_own_forms() {
    let receiver = Receiver::start(Answers::Statuses(&[200])).await;
    for format in [WebhookFormat::Slack, WebhookFormat::Teams] {
        let webhook = Webhook { url: receiver.url("hook"), format, on: WebhookOn::NotComplete };
        let mut failed = report(Outcome::Failed, TypeEnd::NotReached);
        failed.remarks.push("the disk is <full>".to_owned());
        notified(Config { webhook: Some(webhook), ..config() }, None, vec![complete(), failed]).await;
    }
    let received = receiver.received();
    let lines = [
        "fhir-sync all: failed (before: complete)",
        "Run 7, incremental, from 2026-11-28T10:00:00Z, 0 s: 5 received, 5 changed",
        "Types: Patient not reached",
    ];
    let [(_, slack), (_, teams)] = received.as_slice() else { panic!("{received:?}") };
    assert_eq!(slack["text"], format!("{}\n- the disk is &lt;full&gt;", lines.join("\n")));
    let card = &teams["attachments"][0];
    assert_eq!(card["contentType"], "application/vnd.microsoft.card.adaptive");
    let texts: Vec<_> = card["content"]["body"].as_array().unwrap().iter().map(|block| &block["text"]).collect();
    assert_eq!(texts, [lines[0], lines[1], lines[2], "- the disk is <full>"]);
}

#[tokio::test]
async fn a_receiver_that_is_unwell_is_tried_three_times_and_one_that_refuses_once() {
    let recovers = Receiver::start(Answers::Statuses(&[500, 429, 200])).await;
    let refuses = Receiver::start(Answers::Statuses(&[404])).await;
    let redirects = Receiver::start(Answers::Statuses(&[302])).await;
    let down = Receiver::start(Answers::Statuses(&[503])).await;
    for (receiver, attempts) in [(recovers, 3), (refuses, 1), (redirects, 1), (down, 3)] {
        let webhook = Webhook { url: receiver.url("hook"), format: WebhookFormat::Json, on: WebhookOn::EveryRun };
        notified(Config { webhook: Some(webhook), ..config() }, None, vec![complete()]).await;
        assert_eq!(receiver.lines().len(), attempts);
    }
}

#[tokio::test]
async fn a_receiver_that_never_answers_delays_no_run_and_a_stop_ends_the_wait() {
    let receiver = Receiver::start(Answers::Never).await;
    let webhook = Webhook { url: receiver.url("hook"), format: WebhookFormat::Json, on: WebhookOn::EveryRun };
    let mut config = Config { heartbeat: Some(receiver.url("beat")), webhook: Some(webhook), ..config() };
    config.patience.answer = Duration::from_hours(1);
    install_crypto();
    let stop = CancellationToken::new();
    let (notifier, couriers) = start(config, ["all".to_owned()], &stop).unwrap();
    // More than the queue holds: the rest is dropped.
    for _ in 0..2 * MAX_QUEUED {
        notifier.around("all", None, async { complete() }).await;
    }
    stop.cancel();
    couriers.finish().await;
    assert!(receiver.lines().len() <= 1);
}

#[test]
fn a_secret_url_is_neither_shown_nor_sent_unencrypted() {
    let url = SecretUrl::parse(" https://hooks.example.org/T0/B0/secret?key=secret\n").unwrap();
    assert!(!format!("{url:?}").contains("secret?"));
    for text in ["http://hooks.example.org/secret", "ftp://h/secret", "secret", ""] {
        let error = SecretUrl::parse(text).unwrap_err();
        assert!(!error.contains("secret") && !error.contains("hooks"), "{error}");
    }
    assert!(SecretUrl::parse("http://127.0.0.1:3001/api/push/x").is_ok());
}
