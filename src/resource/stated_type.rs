//! The type that a line states, for files that hold lines of several types.

use serde::Deserialize;

use super::{Line, Reason};
use crate::fhir::ResourceType;

/// The `resourceType` of a line; `None` where FHIR does not know it.
///
/// # Errors
/// Why the line is not a resource.
pub fn stated_type(line: &Line) -> Result<Option<ResourceType>, Reason> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Stated {
        resource_type: Option<String>,
    }
    let text = std::str::from_utf8(&line.bytes).map_err(|error| Reason::NotUtf8 { at_byte: error.valid_up_to() })?;
    let stated: Stated = serde_json::from_str(text).map_err(|error| Reason::NotJson { at_byte: error.column() })?;
    Ok(stated.resource_type.ok_or(Reason::NoResourceType)?.parse().ok())
}
