use std::{net::TcpListener, os::unix::fs::DirBuilderExt as _};

use fhir_sync::demo::{Fault, StatusCode};
use serde_json::Value;

use crate::harness::{Ended, Process, Setup};

/// `check --online --json` with more arguments; what was tried, as "verdict what: found".
async fn tried(setup: &Setup, more: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, Vec<String>) {
    let ended = check(setup, &[&["--json"], more].concat(), settings).await;
    let checked: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.output()));
    let text = |tried: &Value, member: &str| tried[member].as_str().unwrap().to_owned();
    let line = |tried: &Value| format!("{} {}: {}", text(tried, "verdict"), text(tried, "what"), text(tried, "found"));
    (ended.code, checked["tried"].as_array().into_iter().flatten().map(line).collect())
}

async fn check(setup: &Setup, more: &[&str], settings: &[(&str, &str)]) -> Ended {
    let path = setup.folder.path().join("fhir-sync.toml");
    std::fs::write(&path, setup.config()).unwrap();
    let arguments = [&["check", "--config", path.to_str().unwrap(), "--online"], more].concat();
    Process::start(&arguments, settings).end().await
}

fn assert_has(lines: &[String], parts: &[&str]) {
    assert!(
        lines.iter().any(|line| parts.iter().all(|part| line.contains(part))),
        "no line with {parts:?} in {lines:#?}"
    );
}

fn kick_offs(setup: &Setup) -> usize {
    setup.server.requests().iter().filter(|request| request.path.contains("$export")).count()
}

/// (rules 6 and 132)
#[tokio::test]
async fn each_thing_that_a_sync_needs_is_tried_and_nothing_is_exported() {
    let setup = Setup::new().await;
    std::fs::DirBuilder::new().mode(0o750).create(setup.lake()).unwrap();
    let (code, lines) = tried(&setup, &[], &[]).await;
    assert_eq!(code, Some(0), "{lines:#?}");
    for parts in [
        &["good name 127.0.0.1"][..],
        &["good connection to", "without encryption"],
        &["clock"],
        &["good capabilities", "FHIR 4.0.1, fhir-sync demo"],
        &["doubtful authorization", "none is configured"],
        &["good tables", "can be written"],
    ] {
        assert_has(&lines, parts);
    }
    assert_eq!(kick_offs(&setup), 0);
    assert_eq!(std::fs::read_dir(setup.lake()).unwrap().count(), 0, "it leaves nothing behind");
}

#[tokio::test]
async fn with_kick_off_each_export_is_requested_and_cancelled_at_once() {
    let setup = Setup::new().await;
    let (code, lines) = tried(&setup, &["--kick-off"], &[]).await;
    assert_eq!(code, Some(0), "{lines:#?}");
    assert_has(&lines, &["good export all: kick-off: accepted, and cancelled again"]);
    let jobs = setup.server.jobs();
    assert!(jobs.len() == 1 && jobs[0].deleted && jobs[0].since.is_some(), "{jobs:#?}");
}

#[tokio::test]
async fn a_refused_kick_off_is_tried_again_with_each_type_alone() {
    let setup = Setup::new().await;
    let refused = Fault::Status {
        path_contains: "Observation".to_owned(),
        status: StatusCode::BAD_REQUEST,
        times: 100,
        retry_after: None,
        body: String::new(),
    };
    setup.server.scenario(|scenario| scenario.faults = vec![refused]);
    let (code, lines) = tried(&setup, &["--kick-off"], &[]).await;
    assert_eq!(code, Some(1), "{lines:#?}");
    assert_has(&lines, &["failed export all: kick-off", "400"]);
    assert_has(&lines, &["failed export all, Observation alone: kick-off"]);
    assert_has(&lines, &["good export all, Patient alone: kick-off"]);
    assert!(setup.server.jobs().iter().all(|job| job.deleted));
}

#[tokio::test]
async fn a_server_that_is_down_is_named_with_the_way_out_and_nothing_more_is_tried_there() {
    let setup = Setup::new().await;
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{closed}/fhir");
    let (code, lines) = tried(&setup, &["--kick-off"], &[("FHIR_SYNC__SERVER__URL", &url)]).await;
    assert_eq!(code, Some(1), "{lines:#?}");
    assert_has(&lines, &["failed connection to", "connection refused", "check that the server is up"]);
    assert!(!lines.iter().any(|line| line.contains("token") || line.contains("kick-off:")), "{lines:#?}");
}

/// (rule 6)
#[tokio::test]
async fn a_server_that_does_not_know_metadata_at_this_path_is_not_the_fhir_base() {
    let setup = Setup::new().await;
    let url = setup.server.url().join("/fihr").unwrap().to_string();
    let (code, lines) = tried(&setup, &["--kick-off"], &[("FHIR_SYNC__SERVER__URL", &url)]).await;
    assert_eq!(code, Some(1), "{lines:#?}");
    assert_has(&lines, &["failed capabilities: the server does not know", "/fihr/metadata", "server.url"]);
    assert_eq!(setup.server.jobs().len(), 0, "nothing is requested there");
}

