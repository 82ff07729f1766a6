//! The manifest: every version of the guide, and how servers deviate from it.

use super::super::manifest::{Manifest, Pages};
use super::*;

fn read(body: &str) -> Result<Manifest, String> {
    let at: Url = "https://fhir.example.org/status/1".parse().unwrap();
    let mut pages = Pages::default();
    assert_eq!(pages.add(body.as_bytes(), &at)?, None);
    Ok(pages.manifest(false))
}

#[test]
fn a_manifest_of_every_version_of_the_guide_is_read() {
    for (version, body) in [
        (
            "1.0",
            r#"{"transactionTime":"2026-11-20T10:00:00Z","request":"https://fhir.example.org/$export",
                "requiresAccessToken":true,"output":[{"type":"Patient","url":"/1","count":3}],
                "error":[{"type":"OperationOutcome","url":"/2"}],"extension":{"x":1}}"#,
        ),
        (
            "2.0",
            r#"{"transactionTime":"2026-11-20T10:00:00Z","request":"r","requiresAccessToken":true,
                "output":[{"type":"Patient","url":"https://fhir.example.org/1","count":3}],
                "deleted":[{"type":"Bundle","url":"https://fhir.example.org/3","count":1}],
                "error":[{"type":"OperationOutcome","url":"https://fhir.example.org/2"}]}"#,
        ),
        (
            "3.0",
            r#"{"transactionTime":"2026-11-20T10:00:00Z","requiresAccessToken":true,"outputOrganizedBy":"",
                "output":[{"type":"Patient","url":"/1","count":3,"continuesInFile":"2.ndjson"}],
                "deleted":[],"error":[{"type":"OperationOutcome","url":"/2"}],"link":[]}"#,
        ),
        (
            "4.0",
            r#"{"manifestType":"bulk-export","transactionTime":"2026-11-20T10:00:00Z","requiresAccessToken":true,
                "output":[{"type":"Patient","url":"/1","count":3,"fileSize":900}],"deleted":[{"url":"/3"}],
                "outcome":[{"url":"/2","countSeverity":[{"severity":"error","count":1}]}],
                "extension":[{"url":"x","valueCode":"y"}]}"#,
        ),
    ] {
        let manifest = read(body).unwrap();
        assert_eq!(manifest.transaction_time.unwrap().to_string(), "2026-11-20T10:00:00Z", "{version}");
        let file = &manifest.output[0];
        assert_eq!(
            (file.name.as_str(), file.url.path(), file.count),
            ("Patient file 1 of 1", "/1", Some(3)),
            "{version}"
        );
        assert_eq!(file.url.host_str(), Some("fhir.example.org"), "{version}");
        assert!(file.requires_access_token, "{version}");
        assert_eq!(manifest.outcomes.len(), 1, "{version}");
    }
}

#[test]
fn absent_lists_are_empty() {
    let manifest = read(r#"{"transactionTime":"2026-11-20T10:00:00Z","output":null}"#).unwrap();
    assert!(manifest.output.is_empty() && manifest.deleted.is_empty() && manifest.outcomes.is_empty());
    assert!(read(r#"{"output":[]}"#).unwrap().transaction_time.is_none());
}

#[test]
fn a_transaction_time_counts_only_when_it_is_an_instant_on_every_page() {
    for (text, readable) in [
        (r#""2020/01/20 16:53:41.160 -0500""#, true),
        (r#""2026-11-20T10:00:00+01:00""#, true),
        (r#""2026-11-20T10:00:00""#, false),
        (r#""yesterday""#, false),
        ("17", false),
    ] {
        let manifest = read(&format!(r#"{{"transactionTime":{text},"output":[]}}"#)).unwrap();
        assert_eq!(manifest.transaction_time.is_some(), readable, "{text}");
    }
    let at: Url = "https://fhir.example.org/".parse().unwrap();
    let mut pages = Pages::default();
    pages.add(br#"{"transactionTime":"2026-11-20T10:00:00Z"}"#, &at).unwrap();
    pages.add(br#"{"transactionTime":"soon"}"#, &at).unwrap();
    assert!(pages.manifest(false).transaction_time.is_none());
}

#[test]
fn whether_a_token_is_required_is_read_leniently() {
    for (text, by_default, expected) in [
        ("true", false, true),
        ("false", true, false),
        (r#""true""#, false, true),
        (r#""False""#, true, false),
        ("null", true, true),
        ("7", false, false),
    ] {
        let body = format!(r#"{{"requiresAccessToken":{text},"output":[{{"url":"/1"}}]}}"#);
        let mut pages = Pages::default();
        pages.add(body.as_bytes(), &"https://fhir.example.org/".parse().unwrap()).unwrap();
        assert_eq!(pages.manifest(by_default).output[0].requires_access_token, expected, "{text}");
    }
}

#[test]
fn counts_and_types_that_cannot_be_read_are_absent() {
    let manifest = read(
        r#"{"output":[{"type":"Patient","url":"/1","count":"12"},{"type":"Alien","url":"/2","count":-1},
                      {"url":"/3","count":4.0},{"type":7,"url":"/4","count":null}]}"#,
    )
    .unwrap();
    let files: Vec<_> = manifest.output.iter().map(|file| (file.name.as_str(), file.count)).collect();
    let expected =
        [("Patient file 1 of 1", Some(12)), ("file 1 of 3", None), ("file 2 of 3", Some(4)), ("file 3 of 3", None)];
    assert_eq!(files, expected);
    assert!(manifest.output[1].resource_type.is_none());
}

#[test]
fn a_file_listed_as_error_and_as_outcome_counts_once() {
    let manifest = read(r#"{"output":[],"error":[{"url":"/1"}],"outcome":[{"url":"/1"},{"url":"/2"}]}"#).unwrap();
    assert_eq!(manifest.outcomes.len(), 2);
}
