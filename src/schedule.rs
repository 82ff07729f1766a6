//! The schedule: cron patterns become ticks. Always in UTC: in local time, a run would be skipped or repeated twice a
//! year.
//!
//! A tick that is still waiting is not queued a second time: however many were missed, one run makes up for them.

use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use croner::{
    Cron,
    parser::{CronParser, Seconds},
};
use tokio::sync::Notify;
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use crate::sync::{Activity, Mode};

/// A cron pattern of six fields (seconds first) or five. It was checked when it was read: there is a date that matches.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// Always with seconds: tokio-cron-scheduler accepts nothing else.
    text: String,
    cron: Cron,
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(written: &str) -> Result<Self, Self::Err> {
        let text = match written.split_whitespace().count() {
            5 => format!("0 {}", written.trim()),
            6 => written.trim().to_owned(),
            fields => {
                let plural = if fields == 1 { "" } else { "s" };
                return Err(format!(
                    "{written:?} has {fields} field{plural}; a cron pattern has five, or six with seconds first"
                ));
            }
        };
        let parser = CronParser::builder().seconds(Seconds::Required).build();
        let cron = parser.parse(&text).map_err(|error| format!("{written:?} is not a cron pattern: {error}"))?;
        if cron.find_next_occurrence(&DateTime::UNIX_EPOCH, false).is_err() {
            return Err(format!("{written:?} never fires: no date matches it"));
        }
        Ok(Self { text, cron })
    }
}

impl Pattern {
    /// The first time after `instant` that matches the pattern.
    pub fn next_after(&self, instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.cron.find_next_occurrence(&instant, false).ok()
    }
}

/// The first time after `instant` that matches any of the patterns.
pub fn next_after(patterns: &[Pattern], instant: DateTime<Utc>) -> Option<DateTime<Utc>> {
    patterns.iter().filter_map(|pattern| pattern.next_after(instant)).min()
}

/// How many ticks are compared to find the longest interval: two weeks at one tick a minute.
const MAX_TICKS: usize = 20_000;
/// A schedule that rests at night or at the weekend does so every week.
const REPEATS: TimeDelta = TimeDelta::days(8);

/// The longest time between two ticks that follow each other, from `instant` on. `None` where there are not two.
pub fn longest_interval(patterns: &[Pattern], instant: DateTime<Utc>) -> Option<Duration> {
    let mut longest = None;
    let mut before = next_after(patterns, instant)?;
    for _ in 0..MAX_TICKS {
        let Some(next) = next_after(patterns, before) else { break };
        longest = longest.max((next - before).to_std().ok());
        before = next;
        if before - instant > REPEATS {
            break;
        }
    }
    longest
}

/// It is time for something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tick {
    Maintain,
    Sync { export: String, mode: Mode },
}

impl Tick {
    pub fn activity(&self) -> Activity {
        match self {
            Self::Maintain => Activity::Maintenance,
            Self::Sync { export, .. } => Activity::Sync { export: export.clone() },
        }
    }
}

impl fmt::Display for Tick {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Maintain => out.write_str("maintenance"),
            Self::Sync { export, mode } => write!(out, "{export}, {mode}"),
        }
    }
}

/// The ticks that wait to be taken, in the order of their arrival: no export waits for ever behind others that are due
/// more often.
#[derive(Clone, Debug, Default)]
pub struct Ticks {
    /// With the number of later ticks that joined each.
    waiting: Arc<Mutex<VecDeque<(Tick, u64)>>>,
    news: Arc<Notify>,
}

impl Ticks {
    /// Queues a tick; it joins an equal one that is still waiting.
    pub fn tick(&self, tick: &Tick) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, joined)) = waiting.iter_mut().find(|(other, _)| other == tick) else {
            waiting.push_back((tick.clone(), 0));
            self.news.notify_one();
            return;
        };
        *joined += 1;
        // Once for each waiting tick: a schedule of seconds would fill the log.
        if *joined == 1 {
            tracing::info!(%tick, "the previous run is not done; this tick joins the waiting one");
        }
    }

    /// Waits for the next tick whose activity is not at work.
    pub async fn next(&self, at_work: &[Activity]) -> Tick {
        loop {
            if let Some(tick) = self.take(at_work) {
                return tick;
            }
            self.news.notified().await;
        }
    }

    /// A full refresh does what an incremental run would, so one run is enough for both ticks.
    fn take(&self, at_work: &[Activity]) -> Option<Tick> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, joined) = waiting.iter().find(|(tick, _)| !at_work.contains(&tick.activity()))?.clone();
        if joined > 0 {
            tracing::info!(tick = %first, joined, "one run makes up for all ticks that waited");
        }
        let of_the_same = waiting.iter().filter(|(tick, _)| tick.activity() == first.activity());
        let is_full = |tick: &&Tick| matches!(tick, Tick::Sync { mode: Mode::FullRefresh, .. });
        let taken = of_the_same.map(|(tick, _)| tick).find(is_full).cloned().unwrap_or(first);
        waiting.retain(|(tick, _)| tick.activity() != taken.activity());
        Some(taken)
    }
}

