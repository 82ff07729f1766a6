//! Health: how long ago the last complete sync ended.
//!
//! Never "healthy" while the data are older than the configured age. An age is the greater of the wall clock's and the
//! monotonic clock's: the first can be set back, the second stops while a machine is suspended.

use std::{collections::BTreeMap, time::Duration};

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::Serialize;
use tokio::time::Instant;

use crate::sync::{Outcome, Step};

/// What the daemon publishes about itself.
#[derive(Clone, Debug)]
pub struct View {
    pub ready: bool,
    /// When the daemon's loop last showed that it is alive.
    pub heartbeat: Instant,
    pub exports: Vec<ExportView>,
}

#[derive(Clone, Debug)]
pub struct ExportView {
    pub name: String,
    pub last_complete: Option<LastComplete>,
    pub last_outcome: Option<Outcome>,
    pub failures_in_a_row: u32,
    /// What the last sync left open: what is unconfirmed, denied, missing, loaded in full.
    pub warnings: Vec<String>,
    pub next_run_at: Option<DateTime<Utc>>,
    /// The step of the sync that is running.
    pub step: Step,
}

/// When a sync was last complete, on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct LastComplete {
    pub at: DateTime<Utc>,
    pub anchor: Instant,
}

/// How far the wall clock may be behind the last sync before it is not trusted.
const MAX_SKEW: TimeDelta = TimeDelta::seconds(60);
/// The daemon's loop publishes a heartbeat every second; after this long without one it counts as hanging.
const MAX_HEARTBEAT_AGE: Duration = Duration::from_mins(1);

impl LastComplete {
    /// `None` where the wall clock is before the sync: then the age is unknown.
    fn age(&self, now: DateTime<Utc>, instant: Instant) -> Option<Duration> {
        if now + MAX_SKEW < self.at {
            return None;
        }
        let wall = (now - self.at).to_std().unwrap_or_default();
        Some(wall.max(instant.saturating_duration_since(self.anchor)))
    }
}

pub(super) fn is_alive(view: &View, instant: Instant) -> bool {
    instant.saturating_duration_since(view.heartbeat) < MAX_HEARTBEAT_AGE
}

/// The body of `/health`. The first two members are those of the script that fhir-sync replaces; monitoring looks for
/// them.
#[derive(Serialize, Debug)]
pub(super) struct Health {
    status: Status,
    last_sync: Option<String>,
    age_seconds: Option<u64>,
    max_age_seconds: u64,
    version: &'static str,
    exports: BTreeMap<String, ExportHealth>,
}

