use std::{collections::BTreeSet, fs, path::PathBuf};

use axum::http::StatusCode;
use fhir_sync::{
    demo::Fault,
    sync::{Mode, Outcome, ProgressBoard, Syncer},
    table::{self, Location},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{BINARY, Ended, OBSERVATION, PATIENT, Process, Setup, json_of};

const COLUMNS: usize = 80;

/// Compares a text with the file in `tests/it/snapshots`, or writes the file: `UPDATE_SNAPSHOTS=1 cargo test terminal::`.
fn assert_snapshot(name: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/snapshots").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{name} differs from {}; it is now:\n{text}", path.display());
}

fn assert_fits(name: &str, text: &str) {
    for line in text.lines().filter(|line| !line.starts_with('!')) {
        assert!(line.chars().count() <= COLUMNS, "{name}: {} columns: {line}", line.chars().count());
        assert!(!line.contains('\u{1b}'), "{name}: colours without a terminal: {line:?}");
    }
}

async fn help(words: &[String]) -> String {
    let mut arguments: Vec<&str> = words.iter().map(String::as_str).collect();
    arguments.push("--help");
    let ended = Process::start(&arguments, &[]).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    ended.stdout
}

/// The commands that a help lists.
fn commands_of(help: &str) -> Vec<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let is_name = |line: &&str| line.starts_with("  ") && !line.starts_with("   ");
    let names = listed.filter(is_name).filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[tokio::test]
async fn each_help_fits_into_80_columns_and_has_an_example() {
    let mut waiting: Vec<Vec<String>> = vec![vec![]];
    let mut seen = 0;
    while let Some(words) = waiting.pop() {
        let help = help(&words).await;
        waiting.extend(commands_of(&help).into_iter().map(|name| [&words[..], &[name]].concat()));
        let name = [&["help".to_owned()], &words[..]].concat().join("-");
        assert_fits(&name, &help);
        assert!(words.is_empty() || help.contains("\nExamples:\n"), "{name}");
        // The commands of a feature are in the help of a program that has it.
        if cfg!(feature = "sql") && (words.is_empty() || words[0] == "query") {
            continue;
        }
        assert_snapshot(&name, &help);
        seen += 1;
    }
    assert!(seen > 20, "{seen}");
}

/// What differs from run to run, in the same width.
fn timeless(text: &str) -> String {
    let pattern = "dddd-dd-dd dd:dd:dd";
    let is_like = |text: &[char]| {
        text.iter().zip(pattern.chars()).all(|(char, of)| if of == 'd' { char.is_ascii_digit() } else { *char == of })
    };
    let chars: Vec<char> = text.chars().collect();
    let (mut shown, mut at) = (String::new(), 0);
    while at < chars.len() {
        let is_time = at + pattern.len() <= chars.len() && is_like(&chars[at..]);
        shown.push_str(&if is_time { pattern.to_owned() } else { chars[at].to_string() });
        at += if is_time { pattern.len() } else { 1 };
    }
    let line = |line: &str| match (line.split_once(" after "), line.split_once(": ")) {
        (Some((outcome, _)), Some((_, counts))) if outcome == "complete" => {
            format!("{outcome} after a while: {counts}")
        }
        _ => line.to_owned(),
    };
    shown.lines().map(|text| line(text) + "\n").collect()
}

/// A command that prints a table for a terminal of 80 columns.
async fn table(setup: &Setup, words: &[&str]) -> Ended {
    let ended = setup.command(words, &[("COLUMNS", "80")]).await;
    assert_fits(&words.join(" "), &ended.stdout);
    ended
}

#[tokio::test]
async fn each_table_fits_into_80_columns() {
    let setup = Setup::new().await;
    setup.run(Mode::FullRefresh).await;
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
        world.put(OBSERVATION, "o1", json!({"status": "amended"}));
        world.delete(OBSERVATION, "o2");
    });
    let synced = table(&setup, &["sync"]).await;
    assert_eq!(synced.code, Some(0), "{}", synced.output());
    assert_snapshot("sync", &timeless(&synced.stdout));
    for words in [
        vec!["status"],
        vec!["runs"],
        vec!["verify"],
        vec!["state", "show"],
        vec!["job", "show"],
        vec!["quarantine", "list"],
    ] {
        let shown = table(&setup, &words).await;
        assert_eq!(shown.code, Some(0), "{}", shown.output());
        let text = shown.stdout.replace(&setup.folder.path().display().to_string(), "FOLDER");
        assert_snapshot(&words.join("-"), &timeless(&text));
    }
}

