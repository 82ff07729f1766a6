use std::time::Duration;

use fhir_sync::{
    demo::{Alteration, Fault, StatusCode},
    state::{FinishedFiles, peek},
    sync::TypeEnd,
};
use serde_json::json;

use crate::harness::{OBSERVATION, PATIENT, Setup, eventually};

/// Five patients and four observations, each in a file of its own, observations first; the first files are ready while
/// the job is held.
async fn in_progress(ready: usize) -> Setup {
    let mut setup = Setup::new().await;
    setup.export.allow_partial_manifests = true;
    setup.export.reconciled = [OBSERVATION, PATIENT].into();
    setup.server.scenario(|scenario| {
        scenario.lines_per_file = 1;
        scenario.hold = true;
        scenario.ready_files = Some(ready);
        scenario.retry_after = Some("0".to_owned());
    });
    setup
}

fn release(setup: &Setup) {
    setup.server.scenario(|scenario| scenario.hold = false);
}

fn requests_for(setup: &Setup, file: &str) -> usize {
    setup.server.requests().iter().filter(|request| request.path.ends_with(file)).count()
}

fn finished(setup: &Setup) -> usize {
    let state = peek(&setup.state_file()).unwrap().exports.remove("all").unwrap_or_default();
    let of = |finished: &FinishedFiles| finished.files.len();
    state.jobs.first().map(|job| job.finished.values().map(of).sum()).unwrap_or_default()
}

/// Releases the job when this many files are in the state file.
async fn released_after(setup: &Setup, files: usize) {
    eventually("the files that are ready", async || (finished(setup) == files).then_some(())).await;
    release(setup);
}

/// Releases the job after some polls, before which no file was read.
async fn released_after_polls(setup: &Setup) {
    let polls = || setup.server.jobs().first().map_or(0, |job| job.polls);
    eventually("a few polls", async || (polls() > 3).then_some(())).await;
    assert_eq!(finished(setup), 0);
    release(setup);
}

/// Files that are listed once stay (rules 64 and 65).
#[tokio::test]
async fn files_that_are_ready_are_in_the_tables_before_the_export_is_complete_and_are_read_once() {
    let setup = in_progress(6).await;
    let held = async {
        eventually("six files", async || (finished(&setup) == 6).then_some(())).await;
        assert_eq!((setup.lines(OBSERVATION).await.len(), setup.lines(PATIENT).await.len()), (4, 2));
        assert_eq!((setup.watermark(OBSERVATION).await, setup.watermark(PATIENT).await), (None, None));
        release(&setup);
    };
    let (report, ()) = tokio::join!(setup.complete(), held);
    assert_eq!((report.received(), report.changed()), (9, 9), "{report:#?}");
    assert!(report.instalments.iter().all(|(_, of)| matches!(of.end, TypeEnd::Instalment { .. })));
    for file in ["Observation.1.ndjson", "Observation.4.ndjson", "Patient.2.ndjson", "Patient.5.ndjson"] {
        assert_eq!(requests_for(&setup, file), 1, "{file}");
    }
    assert!(setup.watermark(PATIENT).await.is_some());
    setup.assert_same_as_server().await;
}

/// Pages are followed (rules 64 and 66).
#[tokio::test]
async fn files_that_become_ready_later_and_further_pages_are_read_as_well() {
    let setup = in_progress(2).await;
    setup.server.scenario(|scenario| scenario.pages = Some(1));
    let held = async {
        eventually("two files", async || (finished(&setup) == 2).then_some(())).await;
        setup.server.scenario(|scenario| scenario.ready_files = Some(7));
        released_after(&setup, 7).await;
    };
    let (report, ()) = tokio::join!(setup.complete(), held);
    assert_eq!(report.received(), 9, "{report:#?}");
    assert_eq!(requests_for(&setup, "Observation.1.ndjson"), 1);
    setup.assert_same_as_server().await;
}

