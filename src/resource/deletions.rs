//! Deletions: the lines of a `deleted` file.
//!
//! Each line is a Bundle of type `transaction`, whose entries are `DELETE Type/id`. Nothing else reports a deletion
//! (rule 94), and nothing else counts as one: a conditional delete (`Type?search`) could remove rows that the server
//! did not name. Each entry is judged by itself, so that one that is not understood does not keep the others.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{Line, Reason};
use crate::fhir::{Deletion, ResourceType, parse_instant};

/// What one entry of the Bundle says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DeletedEntry {
    Deletion(Deletion),
    /// Of a type that FHIR does not know, so that no table can have it.
    UnknownType,
    /// Not the deletion of one resource. `concerns` is the type whose rows it may be about; `None` may be all.
    NotUnderstood {
        concerns: Option<ResourceType>,
    },
}

/// The entries of one line, in their order.
///
/// # Errors
/// The line is not a Bundle.
pub fn deleted_entries(line: &Line) -> Result<Vec<DeletedEntry>, Reason> {
    let text = std::str::from_utf8(&line.bytes).map_err(|error| Reason::NotUtf8 { at_byte: error.valid_up_to() })?;
    let bundle: Value = serde_json::from_str(text).map_err(|error| Reason::NotJson { at_byte: error.column() })?;
    match bundle["resourceType"].as_str() {
        Some("Bundle") => {}
        Some(other) => return Err(Reason::OtherType { found: other.parse().ok() }),
        None => return Err(Reason::NoResourceType),
    }
    match &bundle["entry"] {
        Value::Null => Ok(Vec::new()),
        Value::Array(entries) => Ok(entries.iter().map(entry).collect()),
        _ => Ok(vec![DeletedEntry::NotUnderstood { concerns: None }]),
    }
}

fn entry(entry: &Value) -> DeletedEntry {
    let request = &entry["request"];
    let (Some(method), Some(url)) = (request["method"].as_str(), request["url"].as_str()) else {
        return DeletedEntry::NotUnderstood { concerns: None };
    };
    let Some(target) = Target::of(url) else { return DeletedEntry::NotUnderstood { concerns: None } };
    let Ok(resource_type) = target.type_name.parse() else {
        // `Patient/A1?_cascade=delete`: what looks like the type is an id.
        let concerns = target.before.and_then(|part| part.parse().ok());
        return concerns.map_or(DeletedEntry::UnknownType, |of| DeletedEntry::NotUnderstood { concerns: Some(of) });
    };
    match target.id {
        Some(id) if method.eq_ignore_ascii_case("DELETE") => {
            DeletedEntry::Deletion(Deletion { resource_type, id: id.to_owned(), at: time(entry) })
        }
        _ => DeletedEntry::NotUnderstood { concerns: Some(resource_type) },
    }
}

/// When the resource was deleted. The time of the Bundle is that of the export, and says nothing about the entry.
fn time(entry: &Value) -> Option<DateTime<Utc>> {
    let stated = [&entry["response"]["lastModified"], &entry["resource"]["meta"]["lastUpdated"]];
    stated.into_iter().find_map(|text| text.as_str().and_then(parse_instant))
}

/// What a request is about.
struct Target<'url> {
    type_name: &'url str,
    /// The part of the path before it.
    before: Option<&'url str>,
    /// `None` in a conditional request.
    id: Option<&'url str>,
}

impl<'url> Target<'url> {
    /// `Type/id`, also absolute and with `/_history/n` (rule 95), and `Type?search`. `None` where no type is named.
    fn of(url: &'url str) -> Option<Self> {
        let (path, id) = match url.split_once(['?', '#']) {
            Some((path, _)) => (path, None),
            None => {
                let path = url.split_once("/_history/").map_or(url, |(path, _)| path);
                let (rest, id) = path.rsplit_once('/')?;
                (rest, (!id.is_empty()).then_some(id))
            }
        };
        let mut parts = path.rsplit('/');
        let type_name = parts.next().filter(|name| is_type_name(name))?;
        Some(Self { type_name, before: parts.next(), id })
    }
}

