//! Kick-off and DELETE: what is sent, and what each answer becomes.

use super::*;

fn accepted(location: &str) -> Answer {
    Answer::status(202).header("content-location", location).header("date", "Fri, 20 Nov 2026 10:00:07 GMT")
}

/// (rules 8 to 10, 14, 20 and 31, Q-1, Q-4, Q-8, Q-10, Q-12, Q-14, Q-73)
#[tokio::test]
async fn a_kick_off_sends_exactly_what_servers_require() {
    let server = Server::start(|_| accepted("/status/1")).await;
    let types = ["Patient", "Condition", "Patient"].map(|name| name.parse().unwrap()).to_vec();
    let since = Some("2026-11-20T08:00:00.999+02:00".to_owned());
    let request = ExportRequest::new(Level::Group("a b/c".to_owned()), types, since);
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

/// (rule 3)
#[tokio::test]
async fn each_level_has_its_own_path() {
    let server = Server::start(|_| accepted("/status/1")).await;
    for level in [Level::System, Level::Patient, Level::Group("7".to_owned())] {
        client(&server).kick_off(&ExportRequest { level, ..request(&[]) }).await.unwrap();
    }
    let paths: Vec<_> = server.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(paths, ["/fhir/$export", "/fhir/Patient/$export", "/fhir/Group/7/$export"]);
}

/// (rule 3)
#[tokio::test]
async fn a_group_id_that_would_change_the_path_is_refused() {
    let server = Server::start(|_| accepted("/status/1")).await;
    for id in ["", ".", ".."] {
        let request = ExportRequest { level: Level::Group(id.to_owned()), ..request(&[]) };
        assert!(matches!(client(&server).kick_off(&request).await, Err(Error::Config { .. })), "{id:?}");
    }
    assert!(server.asked().is_empty());
}

/// (rule 32, Q-6)
#[tokio::test]
async fn a_relative_content_location_is_resolved_against_the_kick_off() {
    for (location, path) in [("/status/1?x=2", "/status/1?x=2"), ("status/1", "/fhir/status/1")] {
        let server = Server::start(move |_| accepted(location)).await;
        let job = client(&server).kick_off(&request(&[])).await.unwrap();
        assert_eq!(job.status_url, server.url(path));
    }
}

/// (rule 51)
#[tokio::test]
async fn a_job_carries_the_clock_of_the_server() {
    let server = Server::start(|_| accepted("/status/1")).await;
    let job = client(&server).kick_off(&request(&[])).await.unwrap();
    assert_eq!(job.server_time.unwrap().to_string(), "2026-11-20T10:00:07Z");
}

/// (rule 32)
#[tokio::test]
async fn a_202_without_a_status_url_is_an_error() {
    let server = Server::start(|_| Answer::status(202)).await;
    assert!(matches!(client(&server).kick_off(&request(&[])).await, Err(Error::NoStatusUrl { .. })));
}

/// (rule 1)
#[tokio::test]
async fn an_unencrypted_status_url_on_another_host_is_refused() {
    let server = Server::start(|_| accepted("http://fhir.example.org/status")).await;
    assert!(matches!(client(&server).kick_off(&request(&[])).await, Err(Error::UnusableUrl { .. })));
    let client = Client::new(Config { allow_http: true, ..config(&server) }).unwrap();
    assert!(client.kick_off(&request(&[])).await.is_ok());
}

/// (rule 34, Q-3)
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

/// (rule 34, Q-3)
#[tokio::test]
async fn a_server_that_stays_busy_is_an_error_at_the_deadline() {
    let server = Server::start(|_| Answer::status(429)).await;
    let mut config = config(&server);
    config.poll.kick_off_deadline = Duration::from_millis(20);
    let error = Client::new(config).unwrap().kick_off(&request(&[])).await.unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error}");
}

