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
    has_escapes: bool,
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
            let has_escapes = document.kind(name) == TokenKind::Escaped;
            self.members.push(Member { beginning: document.beginning(name), has_escapes, name, value });
        }
        // Stable, so that the order of two members with the same name counts: the decoder reads the first.
        self.members[first..].sort_by(|a, b| order(document, a, b));
        self.canonical.push('{');
        for index in first..self.members.len() {
            self.member(document, self.members[index]);
            self.canonical.push(',');
        }
        self.canonical.push('}');
        self.members.truncate(first);
    }

    fn member(&mut self, document: Document<'_>, Member { has_escapes, name, value, .. }: Member) {
        // Mostly a member is in the line as it is in the canonical JSON; then it is copied at once.
        if let Some(until_value) = document.json_until(name, value)
            && !has_escapes
        {
            return match document.kind(value) {
                TokenKind::String | TokenKind::Number | TokenKind::True | TokenKind::False | TokenKind::Null => {
                    self.canonical.push_str(document.json_through(name, value));
                }
                TokenKind::Object | TokenKind::Array | TokenKind::Escaped => {
                    self.canonical.push_str(until_value);
                    self.value(document, value);
                }
            };
        }
        self.value(document, name);
        self.canonical.push(':');
        self.value(document, value);
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

/// By name; escaped names by their unescaped text.
fn order(document: Document<'_>, a: &Member, b: &Member) -> Ordering {
    let text = || document.text(a.name).cmp(document.text(b.name));
    if a.has_escapes || b.has_escapes {
        return document.string(a.name).cmp(&document.string(b.name)).then_with(text);
    }
    a.beginning.cmp(&b.beginning).then_with(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

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

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any_text().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(any_text(), inner, 0..8)
                    .prop_map(|members| members.into_iter().collect()),
            ]
        })
    }

    fn any_text() -> impl Strategy<Value = String> {
        prop_oneof!["[a-c]{0,12}", "abcdefg[a-c]{0,3}", "[a\"\\\\\n\té€]{0,4}"]
    }

    /// Slow and plain: `serde_json` sorts the members.
    fn canonical(value: &Value) -> String {
        match value {
            Value::Array(items) => format!("[{}]", items.iter().map(|item| canonical(item) + ",").collect::<String>()),
            Value::Object(members) => {
                let member = |(name, value): (&String, &Value)| {
                    format!("{}:{},", canonical(&Value::from(name.as_str())), canonical(value))
                };
                format!("{{{}}}", members.iter().map(member).collect::<String>())
            }
            Value::String(text) => {
                let character = |character: char| match character {
                    '"' | '\\' => format!("\\{character}"),
                    '\n' | '\t' => format!("\\u{:04x}", u32::from(character)),
                    _ => character.to_string(),
                };
                format!("\"{}\"", text.chars().map(character).collect::<String>())
            }
            other => other.to_string(),
        }
    }

    /// With the members of each object in the opposite order, and white space around every token.
    fn spaced(value: &Value) -> String {
        match value {
            Value::Array(items) => format!("[ {} ]", items.iter().map(spaced).collect::<Vec<_>>().join(" , ")),
            Value::Object(members) => {
                let member =
                    |(name, value): (&String, &Value)| format!("{} : {}", Value::from(name.as_str()), spaced(value));
                format!("{{ {} }}", members.iter().rev().map(member).collect::<Vec<_>>().join(" , "))
            }
            other => other.to_string(),
        }
    }

    proptest! {
        /// (Q-57)
        #[test]
        fn the_hash_is_that_of_the_canonical_json_however_the_line_is_written(value in any_json()) {
            let expected = twox_hash::XxHash3_64::oneshot(canonical(&value).as_bytes());
            prop_assert_eq!(hash(&value.to_string()), expected);
            prop_assert_eq!(hash(&spaced(&value)), expected);
        }
    }
}
