use std::{fs, net::TcpListener};

use fhir_sync::demo::Fault;
use serde_json::{Value, json};
use tokio::process::Command;

use crate::harness::{BINARY, Ended, OBSERVATION, PATIENT, Process, Setup};

/// The process ended with this exit code, and one line of its output that is not JSON contains all of these parts.
fn assert_printed(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}", ended.output());
    let for_people = ended.stdout.lines().chain(ended.stderr.lines().filter(|line| !line.starts_with('{')));
    let mut sentences = for_people.filter(|line| parts.iter().all(|part| line.contains(part)));
    assert!(sentences.next().is_some(), "no line with {parts:?} in\n{}", ended.output());
}

/// The cause is removed: the next sync completes.
async fn assert_next_sync_completes(setup: &Setup) {
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_reader_that_closes_the_pipe_early_ends_no_command() {
    for words in [vec!["demo", "--list-scenarios"], vec!["--help"]] {
        let mut process =
            Command::new(BINARY).args(&words).stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        drop(process.stdout.take());
        assert_eq!(process.wait().await.unwrap().code(), Some(0), "{words:?}");
    }
}

#[tokio::test]
async fn a_sync_whose_reader_closes_the_pipe_syncs_every_export() {
    let setup = Setup::new().await;
    let path = setup.folder.path().join("fhir-sync.toml");
    let second = "\n[[export]]\nname = \"second\"\ntypes = [\"Observation\"]\n";
    let config = setup.config().replace("\"Observation\", ", "").replace(", \"Observation\"", "");
    std::fs::write(&path, format!("{config}{second}")).unwrap();
    let mut command = Command::new(BINARY);
    command.args(["sync", "--config", path.to_str().unwrap()]).stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut process = command.spawn().unwrap();
    drop(process.stdout.take());
    assert_eq!(process.wait().await.unwrap().code(), Some(0));
    let state = fhir_sync::state::peek(&setup.state_file()).unwrap();
    assert!(state.exports.values().all(|export| export.last_complete_at.is_some()) && state.exports.len() == 2);
}

#[tokio::test]
async fn a_server_that_is_down_is_named_and_the_next_sync_completes() {
    let setup = Setup::new().await;
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ended = setup.process(&[("FHIR_SYNC__SERVER__URL", &format!("http://{closed}/fhir"))]).await;
    let refused = format!("kick-off at http://{closed}/fhir/$export: cannot connect to {closed}: connection refused");
    assert_printed(&ended, 1, &[&refused, " attempts in ", "the next sync tries again"]);
    assert_next_sync_completes(&setup).await;
}

/// (rules 44 and 46, Q-29)
#[tokio::test]
async fn an_html_page_instead_of_the_manifest_is_an_outage_and_the_next_sync_resumes_the_export() {
    let setup = Setup::new().await;
    let body = "<html>Mustermann</html>".to_owned();
    setup.server.scenario(|scenario| scenario.faults = vec![Fault::NotAManifest { body, times: 100_000 }]);
    let ended = setup.process(&[]).await;
    assert_printed(
        &ended,
        1,
        &["export status at http://", "the server sent an HTML page", "the next sync tries again"],
    );
    assert!(!ended.output().contains("Mustermann"), "{}", ended.output());
    setup.server.scenario(|scenario| scenario.faults.clear());
    assert_next_sync_completes(&setup).await;
    assert_eq!(setup.server.jobs().len(), 1);
}

/// (rule 1)
#[tokio::test]
async fn plain_http_to_another_machine_is_refused_before_any_request() {
    let setup = Setup::new().await;
    let ended = setup.process(&[("FHIR_SYNC__SERVER__URL", "http://192.0.2.1/fhir")]).await;
    assert_printed(&ended, 78, &["server.url", "http://192.0.2.1", "use https, or set server.allow_http"]);
    assert_next_sync_completes(&setup).await;
}

#[tokio::test]
async fn a_file_in_the_place_of_the_tables_is_named_before_any_request() {
    let setup = Setup::new().await;
    fs::write(setup.lake(), "in the way").unwrap();
    let ended = setup.process(&[]).await;
    assert_printed(&ended, 78, &[setup.lake().to_str().unwrap(), "is no folder", "or a new one"]);
    assert!(setup.server.requests().is_empty());
    fs::remove_file(setup.lake()).unwrap();
    assert_next_sync_completes(&setup).await;
}

#[tokio::test]
async fn a_file_in_the_place_of_one_table_fails_that_type_only() {
    let setup = Setup::new().await;
    fs::create_dir(setup.lake()).unwrap();
    let in_the_way = setup.lake().join("Patient.parquet");
    fs::write(&in_the_way, "in the way").unwrap();
    let ended = setup.process(&[]).await;
    assert_printed(&ended, 3, &["Patient", in_the_way.to_str().unwrap()]);
    assert!(setup.watermark(OBSERVATION).await.is_some());
    fs::remove_file(in_the_way).unwrap();
    assert_next_sync_completes(&setup).await;
}

#[tokio::test]
async fn a_table_of_another_writer_is_refused_and_not_changed() {
    let setup = Setup::new().await;
    setup.complete().await;
    // Without our columns it looks like a table of another writer.
    let place = setup.lake().join("Patient.parquet");
    let log = place.join("_delta_log/00000000000000000000.json");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("_sync_source"));
    fs::write(&log, text.replace("_sync_source", "source")).unwrap();
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    let ended = setup.process(&[]).await;
    assert_printed(&ended, 3, &["Patient", place.to_str().unwrap(), "was not written by fhir-sync", "move it away"]);
    fs::write(&log, text).unwrap();
    assert_next_sync_completes(&setup).await;
}

