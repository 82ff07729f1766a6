//! Mappings: a line has the same row with a mapping and by its member names.

use super::*;

/// With mappings, which a second decoder has from other lines already; and by member names.
pub fn assert_same_both_ways(resource_type: &str, layout: Layout, texts: &[String]) {
    let mapped = decoder(resource_type, layout);
    let walked = Decoder { mappings: MappingPool::none(&mapped.shape), ..mapped.clone() };
    let walked = in_line_order(walked.decode(&lines(texts)).unwrap());
    for _ in 0..2 {
        let mapped = in_line_order(mapped.decode(&lines(texts)).unwrap());
        assert_eq!(mapped.bad, walked.bad);
        assert_eq!(mapped.keys, walked.keys);
        for (index, field) in mapped.rows.schema().fields().iter().enumerate() {
            let [mapped, walked] = [&mapped, &walked].map(|decoded| decoded.rows.column(index));
            assert_eq!(mapped, walked, "{}", field.name());
            mapped.to_data().validate_full().unwrap();
        }
    }
}

/// How many of the lines have a mapping.
fn mapped(resource_type: &str, texts: &[String]) -> usize {
    let decoder = decoder(resource_type, Layout::Pathling);
    let lines = lines(texts);
    let sorted = decoder.mappings.sort(&mut decoder.mappings.take(), &decoder.shape, &lines);
    sorted.by_mapping().map(<[_]>::len).sum()
}

/// Their names are compared with those that versions, references and units are found by.
#[test]
fn a_line_with_escaped_names_has_the_row_of_the_same_line_without() {
    let escaped = |text: &str| {
        let names =
            ["meta", "tag", "code", "versionId", "lastUpdated", "reference", "system", "value", "start", "contained"];
        names.into_iter().fold(text.to_owned(), |text, name| {
            let with_escape = format!("\"\\u{:04x}{}\":", name.as_bytes()[0], &name[1..]);
            text.replace(&format!("\"{name}\":"), &with_escape)
        })
    };
    for (resource_type, text, _) in RESOURCES {
        let decoder = decoder(resource_type, Layout::Pathling);
        let [plain, escaped] = [text.to_owned(), escaped(text)].map(|text| decoder.decode(&lines(&[text])).unwrap());
        assert_eq!(plain.keys, escaped.keys, "{resource_type}");
        for field in plain.rows.schema().fields().iter().filter(|field| field.name() != "resource_json") {
            let [plain, escaped] = [&plain, &escaped].map(|decoded| decoded.rows.column_by_name(field.name()));
            assert_eq!(plain, escaped, "{resource_type} {}", field.name());
        }
    }
}

