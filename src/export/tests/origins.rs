//! Origins: inner addresses that a server writes, and headers of one's own.

use std::sync::{Arc, Mutex};

use super::{
    super::{OwnHeaders, Tls, Trust, check_inner, origins::Rewrite},
    authorization::{guarded, smart_config},
    certificates::{Authority, BOTH_VERSIONS, Flaw, listener},
    *,
};

const LINE: &str = "{\"resourceType\":\"Patient\",\"id\":\"1\"}\n";

fn url(text: &str) -> Url {
    text.parse().unwrap()
}

/// Shows (Q-5).
#[test]
fn an_inner_address_is_replaced_by_the_server_s_own_and_nothing_else_is() {
    let server = url("https://ehr.example.org/fhir/r4/");
    let rewrite = Rewrite::new(&server, &[url("http://hapi:8080"), url("http://app:8080/hapi/fhir")]);
    for (sent, meant) in [
        ("http://hapi:8080/fhir/r4/job/1?a=b", "https://ehr.example.org/fhir/r4/job/1?a=b"),
        ("http://hapi:8080/files/1", "https://ehr.example.org/files/1"),
        ("http://app:8080/hapi/fhir/job/1", "https://ehr.example.org/fhir/r4/job/1"),
        ("http://app:8080/hapi/fhir", "https://ehr.example.org/fhir/r4/"),
        ("http://ehr.example.org/files/1", "https://ehr.example.org/files/1"),
        // Another path, port, scheme or host is another place.
        ("http://app:8080/hapi/fhirs/1", "http://app:8080/hapi/fhirs/1"),
        ("http://app:8080/hapi/fhir/../admin", "http://app:8080/hapi/admin"),
        ("http://app:8080/hapi/fhir/%2e%2e/admin", "http://app:8080/hapi/admin"),
        ("http://hapi:8081/job/1", "http://hapi:8081/job/1"),
        ("https://hapi:8080/job/1", "https://hapi:8080/job/1"),
        ("http://hapi.example.org:8080/job/1", "http://hapi.example.org:8080/job/1"),
        ("http://hapi:8080@evil.example.org/1", "http://hapi:8080@evil.example.org/1"),
    ] {
        assert_eq!(rewrite.meant(url(sent), &server).as_str(), meant, "{sent}");
    }
}

/// Shows (Q-5).
#[test]
fn an_inner_address_that_would_protect_less_or_is_none_is_refused() {
    for (inner, server, expected) in [
        ("http://hapi:8080", "https://ehr.example.org/fhir", None),
        ("http://hapi:8080", "http://localhost:80/fhir", None),
        ("https://hapi", "http://ehr.example.org/fhir", Some("nothing is sent less protected")),
        ("https://ehr.example.org", "https://ehr.example.org/fhir", Some("is the origin of server.url itself")),
        ("http://hapi/?a=b", "https://ehr.example.org/fhir", Some("without ? and #")),
        ("http://me:s3cret@hapi/", "https://ehr.example.org/fhir", Some("must not hold a user or password")),
    ] {
        let reason = check_inner(&url(inner), &url(server)).err();
        assert_eq!(reason.is_some(), expected.is_some(), "{inner}");
        let reason = reason.unwrap_or_default();
        assert!(reason.contains(expected.unwrap_or_default()) && !reason.contains("s3cret"), "{reason}");
    }
}

