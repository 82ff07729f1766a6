use std::collections::BTreeSet;

use fhir_sync::{
    demo::scenario::Alteration,
    fhir::ResourceType,
    state::{ExportState, OpenState, State},
    sync::{Leavers, Level, Mode, Outcome, Report, TypeEnd},
};
use serde_json::{Value, json};

use crate::harness::{Made, PATIENT, Setup, end_of, ndjson};

fn patient(number: usize) -> Value {
    json!({"resourceType": "Patient", "id": format!("p{number}"), "meta": {"lastUpdated": "2026-01-01T00:30:00Z"}})
}

fn observation() -> Value {
    json!({"resourceType": "Observation", "id": "o1", "status": "final"})
}

fn outcome(severity: &str) -> Value {
    json!({"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": "not-found"}]})
}

fn broken() -> Value {
    json!({"resourceType": "Patient", "gender": "female"})
}

/// Three patients and these lines in the file of the patients.
fn patients(besides: &[Value]) -> Made {
    let lines: Vec<_> = (1..=3).map(patient).chain(besides.iter().cloned()).collect();
    Made::default().output("Patient", None, &ndjson(&lines)).output("Observation", None, &ndjson([&observation()]))
}

/// Four patients are loaded; afterwards the server has three.
async fn loaded() -> Setup {
    let mut setup = Setup::new().await;
    setup.config.reconcile.max_missing = 5;
    setup.config.quarantine.max_quarantined = 5;
    patients(&[patient(4)]).serve(&setup);
    setup.complete().await;
    setup.later(|_| ());
    setup
}

async fn refreshed(setup: &Setup, made: Made) -> Report {
    made.serve(setup);
    setup.run(Mode::FullRefresh).await
}

fn says(report: &Report, part: &str) -> bool {
    report.remarks.iter().any(|remark| remark.contains(part))
}

fn change(setup: &Setup, change: impl FnOnce(&mut ExportState)) {
    let (mut open_state, _) = OpenState::open(&setup.state_file()).unwrap();
    open_state.update(|state: &mut State| change(state.exports.get_mut("all").unwrap())).unwrap();
}

async fn ids(setup: &Setup, of: ResourceType) -> BTreeSet<String> {
    let id = |line: String| serde_json::from_str::<Value>(&line).unwrap()["id"].as_str().unwrap().to_owned();
    setup.lines(of).await.into_iter().map(id).collect()
}

/// (rules 80 and 98)
#[tokio::test]
async fn a_full_refresh_of_organized_files_removes_the_rows_that_it_lacks() {
    let setup = loaded().await;
    let lines = [patient(1), patient(2), observation(), patient(3)];
    let report = refreshed(&setup, Made::default().output(None, None, &ndjson(&lines))).await;
    assert_eq!((report.outcome, report.types[&PATIENT].counts.removed), (Outcome::Complete, 1), "{report:#?}");
    assert_eq!(setup.lines(PATIENT).await.len(), 3);
}

/// (rules 80 and 112)
#[tokio::test]
async fn the_rows_of_who_leaves_are_removed_by_organized_files_as_well() {
    let members = |setup: &Setup, of: &[&str]| {
        let entity = |id: &&str| json!({"entity": {"reference": format!("Patient/{id}")}});
        let group = json!({"type": "person", "actual": true, "member": of.iter().map(entity).collect::<Vec<_>>()});
        setup.later(|world| _ = world.put(ResourceType::GROUP, "diabetes", group));
    };
    let mut setup = Setup::new().await;
    setup.export.level = Level::Group("diabetes".to_owned());
    setup.export.leavers = Leavers::Remove;
    setup.config.reconcile.max_missing = 10;
    setup.server.scenario(|scenario| scenario.alterations = vec![Alteration::Organized]);
    members(&setup, &["p1", "p2"]);
    setup.complete().await;
    members(&setup, &["p1"]);
    setup.complete().await;
    assert_eq!(ids(&setup, PATIENT).await, ["p1".to_owned()].into());
}

/// (rules 74, 79 and 98)
#[tokio::test]
async fn an_outcome_that_only_informs_and_a_line_that_nobody_asked_for_keep_no_row() {
    for besides in [outcome("information"), json!({"resourceType": "Practitioner", "id": "x"})] {
        let setup = loaded().await;
        let report = refreshed(&setup, patients(std::slice::from_ref(&besides))).await;
        assert_eq!((report.outcome, report.types[&PATIENT].counts.removed), (Outcome::Complete, 1), "{report:#?}");
    }
}

