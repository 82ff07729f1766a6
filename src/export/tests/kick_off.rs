//! Kick-off and DELETE: what is sent, and what each answer becomes.

use super::*;

fn accepted(location: &str) -> Answer {
    Answer::status(202).header("content-location", location).header("date", "Fri, 20 Nov 2026 10:00:07 GMT")
}

#[tokio::test]
async fn a_kick_off_sends_exactly_what_servers_require() {
    let server = Server::start(|_| accepted("/status/1")).await;
    let request = ExportRequest {
        level: Level::Group("a b/c".to_owned()),
        types: ["Patient", "Condition", "Patient"].map(|name| name.parse().unwrap()).to_vec(),
        since: Some("2026-11-20T08:00:00.999+02:00".to_owned()),
        allow_partial_manifests: false,
    };
    client(&server).kick_off(&request).await.unwrap();
    let asked = &server.asked()[0];
    assert_eq!(asked.method, "GET");
    assert_eq!(
        asked.path,
        "/fhir/Group/a%20b%2Fc/$export?_type=Patient,Condition&_since=2026-11-20T08%3A00%3A00.999%2B02%3A00"
    );
    assert_eq!(asked.header("accept"), Some("application/fhir+json"));
    assert_eq!(asked.header("prefer"), Some("respond-async"));
    assert_eq!(asked.header("cache-control"), Some("no-cache"));
    assert_eq!(asked.header("user-agent"), Some(concat!("fhir-sync/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(asked.header("authorization"), None);
}

#[tokio::test]
async fn each_level_has_its_own_path() {
    let server = Server::start(|_| accepted("/status/1")).await;
    for level in [Level::System, Level::Patient, Level::Group("7".to_owned())] {
        client(&server).kick_off(&ExportRequest { level, ..request(&[]) }).await.unwrap();
    }
    let paths: Vec<_> = server.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(paths, ["/fhir/$export", "/fhir/Patient/$export", "/fhir/Group/7/$export"]);
}

#[tokio::test]
async fn a_group_id_that_would_change_the_path_is_refused() {
    let server = Server::start(|_| accepted("/status/1")).await;
    for id in ["", ".", ".."] {
        let request = ExportRequest { level: Level::Group(id.to_owned()), ..request(&[]) };
        assert!(matches!(client(&server).kick_off(&request).await, Err(Error::Config { .. })), "{id:?}");
    }
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn a_relative_content_location_is_resolved_against_the_kick_off() {
    for (location, path) in [("/status/1?x=2", "/status/1?x=2"), ("status/1", "/fhir/status/1")] {
        let server = Server::start(move |_| accepted(location)).await;
        let job = client(&server).kick_off(&request(&[])).await.unwrap();
        assert_eq!(job.status_url, server.url(path));
    }
}

#[tokio::test]
async fn a_job_carries_the_clock_of_the_server() {
    let server = Server::start(|_| accepted("/status/1")).await;
    let job = client(&server).kick_off(&request(&[])).await.unwrap();
    assert_eq!(job.kicked_off_at.unwrap().to_string(), "2026-11-20T10:00:07Z");
}

#[tokio::test]
async fn a_202_without_a_status_url_is_an_error() {
    let server = Server::start(|_| Answer::status(202)).await;
    assert!(matches!(client(&server).kick_off(&request(&[])).await, Err(Error::NoStatusUrl { .. })));
}

#[tokio::test]
async fn an_unencrypted_status_url_on_another_host_is_refused() {
    let server = Server::start(|_| accepted("http://fhir.example.org/status")).await;
    assert!(matches!(client(&server).kick_off(&request(&[])).await, Err(Error::UnusableUrl { .. })));
    let client = Client::new(Config { allow_http: true, ..config(&server) }).unwrap();
    assert!(client.kick_off(&request(&[])).await.is_ok());
}

#[tokio::test]
async fn a_busy_server_is_waited_for() {
    let mut busy = 8;
    let server = Server::start(move |_| {
        busy -= 1;
        if busy > 0 { Answer::status(429).header("retry-after", "18000") } else { accepted("/status/1") }
    })
    .await;
    client(&server).kick_off(&request(&[])).await.unwrap();
    assert_eq!(server.asked().len(), 8, "more often than a fault is tried again");
}

#[tokio::test]
async fn a_server_that_stays_busy_is_an_error_at_the_deadline() {
    let server = Server::start(|_| Answer::status(429)).await;
    let mut config = config(&server);
    config.poll.kick_off_deadline = Duration::from_millis(20);
    let error = Client::new(config).unwrap().kick_off(&request(&[])).await.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
}

#[tokio::test]
async fn a_refusal_names_severity_and_code_but_not_the_diagnostics() {
    let server = Server::start(|_| Answer::outcome(400, "not-supported")).await;
    let error = client(&server).kick_off(&request(&["Patient"])).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("error (not-supported)") && text.contains("/fhir/$export"), "{text}");
    assert!(!text.contains("Jane") && !text.contains("_type"), "{text}");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn an_invalid_code_is_not_quoted() {
    let server = Server::start(|_| Answer::outcome(400, "Jane Doe, born 1970")).await;
    let error = client(&server).kick_off(&request(&[])).await.unwrap_err();
    assert!(error.to_string().contains("error (unprintable code)"), "{error}");
}

#[tokio::test]
async fn a_kick_off_is_repeated_as_long_as_an_outage_is_waited_for_and_a_501_is_final() {
    let server = Server::start(|_| Answer::status(503)).await;
    let error = impatient(&server).kick_off(&request(&[])).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(server.asked().len() >= 2);
    let server = Server::start(|_| Answer::status(501)).await;
    let error = client(&server).kick_off(&request(&[])).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn the_error_of_a_refused_kick_off_names_the_usual_reason() {
    for (answer, expected) in [
        (Answer::status(404), "no $export at this URL (404 Not Found, without an OperationOutcome); check server.url"),
        (Answer::outcome(404, "not-found"), "(404 Not Found, error (not-found))"),
        (
            Answer::status(200).header("content-type", "text/html; charset=utf-8").body("<html>Jane Doe"),
            "expected 202 Accepted and got 200 OK with text/html; it may be a login page or a proxy, check server.url",
        ),
        (Answer::status(200).header("content-type", "Jane Doe"), "got 200 OK with an unknown Content-Type"),
        (
            Answer::status(302).header("location", "https://login.example.org/fhir?session=s3cret"),
            "redirects to https://login.example.org/fhir (302 Found); set server.url to the final address",
        ),
        (Answer::status(401), "requires authorization (401 Unauthorized) and server.client_id is not set"),
        (Answer::status(403), "access denied, 403 Forbidden"),
    ] {
        let mut answer = Some(answer);
        let server = Server::start(move |_| answer.take().unwrap()).await;
        let error = client(&server).kick_off(&request(&[])).await.unwrap_err().to_string();
        assert!(error.starts_with("kick-off at http://") && error.contains(expected), "{error}");
        assert!(!error.contains("Jane") && !error.contains("s3cret"), "{error}");
    }
}

#[tokio::test]
async fn a_kick_off_is_not_redirected() {
    let server = Server::start(|_| Answer::status(307).header("location", "/elsewhere")).await;
    assert!(matches!(client(&server).kick_off(&request(&[])).await, Err(Error::Refused { .. })));
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn deleting_a_job_that_is_gone_or_cannot_be_deleted_succeeds() {
    for status in [200, 202, 204, 404, 405, 410, 501] {
        let server = Server::start(move |_| Answer::status(status)).await;
        job(&server).delete(&client(&server)).await.unwrap();
        assert_eq!(server.asked()[0].method, "DELETE");
        assert_eq!(server.asked().len(), 1);
    }
    let server = Server::start(|_| Answer::status(500)).await;
    job(&server).cancel(&impatient(&server)).await;
    assert!(server.asked().iter().all(|asked| asked.method == "DELETE"), "best effort");
    let server = Server::start(|_| Answer::outcome(403, "forbidden")).await;
    assert!(matches!(job(&server).delete(&client(&server)).await, Err(Error::Denied { .. })));
}

#[test]
fn a_server_that_would_be_reached_unencrypted_is_refused() {
    install_crypto();
    let new = |server: &str, allow_http| Client::new(Config { allow_http, ..Config::new(server.parse().unwrap()) });
    for good in ["https://fhir.example.org/r4", "http://localhost:8080/", "http://127.0.0.1/", "http://[::1]/fhir"] {
        assert!(new(good, false).is_ok(), "{good}");
    }
    for bad in ["http://fhir.example.org/", "http://localhost.example.org/", "ftp://localhost/", "mailto:a@b.c"] {
        assert!(matches!(new(bad, false), Err(Error::UnusableUrl { .. })), "{bad}");
    }
    assert!(new("http://fhir.example.org/", true).is_ok());
    for bad in ["https://me:secret@fhir.example.org/", "https://fhir.example.org/?key=secret"] {
        let error = new(bad, false).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