/// (rule 33)
#[tokio::test]
async fn a_refused_kick_off_is_reported_in_the_server_s_own_words_on_one_line_and_cut_short() {
    let outcome = serde_json::json!({"resourceType": "OperationOutcome", "issue": [{
        "severity": "error",
        "code": "not-supported",
        "details": {"text": "Location\tis not\nsupported\u{1b}[31m\u{202e}"},
        "diagnostics": "x".repeat(5000),
    }]});
    let server = Server::start(move |_| Answer::status(422).body(outcome.to_string())).await;
    let text = client(&server).kick_off(&request(&["Patient"])).await.unwrap_err().to_string();
    assert!(text.contains("/fhir/$export: the server answered 422"), "{text}");
    assert!(text.contains("error (not-supported): \"Location is not supported [31m; xxx"), "{text}");
    assert!(text.len() < 1000 && !text.contains(char::is_control) && !text.contains('\u{202e}'), "{text}");
    assert!(!text.contains("_type"), "no query is shown: {text}");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn the_words_of_the_server_about_anything_but_a_kick_off_are_not_shown() {
    let server = Server::start(|_| Answer::outcome(400, "not-supported")).await;
    let error = wait(job(&server), &client(&server)).await.unwrap_err().to_string();
    assert!(error.contains("not-supported") && !error.contains("Jane"), "{error}");
    let error = job(&server).delete(&client(&server)).await.unwrap_err().to_string();
    assert!(error.contains("not-supported") && !error.contains("Jane"), "{error}");
}

/// The client of a server that answers the two methods as stated, for any number of requests.
async fn with_method(get: u16, post: u16, kick_off: KickOffConfig) -> (Server, Client) {
    let server = Server::start(move |asked| {
        let status = if asked.method == "GET" { get } else { post };
        if status == 202 { accepted("/status/1") } else { Answer::status(status) }
    })
    .await;
    let client = Client::new(Config { kick_off, ..config(&server) }).unwrap();
    (server, client)
}

fn methods(server: &Server) -> Vec<String> {
    server.asked().into_iter().map(|asked| asked.method).collect()
}

fn of_patients() -> ExportRequest {
    let patients = ["p1", "p2"].map(str::to_owned).into();
    let parameters = ExportParameters { patients, ..ExportParameters::default() };
    ExportRequest { level: Level::Patient, parameters, ..request(&["Patient", "Observation"]) }
}

/// Shows (rules 11 and 13, Q-16).
#[tokio::test]
async fn a_server_that_takes_no_get_is_asked_by_post_and_this_is_remembered() {
    for refused in [405, 501] {
        let (server, client) = with_method(refused, 202, KickOffConfig::default()).await;
        for _ in 0..2 {
            client.kick_off(&request(&["Patient", "Observation"])).await.unwrap();
        }
        assert_eq!(methods(&server), ["GET", "POST", "POST"]);
        let asked = &server.asked()[1];
        assert_eq!(
            (asked.path.as_str(), asked.header("content-type")),
            ("/fhir/$export", Some("application/fhir+json"))
        );
        assert_eq!(asked.header("accept"), Some("application/fhir+json"));
        assert_eq!(asked.header("prefer"), Some("respond-async"));
        assert_eq!(asked.header("cache-control"), Some("no-cache"));
        assert_eq!(
            asked.body,
            r#"{"parameter":[{"name":"_type","valueString":"Patient"},{"name":"_type","valueString":"Observation"}],"resourceType":"Parameters"}"#
        );
    }
}

#[tokio::test]
async fn a_refusal_whose_words_name_the_method_is_about_the_method_and_any_other_400_is_not() {
    for (words, expected) in [
        ("Use POST for $export", vec!["GET", "POST"]),
        ("the HTTP method is not allowed", vec!["GET", "POST"]),
        ("the type Location is unknown", vec!["GET"]),
    ] {
        let body = serde_json::json!({
            "resourceType": "OperationOutcome",
            "issue": [{"severity": "error", "code": "not-supported", "diagnostics": words}],
        });
        for status in [400, 404] {
            let body = body.to_string();
            let server = Server::start(move |_| Answer::status(status).body(body.clone())).await;
            let error = client(&server).kick_off(&request(&["Patient"])).await.unwrap_err().to_string();
            assert_eq!(methods(&server), expected, "{words}");
            assert!(error.contains(words), "{error}");
        }
    }
}

#[tokio::test]
async fn a_method_that_the_operator_chose_is_not_exchanged() {
    for (method, expected) in [(KickOffMethod::Get, "GET"), (KickOffMethod::Post, "POST")] {
        let (server, client) = with_method(405, 405, KickOffConfig { method, ..KickOffConfig::default() }).await;
        let error = client.kick_off(&request(&["Patient"])).await.unwrap_err();
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert_eq!(methods(&server), [expected]);
    }
}

/// Their ids would be in the logs of everything on the way (rule 27).
#[tokio::test]
async fn patients_are_never_named_in_a_url() {
    let config = KickOffConfig { method: KickOffMethod::Get, ..KickOffConfig::default() };
    let (server, client) = with_method(202, 202, config).await;
    let mut request = request(&["Patient"]);
    request.parameters.patients.insert("1".to_owned());
    let error = client.kick_off(&request).await.unwrap_err();
    assert!(matches!(error, Error::PostRefused { .. }), "{error}");
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn words_that_may_quote_a_token_or_a_patient_are_not_shown() {
    let server = Server::start(|asked| {
        let status = if asked.method == "POST" { 400 } else { 403 };
        let issue = serde_json::json!({"severity": "error", "code": "invalid", "diagnostics": "SECRET was refused"});
        Answer::status(status)
            .body(serde_json::json!({"resourceType": "OperationOutcome", "issue": [issue]}).to_string())
    })
    .await;
    let mut of_patients = request(&["Patient"]);
    of_patients.parameters.patients.insert("SECRET".to_owned());
    for request in [request(&["Patient"]), of_patients] {
        let error = client(&server).kick_off(&request).await.unwrap_err().to_string();
        assert!(error.contains("invalid") && !error.contains("SECRET"), "{error}");
    }
}

/// Shows (rule 27).
#[tokio::test]
async fn patients_are_asked_for_by_post_with_joined_types() {
    let (server, client) = with_method(202, 202, KickOffConfig::default()).await;
    client.kick_off(&of_patients()).await.unwrap();
    assert_eq!(methods(&server), ["POST"]);
    let body = &server.asked()[0].body;
    assert!(body.contains(r#"{"name":"_type","valueString":"Patient,Observation"}"#), "HAPI reads the first: {body}");
    assert!(body.contains(r#"{"name":"patient","valueReference":{"reference":"Patient/p2"}}"#), "{body}");
}

/// Shows (rule 27).
#[tokio::test]
async fn an_export_of_patients_never_becomes_a_get_which_would_export_all() {
    let (server, client) = with_method(202, 405, KickOffConfig::default()).await;
    let error = client.kick_off(&of_patients()).await.unwrap_err();
    assert!(matches!(error, Error::PostRefused { .. }), "{error}");
    assert!(error.to_string().contains("remove `patients` from the export, or export a Group"), "{error}");
    assert_eq!(methods(&server), ["POST"]);
}

/// Shows (rule 13, Q-12).
#[tokio::test]
async fn the_operator_decides_how_lists_are_sent() {
    for (separator, expected) in [
        (ListSeparator::Auto, "/fhir/$export?_type=Patient,Observation"),
        (ListSeparator::Comma, "/fhir/$export?_type=Patient,Observation"),
        (ListSeparator::Repeat, "/fhir/$export?_type=Patient&_type=Observation"),
    ] {
        let (server, client) = with_method(202, 202, KickOffConfig { separator, ..KickOffConfig::default() }).await;
        client.kick_off(&request(&["Patient", "Observation"])).await.unwrap();
        assert_eq!(server.asked()[0].path, expected);
    }
}

#[test]
fn the_types_that_a_server_names_are_found_in_places_and_words() {
    let among = ["Patient", "Location", "Device"].map(|name| name.parse().unwrap());
    let named = |issue: serde_json::Value| {
        let body = serde_json::json!({"resourceType": "OperationOutcome", "issue": [issue]});
        let named = Issues::read_in_words(body.to_string().as_bytes()).types_named(&among);
        named.into_iter().map(crate::fhir::ResourceType::as_str).collect::<Vec<_>>()
    };
    let words = |words: &str| named(serde_json::json!({"severity": "error", "code": "invalid", "diagnostics": words}));
    assert_eq!(words("HAPI-0512: Resource type Location invalid for Patient-level export"), ["Location"]);
    assert_eq!(words("[Location,Device] are unknown"), ["Location", "Device"]);
    assert_eq!(words("Patient is not supported"), ["Patient"], "where nothing else is named");
    assert_eq!(words("Observation is not supported"), Vec::<&str>::new(), "it was not asked for");
    assert_eq!(words("something is wrong"), Vec::<&str>::new());
    let place = serde_json::json!({"severity": "error", "expression": ["Device"], "diagnostics": "as is Location"});
    assert_eq!(named(place), ["Device"]);
}

/// (rule 33)
#[tokio::test]
async fn an_invalid_code_is_not_quoted() {
    let server = Server::start(|_| Answer::outcome(400, "Jane Doe, born 1970")).await;
    let error = client(&server).kick_off(&request(&[])).await.unwrap_err();
    assert!(error.to_string().contains("error (unprintable code)"), "{error}");
}

/// (rule 36)
#[tokio::test]
async fn a_kick_off_is_repeated_as_long_as_an_outage_is_waited_for_and_a_501_is_final() {
    let server = Server::start(|_| Answer::status(503)).await;
    let error = impatient(&server).kick_off(&request(&[])).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(server.asked().len() >= 2);
    let server = Server::start(|_| Answer::status(501)).await;
    let error = client(&server).kick_off(&request(&[])).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert_eq!(methods(&server), ["GET", "POST"], "each method once");
}

/// (rules 33 and 63, Q-29)
#[tokio::test]
async fn the_error_of_a_refused_kick_off_names_the_usual_reason() {
    for (answer, expected) in [
        (Answer::status(404), "no $export at this URL (404 Not Found, without an OperationOutcome); check server.url"),
        (Answer::outcome(404, "not-found"), "(404 Not Found, error (not-found): \"Jane Doe\")"),
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
        let is_said = error.contains("(not-found)");
        assert!(error.contains("Jane") == is_said && !error.contains("s3cret"), "{error}");
    }
}

#[tokio::test]
async fn a_kick_off_is_not_redirected() {
    let server = Server::start(|_| Answer::status(307).header("location", "/elsewhere")).await;
    assert!(matches!(client(&server).kick_off(&request(&[])).await, Err(Error::Refused { .. })));
    assert_eq!(server.asked().len(), 1);
}

/// (rules 103 and 106, Q-30, Q-84)
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

/// (rule 1)
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
