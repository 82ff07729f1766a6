use async_compression::tokio::bufread::GzipEncoder;
use base64::{Engine as _, engine::general_purpose::STANDARD};

use fhir_sync::{
    demo::{Fault, StatusCode},
    fhir::ResourceType,
    sync::{Mode, Outcome, TypeEnd},
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::harness::{Made, OBSERVATION, PATIENT, Setup, end_of, failure, ndjson};

const BINARY: ResourceType = ResourceType::BINARY;

fn patient(id: &str) -> Value {
    json!({"resourceType": "Patient", "id": id, "gender": "female"})
}

fn observation(id: &str) -> Value {
    json!({"resourceType": "Observation", "id": id, "status": "final"})
}

fn outcome(severity: &str, code: &str) -> Value {
    json!({"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": code, "diagnostics": "s3cret"}]})
}

fn is_committed(end: &TypeEnd) -> bool {
    matches!(end, TypeEnd::Committed { .. })
}

/// (rule 74, Q-50)
#[tokio::test]
async fn an_operation_outcome_in_the_place_of_a_file_holds_the_type_until_its_rows_arrive() {
    let setup = Setup::new().await;
    Made::default()
        .output("Observation", None, &ndjson([&outcome("error", "exception")]))
        .output("Patient", None, &ndjson([&patient("p1")]))
        .serve(&setup);
    let report = setup.sync().await;
    assert_eq!((report.outcome, report.types[&OBSERVATION].outcomes), (Outcome::Partial, 1));
    assert!(report.causes().iter().any(|cause| cause.contains("error (exception)")), "{report:#?}");
    assert_eq!((setup.watermark(OBSERVATION).await, setup.quarantine().await.len()), (None, 0));
    assert!(is_committed(end_of(&report, PATIENT)), "{report:#?}");
    setup.complete().await;
    assert_eq!(setup.lines(OBSERVATION).await.len(), 4);
}

/// (rule 74, Q-50)
#[tokio::test]
async fn an_operation_outcome_that_is_a_warning_holds_the_type_and_information_does_not() {
    for (severity, is_held) in [("warning", true), ("WARNING", true), ("information", false), ("unheard-of", true)] {
        let setup = Setup::new().await;
        let lines = [patient("p1"), patient("p2"), outcome(severity, "informational")];
        Made::default()
            .output("Patient", 3, &ndjson(&lines))
            .output("Observation", 1, &ndjson([&observation("o1")]))
            .serve(&setup);
        let report = setup.sync().await;
        assert_eq!(setup.watermark(PATIENT).await.is_none(), is_held, "{severity}");
        assert!(is_committed(end_of(&report, OBSERVATION)), "{severity}: {report:#?}");
        assert_eq!((setup.lines(PATIENT).await.len(), report.types[&PATIENT].outcomes), (2, 1), "{severity}");
    }
}

/// (rules 4 and 79, Q-40, Q-50)
#[tokio::test]
async fn a_line_goes_to_the_table_of_the_type_that_it_states() {
    let setup = Setup::new().await;
    let mixed = [
        patient("p1"),
        observation("o1"),
        observation("o2"),
        patient("p2"),
        json!({"resourceType": "Practitioner", "id": "x"}),
    ];
    Made::default().output("Patient", 5, &ndjson(&mixed)).serve(&setup);
    let report = setup.sync().await;
    assert_eq!((setup.lines(PATIENT).await.len(), setup.lines(OBSERVATION).await.len()), (2, 2));
    let (patients, observations) = (&report.types[&PATIENT], &report.types[&OBSERVATION]);
    assert_eq!((patients.received, patients.not_wanted, patients.quarantined), (3, 1, 0));
    assert_eq!((observations.received, observations.rerouted), (2, 2));
    assert!(setup.watermark(PATIENT).await.is_some());
    assert_eq!(setup.quarantine().await.len(), 0);
}

/// (rule 79)
#[tokio::test]
async fn a_file_of_resources_that_nobody_wants_in_the_place_of_wanted_ones_holds_the_type() {
    let setup = Setup::new().await;
    let practitioner = json!({"resourceType": "Practitioner", "id": "x"});
    Made::default().output("Patient", 1, &ndjson([&practitioner])).serve(&setup);
    let report = setup.sync().await;
    assert_eq!((report.outcome, setup.watermark(PATIENT).await), (Outcome::Partial, None));
}

