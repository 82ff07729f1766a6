//! The protocol of the embedded server, over real HTTP.

mod wire;

use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use self::wire::{Answer, answer, get, open, send};
use super::*;
use crate::{
    demo::{StatusCode, token::tests::Client},
    fhir::ResourceType,
};

const PATIENT: ResourceType = ResourceType::PATIENT;
const ANY_PORT: &str = "127.0.0.1:0";
const ASK: &[(&str, &str)] = &[("Accept", "application/fhir+json"), ("Prefer", "respond-async")];

/// Three patients, a second apart.
async fn server() -> Server {
    let mut world = World::new();
    for id in ["p1", "p2", "p3"] {
        world.put(PATIENT, id, json!({"gender": "female"}));
        world.advance(Duration::from_secs(1));
    }
    let server = Server::start(world, ANY_PORT.parse().unwrap()).await.unwrap();
    server.scenario(|scenario| scenario.polls_before_done = 0);
    server
}

async fn kick_off(server: &Server, path_and_query: &str) -> Answer {
    send("GET", &format!("{}{path_and_query}", server.url()), ASK, "").await
}

/// The status URL of a new export.
async fn export(server: &Server, query: &str) -> String {
    let answer = kick_off(server, &format!("/$export{query}")).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    answer.header("content-location").unwrap().to_owned()
}

async fn manifest(server: &Server, query: &str) -> Value {
    get(&export(server, query).await).await.json()
}

fn url_of(entry: &Value) -> &str {
    entry["url"].as_str().unwrap()
}

#[tokio::test]
async fn an_export_goes_from_kick_off_to_delete() {
    let server = server().await;
    server.scenario(|scenario| scenario.polls_before_done = 1);
    let status = export(&server, "?_type=Patient").await;
    assert!(status.starts_with(server.url().as_str()), "the status URL is absolute");
    let waiting = get(&status).await;
    assert_eq!((waiting.status, waiting.header("retry-after")), (202, Some("1")));
    assert!(waiting.header("x-progress").is_some());
    let done = get(&status).await;
    assert_eq!((done.status, done.header("content-type")), (200, Some("application/json")));
    let manifest = done.json();
    assert_eq!(manifest["transactionTime"], "2026-01-01T00:00:03.000Z");
    assert_eq!(manifest["requiresAccessToken"], false);
    assert_eq!(manifest["request"], format!("{}/$export?_type=Patient", server.url()));
    assert_eq!(manifest["output"][0]["type"], "Patient");
    assert_eq!(manifest["output"][0]["count"], 3);
    let file = get(url_of(&manifest["output"][0])).await;
    assert_eq!(file.header("content-type"), Some("application/fhir+ndjson"));
    assert!(file.whole && file.header("content-length").is_some());
    assert_eq!(file.text().lines().count(), 3);
    assert_eq!(send("DELETE", &status, &[], "").await.status, 202);
    for gone in [get(&status).await, get(url_of(&manifest["output"][0])).await] {
        assert_eq!((gone.status, gone.json()["resourceType"].as_str()), (404, Some("OperationOutcome")));
    }
    let jobs = server.jobs();
    assert_eq!((jobs[0].polls, jobs[0].deleted, &jobs[0].types[..]), (2, true, &[PATIENT][..]));
}

#[tokio::test]
async fn the_date_follows_the_clock_of_the_world() {
    let server = server().await;
    let answer = kick_off(&server, "/$export").await;
    assert_eq!(answer.header("date"), Some("Thu, 01 Jan 2026 00:00:03 GMT"));
}

#[tokio::test]
async fn a_kick_off_that_violates_the_guide_is_refused() {
    let server = server().await;
    let url = format!("{}/$export", server.url());
    for (query, headers) in [
        ("", &[("Accept", "application/fhir+json")][..]),
        ("", &[("Prefer", "respond-async")]),
        ("", &[("Prefer", "respond-async"), ("Accept", "application/json")]),
        ("?_since=yesterday", ASK),
        ("?_since=2026-01-01T00:00:00", ASK),
        // The sign of the zone is a blank by the time it arrives (rule 14).
        ("?_since=2026-01-01T00:00:00+02:00", ASK),
        ("?_type=patient", ASK),
        ("?_unknown=2026-01-01T00:00:00Z", ASK),
        // By POST only (rule 27).
        ("?patient=Patient/p1", ASK),
        ("?_outputFormat=text/csv", ASK),
    ] {
        let answer = send("GET", &format!("{url}{query}"), headers, "").await;
        assert_eq!((answer.status, answer.json()["resourceType"].as_str()), (400, Some("OperationOutcome")), "{query}");
    }
    assert_eq!(server.jobs(), vec![]);
}

