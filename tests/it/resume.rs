use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use axum::{
    Json, Router,
    http::{StatusCode, header},
    routing::get,
};
use fhir_sync::{
    fhir::ResourceType,
    state::{JobInFlight, OpenState, peek},
    sync::Outcome,
};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};

use crate::harness::{HOUR, PATIENT, Process, Setup, eventually};

/// A process that has kicked off an export and waits for it.
async fn waiting(setup: &Setup) -> Process {
    setup.server.scenario(|scenario| scenario.hold = true);
    let jobs_before = setup.server.jobs().len();
    let process = setup.start("sync", &[]);
    eventually("a poll", async || {
        let jobs = setup.server.jobs();
        (jobs.len() > jobs_before && jobs.last().unwrap().polls > 0).then_some(())
    })
    .await;
    process
}

fn job_in_flight(setup: &Setup) -> Option<JobInFlight> {
    peek(&setup.state_file()).unwrap().exports.remove("all")?.jobs.pop()
}

/// (rule 35, Q-3, Q-26)
#[tokio::test]
async fn a_process_killed_while_the_server_works_continues_with_the_same_job() {
    let setup = Setup::new().await;
    waiting(&setup).await.kill().await;
    let status_url = job_in_flight(&setup).unwrap().status_url;
    assert_eq!(status_url.as_str(), format!("{}/bulkstatus/1", setup.server.url()));
    setup.server.scenario(|scenario| scenario.hold = false);
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    let jobs = setup.server.jobs();
    assert_eq!((jobs.len(), jobs[0].deleted), (1, true));
    assert_eq!(job_in_flight(&setup), None);
    setup.assert_same_as_server().await;
}

/// The server states the end of the job as transactionTime, and the answer to the kick-off has no Date (rule 51, Q-31).
#[tokio::test]
async fn the_earliest_answer_still_bounds_the_watermark_when_the_job_is_resumed() {
    for is_complete in [false, true] {
        let setup = Setup::new().await;
        waiting(&setup).await.kill().await;
        let (mut open_state, _) = OpenState::open(&setup.state_file()).unwrap();
        open_state
            .update(|state| state.exports.get_mut("all").unwrap().jobs[0].server_time_at_kick_off = None)
            .unwrap();
        drop(open_state);
        setup.server.scenario(|scenario| (scenario.hold, scenario.hold_files) = (!is_complete, true));
        let process = setup.start("sync", &[]);
        eventually("the first answer", async || job_in_flight(&setup)?.server_time_later).await;
        process.kill().await;
        setup.server.world(|world| {
            world.advance(HOUR / 2);
            world.put(PATIENT, "p6", json!({}));
            world.advance(HOUR / 2);
        });
        setup.server.scenario(|scenario| {
            (scenario.hold, scenario.hold_files) = (false, false);
            scenario.transaction_time = Some("2026-01-01T02:00:00Z".to_owned());
        });
        setup.complete().await;
        assert_eq!(setup.watermark(PATIENT).await.unwrap().to_string(), "2026-01-01T01:00:00Z");
        setup.complete().await;
        setup.assert_same_as_server().await;
    }
}

/// (rule 137)
#[tokio::test]
async fn a_process_killed_in_the_middle_of_a_download_leaves_every_row_once() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.hold_files = true);
    let process = setup.start("sync", &[]);
    eventually("a download", async || (setup.file_requests() > 0).then_some(())).await;
    process.kill().await;
    setup.server.scenario(|scenario| scenario.hold_files = false);
    let ended = setup.process(&[]).await;
    assert_eq!((ended.code, setup.server.jobs().len()), (Some(0), 1), "{}", ended.output());
    setup.assert_same_as_server().await;
}

/// (rules 104 and 137)
#[tokio::test]
async fn a_process_killed_between_two_commits_leaves_every_row_once() {
    let mut setup = Setup::new().await;
    let names = ["Condition", "Device", "Encounter", "Goal", "Immunization", "Procedure"];
    setup.export.types.extend(names.map(|name| name.parse::<ResourceType>().unwrap()));
    setup.server.world(|world| {
        for resource_type in &setup.export.types {
            world.put(*resource_type, "one", json!({}));
        }
    });
    let process = setup.start("sync", &[("FHIR_SYNC__SYNC__PARALLEL_UPSERTS", "1")]);
    let first = setup.lake().join("Condition.parquet/_delta_log/00000000000000000001.json");
    eventually("the first commit", async || first.exists().then_some(())).await;
    process.kill().await;
    let ended = setup.process(&[]).await;
    assert_eq!((ended.code, setup.server.jobs().len()), (Some(0), 1), "{}", ended.output());
    setup.assert_same_as_server().await;
    let ledger = setup.root().ledger().await.unwrap();
    let killed = ledger.iter().find(|row| row.resource_type == "Condition").unwrap();
    assert_eq!((killed.run, killed.outcome.as_str(), killed.inserted), (1, "killed", 1), "{killed:#?}");
    let verified = setup.look(&["verify"]).await;
    assert_eq!(verified.stdout.matches("agrees").count(), setup.export.types.len(), "{}", verified.stdout);
}

