//! Awaited patients: members of a group whose Patient no export has brought.
//!
//! A Group may list patients before exports know them, as where a registry is computed at night; or for ever, because
//! their Patient was deleted or merged, or because the client must not see them. Nothing tells these apart. If such a
//! patient counted as loaded, what is older would never be asked for. So they are asked for again: by each sync at
//! first, and later ever more seldom. A run without them is not complete at first, and later has a note.

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    Error, Run, TypeEnd,
    blocking::now,
    members::{PATIENTS_PER_REQUEST, compared_group, patients},
};
use crate::{
    fhir::ResourceType,
    state::{AwaitedPatient, ExportState, JobInFlight},
};

/// After this many exports without the patient, another one is not expected to bring it.
const ATTEMPTS: u32 = 3;

impl Run<'_> {
    /// Whether a patient whose Patient does not arrive is one whom the export does not know.
    fn tells_who_is_missing(&self) -> bool {
        let (export, patient) = (self.export, ResourceType::PATIENT);
        let asks_for_all = export.initial_since.is_none() && !export.parameters.leaves_out(patient.as_str());
        compared_group(export).is_some() && export.types.contains(&patient) && asks_for_all
    }

    /// All data of these patients were asked for, and what arrived is committed. Gives those whose Patient has arrived;
    /// the others are awaited.
    pub(super) async fn arrived_of(&self, group: &str, mut asked: BTreeSet<String>) -> Result<BTreeSet<String>, Error> {
        if !self.tells_who_is_missing() {
            return Ok(asked);
        }
        let seen_before = self.syncer.export_state(self.export).seen_patients.remove(group).unwrap_or_default();
        let has_arrived = |id: &String| self.seen_patients.contains(id) || seen_before.contains(id);
        let arrived: BTreeSet<_> = asked.extract_if(.., |id| has_arrived(id)).collect();
        self.remember_awaited(group, &arrived, asked).await?;
        Ok(arrived)
    }

    /// A full load has brought the Patients of the group: those of its members who are not among them are awaited.
    pub(super) async fn await_missing_members(&mut self, job: &JobInFlight) -> Result<(), Error> {
        let is_of_all = job.since.is_none() && job.types.contains(&ResourceType::PATIENT);
        let Some(group) = self.export.level.group().filter(|_| is_of_all && self.has_all_patients()) else {
            return Ok(());
        };
        let (group, missing) = (group.to_owned(), self.members.difference(&self.seen_patients).count());
        // Where a Group has ids of its own, or most of its members are not for this client, nobody is asked for alone.
        if missing > PATIENTS_PER_REQUEST && missing * 2 > self.members.len() && self.tells_who_is_missing() {
            self.report.notes.push(format!(
                "{} of the {} whom Group/{group} lists did not arrive with everything of the group: too many to ask for \
                 them alone; who of them appears later is loaded by a full refresh",
                patients(missing),
                self.members.len()
            ));
            return Ok(());
        }
        self.arrived_of(&group, self.members.clone()).await?;
        Ok(())
    }

    /// Whether the Patients of this run are committed.
    pub(super) fn has_all_patients(&self) -> bool {
        let of_patients = self.report.types.get(&ResourceType::PATIENT);
        of_patients.is_some_and(|report| matches!(report.end, TypeEnd::Committed { .. }))
    }

    /// Counts one more attempt to get those who are missing.
    pub(super) async fn remember_awaited(
        &self,
        group: &str,
        arrived: &BTreeSet<String>,
        missing: BTreeSet<String>,
    ) -> Result<(), Error> {
        let known = self.syncer.export_state(self.export).awaited_patients;
        if missing.is_empty() && known.get(group).is_none_or(|known| arrived.iter().all(|id| !known.contains_key(id))) {
            return Ok(());
        }
        let (group, arrived, asked_at) = (group.to_owned(), arrived.clone(), now());
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
                "{} whom Group/{group} lists did not arrive: their Patient is not in the export yet; the next sync asks \
                 for all of their data again",
                patients(likely.len())
            ));
        }
        if !unlikely.is_empty() {
            self.report.notes.push(format!(
                "{} whom Group/{group} lists did not arrive in {ATTEMPTS} exports or more, and nothing of them is in the \
                 tables; they are asked for again now and then. If the server has their Patient, ask its administrator \
                 why it is not exported; if not, take them out of the Group. The state has their ids \
                 (awaited_patients)",
                patients(unlikely.len())
            ));
        }
        if left.is_empty() { Ok(()) } else { self.remember_awaited(group, &left, BTreeSet::new()).await }
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