/// Looks like a type, whether FHIR knows it or not.
fn is_type_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_uppercase()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(bundle: &Value) -> Vec<DeletedEntry> {
        deleted_entries(&Line { number: 1, offset: 0, bytes: bundle.to_string().into_bytes().into() }).unwrap()
    }

    fn one(entry: &Value) -> DeletedEntry {
        let meta = json!({"lastUpdated": "2026-01-01T00:00:00Z"});
        read(&json!({"resourceType": "Bundle", "type": "transaction", "meta": meta, "entry": [entry]})).remove(0)
    }

    fn request(method: &str, url: &str) -> Value {
        json!({"request": {"method": method, "url": url}})
    }

    /// (rules 95 and 99)
    #[test]
    fn a_deletion_is_read_in_every_form_of_its_url() {
        for url in ["Patient/p1", "https://ehr.example.org/fhir/Patient/p1", "Patient/p1/_history/3"] {
            let deletion = Deletion { resource_type: ResourceType::PATIENT, id: "p1".to_owned(), at: None };
            assert_eq!(one(&request("DELETE", url)), DeletedEntry::Deletion(deletion), "{url}");
        }
    }

    /// (rule 95)
    #[test]
    fn an_entry_that_is_not_the_deletion_of_one_resource_deletes_nothing_and_says_what_it_may_concern() {
        let patient = Some(ResourceType::PATIENT);
        for (method, url, concerns) in [
            ("DELETE", "Patient?name=x", patient),
            ("DELETE", "https://ehr.example.org/fhir/Patient?name=x", patient),
            ("PUT", "Patient/p1", patient),
            ("DELETE", "Patient/", patient),
            // Of an id that looks like a type.
            ("DELETE", "Patient/A123?_cascade=delete", patient),
            ("DELETE", "https://ehr.example.org/fhir/Patient/A123#x", patient),
            ("DELETE", "Patient/A123/", patient),
            ("DELETE", "Patient/A123/_history", patient),
            ("DELETE", "https://ehr.example.org/Organization/1/fhir/Patient/A123/", patient),
            ("DELETE", "p1", None),
            ("DELETE", "?_type=Patient", None),
        ] {
            let expected = DeletedEntry::NotUnderstood { concerns };
            assert_eq!(one(&request(method, url)), expected, "{method} {url}");
        }
        assert_eq!(one(&json!({})), DeletedEntry::NotUnderstood { concerns: None });
        assert_eq!(one(&json!({"request": "gone"})), DeletedEntry::NotUnderstood { concerns: None });
    }

    /// (rule 95)
    #[test]
    fn a_type_that_fhir_does_not_know_does_not_keep_the_others() {
        let entries = [
            request("DELETE", "Patient/p1"),
            request("DELETE", "https://x/Patient/fhir/AidboxThing/1"),
            request("DELETE", "Patient/p2"),
        ];
        let found = read(&json!({"resourceType": "Bundle", "entry": entries}));
        assert!(matches!(found[..], [DeletedEntry::Deletion(_), DeletedEntry::UnknownType, DeletedEntry::Deletion(_)]));
    }

    /// (rule 97)
    #[test]
    fn only_the_time_of_the_entry_is_the_time_of_the_deletion() {
        let at = parse_instant("2025-05-05T00:00:00Z");
        for place in [
            json!({"response": {"lastModified": "2025-05-05T00:00:00Z"}}),
            json!({"resource": {"meta": {"lastUpdated": "2025-05-05T00:00:00Z"}}}),
        ] {
            let mut entry = request("DELETE", "Patient/p1");
            entry.as_object_mut().unwrap().extend(place.as_object().unwrap().clone());
            assert!(matches!(one(&entry), DeletedEntry::Deletion(deletion) if deletion.at == at), "{entry}");
        }
    }

    #[test]
    fn a_line_that_is_not_a_bundle_is_an_error() {
        let read = |text: &str| deleted_entries(&Line { number: 1, offset: 0, bytes: text.as_bytes().to_vec().into() });
        assert!(matches!(read(r#"{"resourceType":"Patient","id":"p1"}"#), Err(Reason::OtherType { found: Some(_) })));
        assert!(matches!(read("[]"), Err(Reason::NoResourceType)));
        assert!(matches!(read("{"), Err(Reason::NotJson { .. })));
    }
}
