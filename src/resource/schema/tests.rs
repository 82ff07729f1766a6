use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
};

use arrow::datatypes::FieldRef;
use aws_lc_rs::digest;

use super::*;
use crate::{
    fhir::{RESOURCE_TYPES, ResourceType},
    resource::Shape,
};

const LAYOUTS: [Layout; 2] = [Layout::Pathling, Layout::Wide];

#[test]
fn every_r4_type_has_exactly_the_columns_that_pathling_writes() {
    let golden = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pathling.txt"));
    let pathling: BTreeMap<&str, (usize, &str)> = golden
        .lines()
        .map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            [name, leaves, sha256] => (name, (leaves.parse().unwrap(), sha256)),
            _ => panic!("{line}"),
        })
        .collect();
    let typed = RESOURCE_TYPES.iter().filter(|name| shape(name, Layout::Pathling).extension.is_some());
    assert_eq!(typed.copied().collect::<Vec<_>>(), pathling.keys().copied().collect::<Vec<_>>());
    for (name, (leaves, sha256)) in &pathling {
        let columns = pathling_columns(&shape(name, Layout::Pathling).schema());
        assert_eq!((count_leaves(&columns), &*hex_sha256(&spark(&columns))), (*leaves, *sha256), "{name}");
    }
    assert_eq!(pathling.values().map(|(leaves, _)| leaves).sum::<usize>(), 82_033);
    assert_eq!(pathling.iter().max_by_key(|(_, (leaves, _))| leaves).map(|(name, _)| *name), Some("Contract"));
}

#[test]
fn the_columns_are_the_ones_that_were_reviewed() {
    for name in [
        "Condition",
        "Encounter",
        "ExplanationOfBenefit",
        "MedicationRequest",
        "Observation",
        "Patient",
        "QuestionnaireResponse",
    ] {
        let mut found = String::new();
        outline(shape(name, Layout::Pathling).schema().fields(), 0, &mut found);
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.txt"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &found).unwrap();
        }
        let reviewed = std::fs::read_to_string(&golden).unwrap();
        let different = found.lines().zip(reviewed.lines()).find(|(found, reviewed)| found != reviewed);
        assert_eq!(different, None, "{name}: review what UPDATE_GOLDEN=1 changes");
        assert_eq!(found.lines().count(), reviewed.lines().count(), "{name}");
    }
}

/// Pathling's, with the columns of ours, and in extensions nine more types of value: seven leaves, Quantity and Period.
#[test]
fn the_wide_layout_has_as_many_leaves_as_the_specification_says() {
    for (name, leaves) in [
        ("AllergyIntolerance", 496),
        ("Claim", 1_419),
        ("Condition", 581),
        ("DiagnosticReport", 492),
        ("DocumentReference", 552),
        ("Encounter", 771),
        ("ExplanationOfBenefit", 2_071),
        ("Immunization", 600),
        ("MedicationRequest", 1_102),
        ("Observation", 1_012),
        ("Patient", 453),
        ("Procedure", 752),
    ] {
        assert_eq!(count_leaves(shape(name, Layout::Wide).schema().fields()), leaves, "{name}");
        assert_eq!(count_leaves(shape(name, Layout::Pathling).schema().fields()), leaves - 22, "{name}");
    }
    assert_eq!(shape("Patient", Layout::Wide).schema().fields().len(), 42);
    assert_eq!(shape("Observation", Layout::Wide).schema().fields().len(), 69);
}

#[test]
fn the_wide_layout_differs_in_decimals_and_extensions_only() {
    for name in RESOURCE_TYPES {
        let [pathling, wide] = LAYOUTS.map(|layout| {
            let schema = shape(name, layout).schema();
            let but_extensions: Fields = schema.fields().iter().filter(|f| f.name() != "_extension").cloned().collect();
            spark(&but_extensions)
        });
        assert!(!pathling.contains("decimal(38,12)") && !wide.contains("decimal(32,6)"), "{name}");
        assert_eq!(pathling.replace("decimal(32,6)", "decimal(38,12)"), wide, "{name}");
    }
}

#[test]
fn the_leading_columns_are_the_key_the_bookkeeping_and_the_derived_columns() {
    let shape = shape("Observation", Layout::Pathling);
    let schema = shape.schema();
    let leading: Vec<_> = schema.fields()[..shape.leading()].iter().map(|field| field.name().as_str()).collect();
    assert_eq!(
        leading,
        [
            "id",
            "_sync_source",
            "_sync_at",
            "_sync_transaction_time",
            "__subject_type",
            "__subject_id",
            "__encounter_type",
            "__encounter_id",
            "__effective_start",
            "__effective_end",
            "__issued_start",
            "__issued_end",
            "__value_start",
            "__value_end",
            "__specimen_type",
            "__specimen_id",
            "__device_type",
            "__device_id"
        ]
    );
    assert_eq!(schema.field(shape.leading()).name(), "resourceType");
}

