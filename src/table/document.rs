//! Small documents beside the tables: what belongs to all of them, and to no commit.
//!
//! They are in the folder of the internal tables, whose name readers of the root skip. A document is replaced as a
//! whole.

use bytes::Bytes;
use deltalake::Path;
use object_store::{ObjectStoreExt as _, PutMode};

use super::{Error, Root};

/// The folder of everything that is ours and not a table of resources.
const FOLDER: &str = "_fhir_sync";
const PROBE: &str = "probe";

/// Whether a store keeps two writers from creating the same file: the order of commits relies on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exclusive {
    Held,
    Ignored,
}

impl Root {
    /// Creates a small file twice in an object store, and deletes it. In a folder it creates one: the file system keeps
    /// the promise.
    pub async fn probe(&self) -> Result<Exclusive, Error> {
        if let Some(folder) = &self.folder {
            let unusable = |error: std::io::Error| Error::Root { place: self.place(), reason: error.to_string() };
            return tempfile::NamedTempFile::new_in(folder).map(|_| Exclusive::Held).map_err(unusable);
        }
        let place = self.place_of_document(PROBE);
        let failed = |error| Error::delta(&place, error);
        let (store, path) = (self.delta(FOLDER)?.object_store(), Path::from(PROBE));
        // One that was left behind by a process that was killed.
        let left = store.delete(&path).await;
        if let Err(error) = left
            && !matches!(error, object_store::Error::NotFound { .. })
        {
            return Err(failed(error));
        }
        let create = || store.put_opts(&path, Bytes::from_static(b"probe").into(), PutMode::Create.into());
        create().await.map_err(failed)?;
        let again = create().await;
        store.delete(&path).await.map_err(failed)?;
        match again {
            Ok(_) => Ok(Exclusive::Ignored),
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                Ok(Exclusive::Held)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// `None` where it was never written.
    pub async fn read_document(&self, name: &str) -> Result<Option<Bytes>, Error> {
        if self.folder.as_ref().is_some_and(|folder| !folder.join(FOLDER).join(name).exists()) {
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
