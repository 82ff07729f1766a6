//! The coverage of an export: from where to where it goes, and of what.
//!
//! It is decided once for a manifest, when that has arrived. The local clock has a say in it, and may be set during the
//! hours in which the files are read: a watermark must not move past rows that were written without it.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    Run,
    clock::now,
    intake::{Holds, Remark},
};
use crate::{
    export::{Completed, Manifest},
    fhir::{ResourceType, TransactionTime},
    state::{JobInFlight, JobKind},
    table::{Extent, NewWatermark, Upsert},
};

/// A job that the server has completed: what was asked for, what the server made of it, and what that covers.
pub struct CompletedJob {
    pub job: JobInFlight,
    pub completed: Completed,
    pub coverage: Coverage,
    /// Why no watermark moves, where the server's clock is ahead of ours.
    pub clock_ahead: Option<ClockAhead>,
}

impl CompletedJob {
    pub fn new(job: JobInFlight, completed: Completed) -> Self {
        let (coverage, clock_ahead) = Coverage::of(&job, &completed.manifest, completed.server_time, now());
        Self { job, completed, coverage, clock_ahead }
    }
}

#[derive(Clone, Copy)]
pub struct Coverage {
    /// How far the export goes, where that can be believed. A time of the future is no time at all: rows that carried it
    /// would win over each later export.
    pub watermark: Option<TransactionTime>,
    /// The server's own time at the kick-off, or else the earliest later one.
    pub server_time: Option<TransactionTime>,
    pub kind: JobKind,
}

impl Coverage {
    /// Of an export that is complete, or of what is ready of it. `now` is the local time.
    pub fn of(
        job: &JobInFlight,
        manifest: &Manifest,
        server_time: Option<TransactionTime>,
        now: DateTime<Utc>,
    ) -> (Self, Option<ClockAhead>) {
        let end = export_end(manifest, server_time);
        let clock_ahead = end.filter(|end| end.instant() - now > MAX_AHEAD).map(|end| ClockAhead { end, now });
        let watermark = end.filter(|_| clock_ahead.is_none());
        (Self { watermark, server_time, kind: job.kind() }, clock_ahead)
    }

    /// Whether a row that the export lacks may go. `is_reloaded`: the type is loaded in full although it had a watermark.
    pub fn is_everything(self, is_reloaded: bool) -> bool {
        match self.kind {
            JobKind::FullRefresh => true,
            JobKind::FullLoad => is_reloaded,
            JobKind::Increment(_) | JobKind::Joiners => false,
        }
    }

    /// The watermark for the table of a type.
    pub fn watermark_of(self, is_reloaded: bool) -> Option<TransactionTime> {
        match self.kind {
            // It was asked for before the table changed, and does not bring back what that lacks.
            JobKind::Increment(_) if is_reloaded => None,
            JobKind::Increment(_) | JobKind::FullLoad | JobKind::FullRefresh => self.watermark,
            JobKind::Joiners => None,
        }
    }

    /// Whether the export reaches to the time of its kick-off, by the server's own time: else it may be an old one that
    /// comes again.
    pub fn is_of_now(self, overlap: TimeDelta) -> bool {
        let both = self.watermark.zip(self.server_time);
        both.is_some_and(|(end, server_time)| end.instant() + overlap >= server_time.instant())
    }

    /// The types of which rows are stored with times that are ahead, if this export is of a clock that is right.
    pub fn after_a_clock_ahead(
        self,
        was_ahead_until: BTreeMap<ResourceType, TransactionTime>,
        overlap: TimeDelta,
    ) -> BTreeSet<ResourceType> {
        if self.is_of_now(overlap) { was_ahead_until.into_keys().collect() } else { BTreeSet::new() }
    }

