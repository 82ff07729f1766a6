//! Due: when the exports and the maintenance of a configuration are to begin.

use chrono::{DateTime, Utc};

use crate::{
    config::{Maintenance, Scheduled},
    schedule::{Pattern, Tick, next_after},
    state::ExportState,
    sync::Mode,
};

/// Does the schedule, or an unfinished job, ask for a run right now?
pub fn overdue(scheduled: &Scheduled, known: &ExportState, now: DateTime<Utc>) -> Option<Mode> {
    let Some(last_complete_at) = known.last_complete_at else { return Some(Mode::Incremental) };
    let is_loaded = |of| known.freshness.data_as_of.contains_key(of) || known.unconfirmed.contains_key(of);
    if !scheduled.export.types.iter().all(is_loaded) {
        return Some(Mode::Incremental);
    }
    let last_full_refresh_at = known.last_full_refresh_at.unwrap_or(last_complete_at);
    if next_after(&scheduled.full_refresh, last_full_refresh_at).is_some_and(|at| at <= now) {
        return Some(Mode::FullRefresh);
    }
    let missed = next_after(&scheduled.incremental, last_complete_at).is_some_and(|at| at <= now);
    (missed || !known.jobs.is_empty()).then_some(Mode::Incremental)
}

/// The ticks, and the patterns of each.
pub fn schedules(exports: &[Scheduled], maintenance: &Maintenance) -> Vec<(Tick, Vec<Pattern>)> {
    let schedule = |scheduled: &Scheduled, mode, patterns: &[Pattern]| {
        (Tick::Sync { export: scheduled.export.name.clone(), mode }, patterns.to_vec())
    };
    let syncs = exports.iter().flat_map(|scheduled| {
        [
            schedule(scheduled, Mode::Incremental, &scheduled.incremental),
            schedule(scheduled, Mode::FullRefresh, &scheduled.full_refresh),
        ]
    });
    syncs.chain([(Tick::Maintain, maintenance.schedule.iter().cloned().collect())]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{export::Level, fhir::parse_instant};

    fn scheduled() -> Scheduled {
        Scheduled {
            export: crate::sync::Export::new("all", Level::System, Vec::new()),
            incremental: vec!["0 15 * * * *".parse().unwrap()],
            full_refresh: vec!["0 0 3 * * Sun".parse().unwrap()],
            max_age: None,
        }
    }

    fn due(last_complete: Option<&str>, last_full: Option<&str>, now: &str) -> Option<Mode> {
        let known = ExportState {
            last_complete_at: last_complete.and_then(parse_instant),
            last_full_refresh_at: last_full.and_then(parse_instant),
            ..ExportState::default()
        };
        overdue(&scheduled(), &known, parse_instant(now).unwrap())
    }

    #[test]
    fn a_start_syncs_at_once_when_none_was_complete_or_one_is_overdue() {
        let full = Some("2026-11-15T03:10:00Z");
        assert_eq!(due(None, None, "2026-11-20T10:00:00Z"), Some(Mode::Incremental));
        assert_eq!(due(Some("2026-11-20T09:16:00Z"), full, "2026-11-20T10:00:00Z"), None);
        assert_eq!(due(Some("2026-11-20T09:14:00Z"), full, "2026-11-20T10:00:00Z"), Some(Mode::Incremental));
        assert_eq!(due(Some("2026-11-22T03:14:00Z"), full, "2026-11-22T03:20:00Z"), Some(Mode::FullRefresh));
    }
}
