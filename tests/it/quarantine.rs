use fhir_sync::sync::{Export, Mode, Outcome, QuarantineRow, Report, TypeEnd};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{Made, OBSERVATION, PATIENT, Setup, end_of, failure, json_of, ndjson};

/// In every bad line of these tests, and nowhere else.
const MARK: &str = "Mustermann-7c1f";

/// A line that a later version might read, and one that is broken, after the five patients.
async fn with_bad_lines() -> Setup {
    let mut setup = Setup::new().await;
    setup.config.quarantine.max_quarantined_percent = 50.0;
    setup.server.world(|world| {
        world.push_line(PATIENT, json!({"resourceType": "Patient", "name": [{"family": MARK}]}).to_string());
        world.push_line(PATIENT, format!("{{\"resourceType\":\"Patient\",\"id\":\"x1\",\"name\":\"{MARK}\u{1b}[2J"));
    });
    setup
}

const LENIENT: (&str, &str) = ("FHIR_SYNC__SYNC__MAX_QUARANTINED_PERCENT", "50");

/// Everything that is on the disk below the lake.
fn lake_has(setup: &Setup, text: &str) -> bool {
    let mut folders = vec![setup.lake()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if std::fs::read(&path).unwrap().windows(text.len()).any(|window| window == text.as_bytes()) {
                return true;
            }
        }
    }
    false
}

#[tokio::test]
async fn a_line_that_comes_again_is_announced_once_and_by_the_type_that_it_is_of() {
    let setup = with_bad_lines().await;
    for run in 1..=2 {
        let report = setup.run(Mode::FullRefresh).await;
        assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
        let is_said = |what: &String| what.contains("quarantine");
        assert_eq!(report.remarks.iter().filter(|remark| is_said(remark)).count(), 1, "run {run}: {report:#?}");
        assert!(!report.notes.iter().any(is_said), "run {run}: they are those of the remark: {report:#?}");
        let ledger = setup.root().ledger().await.unwrap();
        for row in ledger.iter().filter(|row| row.run == report.run) {
            let is_of_patients = row.resource_type == "Patient";
            assert_eq!(row.cause.as_ref().is_some_and(is_said), is_of_patients, "{row:#?}");
        }
    }
}

/// No increment brings them again. (rule 90)
#[tokio::test]
async fn lines_in_quarantine_are_noted_by_each_run_until_a_full_refresh_has_brought_their_rows() {
    let mut setup = Setup::new().await;
    setup.config.quarantine.max_quarantined_percent = 90.0;
    setup.export.types = vec![PATIENT];
    let patient = |id: u32| json!({"resourceType": "Patient", "id": format!("p{id}")});
    let served = |lines: &[Value]| Made::default().output("Patient", None, &ndjson(lines)).serve(&setup);
    let noted =
        |report: &Report| report.notes.iter().any(|note| note.starts_with("1 line of these types is in quarantine"));
    served(&[patient(1), patient(2), json!({"resourceType": "Patient"})]);
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    for _ in 0..2 {
        served(&[patient(2)]);
        let report = setup.complete().await;
        assert!(noted(&report), "{report:#?}");
        setup.later(|_| ());
    }
    let made = Made::default().output("Patient", None, &ndjson(&[patient(1), patient(2), patient(3)]));
    made.error(1, "{}\n").serve(&setup);
    let report = setup.run(Mode::FullRefresh).await;
    assert!(report.outcome == Outcome::Partial && noted(&report), "it may lack rows itself: {report:#?}");
    served(&[patient(1), patient(2), patient(3)]);
    assert_eq!(setup.run(Mode::FullRefresh).await.outcome, Outcome::Complete);
    served(&[patient(3)]);
    let report = setup.complete().await;
    assert!(!noted(&report), "{report:#?}");
}

