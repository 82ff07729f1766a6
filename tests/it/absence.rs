use fhir_sync::{
    export::Level,
    state::OpenState,
    sync::{Outcome, Report, TypeEnd},
};
use serde_json::json;

use crate::harness::{HOUR, OBSERVATION, PATIENT, Setup, end_of};

/// A server that leaves out all patients.
async fn without_patients() -> Setup {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| _ = scenario.left_out.insert(PATIENT));
    setup
}

/// The patients are no longer left out.
fn repair(setup: &Setup) {
    setup.server.scenario(|scenario| scenario.left_out.clear());
}

fn names(texts: &[String], what: &str) -> bool {
    texts.iter().any(|text| text.contains(what))
}

/// What the state file knows of the last full load is this much older.
fn time_passes(setup: &Setup, hours: i64) {
    let (mut open_state, _) = OpenState::open(&setup.state_file()).unwrap();
    let age = chrono::TimeDelta::hours(hours);
    let export = |state: &mut fhir_sync::state::State| {
        state.exports.get_mut("all").unwrap().unconfirmed.values_mut().for_each(|asked_at| *asked_at -= age);
    };
    open_state.update(export).unwrap();
}

async fn assert_repaired(setup: &Setup) -> Report {
    repair(setup);
    let report = setup.complete().await;
    assert_eq!(setup.server.jobs().last().unwrap().since, None, "all of it is asked for");
    setup.assert_same_as_server().await;
    report
}

/// (rule 21)
#[tokio::test]
async fn a_type_that_the_server_has_and_left_out_is_missing() {
    let setup = without_patients().await;
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    assert_eq!(end_of(&report, PATIENT), &TypeEnd::Missing { on_server: 5 });
    assert!(names(&report.remarks, "Patient is missing: the server has 5"), "{:?}", report.remarks);
    assert_eq!(setup.watermark(PATIENT).await, None);
    assert_repaired(&setup).await;
}

/// (rules 21 and 139, Q-82)
#[tokio::test]
async fn a_type_that_the_server_says_is_empty_is_complete() {
    let mut setup = Setup::new().await;
    setup.export.types.push("Device".parse().unwrap());
    let report = setup.complete().await;
    assert_eq!(report.unconfirmed(), []);
    setup.later(|world| _ = world.put("Device".parse().unwrap(), "d1", json!({})));
    setup.complete().await;
    assert_eq!(setup.server.jobs().len(), 2, "one increment for all types");
    setup.assert_same_as_server().await;
}

/// (rule 21)
#[tokio::test]
async fn a_type_of_which_nobody_can_say_anything_is_unconfirmed_and_asked_for_again_a_day_later() {
    let setup = without_patients().await;
    setup.server.scenario(|scenario| scenario.answers_counts = false);
    let report = setup.complete().await;
    assert_eq!((end_of(&report, PATIENT), setup.watermark(PATIENT).await), (&TypeEnd::Unconfirmed, None));
    assert!(names(&report.notes, "Patient is unconfirmed"), "{:?}", report.notes);
    time_passes(&setup, 23);
    let report = setup.complete().await;
    assert!(names(&report.notes, "Patient is unconfirmed"), "{:?}", report.notes);
    assert_eq!(setup.server.jobs()[1].types, [OBSERVATION]);
    time_passes(&setup, 1);
    assert_repaired(&setup).await;
    assert!(setup.complete().await.notes.is_empty());
}

/// (rule 139, Q-7)
#[tokio::test]
async fn an_empty_group_is_unconfirmed_although_the_server_has_patients() {
    let mut setup = without_patients().await;
    setup.export.level = Level::Group("nope".to_owned());
    let report = setup.complete().await;
    assert_eq!(end_of(&report, PATIENT), &TypeEnd::Unconfirmed);
}

/// (rules 21 and 98)
#[tokio::test]
async fn a_full_refresh_without_a_type_keeps_its_rows_and_says_so() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.server.scenario(|scenario| _ = scenario.left_out.insert(PATIENT));
    let report = setup.run(fhir_sync::sync::Mode::FullRefresh).await;
    assert_eq!(end_of(&report, PATIENT), &TypeEnd::Missing { on_server: 5 });
    repair(&setup);
    setup.assert_same_as_server().await;
}

