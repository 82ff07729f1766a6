//! The tag of a resource with parts left out. A server should set it where it was asked for some elements only, and not
//! every server does; without it such a row would take the place of a whole one (rule 26).

use std::ops::Range;

use super::{
    Line,
    json::{Document, Tape, TokenKind},
};
use crate::fhir::ResourceType;

const TAG: &str = r#"{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}"#;

/// Adds the tag to each line that is a resource of this type without it. What is no such resource stays as it is: its
/// rows may be whole.
pub fn tag_subsetted(lines: &mut [Line], resource_type: ResourceType) {
    let mut tape = Tape::default();
    for line in lines {
        if let Some((place, text)) = addition(&mut tape, &line.bytes, resource_type) {
            let (before, after) = (&line.bytes[..place.start], &line.bytes[place.end..]);
            line.bytes = [before, text.as_bytes(), after].concat().into();
        }
    }
}

/// What to add, and in the place of which bytes: of none, or of a `meta` or `tag` that can have no tag.
fn addition(tape: &mut Tape, bytes: &[u8], resource_type: ResourceType) -> Option<(Range<usize>, String)> {
    let document = tape.read(std::str::from_utf8(bytes).ok()?).ok()?;
    let root = Document::ROOT;
    let stated = document.member(root, "resourceType").and_then(|at| document.string(at));
    if stated.as_deref() != Some(resource_type.as_str()) {
        return None;
    }
    let inside = |at| document.at_byte(at) + 1..document.at_byte(at) + 1;
    let whole = |at| document.json_start(at)..document.json_start(at) + document.json(at).len();
    let first = |text: String, is_only: bool| if is_only { text } else { text + "," };
    let is_empty = |at| document.members(at).next().is_none();
    let (tags, meta) = (format!("[{TAG}]"), format!(r#"{{"tag":[{TAG}]}}"#));
    let Some(at_meta) = document.member(root, "meta") else {
        return Some((inside(root), first(format!(r#""meta":{meta}"#), is_empty(root))));
    };
    if document.kind(at_meta) != TokenKind::Object {
        return Some((whole(at_meta), meta));
    }
    let Some(at_tags) = document.member(at_meta, "tag") else {
        return Some((inside(at_meta), first(format!(r#""tag":{tags}"#), is_empty(at_meta))));
    };
    if document.kind(at_tags) != TokenKind::Array {
        return Some((whole(at_tags), tags));
    }
    let code = |tag| document.member(tag, "code").and_then(|code| document.string(code));
    if document.items(at_tags).any(|tag| code(tag).as_deref() == Some("SUBSETTED")) {
        return None;
    }
    Some((inside(at_tags), first(TAG.to_owned(), document.items(at_tags).next().is_none())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tagged(text: &str) -> String {
        let mut lines = [Line { number: 1, offset: 0, bytes: text.as_bytes().to_vec().into() }];
        tag_subsetted(&mut lines, ResourceType::PATIENT);
        let [line] = lines;
        String::from_utf8(line.bytes.to_vec()).unwrap()
    }

    /// Shows (rule 26).
    #[test]
    fn a_resource_without_the_tag_gets_it_and_nothing_else_changes() {
        let tag: Value = serde_json::from_str(TAG).unwrap();
        for members in [
            r#""id":"1","x":1.50"#,
            r#""meta":{},"id":"1""#,
            r#""id":"1", "meta" : {"versionId":"2"}"#,
            r#""meta":{"tag":[]}"#,
            r#""meta":{"tag":[{"code":"other"}]}"#,
            r#""meta":null"#,
            r#""meta": 7 ,"id":"1""#,
            r#""meta":{"tag":null,"versionId":"2"}"#,
            r#""meta":{"tag":"x"}"#,
            r#""m\u0065ta":{"versionId":"2"}"#,
        ] {
            let text = format!(r#" {{{members},"resourceType":"Patient"}}"#);
            let mut expected: Value = serde_json::from_str(&text).unwrap();
            let meta = &mut expected["meta"];
            let mut tags = vec![tag.clone()];
            tags.extend(meta["tag"].as_array().cloned().unwrap_or_default());
            if !meta.is_object() {
                *meta = json!({});
            }
            meta["tag"] = json!(tags);
            assert_eq!(serde_json::from_str::<Value>(&tagged(&text)).unwrap(), expected, "{text}");
            assert_eq!(tagged(&tagged(&text)), tagged(&text), "once is enough");
        }
        assert!(tagged(r#"{"resourceType":"Patient","x":1.50}"#).ends_with(r#""resourceType":"Patient","x":1.50}"#));
    }

    #[test]
    fn what_is_no_resource_or_has_the_tag_stays_as_it_is() {
        for text in [
            r#"{"resourceType":"Patient","meta":{"tag":[{"code":"SUBSETTED"}]}}"#,
            r#"{"resourceType":"Patient","meta":{"t\u0061g":[{"code":"SUBSETTED"}]}}"#,
            // It may be a whole resource, which comes to the rows of its type.
            r#"{"resourceType":"Observation"}"#,
            r#"{"id":"1"}"#,
            "{}",
            "{broken",
            "[]",
            "",
        ] {
            assert_eq!(tagged(text), text);
        }
    }
}
