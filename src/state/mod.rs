//! The state: the watermarks of each export, and the job in flight. In a file, or in documents of an object store.
//!
//! It mirrors what the tables know and adds what they cannot know: the job that the server works on, the number of the
//! run, when the last complete sync ended. A change is on the disk or in the store when that is reported; the previous
//! generation is kept; a checksum detects a torn one. One process holds it: a lock admits it to a file, a lease to
//! documents.

mod asked;
mod documents;
mod envelope;
mod file;
mod freshness;
mod jobs;
mod place;
mod reload;
mod shared;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

pub use self::{
    asked::Asked,
    envelope::FORMAT,
    freshness::{Freshness, Outcome},
    jobs::{FinishedFiles, JobInFlight, JobKind},
    reload::ReloadReason,
};
use self::{documents::StateDocuments, file::StateFile, shared::SharedState};
use crate::{
    fhir::{ResourceType, TransactionTime},
    lease::{self, Lease},
    store::{self, DocumentError, Documents, Location, Options},
    telemetry::metrics::{self, WriteOutcome},
};

/// Where the state is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatePlace {
    File(PathBuf),
    /// Below a folder that several machines share, or a prefix of an object store.
    Documents {
        location: Location,
        options: Options,
        leased_by: LeasedBy,
    },
}

/// Who has the leases of a state in documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeasedBy {
    /// One process, all of it.
    One,
    /// Processes that share the exports: each of them leases the exports that it works on.
    Several,
}

