use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use fhir_sync::demo::{Auth, Registered};
use jsonwebtoken::jwk::JwkSet;
use serde_json::Value;

use crate::harness::{Ended, Process, Setup, eventually};

const CLIENT: &str = "hospital-warehouse";
/// A part of each secret here, and of nothing else.
const CANARY: &str = "canary-7f3a";

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The configuration of the setup with these keys in `[server]` and a file for it.
fn configured(setup: &Setup, keys: &str) -> String {
    let path = setup.folder.path().join("secrets.toml");
    fs::write(&path, setup.config().replacen("[server]\n", &format!("[server]\n{keys}\n"), 1)).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn run(words: &[&str], config: &str, environment: &[(&str, &str)]) -> Ended {
    Process::start(&[words, &["--config", config]].concat(), environment).end().await
}

fn assert_silent(ended: &Ended, secrets: &[&str]) {
    for secret in secrets {
        assert!(!ended.output().contains(secret), "{secret:?} was printed:\n{}", ended.output());
    }
}

/// Shows (Q-60, rule 129).
#[tokio::test]
async fn a_client_secret_of_any_place_gets_a_token_and_is_printed_nowhere() {
    let secret = format!("{CANARY}:% ü");
    for method in ["client-secret-basic", "client-secret-post"] {
        for form in ["file", "credential", "env", "exec"] {
            let setup = Setup::new().await;
            let registered = Registered::new(CLIENT).unwrap();
            setup.server.scenario(|scenario| {
                scenario.auth = Some(Auth { secret: Some(secret.clone()), ..registered.auth() });
            });
            let file = setup.folder.path().join("client-secret");
            write(&file, &format!("{secret}\n"));
            let path = file.to_str().unwrap();
            let place = match form {
                "file" => format!("\"{path}\""),
                "credential" => "\"client-secret\"".to_owned(),
                "env" => "\"OF_THE_VAULT\"".to_owned(),
                _ => format!("[\"cat\", \"{path}\"]"),
            };
            let keys = format!("auth = \"{method}\"\nclient_id = \"{CLIENT}\"\nclient_secret_{form} = {place}");
            let config = configured(&setup, &keys);
            let folder = setup.folder.path().to_str().unwrap();
            let environment =
                [("PATH", "/usr/bin:/bin"), ("CREDENTIALS_DIRECTORY", folder), ("OF_THE_VAULT", secret.as_str())];
            let ended = run(&["sync"], &config, &environment).await;
            assert_eq!(ended.code, Some(0), "{method}, {form}: {}", ended.output());
            setup.assert_same_as_server().await;
            for words in [&["config", "print"][..], &["check"], &["status"]] {
                assert_silent(&run(words, &config, &environment).await, &[CANARY, "demo-token-"]);
            }
            assert_silent(&ended, &[CANARY, "demo-token-"]);
        }
    }
}

/// Shows (rule 129).
#[tokio::test]
async fn a_secret_in_the_configuration_or_in_two_places_is_refused_and_not_printed() {
    let setup = Setup::new().await;
    for (keys, expected) in [
        (format!("client_secret = \"{CANARY}\""), "server.client_secret: is a secret; write it to a file"),
        (format!("token = \"{CANARY}\""), "server.token: is a secret"),
        (format!("token_file = \"eyJ{CANARY}\""), "server.token_file: is the secret itself"),
        (
            "auth = \"token\"\ntoken_file = \"/a\"\ntoken_exec = [\"b\"]".to_owned(),
            "server.token_exec: is set, and token_file too",
        ),
        ("auth = \"token\"\ntoken_exec = \"echo a\"".to_owned(), "server.token_exec: must be a list"),
        ("client_id = \"me\"\ntoken_env = \"A\"".to_owned(), "server.token_env: is set, and auth is not \"token\""),
        (
            "client_id = \"me\"\nclient_secret_env = \"A\"".to_owned(),
            "server.client_secret_env: is set, and auth is not \"client-secret-basic\" or \"client-secret-post\"",
        ),
        ("auth = \"token\"\nprivate_key_env = \"A\"".to_owned(), "server.private_key_env: is set, and auth is not"),
        ("auth = \"client-secret-post\"\nclient_id = \"a\"".to_owned(), "server.client_secret_file: is missing"),
        ("auth = \"token\"".to_owned(), "server.token_file: is missing"),
        ("auth = \"tokens\"".to_owned(), "server.auth: \"tokens\" is not one of"),
    ] {
        let ended = run(&["sync"], &configured(&setup, &keys), &[]).await;
        assert_eq!(ended.code, Some(78), "{keys}: {}", ended.output());
        assert!(ended.stderr.contains(expected), "{keys}: {}", ended.output());
        assert_silent(&ended, &[CANARY]);
    }
    assert!(setup.server.requests().is_empty());
}

/// The public keys that a command printed.
fn keys(ended: &Ended) -> JwkSet {
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    let printed: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(printed["keys"].as_array().unwrap().iter().all(|key| key.get("d").is_none()), "{printed}");
    serde_json::from_value(printed).unwrap()
}

/// Shows (rules 117 to 119).
#[tokio::test]
async fn a_key_that_keygen_makes_syncs_once_it_is_registered_and_a_second_one_takes_over() {
    let setup = Setup::new().await;
    let path = setup.folder.path().join("key.json");
    let file = path.to_str().unwrap();
    let made = keys(&Process::start(&["keygen", "--out", file], &[]).end().await);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let refused = Process::start(&["keygen", "--out", file], &[]).end().await;
    assert_eq!(refused.code, Some(1), "{}", refused.output());
    assert!(refused.stderr.contains("exists"), "{}", refused.stderr);

    let register = |jwk| setup.server.scenario(|scenario| scenario.auth = Some(Auth::new(CLIENT, jwk)));
    let config = configured(&setup, &format!("client_id = \"{CLIENT}\"\nprivate_key_file = \"{file}\""));
    register(made.keys[0].clone());
    let private = fs::read_to_string(&path).unwrap();
    let secret = private.split("\"d\": \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let ended = run(&["sync"], &config, &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert_silent(&ended, &[&secret]);
    assert_eq!(keys(&run(&["jwks"], &config, &[]).await), made);

    let both = keys(&Process::start(&["keygen", "--out", file, "--add"], &[]).end().await);
    assert_eq!((both.keys.len(), &both.keys[0]), (2, &made.keys[0]));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(run(&["sync"], &config, &[]).await.code, Some(0), "the first key still signs");
    register(both.keys[1].clone());
    let id = both.keys[1].common.key_id.clone().unwrap();
    let ended = run(&["sync"], &config, &[("FHIR_SYNC__SERVER__KEY_ID", &id)]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
}

/// Shows (rule 117).
#[tokio::test]
async fn the_daemon_serves_the_public_keys_where_it_is_told_to() {
    let setup = Setup::new().await;
    let path = setup.folder.path().join("key.json");
    let file = path.to_str().unwrap();
    let made = keys(&Process::start(&["keygen", "--out", file], &[]).end().await);
    setup.server.scenario(|scenario| scenario.auth = Some(Auth::new(CLIENT, made.keys[0].clone())));
    for is_served in [true, false] {
        let served = if is_served { "true" } else { "false" };
        let settings = [
            ("FHIR_SYNC__SERVER__CLIENT_ID", CLIENT),
            ("FHIR_SYNC__SERVER__PRIVATE_KEY_FILE", file),
            ("FHIR_SYNC__HEALTH__SERVE_JWKS", served),
        ];
        let daemon = crate::harness::Daemon::start(&setup, &settings).await;
        let response = eventually("an answer", async || {
            let response = daemon.response(reqwest::Method::GET, "/jwks.json").await;
            (response.status() == if is_served { 200 } else { 404 }).then_some(response)
        })
        .await;
        if is_served {
            assert_eq!(response.headers()["content-type"], "application/jwk-set+json");
            assert_eq!(response.headers()["cache-control"], "public, max-age=300");
            assert_eq!(response.json::<JwkSet>().await.unwrap(), made);
        }
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_vault_that_is_down_ends_the_service_for_now_and_a_wrong_secret_for_good() {
    let setup = Setup::new().await;
    let path = setup.folder.path().join("vault.toml");
    let config = path.to_str().unwrap();
    for (line, code) in [("[\"false\"]", 75), ("[\"echo\", \"no URL\"]", 78)] {
        fs::write(&path, format!("{}\n[notify]\nwebhook_url_exec = {line}\n", setup.config())).unwrap();
        for words in [&["run"][..], &["sync"]] {
            let ended = run(words, config, &[("PATH", "/usr/bin:/bin")]).await;
            assert_eq!(ended.code, Some(code), "{words:?}, {line}: {}", ended.output());
            assert!(ended.output().contains("notify.webhook_url_exec: "), "{}", ended.output());
        }
        for form in [&["check", "--online"][..], &["check", "--online", "--json"]] {
            assert_eq!(run(form, config, &[("PATH", "/usr/bin:/bin")]).await.code, Some(code), "{form:?}, {line}");
        }
    }
}

#[tokio::test]
async fn a_command_by_hand_speaks_of_the_key_of_the_service_where_it_is_absent_and_not_where_a_vault_is_down() {
    let setup = Setup::new().await;
    let path = setup.folder.path().join("by-hand.toml");
    for (place, code, is_absent) in [("credential = \"absent\"", 78, true), ("exec = [\"false\"]", 75, false)] {
        fs::write(&path, format!("{}\n[notify]\nwebhook_url_{place}\n", setup.config())).unwrap();
        let ended = run(&["sync"], path.to_str().unwrap(), &[("PATH", "/usr/bin:/bin")]).await;
        assert_eq!(ended.code, Some(code), "{place}: {}", ended.output());
        assert_eq!(ended.output().contains("under systemd the key is there"), is_absent, "{}", ended.output());
    }
}

/// Shows (rule 129).
#[tokio::test]
async fn a_configuration_that_cannot_be_parsed_is_refused_without_its_text() {
    let setup = Setup::new().await;
    let config = configured(&setup, &format!("proxy = \"http://user:{CANARY}@proxy:3128"));
    for words in [&["run"][..], &["sync"], &["check"], &["status"], &["healthcheck"], &["config", "print"]] {
        let ended = run(words, &config, &[]).await;
        assert_eq!(ended.code, Some(78), "{words:?}: {}", ended.output());
        assert!(ended.output().contains("secrets.toml: line "), "{}", ended.output());
        assert_silent(&ended, &[CANARY]);
    }
}
