use std::{fs, net::TcpListener};

use fhir_sync::demo::Fault;
use serde_json::json;
use tokio::process::Command;

use crate::harness::{BINARY, Ended, OBSERVATION, PATIENT, Process, Stage};

/// The exit code, and a sentence with all of these parts in one line of what was printed for people.
fn assert_says(ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, Some(code), "{}", ended.said());
    let for_people = ended.stdout.lines().chain(ended.stderr.lines().filter(|line| !line.starts_with('{')));
    let mut sentences = for_people.filter(|line| parts.iter().all(|part| line.contains(part)));
    assert!(sentences.next().is_some(), "no line with {parts:?} in\n{}", ended.said());
}

/// Once the cause is gone, the next sync brings everything.
async fn assert_mended(stage: &Stage) {
    let ended = stage.process(&[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said());
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_server_that_is_down_is_named_and_the_next_sync_completes() {
    let stage = Stage::set().await;
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ended = stage.process(&[("FHIR_SYNC__SERVER__URL", &format!("http://{closed}/fhir"))]).await;
    let place = format!("kick-off at http://{closed}/fhir/$export");
    assert_says(&ended, 1, &[&place, "no usable answer in 3 attempts", "the next run goes on from here"]);
    assert_mended(&stage).await;
}

#[tokio::test]
async fn what_is_no_manifest_is_said_and_asked_for_anew() {
    let stage = Stage::set().await;
    let body = "<html>Mustermann</html>".to_owned();
    stage.server.scenario(|scenario| scenario.faults = vec![Fault::NotAManifest { body, times: 3 }]);
    let settings = [("FHIR_SYNC__SERVER__HTTP__RETRY_ATTEMPTS", "5")];
    let ended = stage.process(&settings).await;
    assert_says(&ended, 1, &["export status at http://", "not a completion manifest", "no JSON object"]);
    assert!(!ended.said().contains("Mustermann"), "{}", ended.said());
    assert_mended(&stage).await;
    assert_eq!(stage.server.jobs().len(), 2);
}

#[tokio::test]
async fn http_to_another_machine_is_refused_before_anything_is_sent() {
    let stage = Stage::set().await;
    let ended = stage.process(&[("FHIR_SYNC__SERVER__URL", "http://192.0.2.1/fhir")]).await;
    assert_says(&ended, 78, &["server.url", "http://192.0.2.1", "use https, or set server.allow_http"]);
    assert_mended(&stage).await;
}

#[tokio::test]
async fn a_file_in_the_place_of_the_tables_is_named_before_anybody_is_asked() {
    let stage = Stage::set().await;
    fs::write(stage.lake(), "in the way").unwrap();
    let ended = stage.process(&[]).await;
    assert_says(&ended, 78, &[stage.lake().to_str().unwrap(), "cannot be used", "or choose another `tables.root`"]);
    assert!(stage.server.requests().is_empty());
    fs::remove_file(stage.lake()).unwrap();
    assert_mended(&stage).await;
}

#[tokio::test]
async fn a_file_in_the_place_of_one_table_fails_that_type_alone() {
    let stage = Stage::set().await;
    fs::create_dir(stage.lake()).unwrap();
    let in_the_way = stage.lake().join("Patient.parquet");
    fs::write(&in_the_way, "in the way").unwrap();
    let ended = stage.process(&[]).await;
    assert_says(&ended, 3, &["Patient", in_the_way.to_str().unwrap()]);
    assert!(stage.watermark(OBSERVATION).await.is_some());
    fs::remove_file(in_the_way).unwrap();
    assert_mended(&stage).await;
}

#[tokio::test]
async fn a_table_that_others_wrote_is_refused_with_a_way_out_and_left_alone() {
    let stage = Stage::set().await;
    stage.complete().await;
    // As a table of another writer: without our columns.
    let place = stage.lake().join("Patient.parquet");
    let log = place.join("_delta_log/00000000000000000000.json");
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("_sync_source"));
    fs::write(&log, text.replace("_sync_source", "source")).unwrap();
    stage.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    let ended = stage.process(&[]).await;
    assert_says(&ended, 3, &["Patient", place.to_str().unwrap(), "was not written by fhir-sync", "move it away"]);
    fs::write(&log, text).unwrap();
    assert_mended(&stage).await;
}

#[tokio::test]
async fn all_mistakes_of_a_configuration_are_said_at_once() {
    let stage = Stage::set().await;
    let settings = [
        ("FHIR_SYNC__SERVER__URL", "ehr"),
        ("FHIR_SYNC__HEALTH__MAX_AGE", "soon"),
        ("FHIR_SYNC__SYNC__PARALLEL_DOWNLOADS", "many"),
        ("FHIR_SYNC__COLOUR", "red"),
    ];
    for command in ["sync", "run", "check"] {
        let ended = stage.start(command, &settings).end().await;
        for part in ["server.url", "health.max_age", "sync.parallel_downloads", "colour: is not a key"] {
            assert_says(&ended, 78, &[part]);
        }
    }
    assert!(stage.server.requests().is_empty());
    assert_mended(&stage).await;
}

#[tokio::test]
async fn a_configuration_that_is_not_there_is_named() {
    let ended = Process::start(&["sync", "--config", "/nowhere/fhir-sync.toml"], &[]).end().await;
    assert_says(&ended, 78, &["/nowhere/fhir-sync.toml"]);
}

#[tokio::test]
async fn check_accepts_a_configuration_without_mistakes_and_asks_nobody() {
    let stage = Stage::set().await;
    let ended = stage.start("check", &[]).end().await;
    assert_says(&ended, 0, &["fhir-sync.toml: 1 exports, no mistakes"]);
    assert!(stage.server.requests().is_empty());
    assert!(!stage.state_file().exists());
}

#[tokio::test]
async fn an_export_that_is_not_configured_is_named() {
    let stage = Stage::set().await;
    let path = stage.folder.path().join("fhir-sync.toml");
    fs::write(&path, stage.config()).unwrap();
    let arguments = ["sync", "--config", path.to_str().unwrap(), "--export", "nightly"];
    assert_says(&Process::start(&arguments, &[]).end().await, 78, &["no export \"nightly\""]);
}

/// Two syncs in a mount namespace of their own: the first with a disk of 256 KiB under the tables, the second with more.
const SMALL_DISK: &str = r#"
mkdir -p "$LAKE" && mount -t tmpfs -o size=256k tmpfs "$LAKE" || exit 99
"$BINARY" sync --config "$CONFIG"; echo "first: $?"
mount -o remount,size=64m "$LAKE"
"$BINARY" sync --config "$CONFIG"; echo "second: $?"
cp -r "$LAKE" "$LAKE.kept"
"#;

/// Text that no compression makes much shorter: a kilobyte of hexadecimal digits.
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
async fn a_full_disk_is_named_and_nothing_is_lost_or_doubled_when_there_is_room_again() {
    let stage = Stage::set().await;
    stage.server.world(|world| {
        for number in 0..800 {
            world.put(PATIENT, &format!("n{number}"), json!({"text": noise(number)}));
        }
    });
    let path = stage.folder.path().join("fhir-sync.toml");
    fs::write(&path, stage.config()).unwrap();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", SMALL_DISK]).env("LAKE", stage.lake()).env("BINARY", BINARY).env("CONFIG", path);
    if !Command::new("unshare").args(["-m", "true"]).status().await.is_ok_and(|status| status.success()) {
        println!("skipped: this user may not mount a small disk");
        return;
    }
    let ended = Process::spawn(command).end().await;
    if ended.code == Some(99) {
        println!("skipped: a small disk cannot be mounted here");
        return;
    }
    let place = stage.lake().join("Patient.parquet").display().to_string();
    assert_says(&ended, 0, &["Patient", &format!("the disk under {place} is full; make room")]);
    assert!(ended.stdout.contains("first: 3") || ended.stdout.contains("first: 1"), "{}", ended.said());
    assert!(ended.stdout.contains("second: 0"), "{}", ended.said());
    fs::remove_dir(stage.lake()).unwrap();
    fs::rename(stage.lake().with_extension("kept"), stage.lake()).unwrap();
    stage.assert_in_step().await;
}
