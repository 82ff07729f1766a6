//! The head of a resource: type, id and version, which decide about its row.

use std::borrow::Cow;

use super::Reason;
use crate::{
    fhir::{ResourceType, RowKey, TransactionTime, Version},
    resource::{
        json::{Document, OutlineValues, Scalar, TokenIndex, TokenKind},
        value::instant_micros,
    },
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
    /// Reads only the members of the root. A second `resourceType` or `id` is an error: which one counts is unclear. Of
    /// several `meta` the first counts, and the others are issues.
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
        Ok(meta.map(|at| Meta::of(document, at)).unwrap_or_default().head(id, |at| document.scalar(at)))
    }
}

impl Head<'_> {
    pub fn key(self, transaction_time: Option<TransactionTime>, line: u64, hash: u64) -> RowKey {
        RowKey { version: self.version.at(transaction_time), id: self.id.into_owned(), line, hash }
    }
}

/// Where the parts of a version are, as tokens of a document or as values of an outline.
#[derive(Default, Debug)]
pub struct Meta<At> {
    version_id: Option<At>,
    last_updated: Option<At>,
    /// `meta.tag.code`
    tags: Vec<At>,
}

impl Meta<TokenIndex> {
    pub fn of(document: Document<'_>, meta: TokenIndex) -> Self {
        let tags = document.member(meta, "tag").into_iter().flat_map(|tags| document.items(tags));
        Self {
            version_id: document.member(meta, "versionId"),
            last_updated: document.member(meta, "lastUpdated"),
            tags: tags.filter_map(|tag| document.member(tag, "code")).collect(),
        }
    }

    /// The same for values of an outline. Objects, arrays and nulls are among no values, and say nothing here either.
    pub fn in_outline(&self, values: &OutlineValues) -> Meta<usize> {
        let number = |at: &TokenIndex| values.number(*at);
        Meta {
            version_id: self.version_id.as_ref().and_then(number),
            last_updated: self.last_updated.as_ref().and_then(number),
            tags: self.tags.iter().filter_map(number).collect(),
        }
    }
}

impl<At: Copy> Meta<At> {
    pub fn head<'line>(&self, id: Cow<'line, str>, scalar: impl Fn(At) -> Scalar<'line>) -> Head<'line> {
        let string = |at: At| scalar(at).string();
        // Some servers send their version as a number.
        let version_id = self.version_id.and_then(|at| string(at).or_else(|| scalar(at).number().map(Cow::Borrowed)));
        let version = Version {
            last_updated_micros: self.last_updated.and_then(string).and_then(|text| instant_micros(&text)),
            version_id: version_id.as_deref().and_then(|id| id.parse().ok()),
            transaction_time_micros: None,
            subsetted: self.tags.iter().any(|at| string(*at).as_deref() == Some("SUBSETTED")),
        };
        Head { id, version, version_id }
    }
}

fn text(document: Document<'_>, at: Option<TokenIndex>) -> Result<Option<Cow<'_, str>>, Reason> {
    let Some(at) = at.filter(|at| document.kind(*at) != TokenKind::Null) else { return Ok(None) };
    let text = document.string(at).ok_or(Reason::NotJson { at_byte: document.at_byte(at) })?;
    Ok(Some(text))
}
