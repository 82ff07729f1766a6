//! What a client proves itself with: keys that change, secrets, and tokens that somebody else obtains.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use auth::{AuthConfig, BearerToken, ClientSecret, SentIn, Smart, TokenEndpoint};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use keys::ec_key;

use super::*;
use crate::secret::{Place, Secret};

const SMART: &str = r#"{"token_endpoint":"/token"}"#;
const GRANTED: &str = r#"{"access_token":"t1"}"#;

/// A file that only its owner can read, replaced as a whole.
fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

/// A command that prints the file, and a file with a line for each time that it ran.
fn printing(path: &Path) -> (Secret, PathBuf) {
    let runs = path.with_extension("runs");
    let script = format!("echo run >> {}; cat {}", runs.display(), path.display());
    (Secret::at(Place::Command(["sh", "-c", &script].map(str::to_owned).to_vec())), runs)
}

fn count(runs: &Path) -> usize {
    fs::read_to_string(runs).unwrap_or_default().lines().count()
}

fn client_with(server: &Server, auth: impl Into<AuthConfig>) -> Client {
    Client::new(Config { auth: Some(auth.into()), ..config(server) }).unwrap()
}

impl From<BearerToken> for AuthConfig {
    fn from(token: BearerToken) -> Self {
        Self::Token(token)
    }
}

fn bearer(token: Secret) -> BearerToken {
    BearerToken { token, lifetime: Duration::from_mins(4) }
}

/// A server that issues tokens of one second, and accepts each export.
async fn smart_server(mut token: impl FnMut(&server::Asked) -> Answer + Send + 'static) -> Server {
    Server::start(move |asked| match asked.path.as_str() {
        "/fhir/.well-known/smart-configuration" => Answer::json(SMART),
        "/token" => token(asked),
        _ => Answer::status(202).header("content-location", "/status"),
    })
    .await
}

async fn kick_off(client: &Client) -> Result<(), Error> {
    client.kick_off(&request(&[])).await.map(|_| ())
}

/// Shows (Q-60).
#[tokio::test]
async fn a_client_secret_is_sent_in_the_header_or_in_the_form() {
    for sent_in in [SentIn::Header, SentIn::Form] {
        let server = smart_server(|_| Answer::json(GRANTED)).await;
        let scopes = vec!["clientCreds".to_owned()];
        let secret = ClientSecret {
            client_id: "me:1".to_owned(),
            secret: Secret::given("s3 cret%"),
            sent_in,
            endpoint: TokenEndpoint { token_url: Some(server.url("/token").into()), scopes },
        };
        kick_off(&client_with(&server, AuthConfig::ClientSecret(secret))).await.unwrap();
        let asked = server.asked();
        let post = &asked[0];
        assert_eq!((post.method.as_str(), post.path.as_str()), ("POST", "/token"));
        assert_eq!(post.field("grant_type").unwrap(), "client_credentials");
        assert_eq!(post.field("scope").unwrap(), "clientCreds");
        assert_eq!(post.field("client_assertion"), None);
        // Both parts are encoded as in a form (RFC 6749, 2.3.1).
        let basic = format!("Basic {}", STANDARD.encode("me%3A1:s3+cret%25"));
        let (header, form) = match sent_in {
            SentIn::Header => (Some(basic.as_str()), (None, None)),
            SentIn::Form => (None, (Some("me:1".to_owned()), Some("s3 cret%".to_owned()))),
        };
        assert_eq!(post.header("authorization"), header);
        assert_eq!((post.field("client_id"), post.field("client_secret")), form);
        assert_eq!(asked[1].header("authorization"), Some("Bearer t1"));
    }
}

/// Shows (Q-60).
#[tokio::test]
async fn a_token_of_a_file_is_sent_and_another_one_as_soon_as_the_file_has_it() {
    let server = Server::start(|_| Answer::status(202).header("content-location", "/status")).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let client = client_with(&server, bearer(Secret::at(Place::File(path.clone()))));
    for text in ["t1\n", "t2\n"] {
        write(&path, text);
        kick_off(&client).await.unwrap();
        kick_off(&client).await.unwrap();
    }
    let sent: Vec<_> = server.asked().iter().map(|asked| asked.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(sent, ["Bearer t1", "Bearer t1", "Bearer t2", "Bearer t2"]);
    fs::remove_file(&path).unwrap();
    let error = kick_off(&client).await.unwrap_err().to_string();
    assert!(error.contains("token cannot be read"), "{error}");
}

/// Shows (Q-60).
#[tokio::test]
async fn a_command_that_obtains_tokens_runs_again_after_their_lifetime_and_after_a_401() {
    let good = Arc::new(Mutex::new("Bearer t1"));
    let accepted = Arc::clone(&good);
    let server = Server::start(move |asked| match asked.header("authorization") {
        Some(token) if token == *accepted.lock().unwrap() => Answer::status(202).header("content-location", "/status"),
        _ => Answer::status(401),
    })
    .await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    write(&path, "t1");
    let (secret, runs) = printing(&path);
    let client = client_with(&server, bearer(secret));
    for (passed_seconds, expected_runs) in [(0, 1), (230, 1), (20, 2)] {
        pass(Duration::from_secs(passed_seconds)).await;
        kick_off(&client).await.unwrap();
        assert_eq!(count(&runs), expected_runs);
    }
    *good.lock().unwrap() = "Bearer t2";
    write(&path, "t2");
    kick_off(&client).await.unwrap();
    assert_eq!(count(&runs), 3);

    *good.lock().unwrap() = "Bearer t3";
    for _ in 0..5 {
        let error = kick_off(&client).await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error}");
    }
    assert_eq!(count(&runs), 4, "a command that prints the same refused token does not run for each request");
    client.begin_run().await.unwrap();
    write(&path, "t3");
    kick_off(&client).await.unwrap();
    assert_eq!(count(&runs), 5);
}

