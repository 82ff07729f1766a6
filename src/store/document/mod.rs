//! A small document that several processes replace: a file in a folder, or an object of a store.
//!
//! What always holds: it is replaced as a whole, on the disk when that is reported, and only by a process that has read
//! what it replaces. An answer that is lost is not an error where the document turns out to be what we wrote.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::TryStreamExt as _;
use object_store::{
    ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion,
    path::{Path as StorePath, PathPart},
};
use rustix::fs::OFlags;
use tokio::task::JoinSet;
use url::Url;

use super::{Failure, Location, Options, connect};

/// Where documents are: in a folder, or below a prefix of an object store.
#[derive(Clone, Debug)]
pub enum Documents {
    Folder { folder: PathBuf, readers: Readers },
    Store { store: Arc<dyn ObjectStore>, prefix: StorePath, shown: String },
}

/// Who may read the documents of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readers {
    Owner,
    /// Whoever may read the folder.
    OfFolder,
}

/// A document, whether it exists or not.
#[derive(Clone, Debug)]
pub struct Document {
    of: Documents,
    name: String,
}

/// A document as it was read or written.
#[derive(Clone, Debug)]
pub struct Stored {
    pub text: String,
    /// What an object store calls this content.
    version: Option<UpdateVersion>,
}

#[derive(Debug)]
pub enum Swapped {
    /// The document is this now.
    Done(Stored),
    /// The document is no longer the one that was read.
    Overtaken,
    /// The store has no conditional replacement.
    Unsupported,
}

#[derive(thiserror::Error, Debug)]
pub enum DocumentError {
    #[error("{place} cannot be read or written")]
    Io { place: String, source: std::io::Error },
    #[error("{place} cannot be read or written")]
    Store { place: String, source: object_store::Error },
}

impl DocumentError {
    /// As [`Failure::is_of_configuration`].
    pub fn is_of_configuration(&self) -> bool {
        self.failure().is_some_and(Failure::is_of_configuration)
    }

    /// As [`Failure::is_transient`].
    pub fn is_transient(&self) -> bool {
        self.failure().is_some_and(Failure::is_transient)
    }

    fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Io { .. } => None,
            Self::Store { source, .. } => Failure::within(source),
        }
    }
}

impl Documents {
    /// Asks the store nothing, and creates no folder.
    pub fn at(location: &Location, options: &Options) -> Result<Self, super::Error> {
        Ok(match location {
            Location::Folder(folder) => Self::Folder { folder: folder.clone(), readers: Readers::Owner },
            Location::ObjectStore(url) => Self::in_store(connect(url, options)?, url),
        })
    }

    pub fn of_folder(folder: PathBuf, readers: Readers) -> Self {
        Self::Folder { folder, readers }
    }

    /// Below the path of `url`, in the bucket that `store` reaches.
    pub fn in_store(store: Arc<dyn ObjectStore>, url: &Url) -> Self {
        let prefix = StorePath::from_url_path(url.path()).unwrap_or_else(|_| StorePath::from(url.path()));
        Self::Store { store, prefix, shown: url.as_str().trim_end_matches('/').to_owned() }
    }

    /// A name may have folders in it, separated by slashes.
    pub fn document(&self, name: &str) -> Document {
        Document { of: self.clone(), name: name.to_owned() }
    }

    pub fn shown(&self) -> String {
        match self {
            Self::Folder { folder, .. } => folder.display().to_string(),
            Self::Store { shown, .. } => shown.clone(),
        }
    }

