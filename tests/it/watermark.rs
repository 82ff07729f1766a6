use std::time::Duration;

use fhir_sync::{
    fhir::TransactionTime,
    sync::{Export, Mode, Outcome, TypeEnd},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::{CONDITION, HOUR, Made, OBSERVATION, PATIENT, Setup, end_of, eventually, ndjson};

fn at(text: &str) -> Option<TransactionTime> {
    fhir_sync::fhir::parse_instant(text).map(TransactionTime::from)
}

#[expect(clippy::disallowed_methods, reason = "what is compared with the server's clock is our own")]
fn local_now() -> chrono::DateTime<chrono::Utc> {
    chrono::Utc::now()
}

fn outcome(severity: &str) -> Value {
    json!({"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": "processing"}]})
}

/// (rule 15, Q-11)
#[tokio::test]
async fn since_is_the_watermark_minus_the_overlap_in_milliseconds() {
    let setup = Setup::new().await;
    setup.server.world(|world| world.advance(Duration::from_millis(2_500)));
    setup.complete().await;
    assert_eq!(setup.watermark(PATIENT).await, at("2026-01-01T01:00:02Z"), "a Date has no fractions of a second");
    setup.later(|_| {});
    setup.complete().await;
    assert_eq!(setup.server.jobs()[1].since.as_deref(), Some("2026-01-01T00:55:02.000Z"));
}

/// (rule 51, Q-31)
#[tokio::test]
async fn the_watermark_is_never_after_the_date_of_the_kick_off() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.transaction_time = Some("2027-01-01T00:00:00Z".to_owned()));
    setup.complete().await;
    assert_eq!(setup.watermark(PATIENT).await, at("2026-01-01T01:00:00Z"));
}

/// (rules 49 and 51)
#[tokio::test]
async fn the_watermark_is_the_transaction_time_if_that_is_before_the_date_of_the_kick_off() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.transaction_time = Some("2025-12-31T12:00:00.123456+01:00".to_owned()));
    setup.complete().await;
    assert_eq!(setup.watermark(PATIENT).await, at("2025-12-31T11:00:00.123456Z"));
    setup.server.scenario(|scenario| scenario.transaction_time = None);
    setup.complete().await;
    assert_eq!(setup.server.jobs()[1].since.as_deref(), Some("2025-12-31T10:55:00.123Z"), "rounded down");
}

/// (rule 139, Q-82)
#[tokio::test]
async fn a_sync_without_changes_writes_no_data_file_and_still_moves_the_watermark() {
    let setup = Setup::new().await;
    setup.complete().await;
    let files = setup.data_files(PATIENT);
    setup.later(|_| {});
    let report = setup.complete().await;
    assert_eq!((report.received(), report.types[&PATIENT].bytes_written), (0, 0));
    assert_eq!(setup.data_files(PATIENT), files);
    assert_eq!(setup.watermark(PATIENT).await, at("2026-01-01T02:00:00Z"));
    assert_eq!(setup.watermark(OBSERVATION).await, at("2026-01-01T02:00:00Z"));
}

/// (rule 52)
#[tokio::test]
async fn an_export_that_ends_before_the_watermark_is_named_and_nothing_that_changed_since_is_lost() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.server.scenario(|scenario| scenario.transaction_time = Some("2025-12-31T20:00:00Z".to_owned()));
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(report.remarks.iter().any(|remark| remark.contains("Patient is set back")), "{report:#?}");
    assert_eq!(setup.watermark(PATIENT).await, at("2026-01-01T01:00:00Z"));
    setup.server.scenario(|scenario| scenario.transaction_time = None);
    setup.complete().await;
    let since = setup.server.jobs().last().unwrap().since.clone();
    assert_eq!(since, None, "nobody knows since when");
}

