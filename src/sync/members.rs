//! Members: who joins and who leaves the group of an export (rules 107 to 112).
//!
//! `_since` brings what changed. Of a patient who joined the group meanwhile it brings nothing that is older, and no
//! message says so. So the members are compared from run to run, and what is older is asked for by itself. They
//! are read before anything is asked for: who joins later is found by the next run (rule 109).

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::runtime::Handle;

use super::{
    Error, Export, Joiners, Leavers, Mode, Run, TypeEnd, TypeReport, blocking::blocking, chain, clock::now,
    error::JobFate, events, jobs::is_worth_keeping, stop::unless_stopped,
};
use crate::{
    export::{self, Members},
    fhir::ResourceType,
    state::{ExportState, JobInFlight},
    table::MemberRow,
};

/// So that the body of a request stays small.
pub const PATIENTS_PER_REQUEST: usize = 200;
const TAKEN_OUT: &str = "it was not asked for meanwhile, and what joiners of its group had before may be missing";
/// The members are no data: no run waits long for them.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a run knows of the members of its group while it goes on.
#[derive(Default)]
pub struct MembersOfRun {
    /// The patients that arrived, where they tell who is a member.
    pub seen: BTreeSet<String>,
    /// Set while the Group cannot be read: a Patient that arrives and is not in this set is a new member.
    pub recorded: Option<BTreeSet<String>>,
    /// Members that were listed and recorded before the run asked for anything; empty where that is unknown.
    pub known: BTreeSet<String>,
    /// Of the job that is read.
    pub joiner_failures: Vec<JoinerFailure>,
}

/// The members of a group, as they were recorded and as they are now.
pub struct Membership {
    recorded: Option<BTreeSet<String>>,
    now: Now,
    /// The types that had a watermark when the run began, whose table could not be opened, or whose full load was asked
    /// for before the members were read: the history of joiners may be missing in them.
    loaded: BTreeSet<ResourceType>,
    /// Jobs of earlier runs were in flight.
    has_jobs: bool,
}

enum Now {
    Listed(BTreeSet<String>),
    /// The list cannot be read: whoever's Patient arrives is a member.
    Seen,
}

