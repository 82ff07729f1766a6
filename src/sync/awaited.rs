//! Awaited patients: members of a group whose Patient no export has brought, or not with all of their data.
//!
//! A Group may list patients before exports know them, as where a registry is computed at night; or for ever, because
//! their Patient was deleted or merged, or because the client must not see them. Nothing tells these apart. If such a
//! patient counted as loaded, what is older would never be asked for. So they are asked for again: by each sync at
//! first, and later ever more seldom. A run without them is not complete at first, and later has a note.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    Error, Run, TypeEnd,
    clock::now,
    members::{PATIENTS_PER_REQUEST, compared_group, patients},
};
use crate::{
    fhir::ResourceType,
    state::{AwaitedPatient, ExportState, JobInFlight},
};

/// After this many exports without the patient, another one is not expected to bring it.
const ATTEMPTS: u32 = 3;

impl Run<'_> {
    /// Whether a missing Patient shows that the export does not know the patient.
    fn tells_who_is_missing(&self) -> bool {
        let (export, patient) = (self.export, ResourceType::PATIENT);
        let asks_for_all = export.initial_since.is_none() && !export.parameters.leaves_out(patient.as_str());
        compared_group(export).is_some() && export.types.contains(&patient) && asks_for_all
    }

    /// All data of these patients were asked for, and what arrived is committed. Gives those whose Patient has arrived;
    /// the others are awaited.
    pub(super) async fn arrived_of(&self, group: &str, mut asked: BTreeSet<String>) -> Result<BTreeSet<String>, Error> {
        let arrived = self.extract_arrived(group, &mut asked);
        self.remember_awaited(group, arrived.clone(), asked).await?;
        Ok(arrived)
    }

    /// Takes out those whose Patient has arrived; all, where nothing tells who they are.
    fn extract_arrived(&self, group: &str, patients: &mut BTreeSet<String>) -> BTreeSet<String> {
        if !self.tells_who_is_missing() {
            return std::mem::take(patients);
        }
        let seen_before = self.syncer.export_state(self.export).seen_patients.remove(group).unwrap_or_default();
        patients.extract_if(.., |id| self.members.seen.contains(id) || seen_before.contains(id)).collect()
    }

    /// A full load has brought the Patients of the group: those of its members who are not among them are awaited. An
    /// awaited patient whose Patient arrived stays awaited until the other types have arrived, too.
    pub(super) async fn await_missing_members(&mut self, job: &JobInFlight) -> Result<(), Error> {
        let Some(group) = self.export.level.group().filter(|_| job.kind().is_full()).map(str::to_owned) else {
            return Ok(());
        };
        if self.export.types.iter().all(|of| job.types.contains(of)) && self.is_all_committed() {
            self.forget_arrived(&group).await?;
        }
        if !(job.types.contains(&ResourceType::PATIENT) && self.has_all_patients() && self.tells_who_is_missing()) {
            return Ok(());
        }
        let mut missing = self.members.known.clone();
        self.extract_arrived(&group, &mut missing);
        // Where a Group has ids of its own, or most of its members are not for this client, nobody is asked for alone.
        if missing.len() > PATIENTS_PER_REQUEST && missing.len() * 2 > self.members.known.len() {
            self.report.notes.push(format!(
                "{} of the {} whom Group/{group} lists did not arrive with everything of the group: too many to ask for \
                 them alone; a full refresh loads those who appear later",
                patients(missing.len()),
                self.members.known.len()
            ));
            return Ok(());
        }
        self.remember_awaited(&group, BTreeSet::new(), missing).await
    }

    /// Everything of the group was asked for, and is committed: who has arrived is no longer awaited.
    pub(super) async fn forget_arrived(&self, group: &str) -> Result<(), Error> {
        let awaited = self.syncer.export_state(self.export).awaited_patients.remove(group).unwrap_or_default();
        let arrived = self.extract_arrived(group, &mut awaited.into_keys().collect());
        self.remember_awaited(group, arrived, BTreeSet::new()).await
    }

    /// Sets the attempts of awaited patients whose Patient has arrived to 0: each sync asks for the rest of their data.
    pub(super) async fn expect_seen_patients(&self, group: &str) -> Result<(), Error> {
        let awaited = self.syncer.export_state(self.export).awaited_patients.remove(group).unwrap_or_default();
        let is_seen = |id: &String, awaited: &AwaitedPatient| awaited.attempts > 0 && self.members.seen.contains(id);
        let seen: BTreeSet<_> = awaited.into_iter().filter(|(id, of)| is_seen(id, of)).map(|(id, _)| id).collect();
        if seen.is_empty() {
            return Ok(());
        }
        let group = group.to_owned();
        let expect = move |state: &mut ExportState| {
            let awaited = state.awaited_patients.entry(group).or_default();
            awaited.iter_mut().filter(|(id, _)| seen.contains(*id)).for_each(|(_, of)| of.attempts = 0);
        };
        self.syncer.remember_export(self.export, expect).await
    }

    /// Whether the Patients of this run are committed.
    pub(super) fn has_all_patients(&self) -> bool {
        let of_patients = self.report.types.get(&ResourceType::PATIENT);
        of_patients.is_some_and(|report| matches!(report.end, TypeEnd::Committed { .. }))
    }

    /// Forgets those who have arrived, and counts one more attempt to get those who are missing. Where nothing tells who
    /// is missing, nobody is awaited, and who was before another configuration is forgotten.
    pub(super) async fn remember_awaited(
        &self,
        group: &str,
        mut arrived: BTreeSet<String>,
        mut missing: BTreeSet<String>,
    ) -> Result<(), Error> {
        if !self.tells_who_is_missing() {
            arrived.append(&mut missing);
        }
        let known = self.syncer.export_state(self.export).awaited_patients;
        if missing.is_empty() && known.get(group).is_none_or(|known| arrived.iter().all(|id| !known.contains_key(id))) {
            return Ok(());
        }
        let (group, asked_at) = (group.to_owned(), now());
        let remember = move |state: &mut ExportState| {
            let awaited = state.awaited_patients.entry(group).or_default();
            awaited.retain(|id, _| !arrived.contains(id));
            for id in missing {
                let attempts = awaited.get(&id).map_or(0, |awaited| awaited.attempts);
                awaited.insert(id, AwaitedPatient { attempts: attempts.saturating_add(1), asked_at });
            }
            state.awaited_patients.retain(|_, awaited| !awaited.is_empty());
        };
        self.syncer.remember_export(self.export, remember).await
    }

    /// Whether this run asks for a patient again who is awaited.
    pub(super) fn is_due(&self, awaited: AwaitedPatient) -> bool {
        is_due(awaited, self.report.started_at, now(), self.syncer.config.recheck_absent)
    }

    /// Says who is awaited, and forgets those who are not members any more. `listed` are the members, if they are known.
    pub(super) async fn report_awaited(&mut self, group: &str, listed: Option<&BTreeSet<String>>) -> Result<(), Error> {
        let awaited = self.syncer.export_state(self.export).awaited_patients.remove(group).unwrap_or_default();
        let has_left = |id: &String| listed.is_some_and(|listed| !listed.contains(id));
        let left: BTreeSet<_> = awaited.keys().filter(|id| has_left(id)).cloned().collect();
        let of_members = awaited.iter().filter(|(id, _)| !left.contains(*id)).map(|(_, awaited)| awaited.attempts);
        let (unlikely, likely): (Vec<_>, Vec<_>) = of_members.partition(|attempts| *attempts >= ATTEMPTS);
        if !likely.is_empty() {
            self.report.remarks.push(format!(
                "{} whom Group/{group} lists did not arrive, or not with everything: their Patient is not in the export \
                 yet, or other types failed when it came; the next sync asks for all of their data again",
                patients(likely.len())
            ));
        }
        if !unlikely.is_empty() {
            self.report.notes.push(format!(
                "{} whom Group/{group} lists did not arrive in {ATTEMPTS} exports or more; they are asked for again now \
                 and then. If the server has their Patient, see whether its line is in quarantine, and ask its \
                 administrator why it is not exported; if not, take them out of the Group. The state has their ids \
                 (awaited_patients)",
                patients(unlikely.len())
            ));
        }
        if left.is_empty() { Ok(()) } else { self.remember_awaited(group, left, BTreeSet::new()).await }
    }
}

