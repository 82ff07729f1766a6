//! The state file: the watermarks of each export, and the job in flight.
//!
//! It mirrors what the tables know and adds what they cannot know: the job that the server works on, the number of the
//! run, when the last complete sync ended. A change is written to a temporary file, synced and renamed, and the folder
//! is synced; the previous generation is kept; a checksum detects a torn file. A lock file admits one process.

mod asked;
mod freshness;
mod jobs;
mod place;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use self::place::Owner;
pub use self::{
    asked::Asked,
    freshness::{Freshness, Outcome},
    jobs::{FinishedFiles, JobInFlight},
};
use crate::{
    fhir::{ResourceType, TransactionTime, parse_instant},
    telemetry::metrics::{self, WriteOutcome},
};

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
    pub reload: BTreeMap<ResourceType, String>,
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
    /// Runs that are not in the ledger yet: they go on, or their process was killed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unrecorded_runs: BTreeSet<u64>,
    #[serde(default)]
    pub freshness: Freshness,
    /// The jobs in flight. An earlier version kept one, as `job`.
    #[serde(default, alias = "job", deserialize_with = "jobs::one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<JobInFlight>,
}

/// A table by what tells it from another one, or from itself at an earlier time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownTable {
    /// `metaData.id`.
    pub id: String,
    pub version: u64,
}

/// What the state file was when it was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Nothing,
    Whole,
    /// The one-field form of the script that fhir-sync replaces.
    Migrated,
    /// The file was broken; its previous generation was not.
    Previous,
    /// Neither was readable; a copy of the file is kept beside it.
    Broken {
        kept_as: PathBuf,
    },
}

/// The state file, opened and locked by this process.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    state: State,
    holder: String,
    lock: File,
}

impl Drop for Store {
    /// Said explicitly: a process that is being started has a copy of each open file for a moment, and would keep the
    /// lock.
    fn drop(&mut self) {
        // Closing the file does it as well.
        let _ = self.lock.unlock();
    }
}

impl Store {
    /// Opens the state file and locks it; creates the folder if it does not exist.
    pub fn open(path: &Path) -> Result<(Self, Found), Error> {
        place::folder(folder(path))?;
        let (lock, holder) = lock(path)?;
        let (state, found) = match read(path, Owner::Ourselves)? {
            Contents::Missing => (State::default(), Found::Nothing),
            Contents::Whole(state) => (state, Found::Whole),
            Contents::OldForm(state) => (state, Found::Migrated),
            Contents::Broken(bytes) => match read(&previous(path), Owner::Ourselves)? {
                Contents::Whole(state) => (state, Found::Previous),
                _ => (State::default(), Found::Broken { kept_as: keep_broken(path, &bytes)? }),
            },
        };
        Ok((Self { path: path.to_owned(), state, holder, lock }, found))
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    /// Names whoever holds this state file, in this process or a later one: while the lock is held, no other process
    /// has this name.
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Changes the state, which is on the disk when this returns; after an error nothing has changed. Blocks.
    pub fn update(&mut self, change: impl FnOnce(&mut State)) -> Result<(), Error> {
        let mut state = self.state.clone();
        change(&mut state);
        let written = write(&self.path, &state);
        metrics::state_written(if written.is_ok() { WriteOutcome::Written } else { WriteOutcome::Failed });
        written?;
        self.state = state;
        Ok(())
    }
}

/// Reads a state file without locking it, for commands that change nothing. Of a broken file it reads the previous
/// generation, as [`Store::open`] does.
///
/// # Errors
/// [`Error::Refused`] where neither is whole: an empty state would be mistaken for the truth.
pub fn peek(path: &Path) -> Result<State, Error> {
    match read(path, Owner::Anybody)? {
        Contents::Whole(state) | Contents::OldForm(state) => Ok(state),
        Contents::Missing => Ok(State::default()),
        Contents::Broken(_) => match read(&previous(path), Owner::Anybody)? {
            Contents::Whole(state) => Ok(state),
            _ => Err(Error::Refused {
                place: path.display().to_string(),
                reason:
                    "it is broken, and its previous generation is missing or broken too; the next sync recreates it \
                         from the tables"
                        .to_owned(),
            }),
        },
    }
}

pub const FORMAT: u64 = 1;

#[derive(Deserialize)]
struct Envelope<'text> {
    format: u64,
    checksum: String,
    #[serde(borrow)]
    state: &'text RawValue,
}

