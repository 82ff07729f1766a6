//! Sharing: several daemons with the same configuration do its exports together. What is due is read from the state that
//! they share, so that each tick is served once, by whoever holds the export then.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use tokio::task::JoinSet;

use super::{
    Daemon,
    due::{MAX_AHEAD, due_here, is_of_the_future},
    now,
};
use crate::{
    config::{Maintenance, Scheduled},
    schedule::{Tick, next_after},
    sync::{self, Leases, Mode, Syncer, chain},
};

/// How often it is read what other processes have done: as often as they renew their leases.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(15);

/// The other processes, as this one sees them.
pub(super) struct Others {
    started_at: DateTime<Utc>,
    /// Looks at them, once in a while; nothing where exports are not shared.
    looking: JoinSet<()>,
    /// The exports that somebody has asked this process to sync, due or not.
    asked_for: BTreeSet<String>,
}

/// Why a run is to begin.
#[derive(Clone, Copy)]
pub(super) enum Reason {
    /// The schedule, or a process that was killed. Another process may have been faster.
    Due {
        started_at: DateTime<Utc>,
    },
    Asked,
}

impl Others {
    pub fn watch(syncer: &Arc<Syncer>, started_at: DateTime<Utc>) -> Self {
        let mut others = Self { started_at, looking: JoinSet::new(), asked_for: BTreeSet::new() };
        if syncer.shares_exports() {
            others.look(syncer);
        }
        others
    }

    fn look(&mut self, syncer: &Arc<Syncer>) {
        let syncer = Arc::clone(syncer);
        self.looking.spawn(async move {
            tokio::time::sleep(LOOKED_AT_EVERY).await;
            if let Err(error) = syncer.read_shared_state().await {
                tracing::warn!(error = chain(&error), "what other processes do could not be read; trying again");
            }
        });
    }

    /// Waits until the other processes were looked at; for ever, where there are none.
    pub async fn looked(&mut self, syncer: &Arc<Syncer>) {
        match self.looking.join_next().await {
            Some(_) => self.look(syncer),
            None => std::future::pending().await,
        }
    }

    /// The clock was set back to `now`. A start that seems to be of the future was before it: every later run would be
    /// older than this process, and what it left incomplete would be due without end.
    pub fn follow_clock(&mut self, now: DateTime<Utc>) {
        self.started_at = self.started_at.min(now);
    }

    pub fn ask_for(&mut self, export: &str) {
        self.asked_for.insert(export.to_owned());
    }

    pub fn reason(&mut self, export: &str) -> Reason {
        if self.asked_for.remove(export) { Reason::Asked } else { Reason::Due { started_at: self.started_at } }
    }
}

impl Daemon {
    /// Begins what is due, as far as this process knows, and is not at work in another one. Taking the lease decides.
    pub(super) fn begin_due(&self) {
        let (state, other_holders) = (self.syncer.current_state(), self.syncer.other_holders());
        for watched in &self.exports {
            let export = watched.name();
            if self.is_syncing(export) {
                continue;
            }
            let known = state.exports.get(export).cloned().unwrap_or_default();
            // Then the ticks of this process decide: two clocks would else take turns without end.
            if known
                .last_run
                .as_ref()
                .is_some_and(|last| last.ended && is_of_the_future(&watched.scheduled, last, now()))
            {
                continue;
            }
            let due = due_here(&watched.scheduled, &known, Mode::Incremental, self.others.started_at, now());
            if let Some(mode) = due.filter(|_| !other_holders.contains_key(export)) {
                self.ticks.tick(&Tick::Sync { export: export.to_owned(), mode });
            }
        }
    }
}

/// The leases for a run, and its mode; `None` where another process is at it, or has done it.
pub(super) async fn take_leases(
    syncer: &Syncer,
    scheduled: &Scheduled,
    mode: Mode,
    reason: Reason,
) -> Option<(Leases, Mode)> {
    let name = &scheduled.export.name;
    let leases = match syncer.take_leases(std::slice::from_ref(name)).await {
        Ok(leases) => leases,
        Err(sync::Error::LeasedByOther { export, holder }) => {
            tracing::debug!(export, holder, "another fhir-sync works on the export");
            return None;
        }
        Err(error) => {
            tracing::error!(
                export = name,
                error = chain(&error),
                "the sync could not begin; the next tick tries again"
            );
            return None;
        }
    };
    let Reason::Due { started_at } = reason else { return Some((leases, mode)) };
    if !syncer.shares_exports() {
        return Some((leases, mode));
    }
    let known = syncer.current_state().exports.get(name).cloned().unwrap_or_default();
    let Some(due) = due_here(scheduled, &known, mode, started_at, now()) else {
        tracing::debug!(export = name, "another fhir-sync has run what was due");
        leases.release().await;
        return None;
    };
    if let Some(last) = known.last_run.filter(|last| !last.ended) {
        tracing::warn!(
            export = name,
            run = last.number,
            "the process of the last run has ended before the run; going on"
        );
    }
    Some((leases, due))
}

/// Whether no other process has maintained the tables since the last tick.
pub(super) async fn maintenance_is_due(syncer: &Syncer, maintenance: &Maintenance) -> bool {
    if !syncer.shares_exports() {
        return true;
    }
    if let Err(error) = syncer.read_shared_state().await {
        tracing::warn!(error = chain(&error), "what other processes do could not be read");
    }
    let patterns: Vec<_> = maintenance.schedule.iter().cloned().collect();
    // A time of the future is of a clock that is ahead.
    let maintained_at = syncer.current_state().maintained_at.filter(|at| *at - now() <= MAX_AHEAD);
    maintained_at.and_then(|at| next_after(&patterns, at)).is_none_or(|next| next <= now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        export::Level,
        fhir::parse_instant,
        state::{ExportState, LastRun},
    };

    #[test]
    fn a_run_after_a_clock_was_set_back_is_no_older_than_a_process_that_started_while_it_was_ahead() {
        let at = |text: &str| parse_instant(text).unwrap();
        let scheduled = Scheduled {
            export: sync::Export::new("all", Level::System, Vec::new()),
            incremental: vec!["0 15 * * * *".parse().unwrap()],
            full_refresh: Vec::new(),
            max_age: None,
        };
        // It was not complete: no run of this export was.
        let begun_at = at("2026-11-20T10:15:01Z");
        let last = LastRun { number: 7, begun_at, full_refresh: false, ended: true, full_refresh_begun_at: begun_at };
        let known = ExportState { last_run: Some(last), ..ExportState::default() };
        for started_at in [at("2026-11-21T10:00:00Z"), at("2026-11-20T09:00:00Z")] {
            let mut others = Others { started_at, looking: JoinSet::new(), asked_for: BTreeSet::new() };
            others.follow_clock(at("2026-11-20T10:00:00Z"));
            let Reason::Due { started_at } = others.reason("all") else { panic!("nobody has asked") };
            let due = due_here(&scheduled, &known, Mode::Incremental, started_at, at("2026-11-20T10:15:30Z"));
            assert_eq!(due, None, "{started_at}");
        }
    }
}
