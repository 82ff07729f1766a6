//! The tag of a resource with parts left out. A server should set it where it was asked for some elements only, and not
//! every server does; without it such a row would take the place of a whole one (rule 26).

use super::{
    Line,
    json::{Document, Tape, TokenKind},
};

const TAG: &str = r#"{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}"#;

/// Adds the tag to each line that is a resource without it. What is no resource stays as it is.
pub fn tag_subsetted(lines: &mut [Line]) {
    let mut tape = Tape::default();
    for line in lines {
        if let Some((at, text)) = addition(&mut tape, &line.bytes) {
            let (before, after) = line.bytes.split_at(at);
            line.bytes = [before, text.as_bytes(), after].concat().into();
        }
    }
}

/// What to add, and before which byte.
fn addition(tape: &mut Tape, bytes: &[u8]) -> Option<(usize, String)> {
    let document = tape.read(std::str::from_utf8(bytes).ok()?).ok()?;
    let inside = |at, kind| (document.kind(at) == kind).then(|| document.at_byte(at) + 1);
    let first = |text: String, is_only: bool| if is_only { text } else { text + "," };
    let is_empty = |at| document.members(at).next().is_none();
    let root = Document::ROOT;
    let Some(meta) = document.member(root, "meta") else {
        let text = format!(r#""meta":{{"tag":[{TAG}]}}"#);
        return Some((inside(root, TokenKind::Object)?, first(text, is_empty(root))));
    };
    let Some(tags) = document.member(meta, "tag") else {
        return Some((inside(meta, TokenKind::Object)?, first(format!(r#""tag":[{TAG}]"#), is_empty(meta))));
    };
    let code = |tag| document.member(tag, "code").and_then(|code| document.string(code));
    if document.items(tags).any(|tag| code(tag).as_deref() == Some("SUBSETTED")) {
        return None;
    }
    Some((inside(tags, TokenKind::Array)?, first(TAG.to_owned(), document.items(tags).next().is_none())))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn tagged(text: &str) -> String {
        let mut lines = [Line { number: 1, offset: 0, bytes: text.as_bytes().to_vec().into() }];
        tag_subsetted(&mut lines);
        let [line] = lines;
        String::from_utf8(line.bytes.to_vec()).unwrap()
    }

    /// Shows (rule 26).
    #[test]
    fn a_resource_without_the_tag_gets_it_and_nothing_else_changes() {
        let tag: Value = serde_json::from_str(TAG).unwrap();
        for text in [
            r#"{"resourceType":"Patient","id":"1","x":1.50}"#,
            "{}",
            r#"{"meta":{},"id":"1"}"#,
            r#" {"id":"1", "meta" : {"versionId":"2"}}"#,
            r#"{"meta":{"tag":[]}}"#,
            r#"{"meta":{"tag":[{"code":"other"}]}}"#,
        ] {
            let mut expected: Value = serde_json::from_str(text).unwrap();
            let mut tags = vec![tag.clone()];
            tags.extend(expected["meta"]["tag"].as_array().cloned().unwrap_or_default());
            expected["meta"]["tag"] = json!(tags);
            assert_eq!(serde_json::from_str::<Value>(&tagged(text)).unwrap(), expected, "{text}");
            assert_eq!(tagged(&tagged(text)), tagged(text), "once is enough");
        }
        assert!(tagged(r#"{"id":"1","x":1.50}"#).ends_with(r#""id":"1","x":1.50}"#));
    }

    #[test]
    fn what_is_no_resource_or_has_the_tag_stays_as_it_is() {
        for text in [
            r#"{"meta":{"tag":[{"code":"SUBSETTED"}]}}"#,
            "{broken",
            "[]",
            "",
            r#"{"meta":7}"#,
            r#"{"meta":{"tag":"x"}}"#,
        ] {
            assert_eq!(tagged(text), text);
        }
    }
}
