use std::str::FromStr as _;

use arrow::datatypes::{DataType, Schema};

use super::{
    expression::{Condition, Expression},
    *,
};
use crate::{
    fhir::ResourceType,
    resource::{Layout, Options, Shape},
};

const DIALECTS: [Dialect; 2] = [Dialect::Duckdb, Dialect::Spark];

#[test]
fn every_column_that_a_view_names_is_in_the_schema_and_has_no_nesting() {
    for layout in [Layout::Pathling, Layout::Wide] {
        for view in catalogue::all() {
            let resource_type = ResourceType::from_str(view.resource_type).unwrap();
            let schema = Shape::of(resource_type, Options { layout, raw_json: false }).schema();
            let schema = with_item(&schema, view.rows);
            for (name, value) in &view.columns {
                let of = type_of(value, &schema).unwrap_or_else(|missing| panic!("{}.{name}: {missing}", view.name));
                assert!(!of.is_nested(), "{}.{name} is {of}", view.name);
            }
        }
    }
}

#[test]
fn a_name_that_is_not_in_the_schema_is_an_error() {
    let patient = ResourceType::from_str("Patient").unwrap();
    let schema = Shape::of(patient, Options { layout: Layout::Pathling, raw_json: true }).schema();
    let wrong = [
        expression::column("favouriteColour"),
        expression::column("name").first().member("surname"),
        expression::column("name").only(Condition::Is("usage", "official")),
        expression::column("name").only(Condition::HasCode("use", "MR")),
        Expression::IdOf { reference: "subject", resource_type: "Patient" },
    ];
    for expression in wrong {
        assert!(type_of(&expression, &schema).is_err(), "{expression:?}");
    }
}

#[test]
fn no_view_has_two_columns_of_one_name() {
    for view in catalogue::all() {
        let mut names: Vec<_> = view.columns.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), view.columns.len(), "{}", view.name);
    }
}

#[test]
fn a_quote_in_the_root_stays_in_the_name_of_the_table() {
    assert!(views(Dialect::Duckdb, "/o'brien/").contains("FROM delta_scan('/o''brien/Patient.parquet');"));
    assert!(views(Dialect::Spark, "/a`b").contains("FROM delta.`/a``b/Patient.parquet`;"));
}

#[test]
fn every_dialect_has_every_view() {
    for dialect in DIALECTS {
        let sql = views(dialect, "/lake");
        for view in catalogue::all() {
            assert!(sql.contains(&format!("CREATE OR REPLACE VIEW {} AS SELECT\n", view.name)), "{dialect:?}");
        }
        assert_eq!(sql.matches(";\n").count(), catalogue::all().len(), "{dialect:?}");
    }
}

/// The schema with the item that a row of the view stands for.
fn with_item(schema: &Schema, rows: Rows) -> Schema {
    let mut fields = schema.fields().to_vec();
    if let Rows::Items(list) = rows {
        let of = item(&column_type(schema, list).unwrap()).unwrap();
        fields.push(arrow::datatypes::Field::new(catalogue::ITEM, of, true).into());
    }
    Schema::new(fields)
}

fn type_of(expression: &Expression, schema: &Schema) -> Result<DataType, String> {
    let of = |expression: &Expression| type_of(expression, schema);
    match expression {
        Expression::Column(name) => column_type(schema, name),
        Expression::Member(of_what, name) => member(&of(of_what)?, name),
        Expression::First(list) => item(&of(list)?),
        Expression::Where(list, condition) => {
            let list = of(list)?;
            let (text, name) = match condition {
                Condition::Is(name, _) => (member(&item(&list)?, name)?, name),
                Condition::HasCode(name, _) => {
                    let concept = member(&item(&list)?, name)?;
                    (member(&item(&member(&concept, "coding")?)?, "code")?, name)
                }
            };
            if text == DataType::Utf8 { Ok(list) } else { Err(format!("{name} is {text}")) }
        }
        Expression::ExtensionsOf(fid) => match (of(fid)?, column_type(schema, "_extension")?) {
            (DataType::Int32, DataType::Map(entry, _)) => member(entry.data_type(), "value"),
            other => Err(format!("{other:?}")),
        },
        Expression::OneOf(values) => {
            let types = values.iter().map(of).collect::<Result<Vec<_>, _>>()?;
            let number = |of: &DataType| of.is_numeric();
            let alike = types.iter().all(|of| *of == types[0]) || types.iter().all(number);
            if alike { Ok(types[0].clone()) } else { Err(format!("{types:?}")) }
        }
        Expression::IdOf { reference, resource_type } => {
            ResourceType::from_str(resource_type).map_err(|error| error.to_string())?;
            column_type(schema, &format!("__{reference}_type"))?;
            column_type(schema, &format!("__{reference}_id"))
        }
        Expression::Joined(list) => item(&of(list)?),
        Expression::Text(value) => of(value).map(|_| DataType::Utf8),
        Expression::Given(value) => of(value).map(|_| DataType::Boolean),
    }
}

fn column_type(schema: &Schema, name: &str) -> Result<DataType, String> {
    let field = schema.field_with_name(name).map_err(|_| format!("no column {name}"))?;
    Ok(field.data_type().clone())
}

fn member(of: &DataType, name: &str) -> Result<DataType, String> {
    let DataType::Struct(fields) = of else { return Err(format!("{name} of {of}, which has no members")) };
    let (_, field) = fields.find(name).ok_or_else(|| format!("no member {name}"))?;
    Ok(field.data_type().clone())
}

fn item(of: &DataType) -> Result<DataType, String> {
    match of {
        DataType::List(item) => Ok(item.data_type().clone()),
        other => Err(format!("{other} is not a list")),
    }
}
