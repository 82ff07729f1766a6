use std::time::Duration;

use fhir_sync::{
    fhir::TransactionTime,
    sync::{Outcome, TypeEnd},
};
use serde_json::{Value, json};

use crate::harness::{CONDITION, OBSERVATION, PATIENT, Stage, end_of};

fn at(text: &str) -> Option<TransactionTime> {
    fhir_sync::fhir::parse_instant(text).map(TransactionTime::from)
}

fn outcome(severity: &str) -> Value {
    json!({"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": "processing"}]})
}

#[tokio::test]
async fn since_is_the_watermark_minus_the_overlap_in_milliseconds() {
    let stage = Stage::set().await;
    stage.server.world(|world| world.advance(Duration::from_millis(2_500)));
    stage.complete().await;
    assert_eq!(stage.watermark(PATIENT).await, at("2026-01-01T01:00:02Z"), "a Date has no fractions of a second");
    stage.later(|_| {});
    stage.complete().await;
    assert_eq!(stage.server.jobs()[1].since.as_deref(), Some("2026-01-01T00:55:02.000Z"));
}

#[tokio::test]
async fn the_watermark_never_lies_beyond_the_date_of_the_kick_off() {
    let stage = Stage::set().await;
    stage.server.scenario(|scenario| scenario.transaction_time = Some("2027-01-01T00:00:00Z".to_owned()));
    stage.complete().await;
    assert_eq!(stage.watermark(PATIENT).await, at("2026-01-01T01:00:00Z"));
}

#[tokio::test]
async fn the_watermark_is_the_transaction_time_where_the_server_lags_behind_its_own_clock() {
    let stage = Stage::set().await;
    stage.server.scenario(|scenario| scenario.transaction_time = Some("2025-12-31T12:00:00.123456+01:00".to_owned()));
    stage.complete().await;
    assert_eq!(stage.watermark(PATIENT).await, at("2025-12-31T11:00:00.123456Z"));
    stage.complete().await;
    assert_eq!(stage.server.jobs()[1].since.as_deref(), Some("2025-12-31T10:55:00.123Z"), "rounded down");
}

#[tokio::test]
async fn a_sync_without_changes_writes_no_data_file_and_still_moves_the_watermark() {
    let stage = Stage::set().await;
    stage.complete().await;
    let files = stage.data_files(PATIENT);
    stage.later(|_| {});
    let report = stage.complete().await;
    assert_eq!((report.received(), report.types[&PATIENT].bytes_written), (0, 0));
    assert_eq!(stage.data_files(PATIENT), files);
    assert_eq!(stage.watermark(PATIENT).await, at("2026-01-01T02:00:00Z"));
    assert_eq!(stage.watermark(OBSERVATION).await, at("2026-01-01T02:00:00Z"));
}

#[tokio::test]
async fn a_watermark_never_goes_backwards() {
    let stage = Stage::set().await;
    stage.complete().await;
    stage.server.scenario(|scenario| scenario.transaction_time = Some("2025-06-01T00:00:00Z".to_owned()));
    stage.complete().await;
    assert_eq!(stage.watermark(PATIENT).await, at("2026-01-01T01:00:00Z"));
}

#[tokio::test]
async fn a_type_new_in_the_configuration_gets_a_full_load_of_its_own_while_the_others_go_on() {
    let mut stage = Stage::set().await;
    stage.server.world(|world| world.put(CONDITION, "c1", json!({})));
    stage.complete().await;
    stage.export.types.push(CONDITION);
    stage.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    let report = stage.complete().await;
    stage.assert_in_step().await;
    assert_eq!((report.types[&CONDITION].counts.inserted, report.types[&PATIENT].received), (1, 1));
    let asked: Vec<_> = stage.server.jobs().into_iter().skip(1).map(|job| (job.types, job.since)).collect();
    let since = Some("2026-01-01T00:55:00.000Z".to_owned());
    assert_eq!(asked, [(vec![OBSERVATION, PATIENT], since), (vec![CONDITION], None)]);
}

#[tokio::test]
async fn another_export_name_begins_anew_and_leaves_the_rows() {
    let mut stage = Stage::set().await;
    stage.complete().await;
    stage.export.name = "nightly".to_owned();
    let report = stage.complete().await;
    assert_eq!((report.changed(), stage.server.jobs()[1].since.clone()), (0, None));
    stage.assert_in_step().await;
}

#[tokio::test]
async fn without_a_transaction_time_the_rows_come_and_the_watermark_stays() {
    let stage = Stage::set().await;
    stage.complete().await;
    stage.later(|world| {
        world.put(PATIENT, "p6", json!({}));
    });
    stage.server.scenario(|scenario| scenario.omit_transaction_time = true);
    let report = stage.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::WatermarkHeld { .. }), "{report:#?}");
    assert!(report.remarks.iter().any(|remark| remark.contains("transactionTime")), "{report:#?}");
    stage.assert_in_step().await;
    assert_eq!(stage.watermark(PATIENT).await, at("2026-01-01T01:00:00Z"));
    stage.server.scenario(|scenario| scenario.omit_transaction_time = false);
    stage.complete().await;
    let jobs = stage.server.jobs();
    assert_eq!(jobs[2].since, jobs[1].since, "the same is asked for again");
    stage.assert_in_step().await;
}

#[tokio::test]
async fn an_error_among_the_outcomes_keeps_the_watermark_and_the_rows() {
    let stage = Stage::set().await;
    stage.server.scenario(|scenario| scenario.outcomes = vec![outcome("information"), outcome("error")]);
    let report = stage.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::WatermarkHeld { .. }), "{report:#?}");
    assert!(report.remarks.iter().any(|remark| remark.contains("1 errors, first error (processing)")), "{report:#?}");
    assert_eq!(stage.watermark(PATIENT).await, None);
    stage.assert_in_step().await;
}

#[tokio::test]
async fn an_information_among_the_outcomes_is_no_loss() {
    let stage = Stage::set().await;
    stage.server.scenario(|scenario| scenario.outcomes = vec![outcome("information"), outcome("warning")]);
    stage.complete().await;
    assert_eq!(stage.watermark(PATIENT).await, at("2026-01-01T01:00:00Z"));
    stage.assert_in_step().await;
}
