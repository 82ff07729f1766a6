//! Small documents beside the tables: what belongs to all of them, and to no commit.
//!
//! They are in the folder of the internal tables, whose name readers of the root skip. A document is replaced as a
//! whole.

use bytes::Bytes;
use deltalake::Path;
use object_store::ObjectStoreExt as _;

use super::{Error, Root};

/// The folder of everything that is ours and not a table of resources.
const FOLDER: &str = "_fhir_sync";

impl Root {
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