#[derive(thiserror::Error, Debug)]
pub enum Error {
    #[error("another fhir-sync holds the state file {place}; only one may use it")]
    Locked { place: String },
    #[error("{place} has format {found}, which only a newer fhir-sync reads; use that version, or move the file away")]
    Newer { place: String, found: u64 },
    #[error(
        "{place} cannot be used; check the folder's owner, mode and free space, or choose another file (`state.file`, \
         `--state-file`)"
    )]
    Io { place: String, source: std::io::Error },
    #[error("{place} cannot be used: {reason}")]
    Refused { place: String, reason: String },
    #[error("the state could not be written as JSON")]
    Json(#[from] serde_json::Error),
    #[error(
        "another fhir-sync, {holder}, holds the state ({place}); only one may use it. It counts as ended when its \
         process has ended, or one minute after its last renewal"
    )]
    InUse { place: String, holder: String },
    #[error(
        "another fhir-sync has taken over the state and changed {place}; this one writes nothing more. Stop one of \
         them, and start this one again if it is the one that should continue"
    )]
    TakenOver { place: String },
    #[error(
        "the object store of {place} cannot replace an object on a condition (If-Match), so nothing would keep two \
         processes from overwriting each other's state; use another store for `state.url`, or `state.file`"
    )]
    Unconditional { place: String },
    #[error("the state of the export {export} is not held by this process; this is a bug in fhir-sync")]
    NotHeld { export: String },
    #[error("{place} was changed by other processes during each of {attempts} attempts to write it")]
    Conflict { place: String, attempts: u32 },
    #[error("the object store of `state.url`: {0}")]
    Store(#[from] store::Error),
    #[error("the state cannot be kept in `state.url`")]
    Document(#[source] DocumentError),
}

impl Error {
    fn twice_broken(place: String) -> Self {
        let reason = "it is broken, and its previous generation is missing or broken too; the next sync recreates it \
                      from the tables";
        Self::Refused { place, reason: reason.to_owned() }
    }
}

impl From<DocumentError> for Error {
    fn from(error: DocumentError) -> Self {
        Self::Document(error)
    }
}

impl From<lease::Error> for Error {
    fn from(error: lease::Error) -> Self {
        match error {
            lease::Error::InUse { place, holder, .. } => Self::InUse { place, holder },
            lease::Error::Lost { place, .. } => Self::TakenOver { place },
            lease::Error::Document(error) => Self::Document(error),
        }
    }
}

/// All that is remembered between two runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The number of the last run; it identifies a run in logs and in the tables' histories.
    #[serde(default)]
    pub run: u64,
    #[serde(default)]
    pub exports: BTreeMap<String, ExportState>,
    /// Whether the server spoke FHIR R4 when it last said what it speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speaks_r4: Option<bool>,
    /// When maintenance last began that came to its end, in whatever process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintained_at: Option<DateTime<Utc>>,
    /// From a state file of the script that fhir-sync replaces: when it last synced. `/health` uses it until our first
    /// complete sync; no watermark follows from it, because the script's tables have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_sync_before_migration: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExportState {
    /// What the watermarks stand for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
    /// A mirror of the tables; where they differ, the table is right.
    #[serde(default)]
    pub watermarks: BTreeMap<ResourceType, TransactionTime>,
    /// There was a table of tombstones after the last sync.
    #[serde(default)]
    pub has_tombstones: bool,
    /// The tables as the last commits left them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tables: BTreeMap<ResourceType, KnownTable>,
    /// The types whose watermark no longer counts, each with the reason: they are loaded in full.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reload: BTreeMap<ResourceType, ReloadReason>,
    /// The types that were loaded in full for such a reason, and kept rows that they should perhaps have removed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept_rows: BTreeMap<ResourceType, KeptRows>,
    /// The types that were absent from a full load for no known reason, and when they were last asked for, by the local
    /// clock.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub unconfirmed: BTreeMap<ResourceType, DateTime<Utc>>,
    /// When the last complete sync ended, by the local clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_complete_at: Option<DateTime<Utc>>,
    /// The same for the last full refresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_full_refresh_at: Option<DateTime<Utc>>,
    /// The last run that began, in whatever process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<LastRun>,
    /// Runs that are not in the ledger yet: they go on, or their process was killed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unrecorded_runs: BTreeSet<u64>,
    #[serde(default)]
    pub freshness: Freshness,
    /// A run brought lines for the quarantine, and no full refresh has made up for them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_quarantined: bool,
    /// The types with rows of a time before the server's clock was set back, and how far it had gone; until a watermark
    /// goes further.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set_back_from: BTreeMap<ResourceType, TransactionTime>,
    /// The same of a time when it was too far ahead of ours to be believed. These rows have no transaction time, so only
    /// the times that they state can mislead.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub was_ahead_until: BTreeMap<ResourceType, TransactionTime>,
    /// The types of the last run.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub types: BTreeSet<ResourceType>,
    /// By group: the patients who arrived while its members could not be read, and who are not recorded as members yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub seen_patients: BTreeMap<String, BTreeSet<String>>,
    /// By group: the members whose Patient did not arrive when all of their data were asked for, or not with all of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub awaited_patients: BTreeMap<String, BTreeMap<String, AwaitedPatient>>,
    /// The jobs in flight. An earlier version kept one, as `job`.
    #[serde(default, alias = "job", deserialize_with = "jobs::one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<JobInFlight>,
}

/// A member of a group whose Patient no export has brought, or not with all of their data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitedPatient {
    /// How often all of the data were asked for in vain; 0 once the Patient has arrived.
    pub attempts: u32,
    /// The last time, by the local clock.
    pub asked_at: DateTime<Utc>,
}

/// A run that began, by the local clock of its process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastRun {
    pub number: u64,
    pub begun_at: DateTime<Utc>,
    pub full_refresh: bool,
    /// Its process has come to its end; else it is at work, or was killed.
    pub ended: bool,
    /// When the last run began that was a full refresh, or the first one.
    pub full_refresh_begun_at: DateTime<Utc>,
}

/// Rows that a full load lacked, and that were kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRows {
    pub rows: u64,
    /// Why the type was loaded in full.
    pub reason: String,
    /// When it last was, by the local clock.
    pub loaded_at: DateTime<Utc>,
}

/// A table by what tells it from another one, or from itself at an earlier time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownTable {
    /// `metaData.id`.
    pub id: String,
    pub version: u64,
}

/// What the state was when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Whole,
    /// The one-field form of the script that fhir-sync replaces.
    Migrated,
    /// It was broken; its previous generation was not.
    Previous,
    /// Neither was readable; a copy is kept at this place.
    Broken {
        kept_as: String,
    },
}

