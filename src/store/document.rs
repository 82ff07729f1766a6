//! Where the lease is: a file in a folder, or an object of a store. Either is replaced only by a process that has read
//! it.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use deltalake::ObjectStore;
use object_store::{ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion};
use rustix::fs::OFlags;
use tokio::task::JoinSet;

use super::Record;
use crate::table::Error;

#[derive(Debug)]
pub enum LeasePlace {
    Folder(PathBuf),
    Store { store: Arc<dyn ObjectStore>, path: object_store::path::Path, shown: String },
}

/// The file as it was read.
#[derive(Clone, Debug)]
pub struct Stored {
    pub text: String,
    /// What an object store calls this content.
    version: Option<UpdateVersion>,
}

pub enum Swapped {
    Done,
    /// The file is no longer the one that was read.
    Overtaken,
    /// The store has no conditional replacement.
    Unsupported,
}

/// The name of the file.
const LEASE: &str = "lease.json";
/// Locked while the file in a folder is read and replaced.
const LOCK: &str = "lease.lock";

impl LeasePlace {
    /// In an object store of which only `folder` is seen.
    pub fn in_store(store: Arc<dyn ObjectStore>, folder: &str) -> Self {
        Self::Store { store, path: object_store::path::Path::from(LEASE), shown: format!("{folder}/{LEASE}") }
    }

    pub fn shown(&self) -> String {
        match self {
            Self::Folder(folder) => folder.join(LEASE).display().to_string(),
            Self::Store { shown, .. } => shown.clone(),
        }
    }

    pub async fn read(&self) -> Result<Option<Stored>, Error> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(LEASE);
                let text = on_a_blocking_thread(move || read_file(&path)).await;
                let text = text.map_err(|error| self.failed_io(error))?;
                Ok(text.map(|text| Stored { text, version: None }))
            }
            Self::Store { store, path, .. } => {
                let got = match store.get(path).await {
                    Ok(got) => got,
                    Err(object_store::Error::NotFound { .. }) => return Ok(None),
                    Err(error) => return Err(self.failed(error)),
                };
                let version = UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
                let bytes = got.bytes().await.map_err(|error| self.failed(error))?;
                let text = String::from_utf8_lossy(&bytes).into_owned();
                Ok(Some(Stored { text, version: Some(version) }))
            }
        }
    }

    /// Writes the record if the file is still the one that was read, or still missing.
    pub(super) async fn swap(&self, read: Option<&Stored>, record: &Record) -> Result<Swapped, Error> {
        let text = serde_json::to_string_pretty(record).map_err(|error| self.failed_io(error.into()))?;
        match self {
            Self::Folder(folder) => {
                let (folder, expected) = (folder.clone(), read.map(|stored| stored.text.clone()));
                let swap = move || swap_file(&folder, expected.as_deref(), &text);
                let swapped = on_a_blocking_thread(swap).await.map_err(|error| self.failed_io(error))?;
                Ok(if swapped { Swapped::Done } else { Swapped::Overtaken })
            }
            Self::Store { store, path, .. } => {
                let mode = match read.and_then(|stored| stored.version.clone()) {
                    Some(version) => PutMode::Update(version),
                    None => PutMode::Create,
                };
                match store.put_opts(path, text.into_bytes().into(), PutOptions::from(mode)).await {
                    Ok(_) => Ok(Swapped::Done),
                    Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                        Ok(Swapped::Overtaken)
                    }
                    Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
                        Ok(Swapped::Unsupported)
                    }
                    Err(error) => Err(self.failed(error)),
                }
            }
        }
    }

    /// Writes the record where the file is of the same epoch and holder. In an object store nothing happens.
    pub(super) fn release_in_folder(&self, record: &Record) {
        let Self::Folder(folder) = self else { return };
        let Ok(Some(text)) = read_file(&folder.join(LEASE)) else { return };
        let stored = Stored { text, version: None };
        if !stored.is_of(record) {
            return;
        }
        let Ok(text) = serde_json::to_string_pretty(record) else { return };
        if let Err(error) = swap_file(folder, Some(&stored.text), &text) {
            tracing::debug!(%error, "the lease of the tables was not released");
        }
    }

    fn failed(&self, error: object_store::Error) -> Error {
        Error::delta(&self.shown(), error)
    }

    fn failed_io(&self, error: std::io::Error) -> Error {
        Error::delta(&self.shown(), error)
    }
}

async fn on_a_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    let mut thread = JoinSet::new();
    thread.spawn_blocking(work);
    match thread.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(std::io::Error::other(error)),
        // One thread was started, so there is one to wait for.
        None => Err(ErrorKind::Interrupted.into()),
    }
}

fn read_file(path: &Path) -> std::io::Result<Option<String>> {
    let file = match OpenOptions::new().read(true).custom_flags(flags()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

/// More than any lease has.
const MAX_BYTES: u64 = 64 * 1024;

/// Replaces the file if its text is `expected`; returns whether it was. The lock makes the two steps one for all
/// processes that share the folder; where a network file system has no locks, [`Lease`](super::Lease) still reads the
/// file before each commit.
fn swap_file(folder: &Path, expected: Option<&str>, text: &str) -> std::io::Result<bool> {
    // The folder may have been removed with all tables.
    fs::create_dir_all(folder)?;
    let mut options = OpenOptions::new();
    let lock = options.write(true).create(true).truncate(false).custom_flags(flags()).open(folder.join(LOCK))?;
    lock.lock()?;
    let path = folder.join(LEASE);
    if read_file(&path)?.as_deref() != expected {
        return Ok(false);
    }
    let new = folder.join(format!("{LEASE}.new"));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    File::create_new(&new)?.write_all(text.as_bytes())?;
    fs::rename(&new, &path)?;
    Ok(true)
}

/// No link is followed, and no FIFO waited for.
fn flags() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}
