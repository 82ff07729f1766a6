//! Views: what the daemon publishes of an export for `/health`, as the state file knows it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::{
    config::Scheduled,
    schedule::{longest_interval, next_after},
    serve::{ExportView, Moment, TypeView},
    state::{ExportState, State},
    sync,
};

/// How old the data of an export may be that has no schedule and no `max_age`.
const MAX_AGE_WITHOUT_SCHEDULE: Duration = Duration::from_hours(2);

/// An export, and what of its schedule is computed once.
pub struct Watched {
    pub scheduled: Scheduled,
    longest_interval: Option<Duration>,
}

impl Watched {
    pub fn new(scheduled: Scheduled, now: DateTime<Utc>) -> Self {
        let patterns: Vec<_> = scheduled.incremental.iter().chain(&scheduled.full_refresh).cloned().collect();
        Self { longest_interval: longest_interval(&patterns, now), scheduled }
    }

    pub fn name(&self) -> &str {
        &self.scheduled.export.name
    }

    /// What the configuration says; else two intervals of the schedule and the longest of the last runs: one may fail.
    fn max_age(&self, known: &ExportState) -> Duration {
        let longest_run = known.freshness.longest_run(!self.scheduled.full_refresh.is_empty());
        let by_schedule = || Some(self.longest_interval?.saturating_mul(2).saturating_add(longest_run));
        self.scheduled.max_age.or_else(by_schedule).unwrap_or(MAX_AGE_WITHOUT_SCHEDULE)
    }
}

/// An export as it stands when the daemon starts.
pub fn view(watched: &Watched, state: &State, recheck_absent: Duration, now: DateTime<Utc>) -> ExportView {
    let mut view = ExportView {
        name: watched.name().to_owned(),
        last_complete: None,
        types: Vec::new(),
        max_age: Duration::ZERO,
        recheck_absent,
        last_outcome: None,
        failures_in_a_row: 0,
        warnings: Vec::new(),
        next_run_at: None,
        step: sync::Step::Idle,
    };
    update(&mut view, watched, state, now);
    view
}

/// Brings a view up to date with the state file.
pub fn update(view: &mut ExportView, watched: &Watched, state: &State, now: DateTime<Utc>) {
    let known = state.exports.get(&view.name).cloned().unwrap_or_default();
    let instant = Instant::now();
    // A moment that is known keeps its place on the monotonic clock, whatever has happened to the wall clock since.
    let moment = |before: Option<Moment>, at: Option<DateTime<Utc>>| {
        let at = at?;
        Some(before.filter(|before| before.at == at).unwrap_or_else(|| Moment::new(at, now, instant)))
    };
    let before = std::mem::take(&mut view.types);
    let types = watched.scheduled.export.types.iter().map(|resource_type| {
        let name = resource_type.to_string();
        let before = before.iter().find(|before| before.name == name);
        TypeView {
            data: moment(before.and_then(|before| before.data), known.freshness.data_as_of.get(resource_type).copied()),
            unconfirmed: moment(
                before.and_then(|before| before.unconfirmed),
                known.unconfirmed.get(resource_type).copied(),
            ),
            last_end: known.freshness.ends.get(resource_type).cloned(),
            name,
        }
    });
    view.types = types.collect();
    view.last_complete = moment(view.last_complete, known.last_complete_at.or(state.last_sync_before_migration));
    view.max_age = watched.max_age(&known);
    view.last_outcome = known.freshness.last_outcome;
    view.failures_in_a_row = known.freshness.failures_in_a_row;
    view.warnings = known.freshness.warnings;
}

/// The first scheduled sync after `now`.
pub fn next_run_at(scheduled: &Scheduled, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let incremental = next_after(&scheduled.incremental, now);
    [incremental, next_after(&scheduled.full_refresh, now)].into_iter().flatten().min()
}