/// What was not read is not lost (rule 68).
#[tokio::test]
async fn a_file_that_cannot_be_read_early_is_read_when_the_export_is_complete() {
    let setup = in_progress(3).await;
    let gone = Fault::Status {
        path_contains: "/Observation.2.".to_owned(),
        status: StatusCode::NOT_FOUND,
        times: 1,
        retry_after: None,
        body: String::new(),
    };
    setup.server.scenario(|scenario| scenario.faults = vec![gone]);
    let held = async {
        eventually("the refusal", async || (requests_for(&setup, "Observation.2.ndjson") > 0).then_some(())).await;
        release(&setup);
    };
    let (report, ()) = tokio::join!(setup.complete(), held);
    assert_eq!(report.changed(), 9, "{report:#?}");
    setup.assert_same_as_server().await;
}

/// The rows of a type of which no file is ready are not taken yet (rule 79).
#[tokio::test]
async fn a_file_with_lines_of_types_that_are_not_ready_is_read_again() {
    let setup = in_progress(1).await;
    // More than half of the lines are of the file's own type: few others are no remark of their own.
    setup.server.world(|world| {
        for number in 5..=24 {
            world.put(OBSERVATION, &format!("o{number}"), json!({"status": "final"}));
        }
        world.advance(Duration::from_hours(1));
    });
    setup.server.scenario(|scenario| scenario.alterations = vec![Alteration::MixedTypes]);
    let held = async {
        eventually("the file", async || (requests_for(&setup, "mixed.ndjson") > 0).then_some(())).await;
        release(&setup);
    };
    let (report, ()) = tokio::join!(setup.sync(), held);
    assert_eq!(setup.lines(PATIENT).await.len(), 5, "{report:#?}");
    assert_eq!(setup.lines(OBSERVATION).await.len(), 24, "{report:#?}");
    assert!(requests_for(&setup, "mixed.ndjson") > 1);
}

/// An instalment does not know of them (rule 96).
#[tokio::test]
async fn deletions_in_the_complete_manifest_are_judged_with_all_rows_of_the_export() {
    let setup = in_progress(0).await;
    release(&setup);
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.put(OBSERVATION, "o1", json!({"status": "amended"}));
        world.delete(PATIENT, "p2");
    });
    setup.server.scenario(|scenario| (scenario.hold, scenario.ready_files) = (true, Some(2)));
    let (report, ()) = tokio::join!(setup.complete(), released_after(&setup, 2));
    assert_eq!(report.types[&PATIENT].counts.deleted, 1, "{report:#?}");
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_full_refresh_reads_no_file_before_its_export_is_complete() {
    let setup = in_progress(0).await;
    release(&setup);
    setup.complete().await;
    setup.server.scenario(|scenario| (scenario.hold, scenario.ready_files) = (true, Some(9)));
    let before = requests_for(&setup, "Patient.1.ndjson");
    let held = async {
        let polls = || setup.server.jobs().last().map_or(0, |job| job.polls);
        eventually("a few polls", async || (setup.server.jobs().len() == 2 && polls() > 3).then_some(())).await;
        assert_eq!(requests_for(&setup, "Patient.1.ndjson"), before);
        release(&setup);
    };
    tokio::join!(setup.run(fhir_sync::sync::Mode::FullRefresh), held);
    setup.assert_same_as_server().await;
}

/// (rule 30)
#[tokio::test]
async fn a_server_is_asked_for_partial_manifests_only_if_the_export_allows_them() {
    let mut setup = in_progress(5).await;
    setup.export.allow_partial_manifests = false;
    tokio::join!(setup.complete(), released_after_polls(&setup));
    let asked: Vec<_> =
        setup.server.requests().into_iter().filter(|request| request.path.contains("$export")).collect();
    assert!(asked.iter().all(|request| !request.path.contains("allowPartialManifests")), "{asked:?}");
}

/// The wait between two readings holds, whatever the server has.
#[tokio::test]
async fn files_that_are_ready_wait_for_the_interval() {
    let mut setup = in_progress(5).await;
    setup.config.partial_interval = Duration::from_hours(1);
    tokio::join!(setup.complete(), released_after_polls(&setup));
    setup.assert_same_as_server().await;
}
