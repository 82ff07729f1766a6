//! History: the last runs of each export, and how many rows each table has. It is for people who look at the status
//! page; no decision is made from it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::runtime::Handle;

use super::{Error, Mode, Outcome, Report, Syncer, blocking::blocking, chain};
use crate::{fhir::ResourceType, table::LedgerRow};

/// A run that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastRun {
    pub run: u64,
    pub started_at: DateTime<Utc>,
    pub duration: Duration,
    /// `None` where the ledger does not say it.
    pub mode: Option<Mode>,
    /// `None`: the process was killed before the run ended.
    pub outcome: Option<Outcome>,
    /// Lines and deletions.
    pub received: u64,
    /// Rows that a reader of the tables sees differently than before.
    pub changed: u64,
    pub quarantined: u64,
}

/// The last runs of one export, the newest last; never more than [`PastRuns::MAX`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PastRuns(VecDeque<PastRun>);

/// The numbers of runs begin again with a lost state file. Rows of one number that began within this time are of one
/// run: those of a run that was killed have the time of the commit.
const SAME_RUN: TimeDelta = TimeDelta::days(1);

impl PastRun {
    fn of_report(report: &Report) -> Self {
        let of_types = report.types.values().chain(report.instalments.iter().map(|(_, of)| of));
        Self {
            run: report.run,
            started_at: report.started_at,
            duration: (report.ended_at - report.started_at).to_std().unwrap_or_default(),
            mode: Some(report.mode),
            outcome: Some(report.outcome),
            received: report.received(),
            changed: report.changed(),
            quarantined: of_types.map(|of| of.quarantined).sum(),
        }
    }

    /// A row is of one type, or of an instalment of it; the rows of a run add up. `None` if it does not say when.
    fn of_row(row: &LedgerRow) -> Option<Self> {
        Some(Self {
            run: row.run,
            started_at: row.started_at?,
            duration: Duration::from_millis(row.duration_ms),
            mode: [Mode::Incremental, Mode::FullRefresh].into_iter().find(|mode| mode.to_string() == row.mode),
            outcome: Outcome::ALL.into_iter().find(|outcome| outcome.to_string() == row.outcome),
            received: row.received,
            changed: row.inserted + row.updated + row.deleted + row.removed,
            quarantined: row.quarantined,
        })
    }

    fn add(&mut self, other: &Self) {
        self.started_at = self.started_at.min(other.started_at);
        self.duration = self.duration.max(other.duration);
        self.mode = self.mode.or(other.mode);
        self.outcome = self.outcome.or(other.outcome);
        self.received += other.received;
        self.changed += other.changed;
        self.quarantined += other.quarantined;
    }
}

impl PastRuns {
    /// Fifty are a day of two runs an hour, and as many as a narrow screen can show.
    pub const MAX: usize = 50;

    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &PastRun> + ExactSizeIterator {
        self.0.iter()
    }

    /// A run has ended.
    pub fn push(&mut self, report: &Report) {
        self.replace(PastRun::of_report(report));
    }

    /// Adds runs, each instead of what was known of it.
    pub fn extend(&mut self, newer: &Self) {
        newer.iter().for_each(|run| self.replace(*run));
    }

    fn replace(&mut self, run: PastRun) {
        self.0.retain(|known| !is_same(known, &run));
        self.insert(run);
    }

    fn add_row(&mut self, row: &LedgerRow) {
        let Some(part) = PastRun::of_row(row) else { return };
        match self.0.iter_mut().find(|known| is_same(known, &part)) {
            Some(known) => known.add(&part),
            None => self.insert(part),
        }
    }

    fn insert(&mut self, run: PastRun) {
        let place = self.0.partition_point(|known| (known.started_at, known.run) <= (run.started_at, run.run));
        self.0.insert(place, run);
        if self.0.len() > Self::MAX {
            self.0.pop_front();
        }
    }
}

fn is_same(one: &PastRun, other: &PastRun) -> bool {
    one.run == other.run && (one.started_at - other.started_at).abs() < SAME_RUN
}

impl Syncer {
    /// The last runs of each export, from the ledger. It reads the whole table, and keeps little of it.
    pub async fn past_runs(&self) -> Result<BTreeMap<String, PastRuns>, Error> {
        let root = self.root.clone();
        let read = blocking(move || {
            let mut of_exports: BTreeMap<String, PastRuns> = BTreeMap::new();
            let mut take = |row: LedgerRow| of_exports.entry(row.export.clone()).or_default().add_row(&row);
            Handle::current().block_on(root.read_ledger(&mut take)).map(|()| of_exports)
        });
        Ok(read.await?)
    }

    /// How many rows the log of each table states. A table that cannot be read, or whose log does not say it, is left
    /// out.
    pub async fn row_counts(&self, types: Vec<ResourceType>) -> BTreeMap<ResourceType, u64> {
        let engine = self.engine.clone();
        blocking(move || {
            let mut rows = BTreeMap::new();
            for resource_type in types {
                let counted = Handle::current().block_on(async {
                    match engine.open(resource_type).await? {
                        Some(table) => table.row_count().await,
                        None => Ok(None),
                    }
                });
                match counted.map_err(|error| Error::of_opening(resource_type, error)) {
                    Ok(counted) => rows.extend(counted.map(|counted| (resource_type, counted))),
                    Err(error) => tracing::debug!(error = chain(&error), "the rows of a table could not be counted"),
                }
            }
            rows
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fhir::parse_instant;

    fn row(run: u64, minute: i64, outcome: &str) -> LedgerRow {
        let started_at = parse_instant("2026-11-20T10:00:00Z").unwrap() + TimeDelta::minutes(minute);
        LedgerRow {
            run,
            started_at: Some(started_at),
            mode: "full refresh".to_owned(),
            outcome: outcome.to_owned(),
            inserted: 2,
            duration_ms: 500,
            ..LedgerRow::default()
        }
    }

    fn of_rows(rows: &[LedgerRow]) -> Vec<PastRun> {
        let mut runs = PastRuns::default();
        for row in rows {
            runs.add_row(row);
        }
        runs.iter().copied().collect()
    }

    #[test]
    fn the_rows_of_a_run_are_added_up_in_any_order() {
        let (one, two) = (row(1, 0, "complete"), row(2, 5, "partial"));
        let runs = of_rows(&[two.clone(), one.clone(), two.clone(), one.clone()]);
        assert_eq!(runs.iter().map(|run| run.run).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((runs[0].changed, runs[0].duration), (4, Duration::from_millis(500)));
        assert_eq!((runs[1].outcome, runs[1].mode), (Some(Outcome::Partial), Some(Mode::FullRefresh)));
    }

    #[test]
    fn an_instalment_alone_is_a_run_that_was_killed() {
        assert_eq!(of_rows(&[row(3, 0, "running"), row(3, 9, "killed")])[0].outcome, None);
        assert_eq!(of_rows(&[row(3, 0, "running"), row(3, 0, "complete")])[0].outcome, Some(Outcome::Complete));
    }

    #[test]
    fn only_the_newest_runs_are_kept_and_a_number_may_come_again() {
        let rows: Vec<_> = (1..=80).rev().map(|run| row(run, i64::try_from(run).unwrap(), "complete")).collect();
        let runs = of_rows(&rows);
        assert_eq!((runs.len(), runs[0].run, runs[49].run), (PastRuns::MAX, 31, 80));
        assert_eq!(of_rows(&[row(1, 0, "complete"), row(1, 3 * 24 * 60, "complete")]).len(), 2);
    }
}
