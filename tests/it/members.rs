use std::collections::{BTreeMap, BTreeSet};

use fhir_sync::{
    demo::{Fault, RecordedRequest, StatusCode, World},
    fhir::ResourceType,
    state::{AwaitedPatient, peek},
    sync::{Joiners, Leavers, Level, Mode, Outcome, Report},
};
use serde_json::json;

use crate::harness::{Made, OBSERVATION, PATIENT, Setup, eventually};

pub const GROUP: &str = "diabetes";

pub fn set_members(world: &mut World, members: &[&str]) {
    let members: Vec<_> = members.iter().map(|id| json!({"entity": {"reference": format!("Patient/{id}")}})).collect();
    world.put(ResourceType::GROUP, GROUP, json!({"type": "person", "actual": true, "member": members}));
}

/// Five patients with an observation each, all from long ago; p1 and p2 are in the group, whose export was loaded.
async fn loaded() -> Setup {
    let mut setup = Setup::new().await;
    setup.export.level = Level::Group(GROUP.to_owned());
    setup.export.reconciled.clear();
    setup.later(|world| {
        for number in 1..=5 {
            let of = json!({"status": "final", "subject": {"reference": format!("Patient/p{number}")}});
            world.put(OBSERVATION, &format!("o{number}"), of);
        }
        set_members(world, &["p1", "p2"]);
        world.advance(std::time::Duration::from_hours(24));
    });
    setup.complete().await;
    assert_eq!(ids(&setup, PATIENT).await, ["p1", "p2"]);
    setup
}

fn fault(path: &str, status: StatusCode, times: u32) -> Fault {
    Fault::Status { path_contains: path.to_owned(), status, times, retry_after: None, body: String::new() }
}

fn unwell(path: &str) -> Fault {
    fault(path, StatusCode::SERVICE_UNAVAILABLE, 1_000_000)
}

/// The files of this job are gone.
fn without_files(job: usize) -> Fault {
    fault(&format!("bulkfiles/{job}/"), StatusCode::NOT_FOUND, 1_000)
}

/// A sync against a server that exports no patients by name: the kick-off after this many jobs is refused.
async fn sync_without_names(setup: &Setup, jobs: usize) -> Report {
    let others = async {
        eventually("the other jobs", async || (setup.server.jobs().len() == jobs).then_some(())).await;
        let refused = fault("$export", StatusCode::BAD_REQUEST, 1);
        setup.server.scenario(|scenario| scenario.faults = vec![refused]);
    };
    setup.server.scenario(|scenario| scenario.polls_before_done = 3);
    let (report, ()) = tokio::join!(setup.sync(), others);
    assert_eq!(report.outcome, Outcome::Partial, "nothing was asked for yet: {report:#?}");
    assert!(report.remarks.iter().any(|remark| remark.contains("missing until the next sync")), "{report:#?}");
    report
}

