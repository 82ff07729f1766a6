use std::{collections::BTreeMap, fs, time::Duration};

use fhir_sync::{
    demo::{Fault, StatusCode},
    state::{ExportState, FinishedFiles, JobInFlight, OpenState, peek},
    sync::{Mode, Outcome, Report, TypeEnd},
};
use serde_json::{Value, json};

use crate::{
    harness::{Made, PATIENT, Process, Setup, end_of, eventually, failure, ndjson},
    mirror::restore,
};

/// Each file is an instalment, and one is read after the other.
const SETTINGS: [(&str, &str); 2] =
    [("FHIR_SYNC__SYNC__INSTALMENT_SIZE", "1B"), ("FHIR_SYNC__SYNC__PARALLEL_DOWNLOADS", "1")];

/// Five patients in five files.
async fn five_files() -> Setup {
    let mut setup = Setup::new().await;
    setup.export.types = vec![PATIENT];
    setup.export.reconciled = [PATIENT].into();
    setup.config.parallel_downloads = 1;
    setup.server.scenario(|scenario| scenario.lines_per_file = 1);
    setup
}

/// A file is sent so slowly that it never ends.
fn endless(file: &str) -> Fault {
    let (path_contains, pause) = (file.to_owned(), Duration::from_secs(20));
    Fault::Slow { path_contains, chunk_bytes: 1, pause, times: 1000 }
}

fn unwell(file: &str) -> Fault {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    Fault::Status { path_contains: file.to_owned(), status, times: 1_000_000, retry_after: None, body: String::new() }
}

fn state(setup: &Setup) -> ExportState {
    peek(&setup.state_file()).unwrap().exports.remove("all").unwrap_or_default()
}

fn finished(setup: &Setup) -> Option<FinishedFiles> {
    state(setup).jobs.first()?.finished.get(&PATIENT).cloned()
}

fn change_job(setup: &Setup, change: impl FnOnce(&mut JobInFlight)) {
    let (mut open_state, _) = OpenState::open(&setup.state_file()).unwrap();
    open_state.update(|state| change(state.exports.get_mut("all").unwrap().jobs.first_mut().unwrap())).unwrap();
}

/// How often each file was requested, by its number.
fn requested(setup: &Setup) -> BTreeMap<u32, usize> {
    let mut requested = BTreeMap::new();
    for request in setup.server.requests() {
        if let Some((_, number)) = request.path.rsplit_once("/Patient.") {
            *requested.entry(number.split('.').next().unwrap().parse().unwrap()).or_default() += 1;
        }
    }
    requested
}

/// A process that has finished three files and is at the fourth.
async fn at_the_fourth(setup: &Setup, settings: &[(&str, &str)]) -> Process {
    setup.server.scenario(|scenario| scenario.faults = vec![endless("/Patient.4.")]);
    let process = setup.start("sync", settings);
    eventually("the fourth file", async || requested(setup).contains_key(&4).then_some(())).await;
    process
}

/// Killed when three files are in the state.
async fn killed(setup: &Setup) {
    let process = at_the_fourth(setup, &SETTINGS).await;
    eventually("three files", async || finished(setup).filter(|finished| finished.files.len() == 3).map(drop)).await;
    process.kill().await;
    setup.server.scenario(|scenario| scenario.faults.clear());
}

fn counts(report: &Report) -> (u64, u64, u64) {
    let of = &report.types[&PATIENT];
    (of.received, of.counts.inserted, of.counts.unchanged)
}

async fn assert_loaded_by_one_job(setup: &Setup) {
    assert_eq!(setup.server.jobs().len(), 1);
    assert!(setup.watermark(PATIENT).await.is_some());
    assert_eq!(state(setup).jobs, [], "settled");
    setup.assert_same_as_server().await;
}

/// (rules 70 and 137)
#[tokio::test]
async fn a_load_in_instalments_is_the_same_as_in_one_commit_and_the_last_one_carries_the_watermark() {
    let mut setup = five_files().await;
    setup.config.instalment_bytes = 1;
    let report = setup.complete().await;
    assert_eq!((report.received(), report.changed()), (5, 5), "{report:#?}");
    assert_eq!(report.instalments.len(), 4, "{report:#?}");
    for (_, of) in &report.instalments {
        assert!(matches!(of.end, TypeEnd::Instalment { .. }) && of.received == of.accounted(), "{of:#?}");
    }
    let folder = setup.table_folder(PATIENT).join("_delta_log");
    for version in 0..=5 {
        let commit = fs::read_to_string(folder.join(format!("{version:020}.json"))).unwrap();
        assert_eq!(commit.contains("\"txn\""), version == 5, "{commit}");
    }
    assert_loaded_by_one_job(&setup).await;
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    assert_eq!(counts(&setup.complete().await), (1, 1, 0));
}

