//! Views: what the daemon publishes of an export for `/health`, as the state file knows it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::Instant;

use super::{figures, history::History};
use crate::{
    config::Scheduled,
    schedule::{longest_interval, next_after},
    serve::{ExportView, Moment, TypeView, View},
    state::{ExportState, State},
    sync::{PastRuns, Progress},
};

/// How old the data of an export may be that has no schedule and no `max_age`.
const MAX_AGE_WITHOUT_SCHEDULE: Duration = Duration::from_hours(2);

/// An export, and what of its schedule is computed once.
pub struct Watched {
    pub scheduled: Scheduled,
    pub longest_interval: Option<Duration>,
}

impl Watched {
    pub fn new(scheduled: Scheduled, now: DateTime<Utc>) -> Self {
        let patterns: Vec<_> = scheduled.incremental.iter().chain(&scheduled.full_refresh).cloned().collect();
        Self { longest_interval: longest_interval(&patterns, now), scheduled }
    }

    pub fn name(&self) -> &str {
        &self.scheduled.export.name
    }

    /// What the configuration says; else two intervals of the schedule and the time of a usual run, so that one run may
    /// fail.
    fn max_age(&self, known: &ExportState) -> Duration {
        let usual_run = known.freshness.usual_run(!self.scheduled.full_refresh.is_empty());
        let by_schedule = || Some(self.longest_interval?.saturating_mul(2).saturating_add(usual_run));
        self.scheduled.max_age.or_else(by_schedule).unwrap_or(MAX_AGE_WITHOUT_SCHEDULE)
    }
}

/// What `/health` answers from the first request on: without its exports, it would be healthy whatever they are. The
/// same holds for the metrics: a watermark of 0 would look as if it had gone back.
pub fn first(exports: &[Watched], state: &State, recheck_absent: Duration, now: DateTime<Utc>) -> View {
    let view = |watched: &Watched| {
        let view = view(watched, state, recheck_absent, now);
        figures::export(&view, watched);
        figures::reach(watched, state);
        view
    };
    let exports = exports.iter().map(view).collect();
    View { ready: false, heartbeat: Instant::now(), hangs: false, exports }
}

/// An export as it stands when the daemon starts.
fn view(watched: &Watched, state: &State, recheck_absent: Duration, now: DateTime<Utc>) -> ExportView {
    let mut view = ExportView {
        name: watched.name().to_owned(),
        last_complete: None,
        before_migration: None,
        types: Vec::new(),
        max_age: Duration::ZERO,
        recheck_absent,
        last_outcome: None,
        failures_in_a_row: 0,
        warnings: Vec::new(),
        next_run_at: None,
        progress: Progress::default(),
        runs: PastRuns::default(),
    };
    update(&mut view, watched, state, &History::default(), now);
    view
}

/// Brings a view up to date with the state file, and with what is known of the tables.
pub fn update(view: &mut ExportView, watched: &Watched, state: &State, history: &History, now: DateTime<Utc>) {
    let nothing = ExportState::default();
    let known = state.exports.get(&view.name).unwrap_or(&nothing);
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
            watermark: known.watermarks.get(resource_type).map(|watermark| watermark.instant()),
            rows: history.rows.get(resource_type).copied(),
            name,
        }
    });
    view.types = types.collect();
    view.last_complete = moment(view.last_complete, known.last_complete_at);
    view.before_migration = moment(view.before_migration, state.last_sync_before_migration);
    view.max_age = watched.max_age(known);
    view.last_outcome = known.freshness.last_outcome;
    view.failures_in_a_row = known.freshness.failures_in_a_row;
    view.warnings.clone_from(&known.freshness.warnings);
    view.runs = history.runs.get(&view.name).cloned().unwrap_or_default();
}

/// The first scheduled sync after `now`.
pub fn next_run_at(scheduled: &Scheduled, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
    let incremental = next_after(&scheduled.incremental, now);
    [incremental, next_after(&scheduled.full_refresh, now)].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{export::Level, fhir::parse_instant, sync::Export};

    fn max_age(incremental: Option<&str>, full_refresh: Option<&str>, of_config: Option<Duration>) -> Duration {
        let patterns = |text: Option<&str>| text.map(|text| text.parse().unwrap()).into_iter().collect();
        let export = Export::new("all", Level::System, Vec::new());
        let scheduled = Scheduled {
            export,
            incremental: patterns(incremental),
            full_refresh: patterns(full_refresh),
            max_age: of_config,
        };
        let mut known = ExportState::default();
        known.freshness.took(Duration::from_mins(10), false);
        known.freshness.took(Duration::from_hours(5), true);
        Watched::new(scheduled, parse_instant("2026-11-20T10:00:00Z").unwrap()).max_age(&known)
    }

    #[test]
    fn without_a_setting_one_run_may_fail_before_the_data_are_too_old() {
        let (hourly, weekly) = (Some("15 * * * *"), Some("0 3 * * Sun"));
        assert_eq!(max_age(hourly, None, None), Duration::from_mins(130));
        assert_eq!(max_age(hourly, weekly, None), Duration::from_hours(7), "during a full refresh nothing is fresh");
        assert_eq!(max_age(hourly, weekly, Some(Duration::from_hours(3))), Duration::from_hours(3));
        assert_eq!(max_age(None, None, None), MAX_AGE_WITHOUT_SCHEDULE);
    }

    #[test]
    fn health_knows_all_exports_before_it_answers_for_the_first_time() {
        let at = parse_instant("2026-11-20T10:00:00Z").unwrap();
        let export = Export::new("all", Level::System, Vec::new());
        let scheduled = Scheduled { export, incremental: Vec::new(), full_refresh: Vec::new(), max_age: None };
        let mut state = State::default();
        state.exports.entry("all".to_owned()).or_default().freshness.failures_in_a_row = 3;
        let view = first(&[Watched::new(scheduled, at)], &state, Duration::from_hours(24), at);
        let [export] = view.exports.as_slice() else { panic!("one export") };
        assert_eq!((view.ready, export.name.as_str(), export.failures_in_a_row), (false, "all", 3));
    }
}
