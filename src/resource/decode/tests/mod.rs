//! Lines become rows: each element has its column, and what cannot be read is reported.

mod allocations;
mod inverse;
mod mutated;
mod mappings;

use std::path::Path;

use arrow::{
    array::{Array, AsArray},
    datatypes::{Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType},
    util::display::{ArrayFormatter, FormatOptions},
};
use proptest::prelude::*;
use tokio::io::AsyncReadExt;

use self::mutated::{has_repeated_names, mutated};
use super::*;
use crate::{
    fhir::parse_instant,
    resource::{Layout, Options},
};

fn decoder(resource_type: &str, layout: Layout) -> Decoder {
    let shape = Shape::of(resource_type.parse().unwrap(), Options { layout, raw_json: true });
    Decoder {
        mappings: MappingPool::of(&shape),
        shape,
        source: "hospital".into(),
        run_started_micros: 7,
        transaction_time: TransactionTime::from_micros(5),
        job: "job".into(),
    }
}

fn lines<T: AsRef<[u8]>>(texts: &[T]) -> Vec<Line> {
    let line =
        |(index, text): (usize, &T)| Line { number: index as u64 + 1, offset: 0, bytes: text.as_ref().to_vec().into() };
    texts.iter().enumerate().map(line).collect()
}

/// The rows are in the order of the lines.
fn decode<T: AsRef<[u8]>>(resource_type: &str, texts: &[T]) -> Decoded {
    in_line_order(decoder(resource_type, Layout::Pathling).decode(&lines(texts)).unwrap())
}

fn in_line_order(decoded: Decoded) -> Decoded {
    decoded.in_line_order().unwrap()
}

/// A row's value as Arrow shows it; the fields of a struct that are null are left out.
fn shown(rows: &RecordBatch, column: &str, row: usize) -> String {
    let column = rows.column_by_name(column).unwrap();
    let text = ArrayFormatter::try_new(column, &FormatOptions::default()).unwrap().value(row).to_string();
    without_nulls(&text)
}

fn without_nulls(text: &str) -> String {
    let text = text.replace('{', "{, ");
    let parts: Vec<_> = text.split(", ").filter(|part| !part.ends_with(": ")).collect();
    parts.join(", ").replace("{, ", "{")
}

fn issues(rows: &RecordBatch, row: usize) -> Vec<String> {
    let lists = rows.column_by_name("_sync_issues").unwrap().as_list::<i32>();
    if lists.is_null(row) {
        return Vec::new();
    }
    lists.value(row).as_string::<i32>().iter().map(|text| text.unwrap().to_owned()).collect()
}

fn assert_inverse(resource_type: &str, layout: Layout, texts: &[String]) -> Vec<Vec<String>> {
    let decoder = decoder(resource_type, layout);
    let decoded = in_line_order(decoder.decode(&lines(texts)).unwrap());
    assert_eq!(decoded.bad, []);
    let differences = inverse::differences(&decoder.shape, &decoded.rows, texts);
    assert_eq!(differences, [], "{resource_type}");
    (0..texts.len()).map(|row| issues(&decoded.rows, row)).collect()
}

const PATIENT: &str = r##"{"resourceType":"Patient","id":"p1","meta":{"versionId":"3","lastUpdated":"2026-11-19T12:10:07.123Z"},"contained":[{"resourceType":"Practitioner","id":"gp","name":[{"family":"Kay"}]}],"extension":[{"url":"race","extension":[{"url":"ombCategory","valueCoding":{"system":"s","code":"2106-3"}},{"url":"text","valueString":"White"}]}],"name":[{"use":"official","family":"Smith","given":["Ann",null],"_given":[null,{"id":"g"}]}],"gender":"female","birthDate":"1970-05","_birthDate":{"extension":[{"url":"t", "valueCode":"x"}]},"generalPractitioner":[{"reference":"#gp"}],"favouriteColour":"blue"}"##;

const OBSERVATION: &str = r#"{"resourceType":"Observation","id":"o1","modifierExtension":[{"url":"m"}],"status":"final","code":{"coding":[{"system":"http://loinc.org","code":"2160-0"}]},"subject":{"reference":"https://ehr.example.org/fhir/Patient/p1/_history/3"},"encounter":{"reference":"Encounter/e9"},"effectiveDateTime":"2026-11-18T09:30:00+10:00","issued":"2026-11-18T01:00:00.000Z","valueQuantity":{"value":0.0000004100,"unit":"mol/L","system":"http://unitsofmeasure.org","code":"mol/L"}}"#;

