use chrono::TimeDelta;
use fhir_sync::{
    demo::{Fault, StatusCode},
    state::{ExportState, OpenState, peek},
    sync::{Mode, Outcome},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{Daemon, Ended, Made, OBSERVATION, PATIENT, Process, Setup, eventually};

/// `fhir-sync <words> --config …`.
async fn command(setup: &Setup, words: &[&str], settings: &[(&str, &str)]) -> Ended {
    let path = setup.folder.path().join("fhir-sync.toml");
    std::fs::write(&path, setup.config()).unwrap();
    let (command, rest) = words.split_at(2);
    let arguments = [command, &["--config", path.to_str().unwrap()], rest].concat();
    Process::start(&arguments, settings).end().await
}

/// The settings of a server that needs a key, which is not here.
const KEY_ELSEWHERE: [(&str, &str); 2] =
    [("FHIR_SYNC__SERVER__CLIENT_ID", "client"), ("FHIR_SYNC__SERVER__PRIVATE_KEY_FILE", "/run/credentials/none/key")];

/// A setup whose server works on an export.
async fn with_job() -> Setup {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold = true);
    let stop = CancellationToken::new();
    let syncer = setup.open().await.unwrap();
    let kicked_off = eventually("a job", async || (setup.server.jobs().len() == 1).then(|| stop.cancel()));
    let (report, ()) = tokio::join!(syncer.run(&setup.export, Mode::Incremental, &stop), kicked_off);
    assert_eq!(report.outcome, Outcome::Stopped);
    syncer.close().await;
    drop(syncer);
    assert_eq!(jobs(&setup), 1);
    setup
}

fn jobs(setup: &Setup) -> usize {
    peek(&setup.state_file()).unwrap().exports["all"].jobs.len()
}

/// (rule 63)
#[tokio::test]
async fn the_exports_in_progress_are_shown_beside_a_daemon_without_a_key_and_without_the_query() {
    let setup = with_job().await;
    {
        let (mut open_state, _) = OpenState::open(&setup.state_file()).unwrap();
        let job = |state: &mut fhir_sync::state::State| {
            state.exports.get_mut("all").unwrap().jobs[0].status_url.set_query(Some("sig=SECRET"));
        };
        open_state.update(job).unwrap();
    }
    let daemon = Daemon::start(&setup, &[]).await;
    let ended = command(&setup, &["job", "show"], &KEY_ELSEWHERE).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert!(ended.stdout.contains("all") && ended.stdout.contains("Observation, Patient"), "{}", ended.stdout);
    let as_json = command(&setup, &["job", "show", "all", "--json"], &[]).await;
    let shown: Value = serde_json::from_str(&as_json.stdout).unwrap();
    assert_eq!((&shown[0]["types"], &shown[0]["since"]), (&json!(["Observation", "Patient"]), &Value::Null));
    let state = command(&setup, &["state", "show", "--json"], &KEY_ELSEWHERE).await;
    let outputs = [&ended.stdout, &as_json.stdout, &state.stdout];
    assert!(outputs.iter().all(|output| !output.contains("SECRET")), "{outputs:?}");
    let other = command(&setup, &["job", "show", "other"], &[]).await;
    assert_eq!(other.code, Some(78), "{}", other.output());
    daemon.stop().await;
}

