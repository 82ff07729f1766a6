use std::{
    fs,
    net::{SocketAddr, TcpListener as StdListener},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    extract::Request,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{net::TcpListener, process::Command, task::JoinSet};

use crate::harness::{BINARY, Ended, Process, Setup};

/// The process ended with this exit code and one sentence that has all of these parts: what, where, and the way out.
fn assert_said(case: &str, ended: &Ended, code: i32, parts: &[&str]) {
    assert_eq!(ended.code, Some(code), "{case}: {}", ended.output());
    let for_people = ended.stdout.lines().chain(ended.stderr.lines().filter(|line| !line.starts_with('{')));
    let is_it = |line: &&str| parts.iter().all(|part| line.contains(part));
    assert!(for_people.clone().any(|line| is_it(&line)), "{case}: no line with {parts:?} in\n{}", ended.output());
    for line in for_people {
        assert!(!line.contains("os error"), "{case}: {line}");
    }
}

/// What is answered to a request with this path.
type Answering = fn(&str) -> Response;

/// A server that answers everything in one way, and counts the requests for an export.
struct OneAnswer {
    address: SocketAddr,
    kick_offs: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl OneAnswer {
    async fn start(answer: Answering) -> Self {
        let kick_offs = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&kick_offs);
        let answer = move |request: Request| {
            let path = request.uri().path().to_owned();
            if path.ends_with("/$export") {
                seen.fetch_add(1, Ordering::Relaxed);
            }
            async move { answer(&path) }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut serving = JoinSet::new();
        serving.spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await.unwrap() });
        Self { address, kick_offs, _serving: serving }
    }
}

fn html(status: StatusCode) -> Response {
    (status, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], "<html>Please log in</html>").into_response()
}

fn status_of_an_export(path: &str) -> Response {
    let is_kick_off = path.ends_with("/$export");
    let accepted = || (StatusCode::ACCEPTED, [(header::CONTENT_LOCATION, "/bulkstatus/1")]).into_response();
    if is_kick_off { accepted() } else { html(StatusCode::OK) }
}