enum Contents {
    Missing,
    Whole(State),
    OldForm(State),
    /// The bytes of the file.
    Broken(Vec<u8>),
}

fn read(path: &Path, owner: Owner) -> Result<Contents, Error> {
    let Some(bytes) = place::read(path, owner)? else { return Ok(Contents::Missing) };
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => return Ok(Contents::Broken(error.into_bytes())),
    };
    if let Some(state) = old_form(&text) {
        return Ok(Contents::OldForm(state));
    }
    let Ok(envelope) = serde_json::from_str::<Envelope>(&text) else { return Ok(Contents::Broken(text.into_bytes())) };
    if envelope.format > FORMAT {
        return Err(Error::Newer { place: path.display().to_string(), found: envelope.format });
    }
    let is_whole = envelope.checksum == checksum(envelope.state.get());
    match serde_json::from_str(envelope.state.get()) {
        Ok(state) if is_whole => Ok(Contents::Whole(freshness::of_an_earlier_version(state))),
        _ => Ok(Contents::Broken(text.into_bytes())),
    }
}

fn old_form(text: &str) -> Option<State> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct OldForm {
        last_sync_time: Option<String>,
    }
    let old: OldForm = serde_json::from_str(text).ok()?;
    let last_sync_before_migration = old.last_sync_time.as_deref().and_then(parse_instant);
    Some(State { last_sync_before_migration, ..State::default() })
}

fn write(path: &Path, state: &State) -> Result<(), Error> {
    let body = serde_json::to_string_pretty(state)?;
    let checksum = checksum(&body);
    let text = format!("{{\n\"format\": {FORMAT},\n\"checksum\": \"{checksum}\",\n\"state\": {body}\n}}\n");
    let new = with_suffix(path, "new");
    place::write(&new, text.as_bytes())?;
    keep_previous(path)?;
    fs::rename(&new, path).map_err(|error| io(path, error))?;
    let folder = folder(path);
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| io(folder, error))
}

/// Keeps the present file as the previous generation, if it is whole: a broken one must not replace the last good one.
fn keep_previous(path: &Path) -> Result<(), Error> {
    let (Contents::Whole(_) | Contents::OldForm(_)) = read(path, Owner::Ourselves)? else { return Ok(()) };
    let previous = previous(path);
    place::remove(&previous)?;
    // Not every file system has hard links.
    let kept = fs::hard_link(path, &previous).or_else(|_| fs::copy(path, &previous).map(|_| ()));
    kept.map_err(|error| io(&previous, error))
}

fn keep_broken(path: &Path, bytes: &[u8]) -> Result<PathBuf, Error> {
    let kept_as = with_suffix(path, "broken");
    place::write(&kept_as, bytes)?;
    Ok(kept_as)
}

/// The lock file, locked, and the name in it, which it gets when it is created.
fn lock(path: &Path) -> Result<(File, String), Error> {
    let place = with_suffix(path, "lock");
    let mut lock = place::open_or_create(&place)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(Error::Locked { place: path.display().to_string() }),
        Err(TryLockError::Error(error)) => return Err(io(&place, error)),
    }
    let mut bytes = Vec::new();
    lock.read_to_end(&mut bytes).map_err(|error| io(&place, error))?;
    if let Ok(holder) = Uuid::try_parse_ascii(bytes.trim_ascii()) {
        return Ok((lock, holder.to_string()));
    }
    let holder = Uuid::new_v4().to_string();
    let written = lock.set_len(0).and_then(|()| lock.rewind());
    written.and_then(|()| lock.write_all(format!("{holder}\n").as_bytes())).map_err(|error| io(&place, error))?;
    Ok((lock, holder))
}