/// (rule 52)
#[tokio::test]
async fn what_changes_after_a_clock_was_set_back_is_not_lost_and_the_watermark_follows_the_clock() {
    let mut setup = Setup::new().await;
    setup.config.reconcile.max_missing = 20;
    setup.server.world(|world| {
        world.advance(4 * HOUR);
        // Newer than anything on the corrected clock.
        world.put(PATIENT, "p1", json!({"gender": "unknown"}));
        world.put(PATIENT, "p4", json!({"gender": "unknown"}));
        world.put(PATIENT, "p5", json!({"gender": "unknown"}));
    });
    setup.complete().await;
    setup.server.world(|world| world.delete(PATIENT, "p3"));
    setup.complete().await;
    setup.server.world(|world| {
        // No export by the former clock has it.
        world.advance(HOUR);
        world.put(PATIENT, "p6", json!({"gender": "unknown"}));
        world.set_back(5 * HOUR);
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.advance(HOUR);
        world.delete(PATIENT, "p2");
        world.advance(HOUR);
    });
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    setup.complete().await;
    assert_eq!(setup.watermark(PATIENT).await, at("2026-01-01T03:00:00Z"));
    assert!(setup.lines(PATIENT).await.iter().any(|line| line.contains("male")), "changed on the corrected clock");
    setup.assert_same_as_server().await;
    // Still before the times that the former versions, and a deletion, state.
    setup.later(|world| {
        world.put(PATIENT, "p4", json!({"gender": "male"}));
        world.delete(PATIENT, "p5");
        world.delete(PATIENT, "p6");
        world.put(PATIENT, "p3", json!({"gender": "male"}));
    });
    setup.complete().await;
    setup.assert_same_as_server().await;
    setup.later(|world| {
        world.advance(4 * HOUR);
        world.put(PATIENT, "p3", json!({"gender": "female"}));
    });
    setup.complete().await;
    assert_eq!(setup.server.jobs().last().unwrap().since.as_deref(), Some("2026-01-01T03:55:00.000Z"));
}

/// They were stored under the former clock, which the server has not reached again. (rule 52)
#[tokio::test]
async fn rows_that_a_load_has_kept_after_a_clock_was_set_back_are_removed_by_the_operator_s_word() {
    let mut setup = Setup::new().await;
    (setup.config.reconcile.max_missing, setup.config.reconcile.max_missing_percent) = (0, 0.0);
    setup.server.world(|world| world.advance(4 * HOUR));
    setup.complete().await;
    setup.server.world(|world| {
        world.set_back(4 * HOUR);
        world.delete(PATIENT, "p2");
        world.advance(HOUR);
    });
    setup.sync().await;
    let report = setup.sync().await;
    assert_eq!(report.types[&PATIENT].counts.missing, 1, "{report:#?}");
    setup.later(|_| ());
    setup.config.allow_empty = [PATIENT].into();
    let report = setup.run(Mode::FullRefresh).await;
    assert_eq!(report.types[&PATIENT].counts.removed, 1, "{report:#?}");
    setup.assert_same_as_server().await;
}

/// A cache, or a copy of the server that lags: its clock is right, and its rows are old.
#[tokio::test]
async fn an_old_export_that_comes_again_in_a_full_refresh_wins_over_nothing_newer() {
    let mut setup = Setup::new().await;
    (setup.config.reconcile.max_missing, setup.config.reconcile.max_missing_percent) = (0, 0.0);
    setup.complete().await;
    for id in ["p1", "new"] {
        setup.later(|world| _ = world.put(PATIENT, id, json!({"gender": "male"})));
    }
    setup.complete().await;
    let before = setup.lines(PATIENT).await;
    let old = json!({"resourceType": "Patient", "id": "p1", "meta": {"lastUpdated": "2026-01-01T00:00:00Z"}});
    let made = Made::default().output("Patient", 1, &ndjson(&[old]));
    made.serve_at(&setup, "2026-01-01T01:00:00Z");
    setup.run(Mode::FullRefresh).await;
    assert_eq!(setup.lines(PATIENT).await, before);
}

