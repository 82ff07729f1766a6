//! Events: the log lines of a run, and its metrics. What began, what each type brought, how it ended, and why.
//!
//! The span `sync` gives every line of a run its export and number. Messages are sentences for people, fields are for
//! programs: words instead of Rust's Debug form, durations in whole milliseconds.

use std::fmt;

use tracing::{Span, field};

use super::{Error, Outcome, Report, TypeEnd, TypeReport, chain, recovery};
use crate::{
    fhir::ResourceType,
    telemetry::metrics::{self, Operation, RunOutcome},
};

/// The span of a run. Its level is error, so that lines keep these fields if a filter shows warnings only.
pub fn span(report: &Report) -> Span {
    tracing::error_span!("sync", export = report.export, run = report.run)
}

pub fn began(report: &Report) {
    metrics::run_began(&report.export, report.started_at);
    tracing::info!(mode = %report.mode, types = list(report.types.keys()), "sync begins");
}

/// Resource types as one text: "Patient, Observation".
pub fn list<'a>(types: impl IntoIterator<Item = &'a ResourceType>) -> String {
    types.into_iter().map(|resource_type| resource_type.as_str()).collect::<Vec<_>>().join(", ")
}

/// One type was committed.
pub fn committed(resource_type: ResourceType, report: &TypeReport) {
    count(resource_type, report);
    let (version, watermark) = match &report.end {
        TypeEnd::Committed { version, watermark } | TypeEnd::Behind { version, watermark } => {
            (Some(*version), Some(*watermark))
        }
        TypeEnd::WatermarkHeld { version } | TypeEnd::Instalment { version } | TypeEnd::SetBack { version } => {
            (Some(*version), None)
        }
        _ => (None, None),
    };
    let counts = &report.counts;
    tracing::info!(
        %resource_type, version, watermark = watermark.map(field::display), received = report.received,
        inserted = counts.inserted, updated = counts.updated, deleted = counts.deleted, removed = counts.removed,
        unchanged = counts.unchanged, stale = counts.stale, duplicate = counts.duplicate, missing = counts.missing,
        conflicts = counts.conflicts, overruled = counts.overruled,
        quarantined = report.quarantined, foreign_commits = report.foreign_commits, files = report.files,
        bytes = report.bytes, bytes_written = report.bytes_written, "{}", Summary(resource_type, report)
    );
}

/// One type failed; its table is as it was, or as its last instalment left it.
pub fn failed(resource_type: ResourceType, error: &Error) {
    let acts = field::display(recovery(error).acts);
    tracing::error!(%resource_type, acts, error = chain(error), "{resource_type}: failed, its watermark is unchanged");
}

/// Counts what was received of a type that was committed, or has failed.
pub fn count(of: ResourceType, report: &TypeReport) {
    let counts = &report.counts;
    metrics::received(of, report.received);
    metrics::quarantined(of, report.quarantined);
    for (operation, rows) in [
        (Operation::Inserted, counts.inserted),
        (Operation::Updated, counts.updated),
        (Operation::Deleted, counts.deleted),
        (Operation::Removed, counts.removed),
        (Operation::Unchanged, counts.unchanged),
        (Operation::Stale, counts.stale),
        (Operation::Duplicate, counts.duplicate),
        (Operation::NotWanted, report.not_wanted),
        (Operation::Outcome, report.outcomes),
    ] {
        metrics::rows(of, operation, rows);
    }
}

/// "Patient: 483 received, 483 inserted, version 1".
struct Summary<'a>(ResourceType, &'a TypeReport);