/// Shows (rules 119 and 122).
#[tokio::test]
async fn a_key_file_that_was_replaced_signs_the_next_assertion() {
    let server = smart_server(|_| Answer::json(r#"{"access_token":"t1","expires_in":60}"#)).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    let client = client_with(&server, Smart::new("me", Secret::at(Place::File(path.clone()))));
    for (index, made) in [ec_key(), ec_key()].iter().enumerate() {
        write(&path, &made.jwk.to_string());
        kick_off(&client).await.unwrap();
        let assertions: Vec<_> = server.asked().iter().filter_map(|asked| asked.field("client_assertion")).collect();
        assert_eq!(assertions.len(), index + 1);
        made.verified(&assertions[index], server.url("/token").as_str());
        pass(Duration::from_mins(1)).await;
    }
}

#[tokio::test]
async fn a_secret_that_is_refused_after_it_was_accepted_is_asked_of_its_command_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    write(&path, "one");
    let good = Arc::new(Mutex::new("one"));
    let accepted = Arc::clone(&good);
    let server = smart_server(move |asked| match asked.field("client_secret") {
        Some(secret) if secret == *accepted.lock().unwrap() => Answer::json(r#"{"access_token":"t1","expires_in":60}"#),
        _ => Answer::status(401).body(r#"{"error":"invalid_client"}"#),
    })
    .await;
    let (secret, runs) = printing(&path);
    let client_id = "me".to_owned();
    let secret = ClientSecret { client_id, secret, sent_in: SentIn::Form, endpoint: TokenEndpoint::default() };
    let client = client_with(&server, AuthConfig::ClientSecret(secret));
    kick_off(&client).await.unwrap();
    pass(Duration::from_mins(1)).await;
    kick_off(&client).await.unwrap();
    assert_eq!(count(&runs), 1);
    *good.lock().unwrap() = "two";
    write(&path, "two");
    pass(Duration::from_mins(1)).await;
    kick_off(&client).await.unwrap();
    assert_eq!(count(&runs), 2);
    *good.lock().unwrap() = "three";
    pass(Duration::from_mins(1)).await;
    for _ in 0..3 {
        assert!(matches!(kick_off(&client).await, Err(Error::TokenDenied { .. })));
    }
    assert_eq!(count(&runs), 3, "a refusal is asked about once");
}

/// Shows (rule 118, Q-61).
#[tokio::test]
async fn an_algorithm_that_the_server_does_not_list_is_reported_with_those_that_it_lists() {
    for (listed, is_listed) in [(r#"["RS384"]"#, false), (r#"["RS384","ES384"]"#, true), ("[]", true)] {
        let smart =
            format!(r#"{{"token_endpoint":"/token","token_endpoint_auth_signing_alg_values_supported":{listed}}}"#);
        let server = Server::start(move |asked| match asked.path.as_str() {
            "/fhir/.well-known/smart-configuration" => Answer::json(&smart),
            "/token" => Answer::json(GRANTED),
            _ => Answer::status(202).header("content-location", "/status"),
        })
        .await;
        let client = client_with(&server, Smart::new("me", Secret::given(ec_key().jwk.to_string())));
        let result = kick_off(&client).await;
        if is_listed {
            result.unwrap();
            continue;
        }
        let error = result.unwrap_err().to_string();
        assert!(error.contains("signed with RS384, and our key signs with ES384"), "{error}");
        assert!(server.asked().iter().all(|asked| asked.path != "/token"), "nothing was sent");
    }
}

/// Shows (rule 128).
#[tokio::test]
async fn a_token_endpoint_that_is_unavailable_by_its_own_words_is_asked_again() {
    let mut codes = ["temporarily_unavailable", "server_error"].into_iter();
    let server = smart_server(move |_| match codes.next() {
        Some(code) => Answer::status(400).body(format!(r#"{{"error":"{code}"}}"#)),
        None => Answer::json(GRANTED),
    })
    .await;
    kick_off(&client_with(&server, Smart::new("me", Secret::given(ec_key().jwk.to_string())))).await.unwrap();
    assert_eq!(server.asked().iter().filter(|asked| asked.path == "/token").count(), 3);
}

/// Shows (rule 129).
#[tokio::test]
async fn a_command_that_fails_fails_the_request_and_shows_nothing_that_it_printed() {
    let server = smart_server(|_| Answer::json(GRANTED)).await;
    let line = ["sh", "-c", "echo s3cret; echo s3cret >&2; exit 2"].map(str::to_owned).to_vec();
    let client = client_with(&server, Smart::new("me", Secret::at(Place::Command(line))));
    let error = kick_off(&client).await.unwrap_err();
    assert!(matches!(error, Error::Key { .. }), "{error}");
    let shown = format!("{error} {error:?} {client:?}");
    assert!(shown.contains("exit status: 2") && !shown.contains("s3cret"), "{shown}");
}
