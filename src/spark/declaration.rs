//! A declaration: a column and its type in the words of Spark SQL.

use arrow::datatypes::{DataType, Field, TimeUnit};

use super::names::identifier;

/// `None` for a type that no column of ours has.
pub fn spark_type(of: &DataType) -> Option<String> {
    let text = match of {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "STRING".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => "BINARY".to_owned(),
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int32 => "INT".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Date32 => "DATE".to_owned(),
        DataType::Timestamp(TimeUnit::Microsecond, Some(_)) => "TIMESTAMP".to_owned(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision},{scale})"),
        DataType::List(element) => format!("ARRAY<{}>", spark_type(element.data_type())?),
        DataType::Map(entries, _) => {
            let DataType::Struct(entry) = entries.data_type() else { return None };
            let [key, value] = entry.as_ref() else { return None };
            format!("MAP<{},{}>", spark_type(key.data_type())?, spark_type(value.data_type())?)
        }
        DataType::Struct(fields) => {
            let fields: Option<Vec<_>> = fields
                .iter()
                .map(|field| Some(format!("{}:{}", identifier(field.name()), spark_type(field.data_type())?)))
                .collect();
            format!("STRUCT<{}>", fields?.join(","))
        }
        _ => return None,
    };
    Some(text)
}

/// A column as CREATE TABLE and ADD COLUMNS declare it.
pub fn declaration(field: &Field) -> Option<String> {
    Some(format!("{} {}", identifier(field.name()), spark_type(field.data_type())?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fhir::RESOURCE_TYPES,
        resource::{Layout, Options, Shape},
    };

    #[test]
    fn every_column_of_every_resource_type_has_a_type_of_spark() {
        for resource_type in RESOURCE_TYPES {
            for layout in [Layout::Pathling, Layout::Wide] {
                let shape = Shape::of(resource_type.parse().unwrap(), Options { layout, raw_json: true });
                for field in shape.schema().fields() {
                    assert!(declaration(field).is_some(), "{resource_type}.{}", field.name());
                }
            }
        }
    }

    #[test]
    fn nested_types_are_written_with_their_names() {
        let code = Field::new("code", DataType::Utf8, true);
        let list = DataType::List(Field::new("element", DataType::Struct(vec![code].into()), true).into());
        assert_eq!(spark_type(&list).unwrap(), "ARRAY<STRUCT<`code`:STRING>>");
        assert_eq!(spark_type(&DataType::Decimal128(32, 6)).unwrap(), "DECIMAL(32,6)");
    }
}
