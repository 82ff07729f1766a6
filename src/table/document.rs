//! Small documents beside the tables: what belongs to all of them, and to no commit.
//!
//! They are in the folder of the internal tables, whose name readers of the root skip. A document is replaced as a
//! whole.

use bytes::Bytes;
use deltalake::Path;
use futures::TryStreamExt as _;
use object_store::{ObjectStoreExt as _, PutMode};

use super::{
    Error, Root,
    config::{exists, reason},
};
use crate::store::{Cause, Failure};

/// The folder of everything that is ours and not a table of resources.
const FOLDER: &str = "_fhir_sync";
/// The document by which permissions are tried.
const TRIAL: &str = "trial";

/// Whether a store keeps two writers from creating the same file: the order of commits relies on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exclusive {
    Held,
    Ignored,
}

/// What was tried, and not allowed.
struct Tried {
    place: String,
    missing: Vec<&'static str>,
}

impl Tried {
    /// Whether it was done. What is not there may be deleted and read.
    fn note<T>(&mut self, what: &'static str, done: object_store::Result<T>) -> Result<bool, Error> {
        let error = match done {
            Ok(_) => return Ok(true),
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(error) => Error::delta(&self.place, error),
        };
        match error {
            Error::StoreFailed { failure: Failure { cause: Cause::Denied, .. }, .. } => {
                if !self.missing.contains(&what) {
                    self.missing.push(what);
                }
                Ok(false)
            }
            error => Err(error),
        }
    }
}

impl Root {
    /// Refuses a root that is a table itself: its vacuum would delete the tables below it.
    pub async fn refuse_a_table(&self) -> Result<(), Error> {
        let is_table = match (&self.folder, &self.store) {
            (Some(folder), _) => exists(&folder.join("_delta_log"))?,
            (None, Some(_)) => {
                let listed = self.delta("_delta_log")?.object_store().list(None).try_next().await;
                listed.map_err(|error| Error::delta(&self.place(), error))?.is_some()
            }
            (None, None) => false,
        };
        if is_table { Err(Error::NotARoot { place: self.place(), what: "a Delta table" }) } else { Ok(()) }
    }

    /// Lists, creates a small file twice, reads it and deletes it in an object store. In a folder it creates one: the
    /// file system keeps the promise.
    ///
    /// # Errors
    /// [`Error::Permissions`] with everything that the credentials may not do.
    pub async fn try_permissions(&self) -> Result<Exclusive, Error> {
        if let Some(folder) = &self.folder {
            let unusable = |error: std::io::Error| Error::Root { place: self.place(), reason: reason(&error) };
            return tempfile::NamedTempFile::new_in(folder).map(|_| Exclusive::Held).map_err(unusable);
        }
        let (store, path) = (self.delta(FOLDER)?.object_store(), Path::from(TRIAL));
        let mut tried = Tried { place: self.place_of_document(TRIAL), missing: Vec::new() };
        tried.note("list", store.list(None).try_next().await)?;
        // One that was left behind by a process that was killed.
        tried.note("delete", store.delete(&path).await)?;
        let create = || store.put_opts(&path, Bytes::from_static(b"trial").into(), PutMode::Create.into());
        let mut exclusive = Exclusive::Held;
        if tried.note("write", create().await)? {
            tried.note("read", store.get(&path).await)?;
            exclusive = match create().await {
                Ok(_) => Exclusive::Ignored,
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    Exclusive::Held
                }
                Err(error) => return Err(Error::delta(&tried.place, error)),
            };
            tried.note("delete", store.delete(&path).await)?;
        }
        if tried.missing.is_empty() {
            return Ok(exclusive);
        }
        Err(Error::Permissions { place: tried.place, missing: tried.missing.join(", ") })
    }

    /// `None` where it was never written.
    pub async fn read_document(&self, name: &str) -> Result<Option<Bytes>, Error> {
        if let Some(folder) = &self.folder
            && !exists(&folder.join(FOLDER).join(name))?
        {
            return Ok(None);
        }
        let failed = |error| Error::delta(&self.place_of_document(name), error);
        let found = match self.delta(FOLDER)?.object_store().get(&Path::from(name)).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            found => found.map_err(failed)?,
        };
        Ok(Some(found.bytes().await.map_err(failed)?))
    }

    pub async fn write_document(&self, name: &str, body: Bytes) -> Result<(), Error> {
        let place = self.place_of_document(name);
        if let Some(folder) = &self.folder {
            std::fs::create_dir_all(folder.join(FOLDER)).map_err(|error| Error::delta(&place, error))?;
        }
        let written = self.delta(FOLDER)?.object_store().put(&Path::from(name), body.into()).await;
        written.map_err(|error| Error::delta(&place, error))?;
        Ok(())
    }

    /// Where a document is, for people.
    pub fn place_of_document(&self, name: &str) -> String {
        self.place_of(&format!("{FOLDER}/{name}"))
    }
}
