use fhir_sync::{demo::Fault, demo::StatusCode, fhir::ResourceType};
use serde_json::json;

use crate::harness::{Process, Stage, eventually};

/// What a graceful end is called by `run` and by `sync`.
const COMMANDS: [(&str, i32); 2] = [("run", 0), ("sync", 130)];

/// Everything that the server has is there, in one row each, and only one export was asked for.
async fn assert_completes(stage: &Stage) {
    let ended = stage.process(&[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said());
    assert_eq!(stage.server.jobs().len(), 1);
    stage.assert_in_step().await;
}

#[tokio::test]
async fn a_signal_while_the_server_works_ends_at_once_and_the_next_start_waits_for_the_same_job() {
    for (command, code) in COMMANDS {
        let stage = Stage::set().await;
        stage.server.scenario(|scenario| scenario.hold = true);
        let process = stage.start(command, &[]);
        eventually("a poll", async || stage.server.jobs().first().filter(|job| job.polls > 0).map(drop)).await;
        process.terminate().await;
        let ended = process.end().await;
        assert_eq!(ended.code, Some(code), "{command}: {}", ended.said());
        stage.server.scenario(|scenario| scenario.hold = false);
        assert_completes(&stage).await;
    }
}

#[tokio::test]
async fn a_signal_in_the_middle_of_a_download_ends_at_once_and_the_next_start_reads_the_same_files() {
    for (command, code) in COMMANDS {
        let stage = Stage::set().await;
        stage.server.scenario(|scenario| scenario.hold_files = true);
        let process = stage.start(command, &[]);
        eventually("a download", async || (stage.file_requests() > 0).then_some(())).await;
        process.terminate().await;
        let ended = process.end().await;
        assert_eq!(ended.code, Some(code), "{command}: {}", ended.said());
        stage.server.scenario(|scenario| scenario.hold_files = false);
        assert_completes(&stage).await;
    }
}

#[tokio::test]
async fn a_signal_between_two_commits_finishes_the_one_that_has_begun_and_leaves_the_others_to_the_next_start() {
    for (command, code) in COMMANDS {
        let mut stage = Stage::set().await;
        let names = ["Account", "Basic", "Condition", "Device", "Encounter", "Flag", "Goal", "Immunization", "List"];
        stage.export.types = names.map(|name| name.parse::<ResourceType>().unwrap()).to_vec();
        stage.server.world(|world| {
            for resource_type in &stage.export.types {
                world.put(*resource_type, "one", json!({}));
            }
        });
        let process = stage.start(command, &[("FHIR_SYNC__SYNC__PARALLEL_UPSERTS", "1")]);
        let first = stage.lake().join("Account.parquet/_delta_log/00000000000000000001.json");
        eventually("the first commit", async || first.exists().then_some(())).await;
        process.terminate().await;
        let ended = process.end().await;
        assert_eq!(ended.code, Some(code), "{command}: {}", ended.said());
        let last = stage.lake().join("List.parquet");
        assert!(
            !last.join("_delta_log/00000000000000000001.json").exists(),
            "the signal came too late to prove anything"
        );
        let files = std::fs::read_dir(last).unwrap().count();
        assert_eq!(files, 1, "only the log of the empty table: rows that were not committed leave no file");
        assert_completes(&stage).await;
    }
}

#[tokio::test]
async fn a_signal_while_nothing_is_to_be_done_ends_the_daemon_gracefully() {
    let stage = Stage::set().await;
    let process = stage.start("run", &[]);
    process.logged("sync ends").await;
    process.terminate().await;
    let ended = process.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.said());
    stage.assert_in_step().await;
}

/// A process whose rows are committed, and which tells a server that does not listen that it may forget the export.
async fn settling(stage: &Stage, command: &str, grace_period: &str) -> Process {
    stage.server.scenario(|scenario| scenario.hold_files = true);
    let settings = [
        ("FHIR_SYNC__SERVER__HTTP__RETRY_MIN_WAIT", "30s"),
        ("FHIR_SYNC__SERVER__HTTP__RETRY_MAX_WAIT", "30s"),
        ("FHIR_SYNC__DAEMON__GRACE_PERIOD", grace_period),
    ];
    let process = stage.start(command, &settings);
    eventually("a download", async || (stage.file_requests() > 0).then_some(())).await;
    stage.server.scenario(|scenario| {
        scenario.hold_files = false;
        scenario.faults = vec![Fault::Status {
            path_contains: "/bulkstatus/".to_owned(),
            status: StatusCode::SERVICE_UNAVAILABLE,
            times: 1,
            retry_after: None,
            body: String::new(),
        }];
    });
    eventually("the refused DELETE", async || {
        let seen = stage.server.requests();
        seen.iter().any(|seen| seen.method == "DELETE" && seen.status == 503).then_some(())
    })
    .await;
    process
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for command in ["run", "sync"] {
        let stage = Stage::set().await;
        let mut process = settling(&stage, command, "60s").await;
        process.terminate().await;
        let stopping = if command == "run" { "stopping" } else { "stopping; a commit that has begun is finished" };
        process.logged(stopping).await;
        assert!(process.is_running(), "it still waits for the server");
        process.terminate().await;
        let ended = process.end().await;
        assert_eq!(ended.code, Some(130), "{command}: {}", ended.said());
        stage.complete().await;
        stage.assert_in_step().await;
    }
}

#[tokio::test]
async fn a_daemon_that_cannot_come_to_an_end_is_gone_after_its_grace_period() {
    let stage = Stage::set().await;
    let process = settling(&stage, "run", "300ms").await;
    process.terminate().await;
    let ended = process.end().await;
    assert_eq!(ended.code, Some(130), "{}", ended.said());
    assert!(ended.stderr.contains("did not come to an end in time"), "{}", ended.stderr);
    stage.complete().await;
    stage.assert_in_step().await;
}