async fn ids(setup: &Setup, of: ResourceType) -> Vec<String> {
    let id =
        |line: String| serde_json::from_str::<serde_json::Value>(&line).unwrap()["id"].as_str().unwrap().to_owned();
    setup.lines(of).await.into_iter().map(id).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Those with a body, as patients are named in one.
fn posted(setup: &Setup) -> Vec<RecordedRequest> {
    setup.server.requests().into_iter().filter(|request| request.method == "POST").collect()
}

fn awaited(setup: &Setup) -> BTreeMap<String, AwaitedPatient> {
    let state = peek(&setup.state_file()).unwrap().exports.remove("all").unwrap();
    state.awaited_patients.into_values().next().unwrap_or_default()
}

fn has_note(report: &Report, part: &str) {
    assert!(report.notes.iter().any(|note| note.contains(part)), "{part:?} is not in {:?}", report.notes);
}

/// (rules 107, 108, 109 and 111, Q-18)
#[tokio::test]
async fn who_joins_a_group_gets_the_history_that_since_does_not_bring() {
    let setup = loaded().await;
    setup.later(|world| set_members(world, &["p1", "p2", "p3", "p4"]));
    let report = setup.complete().await;
    assert_eq!(ids(&setup, PATIENT).await, ["p1", "p2", "p3", "p4"]);
    assert_eq!(ids(&setup, OBSERVATION).await, ["o1", "o2", "o3", "o4"]);
    has_note(&report, "2 patients joined Group/diabetes");
    let jobs = setup.server.jobs();
    assert_eq!(jobs.iter().filter(|job| job.since.is_none()).count(), 2, "the first load, and the joiners: {jobs:#?}");
    assert!(jobs.iter().all(|job| job.deleted));
    let before = posted(&setup).len();
    let report = setup.complete().await;
    assert_eq!((report.changed(), posted(&setup).len()), (0, before), "they are asked for once");
}

#[tokio::test]
async fn a_watermark_does_not_move_by_what_is_asked_of_joiners() {
    let setup = loaded().await;
    setup.later(|world| set_members(world, &["p1", "p2", "p3"]));
    let report = setup.complete().await;
    let of_group = setup.server.jobs().iter().rposition(|job| job.since.is_some()).unwrap();
    assert!(of_group + 1 < setup.server.jobs().len(), "the joiners come after the changes");
    assert_eq!(report.instalments.len(), 2, "{report:#?}");
    assert!(report.types.values().all(|of| of.end.word() == "committed"), "{report:#?}");
}

/// (rule 109)
#[tokio::test]
async fn who_joins_while_the_first_load_is_in_flight_gets_the_history_as_well() {
    let mut setup = Setup::new().await;
    setup.export.level = Level::Group(GROUP.to_owned());
    setup.later(|world| {
        set_members(world, &["p1"]);
        world.advance(std::time::Duration::from_hours(24));
    });
    setup.server.scenario(|scenario| scenario.faults = vec![unwell("bulkstatus/1")]);
    setup.sync().await;
    setup.later(|world| set_members(world, &["p1", "p2"]));
    setup.server.scenario(|scenario| scenario.faults.clear());
    setup.complete().await;
    setup.complete().await;
    assert_eq!(ids(&setup, PATIENT).await, ["p1", "p2"]);
}

/// (rule 110)
#[tokio::test]
async fn a_server_that_exports_no_patients_by_name_is_asked_for_the_whole_group_once() {
    let setup = loaded().await;
    setup.later(|world| set_members(world, &["p1", "p2", "p3"]));
    let report = sync_without_names(&setup, 2).await;
    assert!(!report.notes.iter().any(|note| note.contains("asked for")), "{report:#?}");
    assert_eq!(ids(&setup, PATIENT).await, ["p1", "p2"]);
    let report = setup.complete().await;
    has_note(&report, "cannot export them alone");
    assert_eq!(ids(&setup, OBSERVATION).await, ["o1", "o2", "o3"]);
    assert_eq!(setup.complete().await.changed(), 0);
}

#[tokio::test]
async fn joiners_whose_history_fails_are_asked_for_again_by_the_next_sync() {
    let setup = loaded().await;
    setup.later(|world| set_members(world, &["p1", "p2", "p3"]));
    setup.server.scenario(|scenario| scenario.faults = vec![without_files(3)]);
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    assert!(report.remarks.iter().any(|remark| remark.contains("patients who joined")), "{report:#?}");
    setup.server.scenario(|scenario| scenario.faults.clear());
    setup.complete().await;
    assert_eq!(ids(&setup, PATIENT).await, ["p1", "p2", "p3"]);
}

/// Its table lacks what is older of them, and no increment brings that.
#[tokio::test]
async fn joiners_are_not_recorded_by_a_run_that_could_not_open_a_table() {
    let setup = loaded().await;
    setup.later(|world| set_members(world, &["p1", "p2", "p3"]));
    let log = setup.table_folder(OBSERVATION).join("_delta_log/00000000000000000000.json");
    let whole = std::fs::read(&log).unwrap();
    std::fs::write(&log, "{\"protocol\":").unwrap();
    for _ in 0..2 {
        let report = setup.sync().await;
        assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
        assert_eq!(ids(&setup, PATIENT).await, ["p1", "p2", "p3"]);
    }
    let jobs_of_joiners = posted(&setup).len();
    std::fs::write(&log, whole).unwrap();
    setup.complete().await;
    assert_eq!(ids(&setup, OBSERVATION).await, ["o1", "o2", "o3"]);
    assert!(jobs_of_joiners <= 2, "one for each run: {jobs_of_joiners}");
}

/// The Group lists them before the export knows them: the server answers with an export of nothing.
#[tokio::test]
async fn a_joiner_whose_patient_does_not_arrive_is_asked_for_again_by_the_next_sync() {
    let setup = loaded().await;
    setup.later(|world| set_members(world, &["p1", "p2", "p3"]));
    let now = setup.server.world(|world| world.now().to_rfc3339());
    let nothing = json!({"transactionTime": now, "requiresAccessToken": false, "output": []});
    // For the changes, and for the joiners.
    let faults = vec![Fault::NotAManifest { body: nothing.to_string(), times: 2 }];
    setup.server.scenario(|scenario| scenario.faults = faults);
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    assert!(report.remarks.iter().any(|remark| remark.contains("lists did not arrive")), "{report:#?}");
    setup.complete().await;
    assert_eq!((ids(&setup, PATIENT).await.len(), ids(&setup, OBSERVATION).await.len()), (3, 3));
    assert!(awaited(&setup).is_empty());
    let before = posted(&setup).len();
    setup.complete().await;
    assert_eq!(posted(&setup).len(), before, "they are recorded");
}

#[tokio::test]
async fn a_member_who_has_no_patient_is_noted_after_three_exports_and_asked_for_ever_more_seldom() {
    let setup = loaded().await;
    setup.later(|world| set_members(world, &["p1", "p2", "p3", "nobody"]));
    for _ in 0..2 {
        assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    }
    assert_eq!(ids(&setup, OBSERVATION).await, ["o1", "o2", "o3"]);
    has_note(&setup.complete().await, "did not arrive in 3 exports or more");
    let before = posted(&setup).len();
    has_note(&setup.complete().await, "take them out of the Group");
    assert_eq!((posted(&setup).len(), awaited(&setup)["nobody"].attempts), (before, 3));
    setup.later(|world| set_members(world, &["p1", "p2", "p3"]));
    assert!(setup.complete().await.notes.is_empty());
    assert!(awaited(&setup).is_empty());
}

#[tokio::test]
async fn a_patient_who_is_awaited_is_asked_for_although_the_group_can_no_longer_be_read() {
    let setup = loaded().await;
    setup.later(|world| set_members(world, &["p1", "p2", "nobody"]));
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    setup.server.scenario(|scenario| scenario.hides_groups = true);
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    has_note(&setup.complete().await, "did not arrive in 3 exports or more");
}

/// As where the Group has ids of its own.
#[tokio::test]
async fn nobody_is_asked_for_alone_where_most_of_a_large_group_do_not_arrive() {
    let mut setup = Setup::new().await;
    setup.export.level = Level::Group(GROUP.to_owned());
    setup.export.types = vec![PATIENT];
    let others: Vec<_> = (0..250).map(|number| format!("other{number}")).collect();
    setup.later(|world| {
        let members: Vec<_> = ["p1", "p2"].into_iter().chain(others.iter().map(String::as_str)).collect();
        set_members(world, &members);
    });
    has_note(&setup.complete().await, "250 patients of the 252 whom Group/diabetes lists did not arrive");
    setup.complete().await;
    assert_eq!((posted(&setup).len(), awaited(&setup).len()), (0, 0));
}

/// Everything of p1, p2 and p3 is from long ago, and the first load, of all three, brings only what is of p1. The others
/// were recorded before it, so that they are no joiners for the next run.
async fn loaded_without_two_members() -> Setup {
    let mut setup = Setup::new().await;
    setup.export.level = Level::Group(GROUP.to_owned());
    setup.export.reconciled.clear();
    setup.later(|world| {
        set_members(world, &["p1", "p2", "p3"]);
        for (id, of) in [("o1", "Patient/p1"), ("o3", "Patient/p3")] {
            world.put(OBSERVATION, id, json!({"status": "final", "subject": {"reference": of}}));
        }
        world.advance(std::time::Duration::from_hours(24));
    });
    let [patient, observation] = [(PATIENT, "p1"), (OBSERVATION, "o1")].map(|(of, id)| lines(&setup, of, &[id]));
    Made::default().output("Patient", 1, &patient).output("Observation", 1, &observation).serve(&setup);
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    assert_eq!((ids(&setup, PATIENT).await, awaited(&setup).len()), (vec!["p1".to_owned()], 2));
    setup
}

/// A file of these resources, as the server has them.
fn lines(setup: &Setup, of: ResourceType, ids: &[&str]) -> String {
    setup.server.world(|world| {
        let is_asked_for = |id: &str| ids.contains(&id);
        world
            .resources(of)
            .filter(|(id, _)| is_asked_for(id))
            .flat_map(|(_, line)| [line.to_string(), "\n".to_owned()])
            .collect()
    })
}

#[tokio::test]
async fn a_member_whose_patient_a_full_load_does_not_bring_gets_the_history_later() {
    let setup = loaded_without_two_members().await;
    setup.complete().await;
    assert_eq!((ids(&setup, PATIENT).await.len(), ids(&setup, OBSERVATION).await.len()), (3, 2));
    assert!(awaited(&setup).is_empty());
}

/// The next run asks for the type that failed since its old watermark.
#[tokio::test]
async fn a_member_whose_patient_arrives_while_another_type_fails_gets_the_history_later() {
    let setup = loaded_without_two_members().await;
    let (patients, observation) = (lines(&setup, PATIENT, &["p1", "p2", "p3"]), lines(&setup, OBSERVATION, &["o1"]));
    Made::default().output("Patient", 3, &patients).output("Observation", 2, &observation).serve(&setup);
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!(report.types[&OBSERVATION].end.word(), "failed", "{report:#?}");
    assert_eq!(ids(&setup, PATIENT).await, ["p1", "p2", "p3"]);
    assert!(awaited(&setup).values().all(|of| of.attempts == 0), "each sync asks for who is there now");
    setup.server.scenario(|scenario| scenario.faults.clear());
    setup.complete().await;
    assert_eq!(ids(&setup, OBSERVATION).await, ["o1", "o3"]);
    assert!(awaited(&setup).is_empty());
}

#[tokio::test]
async fn a_member_whose_patient_arrives_with_a_full_load_of_everything_is_no_longer_awaited() {
    let setup = loaded_without_two_members().await;
    assert_eq!(setup.run(Mode::FullRefresh).await.outcome, Outcome::Complete);
    assert_eq!((ids(&setup, OBSERVATION).await.len(), awaited(&setup).len(), posted(&setup).len()), (2, 0, 0));
}

#[tokio::test]
async fn a_member_whose_patient_arrives_with_a_full_load_of_patients_only_gets_the_history_as_well() {
    let setup = loaded_without_two_members().await;
    std::fs::remove_dir_all(setup.lake().join("Patient.parquet")).unwrap();
    setup.complete().await;
    assert_eq!((ids(&setup, PATIENT).await.len(), ids(&setup, OBSERVATION).await.len()), (3, 2));
    assert!(awaited(&setup).is_empty());
}

#[tokio::test]
async fn a_member_who_arrives_late_gets_the_history_also_where_none_is_exported_by_name() {
    let setup = loaded_without_two_members().await;
    std::fs::remove_dir_all(setup.lake().join("Patient.parquet")).unwrap();
    sync_without_names(&setup, 3).await;
    assert!(awaited(&setup).is_empty(), "a load of all types is due, and need not be made due again");
    setup.complete().await;
    assert_eq!(ids(&setup, OBSERVATION).await, ["o1", "o3"]);
}

#[tokio::test]
async fn a_joiner_without_a_patient_is_awaited_also_by_a_run_that_loads_the_patients_in_full() {
    let setup = loaded().await;
    setup.later(|world| set_members(world, &["p1", "p2", "nobody"]));
    std::fs::remove_dir_all(setup.lake().join("Patient.parquet")).unwrap();
    let report = setup.sync().await;
    assert_eq!((report.outcome, awaited(&setup)["nobody"].attempts), (Outcome::Partial, 1), "{report:#?}");
    assert!(setup.server.jobs().last().unwrap().types.contains(&PATIENT), "Patients are asked for with joiners");
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    assert_eq!(awaited(&setup)["nobody"].attempts, 2, "a joiner who is recorded would be asked for no more");
}

/// Nothing tells any more who is missing.
#[tokio::test]
async fn nobody_is_awaited_any_more_once_the_export_leaves_patients_out() {
    let changes: [fn(&mut Setup); 3] = [
        |setup| setup.export.parameters.type_filters = ["Patient?gender=male".to_owned()].into(),
        |setup| setup.export.initial_since = Some("2020-02-13T00:00:00.000Z".to_owned()),
        |setup| setup.export.types = vec![OBSERVATION],
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut setup = loaded().await;
        setup.later(|world| set_members(world, &["p1", "p2", "nobody"]));
        assert_eq!((setup.sync().await.outcome, awaited(&setup).len()), (Outcome::Partial, 1));
        change(&mut setup);
        let report = setup.sync().await;
        assert_eq!((report.outcome, awaited(&setup).len()), (Outcome::Complete, 0), "{number}: {report:#?}");
        let before = posted(&setup).len();
        setup.complete().await;
        assert_eq!(posted(&setup).len(), before, "{number}");
    }
}

#[tokio::test]
async fn a_run_that_ends_while_the_server_works_on_joiners_leaves_their_job_to_the_next_one() {
    let setup = loaded().await;
    setup.later(|world| set_members(world, &["p1", "p2", "p3"]));
    setup.server.scenario(|scenario| scenario.faults = vec![unwell("bulkstatus/3")]);
    setup.sync().await;
    let state = peek(&setup.state_file()).unwrap().exports.remove("all").unwrap();
    assert_eq!(state.jobs[0].patients, BTreeSet::from(["p3".to_owned()]), "{state:#?}");
    setup.server.scenario(|scenario| scenario.faults.clear());
    setup.complete().await;
    assert_eq!(ids(&setup, PATIENT).await, ["p1", "p2", "p3"]);
    let jobs = setup.server.jobs();
    assert_eq!((jobs.len(), jobs[3].since.is_some()), (4, true), "only the changes are asked for again: {jobs:#?}");
}

/// (rule 112)
#[tokio::test]
async fn the_rows_of_who_leaves_stay_and_are_flagged_where_that_is_asked() {
    for (leavers, is_noted) in [(Leavers::Keep, false), (Leavers::Flag, true)] {
        let mut setup = loaded().await;
        setup.export.leavers = leavers;
        setup.later(|world| set_members(world, &["p1"]));
        let report = setup.complete().await;
        assert_eq!(report.notes.iter().any(|note| note.contains("1 patient left")), is_noted, "{report:#?}");
        assert_eq!(ids(&setup, PATIENT).await, ["p1", "p2"]);
        assert!(setup.complete().await.notes.is_empty(), "it is said once");
    }
}

#[tokio::test]
async fn the_rows_of_who_leaves_are_removed_where_that_is_asked() {
    let mut setup = loaded().await;
    setup.export.leavers = Leavers::Remove;
    setup.export.reconciled = [OBSERVATION, PATIENT].into();
    setup.config.reconcile.max_missing = 10;
    setup.later(|world| set_members(world, &["p1"]));
    setup.complete().await;
    assert_eq!((ids(&setup, PATIENT).await, ids(&setup, OBSERVATION).await), (vec!["p1".into()], vec!["o1".into()]));
}

#[tokio::test]
async fn who_comes_back_gets_what_changed_meanwhile() {
    let setup = loaded().await;
    setup.later(|world| set_members(world, &["p1"]));
    setup.complete().await;
    setup.later(|world| {
        world.put(OBSERVATION, "late", json!({"status": "final", "subject": {"reference": "Patient/p2"}}));
    });
    setup.complete().await;
    setup.later(|world| {
        world.advance(std::time::Duration::from_hours(24));
        set_members(world, &["p1", "p2"]);
    });
    setup.complete().await;
    assert_eq!(ids(&setup, OBSERVATION).await, ["late", "o1", "o2"]);
}

#[tokio::test]
async fn without_the_list_a_patient_who_was_not_seen_before_has_joined() {
    let mut setup = loaded().await;
    std::fs::remove_dir_all(setup.lake().join("_fhir_sync/members")).unwrap();
    setup.server.scenario(|scenario| scenario.hides_groups = true);
    // Who is known begins with a full load.
    let report = setup.run(Mode::FullRefresh).await;
    has_note(&report, "the members of Group/diabetes are not known (the server answers 403");
    setup.later(|world| {
        set_members(world, &["p1", "p2", "p3"]);
        world.put(PATIENT, "p3", json!({"gender": "other"}));
    });
    setup.complete().await;
    assert_eq!(ids(&setup, OBSERVATION).await, ["o1", "o2", "o3"]);
    setup.export.joiners = Joiners::Server;
    let before = posted(&setup).len();
    setup.later(|world| set_members(world, &["p1", "p2", "p3", "p4"]));
    setup.complete().await;
    assert_eq!(posted(&setup).len(), before, "the server brings the history by itself");
}

/// No later increment brings their Patients again, whether they came with an increment or with a full load.
#[tokio::test]
async fn without_the_list_joiners_whose_history_fails_are_asked_for_again_by_the_next_sync() {
    for loads_patients in [false, true] {
        let setup = loaded().await;
        setup.server.scenario(|scenario| scenario.hides_groups = true);
        setup.complete().await;
        setup.later(|world| {
            set_members(world, &["p1", "p2", "p3"]);
            world.put(PATIENT, "p3", json!({"gender": "other"}));
            // Beyond the overlap of two increments.
            world.advance(std::time::Duration::from_hours(1));
        });
        let mut job_of_joiners = setup.server.jobs().len() + 2;
        if loads_patients {
            std::fs::remove_dir_all(setup.lake().join("Patient.parquet")).unwrap();
            // One for each of the two types.
            job_of_joiners += 1;
        }
        setup.server.scenario(|scenario| scenario.faults = vec![without_files(job_of_joiners)]);
        let report = setup.sync().await;
        assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
        assert_eq!(ids(&setup, OBSERVATION).await, ["o1", "o2"]);
        let seen = || peek(&setup.state_file()).unwrap().exports.remove("all").unwrap().seen_patients;
        assert_eq!(seen().into_values().collect::<Vec<_>>(), [BTreeSet::from(["p3".to_owned()])]);
        setup.server.scenario(|scenario| scenario.faults.clear());
        setup.complete().await;
        assert_eq!(ids(&setup, OBSERVATION).await, ["o1", "o2", "o3"]);
        assert!(seen().is_empty());
    }
}

/// Whose Patient arrives in a run that cannot compare the members.
#[tokio::test]
async fn a_joiner_who_arrives_while_the_group_does_not_answer_is_found_by_the_next_sync() {
    let setup = loaded().await;
    setup.later(|world| {
        set_members(world, &["p1", "p2", "p3"]);
        world.put(PATIENT, "p3", json!({"gender": "other"}));
        // Beyond the overlap of two increments.
        world.advance(std::time::Duration::from_hours(1));
    });
    let elsewhere = Fault::Redirect {
        path_contains: format!("Group/{GROUP}"),
        status: StatusCode::FOUND,
        location: "ftp://ehr.example.org/".to_owned(),
        times: 1,
    };
    setup.server.scenario(|scenario| scenario.faults = vec![elsewhere]);
    has_note(&setup.complete().await, "the members of Group/diabetes could not be read");
    assert_eq!((ids(&setup, PATIENT).await.len(), ids(&setup, OBSERVATION).await.len()), (3, 2));
    setup.server.scenario(|scenario| scenario.hides_groups = true);
    setup.complete().await;
    assert_eq!(ids(&setup, OBSERVATION).await, ["o1", "o2", "o3"]);
}

#[tokio::test]
async fn tables_whose_members_were_never_recorded_are_loaded_again_once() {
    let setup = loaded().await;
    std::fs::remove_dir_all(setup.lake().join("_fhir_sync/members")).unwrap();
    setup.later(|world| set_members(world, &["p1", "p2", "p3"]));
    let report = setup.complete().await;
    has_note(&report, "the members of its group were not recorded before");
    assert_eq!(ids(&setup, OBSERVATION).await, ["o1", "o2", "o3"]);
    assert_eq!(setup.complete().await.changed(), 0);
}
