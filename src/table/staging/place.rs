//! The place of staged files: a folder of each type below `_fhir_sync/staging`, which only the upsert of that type uses.

use std::{path::PathBuf, sync::Arc};

use deltalake::ObjectStore;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::fhir::ResourceType;
use crate::table::{Error, Root, name::OWN_DIRECTORY};

/// A folder with staged files.
pub struct Place {
    /// Below the root.
    directory: String,
    /// For people.
    shown: String,
    pub store: Arc<dyn ObjectStore>,
    /// Where the root is a folder.
    folder: Option<PathBuf>,
}

/// The folder of one type.
pub fn place(root: &Root, of: ResourceType) -> Result<Place, Error> {
    Place::at(format!("{OWN_DIRECTORY}/staging/{of}"), root)
}

impl Place {
    fn at(directory: String, root: &Root) -> Result<Self, Error> {
        Ok(Self {
            shown: root.place_of(&directory),
            store: root.delta(&directory)?.object_store(),
            folder: root.folder.as_ref().map(|folder| folder.join(&directory)),
            directory,
        })
    }

    pub fn join(&self, name: &str, root: &Root) -> Result<Self, Error> {
        Self::at(self.directory_of(name), root)
    }

    /// The folder `name` in this one, below the root.
    pub fn directory_of(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    pub fn failed(&self, error: impl Into<deltalake::DeltaTableError>) -> Error {
        Error::delta(&self.shown, error)
    }

    /// Removes the folder and everything in it.
    pub async fn remove(&self) -> Result<(), Error> {
        if let Some(folder) = &self.folder {
            return match std::fs::remove_dir_all(folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.failed(error)),
                _ => Ok(()),
            };
        }
        let found = self.store.list(None).map_ok(|file| file.location).boxed();
        let deleted: Result<Vec<_>, _> = self.store.delete_stream(found).try_collect().await;
        deleted.map(|_| ()).map_err(|error| self.failed(error))
    }
}