/// The line is kept once, for the export that brought it first.
#[tokio::test]
async fn a_line_that_two_exports_brought_is_noted_for_both_until_both_have_its_row() {
    let mut setup = Setup::new().await;
    setup.config.quarantine.max_quarantined_percent = 90.0;
    setup.export.types = vec![PATIENT];
    setup.export.reconciled.clear();
    let patient = |id: u32| json!({"resourceType": "Patient", "id": format!("p{id}")});
    let served = |lines: &[Value]| Made::default().output("Patient", None, &ndjson(lines)).serve(&setup);
    let noted =
        |report: &Report| report.notes.iter().any(|note| note.starts_with("1 line of these types is in quarantine"));
    let (first, second) = (&setup.export, &Export { name: "second".to_owned(), ..setup.export.clone() });
    let run =
        async |export: &Export, mode| setup.open().await.unwrap().run(export, mode, &CancellationToken::new()).await;
    for export in [first, second] {
        served(&[patient(1), patient(2), json!({"resourceType": "Patient"})]);
        assert_eq!(run(export, Mode::Incremental).await.outcome, Outcome::Partial);
    }
    served(&[patient(1), patient(2), patient(3)]);
    let report = run(first, Mode::FullRefresh).await;
    assert!(report.outcome == Outcome::Complete && !noted(&report), "{report:#?}");
    served(&[patient(2)]);
    assert!(noted(&run(second, Mode::Incremental).await));
}

#[tokio::test]
async fn quarantined_lines_are_listed_without_their_content_and_shown_on_request() {
    let setup = with_bad_lines().await;
    setup.sync().await;
    let _running = setup.open().await.unwrap();
    let listed = json_of(&setup.look(&["quarantine", "list", "--json"]).await);
    let facts = |row: &Value| (row["line"].clone(), row["reason"].clone(), row["run"].clone(), row["form"].clone());
    let expected = [("no-id", 6), ("not-json", 7)];
    let expected = expected.map(|(reason, line)| (json!(line), json!(reason), json!(1), json!("plain")));
    assert_eq!(listed.as_array().unwrap().iter().map(facts).collect::<Vec<_>>(), expected);
    assert!(!listed.to_string().contains(MARK), "{listed}");
    let text = setup.look(&["quarantine", "list", "--type", "Patient", "--reason", "no-id"]).await.stdout;
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.contains("Patient file 1 of 1, line 6") && !text.contains(MARK), "{text}");
    assert_eq!(setup.look(&["quarantine", "list", "--run", "2"]).await.stdout.lines().count(), 1);

    let id = listed[1]["id"].as_str().unwrap();
    let shown = setup.look(&["quarantine", "show", &id[..8]]).await.stdout;
    assert!(shown.contains(MARK) && shown.contains("not-json"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "a line must not change the terminal");
    let shown = json_of(&setup.look(&["quarantine", "show", id, "--json"]).await);
    assert!(shown["text"].as_str().unwrap().ends_with("[2J"), "{shown}");
    assert_eq!(setup.command(&["quarantine", "show", "zz"], &[]).await.code, Some(1));
}

#[tokio::test]
async fn encrypted_lines_are_on_the_disk_only_encrypted_and_shown_with_their_key() {
    let setup = with_bad_lines().await;
    let key_file = setup.folder.path().join("key");
    let write_key = |key: &str| {
        use std::{fs, os::unix::fs::PermissionsExt as _};
        fs::write(&key_file, key.repeat(32)).unwrap();
        fs::set_permissions(&key_file, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write_key("0f");
    let policy = ("FHIR_SYNC__SYNC__QUARANTINE__POLICY", "encrypted");
    let encrypted = [LENIENT, policy, ("FHIR_SYNC__SYNC__QUARANTINE__KEY_FILE", key_file.to_str().unwrap())];
    assert_eq!(setup.process(&encrypted).await.code, Some(3));
    assert!(!lake_has(&setup, MARK));
    let id = setup.root().quarantine().await.unwrap()[0].id.clone();
    let show = ["quarantine", "show", id.as_str()];
    let shown = setup.command(&show, &encrypted).await.stdout;
    assert!(shown.contains(MARK) && shown.contains("encrypted"), "{shown}");
    write_key("f0");
    for (settings, reason) in [(&encrypted[..], "cannot be decrypted"), (&[], "it is encrypted")] {
        let shown = setup.command(&show, settings).await.stdout;
        assert!(shown.contains(reason) && !shown.contains(MARK), "{shown}");
    }
}

#[tokio::test]
async fn withheld_lines_leave_only_their_places() {
    let setup = with_bad_lines().await;
    let withheld = [LENIENT, ("FHIR_SYNC__SYNC__QUARANTINE__POLICY", "withheld")];
    assert_eq!(setup.process(&withheld).await.code, Some(3));
    assert!(!lake_has(&setup, MARK));
    let rows = setup.root().quarantine().await.unwrap();
    assert_eq!(
        rows.iter().map(|row| (row.line, row.form.as_str())).collect::<Vec<_>>(),
        [(6, "withheld"), (7, "withheld")]
    );
    let shown = setup.look(&["quarantine", "show", &rows[0].id]).await.stdout;
    assert!(shown.contains("no-id") && shown.contains("was not kept"), "{shown}");
}

#[tokio::test]
async fn a_quarantine_that_cannot_be_written_fails_the_types_of_its_lines_only() {
    let setup = with_bad_lines().await;
    let place = setup.lake().join("_fhir_sync/quarantine");
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::fs::write(&place, "in the way").unwrap();
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(failure(&report, PATIENT).contains("could not be kept in the quarantine"), "{report:#?}");
    assert!(matches!(end_of(&report, OBSERVATION), TypeEnd::Committed { .. }), "{report:#?}");
    assert_eq!((setup.watermark(PATIENT).await, setup.lines(PATIENT).await.len()), (None, 0));
    std::fs::remove_file(&place).unwrap();
    let report = setup.sync().await;
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::Committed { .. }), "{report:#?}");
    assert_eq!(setup.quarantine().await.len(), 2);
}