#[tokio::test]
async fn all_mistakes_of_a_configuration_are_reported_at_once() {
    let setup = Setup::new().await;
    let settings = [
        ("FHIR_SYNC__SERVER__URL", "ehr"),
        ("FHIR_SYNC__HEALTH__MAX_AGE", "soon"),
        ("FHIR_SYNC__SYNC__PARALLEL_DOWNLOADS", "many"),
        ("FHIR_SYNC__COLOUR", "red"),
    ];
    for command in ["sync", "run", "check"] {
        let ended = setup.start(command, &settings).end().await;
        for part in ["server.url", "health.max_age", "sync.parallel_downloads", "colour: is not a key"] {
            assert_printed(&ended, 78, &[part]);
        }
    }
    assert!(setup.server.requests().is_empty());
    assert_next_sync_completes(&setup).await;
}

#[tokio::test]
async fn a_missing_configuration_file_is_named() {
    let ended = Process::start(&["sync", "--config", "/nowhere/fhir-sync.toml"], &[]).end().await;
    assert_printed(&ended, 78, &["/nowhere/fhir-sync.toml"]);
}

#[tokio::test]
async fn check_accepts_a_correct_configuration_without_any_request() {
    let setup = Setup::new().await;
    let ended = setup.start("check", &[]).end().await;
    assert_printed(&ended, 0, &["fhir-sync.toml: 1 export, no mistakes"]);
    assert!(setup.server.requests().is_empty());
    assert!(!setup.state_file().exists());
}

#[tokio::test]
async fn an_export_that_is_not_configured_is_named() {
    let setup = Setup::new().await;
    let path = setup.folder.path().join("fhir-sync.toml");
    fs::write(&path, setup.config()).unwrap();
    let arguments = ["sync", "--config", path.to_str().unwrap(), "--export", "nightly"];
    assert_printed(&Process::start(&arguments, &[]).end().await, 78, &["no export \"nightly\"; it has all"]);
}

/// The events of fhir-sync itself, from the begin of the first run on.
fn events(ended: &Ended) -> Vec<Value> {
    let events = ended.stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let own = events.filter(|event| event["target"].as_str().is_some_and(|target| target.starts_with("fhir_sync")));
    own.skip_while(|event| event["message"] != "sync begins").collect()
}

#[tokio::test]
async fn every_log_line_of_a_run_has_its_export_and_number() {
    let setup = Setup::new().await;
    let ended = setup.process(&[]).await;
    let events = events(&ended);
    assert!(events.iter().any(|event| event["message"] == "Patient: 5 received, 5 inserted, version 1"), "{events:#?}");
    assert_eq!(events.last().unwrap()["message"], "sync complete");
    for event in events {
        assert_eq!((&event["span"]["export"], &event["span"]["run"]), (&json!("all"), &json!(1)), "{event}");
    }
}

#[tokio::test]
async fn the_last_log_line_names_the_types_that_failed_and_why() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| {
        scenario.count_offset.insert(PATIENT, 2);
    });
    let ended = setup.process(&[]).await;
    let last = events(&ended).pop().unwrap();
    assert_eq!((&last["message"], &last["level"]), (&json!("sync partial"), &json!("ERROR")));
    assert_eq!(last["failed_types"], "Patient");
    let causes = last["causes"].as_str().unwrap();
    assert!(causes.starts_with("Patient: Patient file 1 of 1: 7 lines were announced and 5 received"), "{causes}");
}

/// Two syncs in a new mount namespace: the first with a disk of 256 KiB under the tables, the second with more.
const SMALL_DISK: &str = r#"
mkdir -p "$LAKE" && mount -t tmpfs -o size=256k tmpfs "$LAKE" || exit 99
"$BINARY" sync --config "$CONFIG"; echo "first: $?"
mount -o remount,size=64m "$LAKE"
"$BINARY" sync --config "$CONFIG"; echo "second: $?"
cp -r "$LAKE" "$LAKE.kept"
"#;

/// Text that does not compress well: a kilobyte of hexadecimal digits.
fn noise(seed: u64) -> String {
    let step =
        |state: &u64| Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
    let states: Vec<_> = std::iter::successors(Some(seed), step).take(128).collect();
    states.iter().flat_map(|state| state.rotate_left(32).to_be_bytes()).map(hexadecimal).collect()
}

fn hexadecimal(byte: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(byte % 16)])
}

#[tokio::test]
async fn a_full_disk_is_named_and_no_row_is_lost_or_doubled_afterwards() {
    let setup = Setup::new().await;
    setup.server.world(|world| {
        for number in 0..800 {
            world.put(PATIENT, &format!("n{number}"), json!({"text": noise(number)}));
        }
    });
    let path = setup.folder.path().join("fhir-sync.toml");
    fs::write(&path, setup.config()).unwrap();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", SMALL_DISK]).env("LAKE", setup.lake()).env("BINARY", BINARY).env("CONFIG", path);
    if !Command::new("unshare").args(["-m", "true"]).status().await.is_ok_and(|status| status.success()) {
        println!("skipped: this user may not mount a small disk");
        return;
    }
    let ended = Process::spawn(command).end().await;
    if ended.code == Some(99) {
        println!("skipped: a small disk cannot be mounted here");
        return;
    }
    let place = setup.lake().join("Patient.parquet").display().to_string();
    assert_printed(&ended, 0, &["Patient", &format!("the disk under {place} is full; make room")]);
    assert!(ended.stdout.contains("first: 3") || ended.stdout.contains("first: 1"), "{}", ended.output());
    assert!(ended.stdout.contains("second: 0"), "{}", ended.output());
    fs::remove_dir(setup.lake()).unwrap();
    fs::rename(setup.lake().with_extension("kept"), setup.lake()).unwrap();
    setup.assert_same_as_server().await;
}
