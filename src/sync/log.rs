//! Log lines of a run.

use super::{Error, Outcome, Report, TypeEnd, advice, chain};

pub fn end(report: &Report, error: Option<&Error>) {
    for (resource_type, of) in report.types.iter().filter(|(_, of)| of.end != TypeEnd::NotReached) {
        let counts = &of.counts;
        tracing::info!(
            export = report.export, run = report.run, %resource_type, received = of.received, inserted = counts.inserted,
            updated = counts.updated, unchanged = counts.unchanged, stale = counts.stale, duplicate = counts.duplicate,
            deleted = counts.deleted, quarantined = of.quarantined, end = %of.end, "table"
        );
    }
    let duration_ms = (report.ended_at - report.started_at).num_milliseconds();
    let (export, run, outcome) = (&report.export, report.run, report.outcome);
    match (outcome, error) {
        (Outcome::Complete | Outcome::Stopped, _) => {
            tracing::info!(export, run, %outcome, duration_ms, changed = report.changed(), "sync ends");
        }
        (_, Some(error)) => {
            tracing::error!(export, run, %outcome, duration_ms, advice = ?advice(error), error = chain(error), "sync ends");
        }
        (_, None) => {
            tracing::error!(export, run, %outcome, duration_ms, remarks = report.remarks.join("; "), "sync ends");
        }
    }
}
