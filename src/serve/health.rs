//! Health: how old the data are that the tables hold, and what the last runs left open.
//!
//! Never "healthy" while the data of a wanted type are older than its export allows, or it was never loaded. An age is
//! the greater of the wall clock's and the monotonic clock's: the first can be set back, the second stops while a
//! machine is suspended. What is wrong but not old, such as a line in quarantine, is a warning.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    question::AllowedAge,
    view::{ExportView, TypeView, View},
};
use crate::sync::Step;

/// The daemon's loop publishes a heartbeat every second; after this long without one it counts as hanging.
const MAX_HEARTBEAT_AGE: Duration = Duration::from_mins(1);

pub(super) fn is_alive(view: &View, instant: Instant) -> bool {
    !view.hangs && instant.saturating_duration_since(view.heartbeat) < MAX_HEARTBEAT_AGE
}

/// The body of `/health`. The first two members are those of the script that fhir-sync replaces; monitoring looks for
/// them.
#[derive(Serialize, Debug)]
pub(super) struct Health {
    pub(super) status: Status,
    pub(super) last_sync: Option<String>,
    pub(super) age_seconds: Option<u64>,
    /// Of the export that `last_sync` is of.
    pub(super) max_age_seconds: Option<u64>,
    /// Of the oldest data of all exports.
    pub(super) data_age_seconds: Option<u64>,
    pub(super) version: &'static str,
    pub(super) exports: BTreeMap<String, ExportHealth>,
}

#[derive(Serialize, Debug)]
pub(super) struct ExportHealth {
    pub(super) status: Status,
    pub(super) last_sync: Option<String>,
    pub(super) age_seconds: Option<u64>,
    pub(super) max_age_seconds: u64,
    pub(super) data_age_seconds: Option<u64>,
    /// The type with the oldest data, or the first one without.
    pub(super) oldest_type: Option<String>,
    pub(super) last_outcome: Option<String>,
    pub(super) failures_in_a_row: u32,
    pub(super) warnings: Vec<String>,
    pub(super) next_run: Option<String>,
    /// The step of the sync that is running.
    pub(super) now: Option<String>,
    pub(super) types: BTreeMap<String, TypeHealth>,
}

#[derive(Serialize, Debug)]
pub(super) struct TypeHealth {
    pub(super) status: Status,
    pub(super) data_as_of: Option<String>,
    pub(super) data_age_seconds: Option<u64>,
    pub(super) last_end: Option<String>,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Healthy,
    Unhealthy,
}

impl Status {
    fn of(healthy: bool) -> Self {
        if healthy { Self::Healthy } else { Self::Unhealthy }
    }

    pub(super) fn is_healthy(self) -> bool {
        self == Self::Healthy
    }
}

/// As healthy as the least healthy export.
pub(super) fn health(view: &View, allowed: AllowedAge, now: DateTime<Utc>, instant: Instant) -> Health {
    let of = |export| (export, export_health(export, allowed, now, instant));
    let exports: Vec<_> = view.exports.iter().map(of).collect();
    // The oldest; one that was never complete, because "never" is older than any age.
    let rank = |health: &ExportHealth| (health.age_seconds.is_none(), health.age_seconds);
    let oldest = exports.iter().max_by_key(|(_, health)| rank(health));
    let is_known = oldest.is_some_and(|(_, health)| health.age_seconds.is_some());
    let data_ages: Option<Vec<_>> = exports.iter().map(|(_, health)| health.data_age_seconds).collect();
    Health {
        status: Status::of(exports.iter().all(|(_, health)| health.status == Status::Healthy)),
        last_sync: oldest.filter(|_| is_known).and_then(|(_, health)| health.last_sync.clone()),
        age_seconds: oldest.and_then(|(_, health)| health.age_seconds),
        max_age_seconds: oldest.map(|(_, health)| health.max_age_seconds),
        data_age_seconds: data_ages.and_then(|ages| ages.into_iter().max()),
        version: env!("CARGO_PKG_VERSION"),
        exports: exports.into_iter().map(|(export, health)| (export.name.clone(), health)).collect(),
    }
}