#[tokio::test]
async fn since_selects_what_changed_at_its_instant_or_later() {
    let server = server().await;
    let manifest = manifest(&server, "?_since=2026-01-01T02:00:01.000%2B02:00").await;
    let file = get(url_of(&manifest["output"][0])).await;
    let ids: Vec<Value> =
        file.text().lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].take()).collect();
    assert_eq!(ids, ["p2", "p3"]);
    assert_eq!(server.jobs()[0].since.as_deref(), Some("2026-01-01T02:00:01.000+02:00"));
}

#[tokio::test]
async fn patient_and_group_exports_and_post_are_supported() {
    let server = server().await;
    for path in ["/Patient/$export", "/Group/a%20b/$export"] {
        assert_eq!(kick_off(&server, path).await.status, 202, "{path}");
    }
    let parameters = json!({"resourceType": "Parameters", "parameter": [
        {"name": "_since", "valueInstant": "2026-01-01T00:00:02Z"},
        {"name": "_type", "valueString": "Patient"},
        {"name": "_type", "valueString": "Observation"},
    ]});
    let url = format!("{}/$export", server.url());
    assert_eq!(send("POST", &url, ASK, &parameters.to_string()).await.status, 202);
    assert_eq!(send("POST", &url, ASK, "{}").await.status, 400);
    let jobs = server.jobs();
    assert_eq!(jobs[2].types, [PATIENT, ResourceType::OBSERVATION]);
    assert_eq!(jobs[1].path, "/fhir/Group/a%20b/$export");
}

#[tokio::test]
async fn an_unknown_group_is_not_found() {
    let server = server().await;
    server.scenario(|scenario| scenario.groups = Some(["7".to_owned()].into()));
    for (group, status) in [("7", 202), ("8", 404)] {
        assert_eq!(kick_off(&server, &format!("/Group/{group}/$export")).await.status, status);
    }
}