/// (rule 105, Q-24)
#[tokio::test]
async fn a_cancelled_export_is_deleted_on_the_server_and_the_next_sync_requests_another() {
    let setup = with_job().await;
    let ended = command(&setup, &["job", "cancel", "other"], &[]).await;
    assert_eq!((ended.code, jobs(&setup)), (Some(78), 1), "{}", ended.output());
    let ended = command(&setup, &["job", "cancel", "all"], &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert!(ended.stdout.contains("was cancelled"), "{}", ended.stdout);
    assert!(setup.server.jobs()[0].deleted);
    assert_eq!(jobs(&setup), 0);
    setup.server.scenario(|scenario| scenario.hold = false);
    setup.complete().await;
    assert_eq!(setup.server.jobs().len(), 2);
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn an_export_that_cannot_be_cancelled_is_kept_until_the_operator_says_to_forget_it() {
    let setup = with_job().await;
    {
        let (mut open_state, _) = OpenState::open(&setup.state_file()).unwrap();
        let gone = |state: &mut fhir_sync::state::State| {
            state.exports.get_mut("all").unwrap().jobs[0].status_url = "http://127.0.0.1:1/job".parse().unwrap();
        };
        open_state.update(gone).unwrap();
    }
    let ended = command(&setup, &["job", "cancel"], &[]).await;
    assert_eq!((ended.code, jobs(&setup)), (Some(1), 1), "{}", ended.output());
    assert!(ended.stdout.contains("could not be cancelled and is kept"), "{}", ended.stdout);
    let ended = command(&setup, &["job", "cancel", "--forget"], &[]).await;
    assert_eq!((ended.code, jobs(&setup)), (Some(0), 0), "{}", ended.output());
}

/// The DELETE arrives, its answer does not, and the server answers polls with the files that it had until then.
#[tokio::test]
async fn a_cancelled_export_is_not_followed_although_the_server_has_not_confirmed_it() {
    let setup = with_job().await;
    setup.server.scenario(|scenario| {
        scenario.faults = vec![Fault::LoseAnswer { path_contains: "/bulkstatus/".to_owned(), times: 1000 }];
    });
    let ended = command(&setup, &["job", "cancel"], &[]).await;
    assert_eq!((ended.code, jobs(&setup)), (Some(1), 1), "{}", ended.output());
    assert!(setup.server.jobs()[0].deleted);
    let patient = setup.server.world(|world| world.line(PATIENT, "p1").unwrap().to_owned() + "\n");
    Made::default().output("Patient", 1, &patient).serve(&setup);
    setup.server.scenario(|scenario| {
        scenario.hold = false;
        for fault in &mut scenario.faults {
            if let Fault::NotAManifest { body, .. } = fault {
                let (path_contains, body) = ("/bulkstatus/1".to_owned(), body.clone());
                let (status, retry_after) = (StatusCode::OK, None);
                *fault = Fault::Status { path_contains, status, times: 1000, retry_after, body };
            }
        }
    });
    setup.complete().await;
    assert_eq!(setup.server.jobs().len(), 2);
    setup.assert_same_as_server().await;
}

/// (rule 52)
#[tokio::test]
async fn a_watermark_that_is_set_to_an_earlier_time_makes_the_next_sync_ask_from_there() {
    let setup = Setup::new().await;
    setup.complete().await;
    let before = peek(&setup.state_file()).unwrap().exports["all"].clone();
    let watermark = setup.watermark(PATIENT).await.unwrap();
    let earlier = watermark.instant() - TimeDelta::minutes(40);
    let text = earlier.to_rfc3339();
    let ended = command(&setup, &["state", "set-since", "all", "Patient", &text], &KEY_ELSEWHERE).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert_eq!(setup.watermark(PATIENT).await, Some(earlier.into()));
    assert_eq!(setup.watermark(OBSERVATION).await, Some(watermark));
    let known = peek(&setup.state_file()).unwrap().exports["all"].clone();
    assert_eq!(known.watermarks[&PATIENT], earlier.into());
    let age = before.freshness.data_as_of[&PATIENT] - known.freshness.data_as_of[&PATIENT];
    assert_eq!(age, TimeDelta::minutes(40), "the data are older now");
    setup.complete().await;
    let since = setup.server.jobs()[1].since.clone().unwrap();
    assert_eq!(since, fhir_sync::fhir::TransactionTime::from(earlier).since(TimeDelta::minutes(5)).as_since());
    assert_eq!(setup.watermark(PATIENT).await, Some(watermark));
    setup.assert_same_as_server().await;
}

/// (rule 52)
#[tokio::test]
async fn a_later_time_is_refused_for_all_types_and_nothing_is_changed() {
    let setup = Setup::new().await;
    setup.complete().await;
    let watermark = setup.watermark(PATIENT).await.unwrap();
    let at = |minutes| (watermark.instant() + TimeDelta::minutes(minutes)).to_rfc3339();
    assert_eq!(command(&setup, &["state", "set-since", "all", "Patient", &at(-10)], &[]).await.code, Some(0));
    let ended = command(&setup, &["state", "set-since", "all", &at(-5)], &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.output());
    assert!(ended.stderr.contains("is later than its watermark"), "{}", ended.stderr);
    assert_eq!(setup.watermark(OBSERVATION).await, Some(watermark), "not lowered either");
    let ended = command(&setup, &["state", "set-since", "all", "Patient", "yesterday"], &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.output());
    let ended = command(&setup, &["state", "set-since", "none", &at(-20)], &[]).await;
    assert_eq!(ended.code, Some(78), "{}", ended.output());
    let _held = setup.open().await.unwrap();
    let ended = command(&setup, &["state", "set-since", "all", &at(-20)], &[]).await;
    assert_eq!(ended.code, Some(11), "{}", ended.output());
}

#[tokio::test]
async fn a_watermark_that_an_export_in_progress_would_move_again_is_not_set() {
    let setup = Setup::new().await;
    setup.complete().await;
    let watermark = setup.watermark(PATIENT).await.unwrap();
    let at = |minutes| (watermark.instant() + TimeDelta::minutes(minutes)).to_rfc3339();
    setup.server.scenario(|scenario| scenario.hold = true);
    let stop = CancellationToken::new();
    let syncer = setup.open().await.unwrap();
    let kicked_off = eventually("a job", async || (setup.server.jobs().len() == 2).then(|| stop.cancel()));
    tokio::join!(syncer.run(&setup.export, Mode::Incremental, &stop), kicked_off);
    syncer.close().await;
    drop(syncer);
    assert_eq!(jobs(&setup), 1);
    // The request says the watermark less five minutes.
    let ended = command(&setup, &["state", "set-since", "all", "Patient", &at(-2)], &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.output());
    assert!(ended.stderr.contains("first: fhir-sync job cancel all"), "{}", ended.stderr);
    assert_eq!(setup.watermark(PATIENT).await, Some(watermark), "nothing was changed");
    let ended = command(&setup, &["state", "set-since", "all", "Patient", &at(0)], &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert!(!ended.stdout.contains("in progress"), "the next sync moves it on: {}", ended.stdout);
    let earlier = command(&setup, &["state", "set-since", "all", "Patient", &at(-40)], &[]).await;
    assert_eq!(earlier.code, Some(0), "{}", earlier.output());
    assert!(earlier.stdout.contains("an export of Patient is in progress"), "{}", earlier.stdout);
    setup.server.scenario(|scenario| scenario.hold = false);
    let lowered = setup.watermark(PATIENT).await;
    setup.run(Mode::Incremental).await;
    assert_eq!(setup.watermark(PATIENT).await, lowered, "the export that was in progress does not move it");
}

#[tokio::test]
async fn an_export_that_neither_the_configuration_nor_the_state_file_has_is_named() {
    let setup = Setup::new().await;
    setup.complete().await;
    {
        let (mut open_state, _) = OpenState::open(&setup.state_file()).unwrap();
        open_state.update(|state| drop(state.exports.insert("earlier".to_owned(), ExportState::default()))).unwrap();
    }
    for words in [["job", "show", "typo"], ["job", "cancel", "typo"]] {
        let ended = command(&setup, &words, &[]).await;
        assert_eq!(ended.code, Some(78), "{}", ended.output());
        assert!(ended.stderr.contains("the configuration has no export \"typo\"; it has all"), "{}", ended.stderr);
    }
    for words in [["job", "show", "earlier"], ["job", "cancel", "earlier"], ["job", "show", "all"]] {
        let ended = command(&setup, &words, &[]).await;
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "no export is in progress\n"), "{}", ended.output());
    }
}
