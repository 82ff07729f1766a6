//! The name of a table: what its rows are, and which folder below the root it is in.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::fhir::ResourceType;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TableName {
    /// The resources of one type.
    Resources(ResourceType),
    /// What was removed from the tables of all types.
    Tombstones,
    /// What each run did.
    Runs,
    /// Lines that are not resources.
    Quarantine,
    /// Who joined and left the groups of exports.
    Members,
}

/// The table of tombstones, as people call it.
const DELETED: &str = "deleted";
/// The ledger, as people call it.
const RUNS: &str = "runs";
/// The table of lines that are not resources, as people call it.
const QUARANTINE: &str = "quarantine";
/// The table of who joined and left.
const MEMBERS: &str = "members";

/// The folder below the root for what is not a table of resources.
pub(super) const OWN_DIRECTORY: &str = "_fhir_sync";

/// The partition column of the table of deletions.
pub(super) const DELETED_FROM: &str = "resource_type";

impl TableName {
    /// The tables that are not of a resource type.
    pub const OWN: [Self; 4] = [Self::Tombstones, Self::Runs, Self::Quarantine, Self::Members];

    /// The folder below the root. The suffix is what lets Pathling's `read.delta` find the tables of resources.
    pub(super) fn directory(self) -> String {
        match self {
            Self::Resources(resource_type) => format!("{resource_type}.parquet"),
            Self::Tombstones => format!("{OWN_DIRECTORY}/{DELETED}"),
            Self::Runs => format!("{OWN_DIRECTORY}/{RUNS}"),
            Self::Quarantine => format!("{OWN_DIRECTORY}/{QUARANTINE}"),
            Self::Members => format!("{OWN_DIRECTORY}/{MEMBERS}"),
        }
    }

    /// The partition column that the table always has. Its values name the tables that the deleted resources were in.
    pub(super) fn partition_column(self) -> Option<&'static str> {
        (self == Self::Tombstones).then_some(DELETED_FROM)
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Resources(resource_type) => resource_type.as_str(),
            Self::Tombstones => DELETED,
            Self::Runs => RUNS,
            Self::Quarantine => QUARANTINE,
            Self::Members => MEMBERS,
        }
    }
}

impl From<ResourceType> for TableName {
    fn from(resource_type: ResourceType) -> Self {
        Self::Resources(resource_type)
    }
}

impl fmt::Display for TableName {
    /// Padded to the width of the format.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.as_str())
    }
}

impl FromStr for TableName {
    type Err = <ResourceType as FromStr>::Err;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            DELETED => Ok(Self::Tombstones),
            RUNS => Ok(Self::Runs),
            QUARANTINE => Ok(Self::Quarantine),
            MEMBERS => Ok(Self::Members),
            resource_type => resource_type.parse().map(Self::Resources),
        }
    }
}
