use fhir_sync::sync::{Level, Mode};
use serde_json::{Value, json};

use crate::harness::{PATIENT, Process, Setup, json_of};

#[tokio::test]
async fn each_run_has_a_row_per_type_in_the_ledger_also_one_that_failed() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    let hashed = [("FHIR_SYNC__SERVER__HTTP__HASH_FILES", "true")];
    assert_eq!(setup.process(&hashed).await.code, Some(0));
    setup.server.scenario(|scenario| scenario.hold = false);
    let unreachable = [("FHIR_SYNC__SERVER__URL", "http://127.0.0.1:9")];
    assert_eq!(setup.process(&unreachable).await.code, Some(1));
    let rows = setup.root().ledger().await.unwrap();
    let of_patients: Vec<_> = rows.iter().filter(|row| row.resource_type == "Patient").collect();
    assert_eq!(rows.len(), 6);
    let facts = |row: &fhir_sync::sync::LedgerRow| (row.run, row.end.clone(), row.received, row.inserted);
    let expected = [(1, "committed", 5, 5), (2, "committed", 1, 1), (3, "not reached", 0, 0)];
    let expected = expected.map(|(run, end, received, inserted)| (run, end.to_owned(), received, inserted));
    assert_eq!(of_patients.iter().map(|row| facts(row)).collect::<Vec<_>>(), expected);
    let second = of_patients[1];
    assert_eq!(second.watermark_before, of_patients[0].watermark_after);
    assert_eq!(second.since.as_deref(), Some("2026-01-01T00:55:00.000Z"));
    assert_eq!(second.files_announced, Some(second.files));
    assert_eq!(second.file_list.len() as u64, second.files);
    assert!(second.file_list.iter().all(|file| !file.name.contains("://")), "{second:#?}");
    assert!(second.file_list.iter().all(|file| file.sha256.as_ref().map(String::len) == Some(64)), "{second:#?}");
    assert!(of_patients[0].file_list.iter().all(|file| file.sha256.is_none()), "nobody asked for it");
    assert_eq!(second.file_list.iter().map(|file| file.bytes).sum::<u64>(), second.bytes);
    assert_eq!((second.level.as_str(), second.mode.as_str()), ("system", "incremental"));
    let failed = of_patients[2];
    assert_eq!(failed.outcome, "failed");
    assert!(failed.cause.as_ref().unwrap().contains("127.0.0.1"), "{failed:#?}");
    assert_eq!(failed.watermark_after, second.watermark_after, "it did not move");
}

#[tokio::test]
async fn runs_and_status_are_shown_beside_a_process_that_syncs() {
    let setup = Setup::new().await;
    setup.run(Mode::FullRefresh).await;
    setup.complete().await;
    let _running = setup.open().await.unwrap();
    let text = setup.look(&["runs", "--type", "Patient", "--limit", "1"]).await.stdout;
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.starts_with("export all, run 2, incremental, began 20") && text.contains("committed"), "{text}");
    let runs = json_of(&setup.look(&["runs", "--json"]).await);
    assert_eq!(runs.as_array().unwrap().len(), 4);
    assert_eq!(runs[1]["mode"], "full refresh");
    let status = json_of(&setup.look(&["status", "--json"]).await);
    assert_eq!(status["run"], 2);
    assert_eq!(status["exports"][0]["types"][1]["last_run"]["end"], "committed");
    assert!(status["exports"][0]["types"][1]["watermark"].is_string(), "{status}");
    let text = setup.look(&["status"]).await.stdout;
    assert!(text.starts_with("all: last complete 20"), "{text}");
}

#[tokio::test]
async fn a_ledger_that_cannot_be_written_does_not_fail_the_run_and_the_next_one_makes_up_for_it() {
    let setup = Setup::new().await;
    let runs = setup.lake().join("_fhir_sync/runs");
    std::fs::create_dir_all(runs.parent().unwrap()).unwrap();
    std::fs::write(&runs, "in the way").unwrap();
    let ended = setup.process(&[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert!(ended.stderr.contains("the run could not be recorded in the ledger"), "{}", ended.stderr);
    setup.assert_same_as_server().await;
    std::fs::remove_file(&runs).unwrap();
    setup.complete().await;
    let verified = setup.look(&["verify"]).await;
    assert_eq!(verified.stdout.matches("agrees").count(), 2, "the next run records both: {}", verified.stdout);
}

#[tokio::test]
async fn verify_agrees_with_tables_that_hold_what_the_runs_brought_and_names_rows_that_are_gone() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
        world.delete(PATIENT, "p1");
    });
    setup.complete().await;
    let patients =
        |all: Value| all.as_array().unwrap().iter().find(|of| of["resource_type"] == "Patient").unwrap().clone();
    let of_patients = patients(json_of(&setup.look(&["verify", "--json"]).await));
    assert_eq!((&of_patients["rows"], &of_patients["rows_by_ledger"]), (&json!(5), &json!(5)), "{of_patients}");
    assert_eq!(of_patients["differences"], json!([]));
    std::fs::remove_dir_all(setup.table_folder(PATIENT)).unwrap();
    let path = setup.folder.path().join("fhir-sync.toml");
    let ended = Process::start(&["verify", "--json", "--config", path.to_str().unwrap()], &[]).end().await;
    assert_eq!(ended.code, Some(1), "{}", ended.output());
    let of_patients = patients(json_of(&ended));
    assert_eq!(of_patients["differences"], json!(["the table is gone, and by the ledger it has 5 rows"]));
}

#[tokio::test]
async fn verify_online_names_the_full_refresh_where_the_server_has_fewer_than_the_table() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.server.world(|world| {
        world.delete(PATIENT, "p1");
    });
    let ended = setup.command(&["verify", "--online"], &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.output());
    let says = "the table has 5 rows, and the server has 4 now; if it has deleted the others without a report, \
                fhir-sync sync --full-refresh finds them";
    assert!(ended.stdout.contains(says), "{}", ended.stdout);
}

#[tokio::test]
async fn verify_online_compares_the_tables_with_the_counts_of_the_server() {
    let mut setup = Setup::new().await;
    setup.complete().await;
    let online = ["verify", "--online"];
    let agrees = setup.look(&online).await;
    assert_eq!(agrees.stdout.matches("agrees").count(), 2, "{}", agrees.stdout);
    // Without the ledger nobody else would notice.
    setup.server.world(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    let ended = setup.command(&online, &[]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.output());
    assert!(ended.stdout.contains("the table has 5 rows, and the server has 6 now"), "{}", ended.stdout);
    assert_eq!(setup.look(&["verify"]).await.stdout.matches("agrees").count(), 2);
    setup.server.scenario(|scenario| scenario.answers_counts = false);
    let silent = setup.look(&online).await;
    assert!(silent.stdout.contains("the server does not say how many it has"), "{}", silent.stdout);
    setup.server.scenario(|scenario| scenario.answers_counts = true);
    setup.export.level = Level::Group("g".to_owned());
    let of_group = setup.look(&online).await;
    assert!(of_group.stdout.contains("the export has a group or patients only"), "{}", of_group.stdout);
    setup.export.level = Level::System;
    let unreachable = [("FHIR_SYNC__SERVER__URL", "http://127.0.0.1:9")];
    let ended = setup.command(&[&online[..], &["--json"]].concat(), &unreachable).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert!(json_of(&ended)[0]["server_not_compared"].as_str().unwrap().contains("127.0.0.1"), "{}", ended.stdout);
}