#[tokio::test]
async fn rows_of_an_export_with_a_time_of_the_future_do_not_outlive_a_full_refresh() {
    let mut setup = Setup::new().await;
    setup.config.reconcile.max_missing = 20;
    setup.server.scenario(|scenario| scenario.clock_offset = chrono::TimeDelta::days(4_000));
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    setup.server.scenario(|scenario| scenario.clock_offset = chrono::TimeDelta::zero());
    setup.later(|world| _ = world.delete(PATIENT, "p1"));
    assert_eq!(setup.run(Mode::FullRefresh).await.outcome, Outcome::Complete);
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn what_the_server_deletes_between_a_load_that_is_held_and_the_next_one_does_not_stay() {
    let mut setup = Setup::new().await;
    setup.config.reconcile.max_missing = 20;
    setup.server.scenario(|scenario| scenario.outcomes = vec![outcome("error")]);
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    setup.server.scenario(|scenario| scenario.outcomes.clear());
    setup.later(|world| _ = world.delete(PATIENT, "p1"));
    let report = setup.complete().await;
    assert_eq!(report.types[&PATIENT].counts.removed, 1, "{report:#?}");
    setup.assert_same_as_server().await;
}

/// (rule 52)
#[tokio::test]
async fn a_watermark_stays_where_an_export_ends_a_little_earlier() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.server.scenario(|scenario| scenario.transaction_time = Some("2026-01-01T00:58:00Z".to_owned()));
    setup.complete().await;
    assert_eq!(setup.watermark(PATIENT).await, at("2026-01-01T01:00:00Z"), "the overlap covers it");
}

///
#[tokio::test]
async fn an_old_export_that_comes_again_is_named() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p9", json!({}));
    });
    setup.server.scenario(|scenario| scenario.transaction_time = Some("2026-01-01T01:00:00Z".to_owned()));
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    assert!(report.remarks.iter().any(|remark| remark.contains("old export again")), "{report:#?}");
    assert_eq!(setup.watermark(PATIENT).await, at("2026-01-01T01:00:00Z"));
}

/// (rule 131)
#[tokio::test]
async fn a_clock_more_than_a_day_ahead_of_ours_writes_rows_and_holds_every_watermark() {
    let setup = Setup::new().await;
    setup.complete().await;
    let before = setup.watermark(PATIENT).await;
    let behind = setup.server.world(|world| (local_now() - world.now()).to_std().unwrap());
    setup.server.world(|world| {
        world.advance(behind + 25 * HOUR);
        world.put(PATIENT, "p6", json!({}));
    });
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::WatermarkHeld { .. }), "{report:#?}");
    let both = |remark: &String| {
        let times = remark.split_whitespace().filter(|word| at(word.trim_end_matches([',', ':'])).is_some());
        remark.contains("ahead of the local clock") && times.count() == 2
    };
    assert!(report.remarks.iter().any(both), "{report:#?}");
    assert_eq!((setup.watermark(PATIENT).await, setup.watermark(OBSERVATION).await), (before, before));
    setup.assert_same_as_server().await;
}

/// A later run, whose clock agrees, would take them for rows with the time of their export.
#[tokio::test]
async fn an_export_that_is_more_than_a_day_ahead_of_ours_has_no_instalments() {
    let mut setup = Setup::new().await;
    (setup.config.instalment_bytes, setup.config.parallel_downloads) = (1, 1);
    setup.server.scenario(|scenario| scenario.lines_per_file = 1);
    let behind = setup.server.world(|world| (local_now() - world.now()).to_std().unwrap());
    setup.server.world(|world| world.advance(behind + 25 * HOUR));
    let report = setup.sync().await;
    assert!(report.instalments.is_empty(), "{report:#?}");
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::WatermarkHeld { .. }), "{report:#?}");
}

