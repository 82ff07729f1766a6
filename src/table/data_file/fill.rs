//! What a column fills: which of its fields have something in some row.
//!
//! Most fields of a resource type have nothing. Rows that wait for their commit are kept without those: they are
//! [`narrow`]. A column of a data file has all fields again, see [`fitted`].

use std::sync::Arc;

use arrow::{
    array::{
        Array, ArrayRef, AsArray as _, Decimal128Array, ListArray, MapArray, RecordBatch, RecordBatchOptions,
        StructArray, new_null_array,
    },
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef},
    error::ArrowError,
};

/// The fields of a column in their order, and whether any row until now has something there.
pub struct Fill {
    pub present: bool,
    pub children: Vec<Fill>,
}

impl Fill {
    /// No field has anything.
    pub fn of(data_type: &DataType) -> Self {
        let children = children(data_type).iter().map(|child| Self::of(child.data_type())).collect();
        Self { present: false, children }
    }

    /// Adds what `array` has. Is anything of it new? What a null parent hides counts as present: it only costs a writer.
    pub fn note(&mut self, array: &dyn Array) -> bool {
        let is_new = !self.present && array.null_count() < array.len();
        self.present |= is_new;
        let mut any_new = is_new;
        match array.data_type() {
            DataType::Struct(_) => {
                for (fill, column) in self.children.iter_mut().zip(array.as_struct().columns()) {
                    any_new |= fill.note(column);
                }
            }
            DataType::List(_) => {
                for fill in &mut self.children {
                    any_new |= fill.note(array.as_list::<i32>().values());
                }
            }
            DataType::Map(..) => {
                for fill in &mut self.children {
                    any_new |= fill.note(array.as_map().entries());
                }
            }
            _ => {}
        }
        any_new
    }
}

/// The child fields of a nested type.
pub fn children(data_type: &DataType) -> &[FieldRef] {
    match data_type {
        DataType::Struct(fields) => fields,
        DataType::List(field) | DataType::Map(field, _) => std::slice::from_ref(field),
        _ => &[],
    }
}

/// Structures, lists and maps of flat values are all that a table has. How many leaves are in one; `None` for others.
pub fn leaves_of(data_type: &DataType) -> Option<usize> {
    match data_type {
        DataType::Struct(_) | DataType::List(_) | DataType::Map(..) => {
            children(data_type).iter().map(|child| leaves_of(child.data_type())).sum()
        }
        nested if nested.is_nested() => None,
        _ => Some(1),
    }
}

impl Fill {
    /// The type without the fields that have nothing. A structure keeps one of them in any case, and a map both.
    fn narrowed(&self, data_type: &DataType) -> DataType {
        let narrowed = |field: &FieldRef, fill: &Self| with_type(field, fill.narrowed(field.data_type()));
        match data_type {
            DataType::Struct(fields) => {
                let all = fields.iter().zip(&self.children);
                let kept = all.clone().filter(|(field, fill)| fill.present || !field.is_nullable());
                let mut kept: Vec<_> = kept.map(|(field, fill)| narrowed(field, fill)).collect();
                if kept.is_empty() {
                    kept.extend(all.take(1).map(|(field, fill)| narrowed(field, fill)));
                }
                DataType::Struct(kept.into())
            }
            DataType::List(item) => {
                DataType::List(self.children.first().map_or_else(|| Arc::clone(item), |fill| narrowed(item, fill)))
            }
            DataType::Map(entries, ordered) => {
                let both = children(entries.data_type()).iter();
                let fills = self.children.first().map(|fill| fill.children.as_slice()).unwrap_or_default();
                let both: Fields = both.zip(fills).map(|(field, fill)| narrowed(field, fill)).collect();
                DataType::Map(with_type(entries, DataType::Struct(both)), *ordered)
            }
            flat => flat.clone(),
        }
    }
}

pub fn with_type(field: &FieldRef, data_type: DataType) -> FieldRef {
    if *field.data_type() == data_type {
        return Arc::clone(field);
    }
    Arc::new(field.as_ref().clone().with_data_type(data_type))
}