/// The state, held by this process.
#[derive(Debug)]
pub struct OpenState {
    state: State,
    storage: Storage,
}

/// Where the state is kept, as this process holds it.
#[derive(Debug)]
enum Storage {
    File(StateFile),
    Documents(Box<StateDocuments>),
    Shared(Box<SharedState>),
}

impl StatePlace {
    /// Where it is, for people: without credentials, which a URL of a store never has.
    pub fn shown(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Documents { location: Location::Folder(folder), .. } => folder.display().to_string(),
            Self::Documents { location: Location::ObjectStore(url), .. } => {
                format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
            }
        }
    }

    /// The folder that holds it, if that is a folder of this machine.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(folder(path)),
            Self::Documents { location: Location::Folder(folder), .. } => Some(folder),
            Self::Documents { location: Location::ObjectStore(_), .. } => None,
        }
    }

    /// A short name, the same for each process with this place.
    pub fn digest(&self) -> String {
        let mut digest = sha256(&self.shown());
        digest.truncate(12);
        digest
    }

    fn documents(location: &Location, options: &Options) -> Result<Documents, Error> {
        if let Location::Folder(folder) = location {
            place::folder(folder)?;
        }
        Ok(Documents::at(location, options)?)
    }

    /// Who works on these exports, where several processes share them. Whether they are alive is not asked.
    pub async fn holders(&self, exports: impl Iterator<Item = &str>) -> Result<BTreeMap<String, String>, Error> {
        let mut holders = BTreeMap::new();
        let Self::Documents { location, options, leased_by: LeasedBy::Several } = self else { return Ok(holders) };
        let documents = Documents::at(location, options)?;
        for export in exports {
            let holder = lease::holder_of(&lease_of(&documents, export)).await?;
            holders.extend(holder.map(|holder| (export.to_owned(), holder)));
        }
        Ok(holders)
    }

    /// Reads the state without holding it, for commands that change nothing.
    ///
    /// # Errors
    /// [`Error::Refused`] where neither a part of it nor its previous generation is whole: an empty state would be
    /// mistaken for the truth.
    pub async fn peek(&self) -> Result<State, Error> {
        match self {
            Self::File(path) => peek(path),
            Self::Documents { location, options, .. } => documents::peek(&Documents::at(location, options)?).await,
        }
    }
}

impl OpenState {
    /// Opens the state, and holds it until this is dropped. In an object store this takes up to a minute where nobody
    /// can say whether another holder is alive.
    pub async fn open_at(place: &StatePlace) -> Result<(Self, Found), Error> {
        match place {
            StatePlace::File(path) => Self::open(path),
            StatePlace::Documents { location, options, leased_by: LeasedBy::One } => {
                Self::open_documents(StatePlace::documents(location, options)?).await
            }
            StatePlace::Documents { location, options, leased_by: LeasedBy::Several } => {
                let (kept, state, found) = SharedState::open(StatePlace::documents(location, options)?).await?;
                Ok((Self { state, storage: Storage::Shared(Box::new(kept)) }, found))
            }
        }
    }

    async fn open_documents(documents: Documents) -> Result<(Self, Found), Error> {
        let (kept, state, found) = StateDocuments::open(documents).await?;
        Ok((Self { state, storage: Storage::Documents(Box::new(kept)) }, found))
    }

