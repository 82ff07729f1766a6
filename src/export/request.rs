//! What a kick-off requests: a level, resource types, and since when.
//!
//! It becomes one URL. Parameters that real servers misread are not sent: no `_outputFormat` (Q-10,
//! Q-77), no repeated `_type`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use url::Url;

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
    /// The server may name files that are ready before the export is complete (rule 64).
    pub allow_partial_manifests: bool,
}

impl ExportRequest {
    /// # Errors
    /// A Group id that is not a path segment.
    pub(super) fn url(&self, base: &Url) -> Result<Url, Error> {
        let mut url = under(base, self.segments()?);
        let mut parameters = Vec::new();
        if !self.types.is_empty() {
            // BCDA answers 400 to a type that is named twice.
            let mut seen = BTreeSet::new();
            let types: Vec<_> =
                self.types.iter().filter(|kind| seen.insert(**kind)).map(|kind| kind.as_str()).collect();
            parameters.push(format!("_type={}", types.join(",")));
        }
        if let Some(since) = &self.since {
            let since: String = url::form_urlencoded::byte_serialize(since.as_bytes()).collect();
            parameters.push(format!("_since={since}"));
        }
        if self.allow_partial_manifests {
            parameters.push("allowPartialManifests=true".to_owned());
        }
        url.set_query((!parameters.is_empty()).then(|| parameters.join("&")).as_deref());
        Ok(url)
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
