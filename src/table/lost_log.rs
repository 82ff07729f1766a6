//! A lost log: files of a Delta log are left, and no commit and no checkpoint among them.
//!
//! Such a table was there. To take it for one that is not there yet would create a new one on top of its data files.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use deltalake::DeltaTable;
use futures::{StreamExt as _, future};
use object_store::path::Path;

use super::Error;

/// The folders that were seen without a log, and not with one since. What was never there cannot be lost, so a store is
/// asked once for each.
#[derive(Debug, Default)]
pub struct NoLogs(Mutex<BTreeSet<String>>);

impl NoLogs {
    /// Told of each table that has a log.
    pub fn has_log(&self, place: &str) {
        self.lock().remove(place);
    }

    /// Asked of a table that has no commit. A creation that was killed leaves an empty folder, or a commit that did not
    /// get its name.
    pub async fn check(&self, table: &DeltaTable, place: &str) -> Result<(), Error> {
        if self.lock().contains(place) {
            return Ok(());
        }
        let store = table.object_store();
        let mut files = store.list(Some(&Path::from("_delta_log"))).filter(|file| {
            let name = file.as_ref().ok().and_then(|file| file.location.filename());
            future::ready(name.is_none_or(|name| name == "_last_checkpoint" || is_of_version(name)))
        });
        match files.next().await {
            None => {
                self.lock().insert(place.to_owned());
                Ok(())
            }
            Some(Ok(file)) => {
                let left = file.location.filename().unwrap_or_default().to_owned();
                Err(Error::LogLost { place: place.to_owned(), left })
            }
            Some(Err(error)) => Err(Error::delta(place, error)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of_version(name: &str) -> bool {
    name.split_once('.')
        .is_some_and(|(version, _)| version.len() == 20 && version.bytes().all(|byte| byte.is_ascii_digit()))
}
