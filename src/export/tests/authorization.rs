//! Tokens: where they are obtained, when they are renewed, and who never receives one.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use auth::{AuthConfig, Smart};
use bytes::Bytes;
use keys::{ec_key, rsa_key};
use serde_json::json;
use tokio::sync::mpsc;

use super::*;
use crate::secret::Secret;

const LINE: &[u8] = b"{\"resourceType\":\"Patient\",\"id\":\"1\"}\n";
pub const SMART: &str = r#"{"token_endpoint":"/token","capabilities":[],"scopes_supported":["system/*.read"]}"#;

/// A server that issues the tokens `t1`, `t2`, …; `resource` answers everything else.
async fn smart_server(
    expires_in: &'static str,
    mut resource: impl FnMut(&server::Asked) -> Answer + Send + 'static,
) -> Server {
    let mut tokens = 0;
    Server::start(move |asked| match asked.path.as_str() {
        "/fhir/.well-known/smart-configuration" => Answer::json(SMART),
        "/token" => {
            tokens += 1;
            Answer::json(&format!(r#"{{"access_token":"t{tokens}","token_type":"Bearer"{expires_in}}}"#))
        }
        _ => resource(asked),
    })
    .await
}

pub fn smart_config(server: &Server) -> Config {
    Config { auth: Some(Smart::new("me", secret(&ec_key())).into()), ..config(server) }
}

fn secret(made: &keys::Made) -> Secret {
    Secret::given(made.jwk.to_string())
}
fn smart(config: &mut Config) -> &mut Smart {
    let Some(AuthConfig::Smart(smart)) = &mut config.auth else { panic!("not SMART") };
    smart
}

fn smart_client(server: &Server) -> Client {
    Client::new(smart_config(server)).unwrap()
}

pub fn guarded(url: Url) -> File {
    File { requires_access_token: true, ..file(url) }
}

async fn download(client: &Client, file: &File) -> Result<(), Error> {
    let (into, mut from) = mpsc::channel::<Bytes>(1);
    let reader = async { while from.recv().await.is_some() {} };
    let links = links(file);
    tokio::join!(reader, client.download(file, &links, into)).1.map(|_| ())
}

/// The requested paths, each with the token of its request.
fn asked(server: &Server) -> Vec<(String, Option<String>)> {
    let asked = server.asked().into_iter();
    asked.map(|asked| (asked.path.clone(), asked.header("authorization").map(str::to_owned))).collect()
}

fn count(server: &Server, path: &str) -> usize {
    server.asked().iter().filter(|asked| asked.path == path).count()
}

/// (rules 38, 114, 115, 118, 121 and 123)
#[tokio::test]
async fn a_token_is_asked_for_with_a_signed_assertion_and_sent_with_each_request() {
    for made in [rsa_key(), ec_key()] {
        let server = smart_server("", |asked| match asked.path.as_str() {
            "/fhir/$export" => Answer::status(202).header("content-location", "/status"),
            "/status" => Answer::json(r#"{"output":[],"transactionTime":"2026-11-20T10:00:00Z"}"#),
            path => panic!("{path}"),
        })
        .await;
        let mut config = smart_config(&server);
        smart(&mut config).key = secret(&made);
        let client = Client::new(config).unwrap();
        let job = client.kick_off(&request(&[])).await.unwrap();
        wait(job.clone(), &client).await.unwrap();
        let t1 = Some("Bearer t1".to_owned());
        let expected = [
            ("/fhir/.well-known/smart-configuration", None),
            ("/token", None),
            ("/fhir/$export", t1.clone()),
            ("/status", t1),
        ];
        assert_eq!(asked(&server), expected.map(|(path, token)| (path.to_owned(), token)));

        let post = &server.asked()[1];
        assert_eq!(post.method, "POST");
        assert_eq!(post.header("content-type"), Some("application/x-www-form-urlencoded"));
        assert_eq!(post.field("grant_type").unwrap(), "client_credentials");
        assert_eq!(post.field("scope").unwrap(), "system/*.read");
        let kind = post.field("client_assertion_type").unwrap();
        assert_eq!(kind, "urn:ietf:params:oauth:client-assertion-type:jwt-bearer");
        let claims = made.verified(&post.field("client_assertion").unwrap(), server.url("/token").as_str());
        assert_eq!((&claims["iss"], &claims["sub"]), (&json!("me"), &json!("me")));
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 270);
        assert!(claims["jti"].as_str().unwrap().len() >= 32);
    }
}

/// (rules 44, 89 and 127)
#[tokio::test]
async fn a_token_is_renewed_once_after_a_401() {
    let server = smart_server("", |asked| match asked.header("authorization") {
        Some("Bearer t2") => Answer::ndjson(LINE),
        _ => Answer::status(401),
    })
    .await;
    download(&smart_client(&server), &guarded(server.url("/file"))).await.unwrap();
    assert_eq!(count(&server, "/token"), 2);
    assert_eq!(count(&server, "/fhir/.well-known/smart-configuration"), 1);

    let server = smart_server("", |_| Answer::outcome(401, "login")).await;
    let error = download(&smart_client(&server), &guarded(server.url("/file"))).await.unwrap_err();
    assert!(matches!(error, Error::FileDenied { .. }), "{error}");
    assert_eq!((count(&server, "/token"), count(&server, "/file")), (2, 2));
}

/// (rule 127, Q-59)
#[tokio::test]
async fn requests_that_are_refused_at_once_share_one_renewal() {
    let server = smart_server("", |asked| match asked.header("authorization") {
        Some("Bearer t1") => Answer::status(401),
        _ => Answer::ndjson(LINE),
    })
    .await;
    let client = smart_client(&server);
    let file = guarded(server.url("/file"));
    let downloads = futures::future::join_all((0..8).map(|_| download(&client, &file))).await;
    assert!(downloads.iter().all(Result::is_ok));
    assert_eq!(count(&server, "/token"), 2);
}

/// (rules 125 and 127, Q-58, Q-59)
#[tokio::test]
async fn a_token_is_renewed_before_it_expires() {
    for (expires_in, still_good, too_late) in [
        (r#","expires_in":300"#, 260, 275),
        (r#","expires_in":"600""#, 560, 575),
        ("", 260, 275),
        (r#","expires_in":100"#, 70, 80),
        (r#","expires_in":-1"#, 260, 275),
        (r#","expires_in":0"#, 260, 275),
    ] {
        let server = smart_server(expires_in, |_| Answer::ndjson(LINE)).await;
        let client = smart_client(&server);
        let file = guarded(server.url("/file"));
        download(&client, &file).await.unwrap();
        pass(Duration::from_secs(still_good)).await;
        download(&client, &file).await.unwrap();
        assert_eq!(count(&server, "/token"), 1, "{expires_in}");
        pass(Duration::from_secs(too_late - still_good)).await;
        download(&client, &file).await.unwrap();
        assert_eq!(count(&server, "/token"), 2, "{expires_in}");
    }
}

/// (rules 89 and 90, Q-43)
#[tokio::test]
async fn a_file_gets_the_token_only_where_the_manifest_says_so() {
    let server = smart_server("", |_| Answer::ndjson(LINE)).await;
    let client = smart_client(&server);
    download(&client, &file(server.url("/open"))).await.unwrap();
    assert_eq!(asked(&server), [("/open".to_owned(), None)], "not even asked for");
}

/// (rule 2, Q-79)
#[tokio::test]
async fn without_authorization_no_file_gets_a_token() {
    let server = Server::start(|_| Answer::ndjson(LINE)).await;
    download(&client(&server), &guarded(server.url("/file"))).await.unwrap();
    assert_eq!(asked(&server), [("/file".to_owned(), None)]);
}

/// A server that hands out tokens, and one of files, where each request needs a token or may have none.
async fn with_files(needs_token: bool, refusal: u16) -> (Server, Server) {
    let answer = move |asked: &server::Asked| {
        let has_token = asked.header("authorization").is_some();
        if has_token == needs_token { Answer::ndjson(LINE) } else { Answer::status(refusal) }
    };
    (smart_server("", answer).await, Server::start(answer).await)
}

/// (rule 92)
#[tokio::test]
async fn a_foreign_origin_receives_no_token_and_the_error_names_it() {
    let (server, foreign) = with_files(true, 401).await;
    let file = guarded(foreign.url("/file?signature=s3cret"));
    let error = download(&smart_client(&server), &file).await.unwrap_err();
    assert!(matches!(error, Error::ForeignOrigin { .. }), "{error}");
    let (text, origin) = (error.to_string(), foreign.url("").origin().ascii_serialization());
    assert!(text.contains(&origin) && text.contains("server.token_origins") && !text.contains("s3cret"), "{text}");
    assert!(server.asked().is_empty(), "no token was asked for");
    assert_eq!(asked(&foreign), [("/file?signature=s3cret".to_owned(), None)]);

    let config = Config { token_origins: vec![foreign.url("/whatever")], ..smart_config(&server) };
    download(&Client::new(config).unwrap(), &file).await.unwrap();
    assert_eq!(foreign.asked()[1].header("authorization"), Some("Bearer t1"));
}

/// (rule 92, Q-43)
#[tokio::test]
async fn signed_links_elsewhere_are_followed_without_a_token_whatever_the_manifest_says() {
    let (server, foreign) = with_files(false, 400).await;
    download(&smart_client(&server), &guarded(foreign.url("/file?signature=s3cret"))).await.unwrap();
    assert!(server.asked().is_empty(), "no token was asked for");
}

/// (rules 89, 90 and 93, Q-34)
#[tokio::test]
async fn the_operator_decides_about_tokens_for_files_where_the_manifest_is_wrong() {
    for (needs_token, requires, file_auth, way_out) in [
        (true, false, FileAuth::Always, "server.file_auth = \"always\""),
        (false, true, FileAuth::Never, "server.file_auth = \"never\""),
    ] {
        let (server, _) = with_files(needs_token, 403).await;
        let file = File { requires_access_token: requires, ..file(server.url("/file")) };
        let error = download(&smart_client(&server), &file).await.unwrap_err();
        assert!(matches!(error, Error::FileDenied { .. }) && error.to_string().contains(way_out), "{error}");
        let config = Config { file_auth, ..smart_config(&server) };
        download(&Client::new(config).unwrap(), &file).await.unwrap();
    }
    let (server, foreign) = with_files(true, 403).await;
    let config = Config { file_auth: FileAuth::Always, ..smart_config(&server) };
    let error = download(&Client::new(config).unwrap(), &file(foreign.url("/file"))).await.unwrap_err();
    assert!(error.to_string().contains("server.token_origins"), "{error}");
    assert!(foreign.asked().iter().all(|asked| asked.header("authorization").is_none()));
}

/// (rule 91, Q-42)
#[tokio::test]
async fn a_redirect_takes_the_token_to_allowed_origins_only() {
    let foreign = Server::start(|_| Answer::ndjson(LINE)).await;
    let signed = foreign.url("/file?signature=s3cret").to_string();
    let server = smart_server("", move |asked| match asked.path.as_str() {
        "/file" => Answer::status(307).header("location", "/here"),
        "/here" => Answer::status(307).header("location", signed.clone()),
        path => panic!("{path}"),
    })
    .await;
    download(&smart_client(&server), &guarded(server.url("/file"))).await.unwrap();
    let t1 = Some("Bearer t1".to_owned());
    assert_eq!(asked(&server)[2..], [("/file".to_owned(), t1.clone()), ("/here".to_owned(), t1)]);
    assert_eq!(asked(&foreign), [("/file?signature=s3cret".to_owned(), None)]);
}

/// (rule 92)
#[tokio::test]
async fn a_job_on_a_foreign_origin_is_polled_without_a_token_and_the_error_names_the_origin() {
    let server = smart_server("", |_| Answer::status(500)).await;
    let foreign = Server::start(|_| Answer::status(401)).await;
    let error = wait(job(&foreign), &smart_client(&server)).await.unwrap_err();
    assert!(matches!(error, Error::ForeignOrigin { .. }), "{error}");
    assert_eq!(asked(&foreign), [("/status".to_owned(), None)]);
}

/// (rule 128)
#[tokio::test]
async fn a_token_endpoint_that_refuses_is_not_asked_again() {
    for (status, body, expected) in [
        (400, r#"{"error":"invalid_scope","error_description":"Jane Doe"}"#, "invalid_scope"),
        (401, r#"{"error":"invalid_client"}"#, "invalid_client"),
        (400, r#"{"error":"eyJhbGciOi.secret"}"#, "(unprintable code)"),
        (403, "<html>", "403"),
        (200, r#"{"token_type":"bearer"}"#, "no access_token"),
        (200, r#"{"access_token":"s3cret","token_type":"mac"}"#, "token_type"),
        (200, r#"{"access_token":"s3\ncret"}"#, "header"),
    ] {
        let server = Server::start(move |asked| match asked.path.as_str() {
            "/token" => Answer::status(status).body(body),
            _ => Answer::json(SMART),
        })
        .await;
        let error = smart_client(&server).kick_off(&request(&[])).await.unwrap_err();
        assert!(matches!(error, Error::TokenDenied { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(expected) && !text.contains("Jane") && !text.contains("secret"), "{text}");
        assert_eq!(count(&server, "/token"), 1);
    }
}

/// (rules 122, 125 and 128, Q-59, Q-62)
#[tokio::test]
async fn a_token_endpoint_that_fails_is_asked_again_with_a_fresh_assertion() {
    let mut turn = 0;
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/fhir/.well-known/smart-configuration" => Answer::json(SMART),
        "/token" => {
            turn += 1;
            match turn {
                1 => Answer::status(503),
                2 => Answer::status(429).header("retry-after", "0"),
                3 => Answer::status(400),
                _ => Answer::json(r#"{"access_token":"t1","token_type":"BEARER"}"#),
            }
        }
        _ => Answer::status(202).header("content-location", "/status"),
    })
    .await;
    smart_client(&server).kick_off(&request(&[])).await.unwrap();
    let asked = server.asked();
    let assertions: HashSet<_> = asked.iter().filter_map(|asked| asked.field("client_assertion")).collect();
    assert_eq!(assertions.len(), 4);
}

/// (rules 115 and 116, Q-61)
#[tokio::test]
async fn the_token_endpoint_is_found_in_the_capability_statement_where_discovery_fails() {
    for status in [404, 501, 500] {
        let server = Server::start(move |asked| match asked.path.as_str() {
            "/fhir/.well-known/smart-configuration" => Answer::status(status),
            "/fhir/metadata" => Answer::json(
                r#"{"resourceType":"CapabilityStatement","rest":[{"mode":"client"},{"security":{"extension":[
                    {"url":"http://example.org/other"},
                    {"url":"http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris","extension":[
                        {"url":"register","valueUri":"/register"},{"url":"token","valueUri":"oauth/token"}]}]}}]}"#,
            ),
            "/fhir/oauth/token" => Answer::json(r#"{"access_token":"t1"}"#),
            _ => Answer::status(202).header("content-location", "/status"),
        })
        .await;
        smart_client(&server).kick_off(&request(&[])).await.unwrap();
    }
    let server = Server::start(|_| Answer::json("{}")).await;
    let error = smart_client(&server).kick_off(&request(&[])).await.unwrap_err();
    assert!(matches!(error, Error::NoTokenEndpoint { .. }), "{error}");
    assert!(error.to_string().contains("server.token_url"), "{error}");
}

/// (rules 116 and 124, Q-61, Q-65)
#[tokio::test]
async fn a_configured_token_url_and_scopes_need_no_discovery() {
    let server = smart_server("", |_| Answer::status(202).header("content-location", "/status")).await;
    let mut config = smart_config(&server);
    let endpoint = &mut smart(&mut config).endpoint;
    endpoint.token_url = Some(server.url("/token").into());
    endpoint.scopes = vec!["system/Patient.rs".to_owned(), "system/Group.rs".to_owned()];
    Client::new(config).unwrap().kick_off(&request(&[])).await.unwrap();
    assert_eq!(server.asked()[0].path, "/token");
    assert_eq!(server.asked()[0].field("scope").unwrap(), "system/Patient.rs system/Group.rs");
}

/// (rule 124)
#[tokio::test]
async fn the_default_scope_has_the_form_that_the_server_knows() {
    for (smart, scope) in [
        (r#"{"token_endpoint":"/token"}"#, "system/*.read"),
        (r#"{"token_endpoint":"/token","scopes_supported":["system/*.read","openid"]}"#, "system/*.read"),
        (r#"{"token_endpoint":"/token","scopes_supported":["user/*.rs","system/*.write"]}"#, "system/*.read"),
        (r#"{"token_endpoint":"/token","scopes_supported":["system/Patient.rs?x=y"]}"#, "system/*.rs"),
        (r#"{"token_endpoint":"/token","scopes_supported":["system/*.cruds"]}"#, "system/*.rs"),
        (r#"{"token_endpoint":"/token","capabilities":["permission-v2"]}"#, "system/*.rs"),
    ] {
        let server = Server::start(move |asked| match asked.path.as_str() {
            "/fhir/.well-known/smart-configuration" => Answer::json(smart),
            "/token" => Answer::json(r#"{"access_token":"t1"}"#),
            _ => Answer::status(202).header("content-location", "/status"),
        })
        .await;
        smart_client(&server).kick_off(&request(&[])).await.unwrap();
        assert_eq!(server.asked()[1].field("scope").unwrap(), scope, "{smart}");
    }
}

/// (rule 1)
#[tokio::test]
async fn an_assertion_is_never_sent_unencrypted_to_another_host() {
    let server = Server::start(|_| Answer::json(r#"{"token_endpoint":"http://login.example.org/token"}"#)).await;
    let error = smart_client(&server).kick_off(&request(&[])).await.unwrap_err();
    assert!(matches!(error, Error::UnusableUrl { .. }), "{error}");
    let mut config = smart_config(&server);
    smart(&mut config).endpoint.token_url = Some(Url::parse("http://login.example.org/token").unwrap().into());
    assert!(matches!(Client::new(config), Err(Error::UnusableUrl { .. })));
}

#[tokio::test]
async fn a_request_that_is_dropped_while_it_waits_for_a_token_does_not_block_others() {
    let mut turn = 0;
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/fhir/.well-known/smart-configuration" => Answer::json(SMART),
        "/token" => {
            turn += 1;
            if turn == 1 { Answer::json("").silent_after(b"{") } else { Answer::json(r#"{"access_token":"t1"}"#) }
        }
        _ => Answer::status(202).header("content-location", "/status"),
    })
    .await;
    let client = smart_client(&server);
    let first = tokio::time::timeout(Duration::from_millis(200), client.kick_off(&request(&[]))).await;
    assert!(first.is_err());
    client.kick_off(&request(&[])).await.unwrap();
}

/// (rule 128)
#[tokio::test]
async fn a_refused_token_is_not_asked_for_again_by_the_other_files_of_the_run() {
    let mut turn = 0;
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/fhir/.well-known/smart-configuration" => Answer::json(SMART),
        "/token" => {
            turn += 1;
            if turn == 1 {
                Answer::json(r#"{"access_token":"t1"}"#)
            } else {
                Answer::status(401).body(r#"{"error":"invalid_client"}"#)
            }
        }
        _ => Answer::status(401),
    })
    .await;
    let client = smart_client(&server);
    let file = guarded(server.url("/file"));
    for _ in 0..60 {
        let error = download(&client, &file).await.unwrap_err();
        assert!(matches!(&error, Error::TokenDenied { code, .. } if code == "invalid_client"), "{error}");
    }
    assert_eq!((count(&server, "/token"), count(&server, "/fhir/.well-known/smart-configuration")), (2, 1));

    client.begin_run().await.unwrap();
    assert!(download(&client, &file).await.is_err());
    assert_eq!(count(&server, "/token"), 3, "the next run asks once again");
}

/// (rule 121)
#[tokio::test]
async fn the_audience_is_the_endpoint_as_published_unless_a_setting_says_otherwise() {
    for (audience, relative) in [(None, false), (Some("https://ehr.example.org/aud"), false), (None, true)] {
        let published = Arc::new(Mutex::new(String::new()));
        let text = Arc::clone(&published);
        let server = Server::start(move |asked| match asked.path.as_str() {
            "/fhir/.well-known/smart-configuration" => {
                Answer::json(&format!(r#"{{"token_endpoint":"{}"}}"#, text.lock().unwrap()))
            }
            "/token" => Answer::json(r#"{"access_token":"t1","token_type":"BearerToken"}"#),
            _ => Answer::status(202).header("content-location", "/status"),
        })
        .await;
        let endpoint = server.url("/token").to_string();
        // The same place for a URL parser, and another text.
        let unusual = endpoint.replace("http://", "HTTP://").replace("/token", "/a/../token");
        *published.lock().unwrap() = if relative { "/a/../token".to_owned() } else { unusual.clone() };
        let made = ec_key();
        let mut config = smart_config(&server);
        let auth = smart(&mut config);
        auth.key = secret(&made);
        auth.audience = audience.map(str::to_owned);
        Client::new(config).unwrap().kick_off(&request(&[])).await.unwrap();
        let expected = audience.unwrap_or(if relative { &endpoint } else { &unusual });
        made.verified(&server.asked()[1].field("client_assertion").unwrap(), expected);
    }
}

/// (rule 92)
#[tokio::test]
async fn an_assertion_goes_to_another_origin_only_if_that_is_listed() {
    let login = Server::start(|_| Answer::json(r#"{"access_token":"t1"}"#)).await;
    let endpoint = login.url("/token");
    let published = endpoint.clone();
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/fhir/.well-known/smart-configuration" => Answer::json(&format!(r#"{{"token_endpoint":"{published}"}}"#)),
        _ => Answer::status(202).header("content-location", "/status"),
    })
    .await;
    let error = smart_client(&server).kick_off(&request(&[])).await.unwrap_err();
    assert!(matches!(error, Error::ForeignTokenEndpoint { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&endpoint.origin().ascii_serialization()) && text.contains("server.token_origins"), "{text}");
    assert!(login.asked().is_empty());

    let listed = Config { token_origins: vec![endpoint.clone()], ..smart_config(&server) };
    Client::new(listed).unwrap().kick_off(&request(&[])).await.unwrap();
    let mut configured = smart_config(&server);
    smart(&mut configured).endpoint.token_url = Some(endpoint.into());
    Client::new(configured).unwrap().kick_off(&request(&[])).await.unwrap();
    assert_eq!(count(&login, "/token"), 2);
}