#[tokio::test]
async fn an_answer_that_is_not_an_accepted_export_is_named_with_the_way_out_and_not_asked_for_again() {
    let cases: [(&str, Answering, &[&str]); 5] = [
        (
            "no client_id",
            |_| StatusCode::UNAUTHORIZED.into_response(),
            &["the server requires authorization", "server.client_id is not set"],
        ),
        (
            "wrong base URL",
            |_| StatusCode::NOT_FOUND.into_response(),
            &["there is no $export at this URL", "404", "check server.url", "at this level"],
        ),
        (
            "login page",
            |_| html(StatusCode::OK),
            &["expected 202 Accepted and got 200 OK with text/html", "a login page or a proxy", "check server.url"],
        ),
        (
            "redirect to a login",
            |_| (StatusCode::FOUND, [(header::LOCATION, "https://login.example.org/?t=1")]).into_response(),
            &["the server redirects to https://login.example.org/", "302", "set server.url to the final address"],
        ),
        (
            "no Content-Location",
            |_| StatusCode::ACCEPTED.into_response(),
            &["accepted, but no Content-Location says where the status of the export is"],
        ),
    ];
    for (case, answer, parts) in cases {
        let setup = Setup::new().await;
        let server = OneAnswer::start(answer).await;
        let url = format!("http://{}/fhir", server.address);
        let ended = setup.process(&[("FHIR_SYNC__SERVER__URL", &url)]).await;
        let place = format!("kick-off at {url}/$export");
        assert_said(case, &ended, 1, &[&[place.as_str()], parts].concat());
        assert_eq!(server.kick_offs.load(Ordering::Relaxed), 1, "{case}");
        assert!(!ended.output().contains("t=1") && !ended.output().contains("Please log in"), "{}", ended.output());
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named_with_what_failed_and_the_next_sync() {
    let setup = Setup::new().await;
    let closed = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let pages = OneAnswer::start(status_of_an_export).await;
    let server = pages.address.to_string();
    let again = "the next sync tries again";
    let cases: [(&str, String, &[&str]); 4] = [
        (
            "connection refused",
            format!("http://{closed}/fhir"),
            &[&closed, "connection refused", "server is up", again],
        ),
        (
            "unknown host",
            "https://ehr.invalid/fhir".to_owned(),
            &["cannot connect to ehr.invalid:443", "the host name cannot be resolved", "check the address and the DNS"],
        ),
        ("not TLS", format!("https://{server}/fhir"), &[&server, "does not speak TLS", "an http:// address"]),
        (
            "status that is HTML",
            format!("http://{server}/fhir"),
            &["export status at http://", "/bulkstatus/1", "the server sent an HTML page", "any proxy", again],
        ),
    ];
    for (case, url, parts) in cases {
        let ended = setup.process(&[("FHIR_SYNC__SERVER__URL", &url)]).await;
        assert_said(case, &ended, 1, parts);
        fs::remove_dir_all(setup.state_file().parent().unwrap()).unwrap();
    }
}

/// The text of a private key on a curve that no server of the specification accepts.
fn key_on_p256() -> String {
    use aws_lc_rs::{
        encoding::AsDer as _,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
    };
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let der: aws_lc_rs::encoding::EcPrivateKeyRfc5915Der<'_> = pair.private_key().as_der().unwrap();
    format!("-----BEGIN EC PRIVATE KEY-----\n{}\n-----END EC PRIVATE KEY-----\n", STANDARD.encode(der.as_ref()))
}

fn write(path: &Path, text: &str, mode: u32) -> String {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    path.display().to_string()
}

#[tokio::test]
async fn a_setting_that_cannot_be_used_is_named_with_the_way_out_before_any_request() {
    let setup = Setup::new().await;
    let at = |name: &str| setup.folder.path().join(name);
    let folder = setup.folder.path().display().to_string();
    let curve = write(&at("p256.pem"), &key_on_p256(), 0o600);
    let open = write(&at("open.pem"), "a key", 0o644);
    let other = write(&at("letter.txt"), "Dear Sir", 0o600);
    let key = "FHIR_SYNC__SERVER__PRIVATE_KEY_FILE";
    let cases: [(&str, &str, &str, &[&str]); 8] = [
        ("key on another curve", key, &curve, &[&curve, "an EC key on P-256", "RSA", "P-384"]),
        ("folder as key", key, &folder, &[&folder, "is a directory, not a file"]),
        ("key that others can read", key, &open, &[&open, "can be read by other users", "chmod 600"]),
        ("file that is not a key", key, &other, &[&other, "is neither a JWK nor a PEM with a private key"]),
        ("key that is missing", key, "/nowhere/key", &["server.private_key_file", "/nowhere/key", "No such file"]),
        (
            "host name as listener",
            "FHIR_SYNC__HEALTH__LISTEN",
            "localhost:9187",
            &["health.listen", "\"localhost:9187\" is not an IP address with a port, such as 127.0.0.1:9187"],
        ),
        ("slip in a key", "FHIR_SYNC__HELTH__LISTEN", "here", &["helth", "did you mean \"health\"?"]),
        ("slip in a word", "FHIR_SYNC__LOG__FORMAT", "jsno", &["log.format", "\"jsno\"", "did you mean \"json\"?"]),
    ];
    for (case, name, value, parts) in cases {
        let ended = setup.process(&[("FHIR_SYNC__SERVER__CLIENT_ID", "warehouse"), (name, value)]).await;
        assert_said(case, &ended, 78, parts);
    }
    assert!(setup.server.requests().is_empty());
}

#[tokio::test]
async fn a_configuration_file_that_cannot_be_read_is_named_with_the_reason() {
    let setup = Setup::new().await;
    let (folder, path) = (setup.folder.path(), setup.folder.path().join("fhir-sync.toml"));
    let path = write(&path, &setup.config(), 0o000);
    let folder = folder.to_str().unwrap();
    for (case, given, parts) in [
        ("unreadable", path.as_str(), ["cannot read ", &path, "permission denied"]),
        ("folder", folder, ["", folder, "is a directory"]),
        ("missing", "/nowhere/fhir-sync.toml", ["", "/nowhere/fhir-sync.toml", "does not exist"]),
    ] {
        let ended = Process::spawn(without_rights(&["check", "--config", given])).end().await;
        assert_said(case, &ended, 78, &parts);
    }
    let broken = write(&setup.folder.path().join("broken.toml"), "[server]\nurl =\n", 0o600);
    let ended = Process::start(&["check", "--config", &broken], &[]).end().await;
    assert_said("not TOML", &ended, 78, &[&broken, "line 2, column "]);
    let exports = [("patient", "did you mean \"Patient\"?"), ("Observatoin", "did you mean \"Observation\"?")];
    for (word, meant) in exports {
        let text = setup.config().replace("\"Patient\"", &format!("\"{word}\""));
        let wrong = write(&setup.folder.path().join("types.toml"), &text, 0o600);
        let ended = Process::start(&["check", "--config", &wrong], &[]).end().await;
        assert_said(word, &ended, 78, &["export[0].types", word, meant]);
        assert!(!ended.output().contains("must name"), "{}", ended.output());
    }
}

#[tokio::test]
async fn tables_that_the_user_may_not_look_at_are_not_reported_as_missing() {
    let setup = Setup::new().await;
    setup.complete().await;
    let config = write(&setup.folder.path().join("fhir-sync.toml"), &setup.config(), 0o600);
    let closed = setup.folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    let below = closed.join("lake");
    fs::rename(setup.lake(), &below).unwrap();
    for closed in [&closed, &below] {
        let mode = |mode| fs::set_permissions(closed, fs::Permissions::from_mode(mode)).unwrap();
        mode(0o000);
        for words in [&["status"][..], &["runs"], &["verify"], &["quarantine", "list"], &["check", "--online"]] {
            let mut command = without_rights(&[words, &["--config", &config]].concat());
            command.env("FHIR_SYNC__TABLES__ROOT", &below);
            let ended = Process::spawn(command).end().await;
            let output = ended.output().to_lowercase();
            assert_eq!(ended.code, Some(1), "{words:?} {}", ended.output());
            assert!(output.contains("permission denied") && output.contains("sudo"), "{words:?} {}", ended.output());
            for wrong in ["no such folder", "mounted", "exist"] {
                assert!(!output.contains(wrong), "{words:?} {}", ended.output());
            }
        }
        mode(0o700);
    }
}

#[tokio::test]
async fn a_new_folder_of_tables_is_for_its_owner_only_and_one_that_all_may_enter_is_reported() {
    let setup = Setup::new().await;
    let is_said = |ended: &Ended| ended.output().contains("every user of this machine may enter");
    let first = setup.process(&[]).await;
    let mode = || fs::metadata(setup.lake()).unwrap().permissions().mode() & 0o777;
    assert_eq!((first.code, mode(), is_said(&first)), (Some(0), 0o700, false), "{}", first.output());
    fs::set_permissions(setup.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (of_lake, is_open) in [(0o755, true), (0o750, false)] {
        fs::set_permissions(setup.lake(), fs::Permissions::from_mode(of_lake)).unwrap();
        let again = setup.process(&[]).await;
        assert_eq!((again.code, mode(), is_said(&again)), (Some(0), of_lake, is_open), "{}", again.output());
        let checked = setup.command(&["check", "--online"], &[]).await;
        assert_eq!((checked.code, is_said(&checked)), (Some(0), is_open), "{}", checked.output());
    }
}

/// The program without root's right to read everything.
fn without_rights(arguments: &[&str]) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--inh-caps=-all", "--bounding-set=-all", BINARY]);
        command
    } else {
        Command::new(BINARY)
    };
    command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command
}

#[tokio::test]
async fn a_command_line_that_cannot_work_is_answered_with_the_flags_to_give() {
    let setup = Setup::new().await;
    let config = write(&setup.folder.path().join("fhir-sync.toml"), &setup.config(), 0o600);
    let closed = setup.folder.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    let (url, lake, state) = (setup.server.url().to_string(), setup.lake(), closed.join("fhir-sync/state.json"));
    let (lake, state) = (lake.to_str().unwrap(), state.to_str().unwrap());
    let drop_in = ["sync", "--fhir-endpoint", &url, "--delta-path", lake];
    let wrong_type = [&drop_in[..], &["--resource-types", "patient"]].concat();
    let wrong_place = [&drop_in[..], &["--state-file", state]].concat();
    let cases: [(&str, &[&str], i32, &[&str]); 8] = [
        ("no permission", &wrong_place, 75, &["closed/fhir-sync", "cannot be used", "owner, mode", "`--state-file`"]),
        ("unknown type in a flag", &wrong_type, 78, &["--resource-types:", "did you mean \"Patient\"?"]),
        (
            "neither file nor flags",
            &["sync"],
            78,
            &["/etc/fhir-sync/fhir-sync.toml does not exist", "--config FILE, or --fhir-endpoint with --delta-path"],
        ),
        ("half of the flags", &drop_in[..3], 2, &["--delta-path"]),
        (
            "both",
            &[&drop_in[..], &["--config", &config]].concat(),
            2,
            &["--fhir-endpoint", "cannot be used", "--config"],
        ),
        (
            "unknown export",
            &["sync", "--config", &config, "--export", "alll"],
            78,
            &["no export \"alll\"", "it has all", "did you mean \"all\"?"],
        ),
        ("slip in a command", &["snyc"], 2, &["'sync'"]),
        ("slip in a flag", &["sync", "--full-refersh"], 2, &["'--full-refresh'"]),
    ];
    for (case, arguments, code, parts) in cases {
        let ended = Process::spawn(without_rights(arguments)).end().await;
        assert_said(case, &ended, code, parts);
        assert!(!ended.output().contains("must name"), "{case}: {}", ended.output());
    }
    assert!(setup.server.requests().is_empty());
}

#[tokio::test]
async fn what_people_read_has_the_number_of_its_nouns_and_a_run_that_fails_says_after_how_long() {
    let setup = Setup::new().await;
    let closed = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let failed = setup.process(&[("FHIR_SYNC__SERVER__URL", &format!("http://{closed}/fhir"))]).await;
    let last = failed.stdout.lines().last().unwrap();
    assert!(last.starts_with("failed after ") && !last.contains(" in "), "{last}");
    let complete = setup.process(&[]).await;
    let checked = setup.command(&["check"], &[]).await;
    for ended in [&failed, &complete, &checked] {
        for word in ["error", "export", "field", "row", "file", "type", "attempt", "second"] {
            let wrong = format!(" 1 {word}s");
            assert!(!ended.output().contains(&wrong), "{wrong:?} in {}", ended.output());
        }
        for debug in ["Operator(", "[Patient", "\"0ns\"", "Some("] {
            assert!(!ended.output().contains(debug), "{debug:?} in {}", ended.output());
        }
    }
}