#[derive(Serialize, Debug)]
struct ExportHealth {
    status: Status,
    last_sync: Option<String>,
    age_seconds: Option<u64>,
    last_outcome: Option<String>,
    failures_in_a_row: u32,
    warnings: Vec<String>,
    next_run: Option<String>,
    /// The step of the sync that is running.
    now: Option<String>,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
enum Status {
    Healthy,
    Unhealthy,
}

impl Health {
    pub(super) fn is_healthy(&self) -> bool {
        self.status == Status::Healthy
    }
}

/// As healthy as the least healthy export.
pub(super) fn health(view: &View, max_age: Duration, now: DateTime<Utc>, instant: Instant) -> Health {
    let ages = view.exports.iter().map(|export| export.last_complete.and_then(|last| last.age(now, instant)));
    let exports: Vec<_> = view.exports.iter().zip(ages).collect();
    // The oldest; none where one export was never complete, because "never" is older than any age.
    let ages: Option<Vec<_>> = exports.iter().map(|(export, age)| Some(((*age)?, export.last_complete?.at))).collect();
    let oldest = ages.and_then(|ages| ages.into_iter().max_by_key(|(age, _)| *age));
    Health {
        status: status(oldest.map(|(age, _)| age), max_age),
        last_sync: oldest.map(|(_, at)| text(at)),
        age_seconds: oldest.map(|(age, _)| age.as_secs()),
        max_age_seconds: max_age.as_secs(),
        version: env!("CARGO_PKG_VERSION"),
        exports: exports
            .into_iter()
            .map(|(export, age)| (export.name.clone(), export_health(export, age, max_age)))
            .collect(),
    }
}

fn export_health(export: &ExportView, age: Option<Duration>, max_age: Duration) -> ExportHealth {
    ExportHealth {
        status: status(age, max_age),
        last_sync: export.last_complete.map(|last| text(last.at)),
        age_seconds: age.map(|age| age.as_secs()),
        last_outcome: export.last_outcome.map(|outcome| outcome.to_string()),
        failures_in_a_row: export.failures_in_a_row,
        warnings: export.warnings.clone(),
        next_run: export.next_run_at.map(text),
        now: (export.step != Step::Idle).then(|| export.step.to_string()),
    }
}

fn status(age: Option<Duration>, max_age: Duration) -> Status {
    if age.is_some_and(|age| age <= max_age) { Status::Healthy } else { Status::Unhealthy }
}

fn text(instant: DateTime<Utc>) -> String {
    instant.to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fhir::parse_instant;

    const MAX_AGE: Duration = Duration::from_hours(2);

    fn view(last_complete: &[Option<(&str, Instant)>]) -> View {
        let export = |(index, last): (usize, &Option<(&str, Instant)>)| ExportView {
            name: format!("export-{index}"),
            last_complete: last.map(|(at, anchor)| LastComplete { at: parse_instant(at).unwrap(), anchor }),
            last_outcome: None,
            failures_in_a_row: 0,
            warnings: Vec::new(),
            next_run_at: None,
            step: Step::Idle,
        };
        let exports = last_complete.iter().enumerate().map(export).collect();
        View { ready: true, heartbeat: Instant::now(), exports }
    }

    fn at(text: &str) -> DateTime<Utc> {
        parse_instant(text).unwrap()
    }

    /// Healthy or not, and the body as it is sent.
    fn health(view: &View, max_age: Duration, now: DateTime<Utc>, instant: Instant) -> (bool, Value) {
        let health = super::health(view, max_age, now, instant);
        (health.is_healthy(), serde_json::to_value(&health).unwrap())
    }

    #[test]
    fn it_is_healthy_up_to_the_age_and_unhealthy_beyond() {
        let start = Instant::now();
        let view = view(&[Some(("2026-11-20T10:00:00Z", start))]);
        let (healthy, body) = health(&view, MAX_AGE, at("2026-11-20T11:59:59Z"), start);
        assert!(healthy);
        assert_eq!((&body["status"], &body["age_seconds"]), (&json!("healthy"), &json!(7199)));
        assert_eq!(body["last_sync"], json!("2026-11-20T10:00:00Z"));
        let (healthy, body) = health(&view, MAX_AGE, at("2026-11-20T12:00:01Z"), start);
        assert!(!healthy);
        assert_eq!(body["status"], json!("unhealthy"));
    }

    #[test]
    fn without_a_complete_sync_it_is_unhealthy() {
        let (healthy, body) = health(&view(&[None]), MAX_AGE, at("2026-11-20T10:00:00Z"), Instant::now());
        assert!(!healthy);
        assert_eq!(body["last_sync"], Value::Null);
    }

    #[test]
    fn one_old_export_makes_the_whole_unhealthy() {
        let start = Instant::now();
        let view = view(&[Some(("2026-11-20T10:00:00Z", start)), Some(("2026-11-20T07:00:00Z", start))]);
        let (healthy, body) = health(&view, MAX_AGE, at("2026-11-20T10:00:01Z"), start);
        assert!(!healthy);
        assert_eq!(body["last_sync"], json!("2026-11-20T07:00:00Z"));
        assert_eq!(body["exports"]["export-0"]["status"], json!("healthy"));
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_make_old_data_fresh() {
        let start = Instant::now();
        let view = view(&[Some(("2026-11-20T10:00:00Z", start))]);
        let later = start + Duration::from_hours(3);
        assert!(!health(&view, MAX_AGE, at("2026-11-20T10:30:00Z"), later).0, "the monotonic clock knows better");
        assert!(!health(&view, MAX_AGE, at("2026-11-20T09:00:00Z"), start).0, "an age from the future is not an age");
        assert!(health(&view, MAX_AGE, at("2026-11-20T09:59:30Z"), start).0, "a little skew is");
    }

    #[test]
    fn a_machine_that_slept_does_not_keep_old_data_fresh() {
        let start = Instant::now();
        let view = view(&[Some(("2026-11-20T10:00:00Z", start))]);
        assert!(!health(&view, MAX_AGE, at("2026-11-20T18:00:00Z"), start).0);
    }

    #[test]
    fn a_loop_that_hangs_is_not_alive() {
        let view = view(&[None]);
        assert!(is_alive(&view, view.heartbeat + Duration::from_secs(59)));
        assert!(!is_alive(&view, view.heartbeat + Duration::from_secs(61)));
    }
}