/// Starts the clock: each pattern queues its tick and does nothing else. It ends when it is dropped or shut down.
pub async fn start(schedules: &[(Tick, Vec<Pattern>)], ticks: &Ticks) -> Result<JobScheduler, JobSchedulerError> {
    let scheduler = JobScheduler::new().await?;
    for (tick, patterns) in schedules {
        for pattern in patterns {
            let (tick, ticks) = (tick.clone(), ticks.clone());
            scheduler.add(Job::new(pattern.text.as_str(), move |_, _| ticks.tick(&tick))?).await?;
        }
    }
    scheduler.start().await?;
    Ok(scheduler)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fhir::parse_instant;

    fn tick(export: &str, mode: Mode) -> Tick {
        Tick::Sync { export: export.to_owned(), mode }
    }

    #[test]
    fn a_pattern_has_five_or_six_fields_and_is_in_utc() {
        let at = |text| parse_instant(text).unwrap();
        for (pattern, expected) in [
            ("15 * * * *", "2026-11-20T10:15:00Z"),
            ("0 15 * * * *", "2026-11-20T10:15:00Z"),
            ("0 0 3 * * Sun", "2026-11-22T03:00:00Z"),
            ("30 1 2 * * *", "2026-11-21T02:01:30Z"),
        ] {
            let pattern: Pattern = pattern.parse().unwrap();
            assert_eq!(pattern.next_after(at("2026-11-20T10:00:00Z")), Some(at(expected)));
        }
    }

    #[test]
    fn invalid_patterns_and_patterns_that_never_fire_are_rejected_when_they_are_read() {
        for text in ["", "* * * *", "61 * * * *", "61 * * * * *", "0 0 3 * * Sonntag", "0 0 31 2 *"] {
            let error = text.parse::<Pattern>().unwrap_err();
            assert!(error.starts_with(&format!("{text:?} ")), "what was written is quoted: {error}");
        }
    }

    #[test]
    fn the_longest_interval_of_a_schedule_is_that_of_its_nights_and_weekends() {
        let longest = |patterns: &[&str]| {
            let patterns: Vec<Pattern> = patterns.iter().map(|pattern| pattern.parse().unwrap()).collect();
            longest_interval(&patterns, parse_instant("2026-11-20T10:00:00Z").unwrap())
        };
        assert_eq!(longest(&[]), None);
        assert_eq!(longest(&["15 * * * *"]), Some(Duration::from_hours(1)));
        assert_eq!(longest(&["15 * * * *", "0 3 * * Sun"]), Some(Duration::from_hours(1)));
        assert_eq!(longest(&["0 8-18 * * Mon-Fri"]), Some(Duration::from_hours(62)));
        assert_eq!(longest(&["0 3 * * Sun"]), Some(Duration::from_hours(7 * 24)));
        assert_eq!(longest(&["0 3 1 * *"]), Some(Duration::from_hours(31 * 24)));
        assert_eq!(longest(&["* * * * * *"]), Some(Duration::from_secs(1)));
    }

    /// (rule 135)
    #[tokio::test]
    async fn missed_ticks_collapse_into_one() {
        let ticks = Ticks::default();
        for _ in 0..3 {
            ticks.tick(&tick("all", Mode::Incremental));
        }
        assert_eq!(ticks.next(&[]).await, tick("all", Mode::Incremental));
        assert_eq!(ticks.take(&[]), None);
    }

    #[tokio::test]
    async fn a_full_refresh_replaces_the_waiting_incremental_tick() {
        let ticks = Ticks::default();
        ticks.tick(&tick("all", Mode::Incremental));
        ticks.tick(&tick("other", Mode::Incremental));
        ticks.tick(&tick("all", Mode::FullRefresh));
        assert_eq!(ticks.next(&[]).await, tick("all", Mode::FullRefresh));
        assert_eq!(ticks.next(&[]).await, tick("other", Mode::Incremental));
        assert_eq!(ticks.take(&[]), None);
    }

    #[tokio::test]
    async fn what_is_at_work_waits_and_the_others_are_taken_in_their_order() {
        let ticks = Ticks::default();
        let [a, z] = ["a", "z"].map(|export| tick(export, Mode::Incremental));
        for tick in [&a, &z, &Tick::Maintain, &a] {
            ticks.tick(tick);
        }
        assert_eq!(ticks.next(&[a.activity()]).await, z);
        ticks.tick(&z);
        assert_eq!(ticks.next(&[a.activity(), z.activity()]).await, Tick::Maintain);
        assert_eq!(ticks.take(&[a.activity(), z.activity()]), None);
        assert_eq!(ticks.next(&[]).await, a);
        assert_eq!(ticks.next(&[]).await, z);
    }

    #[tokio::test]
    async fn an_export_that_is_always_due_does_not_starve_another() {
        let ticks = Ticks::default();
        let [a, z] = ["a", "z"].map(|export| tick(export, Mode::Incremental));
        ticks.tick(&z);
        let mut taken = Vec::new();
        for _ in 0..4 {
            ticks.tick(&a);
            ticks.tick(&z);
            taken.push(ticks.next(&[]).await);
        }
        assert_eq!(taken, [z.clone(), a.clone(), z, a]);
    }

    #[tokio::test]
    async fn the_clock_ticks() {
        let ticks = Ticks::default();
        let every_second = vec!["* * * * * *".parse().unwrap()];
        let mut scheduler = start(&[(tick("all", Mode::Incremental), every_second)], &ticks).await.unwrap();
        assert_eq!(ticks.next(&[]).await, tick("all", Mode::Incremental));
        scheduler.shutdown().await.unwrap();
    }
}
