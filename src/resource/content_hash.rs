//! The content hash: what of a line counts as its content.
//!
//! Equal hashes mean equal content. The order of members, white space, and the way a character is escaped do not count.
//! The text of numbers does: 1.50 and 1.5 are different measurements.

use std::{cmp::Ordering, fmt::Write};

use super::json::{Document, TokenIndex, TokenKind};

/// Hashes documents; the next document uses its memory again.
#[derive(Default)]
pub struct ContentHash {
    canonical: String,
    members: Vec<Member>,
}

#[derive(Clone, Copy)]
struct Member {
    /// The first eight bytes of the name as a number: mostly enough to order two names.
    beginning: u64,
    name: TokenIndex,
    value: TokenIndex,
}

impl ContentHash {
    /// xxh3-64 of the canonical JSON: members sorted by name, no white space, one way to escape.
    pub fn of(&mut self, document: Document<'_>) -> u64 {
        self.canonical.clear();
        self.value(document, Document::ROOT);
        twox_hash::XxHash3_64::oneshot(self.canonical.as_bytes())
    }

    /// Recursion ends: a document has a limited depth.
    fn value(&mut self, document: Document<'_>, at: TokenIndex) {
        match document.kind(at) {
            TokenKind::Object => self.object(document, at),
            TokenKind::Array => {
                self.canonical.push('[');
                for item in document.items(at) {
                    self.value(document, item);
                    self.canonical.push(',');
                }
                self.canonical.push(']');
            }
            TokenKind::Escaped => self.escaped(document, at),
            TokenKind::String | TokenKind::Number | TokenKind::True | TokenKind::False | TokenKind::Null => {
                self.canonical.push_str(document.json(at));
            }
        }
    }

    fn object(&mut self, document: Document<'_>, at: TokenIndex) {
        let first = self.members.len();
        for (name, value) in document.members(at) {
            self.members.push(Member { beginning: beginning(document.text(name)), name, value });
        }
        // Stable, so that the order of two members with the same name counts: the decoder reads the first.
        self.members[first..].sort_by(|a, b| order(document, a, b));
        self.canonical.push('{');
        for index in first..self.members.len() {
            let Member { name, value, .. } = self.members[index];
            match document.kind(name) {
                TokenKind::Escaped => self.escaped(document, name),
                _ => self.canonical.push_str(document.json(name)),
            }
            self.canonical.push(':');
            self.value(document, value);
            self.canonical.push(',');
        }
        self.canonical.push('}');
        self.members.truncate(first);
    }

    fn escaped(&mut self, document: Document<'_>, at: TokenIndex) {
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

fn beginning(text: &str) -> u64 {
    let bytes = text.as_bytes();
    match bytes.first_chunk::<8>() {
        Some(bytes) => u64::from_be_bytes(*bytes),
        // Only an escaped name can have a byte 0.
        None => bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)) << (64 - 8 * bytes.len().max(1)),
    }
}

/// By name; escaped names by their unescaped text.
fn order(document: Document<'_>, a: &Member, b: &Member) -> Ordering {
    let text = || document.text(a.name).cmp(document.text(b.name));
    match (document.kind(a.name), document.kind(b.name)) {
        (TokenKind::String, TokenKind::String) => a.beginning.cmp(&b.beginning).then_with(text),
        _ => document.string(a.name).cmp(&document.string(b.name)).then_with(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::json::Tape;

    fn hash(text: &str) -> u64 {
        ContentHash::default().of(Tape::default().read(text).unwrap())
    }

    /// (Q-57)
    #[test]
    fn order_white_space_and_escapes_do_not_change_the_hash() {
        let plain = hash(r#"{"a":[1,{"x":"é/\"\n","y":true}],"b":null}"#);
        assert_eq!(plain, hash(r#" { "b" : null , "\u0061" : [ 1 , { "y":true, "x":"\u00e9\/\u0022\u000A"} ] } "#));
    }

    #[test]
    fn every_other_difference_changes_the_hash() {
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
    fn members_are_sorted_by_their_complete_names() {
        let sorted =
            r#"{"":0,"a":1,"ab":2,"abcdefg":3,"abcdefgh":4,"abcdefgha":5,"abcdefghb":6,"b":7,"\u00e9":8,"é2":9}"#;
        let mixed =
            r#"{"é2":9,"abcdefghb":6,"ab":2,"b":7,"\u00e9":8,"abcdefgh":4,"":0,"abcdefgha":5,"abcdefg":3,"a":1}"#;
        assert_eq!(hash(sorted), hash(mixed));
        let canonical = "{\"\":0,\"a\":1,\"ab\":2,\"abcdefg\":3,\"abcdefgh\":4,\"abcdefgha\":5,\"abcdefghb\":6,\"b\":7,\"é\":8,\"é2\":9,}";
        assert_eq!(hash(mixed), twox_hash::XxHash3_64::oneshot(canonical.as_bytes()));
    }

    #[test]
    fn the_hash_of_a_content_never_changes() {
        assert_eq!(hash(r#"{"id":"p1","resourceType":"Patient"}"#), hash(r#"{"resourceType":"Patient","id":"p1"}"#));
        assert_eq!(hash("[]"), twox_hash::XxHash3_64::oneshot(b"[]"));
    }
}