#[tokio::test]
async fn the_ledger_has_each_instalment_and_its_sums_are_those_of_the_table() {
    let mut setup = five_files().await;
    setup.config.instalment_bytes = 1;
    setup.complete().await;
    let rows = setup.root().ledger().await.unwrap();
    let ends: Vec<_> = rows.iter().map(|row| row.end.as_str()).collect();
    assert_eq!(ends, ["instalment", "instalment", "instalment", "instalment", "committed"]);
    assert_eq!(rows.iter().map(|row| row.inserted).sum::<u64>(), 5);
    assert_eq!(rows.iter().map(|row| row.files).sum::<u64>(), 5);
    assert!(rows.iter().all(|row| row.files == row.file_list.len() as u64));
    assert_eq!((rows[0].outcome.as_str(), rows[4].outcome.as_str()), ("running", "complete"));
}

/// (rule 78, Q-44)
#[tokio::test]
async fn a_process_that_is_killed_between_instalments_reads_only_the_other_files() {
    let setup = five_files().await;
    killed(&setup).await;
    assert_eq!((setup.lines(PATIENT).await.len(), setup.watermark(PATIENT).await), (3, None));
    let report = setup.complete().await;
    assert_eq!((counts(&report), report.types[&PATIENT].files_before), ((2, 2, 0), 3), "{report:#?}");
    assert_eq!(requested(&setup), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 1)].into());
    assert_loaded_by_one_job(&setup).await;
    let path = setup.folder.path().join("fhir-sync.toml");
    let ended = Process::start(&["verify", "--config", path.to_str().unwrap()], &[]).end().await;
    assert_eq!(ended.code, Some(0), "the ledger has what the killed process committed: {}", ended.output());
}

/// (rule 137)
#[tokio::test]
async fn a_process_that_is_killed_between_an_instalment_and_the_state_file_changes_nothing_by_reading_again() {
    let setup = five_files().await;
    killed(&setup).await;
    change_job(&setup, |job| {
        job.finished.get_mut(&PATIENT).unwrap().files.pop_last();
    });
    let data_files = setup.data_files(PATIENT);
    let report = setup.complete().await;
    assert_eq!(counts(&report), (3, 2, 1), "{report:#?}");
    assert_eq!(requested(&setup).into_values().sum::<usize>(), 7);
    assert!(setup.data_files(PATIENT).is_superset(&data_files));
    assert_loaded_by_one_job(&setup).await;
}

#[tokio::test]
async fn a_signal_in_the_middle_of_a_load_commits_what_has_ended_and_the_next_start_goes_on() {
    let setup = five_files().await;
    let process = at_the_fourth(&setup, &SETTINGS[1..]).await;
    assert_eq!(finished(&setup), None, "an instalment of the usual size is larger");
    process.terminate().await;
    let ended = process.end().await;
    assert_eq!(ended.code, Some(130), "{}", ended.output());
    assert_eq!(finished(&setup).unwrap().files.len(), 3, "{}", ended.output());
    setup.server.scenario(|scenario| scenario.faults.clear());
    let report = setup.complete().await;
    assert_eq!(counts(&report), (2, 2, 0), "{report:#?}");
    assert_eq!(requested(&setup), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 1)].into());
    assert_loaded_by_one_job(&setup).await;
}

/// (rule 78)
#[tokio::test]
async fn an_outage_in_the_middle_of_a_load_keeps_what_has_ended() {
    let setup = five_files().await;
    setup.server.scenario(|scenario| scenario.faults = vec![unwell("/Patient.4.")]);
    let report = setup.sync().await;
    failure(&report, PATIENT);
    assert_eq!(report.outcome, Outcome::Partial);
    assert_eq!(finished(&setup).unwrap().files.len(), 3);
    let before = requested(&setup);
    assert_eq!(before.get(&5), None, "nothing more is fetched for a type that has failed");
    setup.server.scenario(|scenario| scenario.faults.clear());
    assert_eq!(counts(&setup.complete().await), (2, 2, 0));
    assert_eq!([1, 2, 3].map(|file| requested(&setup)[&file]), [1, 1, 1]);
    assert_loaded_by_one_job(&setup).await;
}

#[tokio::test]
async fn a_load_whose_files_have_all_ended_is_only_committed_by_the_next_start() {
    let setup = five_files().await;
    killed(&setup).await;
    setup.server.scenario(|scenario| scenario.faults = vec![unwell("/Patient.5.")]);
    failure(&setup.sync().await, PATIENT);
    assert_eq!(finished(&setup).unwrap().files.len(), 4);
    // The last file has nothing that is new, and is known: as if the process had been killed before the last commit.
    setup.server.scenario(|scenario| scenario.faults = vec![endless("/Patient.5.")]);
    let process = setup.start("sync", &SETTINGS);
    eventually("the fifth file", async || requested(&setup).contains_key(&5).then_some(())).await;
    process.kill().await;
    setup.server.scenario(|scenario| scenario.faults.clear());
    assert_eq!(counts(&setup.complete().await), (1, 1, 0));
    assert_loaded_by_one_job(&setup).await;
}