/// All patients and observations are loaded, and the server has lost one of each without a word.
async fn loaded() -> Setup {
    let mut setup = Setup::new().await;
    setup.config.reconcile.max_missing = 5;
    setup.complete().await;
    setup.later(|world| {
        world.delete(PATIENT, "p1");
        world.advance(HOUR);
    });
    setup.server.scenario(|scenario| _ = scenario.left_out.insert(PATIENT));
    setup
}

/// (rule 21)
#[tokio::test]
async fn a_full_refresh_that_lacks_a_type_that_was_loaded_before_is_partial_and_made_up_for() {
    for answers_counts in [false, true] {
        let setup = loaded().await;
        setup.server.scenario(|scenario| scenario.answers_counts = answers_counts);
        let report = setup.run(fhir_sync::sync::Mode::FullRefresh).await;
        assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
        let end = if answers_counts { TypeEnd::Missing { on_server: 4 } } else { TypeEnd::LeftOut };
        assert_eq!(end_of(&report, PATIENT), &end);
        assert!(names(&report.remarks, "--allow-empty Patient") || answers_counts, "{report:#?}");
        let report = setup.sync().await;
        assert_eq!(
            (report.outcome, end_of(&report, PATIENT)),
            (Outcome::Partial, &end),
            "it is asked for again at once"
        );
        let report = assert_repaired(&setup).await;
        assert_eq!(report.types[&PATIENT].counts.removed, 1, "{report:#?}");
        assert!(setup.complete().await.notes.is_empty());
    }
}

/// (rules 21 and 139)
#[tokio::test]
async fn a_type_without_a_row_is_not_asked_for_by_each_sync_although_it_had_a_watermark() {
    let device = "Device".parse().unwrap();
    let mut setup = Setup::new().await;
    setup.export.types.push(device);
    setup.complete().await;
    assert!(setup.watermark(device).await.is_some(), "the server says that it has none");
    setup.server.scenario(|scenario| scenario.answers_counts = false);
    let asks = |setup: &Setup| setup.server.jobs().last().unwrap().types.contains(&device);
    setup.later(|_| ());
    setup.run(fhir_sync::sync::Mode::FullRefresh).await;
    for _ in 0..2 {
        let report = setup.complete().await;
        assert_eq!(end_of(&report, device), &TypeEnd::Unconfirmed, "{report:#?}");
        assert!(!asks(&setup), "not before sync.recheck_absent has passed");
        assert!(!names(&report.notes, "loaded in full"), "{report:#?}");
    }
    setup.later(|world| _ = world.put(device, "d1", json!({})));
    time_passes(&setup, 24);
    let report = setup.complete().await;
    assert!(asks(&setup) && names(&report.notes, "the last full load brought none of it"), "{report:#?}");
    setup.complete().await;
    assert_eq!(setup.server.jobs().last().unwrap().types.len(), 3, "one increment for all types");
    setup.assert_same_as_server().await;
}

/// (rules 21 and 107)
#[tokio::test]
async fn a_full_refresh_of_a_group_that_lacks_a_type_does_not_take_who_joined_for_loaded() {
    let of_group = |setup: &Setup, of: &[&str]| {
        let entity = |id: &&str| json!({"entity": {"reference": format!("Patient/{id}")}});
        let group = json!({"type": "person", "actual": true, "member": of.iter().map(entity).collect::<Vec<_>>()});
        setup.later(|world| {
            world.put(fhir_sync::fhir::ResourceType::GROUP, "diabetes", group);
            world.advance(24 * HOUR);
        });
    };
    let mut setup = Setup::new().await;
    setup.export.level = Level::Group("diabetes".to_owned());
    setup.export.reconciled.clear();
    setup.later(|world| {
        for number in 1..=3 {
            let of = json!({"status": "final", "subject": {"reference": format!("Patient/p{number}")}});
            world.put(OBSERVATION, &format!("o{number}"), of);
        }
    });
    of_group(&setup, &["p1"]);
    setup.complete().await;
    of_group(&setup, &["p1", "p2"]);
    setup.server.scenario(|scenario| _ = scenario.left_out.insert(OBSERVATION));
    let report = setup.run(fhir_sync::sync::Mode::FullRefresh).await;
    assert_eq!((report.outcome, end_of(&report, OBSERVATION)), (Outcome::Partial, &TypeEnd::LeftOut));
    repair(&setup);
    setup.complete().await;
    assert_eq!((setup.lines(PATIENT).await.len(), setup.lines(OBSERVATION).await.len()), (2, 2));
}
