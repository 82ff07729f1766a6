//! A secret: where it is kept, and its current text.
//!
//! What always holds: a secret has exactly one place; its text is never part of an error, a Debug form or a log line; a
//! file is read again when it has changed; a command ends within its time, and so does everything that it started.

mod command;
mod file;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use secrecy::{ExposeSecret as _, SecretString};
use tokio::task::JoinSet;

use self::file::Mark;
pub use self::file::is_open_to_others;

/// Where a secret is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// A file that only its owner can read.
    File(PathBuf),
    /// A credential of the systemd service, by its name.
    Credential(String),
    /// A variable of the environment. It is read once: the environment of a process does not change.
    Variable(String),
    /// A program and its arguments, which prints the secret. No shell reads them.
    Command(Vec<String>),
    /// The text was handed over.
    Given,
}

/// Why there is no text. The phrases go behind the name of a setting or of a [`Place`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Nothing is there, or this user may not read it: on another machine, or as another user, it may be different.
    #[error("{0}")]
    Absent(String),
    #[error("{0}")]
    Unusable(String),
    /// Its command did not answer; it may do so later, such as a vault that starts with this machine.
    #[error("{0}")]
    NotNow(String),
}

/// The text of a secret, and the number of the reading that brought it.
#[derive(Clone, Debug)]
pub struct Reading {
    pub text: Arc<SecretString>,
    /// A text that was read again has another number, also where it is the same text.
    pub number: u64,
}

impl Reading {
    /// Hands the text to `use_it`, which must not keep it.
    pub fn with<T>(&self, use_it: impl FnOnce(&str) -> T) -> T {
        use_it(self.text.expose_secret())
    }
}

/// A secret, which may be asked for its text again and again. Copies share what they have read.
#[derive(Clone)]
pub struct Secret(Arc<Inner>);

struct Inner {
    place: Place,
    held: Mutex<Option<Held>>,
    /// A text that is held is not used again.
    is_stale: AtomicBool,
}

struct Held {
    reading: Reading,
    /// Of the file, when it was read.
    mark: Option<Mark>,
}

/// A key set of some keys is a few KiB long.
const MAX_BYTES: u64 = 64 * 1024;

impl Secret {
    pub fn at(place: Place) -> Self {
        Self(Arc::new(Inner { place, held: Mutex::default(), is_stale: AtomicBool::new(false) }))
    }

    pub fn given(text: impl Into<SecretString>) -> Self {
        let secret = Self::at(Place::Given);
        let reading = Reading { text: Arc::new(text.into()), number: 1 };
        *secret.held() = Some(Held { reading, mark: None });
        secret
    }

    pub fn place(&self) -> &Place {
        &self.0.place
    }

    /// The current text. Blocks: a file is read if it has changed, a command runs if none has run or
    /// [`Self::forget`] was called.
    pub fn read(&self) -> Result<Reading, Error> {
        let mut held = self.held();
        let number = held.as_ref().map_or(1, |held| held.reading.number + 1);
        let is_stale = self.0.is_stale.swap(false, Ordering::SeqCst);
        let kept = held.as_ref().filter(|_| !is_stale);
        let (text, mark) = match (&self.0.place, kept) {
            (Place::Given | Place::Variable(_) | Place::Command(_), Some(held)) => return Ok(held.reading.clone()),
            (Place::File(_) | Place::Credential(_), kept) => {
                match (file::read(&self.path()?, kept.and_then(|held| held.mark.as_ref()))?, kept) {
                    (Some((text, mark)), _) => (text, Some(mark)),
                    (None, held) => return held.map(|held| held.reading.clone()).ok_or_else(gone),
                }
            }
            (Place::Variable(name), None) => (variable(name)?, None),
            (Place::Command(line), None) => (command::run(line, command::TIME_LIMIT)?, None),
            (Place::Given, None) => return Err(gone()),
        };
        let reading = Reading { text: Arc::new(text), number };
        *held = Some(Held { reading: reading.clone(), mark });
        Ok(reading)
    }

    /// As [`Self::read`], on a thread that may block.
    pub async fn current(&self) -> Result<Reading, Error> {
        let secret = self.clone();
        let mut thread = JoinSet::new();
        thread.spawn_blocking(move || secret.read());
        match thread.join_next().await {
            Some(Ok(read)) => read,
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            // One thread was started, so there is one to wait for; a runtime that shuts down never answers.
            None => std::future::pending().await,
        }
    }