#[tokio::test]
async fn another_manifest_of_the_job_starts_the_type_again() {
    let setup = five_files().await;
    killed(&setup).await;
    setup.server.scenario(|scenario| scenario.transaction_time = Some("2026-01-01T00:30:00Z".to_owned()));
    let report = setup.complete().await;
    assert_eq!(counts(&report).0, 5, "{report:#?}");
    assert_eq!(requested(&setup).into_values().sum::<usize>(), 9);
    assert_loaded_by_one_job(&setup).await;
    assert_eq!(state(&setup).reload, BTreeMap::new());
}

#[tokio::test]
async fn a_load_that_starts_again_has_no_instalments_because_it_removes_what_it_lacks() {
    let mut setup = five_files().await;
    killed(&setup).await;
    setup.config.instalment_bytes = 1;
    setup.config.reconcile.max_missing = 5;
    setup.server.scenario(|scenario| scenario.transaction_time = Some("2026-01-01T00:30:00Z".to_owned()));
    let report = setup.complete().await;
    assert_eq!((report.instalments.len(), report.types[&PATIENT].counts.removed), (0, 0), "{report:#?}");
    assert_loaded_by_one_job(&setup).await;
}

#[tokio::test]
async fn a_table_that_lost_its_instalments_is_loaded_again() {
    let setup = five_files().await;
    killed(&setup).await;
    fs::remove_dir_all(setup.table_folder(PATIENT)).unwrap();
    let report = setup.complete().await;
    assert_eq!(counts(&report), (5, 5, 0), "{report:#?}");
    assert_loaded_by_one_job(&setup).await;
}

#[tokio::test]
async fn rows_of_a_load_that_was_given_up_and_that_the_server_deleted_meanwhile_are_removed() {
    let mut setup = five_files().await;
    setup.config.reconcile.max_missing = 5;
    killed(&setup).await;
    change_job(&setup, |job| job.kicked_off_locally_at -= chrono::TimeDelta::hours(1));
    setup.later(|world| {
        world.delete(PATIENT, "p1");
    });
    setup.server.scenario(|scenario| {
        scenario.faults = vec![Fault::Status {
            path_contains: "/bulkstatus/1".to_owned(),
            status: StatusCode::NOT_FOUND,
            times: 1000,
            retry_after: None,
            body: String::new(),
        }];
    });
    let report = setup.sync().await;
    assert_eq!(report.types[&PATIENT].counts.removed, 1, "{report:#?}");
    setup.assert_same_as_server().await;
}

