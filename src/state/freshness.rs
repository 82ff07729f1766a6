//! Freshness: from when the data of an export are, and how its last runs ended. It is what `/health` reports, kept here
//! so that a restart does not forget it.

use std::{collections::BTreeMap, fmt, time::Duration};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{JobInFlight, State};
use crate::fhir::{ResourceType, TransactionTime};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Freshness {
    /// From when the data of each type are, by the local clock; see [`JobInFlight::data_as_of`].
    pub data_as_of: BTreeMap<ResourceType, DateTime<Utc>>,
    /// How each type ended in the last run, as a word.
    pub ends: BTreeMap<ResourceType, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_outcome: Option<Outcome>,
    pub failures_in_a_row: u32,
    /// What the last run left open: sentences without content of resources.
    pub warnings: Vec<String>,
    /// How long the last runs took that committed something, the newest last.
    pub incremental_ms: Vec<u64>,
    pub full_refresh_ms: Vec<u64>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every type has every row up to its new watermark.
    Complete,
    /// Something was committed, and something failed, is missing or in quarantine.
    Partial,
    Failed,
    /// Stopped as requested; the next run continues.
    Stopped,
}

impl Outcome {
    pub const ALL: [Self; 4] = [Self::Complete, Self::Partial, Self::Failed, Self::Stopped];
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        })
    }
}

/// More are of no use to a reader of `/health`.
const MAX_WARNINGS: usize = 50;
/// Enough to know how long a run usually takes; few enough to forget the exception.
const MAX_DURATIONS: usize = 5;

impl Freshness {
    pub fn warn(&mut self, mut warnings: Vec<String>) {
        let left_out = warnings.len().saturating_sub(MAX_WARNINGS);
        warnings.truncate(MAX_WARNINGS);
        warnings.extend((left_out > 0).then(|| format!("and {left_out} more; the log has them all")));
        self.warnings = warnings;
    }

    pub fn count(&mut self, outcome: Outcome) {
        self.last_outcome = Some(outcome);
        match outcome {
            Outcome::Complete => self.failures_in_a_row = 0,
            Outcome::Partial | Outcome::Failed => self.failures_in_a_row = self.failures_in_a_row.saturating_add(1),
            Outcome::Stopped => {}
        }
    }

    /// The outcome of the last run that was not stopped, where that is known: after a stop, only that it was complete.
    pub fn outcome_before_a_stop(&self) -> Option<Outcome> {
        match self.last_outcome? {
            Outcome::Stopped => {
                let was_complete = self.failures_in_a_row == 0 && !self.data_as_of.is_empty();
                was_complete.then_some(Outcome::Complete)
            }
            outcome => Some(outcome),
        }
    }