/// The rows without the columns, and without the fields of columns, that have nothing in any of them.
pub fn narrow(rows: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = rows.schema();
    let filled = schema.fields().iter().zip(rows.columns()).filter(|(_, column)| column.null_count() < column.len());
    let fields = filled.map(|(field, column)| {
        let mut fill = Fill::of(field.data_type());
        fill.note(column);
        with_type(field, fill.narrowed(field.data_type()))
    });
    fit(rows, &Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

/// The rows with exactly these columns, in this order. A column or a field of one that they do not have is null. Whole
/// columns that the schema lacks are left out; a field of a column that it lacks must have nothing.
pub fn fit(rows: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let mut nulls = Nulls::default();
    let columns = schema.fields().iter().map(|field| match rows.column_by_name(field.name()) {
        Some(column) => fitted(column, field.data_type(), &mut nulls),
        None => Ok(nulls.array(field.data_type(), rows.num_rows())),
    });
    let columns = columns.collect::<Result<_, _>>()?;
    let length = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &length)
}

/// The array as one of this type: see [`fit`].
fn fitted(array: &ArrayRef, to: &DataType, nulls: &mut Nulls) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    let own_nulls = array.nulls().cloned();
    Ok(match (array.data_type(), to) {
        (DataType::Struct(from), DataType::Struct(fields)) => {
            let structure = array.as_struct();
            let lost = |field: &FieldRef| fields.find(field.name()).is_none();
            let mut lost = from.iter().zip(structure.columns()).filter(|(field, _)| lost(field));
            if let Some((field, _)) = lost.find(|(_, column)| column.null_count() < column.len()) {
                let what =
                    format!("the table has no place for {}; `fhir-sync maintain --rebuild` makes it", field.name());
                return Err(ArrowError::SchemaError(what));
            }
            let child = |field: &FieldRef| match structure.column_by_name(field.name()) {
                Some(column) => fitted(column, field.data_type(), nulls),
                None => Ok(nulls.array(field.data_type(), array.len())),
            };
            let columns = fields.iter().map(child).collect::<Result<_, _>>()?;
            Arc::new(StructArray::try_new_with_length(fields.clone(), columns, own_nulls, array.len())?)
        }
        (DataType::List(_), DataType::List(item)) => {
            let list = array.as_list::<i32>();
            let values = fitted(list.values(), item.data_type(), nulls)?;
            Arc::new(ListArray::try_new(Arc::clone(item), list.offsets().clone(), values, own_nulls)?)
        }
        (DataType::Map(..), DataType::Map(entries, ordered)) => {
            let map = array.as_map();
            let all: ArrayRef = Arc::new(map.entries().clone());
            let all = fitted(&all, entries.data_type(), nulls)?.as_struct().clone();
            Arc::new(MapArray::try_new(Arc::clone(entries), map.offsets().clone(), all, own_nulls, *ordered)?)
        }
        (DataType::Decimal128(_, scale), DataType::Decimal128(precision, fewer)) if fewer < scale => {
            Arc::new(with_fewer_digits(array.as_primitive(), *precision, *fewer)?)
        }
        _ => cast_with_options(array, to, &CastOptions { safe: false, ..CastOptions::default() })?,
    })
}

/// The same decimals with fewer digits after the point; an error if one would lose some.
fn with_fewer_digits(values: &Decimal128Array, precision: u8, scale: i8) -> Result<Decimal128Array, ArrowError> {
    let too_long = || {
        let what = "the decimals of the table have fewer digits after the point; `fhir-sync maintain --rebuild` gives them \
                    more";
        ArrowError::SchemaError(what.to_owned())
    };
    let factor = 10i128.checked_pow(u32::from(values.scale().abs_diff(scale))).ok_or_else(too_long)?;
    let shorter = |value: i128| if value % factor == 0 { Ok(value / factor) } else { Err(too_long()) };
    let shorter: Decimal128Array = values.try_unary(shorter)?;
    let shorter = shorter.with_precision_and_scale(precision, scale)?;
    shorter.validate_decimal_precision(precision)?;
    Ok(shorter)
}

/// Null arrays, each made once: rows have many fields of few types that none of them fills.
#[derive(Default)]
struct Nulls(Vec<ArrayRef>);

impl Nulls {
    fn array(&mut self, data_type: &DataType, len: usize) -> ArrayRef {
        let made = self.0.iter().find(|made| made.len() == len && made.data_type() == data_type);
        made.cloned().unwrap_or_else(|| {
            let array = new_null_array(data_type, len);
            self.0.push(Arc::clone(&array));
            array
        })
    }
}

/// Which fields of `all` are in `some`, as one bit for each field that is reached.
pub fn fields_of(all: &Fields, some: &Fields) -> Result<Vec<bool>, ArrowError> {
    let mut bits = Vec::new();
    note_fields(all, some, &mut bits)?;
    Ok(bits)
}

fn note_fields(all: &Fields, some: &Fields, bits: &mut Vec<bool>) -> Result<(), ArrowError> {
    if some.iter().any(|field| all.find(field.name()).is_none()) {
        return Err(other_schema());
    }
    for field in all {
        let found = some.find(field.name()).map(|(_, found)| found);
        bits.push(found.is_some());
        if let Some(found) = found {
            note_type(field.data_type(), found.data_type(), bits)?;
        }
    }
    Ok(())
}

