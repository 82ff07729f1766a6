//! Deletions: the lines of a `deleted` file.
//!
//! Each line is a Bundle of type `transaction`, whose entries are `DELETE Type/id`. Nothing else reports a deletion
//! (rule 94), and nothing else counts as one: a conditional delete (`Type?search`) could remove rows that the server
//! did not name.

use serde::Deserialize;

use super::{Line, Reason};
use crate::fhir::{Deletion, parse_instant};

/// The deletions of one line, in the order of its entries; `Err` if anything in it is not the deletion of one resource.
pub fn deletions(line: &Line) -> Result<Vec<Deletion>, Reason> {
    let text = std::str::from_utf8(&line.bytes).map_err(|error| Reason::NotUtf8 { at_byte: error.valid_up_to() })?;
    let bundle: Bundle = serde_json::from_str(text).map_err(|error| Reason::NotJson { at_byte: error.column() })?;
    if bundle.resource_type != "Bundle" {
        return Err(Reason::OtherType { found: bundle.resource_type.parse().ok() });
    }
    let at = bundle.meta.and_then(|meta| meta.last_updated).as_deref().and_then(parse_instant);
    let entries = bundle.entry.into_iter().enumerate();
    entries
        .map(|(index, entry)| {
            let (resource_type, id) = target(&entry.request).ok_or(Reason::NoDeletion { entry: index })?;
            Ok(Deletion { resource_type, id, at })
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    resource_type: String,
    meta: Option<crate::fhir::Meta>,
    #[serde(default)]
    entry: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    request: Request,
}

#[derive(Deserialize)]
struct Request {
    method: String,
    url: String,
}

/// `Type/id`, also absolute and with `/_history/n` (rule 95).
fn target(request: &Request) -> Option<(crate::fhir::ResourceType, String)> {
    if request.method != "DELETE" || request.url.contains(['?', '#']) {
        return None;
    }
    let path = request.url.split_once("/_history/").map_or(request.url.as_str(), |(path, _)| path);
    let (rest, id) = path.rsplit_once('/')?;
    let resource_type = rest.rsplit('/').next()?.parse().ok()?;
    (!id.is_empty()).then(|| (resource_type, id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Deletion>, Reason> {
        deletions(&Line { number: 1, bytes: text.as_bytes().to_vec() })
    }

    fn bundle(method: &str, url: &str) -> String {
        format!(
            r#"{{"resourceType":"Bundle","type":"transaction","meta":{{"lastUpdated":"2026-01-01T00:00:00Z"}},"entry":[{{"request":{{"method":"{method}","url":"{url}"}}}}]}}"#
        )
    }

    #[test]
    fn a_deletion_is_read_in_every_form_of_its_url() {
        for url in ["Patient/p1", "https://ehr.example.org/fhir/Patient/p1", "Patient/p1/_history/3"] {
            let found = read(&bundle("DELETE", url)).unwrap();
            assert_eq!((found[0].resource_type.as_str(), found[0].id.as_str()), ("Patient", "p1"), "{url}");
            assert_eq!(found[0].at, parse_instant("2026-01-01T00:00:00Z"));
        }
    }

    #[test]
    fn an_entry_that_is_not_the_deletion_of_one_resource_deletes_nothing() {
        for (method, url) in
            [("DELETE", "Patient?name=x"), ("PUT", "Patient/p1"), ("DELETE", "p1"), ("DELETE", "Patient/")]
        {
            assert_eq!(read(&bundle(method, url)), Err(Reason::NoDeletion { entry: 0 }), "{method} {url}");
        }
        assert!(matches!(read(r#"{"resourceType":"Patient","id":"p1"}"#), Err(Reason::OtherType { found: Some(_) })));
    }
}