/// (rules 59 and 80)
#[tokio::test]
async fn an_organized_file_is_read_line_by_line_and_its_headers_are_not_rows() {
    let setup = Setup::new().await;
    let header = json!({"resourceType": "Parameters", "parameter": [{"name": "header", "valueReference": {"reference": "Patient/p1"}}]});
    let custom = json!({"resourceType": "AidboxThing", "id": "1"});
    let lines = [header.clone(), patient("p1"), observation("o1"), header, patient("p2"), observation("o1"), custom];
    Made::default().output(None, 5, &ndjson(&lines)).serve(&setup);
    let report = setup.complete().await;
    assert_eq!((setup.lines(PATIENT).await.len(), setup.lines(OBSERVATION).await.len()), (2, 1));
    assert_eq!((report.types[&OBSERVATION].rerouted, report.types[&OBSERVATION].counts.duplicate), (2, 1));
    assert!(setup.watermark(PATIENT).await.is_some());
}

#[tokio::test]
async fn an_outcome_in_a_file_without_a_type_holds_every_type() {
    let setup = Setup::new().await;
    Made::default().output(None, None, &ndjson([&patient("p1"), &outcome("error", "x")])).serve(&setup);
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    assert_eq!((setup.watermark(PATIENT).await, setup.watermark(OBSERVATION).await), (None, None));
    assert_eq!(setup.lines(PATIENT).await.len(), 1);
}

/// (rule 4)
#[tokio::test]
async fn a_file_of_a_type_that_fhir_does_not_know_concerns_nobody() {
    let setup = Setup::new().await;
    Made::default()
        .output("Patient", 1, &ndjson([&patient("p1")]))
        .output("AidboxThing", 1, "{\"resourceType\":\"AidboxThing\",\"id\":\"1\"}\n")
        .output("Observation", 1, &ndjson([&observation("o1")]))
        .serve(&setup);
    setup.complete().await;
    assert!(setup.watermark(PATIENT).await.is_some());
}

/// (rules 4 and 79)
#[tokio::test]
async fn whatever_is_wrong_with_a_file_of_an_unknown_type_without_a_wanted_line_is_noted_and_holds_nothing() {
    let forbidden = Fault::Status {
        path_contains: "output.2.".to_owned(),
        status: StatusCode::FORBIDDEN,
        times: 100,
        retry_after: None,
        body: String::new(),
    };
    let custom = json!({"resourceType": "AidboxThing", "id": "1"});
    let too_long = format!("{{\"id\":\"{}\"}}\n", "x".repeat(3000));
    for (text, what, faults) in [
        (ndjson([&json!({"id": "1"}), &json!({"id": "2"})]), "2 of 2 lines are not its resources", vec![]),
        (ndjson([&custom, &custom, &json!({"id": "1"})]), "1 line is not a resource", vec![]),
        (ndjson([&custom, &outcome("error", "exception")]), "the server reported missing data", vec![]),
        (format!("{}{too_long}", ndjson([&custom])), "it was not kept;", vec![]),
        (String::new(), "rows may be missing", vec![forbidden]),
    ] {
        let mut setup = Setup::new().await;
        setup.config.max_line_bytes = 2000;
        Made::default()
            .output("Patient", 1, &ndjson([&patient("p1")]))
            .output("Observation", 1, &ndjson([&observation("o1")]))
            .output("AidboxThing", None, &text)
            .serve(&setup);
        setup.server.scenario(|scenario| scenario.faults = [faults, scenario.faults.clone()].concat());
        let report = setup.complete().await;
        let says = |note: &String| note.contains(what) && note.contains("it holds no watermark");
        assert!(report.notes.iter().any(says), "{what}: {report:#?}");
        assert!(setup.watermark(PATIENT).await.is_some(), "{what}");
    }
}

/// (rule 79)
#[tokio::test]
async fn a_file_of_an_unknown_type_with_a_wanted_line_holds_every_type_if_it_is_not_whole() {
    let setup = Setup::new().await;
    Made::default()
        .output("Patient", 1, &ndjson([&patient("p1")]))
        .output("Observations", 2, &ndjson([&observation("o1")]))
        .serve(&setup);
    let report = setup.sync().await;
    assert_eq!((report.outcome, setup.watermark(PATIENT).await), (Outcome::Partial, None), "{report:#?}");
}

/// (rule 79)
#[tokio::test]
async fn a_file_of_an_unknown_type_that_is_cut_before_a_wanted_line_holds_every_type() {
    let setup = Setup::new().await;
    let cut = format!("{}{{\"resourceTy", ndjson([&json!({"resourceType": "AidboxThing", "id": "1"})]));
    let made = Made::default().output("Patient", 1, &ndjson([&patient("p1")])).output("Things", None, &cut);
    made.serve(&setup);
    let report = setup.sync().await;
    assert_eq!((report.outcome, setup.watermark(PATIENT).await), (Outcome::Partial, None), "{report:#?}");
}

/// (rule 79)
#[tokio::test]
async fn a_file_whose_type_fhir_does_not_know_is_read_line_by_line() {
    let setup = Setup::new().await;
    Made::default()
        .output("Patient", 1, &ndjson([&patient("p1")]))
        .output("Observations", 2, &ndjson([&observation("o1"), &observation("o2")]))
        .serve(&setup);
    setup.complete().await;
    assert_eq!((setup.lines(PATIENT).await.len(), setup.lines(OBSERVATION).await.len()), (1, 2));
}