/// A resource, and how many issues it has in Pathling's layout.
const RESOURCES: [(&str, &str, usize); 8] = [
    ("Patient", PATIENT, 1),
    ("Observation", OBSERVATION, 2),
    (
        "Questionnaire",
        r#"{"resourceType":"Questionnaire","id":"q","status":"active","item":[{"linkId":"1","type":"group","item":[{"linkId":"1.1","type":"group","item":[{"linkId":"a","type":"group","item":[{"linkId":"b","type":"group","item":[{"linkId":"c","type":"display"}]}]}]}]}]}"#,
        1,
    ),
    (
        "MedicationRequest",
        r#"{"resourceType":"MedicationRequest","id":"m","status":"active","intent":"order","medicationReference":{"reference":"Medication/1"},"subject":{"identifier":{"system":"s","value":"v","period":{"start":"2020"}}},"dosageInstruction":[{"sequence":1,"timing":{"repeat":{"count":3,"boundsPeriod":{"start":"2020-01","end":"2020-02"},"timeOfDay":["08:00:00"]}},"asNeededBoolean":false,"doseAndRate":[{"doseQuantity":{"value":1.50,"unit":"mg"}}]}]}"#,
        0,
    ),
    (
        "DocumentReference",
        r#"{"resourceType":"DocumentReference","id":"d","status":"current","content":[{"attachment":{"contentType":"text/plain","data":"QUJD","size":3,"creation":"2020-01-01"}}],"date":"2020-01-01T00:00:00.1234567+01:00"}"#,
        0,
    ),
    (
        "ImagingStudy",
        r#"{"resourceType":"ImagingStudy","id":"i","status":"available","subject":{"reference":"urn:uuid:1"},"series":[{"uid":"1","number":1,"modality":{"code":"CT"},"instance":[{"uid":"2","sopClass":{"code":"x"},"number":2}]}]}"#,
        0,
    ),
    ("Binary", r#"{"resourceType":"Binary","id":"b","contentType":"text/plain","data":"QUI="}"#, 0),
    (
        "Observation",
        r#"{"resourceType":"Observation","id":"o","status":"final","code":{},"valueSampledData":{"origin":{"value":-0.0},"period":1e3,"factor":1.5E-3,"dimensions":1,"data":"E L U"},"component":[{"code":{"text":"\u00e9\n"},"valueQuantity":{"value":12345678901234567890123456789}},{"valueTime":"10:00:00"}]}"#,
        1,
    ),
];

#[test]
fn a_patient_becomes_the_row_of_the_specification() {
    let decoded = decode("Patient", &[PATIENT]);
    let rows = &decoded.rows;
    for (column, expected) in [
        ("id", "p1"),
        ("_sync_source", "hospital"),
        ("__birthDate_start", "1970-05-01T00:00:00Z"),
        ("__birthDate_end", "1970-05-31T23:59:59.999999Z"),
        ("resourceType", "Patient"),
        ("id_versioned", "Patient/p1/_history/3"),
        ("meta", "{versionId: 3, versionId_versioned: 3, lastUpdated: 2026-11-19T12:10:07.123Z, _fid: 1}"),
        ("name", "[{use: official, family: Smith, given: [Ann, ], _fid: 6}]"),
        ("generalPractitioner", "[{reference: #gp, _fid: 7}]"),
        ("birthDate", "1970-05"),
        ("_fid", "0"),
        ("_sync_issues", "[unmapped: Patient.favouriteColour]"),
        ("_sync_job", "job"),
        ("resource_json", PATIENT),
    ] {
        let shown = if column == "resource_json" {
            rows.column_by_name(column).unwrap().as_string::<i32>().value(0).to_owned()
        } else {
            shown(rows, column, 0)
        };
        assert_eq!(shown, expected, "{column}");
    }
    let contained = rows.column_by_name("contained").unwrap().as_list::<i32>().value(0);
    assert_eq!(
        contained.as_string::<i32>().value(0),
        r#"{"resourceType":"Practitioner","id":"gp","name":[{"family":"Kay"}]}"#
    );
    let primitive_ext = rows.column_by_name("_primitive_ext").unwrap().as_map().value(0);
    let column = |index: usize| primitive_ext.column(index).as_string::<i32>().iter().flatten().collect::<Vec<_>>();
    assert_eq!(column(0), ["Patient.name[0].given", "Patient.birthDate"]);
    assert_eq!(column(1), [r#"[null,{"id":"g"}]"#, r#"{"extension":[{"url":"t", "valueCode":"x"}]}"#]);
    let hash = rows.column_by_name("_sync_hash").unwrap().as_primitive::<Int64Type>().value(0);
    assert_eq!(hash.cast_unsigned(), decoded.keys[0].hash);
}

#[test]
fn extensions_are_stored_under_the_fid_of_their_element() {
    let decoded = decode("Patient", &[PATIENT, r#"{"resourceType":"Patient","id":"p2"}"#]);
    let maps = decoded.rows.column_by_name("_extension").unwrap().as_map();
    let entries = maps.value(0);
    assert_eq!(entries.column(0).as_primitive::<Int32Type>().values().to_vec(), [0, 2]);
    let lists = entries.column(1).as_list::<i32>();
    let outer = lists.value(0);
    assert_eq!(outer.as_struct().column_by_name("url").unwrap().as_string::<i32>().value(0), "race");
    let inner = lists.value(1);
    let urls = inner.as_struct().column_by_name("url").unwrap().as_string::<i32>();
    assert_eq!(urls.iter().flatten().collect::<Vec<_>>(), ["ombCategory", "text"]);
    let fids = inner.as_struct().column_by_name("_fid").unwrap().as_primitive::<Int32Type>();
    assert_eq!(fids.values().to_vec(), [3, 5]);
    assert!(maps.is_valid(1) && maps.value(1).is_empty());
}

#[test]
fn an_observation_has_its_join_keys_its_bounds_and_its_canonical_quantity() {
    let texts = [OBSERVATION.to_owned(), OBSERVATION.replace("0.0000004100", "138.03").replace("mol/L", "mmol/L")];
    let rows = decode("Observation", &texts).rows;
    for (column, expected) in [
        ("__subject_type", "Patient"),
        ("__subject_id", "p1"),
        ("__encounter_id", "e9"),
        ("__effective_start", "2026-11-17T23:30:00Z"),
        ("__effective_end", "2026-11-17T23:30:00.999999Z"),
        ("__issued_end", "2026-11-18T01:00:00.000999Z"),
        ("issued", "2026-11-18T01:00:00Z"),
        ("id_versioned", "Observation/o1"),
        ("_sync_issues", "[modifier-extension: Observation, decimal-rounded: Observation.valueQuantity.value]"),
    ] {
        assert_eq!(shown(&rows, column, 0), expected, "{column}");
    }
    let quantity = rows.column_by_name("valueQuantity").unwrap().as_struct();
    let value = quantity.column_by_name("value").unwrap().as_primitive::<Decimal128Type>();
    assert_eq!((value.value(0), value.value(1)), (0, 138_030_000));
    let canonical = quantity.column_by_name("_value_canonicalized").unwrap().as_struct();
    let mantissa = canonical.column(0).as_primitive::<Decimal128Type>();
    assert_eq!(mantissa.value(1), 83_123_608_910_280_000_000_000_000);
    let codes = quantity.column_by_name("_code_canonicalized").unwrap().as_string::<i32>();
    assert_eq!((codes.value(0), codes.value(1)), ("m-3", "m-3"));
}

#[test]
fn an_invalid_value_is_null_and_reported_with_its_path() {
    for (member, expected) in [
        (r#""active":"yes""#, "invalid: Patient.active"),
        (r#""active":null"#, "invalid: Patient.active"),
        (r#""birthDate":"05/1970""#, "invalid: Patient.birthDate"),
        (r#""birthDate":1970"#, "invalid: Patient.birthDate"),
        (r#""gender":["male"]"#, "invalid: Patient.gender"),
        (r#""gender":"\ud83d""#, "invalid: Patient.gender"),
        (r#""name":{"family":"x"}"#, "invalid: Patient.name"),
        (r#""name":[{"given":["a",7]}]"#, "invalid: Patient.name[0].given[1]"),
        (r#""name":[{"family":{}},"x"]"#, "invalid: Patient.name[0].family; invalid: Patient.name[1]"),
        (r#""meta":7"#, "invalid: Patient.meta"),
        (r#""meta":{"lastUpdated":"2026"}"#, "invalid: Patient.meta.lastUpdated"),
        (r#""multipleBirthInteger":1.5"#, "invalid: Patient.multipleBirthInteger"),
        (r#""multipleBirthInteger":2147483648"#, "invalid: Patient.multipleBirthInteger"),
        (r#""multipleBirthInteger":2,"multipleBirthBoolean":true"#, "invalid: Patient.multipleBirthBoolean"),
        (r#""gender":"male","gender":"female""#, "invalid: Patient.gender"),
        (r#""_gender":{"id":"a"},"_gender":{"id":"b"}"#, "invalid: Patient.gender"),
        (r#""_gender":"x""#, "invalid: Patient._gender"),
        (r#""_name":[{}]"#, "unmapped: Patient._name"),
        (r#""colour":{"a":[1]},"_colour":{}"#, "unmapped: Patient.colour; unmapped: Patient._colour"),
        (r#""photo":[{"data":"*"}]"#, "invalid: Patient.photo[0].data"),
        (r#""extension":{}"#, "invalid: Patient.extension"),
        (r#""extension":[null]"#, "invalid: Patient.extension[0]"),
        (r#""extension":[{"url":"u","valueUri":"v"}]"#, "extension-type: Patient.extension[0].valueUri"),
        (
            r#""extension":[{"url":"u","extension":[{"url":"v","valuePeriod":{},"x":1}]}]"#,
            "extension-type: Patient.extension[0].extension[0].valuePeriod; unmapped: Patient.extension[0].extension[0].x",
        ),
        (r#""contact":[{"modifierExtension":[]}]"#, "modifier-extension: Patient.contact[0]"),
        (r#""contained":{}"#, "invalid: Patient.contained"),
        (r#""contained":[7]"#, "invalid: Patient.contained[0]"),
        (
            r#""managingOrganization":{"identifier":{"assigner":{"identifier":{"value":"x"}}}}"#,
            "too-deep: Patient.managingOrganization.identifier.assigner",
        ),
    ] {
        let text = format!(r#"{{"resourceType":"Patient","id":"p1",{member}}}"#);
        let decoded = decode("Patient", &[text]);
        assert_eq!(decoded.rows.num_rows(), 1, "{member}");
        assert_eq!(issues(&decoded.rows, 0).join("; "), expected, "{member}");
    }
}

#[test]
fn an_issue_in_one_row_leaves_the_others_as_they_are() {
    let rows = decode(
        "Patient",
        &[
            r#"{"resourceType":"Patient","id":"a"}"#,
            r#"{"resourceType":"Patient","id":"b","name":[{"family":"B"},7,{"given":["x","y"]}],"birthDate":"?"}"#,
            r#"{"resourceType":"Patient","id":"c","birthDate":"2000","name":[]}"#,
        ],
    )
    .rows;
    let names = rows.column_by_name("name").unwrap().as_list::<i32>();
    assert_eq!(
        (names.is_null(0), names.value(1).len(), names.value(1).is_null(1), names.value(2).len()),
        (true, 3, true, 0)
    );
    let dates = rows.column_by_name("birthDate").unwrap().as_string::<i32>();
    assert_eq!(dates.iter().collect::<Vec<_>>(), [None, None, Some("2000")]);
    let starts = rows.column_by_name("__birthDate_start").unwrap().as_primitive::<TimestampMicrosecondType>();
    assert_eq!(starts.value(2), parse_instant("2000-01-01T00:00:00Z").unwrap().timestamp_micros());
}

#[test]
fn a_type_without_typed_columns_keeps_its_line() {
    let text = r#"{"resourceType":"Bundle","id":"b","type":"batch","entry":[{"x":1}]}"#;
    let rows = decode("Bundle", &[text]).rows;
    assert_eq!(rows.column_by_name("resource_json").unwrap().as_string::<i32>().value(0), text);
    assert!(rows.column_by_name("type").is_none() && issues(&rows, 0).is_empty());
}

#[test]
fn the_wide_layout_has_more_open_types_and_more_digits() {
    let text = r#"{"resourceType":"Patient","id":"p","extension":[{"url":"a","valueUri":"v"},{"url":"b","valueDecimal":0.00000041}]}"#;
    assert_eq!(assert_inverse("Patient", Layout::Wide, &[text.to_owned()]), [Vec::<String>::new()]);
    assert_eq!(assert_inverse("Patient", Layout::Pathling, &[text.to_owned()])[0].len(), 2);
}

#[test]
fn without_the_line_itself_the_batch_still_has_exactly_the_schema() {
    for (resource_type, text) in [("Patient", PATIENT), ("Bundle", r#"{"resourceType":"Bundle","id":"b"}"#)] {
        let options = Options { layout: Layout::Pathling, raw_json: false };
        let shape = Shape::of(resource_type.parse().unwrap(), options);
        let decoder = Decoder { shape: Arc::clone(&shape), ..decoder(resource_type, Layout::Pathling) };
        let decoded = decoder.decode(&lines(&[text])).unwrap();
        assert_eq!((decoded.rows.schema(), decoded.rows.num_rows()), (shape.schema(), 1));
    }
}

#[test]
fn a_column_that_nothing_filled_is_null_as_a_whole() {
    let rows = decode("Patient", &[r#"{"resourceType":"Patient","id":"p1","gender":"male"}"#]).rows;
    for (index, field) in rows.schema().fields().iter().enumerate() {
        let has_value = matches!(
            field.name().as_str(),
            "id" | "_sync_source"
                | "_sync_at"
                | "_sync_transaction_time"
                | "resourceType"
                | "id_versioned"
                | "gender"
                | "_fid"
                | "_extension"
                | "_sync_hash"
                | "_sync_job"
                | "resource_json"
        );
        let is_null = rows.column(index).null_count() == rows.num_rows();
        assert_eq!(is_null, !has_value, "{}", field.name());
    }
}

/// (rules 84 and 87, Q-55)
#[test]
fn a_line_becomes_a_row_byte_for_byte() {
    let line = r#" {"resourceType":"Patient", "id":"a\u0062", "x":1.50,"meta":{"versionId":"3","lastUpdated":"1970-01-01T00:00:01Z","tag":[{"code":"SUBSETTED"}]}}"#;
    let decoded = decode("Patient", &[line]);
    assert_eq!(decoded.rows.column_by_name("resource_json").unwrap().as_string::<i32>().value(0), line);
    let key = &decoded.keys[0];
    assert_eq!(key.id, "ab");
    assert_eq!((key.version.last_updated_micros, key.version.transaction_time_micros), (Some(1_000_000), Some(5)));
    assert_eq!((key.version.version_id, key.version.subsetted), (Some(3), true));
}

/// (rule 88)
#[test]
fn a_line_that_cannot_be_a_row_comes_back_with_its_reason() {
    let deep = format!(r#"{{"resourceType":"Patient","id":"a","x":{}1{}}}"#, "[".repeat(100), "]".repeat(100));
    let lines: [&[u8]; 13] = [
        br#"{"resourceType":"Patient","id":"a"}"#,
        b"{\"resourceType\":\"Patient\",\"id\":\"\xFF\"}",
        br#"{"resourceType":"Patient","id":"a""#,
        br#"{"resourceType":"Patient"}"#,
        br#"{"resourceType":"Patient","id":""}"#,
        br#"{"id":"a"}"#,
        br#"{"resourceType":"OperationOutcome","id":"a"}"#,
        br#"["resourceType"]"#,
        br#"{"resourceType":"Patient","id":7}"#,
        br#"{"resourceType":"Patient","id":null}"#,
        br#"{"resourceType":"Patient","id":"a","id":"b"}"#,
        deep.as_bytes(),
        br#"{"resourceType":"Patient","id":"a","meta":7}"#,
    ];
    let decoded = decode("Patient", &lines);
    let codes: Vec<_> = decoded.bad.iter().map(|bad| (bad.line.number, bad.reason.code())).collect();
    assert_eq!(decoded.rows.num_rows(), 2);
    let expected = [
        (2, "not-utf8"),
        (3, "not-json"),
        (4, "no-id"),
        (5, "no-id"),
        (6, "no-resource-type"),
        (7, "other-type"),
        (8, "not-json"),
        (9, "not-json"),
        (10, "no-id"),
        (11, "not-json"),
        (12, "too-deep-json"),
    ];
    assert_eq!(codes, expected);
}

#[test]
fn a_reason_never_quotes_the_line() {
    let decoded = decode("Patient", &[br#"{"resourceType":"Patient","id":{"ssn":"123-45-6789"}}"#]);
    assert!(!decoded.bad[0].reason.to_string().contains("123"));
}

#[test]
fn the_columns_of_realistic_resources_have_the_values_of_their_lines() {
    for (resource_type, text, expected) in RESOURCES {
        for layout in [Layout::Pathling, Layout::Wide] {
            let found = assert_inverse(resource_type, layout, &[text.to_owned()]);
            if layout == Layout::Pathling {
                assert_eq!(found[0].len(), expected, "{resource_type}: {found:?}");
            }
        }
    }
}

#[test]
fn the_inverse_finds_what_differs() {
    let decoder = decoder("Patient", Layout::Pathling);
    let rows = decoder.decode(&lines(&[PATIENT])).unwrap().rows;
    for (from, to) in [
        ("Smith", "Smyth"),
        ("White", "Black"),
        (r#"{"id":"g"}"#, r#"{"id":"h"}"#),
        (r#""gender":"female","#, ""),
        (r#""gender":"female","#, r#""gender":"female","active":true,"#),
        ("favouriteColour", "birthPlace"),
        (r#""Ann",null"#, r#"null,"Ann""#),
        ("12:10:07.123Z", "12:10:07.124Z"),
        ("Kay", "Kai"),
    ] {
        let line = PATIENT.replace(from, to);
        assert_ne!(line, PATIENT);
        assert_eq!(inverse::differences(&decoder.shape, &rows, &[line]).len(), 1, "{from}");
    }
}

/// Every line of the folder `FHIR_SYNC_TEST_DATA`, whose files are called `<Type>.ndjson.gz`.
#[tokio::test]
async fn the_columns_of_real_data_have_the_values_of_their_lines() {
    let Ok(folder) = std::env::var("FHIR_SYNC_TEST_DATA") else {
        println!("skipped: FHIR_SYNC_TEST_DATA names no folder");
        return;
    };
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let Some(resource_type) = name.strip_suffix(".ndjson.gz") else { continue };
        let texts = gunzipped(&path).await;
        let started = std::time::Instant::now();
        let mut seen = std::collections::BTreeMap::<String, usize>::new();
        for texts in texts.chunks(1000) {
            mappings::assert_same_both_ways(resource_type, Layout::Pathling, texts);
            for issue in assert_inverse(resource_type, Layout::Pathling, texts).into_iter().flatten() {
                let generic: String = issue.chars().filter(|character| !character.is_ascii_digit()).collect();
                *seen.entry(generic).or_default() += 1;
            }
        }
        println!("{resource_type}: {} lines in {:?}, issues {seen:?}", texts.len(), started.elapsed());
        count += texts.len();
    }
    println!("{count} lines");
    assert!(count > 0);
}

async fn gunzipped(path: &Path) -> Vec<String> {
    let file = tokio::io::BufReader::new(tokio::fs::File::open(path).await.unwrap());
    let mut decoder = async_compression::tokio::bufread::GzipDecoder::new(file);
    decoder.multiple_members(true);
    let mut text = String::new();
    decoder.read_to_string(&mut text).await.unwrap();
    text.lines().map(str::to_owned).collect()
}

proptest! {
    #[test]
    fn every_line_is_one_row_or_one_bad_line_and_nothing_panics(texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..20)) {
        let decoded = decode("Patient", &texts);
        prop_assert_eq!(decoded.rows.num_rows() + decoded.bad.len(), texts.len());
        prop_assert_eq!(decoded.rows.num_rows(), decoded.keys.len());
    }

    #[test]
    fn a_mutated_resource_has_the_values_of_its_line_or_is_not_a_row(
        which in any::<prop::sample::Index>(),
        wide in any::<bool>(),
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0usize..4), 1..4),
    ) {
        let (resource_type, text, _) = RESOURCES[which.index(RESOURCES.len())];
        let mut text = text.to_owned();
        for (at, from, kind) in mutations {
            text = mutated(&text, at, from, kind);
        }
        let decoder = decoder(resource_type, if wide { Layout::Wide } else { Layout::Pathling });
        let decoded = decoder.decode(&lines(&[&text])).unwrap();
        prop_assert_eq!(decoded.rows.num_rows() + decoded.bad.len(), 1);
        if decoded.bad.is_empty() && !has_repeated_names(&text) {
            prop_assert_eq!(inverse::differences(&decoder.shape, &decoded.rows, &[text]), []);
        }
    }
}
