//! Secrets of every place: what is read, when it is read again, and that nothing shows it.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use super::*;

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

fn text(secret: &Secret) -> String {
    secret.read().unwrap().text.expose_secret().to_owned()
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn a_file_is_read_again_when_it_has_changed_and_only_then() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    write(&path, "one\n");
    let secret = Secret::at(Place::File(path.clone()));
    assert_eq!((text(&secret), secret.read().unwrap().number), ("one".to_owned(), 1));
    write(&path, "three\n");
    assert_eq!((text(&secret), secret.read().unwrap().number), ("three".to_owned(), 2));
    // Replaced, as most programs write a file, by one of the same length.
    let other = folder.path().join("other");
    write(&other, "seven\n");
    fs::rename(&other, &path).unwrap();
    assert_eq!(text(&secret), "seven");
    fs::remove_file(&path).unwrap();
    assert!(matches!(secret.read(), Err(Error::Absent(_))), "a secret that was taken away is not used on");
}

#[test]
fn a_command_runs_once_until_it_is_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let count = folder.path().join("count");
    let script = format!("echo x >> {0}; wc -l < {0}", count.display());
    let secret = Secret::at(Place::Command(shell(&script)));
    assert_eq!((text(&secret).trim(), text(&secret).trim()), ("1", "1"));
    assert!(secret.forget());
    assert_eq!((text(&secret).trim(), text(&secret).trim()), ("2", "2"));
    assert!(!Secret::given("s3cret").forget());
}

#[test]
fn no_shell_reads_the_arguments_of_a_command() {
    let line = ["printf", "%s", "$HOME; `id`"].map(str::to_owned).to_vec();
    assert_eq!(text(&Secret::at(Place::Command(line))), "$HOME; `id`");
}

#[test]
fn a_command_that_fails_is_reported_with_its_status_and_without_what_it_printed() {
    for (script, expected) in [
        ("echo s3cret; echo s3cret >&2; exit 3", "exit status: 3"),
        ("kill -9 $$", "signal: 9"),
        ("head -c 70000 /dev/zero", "more than 64 KiB"),
        ("true", "printed is empty"),
        ("printf '\\377s3cret'", "printed is not UTF-8"),
    ] {
        let error = Secret::at(Place::Command(shell(script))).read().unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(expected) && !shown.contains("s3cret"), "{shown}");
    }
    let error = Secret::at(Place::Command(vec!["/no/such/program".to_owned()])).read().unwrap_err();
    assert!(matches!(error, Error::Absent(_)), "{error}");
}

#[test]
fn a_command_is_stopped_at_the_end_of_its_time_with_what_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("process");
    let script = format!("sleep 60 & echo $! > {}; wait", place.display());
    let begun = std::time::Instant::now();
    let error = command::run(&shell(&script), Duration::from_millis(500)).unwrap_err().to_string();
    assert_eq!(error, "sh did not end within 0.5 s and was stopped");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let process = fs::read_to_string(&place).unwrap();
    let state = || fs::read_to_string(format!("/proc/{}/stat", process.trim())).unwrap_or_default();
    let has_ended = |state: &str| state.is_empty() || state.contains(") Z ");
    // A process that was killed may wait for a processor before it ends.
    while !has_ended(&state()) && begun.elapsed() < Duration::from_secs(20) {
        std::thread::yield_now();
    }
    assert!(has_ended(&state()), "it still runs: {}", state());
}

#[test]
fn one_newline_at_the_end_is_not_part_of_a_secret() {
    for (printed, expected) in [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a "), ("a", "a")] {
        let line = ["printf", "%s", printed].map(str::to_owned).to_vec();
        assert_eq!(text(&Secret::at(Place::Command(line))), expected, "{printed:?}");
    }
}

#[test]
fn a_variable_and_a_credential_that_are_missing_are_named() {
    let error = Secret::at(Place::Variable("FHIR_SYNC_TEST_NO_SUCH".to_owned())).read().unwrap_err();
    assert_eq!(error.to_string(), "the variable FHIR_SYNC_TEST_NO_SUCH is not set");
    let error = Secret::at(Place::Credential("key".to_owned())).read().unwrap_err();
    assert!(error.to_string().contains("LoadCredential=key:FILE"), "{error}");
}

#[test]
fn nothing_shows_a_secret() {
    let command = ["echo", "s3cret"].map(str::to_owned).to_vec();
    for secret in [Secret::given("s3cret"), Secret::at(Place::Command(command))] {
        let reading = secret.read().unwrap();
        let shown = format!("{secret:?} {} {reading:?}", secret.place());
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}

#[test]
fn two_secrets_are_equal_when_their_places_are() {
    let file = |path: &str| Secret::at(Place::File(path.into()));
    assert_eq!(file("/a"), file("/a"));
    assert_ne!(file("/a"), file("/b"));
    assert_eq!(Secret::given("a"), Secret::given("a"));
    assert_ne!(Secret::given("a"), Secret::given("b"));
}