/// (rules 52 and 131)
#[tokio::test]
async fn what_changes_after_a_clock_that_was_years_ahead_was_set_right_is_not_taken_for_older() {
    let setup = Setup::new().await;
    setup.complete().await;
    let years = setup.server.world(|world| (local_now() - world.now()).to_std().unwrap()) + 87_600 * HOUR;
    setup.server.world(|world| {
        world.advance(years);
        world.put(PATIENT, "p1", json!({"gender": "unknown"}));
        world.put(PATIENT, "p6", json!({}));
        world.delete(PATIENT, "p3");
    });
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    setup.server.world(|world| world.set_back(years));
    setup.later(|_| ());
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.delete(PATIENT, "p6");
        world.put(PATIENT, "p3", json!({"gender": "male"}));
    });
    setup.complete().await;
    setup.assert_same_as_server().await;
}

/// What came since has the times of a clock that was right. (rules 52 and 131)
#[tokio::test]
async fn a_load_that_is_read_late_after_a_clock_was_years_ahead_wins_over_nothing_of_another_export() {
    let mut setup = Setup::new().await;
    setup.config.reconcile.max_missing = 20;
    let other = Export { name: "other".to_owned(), ..setup.export.clone() };
    let syncer = setup.open_with(&[setup.export.clone(), other.clone()]).await.unwrap();
    let stop = CancellationToken::new();
    let run = async |export: &Export| syncer.run(export, Mode::Incremental, &stop).await.outcome;
    assert_eq!((run(&setup.export).await, run(&other).await), (Outcome::Complete, Outcome::Complete));
    setup.server.scenario(|scenario| scenario.clock_offset = chrono::TimeDelta::days(4_000));
    assert_eq!(run(&setup.export).await, Outcome::Partial);
    setup.server.scenario(|scenario| (scenario.clock_offset, scenario.hold) = (chrono::TimeDelta::zero(), true));
    setup.later(|_| ());
    let stop_it = CancellationToken::new();
    let jobs = setup.server.jobs().len();
    let asks = async {
        eventually("a job", async || (setup.server.jobs().len() > jobs).then_some(())).await;
        stop_it.cancel();
    };
    tokio::join!(syncer.run(&setup.export, Mode::FullRefresh, &stop_it), asks);
    setup.server.scenario(|scenario| scenario.hold = false);
    setup.later(|world| {
        world.put(PATIENT, "p1", json!({"gender": "male"}));
        world.delete(PATIENT, "p2");
        world.put(PATIENT, "p6", json!({}));
    });
    assert_eq!(run(&other).await, Outcome::Complete);
    setup.assert_same_as_server().await;
    assert_eq!(run(&setup.export).await, Outcome::Complete);
    assert_eq!(setup.server.jobs().len(), jobs + 2, "the full refresh goes on");
    setup.assert_same_as_server().await;
}

/// (rules 52 and 131)
#[tokio::test]
async fn after_a_clock_was_years_ahead_exports_have_instalments_that_are_not_taken_for_older() {
    let mut setup = Setup::new().await;
    (setup.config.instalment_bytes, setup.config.parallel_downloads) = (1, 1);
    setup.complete().await;
    let years = setup.server.world(|world| (local_now() - world.now()).to_std().unwrap()) + 87_600 * HOUR;
    let ids = ["p1", "p2", "p3"];
    setup.server.world(|world| {
        world.advance(years);
        assert!(ids.iter().all(|id| world.delete(PATIENT, id)));
    });
    assert_eq!(setup.sync().await.outcome, Outcome::Partial);
    setup.server.world(|world| world.set_back(years));
    setup.later(|world| {
        for id in ids {
            world.put(PATIENT, id, json!({"gender": "male"}));
        }
    });
    setup.server.scenario(|scenario| scenario.lines_per_file = 1);
    let report = setup.complete().await;
    assert!(!report.instalments.is_empty(), "{report:#?}");
    setup.assert_same_as_server().await;
}