/// (rule 138)
#[tokio::test]
async fn with_deletions_there_is_one_commit_because_an_id_may_be_deleted_and_alive() {
    let mut setup = five_files().await;
    setup.complete().await;
    setup.config.instalment_bytes = 1;
    setup.later(|world| {
        for number in 1..=4 {
            world.put(PATIENT, &format!("p{number}"), json!({}));
        }
        world.delete(PATIENT, "p5");
    });
    let report = setup.complete().await;
    assert_eq!((report.instalments.len(), report.types[&PATIENT].received), (0, 5), "{report:#?}");
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_full_refresh_has_no_instalments_because_it_removes_what_is_not_in_it() {
    let mut setup = five_files().await;
    setup.config.instalment_bytes = 1;
    setup.complete().await;
    setup.later(|world| {
        world.delete(PATIENT, "p5");
    });
    setup.config.reconcile.max_missing = 5;
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!((report.instalments.len(), report.types[&PATIENT].counts.removed), (0, 1), "{report:#?}");
    setup.assert_same_as_server().await;
}

fn patient(id: &str) -> Value {
    json!({"resourceType": "Patient", "id": id, "gender": "female"})
}

#[tokio::test]
async fn a_file_in_which_the_server_speaks_of_errors_is_read_again_and_holds_the_watermark_again() {
    let setup = five_files().await;
    let outcome = json!({"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "exception"}]});
    let serve = |last: &str| {
        Made::default()
            .output("Patient", None, &ndjson([&patient("p1")]))
            .output("Patient", None, &ndjson([&patient("p2"), &outcome]))
            .output("Patient", None, last)
            .serve(&setup);
    };
    serve("{");
    setup.server.scenario(|scenario| {
        scenario.faults.insert(0, unwell("/made/output.2."));
    });
    failure(&setup.sync().await, PATIENT);
    assert_eq!(finished(&setup).unwrap().files.len(), 1, "only the first");
    serve(&ndjson([&patient("p3")]));
    let report = setup.sync().await;
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::WatermarkHeld { .. }), "{report:#?}");
    assert_eq!(setup.lines(PATIENT).await.len(), 3);
    assert_eq!(setup.watermark(PATIENT).await, None);
}

#[tokio::test]
async fn lines_in_quarantine_count_for_the_limit_of_the_whole_load() {
    let mut setup = five_files().await;
    setup.config.quarantine.max_quarantined = 0;
    setup.config.quarantine.max_quarantined_percent = 30.0;
    let good = ndjson([&patient("p1"), &patient("p2"), &patient("p3")]);
    let bad = format!("{}{{\"resourceType\":\"Patient\"}}\n", ndjson([&patient("p4"), &patient("p5"), &patient("p6")]));
    Made::default()
        .output("Patient", None, &good)
        .output("Patient", None, &bad)
        .output("Patient", None, "")
        .serve(&setup);
    setup.server.scenario(|scenario| {
        scenario.faults.insert(0, unwell("/made/output.2."));
    });
    failure(&setup.sync().await, PATIENT);
    let known = finished(&setup).unwrap();
    assert_eq!((known.files.len(), known.lines, known.quarantined), (2, 7, 1));
    let worse = "{\"resourceType\":\"Patient\"}\n".repeat(3);
    Made::default()
        .output("Patient", None, &good)
        .output("Patient", None, &bad)
        .output("Patient", None, &worse)
        .serve(&setup);
    let report = setup.sync().await;
    assert!(failure(&report, PATIENT).contains("4 of 10 lines"), "{report:#?}");
}

#[tokio::test]
async fn rows_of_files_that_were_read_and_that_a_restore_has_undone_since_are_read_again() {
    let mut setup = five_files().await;
    setup.config.instalment_bytes = 1;
    killed(&setup).await;
    setup.server.scenario(|scenario| scenario.hold_files = true);
    let before = setup.file_requests();
    let restored = async {
        eventually("a download", async || (setup.file_requests() > before).then_some(())).await;
        let newest = setup.root().open(PATIENT).await.unwrap().unwrap().version();
        restore(&setup, newest);
        setup.server.scenario(|scenario| scenario.hold_files = false);
    };
    let (report, ()) = tokio::join!(setup.sync(), restored);
    assert!(failure(&report, PATIENT).contains("restored to an earlier version"), "{report:#?}");
    setup.complete().await;
    assert_loaded_by_one_job(&setup).await;
}

#[tokio::test]
async fn a_line_in_quarantine_outlives_the_process_that_was_killed_after_the_instalment_of_its_file() {
    let mut setup = five_files().await;
    let bad = format!("{}{{\"resourceType\":\"Patient\"}}\n", ndjson([&patient("p1"), &patient("p2")]));
    Made::default().output("Patient", None, &bad).output("Patient", None, &ndjson([&patient("p3")])).serve(&setup);
    setup.server.scenario(|scenario| {
        scenario.faults.insert(0, endless("/made/output.1."));
    });
    let process = setup.start("sync", &SETTINGS);
    eventually("one file", async || finished(&setup).map(drop)).await;
    process.kill().await;
    assert_eq!(setup.quarantine().await.len(), 1);
    Made::default().output("Patient", None, &bad).output("Patient", None, &ndjson([&patient("p3")])).serve(&setup);
    setup.config.quarantine.max_quarantined = 20;
    let report = setup.sync().await;
    assert_eq!(report.types[&PATIENT].files_before, 1, "{report:#?}");
    assert!(report.remarks.iter().any(|remark| remark.contains("1 lines of Patient")), "{report:#?}");
    assert_eq!(report.outcome, Outcome::Partial, "as without the kill: {report:#?}");
}

#[tokio::test]
async fn rows_of_a_settled_type_in_a_file_that_is_read_later_are_named_and_the_type_is_loaded_again() {
    let setup = Setup::new().await;
    let observation = |id: &str| json!({"resourceType": "Observation", "id": id, "status": "final", "code": {}});
    let serve = || {
        Made::default()
            .output("Patient", None, &ndjson([&patient("p1"), &observation("o2")]))
            .output("Observation", None, &ndjson([&observation("o1")]))
            .serve(&setup);
    };
    serve();
    setup.server.scenario(|scenario| {
        scenario.faults.insert(0, unwell("/made/output.0."));
    });
    failure(&setup.sync().await, PATIENT);
    serve();
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    assert!(
        report.remarks.iter().any(|remark| remark.starts_with("Observation will be loaded in full")),
        "{report:#?}"
    );
    let jobs = setup.server.jobs();
    assert_eq!((jobs.len(), jobs[1].since.clone()), (2, None), "Observation alone, in full");
}