#[tokio::test]
async fn the_capability_statement_lists_the_types_of_the_data() {
    let server = server().await;
    server.world(|world| world.put("Device".parse().unwrap(), "d1", json!({})));
    let statement = get(&format!("{}/metadata", server.url())).await.json();
    let resources = statement["rest"][0]["resource"].as_array().unwrap();
    let types: Vec<_> = resources.iter().map(|resource| resource["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["Device", "Group", "Patient"]);
}

#[tokio::test]
async fn every_answer_is_compressed_if_the_scenario_says_so() {
    let server = server().await;
    server.scenario(|scenario| scenario.gzip_unasked = true);
    let answer = get(&format!("{}/metadata", server.url())).await;
    assert_eq!((answer.status, answer.header("content-encoding")), (200, Some("gzip")));
}

#[tokio::test]
async fn deletions_are_sent_as_transaction_bundles_and_only_with_a_since() {
    let server = server().await;
    server.world(|world| world.delete(PATIENT, "p2"));
    assert_eq!(manifest(&server, "").await["deleted"], json!([]));
    let manifest = manifest(&server, "?_since=2026-01-01T00:00:03Z").await;
    assert_eq!((&manifest["output"], &manifest["deleted"][0]["type"]), (&json!([]), &json!("Bundle")));
    let bundle: Value = get(url_of(&manifest["deleted"][0])).await.json();
    assert_eq!(bundle["type"], "transaction");
    let entry = json!({
        "request": {"method": "DELETE", "url": "Patient/p2"},
        "response": {"lastModified": "2026-01-01T00:00:03.000Z"},
    });
    assert_eq!(bundle["entry"], json!([entry]));
}

#[tokio::test]
async fn a_job_returns_the_data_of_its_kick_off() {
    let server = server().await;
    let status = export(&server, "").await;
    server.world(|world| world.put(PATIENT, "p4", json!({})));
    server.world(|world| world.advance(Duration::from_mins(1)));
    let manifest = get(&status).await.json();
    assert_eq!(
        (&manifest["output"][0]["count"], &manifest["transactionTime"]),
        (&json!(3), &json!("2026-01-01T00:00:03.000Z"))
    );
}

#[tokio::test]
async fn a_held_job_stays_in_progress_until_it_is_released() {
    let server = server().await;
    server.scenario(|scenario| scenario.hold = true);
    let status = export(&server, "").await;
    for _ in 0..3 {
        assert_eq!(get(&status).await.status, 202);
    }
    server.scenario(|scenario| scenario.hold = false);
    assert_eq!(get(&status).await.status, 200);
    server.scenario(|scenario| scenario.lose_job = true);
    assert_eq!(get(&status).await.status, 404);
}

#[tokio::test]
async fn files_and_pages_are_as_long_as_the_scenario_says() {
    let server = server().await;
    server.scenario(|scenario| {
        (scenario.lines_per_file, scenario.pages) = (1, Some(2));
        scenario.outcomes.push(json!({"resourceType": "OperationOutcome", "issue": []}));
        scenario.count_offset.insert(PATIENT, 5);
    });
    let first = manifest(&server, "").await;
    assert_eq!(first["output"].as_array().unwrap().len(), 2);
    assert_eq!((&first["error"], &first["output"][0]["count"]), (&json!([]), &json!(6)));
    assert_eq!(first["link"][0]["relation"], "next");
    let second = get(url_of(&first["link"][0])).await.json();
    assert_eq!(second["output"].as_array().unwrap().len(), 1);
    assert_eq!(second["error"][0]["type"], "OperationOutcome");
    assert_eq!((second.get("link"), &second["transactionTime"]), (None, &first["transactionTime"]));
    assert_eq!(server.jobs()[0].polls, 1, "further pages are not polls");
}

#[tokio::test]
async fn a_file_is_compressed_for_clients_that_accept_it() {
    let server = server().await;
    let manifest = manifest(&server, "").await;
    let url = url_of(&manifest["output"][0]);
    let packed = send("GET", url, &[("Accept-Encoding", "gzip, br")], "").await;
    assert_eq!((packed.header("content-encoding"), packed.whole), (Some("gzip"), true));
    let mut text = String::new();
    async_compression::tokio::bufread::GzipDecoder::new(&packed.body[..]).read_to_string(&mut text).await.unwrap();
    assert_eq!(text, get(url).await.text());
    server.scenario(|scenario| (scenario.gzip, scenario.content_length) = (false, false));
    let chunked = send("GET", url, &[("Accept-Encoding", "gzip")], "").await;
    assert_eq!((chunked.header("content-encoding"), chunked.header("transfer-encoding")), (None, Some("chunked")));
    assert_eq!(chunked.text(), text);
}

#[tokio::test]
async fn a_range_of_a_file_is_served_while_the_file_is_unchanged() {
    let server = server().await;
    server.scenario(|scenario| scenario.ranges = true);
    let manifest = manifest(&server, "").await;
    let url = url_of(&manifest["output"][0]);
    let whole = get(url).await;
    let etag = whole.header("etag").unwrap();
    let rest = send("GET", url, &[("Range", "bytes=100-"), ("If-Range", etag)], "").await;
    assert_eq!((rest.status, rest.whole), (206, true));
    assert_eq!(
        rest.header("content-range"),
        Some(format!("bytes 100-{}/{}", whole.body.len() - 1, whole.body.len()).as_str())
    );
    assert_eq!(rest.body, whole.body[100..]);
    let other = send("GET", url, &[("Range", "bytes=100-"), ("If-Range", "\"x\"")], "").await;
    assert_eq!((other.status, other.body), (200, whole.body));
}

#[tokio::test]
async fn faults_happen_as_configured_and_then_the_server_behaves_again() {
    let server = server().await;
    let manifest = manifest(&server, "").await;
    let url = url_of(&manifest["output"][0]);
    let path_contains = "/Patient.1".to_owned();
    server.scenario(|scenario| {
        scenario.faults = vec![
            Fault::Status {
                path_contains: path_contains.clone(),
                status: StatusCode::SERVICE_UNAVAILABLE,
                times: 1,
                retry_after: Some("7".to_owned()),
                body: "<html>".to_owned(),
            },
            Fault::CutAfter { path_contains: path_contains.clone(), bytes: 50, times: 1 },
            Fault::EndAfter { path_contains: path_contains.clone(), bytes: 60, times: 1 },
            Fault::Redirect {
                path_contains: path_contains.clone(),
                status: StatusCode::TEMPORARY_REDIRECT,
                location: "http://elsewhere.example/x".to_owned(),
                times: 1,
            },
            Fault::Slow { path_contains, chunk_bytes: 100, pause: Duration::from_millis(1), times: 1 },
        ];
    });
    let busy = get(url).await;
    assert_eq!((busy.status, busy.header("retry-after"), busy.text()), (503, Some("7"), "<html>"));
    let cut = get(url).await;
    assert_eq!((cut.status, cut.body.len(), cut.whole), (200, 50, false));
    let short = get(url).await;
    assert_eq!((short.body.len(), short.whole), (60, true));
    assert_eq!(get(url).await.header("location"), Some("http://elsewhere.example/x"));
    let slow = get(url).await;
    let again = get(url).await;
    assert!(slow.whole && again.whole);
    assert_eq!(slow.body, again.body);
    let statuses: Vec<u16> = server.requests().iter().map(|request| request.status).collect();
    assert_eq!(statuses, [202, 200, 503, 200, 200, 307, 200, 200]);
}

#[tokio::test]
async fn another_body_replaces_the_manifest_once() {
    let server = server().await;
    server.scenario(|scenario| scenario.faults = vec![Fault::NotAManifest { body: "[]".to_owned(), times: 1 }]);
    let status = export(&server, "").await;
    assert_eq!(get(&status).await.text(), "[]");
    assert_eq!(get(&status).await.json()["error"], json!([]));
}

/// A download that the server holds, and the first bytes of its answer.
async fn held_file(server: &Server) -> (TcpStream, Vec<u8>) {
    let manifest = manifest(server, "").await;
    server.scenario(|scenario| scenario.hold_files = true);
    let mut stream = open("GET", url_of(&manifest["output"][0]), &[], "").await;
    let mut bytes = vec![0; 16];
    stream.read_exact(&mut bytes).await.unwrap();
    (stream, bytes)
}

#[tokio::test]
async fn a_held_file_begins_and_continues_when_it_is_released() {
    let server = server().await;
    let (mut stream, mut bytes) = held_file(&server).await;
    server.scenario(|scenario| scenario.hold_files = false);
    stream.read_to_end(&mut bytes).await.unwrap();
    let file = answer(&bytes);
    assert_eq!((file.whole, file.text().lines().count()), (true, 3));
}

#[tokio::test]
async fn a_server_that_stops_cuts_running_downloads_and_frees_its_port() {
    let server = server().await;
    let (mut stream, mut bytes) = held_file(&server).await;
    let port = server.url().port().unwrap();
    server.stop().await;
    let _ = stream.read_to_end(&mut bytes).await;
    assert!(!answer(&bytes).whole);
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

#[tokio::test]
async fn with_auth_everything_except_metadata_and_the_token_endpoint_needs_a_token() {
    let server = server().await;
    let configuration = format!("{}/.well-known/smart-configuration", server.url());
    assert_eq!(get(&configuration).await.status, 404);
    let jwk = json!({"kty": "EC", "crv": "P-384", "kid": "k", "x": "AA", "y": "AA"});
    let auth = crate::demo::Auth::new("client", serde_json::from_value(jwk).unwrap());
    let manifest = manifest(&server, "").await;
    server.scenario(|scenario| scenario.auth = Some(auth));
    let token_url = get(&configuration).await.json()["token_endpoint"].as_str().unwrap().to_owned();
    let refused = send("POST", &token_url, &[], "grant_type=password").await;
    assert_eq!((refused.status, refused.json()["error"].as_str()), (400, Some("unsupported_grant_type")));
    let metadata = get(&format!("{}/metadata", server.url())).await.json();
    assert_eq!(metadata["rest"][0]["security"]["extension"][0]["extension"][0]["valueUri"], token_url);
    let unauthorized = kick_off(&server, "/$export").await;
    assert_eq!((unauthorized.status, unauthorized.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(get(url_of(&manifest["output"][0])).await.status, 401);
    server.scenario(|scenario| scenario.requires_access_token = Some(false));
    assert_eq!(get(url_of(&manifest["output"][0])).await.status, 200);
}

#[tokio::test]
async fn a_token_is_accepted_until_it_is_revoked() {
    let server = server().await;
    let mut client = Client::new(Algorithm::ES384);
    client.auth.expire_tokens_after_file_requests = Some(1);
    server.scenario(|scenario| scenario.auth = Some(client.auth.clone()));
    let token_url = format!("{}/auth/token", server.url().as_str().trim_end_matches("/fhir"));
    let form = String::from_utf8(client.form(&client.claims(&token_url, "jti-1"))).unwrap();
    let granted = send("POST", &token_url, &[], &form).await.json();
    assert_eq!((&granted["token_type"], &granted["expires_in"]), (&json!("bearer"), &json!(300)));
    let authorization = format!("Bearer {}", granted["access_token"].as_str().unwrap());
    let authorized = [ASK, &[("Authorization", authorization.as_str())]].concat();
    let begun = send("GET", &format!("{}/$export", server.url()), &authorized, "").await;
    let status = begun.header("content-location").unwrap();
    let manifest = send("GET", status, &authorized, "").await.json();
    assert_eq!(manifest["requiresAccessToken"], true);
    for expected in [200, 401] {
        assert_eq!(send("GET", url_of(&manifest["output"][0]), &authorized, "").await.status, expected);
    }
    assert_eq!(send("GET", status, &authorized, "").await.status, 401);
}

#[tokio::test]
async fn a_lost_answer_leaves_the_job_behind() {
    let server = server().await;
    let path_contains = "$export".to_owned();
    server.scenario(|scenario| scenario.faults = vec![Fault::LoseAnswer { path_contains, times: 1 }]);
    let mut bytes = Vec::new();
    let mut stream = open("GET", &format!("{}/$export", server.url()), ASK, "").await;
    let _ = stream.read_to_end(&mut bytes).await;
    assert_eq!((bytes.len(), server.jobs().len()), (0, 1));
}

#[tokio::test]
async fn a_dropped_server_ends_idle_connections() {
    let server = server().await;
    let mut stream = TcpStream::connect(("127.0.0.1", server.url().port().unwrap())).await.unwrap();
    stream.write_all(b"GET /fhir/metadata HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut bytes = vec![0; 12];
    stream.read_exact(&mut bytes).await.unwrap();
    drop(server);
    stream.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(&bytes[..12], b"HTTP/1.1 200");
}

#[tokio::test]
async fn a_second_origin_serves_files_and_records_requests() {
    let mut server = server().await;
    let origin = server.open_file_origin(ANY_PORT.parse().unwrap()).await.unwrap();
    let manifest = manifest(&server, "").await;
    let url = url_of(&manifest["output"][0]);
    assert!(url.starts_with(origin.as_str()) && !url.starts_with(server.url().as_str()));
    let file = send("GET", url, &[("Authorization", "Bearer leaked")], "").await;
    assert_eq!(file.text().lines().count(), 3);
    let request = server.requests().pop().unwrap();
    assert_eq!(request.authorization.as_deref(), Some("Bearer leaked"));
    assert_eq!(format!("{}/", request.origin), origin.as_str());
    assert_eq!(get(&format!("{origin}fhir/metadata")).await.status, 404);
}

#[tokio::test]
async fn a_kick_off_is_refused_while_another_job_has_not_been_deleted() {
    let server = server().await;
    server.scenario(|scenario| scenario.max_jobs = 1);
    let status = export(&server, "").await;
    let busy = kick_off(&server, "/$export").await;
    assert_eq!((busy.status, busy.header("retry-after")), (429, Some("1")));
    send("DELETE", &status, &[], "").await;
    assert_eq!(kick_off(&server, "/$export").await.status, 202);
}

#[tokio::test]
async fn a_folder_is_served_byte_for_byte_in_every_export() {
    let folder = tempfile::tempdir().unwrap();
    let text = "{\"resourceType\":\"Organization\",\"id\":\"1\"}\r\n\nnonsense";
    let mut packed = async_compression::tokio::write::GzipEncoder::new(Vec::new());
    packed.write_all(text.as_bytes()).await.unwrap();
    packed.shutdown().await.unwrap();
    std::fs::write(folder.path().join("Organization.123.ndjson.gz"), packed.into_inner()).unwrap();
    std::fs::write(folder.path().join("Patient.ndjson"), "{}\n").unwrap();
    for keep in [Keep::OnDisk, Keep::InMemory] {
        let server = Server::start_folder(folder.path(), keep, ANY_PORT.parse().unwrap()).await.unwrap();
        server.scenario(|scenario| scenario.polls_before_done = 0);
        for (query, time) in [("", "00.000Z"), ("?_since=2027-01-01T00:00:00Z", "01.000Z")] {
            let manifest = manifest(&server, query).await;
            assert!(manifest["transactionTime"].as_str().unwrap().ends_with(time));
            assert_eq!(manifest["output"][0]["count"], 2);
            let file = get(url_of(&manifest["output"][0])).await;
            assert_eq!((file.text(), file.whole), (text, true));
            assert_eq!(manifest["output"][1]["type"], "Patient");
        }
    }
}