    /// Opens a state file and locks it; creates the folder if it does not exist.
    pub fn open(path: &Path) -> Result<(Self, Found), Error> {
        let (kept, state, found) = StateFile::open(path)?;
        Ok((Self { state, storage: Storage::File(kept) }, found))
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Names whoever holds this state, in this process or a later one: no other process that is alive has this name.
    pub fn holder(&self) -> &str {
        match &self.storage {
            Storage::File(file) => &file.holder,
            Storage::Documents(documents) => &documents.holder,
            Storage::Shared(shared) => &shared.holder,
        }
    }

    /// The name of the holder before us, where it differs from ours: it has ended.
    pub fn predecessor(&self) -> Option<&str> {
        match &self.storage {
            Storage::File(_) | Storage::Shared(_) => None,
            Storage::Documents(documents) => documents.lease.predecessor(),
        }
    }

    /// The lease by which this process holds the state; a file has a lock instead.
    pub fn lease(&self) -> Option<Arc<Lease>> {
        match &self.storage {
            Storage::File(_) => None,
            Storage::Documents(documents) => Some(Arc::clone(&documents.lease)),
            Storage::Shared(shared) => Some(Arc::clone(&shared.lease)),
        }
    }

    /// Changes the state, which is kept when this returns; after an error nothing has changed. Blocks, and needs a
    /// runtime where the state is in documents.
    pub fn update(&mut self, change: impl FnOnce(&mut State)) -> Result<(), Error> {
        let mut state = self.state.clone();
        change(&mut state);
        let written = match &mut self.storage {
            Storage::File(file) => file.write(&state),
            Storage::Documents(documents) => Handle::current().block_on(documents.write(&state)),
            Storage::Shared(shared) => Handle::current().block_on(shared.write(&self.state, &mut state)),
        };
        metrics::state_written(if written.is_ok() { WriteOutcome::Written } else { WriteOutcome::Failed });
        written?;
        self.state = state;
        Ok(())
    }
}

impl OpenState {
    /// The documents that several processes share; `None` where this process has the state alone.
    pub fn shared_documents(&self) -> Option<&Documents> {
        match &self.storage {
            Storage::Shared(shared) => Some(&shared.documents),
            _ => None,
        }
    }

    /// A number that no other run has, of whatever process. Blocks, and needs a runtime.
    pub fn next_run(&mut self) -> Result<u64, Error> {
        match &mut self.storage {
            Storage::Shared(shared) => self.state.run = Handle::current().block_on(shared.next_run())?,
            _ => self.update(|state| state.run += 1)?,
        }
        Ok(self.state.run)
    }

    /// Reads what other processes have kept of an export, whose lease is ours now, and keeps them from writing more.
    /// Blocks, and needs a runtime.
    pub fn claim(&mut self, export: &str) -> Result<(), Error> {
        if let Storage::Shared(shared) = &mut self.storage {
            let known = Handle::current().block_on(shared.claim(export))?;
            self.state.exports.insert(export.to_owned(), known);
        }
        Ok(())
    }

    /// The lease of an export is given back.
    pub fn give_back(&mut self, export: &str) {
        if let Storage::Shared(shared) = &mut self.storage {
            shared.give_back(export);
        }
    }

    /// Takes over what was read of the exports that other processes hold.
    pub fn adopt(&mut self, read: State) {
        let Storage::Shared(shared) = &self.storage else { return };
        self.state.run = self.state.run.max(read.run);
        self.state.maintained_at = read.maintained_at;
        let others = read.exports.into_iter().filter(|(export, _)| !shared.holds(export));
        self.state.exports.extend(others);
    }
}

/// Reads the documents of a state without holding it, apart from those that are broken.
pub async fn read_whole(documents: &Documents) -> Result<State, Error> {
    documents::read_whole(documents).await
}

/// The lease of an export, among the documents of a state that several processes share.
pub fn lease_of(documents: &Documents, export: &str) -> store::Document {
    documents.document(&format!("leases/{export}.json"))
}

/// Reads a state file without locking it, for commands that change nothing. Of a broken file it reads the previous
/// generation, as [`OpenState::open`] does.
///
/// # Errors
/// [`Error::Refused`] where neither is whole: an empty state would be mistaken for the truth.
pub fn peek(path: &Path) -> Result<State, Error> {
    file::peek(path)
}

fn sha256(text: &str) -> String {
    use aws_lc_rs::digest::{SHA256, digest};
    use std::fmt::Write as _;
    let mut hex = String::new();
    for byte in digest(&SHA256, text.as_bytes()).as_ref() {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { place: path.display().to_string(), source }
}

#[cfg(test)]
mod tests;
