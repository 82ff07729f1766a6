use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn error(text: &str) -> Option<SyntaxError> {
    Tape::default().read(text).err()
}

/// What `serde_json` would have made of it.
fn value(document: Document<'_>, at: TokenIndex) -> Option<Value> {
    Some(match document.kind(at) {
        TokenKind::Object => Value::Object(
            document
                .members(at)
                .map(|(name, member)| Some((document.string(name)?.into_owned(), value(document, member)?)))
                .collect::<Option<_>>()?,
        ),
        TokenKind::Array => Value::Array(document.items(at).map(|item| value(document, item)).collect::<Option<_>>()?),
        TokenKind::String | TokenKind::Escaped => Value::String(document.string(at)?.into_owned()),
        TokenKind::Number | TokenKind::True | TokenKind::False | TokenKind::Null => {
            serde_json::from_str(document.json(at)).ok()?
        }
    })
}

/// (rule 87, Q-57)
#[test]
fn a_document_keeps_order_repeated_names_and_the_text_of_numbers() {
    let text =
        r#" {"a": [1, -2.50e+3, "x\u00e9\ud83d\ude00\n\/", {}], "b\"": {"c": null, "d": [true,false,[]]}, "a": 0} "#;
    let mut tape = Tape::default();
    let document = tape.read(text).unwrap();
    let names: Vec<_> = document.members(Document::ROOT).map(|(name, _)| document.string(name).unwrap()).collect();
    assert_eq!(names, ["a", "b\"", "a"]);
    let list = document.member(Document::ROOT, "a").unwrap();
    let items: Vec<_> = document.items(list).map(|item| document.json(item)).collect();
    assert_eq!(items, ["1", "-2.50e+3", r#""x\u00e9\ud83d\ude00\n\/""#, "{}"]);
    assert_eq!(document.string(document.items(list).nth(2).unwrap()).unwrap(), "xé😀\n/");
    assert_eq!(document.items(Document::ROOT).count(), 0, "an object has no items");
}

#[test]
fn invalid_json_is_an_error_at_its_byte() {
    for (text, at_byte) in [
        ("", 0),
        ("  ", 2),
        ("{", 1),
        (r#"{"a"}"#, 4),
        (r#"{"a":}"#, 5),
        (r#"{"a":1,}"#, 7),
        ("[1,]", 3),
        ("[1 2]", 3),
        ("01", 1),
        ("1.", 2),
        ("-", 1),
        ("1e", 2),
        ("nul", 0),
        ("{}x", 2),
        ("\"a", 2),
        ("\"\t\"", 1),
        (r#""\x""#, 2),
        (r#""\u12g4""#, 2),
        ("[}", 1),
        ("{]", 1),
        ("[1}", 2),
        ("\u{0}", 0),
        ("{}\u{0}", 2),
    ] {
        assert_eq!(error(text), Some(SyntaxError::Invalid { at_byte }), "{text}");
    }
}

#[test]
fn a_hundred_levels_are_read_and_one_more_is_not() {
    let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
    assert_eq!(error(&nested(MAX_LEVELS)), None);
    assert_eq!(error(&nested(MAX_LEVELS + 1)), Some(SyntaxError::TooDeep { at_byte: MAX_LEVELS }));
    assert_eq!(error(&"[".repeat(1_000_000)), Some(SyntaxError::TooDeep { at_byte: MAX_LEVELS }));
}

#[test]
fn half_a_surrogate_pair_is_not_a_string_but_the_document_is_valid() {
    let mut tape = Tape::default();
    for text in [r#""\ud83d""#, r#""\ude00""#, r#""\ud83dx""#, r#""\ud83d\u0041""#, r#""\ud83dé""#] {
        let document = tape.read(text).unwrap();
        assert_eq!(document.string(Document::ROOT), None, "{text}");
        assert_eq!(document.json(Document::ROOT), text);
    }
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|flag| flag.to_string()),
        any::<i32>().prop_map(|number| number.to_string()),
        "\\PC{0,8}".prop_map(|text| Value::String(text).to_string()),
        "[\\x00-\\x7f]{0,8}".prop_map(|text| Value::String(text).to_string()),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(" ,"))),
            proptest::collection::btree_map("[a-c]{0,3}", inner, 0..5).prop_map(|members| {
                let members: Vec<_> = members.iter().map(|(name, member)| format!("\"{name}\":\t{member}")).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn the_end_of_a_plain_text_is_found_at_any_byte(bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'a'), Just(b'!'), Just(b' ')], 0..40)) {
        let end = bytes.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20)).unwrap_or(bytes.len());
        prop_assert_eq!(scan::plain(&bytes), end);
    }

    #[test]
    fn json_is_read_as_serde_json_reads_it(text in json()) {
        let mut tape = Tape::default();
        let document = tape.read(&text).unwrap();
        prop_assert_eq!(value(document, Document::ROOT), serde_json::from_str(&text).ok());
    }

    #[test]
    fn a_document_is_invalid_exactly_if_serde_json_finds_it_invalid(text in json(), at in any::<prop::sample::Index>(), with in "[\"\\\\{}\\[\\],:0-9a-z ]{0,2}") {
        let index = at.index(text.len() + 1);
        prop_assume!(text.is_char_boundary(index));
        let end = text[index..].chars().next().map_or(index, |next| index + next.len_utf8());
        let broken = format!("{}{with}{}", &text[..index], &text[end..]);
        let ours = error(&broken).is_none();
        prop_assert_eq!(ours, serde_json::from_str::<serde::de::IgnoredAny>(&broken).is_ok(), "{}", broken);
    }

    /// Only the values count, so texts with other values follow the outlines as well.
    #[test]
    fn the_values_of_a_known_outline_are_those_of_the_document(
        texts in proptest::collection::vec(json(), 1..8),
        others in proptest::collection::vec(json(), 0..8),
    ) {
        let mut outlines = Outlines::new(1 << 20);
        for text in &texts {
            let mut tape = Tape::default();
            outlines.learn(tape.read(text).unwrap()).unwrap();
        }
        for text in texts.iter().chain(&others) {
            let mut read = Vec::new();
            if outlines.read(text, &mut read).is_none() {
                prop_assert!(read.is_empty() && !texts.contains(text));
                continue;
            }
            let mut tape = Tape::default();
            let document = tape.read(text).unwrap();
            let tokens = OutlineValues::from(document);
            for at in 0..document.tokens.len() {
                if let Some(number) = tokens.number(at) {
                    prop_assert_eq!(read[number].of(text).text, document.text(at));
                    prop_assert_eq!(read[number].of(text).kind, document.kind(at));
                }
            }
            prop_assert_eq!(tokens.count(), read.len());
        }
    }

    #[test]
    fn a_text_that_is_changed_follows_an_outline_only_if_it_is_json(text in json(), at in any::<prop::sample::Index>(), with in "[\"\\\\{}\\[\\],:0-9a-z ]{0,2}") {
        let mut outlines = Outlines::new(1 << 20);
        let mut tape = Tape::default();
        outlines.learn(tape.read(&text).unwrap()).unwrap();
        let index = at.index(text.len() + 1);
        prop_assume!(text.is_char_boundary(index));
        let changed = format!("{}{with}{}", &text[..index], &text[index..]);
        if outlines.read(&changed, &mut Vec::new()).is_some() {
            prop_assert!(serde_json::from_str::<serde::de::IgnoredAny>(&changed).is_ok(), "{}", changed);
        }
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,60}|[\"\\\\{}\\[\\],:0-9eE.+-]{0,60}") {
        if let Ok(document) = Tape::default().read(&text) {
            let _ = value(document, Document::ROOT);
        }
    }
}