/// (rule 98)
#[tokio::test]
async fn rows_that_lines_in_quarantine_may_stand_for_are_kept_and_named_with_the_way_out() {
    let mut setup = loaded().await;
    let report = refreshed(&setup, patients(&[broken()])).await;
    assert_eq!((report.outcome, report.types[&PATIENT].counts.missing), (Outcome::Partial, 1), "{report:#?}");
    assert!(says(&report, "1 rows of Patient are missing in the full load and are kept: lines in quarantine"));
    assert!(says(&report, "fhir-sync sync --full-refresh --allow-empty Patient"), "{report:#?}");
    assert_eq!(setup.lines(PATIENT).await.len(), 4);
    setup.config.allow_empty = [PATIENT].into();
    let report = refreshed(&setup, patients(&[broken()])).await;
    assert_eq!(report.types[&PATIENT].counts.removed, 1, "by the operator's word: {report:#?}");
}

/// (rule 101)
#[tokio::test]
async fn an_accepted_error_in_the_place_of_a_resource_does_not_say_that_it_was_deleted() {
    let mut setup = loaded().await;
    setup.config.accept_reported_errors = ["not-found".to_owned()].into();
    let report = refreshed(&setup, patients(&[outcome("error")])).await;
    assert!(says(&report, "1 rows of Patient are missing in the full load and are kept: the server reported errors"));
    assert_eq!(setup.lines(PATIENT).await.len(), 4);
}

/// (rules 98 and 101)
#[tokio::test]
async fn an_accepted_error_among_the_outcomes_keeps_the_rows_of_the_types_that_it_concerns() {
    for (place, is_kept) in [(None, true), (Some("Patient.name"), true), (Some("Observation.code"), false)] {
        let mut setup = loaded().await;
        setup.config.accept_reported_errors = ["exception".to_owned()].into();
        let issue = json!({"severity": "error", "code": "exception", "expression": place.map(|place| [place])});
        let text = ndjson(&[json!({"resourceType": "OperationOutcome", "issue": [issue]})]);
        let report = refreshed(&setup, patients(&[]).error(1, &text)).await;
        let kept = "1 rows of Patient are missing in the full load and are kept: the server reported errors";
        assert_eq!(says(&report, kept), is_kept, "{place:?}: {report:#?}");
        assert_eq!(setup.lines(PATIENT).await.len(), if is_kept { 4 } else { 3 }, "{place:?}");
    }
}

/// (rules 98 and 100)
#[tokio::test]
async fn accepted_outcomes_that_are_missing_or_unreadable_keep_every_row() {
    for (code, count) in [("unreadable-outcome", 1), ("missing-outcome", 2)] {
        let mut setup = loaded().await;
        setup.config.accept_reported_errors = [code.to_owned()].into();
        let text = if count == 1 { "{}\n".to_owned() } else { ndjson(&[outcome("information")]) };
        refreshed(&setup, patients(&[]).error(count, &text)).await;
        assert_eq!(setup.lines(PATIENT).await.len(), 4, "{code}");
    }
}

/// (rules 79 and 98)
#[tokio::test]
async fn lines_in_files_of_another_type_do_not_say_that_the_others_were_deleted() {
    let setup = loaded().await;
    let lines = [observation(), patient(1), patient(2), patient(3)];
    let report = refreshed(&setup, Made::default().output("Observation", None, &ndjson(&lines))).await;
    assert!(says(&report, "its lines came in files of other types only"), "{report:#?}");
    assert_eq!(setup.lines(PATIENT).await.len(), 4);
}

/// (rules 80 and 101)
#[tokio::test]
async fn an_accepted_error_in_a_file_without_a_type_does_not_say_that_a_resource_was_deleted() {
    for of in [None, Some("Patients")] {
        let mut setup = loaded().await;
        setup.config.accept_reported_errors = ["not-found".to_owned()].into();
        let lines = [patient(1), patient(2), patient(3), observation(), outcome("error")];
        let report = refreshed(&setup, Made::default().output(of, None, &ndjson(&lines))).await;
        let kept = "1 rows of Patient are missing in the full load and are kept: the server reported errors";
        assert!(says(&report, kept), "{report:#?}");
        assert_eq!(setup.lines(PATIENT).await.len(), 4);
    }
}

