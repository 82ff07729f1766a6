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
    state::{JobInFlight, Store, peek},
    sync::Outcome,
};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinSet};

use crate::harness::{PATIENT, Process, Stage, eventually};

/// A process that waits for the export that it asked for.
async fn waiting(stage: &Stage) -> Process {
    stage.server.scenario(|scenario| scenario.hold = true);
    let jobs_before = stage.server.jobs().len();
    let process = stage.start("sync", &[]);
    eventually("a poll", async || {
        let jobs = stage.server.jobs();
        (jobs.len() > jobs_before && jobs.last().unwrap().polls > 0).then_some(())
    })
    .await;
    process
}

fn job_in_flight(stage: &Stage) -> Option<JobInFlight> {
    peek(&stage.state_file()).unwrap().exports.remove("all")?.job
}

#[tokio::test]
async fn a_process_killed_while_the_server_works_goes_on_with_the_same_job() {
    let stage = Stage::set().await;
    waiting(&stage).await.kill().await;
    let status_url = job_in_flight(&stage).unwrap().status_url;
    assert_eq!(status_url.as_str(), format!("{}/bulkstatus/1", stage.server.url()));
    stage.server.scenario(|scenario| scenario.hold = false);
    let ended = stage.process(&[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said());
    let jobs = stage.server.jobs();
    assert_eq!((jobs.len(), jobs[0].deleted), (1, true));
    assert_eq!(job_in_flight(&stage), None);
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_process_killed_in_the_middle_of_a_download_leaves_every_row_once() {
    let stage = Stage::set().await;
    stage.server.scenario(|scenario| scenario.hold_files = true);
    let process = stage.start("sync", &[]);
    eventually("a download", async || (stage.file_requests() > 0).then_some(())).await;
    process.kill().await;
    stage.server.scenario(|scenario| scenario.hold_files = false);
    let ended = stage.process(&[]).await;
    assert_eq!((ended.code, stage.server.jobs().len()), (Some(0), 1), "{}", ended.said());
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_process_killed_between_two_commits_leaves_every_row_once() {
    let mut stage = Stage::set().await;
    let names = ["Condition", "Device", "Encounter", "Goal", "Immunization", "Procedure"];
    stage.export.types.extend(names.map(|name| name.parse::<ResourceType>().unwrap()));
    stage.server.world(|world| {
        for resource_type in &stage.export.types {
            world.put(*resource_type, "one", json!({}));
        }
    });
    let process = stage.start("sync", &[("FHIR_SYNC__SYNC__PARALLEL_UPSERTS", "1")]);
    let first = stage.lake().join("Condition.parquet/_delta_log/00000000000000000001.json");
    eventually("the first commit", async || first.exists().then_some(())).await;
    process.kill().await;
    let ended = stage.process(&[]).await;
    assert_eq!((ended.code, stage.server.jobs().len()), (Some(0), 1), "{}", ended.said());
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_table_deleted_while_an_incremental_export_was_in_flight_is_loaded_anew() {
    let stage = Stage::set().await;
    stage.complete().await;
    stage.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    waiting(&stage).await.kill().await;
    std::fs::remove_dir_all(stage.lake().join("Patient.parquet")).unwrap();
    stage.server.scenario(|scenario| scenario.hold = false);
    let report = stage.sync().await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    assert_eq!(stage.watermark(PATIENT).await, None, "the changes alone are not the table");
    stage.complete().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_job_that_the_server_lost_is_asked_for_again_with_the_same_since() {
    let stage = Stage::set().await;
    stage.complete().await;
    stage.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    waiting(&stage).await.kill().await;
    {
        // A young job may be unknown for a minute (rule 45); this one is an hour old.
        let (mut store, _) = Store::open(&stage.state_file()).unwrap();
        store
            .update(|state| {
                let job = state.exports.get_mut("all").unwrap().job.as_mut().unwrap();
                job.polling_since -= chrono::TimeDelta::hours(1);
            })
            .unwrap();
    }
    stage.server.scenario(|scenario| (scenario.hold, scenario.lose_job) = (false, true));
    let process = stage.start("sync", &[]);
    eventually("another job", async || (stage.server.jobs().len() == 3).then_some(())).await;
    stage.server.scenario(|scenario| scenario.lose_job = false);
    let ended = process.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.said());
    let jobs = stage.server.jobs();
    assert_eq!((jobs.len(), &jobs[2].since), (3, &jobs[1].since));
    assert!(jobs[1].since.is_some());
    stage.assert_in_step().await;
}

/// A server of one empty export, which notes at each poll whether the state file knows of it.
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

#[tokio::test]
async fn the_status_url_is_in_the_state_file_before_the_first_poll() {
    let mut stage = Stage::set().await;
    let (polls, known) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let (origin, router) = watching_server(stage.state_file(), Arc::clone(&polls), Arc::clone(&known)).await;
    let listener = TcpListener::bind(origin.strip_prefix("http://").unwrap()).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(axum::serve(listener, router).into_future());
    stage.client.server = format!("{origin}/fhir").parse().unwrap();
    assert_eq!(stage.sync().await.outcome, Outcome::Complete);
    assert_eq!((polls.load(Relaxed), known.load(Relaxed)), (1, 1));
}

#[tokio::test]
async fn a_second_process_on_the_same_state_file_is_turned_away() {
    let stage = Stage::set().await;
    let first = waiting(&stage).await;
    let second = stage.process(&[]).await;
    assert_eq!(second.code, Some(11), "{}", second.said());
    let sentence = format!("another fhir-sync holds {}", stage.state_file().display());
    assert!(second.stderr.contains(&sentence), "{}", second.stderr);
    assert_eq!(stage.server.jobs().len(), 1);
    stage.server.scenario(|scenario| scenario.hold = false);
    assert_eq!(first.end().await.code, Some(0));
    assert_eq!(stage.process(&[]).await.code, Some(0), "the lock ends with the process");
    stage.assert_in_step().await;
}
