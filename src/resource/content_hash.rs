//! The content hash: what of a line counts as its content.
//!
//! Equal hashes mean equal content. The order of members, white space, and the way a character is escaped do not count.
//! The text of numbers does: 1.50 and 1.5 are different measurements.

use std::{cmp::Ordering, fmt::Write as _};

use super::json::{Document, OutlineValues, Scalar, TokenIndex, TokenKind, Value};

/// Hashes documents; the next document uses its memory again.
#[derive(Default, Debug)]
pub struct ContentHash {
    canonical: String,
    members: Vec<Member>,
}

/// The canonical JSON of all documents with the same outline: its text, and a value between two pieces of it.
#[derive(Default, Debug)]
pub struct HashTemplate {
    fixed: String,
    /// Where in `fixed` the text before a value ends, and the number of the value.
    values: Vec<(usize, usize)>,
}

#[derive(Clone, Copy, Debug)]
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
        write(document, Document::ROOT, &mut self.members, &mut self.canonical);
        hash(&self.canonical)
    }

    /// The same for a line with the outline of the template; these are its values.
    pub fn of_template(&mut self, line: &str, values: &[Value], template: &HashTemplate) -> u64 {
        self.canonical.clear();
        let mut done = 0;
        for (end, number) in &template.values {
            self.canonical.push_str(&template.fixed[done..*end]);
            let value = values[*number].of(line);
            if value.kind == TokenKind::Escaped {
                escaped(value, &mut self.canonical);
            } else {
                self.canonical.push_str(value.text);
            }
            done = *end;
        }
        self.canonical.push_str(&template.fixed[done..]);
        hash(&self.canonical)
    }
}

impl HashTemplate {
    pub fn of(document: Document<'_>, values: &OutlineValues) -> Self {
        let mut writer = TemplateWriter { template: Self::default(), values };
        write(document, Document::ROOT, &mut Vec::new(), &mut writer);
        writer.template
    }
}

fn hash(canonical: &str) -> u64 {
    twox_hash::XxHash3_64::oneshot(canonical.as_bytes())
}

/// Receives canonical JSON.
trait CanonicalJson {
    /// Text that all documents of an outline have.
    fn fixed(&mut self) -> &mut String;

    fn value(&mut self, document: Document<'_>, at: TokenIndex);
}

impl CanonicalJson for String {
    #[inline]
    fn fixed(&mut self) -> &mut String {
        self
    }

    #[inline]
    fn value(&mut self, document: Document<'_>, at: TokenIndex) {
        string_or_json(document, at, self);
    }
}

struct TemplateWriter<'a> {
    template: HashTemplate,
    values: &'a OutlineValues,
}

impl CanonicalJson for TemplateWriter<'_> {
    fn fixed(&mut self) -> &mut String {
        &mut self.template.fixed
    }

    fn value(&mut self, document: Document<'_>, at: TokenIndex) {
        let Some(number) = self.values.number(at) else {
            return string_or_json(document, at, &mut self.template.fixed);
        };
        let quote = if matches!(document.kind(at), TokenKind::String | TokenKind::Escaped) { "\"" } else { "" };
        self.template.fixed.push_str(quote);
        self.template.values.push((self.template.fixed.len(), number));
        self.template.fixed.push_str(quote);
    }
}

/// A name, a string, a number, or a word such as `true`.
#[inline]
fn string_or_json(document: Document<'_>, at: TokenIndex, canonical: &mut String) {
    if document.kind(at) == TokenKind::Escaped {
        canonical.push('"');
        escaped(document.scalar(at), canonical);
        canonical.push('"');
    } else {
        canonical.push_str(document.json(at));
    }
}

/// What is between the quotes.
fn escaped(string: Scalar<'_>, canonical: &mut String) {
    let Some(text) = string.string() else { return canonical.push_str(string.text) };
    for character in text.chars() {
        match character {
            '"' => canonical.push_str("\\\""),
            '\\' => canonical.push_str("\\\\"),
            '\0'..=' ' if character != ' ' => {
                // Writing to a String cannot fail.
                let _ = write!(canonical, "\\u{:04x}", u32::from(character));
            }
            _ => canonical.push(character),
        }
    }
}

/// Recursion ends: a document has a limited depth.
fn write(document: Document<'_>, at: TokenIndex, members: &mut Vec<Member>, canonical: &mut impl CanonicalJson) {
    match document.kind(at) {
        TokenKind::Object => object(document, at, members, canonical),
        TokenKind::Array => {
            canonical.fixed().push('[');
            for item in document.items(at) {
                write(document, item, members, canonical);
                canonical.fixed().push(',');
            }
            canonical.fixed().push(']');
        }
        _ => canonical.value(document, at),
    }
}

fn object(document: Document<'_>, at: TokenIndex, members: &mut Vec<Member>, canonical: &mut impl CanonicalJson) {
    let first = members.len();
    for (name, value) in document.members(at) {
        let has_escapes = document.kind(name) == TokenKind::Escaped;
        members.push(Member { beginning: document.beginning(name), has_escapes, name, value });
    }
    // Stable, so that the order of two members with the same name counts: the decoder reads the first.
    members[first..].sort_by(|a, b| order(document, a, b));
    canonical.fixed().push('{');
    for index in first..members.len() {
        let Member { has_escapes, name, value, .. } = members[index];
        // Mostly the name is in the line as it is in the canonical JSON; then it is copied with its colon.
        match document.json_until(name, value) {
            Some(name) if !has_escapes => canonical.fixed().push_str(name),
            _ => {
                string_or_json(document, name, canonical.fixed());
                canonical.fixed().push(':');
            }
        }
        write(document, value, members, canonical);
        canonical.fixed().push(',');
    }
    canonical.fixed().push('}');
    members.truncate(first);
}

/// By name; escaped names by their unescaped text.
fn order(document: Document<'_>, a: &Member, b: &Member) -> Ordering {
    let text = || document.text(a.name).cmp(document.text(b.name));
    if a.has_escapes || b.has_escapes {
        return match (document.string(a.name), document.string(b.name)) {
            // Both have half of a surrogate pair, and so no text.
            (None, None) => text(),
            (a, b) => a.cmp(&b),
        };
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
        // The decoder reads the first of two.
        for name in ["a", r"\u0061"] {
            let (first, second) = (r#""a":1"#, format!(r#""{name}":2"#));
            assert_ne!(hash(&format!("{{{first},{second}}}")), hash(&format!("{{{second},{first}}}")), "{name}");
        }
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
