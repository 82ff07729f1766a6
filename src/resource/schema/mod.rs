//! The columns of a resource type's table.
//!
//! The leading columns have statistics in the log, because `delta.dataSkippingNumIndexedCols` counts from the left. So
//! only ids, resource types and instants may be there. All columns are nullable, as every reader of Delta tables
//! expects, and the names inside lists and maps are those that a Delta table gives back.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

use super::element::{Complex, Derived, Digits, Element, ElementContent, Layout, Options, Primitive, Special};

/// All columns of a table, in order.
pub fn schema(options: Options, elements: &[Element], extension: Option<&Complex>, derived: &[Derived]) -> SchemaRef {
    let layout = options.layout;
    let mut fields = leading_fields(derived);
    if let Some(extension) = extension {
        fields.extend([text("resourceType"), text("id_versioned")]);
        fields.extend(elements.iter().flat_map(|element| element_fields(element, layout)));
        let entries = list(DataType::Struct(complex_fields(extension, layout)));
        fields.extend([nullable("_fid", DataType::Int32), nullable("_extension", map(DataType::Int32, entries))]);
    }
    fields.extend([
        nullable("contained", list(DataType::Utf8)),
        nullable("_primitive_ext", map(DataType::Utf8, DataType::Utf8)),
        nullable("_sync_issues", list(DataType::Utf8)),
        nullable("_sync_hash", DataType::Int64),
        text("_sync_job"),
    ]);
    if options.raw_json {
        fields.push(text("resource_json"));
    }
    Arc::new(Schema::new(fields))
}

/// Groups 1 and 2.
pub fn leading_fields(derived: &[Derived]) -> Vec<Field> {
    let bookkeeping = [
        text("id"),
        text("_sync_source"),
        nullable("_sync_at", instant()),
        nullable("_sync_transaction_time", instant()),
    ];
    let derived = derived.iter().flat_map(|derived| match derived {
        Derived::Bounds { name, .. } => ["start", "end"].map(|end| nullable(&format!("__{name}_{end}"), instant())),
        Derived::Reference { name, .. } => ["type", "id"].map(|part| text(&format!("__{name}_{part}"))),
    });
    bookkeeping.into_iter().chain(derived).collect()
}

/// The columns of one element: two for decimals and ids.
fn element_fields(element: &Element, layout: Layout) -> Vec<Field> {
    let field = |name: &str, of| nullable(name, if element.repeated { list(of) } else { of });
    let name = element.name;
    match &element.content {
        ElementContent::Complex(complex) => vec![field(name, DataType::Struct(complex_fields(complex, layout)))],
        ElementContent::Primitive(Primitive::Decimal) => {
            vec![field(name, decimal(layout)), field(&format!("{name}_scale"), DataType::Int32)]
        }
        ElementContent::Primitive(Primitive::Id) => {
            vec![field(name, DataType::Utf8), field(&format!("{name}_versioned"), DataType::Utf8)]
        }
        ElementContent::Primitive(Primitive::Boolean) => vec![field(name, DataType::Boolean)],
        ElementContent::Primitive(Primitive::Integer) => vec![field(name, DataType::Int32)],
        ElementContent::Primitive(Primitive::Instant) => vec![field(name, instant())],
        ElementContent::Primitive(Primitive::Base64) => vec![field(name, DataType::Binary)],
        ElementContent::Primitive(Primitive::Date | Primitive::DateTime | Primitive::Time | Primitive::Text) => {
            vec![field(name, DataType::Utf8)]
        }
    }
}

fn complex_fields(complex: &Complex, layout: Layout) -> Fields {
    let mut fields: Vec<Field> = complex.elements.iter().flat_map(|element| element_fields(element, layout)).collect();
    if complex.special == Special::Quantity {
        let value = vec![nullable("value", DataType::Decimal128(38, 0)), nullable("scale", DataType::Int32)];
        fields.extend([nullable("_value_canonicalized", DataType::Struct(value.into())), text("_code_canonicalized")]);
    }
    fields.push(nullable("_fid", DataType::Int32));
    fields.into()
}

fn nullable(name: &str, of: DataType) -> Field {
    Field::new(name, of, true)
}

fn text(name: &str) -> Field {
    nullable(name, DataType::Utf8)
}

fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

fn decimal(layout: Layout) -> DataType {
    let Digits { precision, scale } = layout.digits();
    DataType::Decimal128(precision, scale)
}

fn list(of: DataType) -> DataType {
    DataType::List(Arc::new(nullable("element", of)))
}

fn map(key: DataType, value: DataType) -> DataType {
    let entry = Fields::from(vec![Field::new("key", key, false), nullable("value", value)]);
    DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(entry), false)), false)
}

#[cfg(test)]
mod tests;