fn envelope(data: &[u8]) -> String {
    json!({"resourceType": "Binary", "contentType": "application/fhir+ndjson", "data": STANDARD.encode(data)})
        .to_string()
}

/// (Q-41, Q-78)
#[tokio::test]
async fn an_envelope_is_opened_whether_it_is_compressed_or_not() {
    let lines = ndjson([&patient("p1"), &patient("p2")]);
    let mut gzip = Vec::new();
    GzipEncoder::new(lines.as_bytes()).read_to_end(&mut gzip).await.unwrap();
    for text in [envelope(lines.as_bytes()), envelope(&gzip)] {
        let setup = Setup::new().await;
        Made::default()
            .output("Patient", 2, &text)
            .output("Observation", 1, &ndjson([&observation("o1")]))
            .serve(&setup);
        let report = setup.complete().await;
        assert_eq!((setup.lines(PATIENT).await.len(), report.types[&PATIENT].received), (2, 2));
    }
}

/// (Q-41, Q-78)
#[tokio::test]
async fn an_envelope_that_cannot_be_opened_holds_the_type_and_is_kept() {
    let nested = envelope(envelope(ndjson([&patient("p1")]).as_bytes()).as_bytes());
    for text in [envelope(b"{\"resourceType\":\"Pat"), r#"{"resourceType":"Binary","id":"b1"}"#.to_owned(), nested] {
        let setup = Setup::new().await;
        Made::default().output("Patient", None, &text).serve(&setup);
        assert_eq!(setup.sync().await.outcome, Outcome::Partial, "{text}");
        assert_eq!((setup.watermark(PATIENT).await, setup.quarantine().await.len()), (None, 1), "{text}");
    }
}

/// (Q-78)
#[tokio::test]
async fn a_file_of_binaries_is_unpacked_and_binaries_that_hold_lines_are_not() {
    let inner = |id: &str| json!({"resourceType": "Binary", "id": id, "contentType": "text/plain", "data": "QQ=="});
    let lines = ndjson([&inner("b1"), &inner("b2")]);
    let outer = |id: Option<&str>, content_type: &str, data: &str| {
        let mut binary = json!({"resourceType": "Binary", "contentType": content_type, "data": STANDARD.encode(data)});
        if let Some(id) = id {
            binary["id"] = id.into();
        }
        format!("{binary}\n")
    };
    let (ndjson_type, of_url) = ("application/fhir+ndjson", "output.0.ndjson");
    let real = outer(Some("r"), ndjson_type, &lines);
    for (count, text, ids) in [
        (None, outer(None, ndjson_type, &lines), &["b1", "b2"][..]),
        (Some(2), outer(None, ndjson_type, &lines), &["b1", "b2"]),
        (None, outer(Some(of_url), ndjson_type, &lines), &["b1", "b2"]),
        (Some(2), outer(Some("r"), ndjson_type, &lines), &["b1", "b2"]),
        // A resource that holds NDJSON, alone or with others, and one with the id of the file that holds a text.
        (Some(1), real.clone(), &["r"]),
        (None, real.clone(), &["r"]),
        (Some(2), format!("{real}{}\n", inner("b3")), &["b3", "r"]),
        (None, outer(Some(of_url), "text/plain", &lines), &[of_url]),
    ] {
        let mut setup = Setup::new().await;
        setup.export.types = vec![BINARY];
        Made::default().output("Binary", count, &text).serve(&setup);
        setup.complete().await;
        let of_line = |line: &String| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        let mut stored: Vec<_> = setup.lines(BINARY).await.iter().map(of_line).collect();
        stored.sort();
        assert_eq!(stored, ids, "{count:?} {text}");
    }
}

#[tokio::test]
async fn a_resource_that_is_printed_over_several_lines_is_one_row() {
    let setup = Setup::new().await;
    let pretty = serde_json::to_string_pretty(&json!({
        "resourceType": "Patient", "id": "p1", "name": [{"family": "A}{\"", "given": ["B", "C"]}],
    }));
    let text = format!("{}\n{}", pretty.unwrap(), ndjson([&patient("p2")]));
    Made::default().output("Patient", 2, &text).output("Observation", 1, &ndjson([&observation("o1")])).serve(&setup);
    let report = setup.complete().await;
    assert_eq!((setup.lines(PATIENT).await.len(), report.types[&PATIENT].received), (2, 2));
}

