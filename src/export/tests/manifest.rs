//! The manifest: every version of the guide, and how servers deviate from it.

use super::super::manifest::{Manifest, Pages};
use super::*;

fn read(body: &str) -> Result<Manifest, String> {
    let at: Url = "https://fhir.example.org/status/1".parse().unwrap();
    let mut pages = Pages::default();
    assert_eq!(pages.add(body.as_bytes(), &at)?, None);
    Ok(pages.manifest(false))
}

/// (rules 54, 55, 58 and 60, Q-36)
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

/// (rule 63)
#[test]
fn a_file_has_the_same_id_whatever_its_signature_and_no_two_files_have_one() {
    let of = |first: &str, second: &str, third: &str| {
        let manifest = read(&format!(
            r#"{{"transactionTime":"2026-11-20T10:00:00Z","output":[{{"type":"Patient","url":"/a?{first}"}},
                {{"type":"Patient","url":"/a?{second}"}}],"deleted":[{{"url":"/a?{third}"}}]}}"#
        ))
        .unwrap();
        let files = manifest.output.into_iter().chain(manifest.deleted);
        files.map(|file| file.id.to_string()).collect::<Vec<_>>()
    };
    let at = "https://fhir.example.org/a";
    assert_eq!(of("sig=1", "sig=2", "sig=3"), ["#1", "#2", "#3"].map(|number| format!("{at}{number}")));
    assert_eq!(of("sig=1", "sig=2", "sig=3"), of("sig=s3cret", "x", "y#z"));
}

/// (rules 55 and 58, Q-23)
#[test]
fn absent_lists_are_empty() {
    let manifest = read(r#"{"transactionTime":"2026-11-20T10:00:00Z","output":null}"#).unwrap();
    assert!(manifest.output.is_empty() && manifest.deleted.is_empty() && manifest.outcomes.is_empty());
    assert!(read(r#"{"output":[]}"#).unwrap().transaction_time.is_none());
}

/// (rules 50 and 134, Q-32)
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

/// (rule 53, Q-34)
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

/// (rules 55 and 56)
#[test]
fn counts_that_cannot_be_read_are_absent_and_unknown_types_are_told_from_missing_ones() {
    let manifest = read(
        r#"{"output":[{"type":"Patient","url":"/1","count":"12"},{"type":"Alien","url":"/2","count":-1},
                      {"url":"/3","count":4.0},{"type":"","url":"/4","count":null},{"type":"observation","url":"/5"}]}"#,
    )
    .unwrap();
    let files: Vec<_> = manifest.output.iter().map(|file| (file.name.as_str(), file.count)).collect();
    let expected = [
        ("Patient file 1 of 1", Some(12)),
        ("file of an unknown type 1 of 1", None),
        ("file 1 of 2", Some(4)),
        ("file 2 of 2", None),
        ("Observation file 1 of 1", None),
    ];
    assert_eq!(files, expected);
    let kinds: Vec<_> = manifest.output.iter().map(|file| file.kind).collect();
    let of = |name: &str| FileKind::Of(name.parse().unwrap());
    let expected = [of("Patient"), FileKind::Unknown, FileKind::Untyped, FileKind::Untyped, of("Observation")];
    assert_eq!(kinds, expected, "a type that FHIR does not know is not the same as no type");
}

/// (rule 58)
#[test]
fn a_file_listed_as_error_and_as_outcome_counts_once() {
    let manifest = read(r#"{"output":[],"error":[{"url":"/1"}],"outcome":[{"url":"/1"},{"url":"/2"}]}"#).unwrap();
    assert_eq!(manifest.outcomes.len(), 2);
}

/// (rule 67)
#[test]
fn a_link_may_be_an_object_and_only_a_next_one_is_followed() {
    let at: Url = "https://fhir.example.org/status/1".parse().unwrap();
    for (link, next) in [
        (r#"{"relation":"next","url":"/2"}"#, Some("https://fhir.example.org/2")),
        (
            r#"[{"relation":"self","url":"/1"},{"relation":"next","url":"2"}]"#,
            Some("https://fhir.example.org/status/2"),
        ),
        (r#"{"relation":"self","url":"/1"}"#, None),
        ("{}", None),
        ("null", None),
        (r#"[7,{"url":"/2"},{"relation":["next"]}]"#, None),
    ] {
        let body = format!(r#"{{"output":[],"link":{link}}}"#);
        let found = Pages::default().add(body.as_bytes(), &at).unwrap();
        assert_eq!(found.as_ref().map(Url::as_str), next, "{link}");
    }
}

/// (Q-37)
#[test]
fn issues_in_the_manifest_itself_are_outcomes() {
    for (issues, expected) in [
        (r#"[{"severity":"error","code":"not-found","diagnostics":"Jane Doe"}]"#, vec!["error (not-found)"]),
        (r#"{"severity":"warning","code":"value"}"#, vec!["warning (value)"]),
        ("[]", vec![]),
        ("null", vec![]),
        ("\"Jane Doe\"", vec!["unknown severity (no code)"]),
    ] {
        let manifest = read(&format!(r#"{{"output":[],"issues":{issues}}}"#)).unwrap();
        let found: Vec<_> = manifest.issues.0.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{issues}");
    }
}
