//! Due: when the exports and the maintenance of a configuration are to begin.

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    config::{Maintenance, Scheduled},
    schedule::{Pattern, Tick, next_after},
    state::{ExportState, LastRun},
    sync::Mode,
};

/// Does the schedule, or an unfinished job, ask for a run right now?
fn overdue(scheduled: &Scheduled, known: &ExportState, now: DateTime<Utc>) -> Option<Mode> {
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

/// The same, less what the sync does that is at work where `is_syncing`.
pub fn missed(scheduled: &Scheduled, known: &ExportState, is_syncing: bool, now: DateTime<Utc>) -> Option<Mode> {
    let at_work = known.last_run.as_ref().filter(|last| !last.ended);
    // One that has only just begun is not in the state yet.
    let does = |mode| is_syncing && (mode == Mode::Incremental || at_work.is_none_or(|last| last.full_refresh));
    overdue(scheduled, known, now).filter(|mode| !does(*mode))
}

/// The same as [`overdue`] where several processes share the exports, of an export that this process holds: what another one has run
/// is not run again. A run that has not ended is one whose process was killed. `started_at` is the start of this
/// process, which makes up for what was missed before; `tick` is what its own schedule asks for now.
pub fn due_here(
    scheduled: &Scheduled,
    known: &ExportState,
    tick: Mode,
    started_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Option<Mode> {
    let Some(last) = &known.last_run else { return Some(Mode::Incremental) };
    if !last.ended {
        return Some(if last.full_refresh { Mode::FullRefresh } else { Mode::Incremental });
    }
    if is_of_the_future(scheduled, last, now) {
        return Some(tick);
    }
    if next_after(&scheduled.full_refresh, last.full_refresh_begun_at).is_some_and(|at| at <= now) {
        return Some(Mode::FullRefresh);
    }
    if next_after(&scheduled.incremental, last.begun_at).is_some_and(|at| at <= now) {
        return Some(Mode::Incremental);
    }
    overdue(scheduled, known, now).filter(|_| last.begun_at < started_at)
}

/// Was the last run, or the last full refresh, of a process whose clock is ahead? Until our clock has passed it, it says
/// nothing about what is due, so that each tick of ours counts.
pub fn is_of_the_future(scheduled: &Scheduled, last: &LastRun, now: DateTime<Utc>) -> bool {
    let is_ahead = |at: DateTime<Utc>| at - now > MAX_AHEAD;
    is_ahead(last.begun_at) || (!scheduled.full_refresh.is_empty() && is_ahead(last.full_refresh_begun_at))
}

/// Clocks that are kept by a time service differ by less.
pub const MAX_AHEAD: TimeDelta = TimeDelta::minutes(5);

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
    fn what_another_process_has_run_is_not_due_again_and_a_run_that_was_killed_is() {
        let at = |text: &str| parse_instant(text).unwrap();
        let started_at = at("2026-11-20T08:00:00Z");
        let due_after = |full_refresh_begun_at: &str, begun: &str, full_refresh: bool, ended: bool, now: &str| {
            let last = LastRun {
                number: 7,
                begun_at: at(begun),
                full_refresh,
                ended,
                full_refresh_begun_at: at(full_refresh_begun_at),
            };
            let known = ExportState { last_run: Some(last), ..ExportState::default() };
            due_here(&scheduled(), &known, Mode::Incremental, started_at, at(now))
        };
        let due = |begun: &str, full_refresh: bool, ended: bool, now: &str| {
            due_after("2026-11-15T03:00:01Z", begun, full_refresh, ended, now)
        };
        let (before, after) = ("2026-11-20T10:15:00Z", "2026-11-20T11:15:02Z");
        assert_eq!(due(before, false, true, "2026-11-20T10:15:03Z"), None, "the tick was served");
        assert_eq!(due(before, false, true, "2026-11-20T11:14:59Z"), None);
        assert_eq!(due(before, false, true, after), Some(Mode::Incremental));
        assert_eq!(due(before, false, true, "2026-11-22T03:00:01Z"), Some(Mode::FullRefresh));
        assert_eq!(due(before, true, false, "2026-11-20T10:15:03Z"), Some(Mode::FullRefresh), "its process was killed");
        assert_eq!(due("2026-11-20T07:15:00Z", false, true, "2026-11-20T08:00:01Z"), Some(Mode::Incremental));
        let first = due_here(&scheduled(), &ExportState::default(), Mode::Incremental, started_at, at(after));
        assert_eq!(first, Some(Mode::Incremental));
        assert_eq!(
            due("2027-02-20T10:15:00Z", false, true, after),
            Some(Mode::Incremental),
            "by a clock that is ahead"
        );
        let refreshed_ahead = due_after("2026-11-21T03:00:00Z", before, false, true, "2026-11-20T10:15:03Z");
        assert_eq!(refreshed_ahead, Some(Mode::Incremental), "the tick of this process, and no full refresh");
        let without_full_refresh = Scheduled { full_refresh: Vec::new(), ..scheduled() };
        let last = LastRun {
            number: 1,
            begun_at: at(before),
            full_refresh: false,
            ended: true,
            full_refresh_begun_at: at("2027-11-20T03:00:00Z"),
        };
        assert!(is_of_the_future(&scheduled(), &last, at(after)));
        assert!(!is_of_the_future(&without_full_refresh, &last, at(after)), "no schedule asks for a full refresh");
        assert_eq!(due("2026-11-20T11:17:00Z", false, true, after), None, "clocks differ a little");
    }

    #[test]
    fn what_a_sync_at_work_does_is_not_missed() {
        let at = |text: &str| parse_instant(text).unwrap();
        let of = |full_refresh| LastRun {
            number: 7,
            begun_at: at("2026-11-22T03:00:01Z"),
            full_refresh,
            ended: false,
            full_refresh_begun_at: at("2026-11-22T03:00:01Z"),
        };
        let missed_beside = |last_full: &str, last_run: Option<LastRun>, is_syncing| {
            let known = ExportState {
                last_complete_at: Some(at("2026-11-22T02:16:00Z")),
                last_full_refresh_at: Some(at(last_full)),
                last_run,
                ..ExportState::default()
            };
            missed(&scheduled(), &known, is_syncing, at("2026-11-22T03:20:00Z"))
        };
        let (weekly, now) = ("2026-11-15T03:10:00Z", "2026-11-22T03:10:00Z");
        assert_eq!(missed_beside(weekly, Some(of(true)), true), None, "a full refresh is at work");
        assert_eq!(missed_beside(weekly, Some(of(false)), true), Some(Mode::FullRefresh), "an increment is no such");
        assert_eq!(missed_beside(weekly, None, true), None, "it has only just begun");
        assert_eq!(missed_beside(weekly, Some(of(true)), false), Some(Mode::FullRefresh), "its process was killed");
        assert_eq!(missed_beside(now, Some(of(false)), true), None);
        assert_eq!(missed_beside(now, None, false), Some(Mode::Incremental));
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
