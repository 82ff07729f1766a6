//! The head of a resource: type, id and meta, which decide about its row.

use std::borrow::Cow;

use super::Reason;
use crate::{
    fhir::{Meta, ResourceType, Tag},
    resource::json::{Document, TokenIndex, TokenKind},
};

/// Of one resource of the expected type; `id` is not empty.
pub struct Head<'line> {
    pub id: Cow<'line, str>,
    /// Values of a wrong type count as absent.
    pub meta: Meta,
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
        Ok(Self { id, meta: meta.map(|at| self::meta(document, at)).unwrap_or_default() })
    }
}

fn text(document: Document<'_>, at: Option<TokenIndex>) -> Result<Option<Cow<'_, str>>, Reason> {
    let Some(at) = at.filter(|at| document.kind(*at) != TokenKind::Null) else { return Ok(None) };
    let text = document.string(at).ok_or(Reason::NotJson { at_byte: document.at_byte(at) })?;
    Ok(Some(text))
}

fn meta(document: Document<'_>, at: TokenIndex) -> Meta {
    let string = |at, name| document.member(at, name).and_then(|at| document.string(at)).map(Cow::into_owned);
    let tags = document.member(at, "tag").into_iter().flat_map(|tags| document.items(tags));
    Meta {
        last_updated: string(at, "lastUpdated"),
        version_id: string(at, "versionId").or_else(|| number(document, at, "versionId")),
        tag: tags.map(|tag| Tag { code: string(tag, "code") }).collect(),
    }
}

/// Some servers send their version as a number.
fn number(document: Document<'_>, at: TokenIndex, name: &str) -> Option<String> {
    let value = document.member(at, name).filter(|value| document.kind(*value) == TokenKind::Number)?;
    Some(document.text(value).to_owned())
}
