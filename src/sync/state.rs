//! The state of a sync: what the state file says, and what is written to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use url::Url;

use super::{Error, Export, Mode, Outcome, Report, Syncer, clock::now};
use crate::{
    fhir::{ResourceType, TransactionTime},
    state::{
        Asked, ExportState, FinishedFiles, JobInFlight, JobKind, KeptRows, LastRun, OpenState, ReloadReason, State,
    },
    telemetry::metrics::{self, RunOutcome},
};

/// Why a type is loaded in full whose first load ended before its end.
const GIVEN_UP: &str = "a full load of which a part is in the table was given up";

/// A ledger that cannot be written for longer lacks the earlier runs for good.
const MAX_UNRECORDED_RUNS: usize = 1000;

impl Syncer {
    /// What the state file says now.
    pub fn state(&self) -> State {
        State::clone(&self.current_state())
    }

    /// The outcome of the last run of an export that was not stopped; see [`Freshness::outcome_before_a_stop`].
    pub fn outcome_before(&self, export: &str) -> Option<Outcome> {
        self.current_state().exports.get(export)?.freshness.outcome_before_a_stop()
    }

    /// The state as it was last read or written, without a copy.
    pub fn current_state(&self) -> Arc<State> {
        Arc::clone(&self.seen.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn export_state(&self, export: &Export) -> ExportState {
        self.current_state().exports.get(&export.name).cloned().unwrap_or_default()
    }

    /// What is asked from now on. With a reason, the watermarks of these types no longer count.
    pub(super) async fn remember_asked(
        &self,
        export: &Export,
        asked: Asked,
        reload: Option<(String, Vec<ResourceType>)>,
    ) -> Result<(), Error> {
        self.remember_export(export, move |state| {
            let before = state.asked.replace(asked.clone()).unwrap_or(asked);
            for job in &mut state.jobs {
                job.asked.get_or_insert_with(|| before.clone());
            }
            if let Some((reason, types)) = reload {
                state.watermarks.retain(|resource_type, _| !types.contains(resource_type));
                state.freshness.data_as_of.retain(|resource_type, _| !types.contains(resource_type));
                state.reload.extend(types.into_iter().map(|resource_type| (resource_type, reason.clone().into())));
            }
        })
        .await
    }

    /// These types are loaded in full, each for its reason.
    pub(super) async fn remember_reload(
        &self,
        export: &Export,
        reasons: BTreeMap<ResourceType, String>,
    ) -> Result<(), Error> {
        if reasons.is_empty() {
            return Ok(());
        }
        self.remember_export(export, move |state| {
            state.watermarks.retain(|resource_type, _| !reasons.contains_key(resource_type));
            state.tables.retain(|resource_type, _| !reasons.contains_key(resource_type));
            state.freshness.data_as_of.retain(|resource_type, _| !reasons.contains_key(resource_type));
            state.reload.extend(reasons.into_iter().map(|(of, reason)| (of, reason.into())));
        })
        .await
    }

    pub(super) async fn remember_job(&self, export: &Export, job: JobInFlight) -> Result<(), Error> {
        self.remember_export(export, move |state| state.jobs.push(job)).await
    }

    /// Only these types may still come from a job.
    pub(super) async fn narrow_job(&self, export: &Export, narrowed: &JobInFlight) -> Result<(), Error> {
        self.narrow_job_of(export.name.clone(), narrowed.status_url.clone(), narrowed.types.clone()).await
    }

    /// Before a job is deleted on the server. Later runs may delete it again, and never read it: some servers answer its
    /// status URL all the same, with the files that they had until then.
    pub(super) async fn follow_no_more(&self, export: String, status_url: Url) -> Result<(), Error> {
        let state = self.current_state();
        let mut jobs = state.exports.get(&export).into_iter().flat_map(|known| &known.jobs);
        if jobs.any(|job| job.status_url == status_url && !job.types.is_empty()) {
            self.narrow_job_of(export, status_url, Vec::new()).await?;
        }
        Ok(())
    }

    async fn narrow_job_of(&self, export: String, status_url: Url, types: Vec<ResourceType>) -> Result<(), Error> {
        self.remember(move |state| {
            let state = state.exports.entry(export).or_default();
            for job in state.jobs.iter_mut().filter(|job| job.status_url == status_url) {
                state.reload.extend(given_up(job, &types));
                job.types.clone_from(&types);
            }
        })
        .await
    }

    /// The instalments of a full load that is given up leave rows that nobody asks about again: the next one is
    /// complete and compares them.
    pub(super) async fn forget_job(&self, export: &Export, status_url: Url) -> Result<(), Error> {
        self.forget_job_of(export.name.clone(), status_url).await
    }

    pub(super) async fn forget_job_of(&self, export: String, status_url: Url) -> Result<(), Error> {
        self.remember(move |state| {
            let state = state.exports.entry(export).or_default();
            let is_meant = |job: &mut JobInFlight| job.status_url == status_url;
            for mut job in state.jobs.extract_if(.., is_meant) {
                state.reload.extend(given_up(&mut job, &[]));
            }
        })
        .await
    }

    /// These files of a job need not be read again.
    pub(super) async fn remember_finished(
        &self,
        export: &Export,
        status_url: Url,
        of: ResourceType,
        finished: FinishedFiles,
    ) -> Result<(), Error> {
        self.remember_export(export, move |state| {
            for job in state.jobs.iter_mut().filter(|job| job.status_url == status_url) {
                job.finished.insert(of, finished.clone());
            }
        })
        .await
    }

    /// The files of a type that were read before no longer count, for this reason.
    pub(super) async fn forget_finished(
        &self,
        export: &Export,
        status_url: Url,
        of: ResourceType,
        reason: String,
    ) -> Result<(), Error> {
        self.remember_export(export, move |state| {
            for job in state.jobs.iter_mut().filter(|job| job.status_url == status_url) {
                job.finished.remove(&of);
                if !matches!(job.kind(), JobKind::Increment(_)) {
                    state.reload.entry(of).or_insert_with(|| reason.clone().into());
                }
            }
        })
        .await
    }

    /// Rows of this type are stored with times up to here, of a clock that was set back: what comes by the right one
    /// looks older.
    pub(super) async fn remember_former_clock(
        &self,
        export: &Export,
        of: ResourceType,
        until: TransactionTime,
    ) -> Result<(), Error> {
        self.remember_export(export, move |state| raise(&mut state.set_back_from, of, until)).await
    }

    /// Rows of these types are about to be stored without a transaction time, because the clock is ahead: a time that
    /// they state will look later than what comes by the right one.
    pub(super) async fn remember_clock_ahead(
        &self,
        export: &Export,
        types: Vec<ResourceType>,
        until: TransactionTime,
    ) -> Result<(), Error> {
        self.remember_export(export, move |state| {
            for of in types {
                raise(&mut state.was_ahead_until, of, until);
            }
        })
        .await
    }

    pub(super) async fn remember_watermarks(
        &self,
        export: &Export,
        watermarks: Vec<(ResourceType, TransactionTime)>,
    ) -> Result<(), Error> {
        self.remember_export(export, move |state| state.watermarks.extend(watermarks)).await
    }

    /// Stores what the report says of a job. `left` are the types that may still come from it.
    pub(super) async fn remember_settled(
        &self,
        export: &Export,
        report: &Report,
        job: &JobInFlight,
        left: Vec<ResourceType>,
    ) -> Result<(), Error> {
        let (asked_at, status_url) = (now(), job.status_url.clone());
        let (watermarks, tables) = (report.watermarks(), report.tables());
        let set_back = report.set_back();
        let data_as_of = report.data_as_of(job);
        let absent = report.known_absent();
        let mut unconfirmed = report.unconfirmed();
        unconfirmed.retain(|resource_type| job.types.contains(resource_type));
        let is_full = job.kind().is_full();
        let left_out = if is_full { report.to_load_again() } else { Vec::new() };
        let kept_rows = if is_full { report.kept_rows(job) } else { Vec::new() };
        let has_tombstones = self.root.has_tombstones().await?;
        let is_denied = report.files_denied().iter().any(|of| left.contains(of));
        let set_back_from: Vec<_> =
            report.types.iter().filter_map(|(of, report)| Some((*of, report.set_back_from?))).collect();
        let loaded: Vec<_> = watermarks.iter().map(|(of, _)| *of).filter(|of| job.types.contains(of)).collect();
        self.remember_export(export, move |state| {
            state.unconfirmed.retain(|resource_type, _| watermarks.iter().all(|(settled, _)| settled != resource_type));
            state.unconfirmed.retain(|of, _| !absent.contains(of) && !left_out.contains(of));
            remember_unconfirmed(state, unconfirmed, asked_at);
            for (of, rows) in kept_rows {
                remember_kept(state, of, rows, asked_at);
            }
            // Only where it was loaded before is there something that an increment would not bring.
            for of in left_out.into_iter().filter(|of| state.watermarks.contains_key(of)) {
                state.reload.entry(of).or_insert(ReloadReason::LeftOut);
            }
            state.reload.retain(|resource_type, _| watermarks.iter().all(|(settled, _)| settled != resource_type));
            state.reload.extend(set_back.into_iter().map(|of| (of, "the server's clock was set back".into())));
            state.set_back_from.extend(set_back_from);
            let is_passed = |of: &ResourceType, from: &TransactionTime| {
                watermarks.iter().any(|(settled, watermark)| settled == of && watermark > from)
            };
            state.set_back_from.retain(|of, from| !is_passed(of, from));
            state.was_ahead_until.retain(|of, until| !is_passed(of, until));
            state.watermarks.extend(watermarks.iter().copied());
            state.tables.extend(tables);
            state.freshness.data_as_of.extend(data_as_of);
            state.has_tombstones = has_tombstones;
            for job in state.jobs.iter_mut().filter(|job| job.status_url == status_url) {
                job.settled.extend(job.types.iter().filter(|of| !left.contains(of)));
                let given_up = given_up(job, &left);
                state.reload.extend(given_up.filter(|(of, _)| watermarks.iter().all(|(settled, _)| settled != of)));
                job.types.clone_from(&left);
                job.denied_since = is_denied.then(|| job.denied_since.unwrap_or(asked_at));
            }
            if is_full {
                narrow_older_jobs(state, &status_url, &loaded);
            }
        })
        .await
    }

    /// The job has failed, and the next run follows it again. Since when the server denies it, or that it no longer does.
    pub(super) async fn remember_whether_denied(
        &self,
        export: &Export,
        job: &JobInFlight,
        is_denied: bool,
    ) -> Result<(), Error> {
        let (status_url, now) = (job.status_url.clone(), now());
        self.remember_export(export, move |state| {
            for job in state.jobs.iter_mut().filter(|job| job.status_url == status_url) {
                job.denied_since = is_denied.then(|| job.denied_since.unwrap_or(now));
            }
        })
        .await
    }

    /// The other exports load these types in full: damaged files that may have had their rows were removed.
    pub(super) async fn reload_in_other_exports(&self, export: &Export, types: Vec<ResourceType>) -> Result<(), Error> {
        if types.is_empty() {
            return Ok(());
        }
        let name = export.name.clone();
        self.remember(move |state| {
            for other in state.exports.iter_mut().filter(|(other, _)| **other != name).map(|(_, state)| state) {
                for of in types.iter().filter(|of| other.watermarks.remove(of).is_some()) {
                    other.reload.insert(*of, "damaged data files were removed by another export".into());
                }
            }
        })
        .await
    }

    /// A number that no other run has, of this process or of one that shares the exports.
    pub(super) async fn next_run(&self) -> Result<u64, Error> {
        match &self.sharing {
            None => Ok(self.turns.next_run()),
            Some(_) => self.with_open_state(|state| Ok(state.next_run()?)).await,
        }
    }

    /// The number of the run. Until it is recorded, the ledger lacks it.
    pub(super) async fn remember_begin(&self, report: &Report) -> Result<(), Error> {
        let (name, number) = (report.export.clone(), report.run);
        let (begun_at, full_refresh) = (report.started_at, report.mode == Mode::FullRefresh);
        self.remember(move |state| {
            state.run = state.run.max(number);
            let export = state.exports.entry(name).or_default();
            let before = export.last_run.as_ref().filter(|_| !full_refresh).map(|last| last.full_refresh_begun_at);
            let full_refresh_begun_at = before.unwrap_or(begun_at);
            export.last_run = Some(LastRun { number, begun_at, full_refresh, ended: false, full_refresh_begun_at });
            let unrecorded = &mut export.unrecorded_runs;
            unrecorded.insert(number);
            if unrecorded.len() > MAX_UNRECORDED_RUNS {
                unrecorded.pop_first();
            }
        })
        .await
    }

    /// These runs are in the ledger.
    pub(super) async fn remember_recorded(&self, export: &Export, runs: BTreeSet<u64>) -> Result<(), Error> {
        self.remember_export(export, move |state| state.unrecorded_runs.retain(|run| !runs.contains(run))).await
    }

    /// How the run ended: what `/health` and the schedule go by.
    pub(super) async fn remember_end(
        &self,
        report: &Report,
        duration: Duration,
        has_quarantined: bool,
    ) -> Result<(), Error> {
        let (name, ended_at, outcome) = (report.export.clone(), report.ended_at, report.outcome);
        let number = report.run;
        let ends = report.types.iter().map(|(of, report)| (*of, report.end.word().to_owned())).collect();
        let warnings = report.warnings();
        let is_full_refresh = report.mode == Mode::FullRefresh;
        self.remember(move |state| {
            let export = state.exports.entry(name).or_default();
            // The first complete sync has loaded everything, whichever mode it ran in.
            let has_loaded_everything = is_full_refresh || export.last_complete_at.is_none();
            if let Some(last) = export.last_run.as_mut().filter(|last| last.number == number) {
                last.ended = true;
            }
            export.freshness.count(outcome);
            export.freshness.warn(warnings);
            export.freshness.ends = ends;
            if matches!(outcome, Outcome::Complete | Outcome::Partial) {
                export.freshness.took(duration, has_loaded_everything);
            }
            if outcome == Outcome::Complete {
                if has_loaded_everything {
                    export.last_full_refresh_at = Some(ended_at);
                }
                export.last_complete_at = Some(ended_at);
                state.last_sync_before_migration = None;
            }
            if outcome == Outcome::Complete && is_full_refresh {
                export.has_quarantined = false;
            }
            export.has_quarantined |= has_quarantined;
        })
        .await
    }

    /// A run of the export panicked, so that it has left no report. Whether the state has that outcome now.
    pub async fn remember_panic(&self, export: &str) -> Result<bool, Error> {
        let name = export.to_owned();
        metrics::run_ended(export, RunOutcome::Failed, now(), Duration::ZERO);
        // Another process may hold the export by now; it finds a run that has not ended.
        if self.shares_exports() {
            return Ok(false);
        }
        self.remember(move |state| state.exports.entry(name).or_default().freshness.count(Outcome::Failed)).await?;
        Ok(true)
    }

    pub(super) async fn remember_export(
        &self,
        export: &Export,
        change: impl FnOnce(&mut ExportState) + Send + 'static,
    ) -> Result<(), Error> {
        let name = export.name.clone();
        self.remember(move |state| change(state.exports.entry(name).or_default())).await
    }

    /// Changes the state file. It is on the disk when this returns.
    pub(super) async fn remember(&self, change: impl FnOnce(&mut State) + Send + 'static) -> Result<(), Error> {
        self.with_open_state(move |state| Ok(state.update(change)?)).await
    }
}

/// What an older job has of types that were loaded in full is older than that.
fn narrow_older_jobs(state: &mut ExportState, status_url: &Url, loaded: &[ResourceType]) {
    let older = state.jobs.iter_mut().take_while(|job| job.status_url != *status_url);
    for job in older.filter(|job| job.kind() != JobKind::Joiners) {
        job.types.retain(|of| !loaded.contains(of));
        job.finished.retain(|of, _| !loaded.contains(of));
    }
}

fn raise(times: &mut BTreeMap<ResourceType, TransactionTime>, of: ResourceType, until: TransactionTime) {
    let known = times.entry(of).or_insert(until);
    *known = until.max(*known);
}

/// A full load lacked this many rows of a type, and they were kept. They are remembered if the load replaced a table that
/// could not be trusted.
fn remember_kept(state: &mut ExportState, of: ResourceType, rows: u64, loaded_at: DateTime<Utc>) {
    let before = state.kept_rows.remove(&of).map(|kept| kept.reason);
    let reason = state.reload.get(&of).map(ToString::to_string).or(before);
    if let (1.., Some(reason)) = (rows, reason) {
        state.kept_rows.insert(of, KeptRows { rows, reason, loaded_at });
    }
}

/// A full load brought nothing of these types. If the table has a watermark, it no longer counts: the next request for
/// the type is a full load.
fn remember_unconfirmed(state: &mut ExportState, types: Vec<ResourceType>, asked_at: DateTime<Utc>) {
    for of in types {
        state.unconfirmed.insert(of, asked_at);
        if state.watermarks.remove(&of).is_some() || state.reload.contains_key(&of) {
            state.tables.remove(&of);
            state.freshness.data_as_of.remove(&of);
            state.reload.insert(of, ReloadReason::LeftOut);
        }
    }
}

/// What leaves a full load, although a part of it may be in the table: only these types stay.
fn given_up<'a>(
    job: &'a mut JobInFlight,
    stay: &'a [ResourceType],
) -> impl Iterator<Item = (ResourceType, ReloadReason)> + 'a {
    let is_full = job.kind().is_full();
    let leave = job.finished.extract_if(.., |of, _| !stay.contains(of));
    leave.filter(move |_| is_full).map(|(of, _)| (of, GIVEN_UP.into()))
}

pub(super) fn lock(state: &Mutex<OpenState>) -> MutexGuard<'_, OpenState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