/// Each value of a mapping keeps its path.
#[test]
fn a_line_with_a_long_name_takes_little_more_memory_than_it_has() {
    let values = vec!["1"; 2_000].join(",");
    let text = format!(r#"{{"resourceType":"Patient","id":"p","{}":[{values}]}}"#, "x".repeat(100_000));
    let (decoder, lines) = (decoder("Patient", Layout::Pathling), lines(&[text]));
    let allocations = allocation_counter::measure(|| drop(decoder.decode(&lines).unwrap()));
    assert!(allocations.bytes_max < 16 << 20, "{allocations:?}");
}

/// Lines of the same outline with other values, valid ones and others.
fn variants(text: &str) -> Vec<String> {
    let of = |from: &str, to: &str| text.replace(from, to);
    let mut variants = vec![
        text.to_owned(),
        of("2026-11", "2026-13"),
        of("2026-11-18T09:30:00+10:00", "0001-01-01T00:00:00Z"),
        of("T0", "t0"),
        of("final", "\\u0066inal\\n"),
        of("final", "\\ud83d"),
        of("final", "\u{e9}\u{1f600}"),
        of("final", ""),
        of("0.0000004100", "-12.50"),
        of("0.0000004100", "1e-3"),
        of("0.0000004100", "123456789012345678901234567890123456789"),
        of("mol/L", "mmol/L"),
        of("mol/L", "no unit"),
        of("http://unitsofmeasure.org", "other"),
        of("true", "false"),
        of("Patient/p1", "p1"),
        of(":[", ": ["),
        of("\"id\":\"", "\"id\":\"x"),
    ];
    variants.dedup();
    variants
}

#[test]
fn a_line_with_a_plan_has_the_row_of_a_line_without_one() {
    for (resource_type, text, _) in RESOURCES {
        for layout in [Layout::Pathling, Layout::Wide] {
            assert_same_both_ways(resource_type, layout, &variants(text));
        }
    }
}

/// (`_id`, nulls, lists of structures that have little in common, and extensions inside of extensions)
#[test]
fn odd_lines_have_the_same_row_both_ways() {
    let sparse: Vec<_> = (0..300).map(|_| "{}").chain([r#"{"gender":"male","name":{"text":"x"}}"#]).collect();
    let members = [
        r#""_id":null"#,
        r#""_id":"x""#,
        r#""_id":7"#,
        r#""_id":[]"#,
        r#""_id":{"extension":[{"url":"u"}]}"#,
        r#""active":5,"period":{"start":"0001-01-01T00:00:00Z","extension":[{"url":"u","valueAddress":{"line":[null]}}]}"#,
        r#""birthDate":"2026-13","_birthDate":{"id":"x"},"deceasedDateTime":"0001-01-01T00:00:00Z""#,
        r#""name":[null,{"given":[null,"a"],"_given":[{"id":"g"},null]},{}],"telecom":[]"#,
        r#""extension":[{"url":"a","extension":[{"url":"b","valueDecimal":1.23456789},{"url":"c","valueInstant":5}]},{"url":"d","valueDate":"x"}]"#,
        r#""name":[{"extension":[{"url":"a","extension":[{"url":"b","valueCode":1}]}],"period":{"start":1}}],"gender":2"#,
        r#""contained":[{"resourceType":"X","id":"1","name":[{}]},{}],"extension":[]"#,
        r#""contact":[{"name":{"text":""}},{"gender":"","name":{"_text":{"id":"i"}}}],"language":"\u0065n""#,
        r#""na\u006de":[{"text":"x"}],"constructor":1"#,
        r#""meta":{"versionId":4,"lastUpdated":"x","tag":[{"code":"SUBSETTED"},{}]}"#,
    ];
    let line = |member: &str| format!(r#"{{"resourceType":"Patient","id":"p",{member}}}"#);
    let mut texts: Vec<_> = members.iter().map(|member| line(member)).collect();
    texts.push(line(&format!(r#""contact":[{}]"#, sparse.join(","))));
    let again: Vec<_> = texts.iter().map(|text| text.replace('x', "yz").replace('1', "22")).collect();
    texts.extend(again);
    assert_same_both_ways("Patient", Layout::Pathling, &texts);
    assert_same_both_ways("Patient", Layout::Wide, &texts);
    let encounters: Vec<_> = texts.iter().map(|text| text.replace("Patient", "Encounter")).collect();
    assert_same_both_ways("Encounter", Layout::Pathling, &encounters);
}

#[test]
fn lines_whose_members_all_have_a_column_have_a_mapping() {
    let observation = OBSERVATION.replace(r#""modifierExtension":[{"url":"m"}],"#, "");
    assert_eq!(mapped("Observation", &variants(&observation)), variants(&observation).len());
    for (resource_type, text, issues) in RESOURCES {
        if issues == 0 {
            assert_eq!(mapped(resource_type, &[text.to_owned(), text.to_owned()]), 2, "{resource_type}");
        }
    }
}

#[test]
fn more_lines_of_each_mapping_than_become_rows_together_keep_their_values() {
    let line = |number: usize| {
        let category = vec![format!(r#"{{"text":"c{number}"}}"#); number % 3].join(",");
        format!(r#"{{"resourceType":"Observation","id":"{number}","category":[{category}],"status":"s{number}"}}"#)
    };
    let texts: Vec<_> = (0..1000).map(line).collect();
    assert_same_both_ways("Observation", Layout::Pathling, &texts);
    assert_inverse("Observation", Layout::Pathling, &texts);
    assert_eq!(mapped("Observation", &texts), texts.len());
}

#[test]
fn lines_that_have_nothing_in_common_are_not_learned_for_ever() {
    let line = |number: usize| {
        let members: Vec<_> = (0..number % 90).map(|item| format!("{{\"text\":\"{item}\"}}")).collect();
        format!(r#"{{"resourceType":"Observation","id":"{number}","category":[{}]}}"#, members.join(","))
    };
    let texts: Vec<_> = (0..90).map(line).collect();
    assert_same_both_ways("Observation", Layout::Pathling, &texts);
    assert!(mapped("Observation", &texts) < texts.len());
}

/// Lines of several files, as a replay of the quarantine has them.
#[test]
fn lines_with_the_same_number_are_told_apart() {
    let line = |text: &str| Line { number: 7, offset: 0, bytes: text.as_bytes().to_vec().into() };
    let good = |id: &str| format!(r#"{{"resourceType":"Patient","id":"{id}"}}"#);
    let lines = vec![line(&good("a")), line("{"), line(&good("b")), line("no JSON")];
    let decoded = decoder("Patient", Layout::Pathling).decode(&lines).unwrap();
    let bad: Vec<_> = decoded.bad.iter().map(|bad| bad.line.bytes.to_vec()).collect();
    assert_eq!(bad, [b"{".to_vec(), b"no JSON".to_vec()]);
    let ids: Vec<_> = decoded.keys.iter().map(|key| key.id.as_str()).collect();
    assert_eq!(ids, ["a", "b"]);
}

#[test]
fn a_bad_line_is_given_back_from_any_part_of_a_batch() {
    let long = "x".repeat(SLICE_BYTES / 2);
    let line = |number: u64| match number % 3 {
        0 => format!("{number} is not JSON {long}"),
        1 => format!(r#"{{"resourceType":"Patient","id":"{number}","language":"{long}"}}"#),
        _ => format!(r#"{{"resourceType":"Patient","id":"{number}","colour":"{long}"}}"#),
    };
    let texts: Vec<_> = (1..=12).map(line).collect();
    let decoded = decode("Patient", &texts);
    let bad: Vec<_> = decoded.bad.iter().map(|bad| (bad.line.number, bad.line.bytes.to_vec())).collect();
    assert_eq!(bad, [3, 6, 9, 12].map(|number| (number, line(number).into_bytes())));
    let keys: Vec<_> = decoded.keys.iter().map(|key| (key.line, key.id.clone())).collect();
    assert_eq!(keys, [1, 2, 4, 5, 7, 8, 10, 11].map(|number| (number, number.to_string())));
}

proptest! {
    #[test]
    fn mutated_lines_have_the_same_rows_both_ways(
        which in any::<prop::sample::Index>(),
        wide in any::<bool>(),
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0usize..4), 1..6),
    ) {
        let (resource_type, text, _) = RESOURCES[which.index(RESOURCES.len())];
        let mut texts = variants(text);
        for (at, from, kind) in mutations {
            let text = mutated(&texts[texts.len() - 1], at, from, kind);
            texts.extend(variants(&text));
        }
        assert_same_both_ways(resource_type, if wide { Layout::Wide } else { Layout::Pathling }, &texts);
    }
}