#[tokio::test]
async fn a_table_deleted_during_an_incremental_export_is_loaded_again() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    waiting(&setup).await.kill().await;
    std::fs::remove_dir_all(setup.lake().join("Patient.parquet")).unwrap();
    setup.server.scenario(|scenario| scenario.hold = false);
    let report = setup.complete().await;
    assert_eq!(report.types[&PATIENT].counts.inserted, 6, "an increment is not written into an empty table");
    setup.assert_same_as_server().await;
}

/// (rule 45, Q-27)
#[tokio::test]
async fn a_job_that_the_server_lost_is_requested_again_with_the_same_since() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    waiting(&setup).await.kill().await;
    {
        // A young job may be unknown for a minute (rule 45); this one is an hour old.
        let (mut open_state, _) = OpenState::open(&setup.state_file()).unwrap();
        open_state
            .update(|state| {
                let job = state.exports.get_mut("all").unwrap().jobs.first_mut().unwrap();
                job.kicked_off_locally_at -= chrono::TimeDelta::hours(1);
            })
            .unwrap();
    }
    setup.server.scenario(|scenario| (scenario.hold, scenario.lose_job) = (false, true));
    let process = setup.start("sync", &[]);
    eventually("another job", async || (setup.server.jobs().len() == 3).then_some(())).await;
    setup.server.scenario(|scenario| scenario.lose_job = false);
    let ended = process.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    let jobs = setup.server.jobs();
    assert_eq!((jobs.len(), &jobs[2].since), (3, &jobs[1].since));
    assert!(jobs[1].since.is_some());
    setup.assert_same_as_server().await;
}

/// A server with one empty export. At each poll it records whether the state file contains the status URL.
async fn watching_server(state_file: PathBuf, polls: Arc<AtomicUsize>, known: Arc<AtomicUsize>) -> (String, Router) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let status_url = format!("{origin}/fhir/status/1");
    let kick_off = {
        let status_url = status_url.clone();
        async move || (StatusCode::ACCEPTED, [(header::CONTENT_LOCATION, status_url)])
    };
    let poll = async move || {
        let state = std::fs::read_to_string(&state_file).unwrap();
        polls.fetch_add(1, Relaxed);
        known.fetch_add(usize::from(state.contains(&status_url)), Relaxed);
        Json(json!({"transactionTime": "2026-01-01T00:00:00Z", "output": [], "error": []}))
    };
    (origin, Router::new().route("/fhir/$export", get(kick_off)).route("/fhir/status/1", get(poll)))
}

/// (rule 35)
#[tokio::test]
async fn the_status_url_is_in_the_state_file_before_the_first_poll() {
    let mut setup = Setup::new().await;
    let (polls, known) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (origin, router) = watching_server(setup.state_file(), Arc::clone(&polls), Arc::clone(&known)).await;
    let listener = TcpListener::bind(origin.strip_prefix("http://").unwrap()).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(axum::serve(listener, router).into_future());
    setup.client.server = format!("{origin}/fhir").parse().unwrap();
    assert_eq!(setup.sync().await.outcome, Outcome::Complete);
    assert_eq!((polls.load(Relaxed), known.load(Relaxed)), (1, 1));
}

/// (rule 136)
#[tokio::test]
async fn a_second_process_on_the_same_state_file_is_refused() {
    let setup = Setup::new().await;
    let first = waiting(&setup).await;
    let second = setup.process(&[]).await;
    assert_eq!(second.code, Some(11), "{}", second.output());
    let sentence = format!("another fhir-sync holds the state file {}", setup.state_file().display());
    assert!(second.stderr.contains(&sentence), "{}", second.stderr);
    assert_eq!(setup.server.jobs().len(), 1);
    setup.server.scenario(|scenario| scenario.hold = false);
    assert_eq!(first.end().await.code, Some(0));
    assert_eq!(setup.process(&[]).await.code, Some(0), "the lock ends with the process");
    setup.assert_same_as_server().await;
}