/// What a server behind a proxy that ends TLS answers: everything names its inner address.
fn behind_a_proxy(asked: &server::Asked) -> Answer {
    let inner = "http://hapi:8080";
    match asked.path.as_str() {
        "/fhir/.well-known/smart-configuration" => Answer::json(&format!(r#"{{"token_endpoint":"{inner}/token"}}"#)),
        "/token" => Answer::json(r#"{"access_token":"t","token_type":"Bearer"}"#),
        "/fhir/$export" => Answer::status(202).header("content-location", format!("{inner}/fhir/job/1")),
        "/fhir/job/1" if asked.method == "DELETE" => Answer::status(202),
        "/fhir/job/1" => Answer::json(&format!(
            r#"{{"output":[{{"type":"Patient","url":"{inner}/files/1"}}],
                "link":[{{"relation":"next","url":"{inner}/fhir/job/1/2"}}],
                "transactionTime":"2026-11-20T10:00:00Z","requiresAccessToken":true}}"#
        )),
        "/fhir/job/1/2" => Answer::json(&format!(
            r#"{{"output":[{{"type":"Patient","url":"{inner}/moved/2"}}],"transactionTime":"2026-11-20T10:00:00Z"}}"#
        )),
        "/moved/2" => Answer::status(307).header("location", format!("{inner}/files/2")),
        "/files/1" | "/files/2" => Answer::ndjson(LINE),
        path => panic!("{path}"),
    }
}

/// Shows (Q-5).
#[tokio::test]
async fn an_export_completes_behind_a_proxy_although_every_url_names_the_inner_address() {
    let ours = Authority::new("ours");
    let server = Server::start_tls(listener(&ours.issue(Flaw::None), BOTH_VERSIONS, None), behind_a_proxy).await;
    let mut config = smart_config(&server);
    config.tls = Tls { trust: Trust::Only(ours.file()), ..Tls::default() };
    let error = Client::new(config.clone()).unwrap().kick_off(&request(&[])).await.unwrap_err().to_string();
    assert!(error.contains("set server.rewrite_origin = [\"http://hapi:8080\"]"), "{error}");

    config.rewrite_origin = vec![url("http://hapi:8080")];
    let client = Client::new(config).unwrap();
    let job = client.kick_off(&request(&[])).await.unwrap();
    assert_eq!(job.status_url, server.url("/fhir/job/1"));
    let completed = wait(job.clone(), &client).await.unwrap();
    let links = Links::new(completed.clone());
    for file in &completed.manifest.output {
        read_by(&client, file, &links).await.1.unwrap();
    }
    job.delete(&client).await.unwrap();
    let asked = server.asked();
    let deleted = asked.last().unwrap();
    assert_eq!((deleted.method.as_str(), deleted.path.as_str()), ("DELETE", "/fhir/job/1"));
    let token = |path: &str| asked.iter().find(|asked| asked.path == path).unwrap().header("authorization");
    assert_eq!([token("/files/1"), token("/files/2")], [Some("Bearer t"); 2]);
}

fn own_headers() -> OwnHeaders {
    let mut headers = OwnHeaders::default();
    headers.add("Epic-Client-ID", "s3cret").unwrap();
    headers
}

#[test]
fn a_header_that_fhir_sync_sets_or_that_cannot_be_one_is_refused_without_its_value() {
    for (name, value, expected) in [
        ("Authorization", "s3cret", "remove it"),
        ("host", "s3cret", "remove it"),
        ("Cookie", "s3cret", "remove it"),
        ("Prefer", "s3cret", "remove it"),
        ("a b", "s3cret", "is not the name of a header"),
        ("x-key", "s3cret\n", "characters that a header cannot hold"),
        ("epic-client-id", "s3cret", "is set twice"),
    ] {
        let reason = own_headers().add(name, value).unwrap_err();
        assert!(reason.contains(expected) && reason.contains(name) && !reason.contains("s3cret"), "{reason}");
    }
}

#[tokio::test]
async fn headers_of_one_s_own_go_to_the_origins_that_may_have_the_token_and_never_on_a_redirect_to_another() {
    let foreign = Server::start(|_| Answer::ndjson(LINE)).await;
    let away = foreign.url("/away").to_string();
    let files = Server::start(|_| Answer::ndjson(LINE)).await;
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/fhir/.well-known/smart-configuration" => Answer::json(r#"{"token_endpoint":"/token"}"#),
        "/token" => Answer::json(r#"{"access_token":"t","token_type":"Bearer"}"#),
        "/moved" => Answer::status(302).header("location", away.clone()),
        _ => Answer::ndjson(LINE),
    })
    .await;
    let config = Config { headers: own_headers(), token_origins: vec![files.url("/")], ..smart_config(&server) };
    assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
    let client = Client::new(config).unwrap();
    for url in [server.url("/file"), files.url("/file"), foreign.url("/file"), server.url("/moved")] {
        let file = guarded(url);
        read_by(&client, &file, &links(&file)).await.1.unwrap();
    }
    let has_it = |server: &Server| -> Vec<_> {
        server.asked().iter().map(|asked| (asked.path.clone(), asked.header("epic-client-id").is_some())).collect()
    };
    let expected = |paths: &[&str], has: bool| paths.iter().map(|path| ((*path).to_owned(), has)).collect::<Vec<_>>();
    let of_server = ["/fhir/.well-known/smart-configuration", "/token", "/file", "/moved"];
    assert_eq!(has_it(&server), expected(&of_server, true));
    assert_eq!(has_it(&files), expected(&["/file"], true));
    assert_eq!(has_it(&foreign), expected(&["/file", "/away"], false));
}

#[tokio::test]
async fn a_header_of_one_s_own_is_in_no_error_and_no_line_of_the_log() {
    let log = Arc::<Mutex<Vec<u8>>>::default();
    let writer = Arc::clone(&log);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || Written(Arc::clone(&writer)))
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = Server::start(|_| Answer::outcome(403, "forbidden")).await;
    let client = Client::new(Config { headers: own_headers(), ..config(&server) }).unwrap();
    let error = client.kick_off(&request(&[])).await.unwrap_err();
    assert_eq!(server.asked()[0].header("epic-client-id"), Some("s3cret"));
    let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
    assert!(!format!("{error} {error:?} {client:?} {log}").contains("s3cret"), "{error:?} {log}");
}

struct Written(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
