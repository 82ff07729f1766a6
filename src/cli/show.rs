//! What is left of a run when it has ended: a table of counts for people, a line of JSON for programs.

use std::time::Duration;

use chrono::{DateTime, Utc};
use indicatif::{HumanCount, HumanDuration};
use serde::Serialize;

use super::{columns, paint::Paint};
use crate::{
    fhir::TransactionTime,
    sync::{Counts, Mode, Outcome, Report, TypeEnd, TypeReport},
};

const HEAD: [&str; 11] = [
    "type",
    "received",
    "inserted",
    "updated",
    "deleted",
    "unchanged",
    "stale",
    "duplicate",
    "quarantined",
    "version",
    "end",
];

/// The counts of each type, what the operator should know, and the outcome.
pub fn report(report: &Report) {
    say!("{}", painted(&text(report, columns::width()), report.outcome));
}

/// The remarks and the last line have the colour of the outcome.
fn painted(text: &str, outcome: Outcome) -> String {
    let last = text.lines().count().saturating_sub(1);
    let lines = text.lines().enumerate().map(|(index, line)| match index {
        1 => Paint::Bold.on(line),
        _ if index == last => Paint::of(outcome).on(line),
        _ if line.starts_with('!') => Paint::of(outcome).on(line),
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn text(report: &Report, width: Option<u16>) -> String {
    // Almost all types end so; a column for that would say nothing.
    let is_committed = |end: &TypeEnd| matches!(end, TypeEnd::Committed { .. });
    let rows = report.types.iter().map(|(resource_type, of)| {
        let counts = &of.counts;
        let [received, inserted, updated, deleted, unchanged, stale, duplicate, quarantined] = [
            of.received,
            counts.inserted,
            counts.updated,
            counts.deleted + counts.removed,
            counts.unchanged,
            counts.stale,
            counts.duplicate,
            of.quarantined,
        ]
        .map(|count| HumanCount(count).to_string());
        let version = of.end.version().map_or_else(|| "-".to_owned(), |version| version.to_string());
        let end = if is_committed(&of.end) { String::new() } else { of.end.word().to_owned() };
        let resource_type = resource_type.to_string();
        [resource_type, received, inserted, updated, deleted, unchanged, stale, duplicate, quarantined, version, end]
    });
    let table = columns::within(width, &HEAD, rows);
    let full = if report.mode == Mode::FullRefresh { ", full refresh" } else { "" };
    let mut lines = vec![format!("export {}, run {}{full}", report.export, report.run), table.trim_end().to_owned()];
    for (resource_type, of) in &report.types {
        lines.extend(of.end.sentence().map(|sentence| format!("! {resource_type}: {sentence}")));
    }
    for (resource_type, of) in report.types.iter().filter(|(_, of)| of.foreign_commits > 0) {
        lines.push(format!("! {resource_type}: commits by other writers since our last one: {}", of.foreign_commits));
    }
    lines.extend(report.notes.iter().map(|note| format!("  {note}")));
    lines.extend(report.remarks.iter().map(|remark| format!("! {remark}")));
    let duration = (report.ended_at - report.started_at).to_std().unwrap_or_default();
    lines.push(how_it_ended(report, duration));
    lines.join("\n")
}

fn how_it_ended(report: &Report, duration: Duration) -> String {
    let outcome = report.outcome;
    let ended = format!("{outcome} after {}", HumanDuration(duration));
    let received = HumanCount(report.received());
    match (outcome, report.changed()) {
        (Outcome::Complete, 0) => format!("{ended}: {received} received, nothing changed"),
        (Outcome::Complete, changed) => format!("{ended}: {received} received, {} changed", rows(changed)),
        _ => ended,
    }
}

/// The report of one export, as a line of JSON.
pub fn report_as_json(report: &Report) {
    // Numbers and texts can always be written.
    say!("{}", serde_json::to_string(&ReportedRun::of(report)).unwrap_or_default());
}

/// As the ledger names these things.
#[derive(Serialize)]
struct ReportedRun<'a> {
    export: &'a str,
    run: u64,
    mode: String,
    outcome: Outcome,
    started_at: DateTime<Utc>,
    ended_at: DateTime<Utc>,
    received: u64,
    /// Rows that a reader of the tables sees differently than before.
    changed: u64,
    types: Vec<ReportedType<'a>>,
    notes: &'a [String],
    /// What stopped the run, or kept a watermark where it was.
    remarks: &'a [String],
    accepted: &'a [String],
}

#[derive(Serialize)]
struct ReportedType<'a> {
    resource_type: &'a str,
    end: &'static str,
    cause: Option<String>,
    table_version: Option<u64>,
    watermark_after: Option<DateTime<Utc>>,
    files: u64,
    bytes: u64,
    received: u64,
    #[serde(flatten)]
    counts: Counts,
    quarantined: u64,
    bytes_written: u64,
    foreign_commits: u64,
}

impl<'a> ReportedRun<'a> {
    fn of(report: &'a Report) -> Self {
        Self {
            export: &report.export,
            run: report.run,
            mode: report.mode.to_string(),
            outcome: report.outcome,
            started_at: report.started_at,
            ended_at: report.ended_at,
            received: report.received(),
            changed: report.changed(),
            types: report.types.iter().map(|(of, ended)| ReportedType::of(of.as_str(), ended)).collect(),
            notes: &report.notes,
            remarks: &report.remarks,
            accepted: &report.accepted,
        }
    }
}

impl<'a> ReportedType<'a> {
    fn of(resource_type: &'a str, report: &TypeReport) -> Self {
        let watermark = match report.end {
            TypeEnd::Committed { watermark, .. } | TypeEnd::Behind { watermark, .. } => Some(watermark),
            _ => None,
        };
        Self {
            resource_type,
            end: report.end.word(),
            cause: report.end.sentence(),
            table_version: report.end.version(),
            watermark_after: watermark.map(TransactionTime::instant),
            files: report.files,
            bytes: report.bytes,
            received: report.received,
            counts: report.counts,
            quarantined: report.quarantined,
            bytes_written: report.bytes_written,
            foreign_commits: report.foreign_commits,
        }
    }
}

/// "1 row", "7,664 rows".
pub fn rows(count: u64) -> String {
    counted(count, "row")
}

/// "1 export", "2 exports".
pub fn counted(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", HumanCount(count), if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::{Error, Failure, recovery};

    fn report(types: Vec<(&str, TypeReport)>) -> Report {
        let began = DateTime::from_timestamp(0, 0).unwrap();
        let mut report = Report::begin("all", 3, Mode::Incremental, &[], began);
        report.ended_at = began + chrono::TimeDelta::seconds(2);
        report.types = types.into_iter().map(|(of, report)| (of.parse().unwrap(), report)).collect();
        report
    }

    fn committed(received: u64, version: u64) -> TypeReport {
        TypeReport {
            received,
            counts: Counts { inserted: received, ..Counts::default() },
            end: TypeEnd::Committed { version, watermark: TransactionTime::EPOCH },
            ..TypeReport::default()
        }
    }

    #[test]
    fn the_table_of_a_complete_run_has_no_column_of_zeros() {
        let mut report = report(vec![("Patient", committed(100, 1)), ("Observation", committed(5860, 1))]);
        report.outcome = Outcome::Complete;
        assert_eq!(
            text(&report, Some(80)),
            "export all, run 3\n\
             type         received  inserted  version\n\
             Observation     5,860     5,860        1\n\
             Patient           100       100        1\n\
             complete after 2 seconds: 5,960 received, 5,960 rows changed"
        );
    }

    #[test]
    fn the_cause_of_a_type_that_failed_is_below_the_table_on_one_line() {
        let cause = "Patient file 1 of 1: 7 lines were announced and 5 received";
        let failure = Failure { cause: cause.to_owned(), recovery: recovery(&Error::Stopped), is_denied: false };
        let failed = TypeReport { end: TypeEnd::Failed(failure), ..TypeReport::default() };
        let mut report = report(vec![("Patient", failed), ("Observation", committed(5, 2))]);
        report.outcome = Outcome::Partial;
        let text = text(&report, Some(80));
        assert!(text.contains("Patient             0         0        -  failed\n"), "{text}");
        assert!(text.contains(&format!("\n! Patient: {cause}\n")), "{text}");
        assert!(text.ends_with("\npartial after 2 seconds"), "{text}");
    }

    #[test]
    fn a_table_with_every_column_fits_into_80_columns() {
        let all = TypeReport {
            received: 12_345_678,
            counts: Counts {
                inserted: 1_234_567,
                updated: 1_234_567,
                unchanged: 123_456,
                stale: 12,
                duplicate: 3,
                deleted: 45,
                ..Counts::default()
            },
            quarantined: 17,
            end: TypeEnd::WatermarkHeld { version: 12 },
            ..TypeReport::default()
        };
        let text = text(&report(vec![("ExplanationOfBenefit", all)]), Some(80));
        let table = text.lines().filter(|line| !line.starts_with('!'));
        assert!(table.clone().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn a_report_as_json_is_one_object_with_the_names_of_the_ledger() {
        let report = report(vec![("Patient", committed(100, 1))]);
        let json = serde_json::to_value(ReportedRun::of(&report)).unwrap();
        assert_eq!((&json["export"], &json["run"], &json["mode"]), (&"all".into(), &3.into(), &"incremental".into()));
        let of_type = &json["types"][0];
        assert_eq!(of_type["resource_type"], "Patient");
        assert_eq!((&of_type["inserted"], &of_type["table_version"]), (&100.into(), &1.into()));
        assert_eq!(of_type["watermark_after"], "1970-01-01T00:00:00Z");
        let ledger = include_str!("../table/ledger.rs");
        for name in of_type.as_object().unwrap().keys() {
            assert!(ledger.contains(&format!("        {name}: ")), "{name}");
        }
    }
}
