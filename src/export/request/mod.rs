//! What a kick-off requests: a level, resource types, since when, and the parameters that the operator has set.
//!
//! There is one list of parameters and two writers: a query for GET, a `Parameters` resource for POST (rules 11, 12).
//! Parameters that real servers misread are not sent by default: no `_outputFormat`, no repeated `_type`
//!

mod parameters;
mod written;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use url::Url;

pub use self::parameters::ExportParameters;
pub(super) use self::{
    parameters::Parameter,
    written::{Lists, body, query},
};
use super::Error;
use crate::fhir::ResourceType;

/// Whose data are exported (rule 3).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Level {
    System,
    Patient,
    /// The logical id of a Group.
    Group(String),
}

impl Level {
    pub fn word(&self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Patient => "patient",
            Self::Group(_) => "group",
        }
    }

    pub fn group(&self) -> Option<&str> {
        match self {
            Self::System | Self::Patient => None,
            Self::Group(id) => Some(id),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportRequest {
    pub level: Level,
    /// Without any the server decides, which rarely means "all".
    pub types: Vec<ResourceType>,
    /// An instant in UTC with milliseconds, as [`crate::fhir::TransactionTime::since`] writes it (rule 15).
    pub since: Option<String>,
    pub parameters: ExportParameters,
    /// The server may name files that are ready before the export is complete (rule 64).
    pub allow_partial_manifests: bool,
}

impl ExportRequest {
    /// Of these types, since then, and nothing else.
    pub fn new(level: Level, types: Vec<ResourceType>, since: Option<String>) -> Self {
        let parameters = ExportParameters::default();
        Self { level, types, since, parameters, allow_partial_manifests: false }
    }

    /// Where it is sent; without a query.
    ///
    /// # Errors
    /// A Group id that is not a path segment.
    pub(super) fn url(&self, base: &Url) -> Result<Url, Error> {
        Ok(under(base, self.segments()?))
    }

    /// All that is sent, in the same order for both writers.
    pub(super) fn parameters(&self) -> Vec<Parameter> {
        parameters::of(self)
    }

    /// Patients are named in the body of a POST only (rule 27).
    pub(super) fn needs_post(&self) -> bool {
        !self.parameters.patients.is_empty()
    }

    fn segments(&self) -> Result<Vec<&str>, Error> {
        match &self.level {
            Level::System => Ok(vec!["$export"]),
            Level::Patient => Ok(vec!["Patient", "$export"]),
            // "." and ".." disappear from a URL: another resource would be requested.
            Level::Group(id) if matches!(id.as_str(), "" | "." | "..") => {
                Err(Error::Config { setting: "group id", reason: format!("{id:?} is not the id of a Group") })
            }
            Level::Group(id) => Ok(vec!["Group", id, "$export"]),
        }
    }
}

/// A URL below the FHIR base, whose own path is kept; each segment is percent-encoded.
pub(super) fn under<'a>(base: &Url, segments: impl IntoIterator<Item = &'a str>) -> Url {
    let mut url = base.clone();
    // Only a URL without a host has no segments; `Client::new` refuses those.
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

#[cfg(test)]
mod tests;