    /// The names of the documents directly in a folder of this place, with that folder.
    pub async fn list(&self, inside: &str) -> Result<Vec<String>, DocumentError> {
        let names = match self {
            Self::Folder { folder, .. } => {
                let folder = folder.join(inside);
                let shown = folder.display().to_string();
                let names = on_a_blocking_thread(move || file_names(&folder)).await;
                names.map_err(|source| DocumentError::Io { place: shown, source })?
            }
            Self::Store { store, prefix, shown } => {
                let folder = joined(prefix, inside);
                let found: Vec<_> = store
                    .list(Some(&folder))
                    .try_collect()
                    .await
                    .map_err(|source| DocumentError::Store { place: format!("{shown}/{inside}"), source })?;
                let of_folder = |path: &StorePath| {
                    let mut rest = path.prefix_match(&folder)?;
                    let name = rest.next()?.as_ref().to_owned();
                    rest.next().is_none().then_some(name)
                };
                found.iter().filter_map(|meta| of_folder(&meta.location)).collect()
            }
        };
        Ok(names.into_iter().map(|name| format!("{inside}/{name}")).collect())
    }
}

impl Document {
    /// Where it is, for people.
    pub fn shown(&self) -> String {
        match &self.of {
            Documents::Folder { .. } => self.file().display().to_string(),
            Documents::Store { shown, .. } => format!("{shown}/{}", self.name),
        }
    }

    /// The path of the file; of no meaning in an object store.
    fn file(&self) -> PathBuf {
        match &self.of {
            Documents::Folder { folder, .. } => folder.join(&self.name),
            Documents::Store { .. } => PathBuf::from(&self.name),
        }
    }

    pub async fn read(&self) -> Result<Option<Stored>, DocumentError> {
        match &self.of {
            Documents::Folder { .. } => {
                let path = self.file();
                let text = on_a_blocking_thread(move || read_file(&path)).await;
                let text = text.map_err(|source| self.failed_io(source))?;
                Ok(text.map(|text| Stored { text, version: None }))
            }
            Documents::Store { store, prefix, .. } => {
                let got = match store.get(&joined(prefix, &self.name)).await {
                    Ok(got) => got,
                    Err(object_store::Error::NotFound { .. }) => return Ok(None),
                    Err(source) => return Err(self.failed(source)),
                };
                let version = UpdateVersion { e_tag: got.meta.e_tag.clone(), version: got.meta.version.clone() };
                let bytes = got.bytes().await.map_err(|source| self.failed(source))?;
                let text = String::from_utf8_lossy(&bytes).into_owned();
                Ok(Some(Stored { text, version: Some(version) }))
            }
        }
    }

    /// Writes `text` if the document is still the one that was read, or still missing. A text that nobody else would
    /// write makes a lost answer certain: the document is read again, and is `text` or not.
    pub async fn swap(&self, read: Option<&Stored>, text: String) -> Result<Swapped, DocumentError> {
        match &self.of {
            Documents::Folder { readers, .. } => {
                let (path, readers) = (self.file(), *readers);
                let expected = read.map(|stored| stored.text.clone());
                let stored = Stored { text: text.clone(), version: None };
                let swap = move || swap_file(&path, readers, expected.as_deref(), &text);
                let swapped = on_a_blocking_thread(swap).await.map_err(|source| self.failed_io(source))?;
                Ok(if swapped { Swapped::Done(stored) } else { Swapped::Overtaken })
            }
            Documents::Store { store, prefix, .. } => {
                let mode = match read.and_then(|stored| stored.version.clone()) {
                    Some(version) => PutMode::Update(version),
                    None => PutMode::Create,
                };
                let path = joined(prefix, &self.name);
                let put = store.put_opts(&path, text.clone().into_bytes().into(), PutOptions::from(mode)).await;
                self.outcome(put, text).await
            }
        }
    }