#[tokio::test]
async fn the_quarantine_is_maintained_like_any_table_and_forgets_what_is_too_old() {
    let setup = with_bad_lines().await;
    setup.sync().await;
    let at_once = ("FHIR_SYNC__MAINTENANCE__QUARANTINE_RETENTION", "0s");
    // The server's clock is months behind ours: without --force, nothing is deleted by its age.
    for (arguments, settings, left) in [
        (&["maintain", "quarantine", "--force"][..], &[][..], 2),
        (&["maintain", "quarantine"], &[at_once], 2),
        (&["maintain", "quarantine", "--force"], &[at_once], 0),
    ] {
        let ended = setup.command(arguments, settings).await;
        assert_eq!((ended.code, setup.quarantine().await.len()), (Some(0), left), "{}", ended.output());
    }
    // The server still sends them.
    setup.run(Mode::FullRefresh).await;
    assert_eq!(setup.quarantine().await.len(), 2);
}

#[tokio::test]
async fn a_policy_that_needs_a_key_is_checked_before_anything_else() {
    let setup = Setup::new().await;
    let policy = |name| ("FHIR_SYNC__SYNC__QUARANTINE__POLICY", name);
    let key_file = |path| ("FHIR_SYNC__SYNC__QUARANTINE__KEY_FILE", path);
    for (settings, mistake) in [
        (vec![policy("encrypted")], "sync.quarantine.key_file: is missing"),
        (vec![key_file("/nonexistent")], "sync.quarantine.key_file: is set"),
        (vec![policy("encrypted"), key_file("/nonexistent")], "sync.quarantine.key_file: /nonexistent: cannot be read"),
        (vec![policy("hidden")], "sync.quarantine.policy: \"hidden\" is not one of plain, encrypted, withheld"),
    ] {
        let ended = setup.process(&settings).await;
        assert_eq!(ended.code, Some(78), "{}", ended.output());
        assert!(ended.stderr.contains(mistake), "{}", ended.stderr);
    }
}

/// A line as if an earlier version had not understood it.
fn not_understood(id: &str, setup: &Setup, line: &str) -> QuarantineRow {
    QuarantineRow {
        id: id.repeat(64),
        export: "all".to_owned(),
        run: 1,
        source: setup.config.source.to_string(),
        resource_type: Some("Patient".to_owned()),
        transaction_time: Some("2026-01-01T01:00:00Z".parse().unwrap()),
        file: "Patient file 1 of 1".to_owned(),
        reason: "not-json".to_owned(),
        form: QuarantineRow::PLAIN.to_owned(),
        content: Some(line.as_bytes().to_vec()),
        ..QuarantineRow::default()
    }
}