    /// What all commits of the export have in common. Only the last one of a type has the watermark.
    pub fn without_watermark(self, run: &Run<'_>) -> Upsert {
        Upsert {
            app_id: run.export.app_id(&run.syncer.config.source),
            adopted_app_id: Some(run.export.app_id_before()),
            source: run.syncer.config.source.to_string(),
            watermark: NewWatermark::Stays,
            set_back_from: None,
            clock_was_ahead: false,
            exported_at: self.watermark,
            run_started_micros: run.report.started_at.timestamp_micros(),
            job: run.report.job(),
            run: run.report.run,
            extent: Extent::Partial,
            reconcile: None,
        }
    }
}

/// The manifest's transactionTime, but not beyond the server's own time at kick-off. Some servers state the end of the
/// job, or the time of the poll; what changed in between would never be asked for again.
fn export_end(manifest: &Manifest, server_time: Option<TransactionTime>) -> Option<TransactionTime> {
    let transaction_time = manifest.transaction_time?;
    Some(server_time.map_or(transaction_time, |server_time| transaction_time.min(server_time)))
}

/// How far the server's clock may be ahead of ours. A wrong time zone is less than a day.
const MAX_AHEAD: TimeDelta = TimeDelta::days(1);

/// An export that ends later than our clock allows. A watermark of the future would hide what changes until then. Our
/// clock never chooses a watermark; here it holds one.
pub struct ClockAhead {
    /// How far the export goes, by the server's clock.
    pub end: TransactionTime,
    now: DateTime<Utc>,
}

impl ClockAhead {
    pub fn remark(self) -> Remark {
        let text = format!(
            "the export's transactionTime {} is more than a day ahead of the local clock, {}: rows are written and no \
             watermark moves until the clocks agree; correct the wrong one of the two",
            self.end,
            TransactionTime::from(self.now)
        );
        Remark { text, holds: Holds::Everything }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{export::Issues, fhir::parse_instant};

    #[test]
    fn a_watermark_is_left_out_exactly_where_the_remark_says_so() {
        let at = |text: &str| TransactionTime::from(parse_instant(text).unwrap());
        let (now, late) = (at("2026-01-01T00:00:00Z").instant(), at("2026-01-02T00:00:00.001Z"));
        let job: JobInFlight = serde_json::from_value(serde_json::json!({
            "status_url": "https://ehr.example.org/1", "polling_since": now, "types": [], "full_refresh": false
        }))
        .unwrap();
        for (transaction_time, server_time, expected) in [
            (None, None, None),
            (None, Some(late), None),
            (Some(at("2026-01-02T00:00:00Z")), None, Some(at("2026-01-02T00:00:00Z"))),
            (Some(late), None, None),
            (Some(late), Some(at("2026-01-01T00:00:00Z")), Some(at("2026-01-01T00:00:00Z"))),
        ] {
            let files = Vec::new;
            let issues = Issues::default();
            let manifest = Manifest { transaction_time, output: files(), deleted: files(), outcomes: files(), issues };
            let (coverage, clock_ahead) = Coverage::of(&job, &manifest, server_time, now);
            assert_eq!(coverage.watermark, expected);
            assert_eq!(clock_ahead.is_some(), transaction_time.is_some() && expected.is_none());
        }
    }

    /// An old export that comes again would win over what is newer by the clock that was ahead.
    #[test]
    fn only_an_export_that_reaches_its_kick_off_is_of_a_clock_that_is_right_again() {
        let at = |text: &str| Some(TransactionTime::from(parse_instant(text).unwrap()));
        let (now, earlier) = (at("2026-01-01T01:00:00Z"), at("2026-01-01T00:56:00Z"));
        let old = at("2026-01-01T00:50:00Z");
        let was_ahead_until = BTreeMap::from([(ResourceType::PATIENT, at("2036-01-01T00:00:00Z").unwrap())]);
        for (watermark, server_time, is_of_now) in
            [(now, now, true), (earlier, now, true), (old, now, false), (now, None, false), (None, now, false)]
        {
            let coverage = Coverage { watermark, server_time, kind: JobKind::FullLoad };
            let types = coverage.after_a_clock_ahead(was_ahead_until.clone(), TimeDelta::minutes(5));
            assert_eq!(!types.is_empty(), is_of_now, "{watermark:?} {server_time:?}");
        }
    }
}