    /// The next reading runs the command again: its text was refused, or a new run begins. Whether that can bring
    /// another text; a file is looked at anyway.
    pub fn forget(&self) -> bool {
        let is_command = matches!(self.0.place, Place::Command(_));
        if is_command {
            self.0.is_stale.store(true, Ordering::SeqCst);
        }
        is_command
    }

    /// Of the file.
    fn path(&self) -> Result<PathBuf, Error> {
        match &self.0.place {
            Place::File(path) => Ok(path.clone()),
            Place::Credential(name) => credential(name),
            Place::Variable(_) | Place::Command(_) | Place::Given => Err(gone()),
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Option<Held>> {
        // A reading that panicked has left the one before it.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Secret {
    /// Whether both are kept at the same place; a text that was handed over is compared itself.
    fn eq(&self, other: &Self) -> bool {
        if Arc::ptr_eq(&self.0, &other.0) {
            return true;
        }
        let text = |secret: &Self| secret.held().as_ref().map(|held| Arc::clone(&held.reading.text));
        match (&self.0.place, &other.0.place) {
            (Place::Given, Place::Given) => match (text(self), text(other)) {
                (Some(one), Some(other)) => one.expose_secret() == other.expose_secret(),
                (one, other) => one.is_none() && other.is_none(),
            },
            (one, other) => one == other,
        }
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Secret").field(&format_args!("{}", self.0.place)).finish()
    }
}

impl fmt::Display for Place {
    /// For people. Of a command only the program: an argument may be a secret.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(out, "{}", path.display()),
            Self::Credential(name) => write!(out, "the credential {name}"),
            Self::Variable(name) => write!(out, "the variable {name}"),
            Self::Command(line) => write!(out, "the command {}", line.first().map_or("", String::as_str)),
            Self::Given => out.write_str("the secret"),
        }
    }
}

/// Whether a setting that should name a file holds the secret itself: then it must not be shown.
pub fn is_secret_itself(path: &Path) -> bool {
    const MAX_NAME_BYTES: usize = 255;
    let text = path.to_string_lossy();
    let text = text.trim().trim_start_matches(['\u{feff}', '"', '\'']).trim_start();
    let is_too_long = text.split('/').any(|name| name.len() > MAX_NAME_BYTES);
    let begins = ["{", "-----BEGIN ", "eyJ"].iter().any(|start| text.starts_with(start));
    begins || is_too_long || text.contains('\n') || text.contains("://")
}

fn credential(name: &str) -> Result<PathBuf, Error> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
        Error::Absent(format!(
            "is not available: this process has no CREDENTIALS_DIRECTORY; add LoadCredential={name}:FILE to its \
             systemd unit"
        ))
    })?;
    Ok(Path::new(&folder).join(name))
}

fn variable(name: &str) -> Result<SecretString, Error> {
    let text = std::env::var_os(name).ok_or_else(|| Error::Absent(format!("the variable {name} is not set")))?;
    let text = text.into_string().map_err(|_| Error::Unusable(format!("the variable {name} is not UTF-8")))?;
    usable(text.into_bytes())
}

/// The text, without one newline at its end.
fn usable(bytes: Vec<u8>) -> Result<SecretString, Error> {
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::Unusable("is larger than 64 KiB".to_owned()));
    }
    let mut text = String::from_utf8(bytes).map_err(|_| Error::Unusable("is not UTF-8".to_owned()))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.trim().is_empty() { Err(Error::Unusable("is empty".to_owned())) } else { Ok(text.into()) }
}

/// A text that was handed over is held for ever, and so is one that a mark belongs to.
fn gone() -> Error {
    Error::Unusable("is gone".to_owned())
}

fn unreadable(error: &io::Error) -> Error {
    let text = error.to_string();
    // "Permission denied (os error 13)" says the same twice.
    let what = format!("cannot be read: {}", text.split(" (os error ").next().unwrap_or_default());
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Error::Absent(what),
        _ => Error::Unusable(what),
    }
}

#[cfg(test)]
mod tests;