pub(super) fn export_health(
    export: &ExportView,
    allowed: AllowedAge,
    now: DateTime<Utc>,
    instant: Instant,
) -> ExportHealth {
    let max_age = allowed.max_age(export.max_age);
    let recheck_after = max_age.saturating_add(export.recheck_absent);
    let health = |of: &TypeView| (of.name.clone(), type_health(of, max_age, recheck_after, now, instant));
    let types: BTreeMap<_, _> = export.types.iter().map(health).collect();
    // An unconfirmed type has no data that could be old.
    let with_data = types.iter().filter(|(_, of)| of.data_age_seconds.is_some() || of.status == Status::Unhealthy);
    let rank = |of: &TypeHealth| (of.data_age_seconds.is_none(), of.data_age_seconds);
    let oldest = with_data.max_by_key(|(_, of)| rank(of));
    let last = export.last_complete.or(export.before_migration);
    let age = last.and_then(|last| last.age(now, instant));
    ExportHealth {
        status: Status::of(types.values().all(|of| of.status == Status::Healthy)),
        last_sync: last.map(|last| text(last.at)),
        age_seconds: age.map(|age| age.as_secs()),
        max_age_seconds: max_age.as_secs(),
        data_age_seconds: oldest.and_then(|(_, of)| of.data_age_seconds),
        oldest_type: oldest.map(|(name, _)| name.clone()),
        last_outcome: export.last_outcome.map(|outcome| outcome.to_string()),
        failures_in_a_row: export.failures_in_a_row,
        warnings: export.warnings.clone(),
        next_run: export.next_run_at.map(text),
        now: (export.progress.step != Step::Idle).then(|| export.progress.step.to_string()),
        types,
    }
}

fn type_health(
    of: &TypeView,
    max_age: Duration,
    recheck_after: Duration,
    now: DateTime<Utc>,
    instant: Instant,
) -> TypeHealth {
    let age = of.data.and_then(|data| data.age(now, instant));
    // Data that are there are as old as they are, whatever was asked since.
    let asked = of.unconfirmed.filter(|_| of.data.is_none()).and_then(|asked| asked.age(now, instant));
    let is_fresh = age.is_some_and(|age| age <= max_age) || asked.is_some_and(|age| age <= recheck_after);
    TypeHealth {
        status: Status::of(is_fresh),
        data_as_of: of.data.map(|data| text(data.at)),
        data_age_seconds: age.map(|age| age.as_secs()),
        last_end: of.last_end.clone(),
    }
}