    pub fn took(&mut self, duration: Duration, is_full_refresh: bool) {
        let durations = if is_full_refresh { &mut self.full_refresh_ms } else { &mut self.incremental_ms };
        durations.push(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        let before = durations.len().saturating_sub(MAX_DURATIONS);
        durations.drain(..before);
    }

    /// How long the last runs have taken. Full refreshes count where the schedule has them.
    pub fn usual_run(&self, with_full_refresh: bool) -> Duration {
        let full_refresh = longest(&self.full_refresh_ms).filter(|_| with_full_refresh);
        Duration::from_millis(longest(&self.incremental_ms).max(full_refresh).unwrap_or_default())
    }
}

/// The longest; of three or more, the second longest: one may have waited for a server.
fn longest(durations_ms: &[u64]) -> Option<u64> {
    let mut durations = durations_ms.to_vec();
    durations.sort_unstable_by(|one, other| other.cmp(one));
    durations.get(usize::from(durations.len() > 2)).copied()
}

impl JobInFlight {
    /// From when the data are whose watermark this job moves, by the local clock.
    ///
    /// That is the local time of the kick-off, not of the end of the run: what changed on the server during a job of
    /// hours is not in the tables. A snapshot that the server took before the kick-off is older by as much as the
    /// server's own clock says. So a server clock that is off, or jumps between two runs, makes data neither younger
    /// nor older.
    pub fn data_as_of(&self, watermark: TransactionTime) -> DateTime<Utc> {
        let Some(server_time) = self.server_time_at_kick_off else { return self.kicked_off_locally_at };
        let lag = (server_time.instant() - watermark.instant()).max(chrono::TimeDelta::zero());
        self.kicked_off_locally_at.checked_sub_signed(lag).unwrap_or(DateTime::UNIX_EPOCH)
    }
}

/// A state file of an earlier version does not say from when the data are. They are no younger than their watermark,
/// and no younger than the end of the last complete run.
pub(super) fn of_an_earlier_version(mut state: State) -> State {
    for export in state.exports.values_mut().filter(|export| export.freshness == Freshness::default()) {
        let Some(last_complete_at) = export.last_complete_at else { continue };
        let as_of = |watermark: &TransactionTime| watermark.instant().min(last_complete_at);
        export.freshness.data_as_of = export.watermarks.iter().map(|(of, watermark)| (*of, as_of(watermark))).collect();
    }
    state
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::fhir::parse_instant;

    fn job(server_time: Option<&str>) -> JobInFlight {
        JobInFlight {
            status_url: "https://ehr.example.org/status/1".parse().unwrap(),
            server_time_at_kick_off: server_time.and_then(parse_instant).map(TransactionTime::from),
            server_time_later: None,
            denied_since: None,
            kicked_off_locally_at: parse_instant("2026-11-20T10:00:00Z").unwrap(),
            types: Vec::new(),
            since: None,
            full_refresh: false,
            asked: None,
            server: None,
            not_granted: BTreeMap::new(),
            settled: BTreeSet::new(),
            finished: BTreeMap::new(),
            patients: BTreeSet::new(),
        }
    }

    fn as_of(server_time: Option<&str>, watermark: &str) -> String {
        job(server_time).data_as_of(parse_instant(watermark).unwrap().into()).format("%H:%M").to_string()
    }

    #[test]
    fn the_data_are_from_the_local_time_of_the_kick_off_whatever_the_server_s_clock_says() {
        assert_eq!(as_of(Some("2026-11-20T10:00:00Z"), "2026-11-20T10:00:00Z"), "10:00");
        assert_eq!(as_of(Some("2031-01-01T00:00:00Z"), "2031-01-01T00:00:00Z"), "10:00", "years ahead");
        assert_eq!(as_of(None, "2026-11-19T00:00:00Z"), "10:00", "its clock is unknown");
    }

    #[test]
    fn a_snapshot_from_before_the_kick_off_is_older() {
        assert_eq!(as_of(Some("2031-01-01T03:00:00Z"), "2031-01-01T01:30:00Z"), "08:30");
    }

    #[test]
    fn few_durations_are_kept_and_a_full_refresh_counts_where_there_is_one() {
        let mut freshness = Freshness::default();
        freshness.took(Duration::from_hours(9), true);
        (1..=8).rev().for_each(|minutes| freshness.took(Duration::from_mins(minutes), false));
        assert_eq!(freshness.incremental_ms.len(), MAX_DURATIONS);
        assert_eq!(freshness.usual_run(false), Duration::from_mins(4));
        assert_eq!(freshness.usual_run(true), Duration::from_hours(9));
    }

    #[test]
    fn one_run_that_took_days_does_not_make_old_data_fresh() {
        let mut freshness = Freshness::default();
        for minutes in [10, 20, 5 * 24 * 60, 15] {
            freshness.took(Duration::from_mins(minutes), false);
        }
        assert_eq!(freshness.usual_run(true), Duration::from_mins(20));
    }

    #[test]
    fn one_full_refresh_that_took_days_counts_until_two_others_have_been_shorter() {
        let mut freshness = Freshness::default();
        let mut usual = Vec::new();
        for hours in [5 * 24, 6, 4] {
            freshness.took(Duration::from_hours(hours), true);
            usual.push(freshness.usual_run(true));
        }
        assert_eq!(usual, [5 * 24, 5 * 24, 6].map(Duration::from_hours));
    }
}
