//! Settings: where the tables are, and how they are read and written.
//!
//! What may not be looked at is not absent: a folder that this user cannot enter is an error, and no table that does
//! not exist yet.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use super::{Error, data_file::UpdateMode, date_partition::DatePartition};
use crate::{
    fhir::ResourceType,
    store::{Location, Options, cache},
};

/// Where the tables are and how they are reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A folder, or the URL of a prefix in an object store.
    pub root: Location,
    /// How the object store is reached; of no use for a folder.
    pub storage_options: Options,
    /// What is kept of an object store on the local disk; `None` for nothing.
    pub cache: Option<cache::Settings>,
    pub update_mode: UpdateMode,
    /// Whether the change data feed is switched on for tables where nobody has set that property.
    pub change_data_feed: bool,
    /// For all row groups that are being written for one type.
    pub row_groups_bytes: usize,
    /// The types whose tables are partitioned.
    pub partitions: BTreeMap<ResourceType, DatePartition>,
}

impl Config {
    pub const DEFAULT_CHANGE_DATA_FEED: bool = false;
    pub const DEFAULT_ROW_GROUPS_BYTES: usize = 128 * 1024 * 1024;

    /// With the default of everything else.
    pub fn new(root: Location) -> Self {
        Self {
            root,
            storage_options: Options::default(),
            cache: None,
            update_mode: UpdateMode::default(),
            change_data_feed: Self::DEFAULT_CHANGE_DATA_FEED,
            row_groups_bytes: Self::DEFAULT_ROW_GROUPS_BYTES,
            partitions: BTreeMap::new(),
        }
    }
}

/// Checks that the tables can be looked for in a folder.
pub(super) fn check_readable(folder: &Path) -> Result<(), Error> {
    let unusable = |reason: &str| Err(Error::Root { place: folder.display().to_string(), reason: reason.to_owned() });
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::NotARoot { place: folder.display().to_string(), what: "no folder" }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            unusable("there is no such folder; no sync has created it yet, or it is not mounted")
        }
        Err(error) => Err(hidden(folder, error)),
    }
}

/// Whether there is anything at this path.
pub(super) fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(|error| hidden(path, error))
}

/// What is at this path cannot be known.
fn hidden(path: &Path, error: io::Error) -> Error {
    let place = path.display().to_string();
    match error.kind() {
        ErrorKind::PermissionDenied => Error::Root { place, reason: reason(&error) },
        _ => Error::delta(&place, error),
    }
}

/// Why a folder cannot be used, with the way out.
pub(super) fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::PermissionDenied => {
            format!(
                "{}; give the command as the user of the service or with sudo, or change owner and mode",
                error.kind()
            )
        }
        _ => error.to_string(),
    }
}

/// Whether every user of this machine may enter a folder: it and those above let others in.
pub(super) fn is_open_to_all(folder: &Path) -> bool {
    folder.ancestors().all(|folder| fs::metadata(folder).is_ok_and(|found| found.mode() & 0o001 != 0))
}