/// (rule 131)
#[tokio::test]
async fn a_clock_less_than_a_day_ahead_of_ours_holds_nothing() {
    let setup = Setup::new().await;
    let behind = setup.server.world(|world| (local_now() - world.now()).to_std().unwrap());
    setup.server.world(|world| world.advance(behind + 23 * HOUR));
    setup.complete().await;
}

#[tokio::test]
async fn an_old_export_is_named_although_its_transaction_time_has_more_digits_than_a_date() {
    let setup = Setup::new().await;
    setup.server.world(|world| world.advance(Duration::from_millis(789)));
    setup.complete().await;
    setup.server.scenario(|scenario| scenario.repeats_export = true);
    setup.later(|world| {
        world.put(PATIENT, "p9", json!({}));
    });
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    setup.server.scenario(|scenario| scenario.repeats_export = false);
    setup.complete().await;
    setup.assert_same_as_server().await;
}

/// (rule 113)
#[tokio::test]
async fn a_new_type_in_the_configuration_is_loaded_in_full_and_the_others_incrementally() {
    let mut setup = Setup::new().await;
    setup.server.world(|world| world.put(CONDITION, "c1", json!({})));
    setup.complete().await;
    setup.export.types.push(CONDITION);
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    let report = setup.complete().await;
    setup.assert_same_as_server().await;
    assert_eq!((report.types[&CONDITION].counts.inserted, report.types[&PATIENT].received), (1, 1));
    let asked: Vec<_> = setup.server.jobs().into_iter().skip(1).map(|job| (job.types, job.since)).collect();
    let since = Some("2026-01-01T00:55:00.000Z".to_owned());
    assert_eq!(asked, [(vec![OBSERVATION, PATIENT], since), (vec![CONDITION], None)]);
}

#[tokio::test]
async fn another_export_name_starts_with_a_full_load_and_keeps_the_rows() {
    let mut setup = Setup::new().await;
    setup.complete().await;
    setup.export.name = "nightly".to_owned();
    let report = setup.complete().await;
    assert_eq!((report.changed(), setup.server.jobs()[1].since.clone()), (0, None));
    setup.assert_same_as_server().await;
}

/// (rule 50, Q-23)
#[tokio::test]
async fn without_a_transaction_time_rows_are_written_and_the_watermark_does_not_move() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    setup.server.scenario(|scenario| scenario.omit_transaction_time = true);
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::WatermarkHeld { .. }), "{report:#?}");
    assert!(report.remarks.iter().any(|remark| remark.contains("transactionTime")), "{report:#?}");
    setup.assert_same_as_server().await;
    assert_eq!(setup.watermark(PATIENT).await, at("2026-01-01T01:00:00Z"));
    setup.server.scenario(|scenario| scenario.omit_transaction_time = false);
    setup.complete().await;
    let jobs = setup.server.jobs();
    assert_eq!(jobs[2].since, jobs[1].since, "the same is asked for again");
    setup.assert_same_as_server().await;
}

/// (rules 100 and 101)
#[tokio::test]
async fn an_error_among_the_outcomes_stops_the_watermark_and_keeps_the_rows() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.outcomes = vec![outcome("information"), outcome("error")]);
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::WatermarkHeld { .. }), "{report:#?}");
    assert!(
        report.remarks.iter().any(|remark| remark.contains("missing data: 1 times, first error (processing)")),
        "{report:#?}"
    );
    assert_eq!(setup.watermark(PATIENT).await, None);
    setup.assert_same_as_server().await;
}

/// (rule 101)
#[tokio::test]
async fn information_among_the_outcomes_does_not_stop_the_watermark() {
    let setup = Setup::new().await;
    setup.server.scenario(|scenario| scenario.outcomes = vec![outcome("information"), outcome("warning")]);
    setup.complete().await;
    assert_eq!(setup.watermark(PATIENT).await, at("2026-01-01T01:00:00Z"));
    setup.assert_same_as_server().await;
}