fn note_type(all: &DataType, some: &DataType, bits: &mut Vec<bool>) -> Result<(), ArrowError> {
    match (all, some) {
        (DataType::Struct(all), DataType::Struct(some)) => note_fields(all, some, bits),
        (DataType::List(all), DataType::List(some)) | (DataType::Map(all, _), DataType::Map(some, _)) => {
            note_type(all.data_type(), some.data_type(), bits)
        }
        _ if all == some => Ok(()),
        _ => Err(other_schema()),
    }
}

fn other_schema() -> ArrowError {
    ArrowError::SchemaError("the rows are of another schema than the change set".to_owned())
}

/// The fields of `all` that [`fields_of`] has found; `None` where there are too few bits.
pub fn with_fields(all: &Fields, bits: &mut impl Iterator<Item = bool>) -> Option<Fields> {
    let mut fields = Vec::new();
    for field in all {
        if bits.next()? {
            fields.push(with_type(field, type_with_fields(field.data_type(), bits)?));
        }
    }
    Some(fields.into())
}

fn type_with_fields(data_type: &DataType, bits: &mut impl Iterator<Item = bool>) -> Option<DataType> {
    Some(match data_type {
        DataType::Struct(fields) => DataType::Struct(with_fields(fields, bits)?),
        DataType::List(item) => DataType::List(with_type(item, type_with_fields(item.data_type(), bits)?)),
        DataType::Map(entries, ordered) => {
            DataType::Map(with_type(entries, type_with_fields(entries.data_type(), bits)?), *ordered)
        }
        flat => flat.clone(),
    })
}

/// The fields of `all` that at least one of these has.
pub fn union(all: &Fields, some: &[&Fields]) -> Fields {
    let fields = all.iter().filter_map(|field| {
        let of: Vec<_> = some.iter().filter_map(|fields| Some(fields.find(field.name())?.1.data_type())).collect();
        (!of.is_empty()).then(|| with_type(field, union_of_types(field.data_type(), &of)))
    });
    fields.collect()
}

