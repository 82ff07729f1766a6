//! The head of a resource: type, id and version, which decide about its row.

use std::borrow::Cow;

use super::{Reason, leaf::instant_micros};
use crate::{
    fhir::{ResourceType, Version},
    resource::json::{Document, TokenIndex, TokenKind},
};

/// Of one resource of the expected type; `id` is not empty.
pub struct Head<'line> {
    pub id: Cow<'line, str>,
    /// As `meta` states it. Values of a wrong type count as absent.
    pub version: Version,
    /// The text of `meta.versionId`.
    pub version_id: Option<Cow<'line, str>>,
}

impl<'line> Head<'line> {
    /// Reads only the members of the root. A second `resourceType`, `id` or `meta` is an error: which one counts is
    /// unclear.
    pub fn read(document: Document<'line>, expected: ResourceType) -> Result<Self, Reason> {
        if document.kind(Document::ROOT) != TokenKind::Object {
            return Err(Reason::NotJson { at_byte: document.at_byte(Document::ROOT) });
        }
        let (mut resource_type, mut id, mut meta) = (None, None, None);
        for (name, value) in document.members(Document::ROOT) {
            let seen = match document.string(name).as_deref() {
                Some("resourceType") => resource_type.replace(value),
                Some("id") => id.replace(value),
                Some("meta") if meta.is_none() => meta.replace(value),
                _ => continue,
            };
            if seen.is_some() {
                return Err(Reason::NotJson { at_byte: document.at_byte(name) });
            }
        }
        let found = text(document, resource_type)?.ok_or(Reason::NoResourceType)?;
        if found != expected.as_str() {
            return Err(Reason::OtherType { found: found.parse().ok() });
        }
        let id = text(document, id)?.filter(|id| !id.is_empty()).ok_or(Reason::NoId)?;
        let (version, version_id) = meta.map(|at| version(document, at)).unwrap_or_default();
        Ok(Self { id, version, version_id })
    }
}

fn text(document: Document<'_>, at: Option<TokenIndex>) -> Result<Option<Cow<'_, str>>, Reason> {
    let Some(at) = at.filter(|at| document.kind(*at) != TokenKind::Null) else { return Ok(None) };
    let text = document.string(at).ok_or(Reason::NotJson { at_byte: document.at_byte(at) })?;
    Ok(Some(text))
}

fn version(document: Document<'_>, meta: TokenIndex) -> (Version, Option<Cow<'_, str>>) {
    let string = |at, name| document.member(at, name).and_then(|at| document.string(at));
    let mut tags = document.member(meta, "tag").into_iter().flat_map(|tags| document.items(tags));
    let version_id = string(meta, "versionId").or_else(|| number(document, meta, "versionId").map(Cow::Borrowed));
    let version = Version {
        last_updated_micros: string(meta, "lastUpdated").and_then(|text| instant_micros(&text)),
        version_id: version_id.as_deref().and_then(|id| id.parse().ok()),
        transaction_time_micros: None,
        subsetted: tags.any(|tag| string(tag, "code").as_deref() == Some("SUBSETTED")),
    };
    (version, version_id)
}

/// Some servers send their version as a number.
fn number<'line>(document: Document<'line>, at: TokenIndex, name: &str) -> Option<&'line str> {
    let value = document.member(at, name).filter(|value| document.kind(*value) == TokenKind::Number)?;
    Some(document.text(value))
}
