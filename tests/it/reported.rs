use fhir_sync::sync::{Outcome, TypeEnd};
use serde_json::{Value, json};

use crate::harness::{Made, OBSERVATION, PATIENT, Setup, end_of};

fn both() -> Made {
    Made::default().output("Patient", 1, "{\"resourceType\":\"Patient\",\"id\":\"n1\"}\n").output(
        "Observation",
        1,
        "{\"resourceType\":\"Observation\",\"id\":\"n1\"}\n",
    )
}

fn outcome(issue: &Value) -> String {
    json!({"resourceType": "OperationOutcome", "issue": issue}).to_string() + "\n"
}

/// (rules 100 and 101)
#[tokio::test]
async fn an_outcome_in_any_shape_that_is_not_an_all_clear_holds_every_watermark() {
    for text in [
        outcome(&json!({"severity": "error", "code": "processing"})),
        outcome(&json!([{"severity": "ERROR", "code": "processing"}])),
        outcome(&json!([{"severity": "error", "code": {"coding": [{"code": "processing"}]}}])),
        outcome(&json!([{"severity": "error", "code": null}])),
        outcome(&json!([{"severity": "catastrophe"}])),
        outcome(&json!([])),
        "{\"error\":{\"code\":1}}\n".to_owned(),
        "{\"resourceType\":\"Patient\",\"id\":\"x\"}\n".to_owned(),
        "{\"resourceType\":\"OperationOutcome\",\"issue\":[{\"severity\":\"er\n".to_owned(),
    ] {
        let setup = Setup::new().await;
        both().error(None, &text).serve(&setup);
        let report = setup.sync().await;
        assert_eq!(report.outcome, Outcome::Partial, "{text}");
        assert_eq!((setup.watermark(PATIENT).await, setup.watermark(OBSERVATION).await), (None, None), "{text}");
        assert_eq!(setup.lines(PATIENT).await.len(), 1, "{text}");
    }
}

/// (rule 100)
#[tokio::test]
async fn fewer_outcomes_than_announced_hold_every_watermark() {
    let setup = Setup::new().await;
    both().error(2, &outcome(&json!([{"severity": "information", "code": "informational"}]))).serve(&setup);
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    assert_eq!(setup.watermark(PATIENT).await, None);
}

/// (rule 101)
#[tokio::test]
async fn an_error_that_names_its_types_holds_those_only() {
    let setup = Setup::new().await;
    let issue = json!([{"severity": "error", "code": "processing", "expression": ["Observation.code"]}]);
    both().error(1, &outcome(&issue)).serve(&setup);
    let report = setup.sync().await;
    assert!(matches!(end_of(&report, OBSERVATION), TypeEnd::WatermarkHeld { .. }), "{report:#?}");
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::Committed { .. }), "{report:#?}");
}

/// Such as the place in a Bundle of which nobody else knows. (rule 101)
#[tokio::test]
async fn an_error_that_names_no_type_of_the_export_holds_every_watermark() {
    for place in ["Bundle.entry[3]", "Parameters.parameter[0]", "Practitioner/1"] {
        let setup = Setup::new().await;
        let issue = json!([{"severity": "error", "code": "processing", "expression": [place]}]);
        both().error(1, &outcome(&issue)).serve(&setup);
        setup.sync().await;
        assert_eq!((setup.watermark(PATIENT).await, setup.watermark(OBSERVATION).await), (None, None), "{place}");
    }
}

/// It may name the resource that the missing one refers to. (rule 101)
#[tokio::test]
async fn an_error_in_the_place_of_a_resource_holds_the_type_of_its_file_whatever_it_names() {
    let setup = Setup::new().await;
    let issue = json!([{"severity": "error", "code": "exception", "expression": ["Patient/123"]}]);
    both().output("Observation", 1, &outcome(&issue)).serve(&setup);
    setup.sync().await;
    assert_eq!((setup.watermark(PATIENT).await, setup.watermark(OBSERVATION).await), (None, None));
}

/// (rule 101)
#[tokio::test]
async fn the_operator_may_accept_codes_of_errors_and_the_report_says_what_was_accepted() {
    let mut setup = Setup::new().await;
    let accepted = ["not-supported", "unreadable-outcome", "missing-outcome"];
    setup.config.accept_reported_errors = accepted.map(str::to_owned).into();
    let text = outcome(&json!([{"severity": "error", "code": "not-supported"}])) + "{}\n";
    both().error(3, &text).serve(&setup);
    let report = setup.complete().await;
    assert_eq!(
        report.accepted,
        accepted
            .map(|code| format!("outcome file 1 of 1: 1 times {code}"))
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    );

    let setup = Setup::new().await;
    both().error(None, &text).serve(&setup);
    assert_eq!(setup.sync().await.outcome, Outcome::Partial, "nothing is accepted by default");
}

#[tokio::test]
async fn no_text_of_an_outcome_is_printed_where_it_is_not_a_code() {
    let setup = Setup::new().await;
    let issue = json!([{"severity": "error", "code": "\u{1b}[31mMustermann", "diagnostics": "Mustermann"}]);
    both().error(1, &outcome(&issue)).serve(&setup);
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(3), "{}", ended.output());
    assert!(ended.output().contains("error (unprintable code)"), "{}", ended.output());
    assert!(!ended.output().contains("Mustermann"), "{}", ended.output());
}

/// (rule 101)
#[tokio::test]
async fn what_the_server_warns_of_is_noted_once_and_the_run_is_complete() {
    let setup = Setup::new().await;
    let warnings = json!([
        {"severity": "warning", "code": "incomplete"},
        {"severity": "information", "code": "informational"},
        {"severity": "warning", "code": "throttled"},
    ]);
    both().error(20, &outcome(&warnings).repeat(20)).serve(&setup);
    let report = setup.complete().await;
    let noted: Vec<_> = report.notes.iter().filter(|note| note.contains("the server warned")).collect();
    assert_eq!(noted.len(), 1, "{report:#?}");
    assert!(noted[0].contains("40 times") && noted[0].contains("warning (incomplete)"), "{noted:?}");
}
