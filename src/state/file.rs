//! The state in a file: it is replaced as a whole, the previous generation is kept, and a lock file admits one process.

use std::{
    fs::{self, File, TryLockError},
    io::{Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use uuid::Uuid;

use super::{
    Error, Found, State,
    envelope::{Opened, opened, sealed},
    folder, freshness, io,
    place::{self, Owner},
};
use crate::fhir::parse_instant;

/// The state file, locked by this process.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    /// The name in the lock file, which it got when it was created.
    pub holder: String,
    lock: File,
}

impl Drop for StateFile {
    /// Said explicitly: a process that is being started has a copy of each open file for a moment, and would keep the
    /// lock.
    fn drop(&mut self) {
        // Closing the file does it as well.
        let _ = self.lock.unlock();
    }
}

impl StateFile {
    /// Opens the file and locks it; creates the folder if it does not exist.
    pub fn open(path: &Path) -> Result<(Self, State, Found), Error> {
        place::folder(folder(path))?;
        let (lock, holder) = lock(path)?;
        let (state, found) = match read(path, Owner::Ourselves)? {
            Contents::Missing => (State::default(), Found::Nothing),
            Contents::Whole(state) => (state, Found::Whole),
            Contents::OldForm(state) => (state, Found::Migrated),
            Contents::Broken(bytes) => match read(&previous(path), Owner::Ourselves)? {
                Contents::Whole(state) => (state, Found::Previous),
                _ => {
                    let kept_as = keep_broken(path, &bytes)?.display().to_string();
                    (State::default(), Found::Broken { kept_as })
                }
            },
        };
        Ok((Self { path: path.to_owned(), holder, lock }, state, found))
    }

    /// Blocks.
    pub fn write(&self, state: &State) -> Result<(), Error> {
        let path = &self.path;
        let text = sealed(&serde_json::to_string_pretty(state)?, None);
        let new = with_suffix(path, "new");
        place::write(&new, text.as_bytes())?;
        keep_previous(path)?;
        fs::rename(&new, path).map_err(|error| io(path, error))?;
        let folder = folder(path);
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| io(folder, error))
    }
}

/// Reads a state file without locking it. Of a broken file it reads the previous generation, as [`StateFile::open`]
/// does.
pub fn peek(path: &Path) -> Result<State, Error> {
    match read(path, Owner::Anybody)? {
        Contents::Whole(state) | Contents::OldForm(state) => Ok(state),
        Contents::Missing => Ok(State::default()),
        Contents::Broken(_) => match read(&previous(path), Owner::Anybody)? {
            Contents::Whole(state) => Ok(state),
            _ => Err(Error::twice_broken(path.display().to_string())),
        },
    }
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
    match opened(&text) {
        Opened::Whole(state) => Ok(Contents::Whole(freshness::of_an_earlier_version(state))),
        Opened::Newer(found) => Err(Error::Newer { place: path.display().to_string(), found }),
        Opened::Broken => Ok(Contents::Broken(text.into_bytes())),
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

fn previous(path: &Path) -> PathBuf {
    with_suffix(path, "previous")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}
