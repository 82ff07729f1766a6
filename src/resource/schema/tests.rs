use arrow::datatypes::FieldRef;

use super::*;
use crate::{
    fhir::ResourceType,
    resource::{definitions, shape::Options},
};

#[test]
fn print_spark() {
    for structure in definitions::structures().filter(|s| definitions::resource(s.name()).is_some()) {
        let schema = shape(structure.name(), Layout::Pathling).schema();
        println!("{} {}", structure.name(), spark(&pathling_columns(&schema)));
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
        other => panic!("{other} is no type of ours"),
    }
}