/// (rule 86)
#[tokio::test]
async fn lines_that_are_broken_for_the_most_part_hold_the_watermark_however_few_they_are() {
    let mut setup = Setup::new().await;
    setup.config.quarantine.max_quarantined = 20;
    setup.complete().await;
    let before = setup.watermark(PATIENT).await;
    setup.later(|_| {});
    let broken = |id: &str| format!("{{\"resourceType\":\"Patient\",\"id\":\"{id}\",}}\n");
    let text = (1..=15).map(|number| broken(&format!("n{number}"))).collect::<String>();
    Made::default().output("Patient", 15, &text).output("Observation", 0, "").serve(&setup);
    let report = setup.sync().await;
    assert_eq!((report.outcome, report.types[&PATIENT].quarantined), (Outcome::Partial, 15));
    assert_eq!(setup.watermark(PATIENT).await, before);
    assert_ne!(setup.watermark(OBSERVATION).await, before);
}

/// (rule 86)
#[tokio::test]
async fn one_file_that_is_broken_for_the_most_part_holds_the_watermark_of_many_good_ones() {
    let mut setup = Setup::new().await;
    setup.config.quarantine.max_quarantined = 20;
    let good: Vec<_> = (1..=9).map(|number| patient(&format!("n{number}"))).collect();
    Made::default().output("Patient", 9, &ndjson(&good)).output("Patient", 1, "{\"id\":\"x\"}\n").serve(&setup);
    setup.sync().await;
    assert_eq!((setup.watermark(PATIENT).await, setup.lines(PATIENT).await.len()), (None, 9));
}

/// (rule 56, Q-48)
#[tokio::test]
async fn a_file_that_is_not_whole_is_read_again_once() {
    let lines = [patient("p1"), patient("p2"), patient("p3")];
    let whole = ndjson(&lines);
    let cut_line = &whole[..whole.len() - 10];
    let cut_between_lines = ndjson(&lines[..2]);
    for (count, first) in [(None, cut_line), (Some(3), cut_between_lines.as_str())] {
        let setup = Setup::new().await;
        Made::default()
            .changing("Patient", count, &[first, &whole])
            .output("Observation", 1, &ndjson([&observation("o1")]))
            .serve(&setup);
        let report = setup.complete().await;
        assert_eq!((report.types[&PATIENT].received, report.types[&PATIENT].counts.inserted), (3, 3));
        assert_eq!(setup.lines(PATIENT).await.len(), 3);

        let setup = Setup::new().await;
        Made::default().output("Patient", count, first).serve(&setup);
        failure(&setup.sync().await, PATIENT);
        assert_eq!(setup.watermark(PATIENT).await, None);
    }
}

#[tokio::test]
async fn nothing_more_is_fetched_for_a_type_that_has_failed() {
    let mut setup = Setup::new().await;
    setup.config.parallel_downloads = 1;
    let made = Made::default().output("Patient", 9, &ndjson([&patient("p1")]));
    let good = ndjson([&patient("p2")]);
    (0..5).fold(made, |made, _| made.output("Patient", 1, &good)).serve(&setup);
    failure(&setup.sync().await, PATIENT);
    assert_eq!(setup.file_requests(), 2, "the first file, twice");
}

#[tokio::test]
async fn where_files_are_mixed_a_file_that_was_not_read_holds_all_types() {
    let setup = Setup::new().await;
    // The second file is short at both readings; what it lacks may be an Observation.
    Made::default()
        .output("Patient", 2, &ndjson([&patient("p1"), &observation("o1")]))
        .output("Patient", 9, &ndjson([&patient("p2")]))
        .output("Observation", 1, &ndjson([&observation("o2")]))
        .serve(&setup);
    let report = setup.sync().await;
    assert!(failure(&report, PATIENT).contains("announced"), "{}", failure(&report, PATIENT));
    assert_eq!(setup.lines(OBSERVATION).await.len(), 2);
    assert_eq!(setup.watermark(OBSERVATION).await, None, "{report:#?}");
    assert!(report.remarks.iter().any(|remark| remark.contains("lines of other types")), "{report:#?}");
}

#[tokio::test]
async fn a_full_refresh_removes_no_row_of_a_type_with_bad_lines_in_files_of_others() {
    let mut setup = Setup::new().await;
    setup.config.reconcile.max_missing = 20;
    setup.config.quarantine.max_quarantined = 20;
    let both = [observation("o1"), observation("o2")];
    Made::default()
        .output("Patient", None, &ndjson([&patient("p1")]))
        .output("Observation", None, &ndjson(&both))
        .serve(&setup);
    setup.complete().await;
    let bad = json!({"resourceType": "Observation", "status": "final"});
    Made::default()
        .output("Patient", None, &ndjson([&patient("p1"), &patient("p2"), &patient("p3"), &bad]))
        .output("Observation", None, &ndjson([&observation("o2")]))
        .serve(&setup);
    setup.run(Mode::FullRefresh).await;
    assert_eq!(setup.lines(OBSERVATION).await.len(), 2, "the bad line may be that of the other");
}
