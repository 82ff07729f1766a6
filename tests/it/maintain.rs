use serde_json::{Value, json};

use crate::harness::{Ended, PATIENT, Process, Stage, eventually};

/// A stage whose table of patients has two small files.
async fn two_files() -> Stage {
    let stage = Stage::set().await;
    stage.complete().await;
    stage.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    stage.complete().await;
    assert_eq!(stage.data_files(PATIENT).len(), 2);
    stage
}

async fn maintain(stage: &Stage, arguments: &[&str]) -> Ended {
    let path = stage.folder.path().join("maintain.toml");
    std::fs::write(&path, stage.config()).unwrap();
    let command = ["maintain", "--config", path.to_str().unwrap()];
    Process::start(&[&command, arguments].concat(), &[]).end().await
}

/// The cells of a type's row in what was printed.
fn row<'a>(ended: &'a Ended, of: &str) -> Vec<&'a str> {
    let line = ended.stdout.lines().find(|line| line.starts_with(of));
    line.unwrap_or_else(|| panic!("no {of} in\n{}", ended.said())).split_whitespace().collect()
}

#[tokio::test]
async fn maintenance_by_hand_says_what_it_did_to_each_table_and_changes_no_row() {
    let stage = two_files().await;
    let watermark = stage.watermark(PATIENT).await;
    let ended = maintain(&stage, &["--dry-run"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said());
    assert_eq!(row(&ended, "Patient")[1], "2");
    assert!(ended.stdout.contains("a dry run: nothing was changed"), "{}", ended.stdout);
    assert_eq!(stage.data_files(PATIENT).len(), 2);
    let ended = maintain(&stage, &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said());
    assert_eq!(row(&ended, "Patient")[1], "2");
    assert_eq!(row(&ended, "Observation")[1], "0");
    assert_eq!(stage.data_files(PATIENT).len(), 3, "what was replaced stays for a week");
    assert_eq!(stage.watermark(PATIENT).await, watermark);
    stage.assert_in_step().await;
    let ended = maintain(&stage, &["Patient"]).await;
    assert_eq!((ended.code, row(&ended, "Patient")[1]), (Some(0), "0"));
    assert!(!ended.stdout.contains("Observation"), "{}", ended.stdout);
    stage.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
    });
    stage.complete().await;
    stage.assert_in_step().await;
}

#[tokio::test]
async fn the_table_of_deletions_is_maintained_with_the_others_and_by_its_name() {
    let stage = Stage::set().await;
    stage.complete().await;
    for id in ["p1", "p2"] {
        stage.later(|world| assert!(world.delete(PATIENT, id)));
        stage.complete().await;
    }
    let ended = maintain(&stage, &["--dry-run"]).await;
    assert_eq!((ended.code, row(&ended, "deleted")[1]), (Some(0), "2"), "{}", ended.said());
    let ended = maintain(&stage, &["deleted"]).await;
    assert_eq!((ended.code, row(&ended, "deleted")[1]), (Some(0), "2"), "{}", ended.said());
    assert!(!ended.stdout.contains("Patient"), "{}", ended.stdout);
    let ended = maintain(&stage, &[]).await;
    assert_eq!((ended.code, row(&ended, "deleted")[1]), (Some(0), "0"), "{}", ended.said());
    stage.assert_in_step().await;
}

#[tokio::test]
async fn one_table_that_cannot_be_maintained_does_not_stop_the_others() {
    let stage = two_files().await;
    let log = stage.lake().join("Observation.parquet/_delta_log/00000000000000000001.json");
    std::fs::write(log, "{").unwrap();
    let ended = maintain(&stage, &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.said());
    assert!(ended.stdout.contains("Observation.parquet"), "{}", ended.said());
    assert_eq!(row(&ended, "Patient")[1], "2");
}

#[tokio::test]
async fn a_process_makes_the_checkpoint_that_a_dry_run_announced() {
    let stage = two_files().await;
    for _ in 0..8 {
        stage.later(|_| {});
        stage.complete().await;
    }
    let checkpoints = || {
        let log = std::fs::read_dir(stage.lake().join("Patient.parquet/_delta_log")).unwrap();
        let names = log.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".checkpoint.parquet")).collect::<Vec<_>>()
    };
    let announced = maintain(&stage, &["--dry-run"]).await;
    assert_eq!((row(&announced, "Patient")[6], checkpoints().len()), ("10", 0), "{}", announced.stdout);
    let ended = maintain(&stage, &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.said());
    assert_eq!(
        checkpoints(),
        ["00000000000000000011.checkpoint.parquet"],
        "after the commit that put the files together"
    );
    stage.assert_in_step().await;
    stage.complete().await;
}

#[tokio::test]
async fn maintenance_beside_a_daemon_is_refused() {
    let stage = two_files().await;
    let daemon = stage.start("run", &[]);
    daemon.health().await;
    assert_eq!(maintain(&stage, &[]).await.code, Some(11));
    assert_eq!(stage.data_files(PATIENT).len(), 2);
    daemon.terminate().await;
    assert_eq!(daemon.end().await.code, Some(0));
}

#[tokio::test]
async fn a_daemon_maintains_by_its_own_schedule_and_never_while_a_sync_runs() {
    let mut stage = Stage::set().await;
    stage.schedule = "* * * * * *";
    stage.server.scenario(|scenario| scenario.hold = true);
    let daemon = stage.start("run", &[("FHIR_SYNC__MAINTENANCE__SCHEDULE", "* * * * * *")]);
    daemon.logged("the run before is not done; this tick joins the waiting one").await;
    stage.server.scenario(|scenario| scenario.hold = false);
    daemon.logged("table maintained").await;
    daemon.logged("maintenance ends").await;
    eventually("a sync after the maintenance", async || (stage.server.jobs().len() >= 3).then_some(())).await;
    daemon.terminate().await;
    let ended = daemon.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.said());
    let events = ended.stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let runs = events.filter_map(|event| event["message"].as_str().map(str::to_owned));
    let borders = ["sync begins", "sync ends", "maintenance begins", "maintenance ends"];
    let runs: Vec<_> = runs.filter(|message| borders.contains(&message.as_str())).collect();
    assert!(runs.iter().any(|message| message == "maintenance ends"), "{runs:?}");
    for run in runs.chunks(2) {
        let [begins, ends] = run else { panic!("a run without an end: {runs:?}") };
        assert_eq!(begins.replace("begins", "ends"), *ends, "{runs:?}");
    }
    stage.complete().await;
    stage.assert_in_step().await;
}
