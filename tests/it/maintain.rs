use serde_json::{Value, json};

use crate::harness::{Ended, PATIENT, Process, Setup, eventually, json_of};

/// A setup whose Patient table has two small files.
async fn two_files() -> Setup {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    setup.complete().await;
    assert_eq!(setup.data_files(PATIENT).len(), 2);
    setup
}

async fn maintain(setup: &Setup, arguments: &[&str]) -> Ended {
    let path = setup.folder.path().join("maintain.toml");
    std::fs::write(&path, setup.config()).unwrap();
    let command = ["maintain", "--json", "--config", path.to_str().unwrap()];
    Process::start(&[&command, arguments].concat(), &[]).end().await
}

/// What was done to a table.
fn done(ended: &Ended, of: &str) -> Value {
    let tables = json_of(ended)["tables"].as_array().unwrap().clone();
    let done = tables.into_iter().find(|done| done["table"] == of);
    done.unwrap_or_else(|| panic!("no {of} in\n{}", ended.output()))
}

/// How many of its files were, or would be, rewritten.
fn rewritten(ended: &Ended, of: &str) -> Value {
    done(ended, of)["rewritten"]["files"].clone()
}

#[tokio::test]
async fn the_maintain_command_reports_what_it_did_to_each_table_and_changes_no_row() {
    let setup = two_files().await;
    let watermark = setup.watermark(PATIENT).await;
    let ended = maintain(&setup, &["--dry-run"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert_eq!(rewritten(&ended, "Patient"), 2);
    assert_eq!(json_of(&ended)["dry_run"], true, "{}", ended.stdout);
    assert_eq!(setup.data_files(PATIENT).len(), 2);
    let ended = maintain(&setup, &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert_eq!(rewritten(&ended, "Patient"), 2);
    assert_eq!(rewritten(&ended, "Observation"), 0);
    assert_eq!(setup.data_files(PATIENT).len(), 3, "replaced files are kept for a week");
    assert_eq!(setup.watermark(PATIENT).await, watermark);
    setup.assert_same_as_server().await;
    let ended = maintain(&setup, &["Patient"]).await;
    assert_eq!((ended.code, rewritten(&ended, "Patient")), (Some(0), json!(0)));
    assert!(!ended.stdout.contains("Observation"), "{}", ended.stdout);
    let in_words = setup.command(&["maintain", "Patient"], &[]).await;
    assert!(in_words.stdout.contains("nothing was to be done"), "{}", in_words.output());
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
    });
    setup.complete().await;
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn the_table_of_tombstones_is_maintained_with_the_others_and_by_its_name() {
    let setup = Setup::new().await;
    setup.complete().await;
    for id in ["p1", "p2"] {
        setup.later(|world| assert!(world.delete(PATIENT, id)));
        setup.complete().await;
    }
    let ended = maintain(&setup, &["--dry-run"]).await;
    assert_eq!((ended.code, rewritten(&ended, "deleted")), (Some(0), json!(2)), "{}", ended.output());
    let ended = maintain(&setup, &["deleted"]).await;
    assert_eq!((ended.code, rewritten(&ended, "deleted")), (Some(0), json!(2)), "{}", ended.output());
    assert!(!ended.stdout.contains("Patient"), "{}", ended.stdout);
    let ended = maintain(&setup, &[]).await;
    assert_eq!((ended.code, rewritten(&ended, "deleted")), (Some(0), json!(0)), "{}", ended.output());
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn one_table_that_cannot_be_maintained_does_not_stop_the_others() {
    let setup = two_files().await;
    let log = setup.lake().join("Observation.parquet/_delta_log/00000000000000000001.json");
    std::fs::write(log, "{").unwrap();
    let ended = maintain(&setup, &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.output());
    assert!(ended.stdout.contains("Observation.parquet"), "{}", ended.output());
    assert_eq!(rewritten(&ended, "Patient"), 2);
}

#[tokio::test]
async fn maintenance_writes_the_checkpoint_that_a_dry_run_announced() {
    let setup = two_files().await;
    for _ in 0..8 {
        setup.later(|_| {});
        setup.complete().await;
    }
    let checkpoints = || {
        let log = std::fs::read_dir(setup.lake().join("Patient.parquet/_delta_log")).unwrap();
        let names = log.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".checkpoint.parquet")).collect::<Vec<_>>()
    };
    let announced = maintain(&setup, &["--dry-run"]).await;
    assert_eq!(
        (done(&announced, "Patient")["checkpoint"].clone(), checkpoints().len()),
        (json!(10), 0),
        "{}",
        announced.stdout
    );
    let ended = maintain(&setup, &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert_eq!(checkpoints(), ["00000000000000000011.checkpoint.parquet"], "after the compaction");
    setup.assert_same_as_server().await;
    setup.complete().await;
}

/// Whose turns a log tells of. Each must end before the next begins, and nobody writes without it.
fn turns(log: &str) -> Vec<String> {
    let (mut turns, mut holder) = (Vec::new(), None::<String>);
    for event in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let activity = event["activity"].as_str().map(str::to_owned);
        match event["message"].as_str().unwrap_or_default() {
            "the turn begins" => {
                assert_eq!(holder, None, "{event}");
                turns.extend(activity.clone());
                holder = activity;
            }
            "the turn ends" => assert_eq!(holder.take(), activity, "{event}"),
            "table maintained" => assert_eq!(holder.as_deref(), Some("maintenance"), "{event}"),
            message if message.contains(" received, ") => assert_eq!(holder.as_deref(), Some("sync of all"), "{event}"),
            _ => {}
        }
    }
    turns
}

#[tokio::test]
async fn a_daemon_maintains_on_schedule_and_never_while_a_sync_writes() {
    let mut setup = Setup::new().await;
    setup.schedule = "* * * * * *";
    setup.server.scenario(|scenario| scenario.hold = true);
    let daemon = setup.start("run", &[("FHIR_SYNC__MAINTENANCE__SCHEDULE", "* * * * * *")]);
    daemon.logged("the previous run is not done; this tick joins the waiting one").await;
    setup.server.scenario(|scenario| scenario.hold = false);
    daemon.logged("table maintained").await;
    daemon.logged("maintenance ends").await;
    eventually("a sync after the maintenance", async || (setup.server.jobs().len() >= 3).then_some(())).await;
    daemon.terminate().await;
    let ended = daemon.end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert!(turns(&ended.stderr).contains(&"maintenance".to_owned()), "{}", ended.stderr);
    setup.complete().await;
    setup.assert_same_as_server().await;
}
