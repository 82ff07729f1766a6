//! The content hash: what of a line counts as its content.
//!
//! Equal hashes stand for equal content: neither the order of members, nor white space, nor the way a character is escaped
//! matters. The text of numbers does: 1.50 is another measurement than 1.5.

use std::fmt::Write;

use super::json::{At, Document, Kind};

/// Hashes documents; its memory serves for the next one.
#[derive(Default)]
pub struct ContentHash {
    canonical: String,
    members: Vec<(At, At)>,
}

impl ContentHash {
    /// xxh3-64 of the canonical JSON: members sorted by name, no white space, one way to escape.
    pub fn of(&mut self, document: Document<'_>) -> u64 {
        self.canonical.clear();
        self.value(document, Document::ROOT);
        twox_hash::XxHash3_64::oneshot(self.canonical.as_bytes())
    }

    /// Recursion ends: a document has a limited depth.
    fn value(&mut self, document: Document<'_>, at: At) {
        match document.kind(at) {
            Kind::Object => self.object(document, at),
            Kind::Array => {
                self.canonical.push('[');
                for item in document.items(at) {
                    self.value(document, item);
                    self.canonical.push(',');
                }
                self.canonical.push(']');
            }
            Kind::Escaped => self.escaped(document, at),
            Kind::String | Kind::Number | Kind::True | Kind::False | Kind::Null => {
                self.canonical.push_str(document.json(at));
            }
        }
    }

    fn object(&mut self, document: Document<'_>, at: At) {
        let first = self.members.len();
        self.members.extend(document.members(at));
        // Stable, so that the order of two members of the same name counts: it decides which one is read.
        self.members[first..].sort_by(|(a, _), (b, _)| match (document.kind(*a), document.kind(*b)) {
            (Kind::String, Kind::String) => document.text(*a).cmp(document.text(*b)),
            _ => document.string(*a).cmp(&document.string(*b)).then_with(|| document.text(*a).cmp(document.text(*b))),
        });
        self.canonical.push('{');
        for index in first..self.members.len() {
            let (name, value) = self.members[index];
            self.value(document, name);
            self.canonical.push(':');
            self.value(document, value);
            self.canonical.push(',');
        }
        self.canonical.push('}');
        self.members.truncate(first);
    }

    fn escaped(&mut self, document: Document<'_>, at: At) {
        let Some(text) = document.string(at) else {
            self.canonical.push_str(document.json(at));
            return;
        };
        self.canonical.push('"');
        for character in text.chars() {
            match character {
                '"' => self.canonical.push_str("\\\""),
                '\\' => self.canonical.push_str("\\\\"),
                '\0'..=' ' if character != ' ' => {
                    // Writing to a String cannot fail.
                    let _ = write!(self.canonical, "\\u{:04x}", u32::from(character));
                }
                _ => self.canonical.push(character),
            }
        }
        self.canonical.push('"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::json::Tape;

    fn hash(text: &str) -> u64 {
        ContentHash::default().of(Tape::default().read(text).unwrap())
    }

    #[test]
    fn order_white_space_and_escapes_are_no_content() {
        let plain = hash(r#"{"a":[1,{"x":"é/\"\n","y":true}],"b":null}"#);
        assert_eq!(plain, hash(r#" { "b" : null , "\u0061" : [ 1 , { "y":true, "x":"\u00e9\/\u0022\u000A"} ] } "#));
    }

    #[test]
    fn everything_else_is_content() {
        let plain = hash(r#"{"a":[1.50,"x"],"b":{}}"#);
        for other in [
            r#"{"a":[1.5,"x"],"b":{}}"#,
            r#"{"a":["x",1.50],"b":{}}"#,
            r#"{"a":[1.50,"X"],"b":{}}"#,
            r#"{"a":[1.50,"x"],"b":[]}"#,
            r#"{"a":[1.50,"x"]}"#,
            r#"{"a":[1.50,"x","b"],"":{}}"#,
            r#"{"a":[1.50,"x"],"b":"{}"}"#,
        ] {
            assert_ne!(plain, hash(other), "{other}");
        }
        assert_ne!(hash(r#"{"a":1,"a":2}"#), hash(r#"{"a":2,"a":1}"#));
    }

    #[test]
    fn the_hash_of_a_content_never_changes() {
        assert_eq!(hash(r#"{"id":"p1","resourceType":"Patient"}"#), hash(r#"{"resourceType":"Patient","id":"p1"}"#));
        assert_eq!(hash("[]"), twox_hash::XxHash3_64::oneshot(b"[]"));
    }
}
