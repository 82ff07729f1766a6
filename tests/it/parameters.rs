//! The parameters of an export, from the configuration to the tables.

use std::collections::BTreeSet;

use fhir_sync::{
    demo::scenario::{Elements, Methods},
    export::{ExportParameters, Level},
    sync::{Mode, Outcome, TypeEnd},
};
use serde_json::json;

use crate::harness::{OBSERVATION, PATIENT, Setup};

fn set(values: &[&str]) -> BTreeSet<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

/// Half of the patients are men, and each has an observation.
async fn with_men() -> Setup {
    let mut setup = Setup::new().await;
    setup.export.reconciled.clear();
    setup.server.world(|world| {
        for number in 1..=5 {
            let gender = if number > 3 { "male" } else { "female" };
            world.put(PATIENT, &format!("p{number}"), json!({"gender": gender, "birthDate": "1970-01-01"}));
            let subject = json!({"reference": format!("Patient/p{number}")});
            world.put(OBSERVATION, &format!("o{number}"), json!({"status": "final", "subject": subject}));
        }
        world.advance(std::time::Duration::from_hours(1));
    });
    setup
}

fn since(setup: &Setup) -> Vec<bool> {
    setup.server.jobs().into_iter().map(|job| job.since.is_some()).collect()
}

/// Shows (rule 23).
#[tokio::test]
async fn a_filter_narrows_its_type_alone() {
    let mut setup = with_men().await;
    setup.export.parameters.type_filters = set(&["Patient?gender=male"]);
    let report = setup.complete().await;
    assert_eq!(report.types[&PATIENT].counts.inserted, 2);
    assert_eq!(report.types[&OBSERVATION].counts.inserted, 5);
}

/// Shows (rules 25 and 113).
#[tokio::test]
async fn another_filter_is_loaded_in_full_and_the_rows_of_the_one_before_stay() {
    let mut setup = with_men().await;
    setup.export.parameters.type_filters = set(&["Patient?gender=male"]);
    setup.complete().await;
    setup.export.parameters.type_filters = set(&["Patient?gender=female"]);
    let report = setup.complete().await;
    assert!(report.notes.iter().any(|note| note.contains("because _typeFilter has changed")), "{:?}", report.notes);
    assert_eq!(report.types[&PATIENT].counts.inserted, 3);
    assert_eq!(report.types[&PATIENT].counts.removed, 0);
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!((report.outcome, report.types[&PATIENT].counts.removed), (Outcome::Complete, 0));
    assert_eq!(since(&setup), [false, false, false]);
    setup.complete().await;
    assert!(since(&setup)[3], "the watermark of this filter");
}

/// Shows (rule 27, Q-16).
#[tokio::test]
async fn patients_are_exported_by_post_and_nobody_else() {
    let mut setup = with_men().await;
    setup.export.level = Level::Patient;
    setup.export.parameters.patients = set(&["p1", "p4"]);
    let report = setup.complete().await;
    let job = &setup.server.jobs()[0];
    assert_eq!(job.method, "POST");
    assert!(job.parameters.contains(&("patient".to_owned(), "Patient/p4".to_owned())), "{:?}", job.parameters);
    assert_eq!(report.types[&PATIENT].counts.inserted, 2);
    assert_eq!(report.types[&OBSERVATION].counts.inserted, 2);
}

/// Shows (rule 29, Q-15).
#[tokio::test]
async fn every_parameter_arrives_at_a_server_that_takes_only_post() {
    let mut setup = with_men().await;
    setup.server.scenario(|scenario| scenario.methods = Methods::Post);
    setup.export.parameters = ExportParameters {
        until: Some("2030-01-01T00:00:00.000Z".to_owned()),
        include_associated_data: set(&["http://example.org|LatestProvenanceResources"]),
        organize_output_by: Some("Patient".to_owned()),
        raw: [("_outputFormat".to_owned(), "application/fhir+ndjson".to_owned())].into(),
        ..ExportParameters::default()
    };
    setup.complete().await;
    setup.complete().await;
    setup.assert_same_as_server().await;
    let jobs = setup.server.jobs();
    let parameters: Vec<_> = jobs[0].parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        parameters,
        [
            "_type=Observation",
            "_type=Patient",
            "_until=2030-01-01T00:00:00.000Z",
            "includeAssociatedData=http://example.org|LatestProvenanceResources",
            "organizeOutputBy=Patient",
            "_outputFormat=application/fhir+ndjson",
        ]
    );
}

/// Shows.
#[tokio::test]
async fn a_full_load_with_an_initial_since_is_a_full_load() {
    let mut setup = with_men().await;
    setup.export.initial_since = Some("2020-02-13T00:00:00.000Z".to_owned());
    let report = setup.complete().await;
    assert!(matches!(report.types[&PATIENT].end, TypeEnd::Committed { .. }));
    assert_eq!(setup.server.jobs()[0].since.as_deref(), Some("2020-02-13T00:00:00.000Z"));
    setup.complete().await;
    assert!(setup.server.jobs()[1].since.as_deref() > Some("2026"), "afterwards the watermark counts");
    setup.run(Mode::FullRefresh).await;
    assert_eq!(setup.server.jobs()[2].since.as_deref(), Some("2020-02-13T00:00:00.000Z"));
    setup.export.initial_since = None;
    let report = setup.complete().await;
    assert!(report.notes.iter().any(|note| note.contains("initial_since was removed")), "{:?}", report.notes);
    assert_eq!(setup.server.jobs()[3].since, None);
    setup.assert_same_as_server().await;
}