/// Not twice in a run, which has begun at `started_at`. Where the local clock was set back, rather too often.
fn is_due(awaited: AwaitedPatient, started_at: DateTime<Utc>, now: DateTime<Utc>, recheck: TimeDelta) -> bool {
    let AwaitedPatient { attempts, asked_at } = awaited;
    let is_of_this_run = started_at <= asked_at && asked_at <= now;
    let pause = match attempts.checked_sub(ATTEMPTS) {
        None => TimeDelta::zero(),
        Some(more) => {
            let times = i32::try_from(more).unwrap_or(i32::MAX).saturating_add(1);
            recheck.checked_mul(times).unwrap_or(TimeDelta::MAX)
        }
    };
    let is_recent = asked_at <= now && now - asked_at < pause;
    !(is_of_this_run || is_recent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patient_who_does_not_arrive_is_asked_for_by_each_run_at_first_and_then_ever_more_seldom() {
        let at = |minutes| DateTime::UNIX_EPOCH + TimeDelta::minutes(minutes);
        let recheck = TimeDelta::minutes(60);
        for (attempts, asked_at, started_at, expected) in [
            (0, 0, 10, true),
            (1, 0, 10, true),
            (1, 10, 10, false),
            (1, 11, 10, false),
            (ATTEMPTS - 1, 0, 10, true),
            (ATTEMPTS, 0, 10, false),
            (ATTEMPTS, 0, 60, true),
            (ATTEMPTS + 1, 0, 60, false),
            (ATTEMPTS + 1, 0, 120, true),
            // The clock was set back.
            (ATTEMPTS, 90, 10, true),
        ] {
            let awaited = AwaitedPatient { attempts, asked_at: at(asked_at) };
            let is_due = is_due(awaited, at(started_at), at(started_at + 5), recheck);
            assert_eq!(is_due, expected, "{awaited:?}, {started_at}");
        }
    }
}