/// (rules 79 and 98)
#[tokio::test]
async fn a_stray_line_in_a_file_of_an_unknown_type_or_of_none_does_not_say_that_the_others_were_deleted() {
    for of in [Some("Patients"), None] {
        let setup = loaded().await;
        let made = Made::default().output("Observation", None, &ndjson([&observation()]));
        let report = refreshed(&setup, made.output(of, None, &ndjson([&patient(1), &patient(2), &patient(3)]))).await;
        assert!(says(&report, "its lines came in files of other types only, or of none"), "{report:#?}");
        assert_eq!(setup.lines(PATIENT).await.len(), 4);
    }
    // Nor where the manifest states unknown types only.
    let setup = loaded().await;
    let made = Made::default().output("Observations", None, &ndjson([&observation(), &patient(1), &patient(2)]));
    let report = refreshed(&setup, made).await;
    assert!(says(&report, "2 rows of Patient are missing in the full load and are kept: its lines"), "{report:#?}");
}

/// (rules 79 and 98)
#[tokio::test]
async fn rows_that_may_be_in_a_file_of_an_unknown_type_that_was_not_read_are_kept() {
    let setup = loaded().await;
    patients(&[]).output("Patients", 9, &ndjson([&json!({"resourceType": "Custom", "id": "c"})])).serve(&setup);
    let report = setup.run(Mode::FullRefresh).await;
    let kept = "1 rows of Patient are missing in the full load and are kept: a file of a type that FHIR does not know";
    assert!(says(&report, kept), "{report:#?}");
    assert_eq!(setup.lines(PATIENT).await.len(), 4);
}

#[tokio::test]
async fn a_gap_is_not_named_where_no_row_is_missing() {
    let setup = loaded().await;
    let report = refreshed(&setup, patients(&[patient(4), broken()])).await;
    assert!(!says(&report, "missing"), "{report:#?}");
    assert_eq!(report.types[&PATIENT].quarantined, 1);
}

#[tokio::test]
async fn a_full_refresh_with_a_line_in_quarantine_follows_a_server_that_was_restored_from_a_backup() {
    let setup = loaded().await;
    let mut newer = patient(1);
    newer["meta"]["lastUpdated"] = "2026-01-01T01:30:00Z".into();
    patients(&[newer, patient(4)]).serve(&setup);
    setup.complete().await;
    setup.later(|_| ());
    let report = refreshed(&setup, patients(&[patient(4), broken()])).await;
    let counts = report.types[&PATIENT].counts;
    assert_eq!((counts.overruled, counts.updated, counts.stale), (1, 1, 0), "{report:#?}");
}

/// A table was restored, and the load that makes up for it has a gap.
#[tokio::test]
async fn rows_that_a_load_in_full_has_kept_are_named_until_one_without_a_gap() {
    let mut setup = loaded().await;
    setup.export.types = vec![PATIENT];
    let kept = "Patient was loaded in full, because its table was restored, and kept 1 rows";
    change(&setup, |state| _ = state.reload.insert(PATIENT, "its table was restored".into()));
    patients(&[broken()]).serve(&setup);
    assert!(says(&setup.sync().await, "lines in quarantine may be theirs"));
    for _ in 0..2 {
        patients(&[]).serve(&setup);
        let report = setup.sync().await;
        assert!(report.outcome == Outcome::Partial && says(&report, kept), "{report:#?}");
        assert!(setup.server.jobs().last().unwrap().since.is_some(), "what changed is asked for meanwhile");
    }
    // A day later.
    let day = chrono::TimeDelta::days(1);
    change(&setup, |state| state.kept_rows.values_mut().for_each(|kept| kept.loaded_at -= day));
    patients(&[]).serve(&setup);
    assert_eq!(setup.complete().await.types[&PATIENT].counts.removed, 1);
    let report = setup.complete().await;
    assert!(report.notes.iter().all(|note| note.contains("in quarantine")), "{report:#?}");
}

/// (rules 21 and 95)
#[tokio::test]
async fn a_full_load_with_deletions_only_does_not_say_that_a_type_is_empty() {
    let setup = Setup::new().await;
    let entry = json!({"request": {"method": "DELETE", "url": "Patient/p9"}});
    let bundle = json!({"resourceType": "Bundle", "type": "transaction", "entry": [entry]});
    Made::default()
        .output("Observation", None, &ndjson([&observation()]))
        .deleted(None, &ndjson([&bundle]))
        .serve(&setup);
    let report = setup.sync().await;
    assert_eq!(end_of(&report, PATIENT), &TypeEnd::Missing { on_server: 5 }, "{report:#?}");
    assert_eq!(setup.watermark(PATIENT).await, None);
}