/// Shows (rule 17, Q-71).
#[tokio::test]
async fn a_server_that_ignores_since_is_noted_once_and_the_run_is_complete() {
    let setup = with_men().await;
    setup.server.scenario(|scenario| scenario.ignores_since = true);
    let note = |notes: &[String]| notes.iter().filter(|note| note.contains("ignore _since")).count();
    assert_eq!(note(&setup.complete().await.notes), 0, "a full load has none");
    setup.later(|world| {
        for number in 1..=5 {
            world.put(PATIENT, &format!("new{number}"), json!({"gender": "female"}));
        }
    });
    assert_eq!(note(&setup.complete().await.notes), 1);
    setup.server.scenario(|scenario| scenario.ignores_since = false);
    assert_eq!(note(&setup.complete().await.notes), 0);
    setup.assert_same_as_server().await;
}

/// Shows (rule 26, Q-83).
#[tokio::test]
async fn a_row_with_some_elements_never_replaces_a_whole_one_whether_the_server_tags_it_or_not() {
    for elements in [Elements::Tagged, Elements::Untagged] {
        let mut setup = with_men().await;
        setup.complete().await;
        setup.server.scenario(|scenario| scenario.elements = elements);
        setup.export.parameters.elements = set(&["gender"]);
        setup.later(|world| {
            world.put(PATIENT, "p1", json!({"gender": "other", "birthDate": "1980-01-01"}));
            world.put(PATIENT, "new", json!({"gender": "male", "birthDate": "1990-01-01"}));
        });
        let counts = setup.complete().await.types[&PATIENT].counts;
        assert_eq!((counts.inserted, counts.updated), (1, 0), "{elements:?}: {counts:?}");
        setup.later(|world| _ = world.put(PATIENT, "new", json!({"gender": "other", "birthDate": "1990-01-01"})));
        let counts = setup.complete().await.types[&PATIENT].counts;
        assert_eq!(counts.updated, 1, "{elements:?}: one of its kind is replaced: {counts:?}");
        setup.export.parameters.elements.clear();
        setup.complete().await;
        setup.assert_same_as_server().await;
    }
}

#[tokio::test]
async fn elements_of_one_type_leave_the_rows_of_the_others_whole() {
    let mut setup = with_men().await;
    setup.complete().await;
    setup.export.parameters.elements = set(&["Patient.gender"]);
    setup.later(|world| _ = world.put(OBSERVATION, "o1", json!({"status": "amended"})));
    let report = setup.complete().await;
    assert_eq!(report.types[&OBSERVATION].counts.updated, 1, "{report:#?}");
}

/// A server that refuses patients, and names them or not.
async fn refusing_patients(is_named: bool, drops: bool) -> Setup {
    let mut setup = with_men().await;
    setup.export.types.push("Encounter".parse().unwrap());
    setup.server.world(|world| _ = world.put("Encounter".parse().unwrap(), "e1", json!({"status": "finished"})));
    setup.server.world(|world| world.advance(std::time::Duration::from_hours(1)));
    setup.complete().await;
    setup.config.drop_unsupported_types = drops;
    setup.server.scenario(|scenario| {
        scenario.refused_types.insert(PATIENT);
        scenario.names_refused_types = is_named;
    });
    setup
}

fn kick_offs(setup: &Setup) -> usize {
    setup.server.requests().iter().filter(|request| request.path.contains("$export")).count()
}

/// Shows.
#[tokio::test]
async fn a_type_that_the_server_names_as_unsupported_is_left_out_and_loaded_in_full_later() {
    let setup = refusing_patients(true, true).await;
    let before = (kick_offs(&setup), setup.watermark(PATIENT).await);
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    let TypeEnd::Unsupported { words } = &report.types[&PATIENT].end else { panic!("{report:#?}") };
    assert!(words.contains("resource type Patient is invalid for this type of export"), "{words}");
    assert!(report.remarks.iter().any(|remark| remark.contains("Patient is denied")), "{:?}", report.remarks);
    assert!(matches!(report.types[&OBSERVATION].end, TypeEnd::Committed { .. }));
    assert_eq!(kick_offs(&setup) - before.0, 2, "all of them, and all others");
    assert_eq!(setup.watermark(PATIENT).await, before.1, "its table is as it was");
    setup.server.scenario(|scenario| scenario.refused_types.clear());
    setup.complete().await;
    let full: Vec<_> = setup.server.jobs().into_iter().filter(|job| job.since.is_none()).map(|job| job.types).collect();
    assert_eq!(full.last(), Some(&vec![PATIENT]), "{full:?}");
    setup.assert_same_as_server().await;
}

/// Shows.
#[tokio::test]
async fn without_the_operator_s_word_an_unsupported_type_fails_with_the_server_s_words_and_keeps_its_watermark() {
    let setup = refusing_patients(true, false).await;
    let before = kick_offs(&setup);
    let report = setup.sync().await;
    assert_eq!(report.types[&PATIENT].end, TypeEnd::NotReached);
    assert!(report.remarks.iter().any(|remark| remark.contains("type Patient is invalid")), "{:?}", report.remarks);
    assert!(matches!(report.types[&OBSERVATION].end, TypeEnd::Committed { .. }));
    assert_eq!(kick_offs(&setup) - before, 2);
    setup.server.scenario(|scenario| scenario.refused_types.clear());
    setup.complete().await;
    assert!(setup.server.jobs().iter().rev().take(2).all(|job| job.since.is_some()), "nothing is loaded in full");
}

#[tokio::test]
async fn where_the_server_names_no_type_each_half_is_asked_for_and_nothing_is_left_out() {
    let setup = refusing_patients(false, true).await;
    let report = setup.sync().await;
    assert_eq!(report.types[&PATIENT].end, TypeEnd::NotReached);
    assert!(matches!(report.types[&OBSERVATION].end, TypeEnd::Committed { .. }));
}