fn union_of_types(all: &DataType, some: &[&DataType]) -> DataType {
    let inner = |of: &DataType| children(of).first().map(|field| field.data_type().clone());
    match all {
        DataType::Struct(fields) => {
            let some: Vec<_> = some
                .iter()
                .filter_map(|of| match of {
                    DataType::Struct(fields) => Some(fields),
                    _ => None,
                })
                .collect();
            DataType::Struct(union(fields, &some))
        }
        DataType::List(item) | DataType::Map(item, _) => {
            let some: Vec<_> = some.iter().filter_map(|of| inner(of)).collect();
            let item = with_type(item, union_of_types(item.data_type(), &some.iter().collect::<Vec<_>>()));
            match all {
                DataType::Map(_, ordered) => DataType::Map(item, *ordered),
                _ => DataType::List(item),
            }
        }
        flat => flat.clone(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, TimeUnit};
    use arrow_json::ReaderBuilder;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// (`tables.layout` was changed, and the tables not rebuilt)
    #[test]
    fn no_digit_of_a_decimal_is_lost_in_a_table_that_has_fewer() {
        let decimals = |value, scale| {
            let values = Decimal128Array::from(vec![Some(value), None]).with_precision_and_scale(38, scale);
            let values: ArrayRef = Arc::new(values.unwrap());
            let value = field("value", values.data_type().clone());
            let structure: ArrayRef = Arc::new(StructArray::from(vec![(value, values)]));
            RecordBatch::try_from_iter([("quantity", structure)]).unwrap()
        };
        let (few, many) = (decimals(41, 6), decimals(41_000_000, 12));
        assert_eq!(fit(&many, &few.schema()).unwrap(), few);
        assert_eq!(fit(&few, &many.schema()).unwrap(), many);
        let error = fit(&decimals(41_000_001, 12), &few.schema()).unwrap_err().to_string();
        assert!(error.contains("maintain --rebuild"), "{error}");
    }

    fn field(name: &str, data_type: DataType) -> FieldRef {
        Arc::new(Field::new(name, data_type, true))
    }

    /// Structures alone, in each other, in a list and in a map.
    fn schema() -> SchemaRef {
        let flat = vec![field("text", DataType::Utf8), field("number", DataType::Int64)];
        let flat = DataType::Struct(flat.into());
        let nested = DataType::Struct(vec![field("flat", flat.clone()), field("other", DataType::Utf8)].into());
        let key = Arc::new(Field::new("key", DataType::Utf8, false));
        let value = field("value", DataType::List(field("element", flat.clone())));
        let entries = Field::new("entries", DataType::Struct(vec![key, value].into()), false);
        Arc::new(Schema::new(vec![
            field("id", DataType::Utf8),
            field("nested", nested.clone()),
            field("list", DataType::List(field("element", nested))),
            field("map", DataType::Map(Arc::new(entries), false)),
            field("never", DataType::Timestamp(TimeUnit::Microsecond, None)),
        ]))
    }

    fn flat() -> impl Strategy<Value = Value> {
        let text = prop_oneof![3 => Just(Value::Null), 1 => "[a-c]".prop_map(Value::from)];
        let number = prop_oneof![3 => Just(Value::Null), 1 => (0..9).prop_map(Value::from)];
        prop_oneof![
            1 => Just(Value::Null),
            2 => (text, number).prop_map(|(text, number)| json!({ "text": text, "number": number })),
        ]
    }

    fn row() -> impl Strategy<Value = Value> {
        let nested = || {
            let both = (flat(), prop_oneof![3 => Just(Value::Null), 1 => Just(json!("x"))]);
            let nested = both.prop_map(|(flat, other)| json!({ "flat": flat, "other": other }));
            prop_oneof![1 => Just(Value::Null), 2 => nested]
        };
        let many = |of: BoxedStrategy<Value>| prop_oneof![1 => Just(Value::Null), 2 => proptest::collection::vec(of, 0..3).prop_map(Value::from)];
        let map = proptest::collection::btree_map("[a-c]", many(flat().boxed()), 0..3);
        let map = prop_oneof![1 => Just(Value::Null), 1 => map.prop_map(|map| json!(map))];
        (nested(), many(nested().boxed()), map)
            .prop_map(|(nested, list, map)| json!({ "id": "a", "nested": nested, "list": list, "map": map }))
    }

    fn rows(rows: &[Value]) -> RecordBatch {
        let mut decoder = ReaderBuilder::new(schema()).build_decoder().unwrap();
        decoder.serialize(rows).unwrap();
        decoder.flush().unwrap().unwrap()
    }

    /// Every field that is left has something, but for the one that a structure keeps in any case.
    fn assert_narrow(array: &ArrayRef) {
        match array.data_type() {
            DataType::Struct(_) => {
                let columns = array.as_struct().columns();
                let is_filled = |column: &ArrayRef| column.null_count() < column.len();
                assert!(columns.len() == 1 || columns.iter().all(is_filled), "{array:?}");
                columns.iter().for_each(assert_narrow);
            }
            DataType::List(_) => assert_narrow(array.as_list::<i32>().values()),
            _ => {}
        }
    }

    proptest! {
        #[test]
        fn narrow_rows_have_no_empty_fields_and_become_the_same_rows_again(
            values in proptest::collection::vec(row(), 1..6), begin in 0usize..3,
        ) {
            let all = rows(&values);
            // A slice of rows has the offsets of its neighbours.
            let begin = begin.min(values.len() - 1);
            for rows in [all.clone(), all.slice(begin, values.len() - begin)] {
                let narrow = narrow(&rows).unwrap();
                narrow.columns().iter().for_each(assert_narrow);
                prop_assert!(narrow.column_by_name("never").is_none());
                let bits = fields_of(schema().fields(), narrow.schema().fields()).unwrap();
                let again = with_fields(schema().fields(), &mut bits.into_iter()).unwrap();
                let schema_of_narrow = narrow.schema();
                prop_assert_eq!(&again, schema_of_narrow.fields());
                prop_assert_eq!(fit(&narrow, &schema()).unwrap(), rows);
            }
        }

        #[test]
        fn rows_with_different_fields_fit_their_union(
            one in proptest::collection::vec(row(), 1..4), other in proptest::collection::vec(row(), 1..4),
        ) {
            let both = [rows(&one), rows(&other)];
            let narrow = both.clone().map(|rows| narrow(&rows).unwrap());
            let schemas = narrow.each_ref().map(RecordBatch::schema);
            let common = union(schema().fields(), &schemas.each_ref().map(|schema| schema.fields()));
            let common = Arc::new(Schema::new(common));
            for (rows, narrow) in both.iter().zip(&narrow) {
                let fitted = fit(narrow, &common).unwrap();
                prop_assert_eq!(&fit(&fitted, &schema()).unwrap(), rows);
            }
        }
    }

    #[test]
    fn a_part_with_values_is_never_dropped() {
        let rows = rows(&[json!({ "id": "a", "nested": { "other": "x", "flat": { "text": "y" } } })]);
        let only = |name: &str| {
            let nested = DataType::Struct(vec![field(name, DataType::Utf8)].into());
            fit(&rows, &Arc::new(Schema::new(vec![field("nested", nested)])))
        };
        assert!(only("other").unwrap_err().to_string().contains("no place for flat"));
        assert!(only("x").is_err());
        let other = Schema::new(vec![field("id", DataType::Int64)]);
        assert!(fields_of(schema().fields(), other.fields()).is_err());
        assert!(fields_of(other.fields(), schema().fields()).is_err());
    }
}