fn checksum(text: &str) -> String {
    format!("sha256:{}", sha256(text))
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

fn previous(path: &Path) -> PathBuf {
    with_suffix(path, "previous")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn io(path: &Path, source: std::io::Error) -> Error {
    Error::Io { place: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(run: u64) -> State {
        let mut state = State { run, ..State::default() };
        let export = state.exports.entry("all".to_owned()).or_default();
        export
            .watermarks
            .insert("Patient".parse().unwrap(), TransactionTime::from_micros(1_700_000_000_000_001).unwrap());
        export.jobs.push(JobInFlight {
            status_url: "https://ehr.example.org/status/1?secret=x".parse().unwrap(),
            kicked_off_at: None,
            polling_since: DateTime::UNIX_EPOCH,
            types: vec!["Patient".parse().unwrap()],
            since: Some("2026-01-01T00:00:00.000Z".to_owned()),
            full_refresh: false,
            asked: None,
            server: None,
            settled: BTreeSet::new(),
            finished: BTreeMap::new(),
            patients: BTreeSet::new(),
        });
        state
    }

    fn opened(path: &Path) -> (State, Found) {
        let (store, found) = Store::open(path).unwrap();
        (store.state().clone(), found)
    }

    fn written(path: &Path, runs: &[u64]) {
        let (mut store, _) = Store::open(path).unwrap();
        for run in runs {
            store.update(|state| *state = sample(*run)).unwrap();
        }
    }

    #[test]
    fn the_state_is_read_back_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/state.json");
        assert_eq!(opened(&path), (State::default(), Found::Nothing));
        written(&path, &[1, 2]);
        assert_eq!(opened(&path), (sample(2), Found::Whole));
    }

    /// (rule 136)
    #[test]
    fn a_second_process_is_refused_until_the_first_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let first = Store::open(&path).unwrap();
        assert!(matches!(Store::open(&path), Err(Error::Locked { .. })));
        drop(first);
        assert!(Store::open(&path).is_ok());
    }

    #[test]
    fn the_old_one_field_form_is_accepted_and_migrated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        fs::write(&path, r#"{"last_sync_time": "2026-11-20T03:00:00+01:00"}"#).unwrap();
        let (state, found) = opened(&path);
        assert_eq!(found, Found::Migrated);
        assert_eq!(state.last_sync_before_migration, parse_instant("2026-11-20T02:00:00Z"));
        assert!(state.exports.is_empty(), "no watermark follows from it");
    }

    /// (rule 136)
    #[test]
    fn a_broken_file_is_replaced_by_its_previous_generation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        written(&path, &[1, 2]);
        fs::write(&path, "").unwrap();
        assert_eq!(opened(&path), (sample(1), Found::Previous));
        written(&path, &[3]);
        fs::write(&path, "{").unwrap();
        assert_eq!(opened(&path), (sample(1), Found::Previous), "the broken file did not replace the good one");
    }

    #[test]
    fn two_broken_generations_are_reported_and_a_copy_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        fs::write(&path, [0, 159, 146, 150]).unwrap();
        let kept_as = folder.path().join("state.json.broken");
        assert_eq!(opened(&path), (State::default(), Found::Broken { kept_as: kept_as.clone() }));
        assert_eq!(fs::read(kept_as).unwrap(), [0, 159, 146, 150]);
    }

    /// (rule 136)
    #[test]
    fn a_file_of_a_newer_format_stops_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        fs::write(&path, r#"{"format": 2, "checksum": "", "state": {}}"#).unwrap();
        assert!(matches!(Store::open(&path), Err(Error::Newer { found: 2, .. })));
    }

    #[test]
    fn only_the_owner_may_read_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        written(&path, &[1]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_folder_that_cannot_be_created_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let error = Store::open(&folder.path().join("file/state.json")).unwrap_err();
        assert!(error.to_string().contains("/file"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// (rule 136)
        #[test]
        fn damage_never_yields_another_state(position in 0usize..2000, damage in any::<u8>(), truncate in any::<bool>()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("state.json");
            written(&path, &[1, 2]);
            let mut bytes = fs::read(&path).unwrap();
            let position = position % bytes.len();
            if truncate { bytes.truncate(position) } else { bytes[position] ^= damage }
            fs::write(&path, bytes).unwrap();
            match Store::open(&path) {
                Ok((store, _)) => prop_assert!([sample(1), sample(2)].contains(store.state())),
                Err(error) => prop_assert!(matches!(error, Error::Newer { .. }), "{}", error),
            }
        }
    }
}