fn text(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::view::Moment, *};
    use crate::{
        fhir::parse_instant,
        sync::{PastRuns, Progress},
    };

    const MAX_AGE: Duration = Duration::from_hours(2);

    /// An export for each list of types; all monotonic instants are that of `start`.
    fn view(exports: &[&[Option<&str>]], start: Instant) -> View {
        let moment = |at: &str| Moment::new(self::at(at), self::at(at), start);
        let of_type = |(index, data): (usize, Option<&str>)| TypeView {
            name: format!("type-{index}"),
            data: data.map(moment),
            unconfirmed: None,
            last_end: None,
            watermark: None,
            rows: None,
        };
        let export = |(index, types): (usize, &&[Option<&str>])| ExportView {
            name: format!("export-{index}"),
            last_complete: types
                .iter()
                .copied()
                .collect::<Option<Vec<_>>>()
                .and_then(|all| all.into_iter().min())
                .map(moment),
            before_migration: None,
            types: types.iter().copied().enumerate().map(of_type).collect(),
            max_age: MAX_AGE,
            recheck_absent: Duration::from_hours(24),
            last_outcome: None,
            failures_in_a_row: 0,
            warnings: Vec::new(),
            next_run_at: None,
            progress: Progress::default(),
            runs: PastRuns::default(),
        };
        View { ready: true, heartbeat: start, hangs: false, exports: exports.iter().enumerate().map(export).collect() }
    }

    fn at(text: &str) -> DateTime<Utc> {
        parse_instant(text).unwrap()
    }

    /// Healthy or not, and the body as it is sent.
    fn health(view: &View, now: DateTime<Utc>, instant: Instant) -> (bool, Value) {
        let health = super::health(view, AllowedAge::OfExport, now, instant);
        (health.status.is_healthy(), serde_json::to_value(&health).unwrap())
    }

    #[test]
    fn it_is_healthy_up_to_the_age_and_unhealthy_beyond() {
        let start = Instant::now();
        let view = view(&[&[Some("2026-11-20T10:00:00Z")]], start);
        let (healthy, body) = health(&view, at("2026-11-20T11:59:59Z"), start);
        assert!(healthy);
        assert_eq!((&body["status"], &body["data_age_seconds"]), (&json!("healthy"), &json!(7199)));
        assert_eq!((&body["age_seconds"], &body["max_age_seconds"]), (&json!(7199), &json!(7200)));
        assert_eq!(body["last_sync"], json!("2026-11-20T10:00:00Z"));
        let (healthy, body) = health(&view, at("2026-11-20T12:00:01Z"), start);
        assert!(!healthy);
        assert_eq!(body["status"], json!("unhealthy"));
    }

    #[test]
    fn the_oldest_type_decides_and_one_that_was_never_loaded_is_older_than_any() {
        let start = Instant::now();
        let now = at("2026-11-20T10:00:01Z");
        let old = view(&[&[Some("2026-11-20T10:00:00Z"), Some("2026-11-20T07:00:00Z")]], start);
        let (healthy, body) = health(&old, now, start);
        let export = &body["exports"]["export-0"];
        assert!(!healthy);
        assert_eq!((&export["oldest_type"], &export["data_age_seconds"]), (&json!("type-1"), &json!(10_801)));
        assert_eq!(export["types"]["type-0"]["status"], json!("healthy"));
        let never = view(&[&[Some("2026-11-20T07:00:00Z"), None, Some("2026-11-20T10:00:00Z")]], start);
        let (healthy, body) = health(&never, now, start);
        let export = &body["exports"]["export-0"];
        assert!(!healthy);
        assert_eq!((&export["oldest_type"], &export["data_age_seconds"]), (&json!("type-1"), &Value::Null));
        assert_eq!(body["last_sync"], Value::Null);
    }

    #[test]
    fn an_unconfirmed_type_is_healthy_while_it_is_asked_for_again_in_time() {
        let start = Instant::now();
        let mut view = view(&[&[None]], start);
        assert!(!health(&view, at("2026-11-20T10:00:00Z"), start).0);
        view.exports[0].types[0].unconfirmed =
            Some(Moment::new(at("2026-11-19T09:00:00Z"), at("2026-11-19T09:00:00Z"), start));
        let (healthy, body) = health(&view, at("2026-11-20T10:59:00Z"), start);
        assert!(healthy);
        assert_eq!(body["exports"]["export-0"]["oldest_type"], Value::Null);
        assert!(!health(&view, at("2026-11-20T11:01:00Z"), start).0, "nobody asks any more");
        view.exports[0].types[0].data =
            Some(Moment::new(at("2026-11-01T09:00:00Z"), at("2026-11-01T09:00:00Z"), start));
        assert!(!health(&view, at("2026-11-20T10:59:00Z"), start).0, "data that are there are old");
    }

    #[test]
    fn a_checker_may_set_its_own_allowed_age() {
        let start = Instant::now();
        let view = view(&[&[Some("2026-11-20T10:00:00Z")]], start);
        let at_most = |minutes| AllowedAge::AtMost(Duration::from_mins(minutes));
        let health = |allowed, now| super::health(&view, allowed, at(now), start);
        let strict = health(at_most(30), "2026-11-20T10:45:00Z");
        assert_eq!((strict.status, strict.max_age_seconds), (Status::Unhealthy, Some(1800)));
        assert_eq!(strict.exports["export-0"].max_age_seconds, 1800);
        assert_eq!(health(at_most(300), "2026-11-20T14:00:00Z").status, Status::Healthy);
    }

    #[test]
    fn one_old_export_makes_the_whole_unhealthy() {
        let start = Instant::now();
        let mut view = view(&[&[Some("2026-11-20T10:00:00Z")], &[Some("2026-11-20T07:00:00Z")]], start);
        let (healthy, body) = health(&view, at("2026-11-20T10:00:01Z"), start);
        assert!(!healthy);
        assert_eq!(body["last_sync"], json!("2026-11-20T07:00:00Z"));
        assert_eq!(body["exports"]["export-0"]["status"], json!("healthy"));
        view.exports[1].max_age = Duration::from_hours(24);
        let (healthy, body) = health(&view, at("2026-11-20T10:00:01Z"), start);
        assert!(healthy, "each export has its own age");
        assert_eq!((&body["age_seconds"], &body["max_age_seconds"]), (&json!(10_801), &json!(86_400)));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_make_old_data_fresh() {
        let start = Instant::now();
        let view = view(&[&[Some("2026-11-20T10:00:00Z")]], start);
        let later = start + Duration::from_hours(3);
        assert!(!health(&view, at("2026-11-20T10:30:00Z"), later).0, "the monotonic clock knows better");
        assert!(!health(&view, at("2026-11-20T09:00:00Z"), start).0, "an age from the future is not an age");
        assert!(health(&view, at("2026-11-20T09:59:30Z"), start).0, "a little skew is");
    }

    #[test]
    fn a_machine_that_slept_does_not_keep_old_data_fresh() {
        let start = Instant::now();
        let view = view(&[&[Some("2026-11-20T10:00:00Z")]], start);
        assert!(!health(&view, at("2026-11-20T18:00:00Z"), start).0);
    }

    #[test]
    fn a_loop_that_hangs_is_not_alive() {
        let view = view(&[&[None]], Instant::now());
        assert!(is_alive(&view, view.heartbeat + Duration::from_secs(59)));
        assert!(!is_alive(&view, view.heartbeat + Duration::from_secs(61)));
    }
}