impl fmt::Display for Summary<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(resource_type, report) = self;
        let counts = &report.counts;
        write!(out, "{resource_type}: {} received", report.received)?;
        let counted = [
            (counts.inserted, "inserted"),
            (counts.updated, "updated"),
            (counts.deleted, "deleted"),
            (counts.removed, "removed"),
            (counts.unchanged, "unchanged"),
            (counts.stale, "stale"),
            (counts.duplicate, "duplicate"),
            (counts.missing, "missing"),
            (report.quarantined, "quarantined"),
            (counts.conflicts, "conflicts"),
            (counts.overruled, "overruled"),
        ];
        for (count, word) in counted.into_iter().filter(|(count, _)| *count > 0) {
            write!(out, ", {count} {word}")?;
        }
        match report.files_before {
            0 => {}
            1 => write!(out, ", 1 file read before")?,
            files => write!(out, ", {files} files read before")?,
        }
        match report.foreign_commits {
            0 => {}
            1 => write!(out, ", 1 commit by another writer")?,
            commits => write!(out, ", {commits} commits by other writers")?,
        }
        match &report.end {
            TypeEnd::Committed { version, .. } => write!(out, ", version {version}"),
            TypeEnd::Instalment { version } => write!(out, ", version {version}, an instalment"),
            TypeEnd::WatermarkHeld { version } => write!(out, ", version {version}, watermark not moved"),
            TypeEnd::Behind { version, watermark } => write!(out, ", version {version}, behind: watermark {watermark}"),
            TypeEnd::SetBack { version } => write!(out, ", version {version}, set back: watermark not moved"),
            TypeEnd::Denied { missing_scope } => write!(out, ", denied: the scope {missing_scope} is not granted"),
            TypeEnd::Unsupported { words } => write!(out, ", denied: the server refuses the type, {words}"),
            TypeEnd::Missing { on_server } => write!(out, ", missing: the server has {on_server}"),
            TypeEnd::Unconfirmed => out.write_str(", unconfirmed: whether the server has any is unknown"),
            TypeEnd::LeftOut => out.write_str(", left out: whether the server has any is unknown"),
            TypeEnd::NotReached => out.write_str(", not reached"),
            TypeEnd::Failed(_) => out.write_str(", failed"),
        }
    }
}

/// The last line of a run. `error` is what stopped it.
pub fn ended(report: &Report, error: Option<&Error>) {
    let duration_ms = (report.ended_at - report.started_at).num_milliseconds();
    let took = (report.ended_at - report.started_at).to_std().unwrap_or_default();
    metrics::run_ended(&report.export, outcome(report.outcome), report.ended_at, took);
    let (received, changed) = (report.received(), report.changed());
    match report.outcome {
        Outcome::Complete => tracing::info!(duration_ms, received, changed, "sync complete"),
        Outcome::Stopped => tracing::info!(duration_ms, received, changed, "sync stopped"),
        outcome @ (Outcome::Partial | Outcome::Failed) => {
            let recovery = error.map(recovery);
            let acts = recovery.map(|recovery| field::display(recovery.acts));
            let job = recovery.map(|recovery| field::display(recovery.job));
            let failed_types = list(report.failed_types().map(|(resource_type, _)| resource_type));
            let causes = report.causes().join("; ");
            tracing::error!(duration_ms, received, changed, acts, job, failed_types, causes, "sync {outcome}");
        }
    }
}

/// As metrics name it.
fn outcome(outcome: Outcome) -> RunOutcome {
    match outcome {
        Outcome::Complete => RunOutcome::Complete,
        Outcome::Partial => RunOutcome::Partial,
        Outcome::Failed => RunOutcome::Failed,
        Outcome::Stopped => RunOutcome::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fhir::TransactionTime, table::Counts};

    fn summary(report: &TypeReport) -> String {
        Summary("Patient".parse().unwrap(), report).to_string()
    }

    #[test]
    fn the_line_of_a_type_says_what_it_brought_and_leaves_out_zeros() {
        let watermark = TransactionTime::from_micros(0).unwrap();
        let first = TypeReport {
            received: 483,
            counts: Counts { inserted: 483, ..Counts::default() },
            end: TypeEnd::Committed { version: 1, watermark },
            ..TypeReport::default()
        };
        assert_eq!(summary(&first), "Patient: 483 received, 483 inserted, version 1");
        let refresh = TypeReport {
            received: 9,
            counts: Counts { unchanged: 8, removed: 2, missing: 3, ..Counts::default() },
            quarantined: 1,
            foreign_commits: 2,
            end: TypeEnd::WatermarkHeld { version: 5 },
            ..TypeReport::default()
        };
        assert_eq!(
            summary(&refresh),
            "Patient: 9 received, 2 removed, 8 unchanged, 3 missing, 1 quarantined, 2 commits by other writers, \
             version 5, watermark not moved"
        );
    }
}