    async fn outcome(
        &self,
        put: object_store::Result<object_store::PutResult>,
        text: String,
    ) -> Result<Swapped, DocumentError> {
        use object_store::Error as E;
        let error = match put {
            Ok(put) if put.e_tag.is_some() || put.version.is_some() => {
                let version = UpdateVersion { e_tag: put.e_tag, version: put.version };
                return Ok(Swapped::Done(Stored { text, version: Some(version) }));
            }
            // The answer does not say what the store calls it.
            Ok(_) => None,
            Err(E::NotImplemented { .. } | E::NotSupported { .. }) => return Ok(Swapped::Unsupported),
            Err(error) => Some(error),
        };
        // The client repeats a request whose answer is lost; the second one then meets what the first one wrote.
        match (self.read().await, error) {
            (Ok(Some(stored)), _) if stored.text == text => Ok(Swapped::Done(stored)),
            (Ok(_), None | Some(E::AlreadyExists { .. } | E::Precondition { .. })) => Ok(Swapped::Overtaken),
            (Ok(_), Some(error)) => Err(self.failed(error)),
            (Err(_), Some(error)) if !matches!(error, E::AlreadyExists { .. } | E::Precondition { .. }) => {
                Err(self.failed(error))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Writes it, whatever is there.
    pub async fn put(&self, text: String) -> Result<(), DocumentError> {
        match &self.of {
            Documents::Folder { readers, .. } => {
                let (path, readers) = (self.file(), *readers);
                let put = move || {
                    create_folder(&path, readers)?;
                    replace_file(&path, readers, &text)
                };
                on_a_blocking_thread(put).await.map_err(|source| self.failed_io(source))
            }
            Documents::Store { store, prefix, .. } => {
                let put = store.put(&joined(prefix, &self.name), text.into_bytes().into()).await;
                put.map(|_| ()).map_err(|source| self.failed(source))
            }
        }
    }

    /// In a folder, replaces a document for which `change` gives another text. In an object store nothing happens.
    /// Blocks, for a short time.
    pub fn change_in_folder(&self, change: impl FnOnce(Stored) -> Option<String>) -> std::io::Result<()> {
        let Documents::Folder { readers, .. } = &self.of else { return Ok(()) };
        let path = self.file();
        let Some(before) = read_file(&path)? else { return Ok(()) };
        match change(Stored { text: before.clone(), version: None }) {
            Some(text) => swap_file(&path, *readers, Some(&before), &text).map(|_| ()),
            None => Ok(()),
        }
    }

    fn failed(&self, source: object_store::Error) -> DocumentError {
        DocumentError::Store { place: self.shown(), source }
    }

    fn failed_io(&self, source: std::io::Error) -> DocumentError {
        DocumentError::Io { place: self.shown(), source }
    }
}

fn joined(prefix: &StorePath, name: &str) -> StorePath {
    prefix.parts().chain(name.split('/').map(PathPart::from)).collect()
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

fn file_names(folder: &Path) -> std::io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
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

/// More than any document has: the largest is the state of an export with the names of its finished files.
const MAX_BYTES: u64 = 256 * 1024 * 1024;

/// Replaces the file if its text is `expected`; returns whether it was. The lock makes the two steps one for all
/// processes that share the folder, where its file system has locks.
fn swap_file(path: &Path, readers: Readers, expected: Option<&str>, text: &str) -> std::io::Result<bool> {
    // The folder may have been removed with all that is in it.
    create_folder(path, readers)?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(readers.mode_of_files()).custom_flags(flags());
    let lock = options.open(path.with_extension("lock"))?;
    lock.lock()?;
    if read_file(path)?.as_deref() != expected {
        return Ok(false);
    }
    replace_file(path, readers, text)?;
    Ok(true)
}

fn create_folder(path: &Path, readers: Readers) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(readers.mode_of_folders()).create(folder)
}

/// The new text is on the disk before it has the name, and the name when this returns.
fn replace_file(path: &Path, readers: Readers, text: &str) -> std::io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(readers.mode_of_files()).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

impl Readers {
    fn mode_of_files(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::OfFolder => 0o666,
        }
    }

    fn mode_of_folders(self) -> u32 {
        match self {
            Self::Owner => 0o700,
            Self::OfFolder => 0o777,
        }
    }
}

/// No link is followed, and no FIFO waited for.
fn flags() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

#[cfg(test)]
mod tests;
