use fhir_sync::{
    demo::{Fault, StatusCode},
    fhir::ResourceType,
    state::{ExportState, peek},
    sync::{Export, Mode, Outcome},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::harness::{HOUR, Process, Setup, eventually};

/// The exit codes of a graceful end by `run` and by `sync`.
const COMMANDS: [(&str, i32); 2] = [("run", 0), ("sync", 130)];

/// The next sync completes; the tables equal the server's data, and there was only one export.
async fn assert_completes(setup: &Setup) {
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert_eq!(setup.server.jobs().len(), 1);
    setup.assert_same_as_server().await;
}

/// (rule 105)
#[tokio::test]
async fn a_signal_while_the_server_works_ends_the_process_and_the_next_start_waits_for_the_same_job() {
    for (command, code) in COMMANDS {
        let setup = Setup::new().await;
        setup.server.scenario(|scenario| scenario.hold = true);
        let process = setup.start(command, &[]);
        eventually("a poll", async || setup.server.jobs().first().filter(|job| job.polls > 0).map(drop)).await;
        process.terminate().await;
        let ended = process.end().await;
        assert_eq!(ended.code, Some(code), "{command}: {}", ended.output());
        setup.server.scenario(|scenario| scenario.hold = false);
        assert_completes(&setup).await;
    }
}

#[tokio::test]
async fn a_signal_during_a_download_ends_the_process_and_the_next_start_reads_the_same_files() {
    for (command, code) in COMMANDS {
        let setup = Setup::new().await;
        setup.server.scenario(|scenario| scenario.hold_files = true);
        let process = setup.start(command, &[]);
        eventually("a download", async || (setup.file_requests() > 0).then_some(())).await;
        process.terminate().await;
        let ended = process.end().await;
        assert_eq!(ended.code, Some(code), "{command}: {}", ended.output());
        setup.server.scenario(|scenario| scenario.hold_files = false);
        assert_completes(&setup).await;
    }
}

#[tokio::test]
async fn a_signal_between_two_commits_finishes_the_running_one_and_leaves_the_rest_to_the_next_start() {
    for (command, code) in COMMANDS {
        let mut setup = Setup::new().await;
        let names = ["Account", "Basic", "Condition", "Device", "Encounter", "Flag", "Goal", "Immunization", "List"];
        setup.export.types = names.map(|name| name.parse::<ResourceType>().unwrap()).to_vec();
        setup.server.world(|world| {
            for resource_type in &setup.export.types {
                world.put(*resource_type, "one", json!({}));
            }
        });
        let process = setup.start(command, &[("FHIR_SYNC__SYNC__PARALLEL_UPSERTS", "1")]);
        let first = setup.lake().join("Account.parquet/_delta_log/00000000000000000001.json");
        eventually("the first commit", async || first.exists().then_some(())).await;
        process.terminate().await;
        let ended = process.end().await;
        assert_eq!(ended.code, Some(code), "{command}: {}", ended.output());
        let last = setup.lake().join("List.parquet");
        assert!(
            !last.join("_delta_log/00000000000000000001.json").exists(),
            "the signal came too late to prove anything"
        );
        let files = std::fs::read_dir(last).unwrap().count();
        assert_eq!(files, 1, "only the log of the empty table; a cancelled upsert leaves no data file");
        for resource_type in &setup.export.types {
            let unnamed = &setup.data_files(*resource_type) - &setup.data_files_of_the_log(*resource_type);
            assert!(unnamed.is_empty(), "the commit of {resource_type} had begun and was not finished: {unnamed:?}");
        }
        assert_completes(&setup).await;
    }
}

/// Types with one resource each, loaded by the exports `all` and `second`, and what a process needs to load them again one
/// after the other.
async fn nine_types() -> (Setup, Vec<String>) {
    let mut setup = Setup::new().await;
    let names = ["Account", "Basic", "Condition", "Device", "Encounter", "Flag", "Goal", "Immunization", "List"];
    setup.export.types = names.map(|name| name.parse::<ResourceType>().unwrap()).to_vec();
    setup.export.reconciled.clear();
    setup.server.world(|world| {
        world.advance(4 * HOUR);
        for resource_type in &setup.export.types {
            world.put(*resource_type, "one", json!({}));
        }
    });
    setup.complete().await;
    let second = Export { name: "second".to_owned(), ..setup.export.clone() };
    let report = setup.open().await.unwrap().run(&second, Mode::Incremental, &CancellationToken::new()).await;
    assert_eq!(report.outcome, Outcome::Complete, "{report:#?}");
    let path = setup.folder.path().join("stop.toml");
    std::fs::write(&path, setup.config() + "reconcile = false\n").unwrap();
    let command = ["sync", "--full-refresh", "--config", path.to_str().unwrap()].map(str::to_owned).to_vec();
    (setup, command)
}

/// A full refresh that has committed the first of them.
async fn after_the_first_commit(setup: &Setup, command: &[String]) -> Process {
    let words: Vec<_> = command.iter().map(String::as_str).collect();
    let newest = setup.root().open("Account".parse().unwrap()).await.unwrap().unwrap().version();
    let process = Process::start(&words, &[("FHIR_SYNC__SYNC__PARALLEL_UPSERTS", "1")]);
    let commit = setup.lake().join(format!("Account.parquet/_delta_log/{:020}.json", newest + 1));
    eventually("the first commit", async || commit.exists().then_some(())).await;
    process
}

fn known(setup: &Setup, export: &str) -> ExportState {
    peek(&setup.state_file()).unwrap().exports.remove(export).unwrap()
}

/// The commit has lowered the watermark, so the tables do not tell of it. (rule 52)
#[tokio::test]
async fn a_step_back_of_the_server_s_clock_is_known_although_the_process_was_killed_after_a_commit() {
    let (setup, command) = nine_types().await;
    setup.server.world(|world| world.set_back(3 * HOUR));
    after_the_first_commit(&setup, &command).await.kill().await;
    let account = "Account".parse().unwrap();
    assert!(known(&setup, "all").set_back_from.contains_key(&account));
    setup.complete().await;
    setup.later(|world| assert!(world.delete(account, "one")));
    setup.complete().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn other_exports_load_what_was_in_damaged_files_although_a_signal_ended_the_run_that_removed_them() {
    let (setup, command) = nine_types().await;
    let account = "Account".parse().unwrap();
    for file in setup.data_files(account) {
        std::fs::write(setup.table_folder(account).join(file), "").unwrap();
    }
    let process = after_the_first_commit(&setup, &command).await;
    process.terminate().await;
    let ended = process.end().await;
    assert_eq!(ended.code, Some(130), "the signal came too late to prove anything: {}", ended.output());
    let reload = known(&setup, "second").reload;
    assert!(reload[&account].to_string().contains("damaged data files were removed by another export"), "{reload:?}");
}

#[tokio::test]
async fn a_signal_ends_an_idle_daemon_gracefully() {
    let setup = Setup::new().await;
    let process = setup.start("run", &[]);
    process.logged("sync complete").await;
    process.terminate().await;
    let ended = process.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    setup.assert_same_as_server().await;
}

/// A process that has committed its rows and whose DELETE of the export has just been answered 503.
async fn settling(setup: &Setup, command: &str, grace_period: &str) -> Process {
    setup.server.scenario(|scenario| scenario.hold_files = true);
    let settings = [
        ("FHIR_SYNC__SERVER__HTTP__RETRY_MIN_WAIT", "30s"),
        ("FHIR_SYNC__SERVER__HTTP__RETRY_MAX_WAIT", "30s"),
        ("FHIR_SYNC__DAEMON__GRACE_PERIOD", grace_period),
    ];
    let process = setup.start(command, &settings);
    eventually("a download", async || (setup.file_requests() > 0).then_some(())).await;
    setup.server.scenario(|scenario| {
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
        let requests = setup.server.requests();
        requests.iter().any(|request| request.method == "DELETE" && request.status == 503).then_some(())
    })
    .await;
    process
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() {
    for command in ["run", "sync"] {
        let setup = Setup::new().await;
        let mut process = settling(&setup, command, "60s").await;
        process.terminate().await;
        let stopping = if command == "run" { "stopping" } else { "stopping; a commit that has begun is finished" };
        process.logged(stopping).await;
        assert!(process.is_running(), "it still waits for the server");
        process.terminate().await;
        let ended = process.end().await;
        assert_eq!(ended.code, Some(130), "{command}: {}", ended.output());
        setup.complete().await;
        setup.assert_same_as_server().await;
    }
}

#[tokio::test]
async fn a_daemon_that_cannot_finish_ends_after_its_grace_period() {
    let setup = Setup::new().await;
    let process = settling(&setup, "run", "300ms").await;
    process.terminate().await;
    let ended = process.end().await;
    assert_eq!(ended.code, Some(130), "{}", ended.output());
    assert!(ended.stderr.contains("daemon.grace_period is over"), "{}", ended.stderr);
    setup.complete().await;
    setup.assert_same_as_server().await;
}