#[tokio::test]
async fn a_replay_upserts_what_is_a_resource_now_and_never_replaces_what_is_newer() {
    let setup = Setup::new().await;
    let old = setup.server.world(|world| world.lines(PATIENT, None));
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.delete(PATIENT, "p2");
    });
    setup.complete().await;
    let before = (setup.watermark(PATIENT).await, setup.watermark(OBSERVATION).await);
    let new = json!({"resourceType": "Patient", "id": "n1"}).to_string();
    let misplaced = json!({"resourceType": "Observation", "id": "n2", "status": "final"}).to_string();
    let lines = [old[0].as_ref(), old[1].as_ref(), &new, &misplaced, "{\"resourceType\":\"Patient\",", "{\"id\":1}"];
    let rows: Vec<_> =
        ["a", "b", "c", "d", "e", "f"].iter().zip(lines).map(|(id, line)| not_understood(id, &setup, line)).collect();
    setup.root().append_to_quarantine(&rows).await.unwrap();

    let ended = setup.command(&["quarantine", "replay"], &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert!(ended.stdout.contains("Patient: 1 inserted, 0 updated, 0 unchanged, 2 stale"), "{}", ended.stdout);
    assert!(ended.stdout.contains("4 lines replayed, 2 stay in the quarantine"), "{}", ended.stdout);
    let patients = setup.lines(PATIENT).await;
    assert!(patients.contains(&new) && !patients.contains(&old[0].to_string()), "{patients:?}");
    assert!(
        !patients.iter().any(|line| line.contains("\"p2\"")),
        "a deleted resource must not come back: {patients:?}"
    );
    assert!(setup.lines(OBSERVATION).await.contains(&misplaced));
    assert_eq!((setup.watermark(PATIENT).await, setup.watermark(OBSERVATION).await), before);
    let kept: Vec<_> = setup.quarantine().await.into_iter().filter(|row| row.content.is_some()).collect();
    assert_eq!(kept.iter().map(|row| &row.id[..1]).collect::<Vec<_>>(), ["e", "f"]);
    setup.look(&["verify"]).await;
    let again = setup.command(&["quarantine", "replay"], &[]).await;
    assert!(again.stdout.contains("0 lines replayed, 2 stay"), "{}", again.stdout);
    assert_eq!(setup.command(&["quarantine", "replay", "eee"], &[]).await.code, Some(1));
    setup.complete().await;
}

#[tokio::test]
async fn a_corrected_line_is_upserted_in_its_place_and_not_quarantined_again() {
    let setup = with_bad_lines().await;
    setup.sync().await;
    let broken = setup.quarantine().await.remove(1);
    let corrected = setup.folder.path().join("corrected.json");
    let replay = ["quarantine", "replay", &broken.id[..10], "--file", corrected.to_str().unwrap()];
    let good = json!({"resourceType": "Patient", "id": "x1", "name": [{"family": "M"}]});
    for text in ["", "{\"resourceType\":\"Patient\"}", &format!("{good}\n{{\"id\":\"x2\"}}")] {
        std::fs::write(&corrected, text).unwrap();
        assert_eq!(setup.command(&replay, &[]).await.code, Some(1), "{text}");
        assert_eq!(setup.lines(PATIENT).await.len(), 5, "{text}");
    }
    std::fs::write(&corrected, serde_json::to_string_pretty(&good).unwrap()).unwrap();
    let ended = setup.command(&replay, &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert_eq!(setup.lines(PATIENT).await.len(), 6);
    let kept = setup.quarantine().await;
    assert_eq!((kept.len(), &kept[1].content), (2, &None));
    assert!(kept[1].replayed_at.is_some());
    setup.run(Mode::FullRefresh).await;
    assert_eq!((setup.quarantine().await.len(), setup.lines(PATIENT).await.len()), (2, 6));
}

#[tokio::test]
async fn lines_are_purged_by_id_by_age_or_all_of_them() {
    let setup = with_bad_lines().await;
    setup.sync().await;
    let id = setup.quarantine().await[0].id.clone();
    for (arguments, left) in
        [(&["--older-than", "1h"][..], 2), (&[&id[..12]], 1), (&["--older-than", "0s"], 0), (&["--all"], 0)]
    {
        let ended = setup.command(&[&["quarantine", "purge"], arguments].concat(), &[]).await;
        assert_eq!((ended.code, setup.quarantine().await.len()), (Some(0), left), "{}", ended.output());
    }
    assert_eq!(setup.command(&["quarantine", "purge"], &[]).await.code, Some(2));
    let _running = setup.open().await.unwrap();
    for command in ["replay", "purge"] {
        let arguments = ["quarantine", command, "--all"];
        let arguments = if command == "purge" { &arguments[..] } else { &arguments[..2] };
        assert_eq!(setup.command(arguments, &[]).await.code, Some(11), "{command}");
    }
}