#[tokio::test]
async fn the_report_of_a_sync_and_of_a_check_is_json_for_programs() {
    let setup = Setup::new().await;
    let synced = setup.command(&["sync", "--json"], &[]).await;
    assert_eq!(synced.code, Some(0), "{}", synced.output());
    assert_eq!(synced.stdout.lines().count(), 1, "{}", synced.stdout);
    let report = json_of(&synced);
    assert_eq!((&report["export"], &report["outcome"]), (&json!("all"), &json!("complete")));
    assert_eq!((&report["types"][1]["resource_type"], &report["types"][1]["inserted"]), (&json!("Patient"), &json!(5)));
    let maintained = json_of(&setup.command(&["maintain", "--dry-run", "--json"], &[]).await);
    let tables = maintained["tables"].as_array().unwrap();
    assert_eq!((&maintained["dry_run"], &tables[0]["table"]), (&json!(true), &json!("Observation")));
    assert_eq!((&tables[0]["rewritten"]["files"], &tables[0]["error"]), (&json!(0), &Value::Null), "{maintained}");
    let checked = json_of(&setup.command(&["check", "--json"], &[]).await);
    assert_eq!((&checked["exports"], &checked["mistakes"]), (&json!(["all"]), &json!([])));
    let wrong = setup.command(&["check", "--json"], &[("FHIR_SYNC__HELTH__LISTEN", "here")]).await;
    assert_eq!(wrong.code, Some(78));
    let mistakes = json_of(&wrong)["mistakes"].clone();
    assert_eq!(mistakes, json!(["helth: is not a key that fhir-sync knows; did you mean \"health\"?"]));
}

#[tokio::test]
async fn the_configuration_is_printed_with_its_origins_and_is_valid_again() {
    let setup = Setup::new().await;
    let environment = [("FHIR_SYNC__HEALTH__MAX_AGE", "90m")];
    let printed = setup.command(&["config", "print"], &environment).await;
    assert_eq!(printed.code, Some(0), "{}", printed.output());
    let line = "max_age = \"90m\"  # environment: FHIR_SYNC__HEALTH__MAX_AGE";
    assert!(printed.stdout.lines().any(|printed| printed == line), "{}", printed.stdout);
    let path = setup.folder.path().join("printed.toml");
    fs::write(&path, &printed.stdout).unwrap();
    let checked = Process::start(&["check", "--config", path.to_str().unwrap()], &[]).end().await;
    assert_eq!(checked.code, Some(0), "{}", checked.output());
    let sample = Process::start(&["config", "sample"], &[]).end().await;
    let reference = fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("config/fhir-sync.toml"));
    assert_eq!(sample.stdout, reference.unwrap());
    let schema: Value = json_of(&Process::start(&["config", "schema"], &[]).end().await);
    assert_eq!(schema["properties"]["server"]["properties"]["url"]["type"], "string");
}

#[tokio::test]
async fn the_version_names_what_the_tables_depend_on() {
    let version = json_of(&Process::start(&["version", "--json"], &[]).end().await);
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    let has_sql = version["features"].as_array().unwrap().contains(&json!("sql"));
    assert_eq!(has_sql, cfg!(feature = "sql"));
    assert!(version["deltalake"].as_str().unwrap().starts_with("1."), "{version}");
    let for_people = Process::start(&["version"], &[]).end().await;
    assert!(for_people.stdout.starts_with("fhir-sync "), "{}", for_people.stdout);
}

#[tokio::test]
async fn without_any_file_a_command_says_where_it_looked_and_what_to_give() {
    let nowhere = Process::start(&["sync"], &[]).end().await;
    assert_eq!(nowhere.code, Some(78), "{}", nowhere.output());
    let expected =
        "/etc/fhir-sync/fhir-sync.toml does not exist; give --config FILE, or --fhir-endpoint with --delta-path";
    assert!(nowhere.stderr.contains(expected), "{}", nowhere.stderr);
    let setup = Setup::new().await;
    let path = setup.folder.path().join("fhir-sync.toml");
    fs::write(&path, setup.config()).unwrap();
    let by_environment = Process::start(&["check"], &[("FHIR_SYNC_CONFIG", path.to_str().unwrap())]).end().await;
    assert_eq!(by_environment.code, Some(0), "{}", by_environment.output());
}

