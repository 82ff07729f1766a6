//! Settings: where the tables are, and how they are read and written.

use std::collections::BTreeMap;

use super::{data_file::UpdateMode, date_partition::DatePartition};
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