#[test]
fn a_type_that_pathling_cannot_encode_or_r4_does_not_know_keeps_the_key_and_the_line() {
    for name in ["Bundle", "Parameters", "StructureDefinition", "StructureMap", "Transport"] {
        let schema = shape(name, Layout::Pathling).schema();
        let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(
            names,
            [
                "id",
                "_sync_source",
                "_sync_at",
                "_sync_transaction_time",
                "contained",
                "_primitive_ext",
                "_sync_issues",
                "_sync_hash",
                "_sync_job",
                "resource_json"
            ],
            "{name}"
        );
    }
}

#[test]
fn without_the_raw_line_only_that_column_is_missing() {
    let options = Options { layout: Layout::Pathling, raw_json: false };
    let without = Shape::of(ResourceType::PATIENT, options).schema();
    let with = shape("Patient", Layout::Pathling).schema();
    assert_eq!(without.fields()[..], with.fields()[..with.fields().len() - 1]);
    assert_eq!(with.fields().last().unwrap().name(), "resource_json");
}

#[test]
fn no_struct_has_two_names_that_differ_in_case_only() {
    for (name, layout) in RESOURCE_TYPES.iter().flat_map(|name| LAYOUTS.map(|layout| (name, layout))) {
        let mut structs = vec![shape(name, layout).schema().fields().clone()];
        while let Some(fields) = structs.pop() {
            let names: BTreeSet<_> = fields.iter().map(|field| field.name().to_lowercase()).collect();
            assert_eq!(names.len(), fields.len(), "{name}: {fields:?}");
            structs.extend(fields.iter().filter_map(|field| fields_in(field.data_type())));
        }
    }
}

#[test]
fn the_same_options_give_the_same_shape() {
    for name in RESOURCE_TYPES {
        assert_eq!(shape(name, Layout::Wide), shape(name, Layout::Wide));
    }
}

fn shape(resource_type: &str, layout: Layout) -> Arc<Shape> {
    let resource_type: ResourceType = resource_type.parse().unwrap();
    Shape::of(resource_type, Options { layout, raw_json: true })
}

/// The columns that Pathling writes: `id`, then everything of group 3 but `resourceType`.
fn pathling_columns(schema: &Schema) -> Fields {
    let from = schema.fields().iter().position(|field| field.name() == "id_versioned").unwrap_or(0);
    let to = schema.fields().iter().position(|field| field.name() == "_extension").map_or(0, |at| at + 1);
    let id = &schema.fields()[..1];
    id.iter().chain(&schema.fields()[from..to.max(from)]).cloned().collect::<Vec<FieldRef>>().into()
}

/// Spark's `catalogString`.
fn spark(fields: &Fields) -> String {
    let fields: Vec<_> = fields.iter().map(|f| format!("{}:{}", f.name(), spark_type(f.data_type()))).collect();
    format!("struct<{}>", fields.join(","))
}

fn spark_type(of: &DataType) -> String {
    match of {
        DataType::Boolean => "boolean".to_owned(),
        DataType::Int32 => "int".to_owned(),
        DataType::Int64 => "bigint".to_owned(),
        DataType::Utf8 => "string".to_owned(),
        DataType::Binary => "binary".to_owned(),
        DataType::Timestamp(..) => "timestamp".to_owned(),
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        DataType::List(element) => format!("array<{}>", spark_type(element.data_type())),
        DataType::Struct(fields) => spark(fields),
        DataType::Map(entry, _) => {
            let DataType::Struct(entry) = entry.data_type() else { panic!("an entry is a struct") };
            format!("map<{},{}>", spark_type(entry[0].data_type()), spark_type(entry[1].data_type()))
        }
        other => panic!("{other} is not a type of our columns"),
    }
}

/// Of a list, a map or a struct, the fields inside.
fn fields_in(of: &DataType) -> Option<Fields> {
    match of {
        DataType::Struct(fields) => Some(fields.clone()),
        DataType::List(inner) | DataType::Map(inner, _) => fields_in(inner.data_type()),
        _ => None,
    }
}

fn count_leaves(fields: &Fields) -> usize {
    fields.iter().map(|field| fields_in(field.data_type()).map_or(1, |fields| count_leaves(&fields))).sum()
}

/// One line per field, indented by its depth; what repeats has a star.
fn outline(fields: &Fields, depth: usize, out: &mut String) {
    for field in fields {
        let (star, of) = match field.data_type() {
            DataType::List(element) => ("*", element.data_type()),
            of => ("", of),
        };
        let inner = fields_in(of);
        let of = match of {
            DataType::Struct(_) => "struct".to_owned(),
            DataType::Map(..) => "map".to_owned(),
            of => spark_type(of),
        };
        writeln!(out, "{:indent$}{}{star} {of}", "", field.name(), indent = 2 * depth).unwrap();
        if let Some(inner) = inner {
            outline(&inner, depth + 1, out);
        }
    }
}

fn hex_sha256(text: &str) -> String {
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    digest.as_ref().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}