#[tokio::test]
async fn what_a_sync_would_refuse_of_its_folders_is_found_before_it() {
    let setup = Setup::new().await;
    let path = |name: &str| setup.folder.path().join(name).display().to_string();
    std::fs::write(path("file"), "").unwrap();
    std::fs::create_dir_all(setup.folder.path().join("Patient.parquet/_delta_log")).unwrap();
    let (root, state) = ("FHIR_SYNC__TABLES__ROOT", "FHIR_SYNC__STATE__FILE");
    // Nobody may create a folder there, not even root.
    for (settings, failed) in [
        (
            [(root, "/proc/lake".to_owned()), (state, path("s/state.json"))],
            "failed tables: /proc/lake does not exist, and",
        ),
        ([(root, path("file/lake")), (state, path("s/state.json"))], "failed tables"),
        ([(root, path("file")), (state, path("s/state.json"))], "file is no folder"),
        ([(root, path("Patient.parquet")), (state, path("s/state.json"))], "Patient.parquet/ is a Delta table"),
        ([(root, path("lake")), (state, "/proc/s/state.json".to_owned())], "failed state: /proc/s does not exist, and"),
        ([(root, path("lake")), (state, "/proc/state.json".to_owned())], "failed state: /proc cannot be written"),
    ] {
        let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
        let (code, lines) = tried(&setup, &[], &settings).await;
        assert_eq!(code, Some(1), "{settings:?} {lines:#?}");
        assert_has(&lines, &[failed]);
        let synced = setup.process(&settings).await;
        assert!(matches!(synced.code, Some(75 | 78)), "{settings:?} {}", synced.output());
        assert_eq!(kick_offs(&setup), 0);
    }
    let (code, lines) = tried(&setup, &[], &[]).await;
    assert_eq!(code, Some(0), "{lines:#?}");
    assert_has(&lines, &["doubtful tables", "the first sync creates it"]);
    assert_has(&lines, &["doubtful state", "the first sync creates it"]);
}

/// (rule 113)
#[tokio::test]
async fn another_server_than_that_of_the_rows_is_found_before_a_sync_refuses_it() {
    let mut setup = Setup::new().await;
    setup.complete().await;
    let root = setup.root();
    let moved = Setup::new().await;
    setup.server = moved.server;
    let (code, lines) = tried(&setup, &[], &[]).await;
    assert_has(&lines, &["good source"]);
    assert_eq!(code, Some(0), "the source is named by the operator");
    let recorded = root.read_document("sources.json").await.unwrap().unwrap();
    let taken = String::from_utf8(recorded.to_vec()).unwrap().replace("hospital", "fhir");
    root.write_document("sources.json", taken.into_bytes().into()).await.unwrap();
    let path = setup.folder.path().join("default.toml");
    std::fs::write(&path, setup.config().replace("source = \"hospital\"\n", "")).unwrap();
    let arguments = ["check", "--config", path.to_str().unwrap(), "--online"];
    let ended = Process::start(&arguments, &[]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.output());
    assert!(ended.stdout.contains("failed    source: the rows of source \"fhir\" are from"), "{}", ended.output());
}

/// (rule 126, Q-64)
#[tokio::test]
async fn scopes_that_were_not_granted_are_named() {
    let (mut setup, key) = crate::auth::guarded_with_key_file().await;
    setup.export.types.sort();
    setup.server.scenario(|scenario| {
        scenario.auth.as_mut().unwrap().granted_scope = Some("system/Patient.rs".to_owned());
    });
    let settings =
        [("FHIR_SYNC__SERVER__CLIENT_ID", crate::auth::CLIENT), ("FHIR_SYNC__SERVER__PRIVATE_KEY_FILE", key.as_str())];
    let (code, lines) = tried(&setup, &[], &settings).await;
    assert_eq!(code, Some(1), "{lines:#?}");
    assert_has(&lines, &["good token: received, with the scopes \"system/Patient.rs\""]);
    assert_has(&lines, &["failed scopes: not granted: system/Observation.rs"]);
    assert!(!lines.iter().any(|line| line.contains("demo-token")), "{lines:#?}");
}

///
#[tokio::test]
async fn a_group_that_does_not_exist_is_found_before_its_empty_export_is() {
    let mut setup = Setup::new().await;
    setup.export.level = fhir_sync::sync::Level::Group("nope".to_owned());
    let (code, lines) = tried(&setup, &[], &[]).await;
    assert_eq!(code, Some(1), "{lines:#?}");
    assert_has(&lines, &["failed Group/nope: does not exist"]);
}

#[tokio::test]
async fn people_get_a_line_for_each_thing_and_for_what_is_from_a_profile() {
    let setup = Setup::new().await;
    let ended = check(&setup, &[], &[("FHIR_SYNC__SERVER__PROFILE", "oracle")]).await;
    assert!(ended.stdout.contains("from the profile oracle"), "{}", ended.output());
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert!(ended.stdout.lines().any(|line| line.starts_with("good      connection to")), "{}", ended.output());
    assert!(ended.stdout.lines().any(|line| line.starts_with("doubtful  tables")), "{}", ended.output());
}