impl Run<'_> {
    /// Reads the members, and compares them with those that were recorded. `None` where there is no group, or the
    /// server brings the history of who joins.
    pub(super) async fn compare_members(&mut self) -> Result<Option<Membership>, Error> {
        let Some(group) = compared_group(self.export) else { return Ok(None) };
        let recorded = self.recorded_members(group).await?;
        // Where the members cannot be read now, who arrives may be one.
        self.members.recorded.clone_from(&recorded);
        let listed = async { Ok(tokio::time::timeout(PATIENCE, self.syncer.client.members(group)).await) };
        let now = match unless_stopped(self.stop, Duration::ZERO, listed).await? {
            Ok(Ok(Members::Listed(listed))) => Now::Listed(listed),
            Ok(Ok(Members::Unknown(why))) => {
                let noticed = if self.export.types.contains(&ResourceType::PATIENT) {
                    "who joins is noticed when the Patient changes, or by a full refresh"
                } else {
                    "who joins is noticed by a full refresh only"
                };
                self.report.notes.push(format!(
                    "the members of Group/{group} are not known ({why}): {noticed}; give the client the right to read \
                     the Group, or set joiners = \"server\" if the server sends the history"
                ));
                Now::Seen
            }
            Ok(Err(error)) => return Ok(self.not_compared(group, &chain(&error))),
            Err(_) => return Ok(self.not_compared(group, "no answer in time")),
        };
        let watermarks = self.syncer.watermarks(self.export).await.into_iter();
        // A table that cannot be opened now may lack the history as well.
        let may_lack = |watermark: Result<Option<_>, _>| watermark.is_err() || watermark.is_ok_and(|of| of.is_some());
        let mut loaded: BTreeSet<_> =
            watermarks.filter_map(|(of, watermark)| may_lack(watermark).then_some(of)).collect();
        let jobs = self.syncer.export_state(self.export).jobs;
        let in_flight = jobs.iter().flat_map(|job| job.types.iter().copied());
        loaded.extend(in_flight.filter(|of| self.export.types.contains(of)));
        let mut membership = Membership { recorded, now, loaded, has_jobs: !jobs.is_empty() };
        self.begin_recording(group, &mut membership).await?;
        self.note_leavers(group, &membership).await?;
        if let (Now::Listed(listed), Some(recorded)) = (&membership.now, &membership.recorded) {
            self.members.recorded = None;
            self.members.known = listed & recorded;
        }
        Ok(Some(membership))
    }

    /// A type that was not asked for meanwhile lacks the history of who joined the group then, although its table has a
    /// watermark.
    pub(super) async fn compare_types(&mut self) -> Result<(), Error> {
        let known = self.syncer.export_state(self.export);
        let types: BTreeSet<_> = self.export.types.iter().copied().collect();
        if known.types == types {
            return Ok(());
        }
        let is_of_group = compared_group(self.export).is_some() && !known.types.is_empty();
        let is_back = |of: &&ResourceType| !known.types.contains(of) && known.watermarks.contains_key(of);
        let back: Vec<_> = types.iter().filter(|of| is_of_group && is_back(of)).copied().collect();
        self.syncer
            .remember_export(self.export, move |state| {
                for of in back {
                    state.reload.entry(of).or_insert_with(|| TAKEN_OUT.into());
                }
                state.types = types;
            })
            .await
    }

    /// Nothing is lost: the next run compares with the same record. If the server is away, the kick-off says it.
    fn not_compared(&mut self, group: &str, error: &str) -> Option<Membership> {
        tracing::warn!(group, error, "the members of the group could not be read; the next sync compares them");
        self.members.known = self.members.recorded.clone().unwrap_or_default();
        self.report.notes.push(format!(
            "the members of Group/{group} could not be read; the history of who has joined is asked for by the next sync"
        ));
        None
    }

    /// Where members were never recorded, nobody knows who joined since the tables were loaded.
    async fn begin_recording(&mut self, group: &str, membership: &mut Membership) -> Result<(), Error> {
        if membership.recorded.is_some() {
            return Ok(());
        }
        let can_be_seen = self.export.types.contains(&ResourceType::PATIENT);
        if matches!(membership.now, Now::Listed(_)) || can_be_seen {
            let reason = "the members of its group were not recorded before";
            self.load_again(std::mem::take(&mut membership.loaded), reason).await?;
            membership.has_jobs = false;
        }
        if let Now::Listed(listed) = &membership.now {
            self.record_members(group, listed, MemberRow::JOINED).await?;
            membership.recorded = Some(listed.clone());
        }
        Ok(())
    }

    /// A server reports nobody who leaves a group as deleted (rule 112).
    async fn note_leavers(&mut self, group: &str, membership: &Membership) -> Result<(), Error> {
        let (Some(recorded), Now::Listed(listed)) = (&membership.recorded, &membership.now) else { return Ok(()) };
        let left: BTreeSet<_> = recorded.difference(listed).cloned().collect();
        if left.is_empty() {
            return Ok(());
        }
        let who = patients(left.len());
        let text = match self.export.leavers {
            Leavers::Keep => None,
            Leavers::Flag => Some(format!("{who} left Group/{group}; their rows stay, see _fhir_sync/members")),
            Leavers::Remove => {
                self.load_again(self.export.types.iter().copied().collect(), "patients left its group").await?;
                let removed = self.export.reconciled.len() == self.export.types.len();
                let which = if removed { "their rows" } else { "of types that no other export has, their rows" };
                Some(format!("{who} left Group/{group}; {which} are removed with the load that follows"))
            }
        };
        self.report.notes.extend(text);
        tracing::info!(group, left = left.len(), "patients left the group");
        self.record_members(group, &left, MemberRow::LEFT).await
    }

    /// Remembers who may have joined, before the Patients are committed: no later increment brings them again.
    pub(super) async fn remember_seen_patients(&self) -> Result<(), Error> {
        let Some(group) = compared_group(self.export) else { return Ok(()) };
        self.expect_seen_patients(group).await?;
        let Some(recorded) = &self.members.recorded else { return Ok(()) };
        let seen: BTreeSet<_> = self.members.seen.difference(recorded).cloned().collect();
        if seen.is_empty() {
            return Ok(());
        }
        let group = group.to_owned();
        let remember = move |state: &mut ExportState| state.seen_patients.entry(group).or_default().extend(seen);
        self.syncer.remember_export(self.export, remember).await
    }

    /// Asks for what is older of those who joined, and says whose Patient is awaited.
    pub(super) async fn load_joiners(&mut self, membership: Option<Membership>) -> Result<(), Error> {
        let Some(Membership { recorded, now, loaded, has_jobs }) = membership else { return Ok(()) };
        let Some(group) = self.export.level.group().map(str::to_owned) else { return Ok(()) };
        let (members, is_listed) = match now {
            Now::Listed(listed) => (listed, true),
            Now::Seen => {
                let mut seen = self.members.seen.clone();
                let ExportState { mut seen_patients, mut awaited_patients, .. } = self.syncer.export_state(self.export);
                seen.extend(seen_patients.remove(&group).unwrap_or_default());
                seen.extend(awaited_patients.remove(&group).unwrap_or_default().into_keys());
                (seen, false)
            }
        };
        let has_asked_since = self.mode == Mode::FullRefresh || loaded.is_empty();
        if recorded.is_none() || (has_asked_since && !has_jobs) {
            self.record_joiners(&group, &members, recorded.is_none()).await?;
        } else {
            self.ask_for_joiners(&group, &members, &loaded).await?;
        }
        self.report_awaited(&group, is_listed.then_some(&members)).await
    }

    /// After a full refresh, and for types without a watermark before, all of what is older is there already. What
    /// failed has no watermark, or is asked for again as a whole with the joiners.
    async fn record_joiners(&self, group: &str, members: &BTreeSet<String>, is_first: bool) -> Result<(), Error> {
        if is_first {
            return self.record_members(group, members, MemberRow::JOINED).await;
        }
        if !self.is_all_committed() {
            return Ok(());
        }
        // The types may have come in several exports, none of which had everything.
        self.forget_arrived(group).await?;
        let recorded = self.recorded_members(group).await?.unwrap_or_default();
        let mut joined = members - &recorded;
        if joined.is_empty() {
            return Ok(());
        }
        if self.has_all_patients() {
            joined = self.arrived_of(group, joined).await?;
        }
        self.record_joined(group, joined).await
    }

    async fn ask_for_joiners(
        &mut self,
        group: &str,
        members: &BTreeSet<String>,
        loaded: &BTreeSet<ResourceType>,
    ) -> Result<(), Error> {
        // Again: a job of an earlier run may have brought some of them, and another may still do.
        let recorded = self.recorded_members(group).await?.unwrap_or_default();
        let ExportState { jobs, mut awaited_patients, .. } = self.syncer.export_state(self.export);
        let awaited = awaited_patients.remove(group).unwrap_or_default();
        let is_asked_for = |id: &String| match awaited.get(id) {
            Some(awaited) => self.is_due(*awaited),
            None => !recorded.contains(id),
        };
        let in_flight = |id: &String| jobs.iter().any(|job| job.patients.contains(id));
        let wanted: Vec<_> = members.iter().filter(|id| is_asked_for(id) && !in_flight(id)).cloned().collect();
        // Also where all Patients were loaded in this run: without theirs nobody sees that exports do not know them yet.
        let mut loaded = loaded.clone();
        loaded.extend(self.asks_for_patients().then_some(ResourceType::PATIENT));
        let loaded: Vec<_> = loaded.into_iter().collect();
        let (mut joined, mut refused) = (0, BTreeSet::new());
        for patients in wanted.chunks(PATIENTS_PER_REQUEST) {
            let patients: BTreeSet<_> = patients.iter().cloned().collect();
            tracing::info!(group, patients = patients.len(), "what is older of patients of the group is asked for");
            match self.load_patients(&loaded, &patients).await {
                Err(Error::Export(error)) if cannot_name_patients(&error) => refused.extend(patients),
                ended => {
                    ended?;
                    joined += patients.difference(&recorded).count();
                }
            }
        }
        if joined > 0 {
            let who = patients(joined);
            self.report.notes.push(format!("{who} joined Group/{group}; their history was asked for"));
        }
        if refused.is_empty() { Ok(()) } else { self.load_again_for(group, refused, &recorded, loaded).await }
    }

    /// The server exports no patients by name (rule 110): the next run loads the whole group.
    async fn load_again_for(
        &mut self,
        group: &str,
        refused: BTreeSet<String>,
        recorded: &BTreeSet<String>,
        loaded: Vec<ResourceType>,
    ) -> Result<(), Error> {
        let awaited = self.syncer.export_state(self.export).awaited_patients.remove(group).unwrap_or_default();
        let has_arrived = |id: &String| awaited.get(id).is_some_and(|awaited| awaited.attempts == 0);
        let is_late = |id: &String| !recorded.contains(id) || has_arrived(id);
        let (late, missing): (BTreeSet<_>, BTreeSet<_>) = refused.into_iter().partition(is_late);
        if !late.is_empty() {
            let who = patients(late.len());
            self.report.remarks.push(format!(
                "{who} joined Group/{group}, or arrived late, and the server cannot export them alone: their history is \
                 missing until the next sync, which loads {} in full",
                events::list(&loaded)
            ));
            let reason = "patients joined its group, and the server cannot export them alone";
            self.load_again(loaded.into_iter().collect(), reason).await?;
            self.record_joined(group, &late - recorded).await?;
        }
        // Who is late need not be awaited any more: each type is loaded in full, until it is committed. Whom a full load
        // did not bring, another one would not bring sooner than the next full refresh.
        self.remember_awaited(group, late, missing).await
    }

    /// Whether the export has Patients, and the server has not refused to export them in this run.
    fn asks_for_patients(&self) -> bool {
        let of_patients = self.report.types.get(&ResourceType::PATIENT);
        of_patients.is_some_and(|report| !matches!(report.end, TypeEnd::Unsupported { .. }))
    }

    async fn load_patients(&mut self, types: &[ResourceType], patients: &BTreeSet<String>) -> Result<(), Error> {
        let job = self.kick_off_for(types, None, patients).await?;
        match self.follow(job.clone()).await {
            Ok(()) => Ok(()),
            Err(error) => self.job_failed(&job, error).await,
        }
    }

    /// The history of these patients has arrived. Afterwards the server's job is no longer needed.
    pub(super) async fn settle_joiners(&mut self, job: &JobInFlight) -> Result<(), Error> {
        let root = self.syncer.root.clone();
        blocking(move || root.sync_to_disk()).await?;
        let failures = std::mem::take(&mut self.members.joiner_failures);
        let is_denied = failures.iter().any(|failure| failure.is_denied);
        if failures.iter().any(|failure| failure.keeps_job) && is_worth_keeping(job, JobFate::Kept, is_denied) {
            // The next run follows the job again.
            return self.syncer.remember_whether_denied(self.export, job, is_denied).await;
        }
        if let (true, Some(group)) = (failures.is_empty(), self.export.level.group()) {
            let joined = self.arrived_of(group, job.patients.clone()).await?;
            // A full load may have lacked the Patient of one who was recorded before it.
            let recorded = self.recorded_members(group).await?.unwrap_or_default();
            self.record_joined(group, &joined - &recorded).await?;
        }
        self.delete_job(job).await
    }

    async fn record_joined(&self, group: &str, joined: BTreeSet<String>) -> Result<(), Error> {
        if joined.is_empty() { Ok(()) } else { self.record_members(group, &joined, MemberRow::JOINED).await }
    }

    /// What became of one type of joiners. It is a part of the type, beside what the run asks for of all patients.
    pub(super) async fn add_of_joiners(&mut self, of: ResourceType, mut report: TypeReport) {
        if let TypeEnd::Failed(_) | TypeEnd::Denied { .. } = &report.end {
            let failure = match &report.end {
                TypeEnd::Failed(of) => {
                    JoinerFailure { keeps_job: of.recovery.job == JobFate::Kept, is_denied: of.is_denied }
                }
                _ => JoinerFailure::default(),
            };
            self.members.joiner_failures.push(failure);
            let cause = report.end.sentence().unwrap_or_default();
            self.report.remarks.push(format!("the history of patients who joined: {of}: {cause}"));
            return;
        }
        let Some(version) = report.end.version() else { return };
        report.end = TypeEnd::Instalment { version };
        self.syncer.record_instalment(self, of, &report).await;
        self.report.instalments.push((of, report));
    }

    pub(super) fn is_all_committed(&self) -> bool {
        self.report.types.values().all(|of| matches!(of.end, TypeEnd::Committed { .. } | TypeEnd::Unconfirmed))
    }

    /// A full load in flight was asked for before: it is given up, because it brings what is known to be too little, or
    /// too much.
    async fn load_again(&self, types: BTreeSet<ResourceType>, reason: &str) -> Result<(), Error> {
        for job in self.syncer.export_state(self.export).jobs {
            if job.types.iter().any(|of| types.contains(of)) {
                self.delete_job(&job).await?;
            }
        }
        let reasons: BTreeMap<_, _> = types.into_iter().map(|of| (of, reason.to_owned())).collect();
        self.syncer.remember_reload(self.export, reasons).await
    }

    async fn recorded_members(&self, group: &str) -> Result<Option<BTreeSet<String>>, Error> {
        let (root, export, group) = (self.syncer.root.clone(), self.export.name.clone(), group.to_owned());
        let source = self.syncer.config.source.to_string();
        let recorded = blocking(move || Handle::current().block_on(root.members(&export, &source, &group)));
        Ok(recorded.await?.map(|recorded| recorded.members))
    }

    async fn record_members(&self, group: &str, patients: &BTreeSet<String>, event: &str) -> Result<(), Error> {
        let row = MemberRow {
            export: self.export.name.clone(),
            source: self.syncer.config.source.to_string(),
            group: group.to_owned(),
            event: event.to_owned(),
            at: Some(now()),
            run: self.report.run,
            ..MemberRow::default()
        };
        let (root, recorded) = (self.syncer.root.clone(), patients.clone());
        blocking(move || Handle::current().block_on(root.append_members(&row, &recorded))).await?;
        let seen = self.syncer.export_state(self.export).seen_patients;
        if seen.get(group).is_none_or(|seen| seen.is_disjoint(patients)) {
            return Ok(());
        }
        let (recorded, group) = (patients.clone(), group.to_owned());
        let forget = move |state: &mut ExportState| {
            if let Some(seen) = state.seen_patients.get_mut(&group) {
                seen.retain(|id| !recorded.contains(id));
            }
            state.seen_patients.retain(|_, seen| !seen.is_empty());
        };
        self.syncer.remember_export(self.export, forget).await
    }
}

/// The group whose members are compared: the server does not bring the history of who joins, and the configuration
/// names no patients.
pub fn compared_group(export: &Export) -> Option<&str> {
    let asks = export.joiners == Joiners::AskFor && export.parameters.patients.is_empty();
    export.level.group().filter(|_| asks)
}

/// Whether the server exports no patients by name (rule 110).
fn cannot_name_patients(error: &export::Error) -> bool {
    match error {
        export::Error::PostRefused { .. } => true,
        export::Error::Refused {
            refusal: export::Refusal::Status { status, .. } | export::Refusal::NoExport { status, .. },
            ..
        } => status.is_client_error(),
        _ => false,
    }
}

pub fn patients(count: usize) -> String {
    format!("{count} patient{}", if count == 1 { "" } else { "s" })
}

/// What failed while the history of joiners was loaded.
#[derive(Clone, Copy, Default)]
pub struct JoinerFailure {
    /// The same job may still bring it.
    pub keeps_job: bool,
    /// The server denies it.
    pub is_denied: bool,
}