#[tokio::test]
async fn colours_are_for_terminals_unless_the_command_line_says_otherwise() {
    let setup = Setup::new().await;
    let text = setup.config().replace("format = \"json\"", "format = \"pretty\"");
    let path = setup.folder.path().join("pretty.toml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    let no_color = [("NO_COLOR", "1")];
    for (words, environment, is_coloured) in [
        (vec!["sync", "--config", path], &[][..], false),
        (vec!["sync", "--config", path, "--color", "always"], &no_color[..], true),
        (vec!["--color", "never", "sync", "--config", path], &[][..], false),
        (vec!["runs", "--config", path, "--color=always"], &[][..], true),
        (vec!["sync", "--help", "--color=always"], &[][..], true),
    ] {
        let ended = Process::start(&words, environment).end().await;
        assert_eq!(ended.code, Some(0), "{words:?}: {}", ended.output());
        assert_eq!(ended.stdout.contains("\u{1b}["), is_coloured, "{words:?}: {}", ended.stdout);
        let is_logged = words.contains(&"sync") && !words.contains(&"--help");
        assert_eq!(ended.stderr.contains("\u{1b}["), is_coloured && is_logged, "{words:?}: {}", ended.stderr);
    }
    let json = setup.command(&["sync", "--color", "always"], &[]).await;
    assert!(!json.stderr.contains("\u{1b}["), "a log in JSON has no colours: {}", json.stderr);
}

/// A pseudo-terminal of util-linux, where it is installed.
#[tokio::test]
async fn on_a_terminal_no_line_of_the_log_is_torn_by_the_progress() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold = true);
    let path = setup.folder.path().join("fhir-sync.toml");
    // Polls are logged while the line of progress is drawn.
    fs::write(&path, setup.config().replace("format = \"json\"\nfilter = \"trace\"", "filter = \"debug\"")).unwrap();
    let line = format!("stty cols 80; timeout 3 {BINARY} sync --config {}", path.display());
    let mut command = tokio::process::Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env_clear().env("TERM", "xterm").env("NO_COLOR", "1");
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    if tokio::process::Command::new("script").arg("--version").output().await.is_err() {
        println!("skipped: script is not installed");
        return;
    }
    let ended = Process::spawn(command).end().await;
    let drawn = ended.stdout.matches("all: waiting for the server (poll").count();
    assert!(drawn > 0, "{}", ended.stdout);
    // What is on a line of the log after the last control sequence must be a whole line.
    let logged = ended.stdout.split(['\r', '\n']).filter(|line| line.contains("the export is in progress"));
    for line in logged {
        let text = line.rsplit("\u{1b}[").next().unwrap();
        let text = text.split_once(['K', 'J', 'A']).map_or(text, |(_, text)| text);
        assert!(text.starts_with("20") && !line.contains("poll "), "{line:?}");
    }
    assert!(!ended.stdout.contains("\u{1b}[3"), "no colours: {:?}", ended.stdout);
}

#[tokio::test]
async fn a_request_that_is_tried_again_is_in_the_progress_of_its_export() {
    let setup = Setup::new().await;
    let fault = |path: &str, status| Fault::Status {
        path_contains: path.to_owned(),
        status,
        times: 2,
        retry_after: None,
        body: String::new(),
    };
    setup.server.scenario(|scenario| {
        scenario.faults = vec![
            fault("$export", StatusCode::SERVICE_UNAVAILABLE),
            fault("/bulkstatus/", StatusCode::BAD_GATEWAY),
            fault("/bulkfiles/", StatusCode::GATEWAY_TIMEOUT),
        ];
    });
    let (board, mut shown) = ProgressBoard::new();
    let exports = [setup.export.clone()];
    let (client, tables) = (setup.client.clone(), table::Config::new(Location::Folder(setup.lake())));
    let syncer = Syncer::open(client, tables, &setup.state, setup.config.clone(), &exports, board);
    let syncer = syncer.await.unwrap();
    let seen = async {
        let mut seen = BTreeSet::new();
        while shown.changed().await.is_ok() {
            let retries = shown.borrow().values().filter_map(|progress| progress.retry.clone()).collect::<Vec<_>>();
            seen.extend(retries.into_iter().map(|retry| (retry.reason, retry.number)));
        }
        seen
    };
    let run = async {
        let report = syncer.run(&setup.export, Mode::Incremental, &CancellationToken::new()).await;
        drop(syncer);
        report
    };
    let (report, seen) = tokio::join!(run, seen);
    assert_eq!(report.outcome, Outcome::Complete, "{report:#?}");
    for retry in [("503", 1), ("503", 2), ("502", 1), ("502", 2), ("504", 1)] {
        assert!(seen.contains(&(retry.0.to_owned(), retry.1)), "{retry:?} in {seen:?}");
    }
}
