//! A row digest: it stands for what a row holds in every column, except in those that describe the run.
//!
//! Rows that are equal in all these columns, as Arrow compares them, have the same digest. Other rows have different
//! ones, but for a chance of one in 2^128: the hash is keyed at random, so nobody can choose rows that collide. What is
//! null is not written, so a column, or a field of one, that a row lacks counts as null. Arrow's own row format would
//! write every field that is null, and a resource has hundreds of them.

use std::{
    hash::{BuildHasher as _, Hasher, RandomState},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray as _, BooleanArray, RecordBatch},
    buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer},
    compute::filter_record_batch,
    datatypes::{ArrowNativeType as _, DataType, FieldRef, Schema, SchemaRef},
    error::ArrowError,
};

use crate::table::{change_set::digests::RowDigest, data_file::fill::fit};

/// Columns that differ from run to run for the same content.
const RUN_COLUMNS: [&str; 3] = ["_sync_at", "_sync_transaction_time", "_sync_job"];

/// Makes the digests of one comparison, which has a key of its own.
pub struct RowDigester {
    keys: RandomState,
    schema: SchemaRef,
}

impl RowDigester {
    /// For rows that are compared as rows with this schema.
    pub fn new(schema: &SchemaRef) -> Self {
        Self { keys: RandomState::new(), schema: Arc::clone(schema) }
    }

    /// The digest of each row; `None` where the row holds something that a row with the schema cannot hold, and so
    /// equals none.
    pub fn digests(&self, rows: &RecordBatch) -> Result<Vec<Option<RowDigest>>, ArrowError> {
        let count = rows.num_rows();
        // A column that the rows lack is null in all of them.
        let is_compared = |field: &FieldRef| {
            !RUN_COLUMNS.contains(&field.name().as_str()) && rows.column_by_name(field.name()).is_some()
        };
        let compared = (0..).zip(self.schema.fields()).filter(|(_, field)| is_compared(field));
        let (numbers, fields): (Vec<u32>, Vec<FieldRef>) =
            compared.map(|(number, field)| (number, Arc::clone(field))).unzip();
        match fit(rows, &Arc::new(Schema::new(fields))) {
            Ok(fitted) => self.of_fitted(rows, numbers.into_iter().zip(fitted.columns())),
            Err(_) if count <= 1 => Ok(vec![None; count]),
            Err(_) => {
                // The other rows have a digest all the same.
                let half = |first: bool| {
                    // Not a slice, whose lists would have the items of all rows.
                    let rows_of_half: BooleanArray = (0..count).map(|row| Some((row < count / 2) == first)).collect();
                    self.digests(&filter_record_batch(rows, &rows_of_half)?)
                };
                Ok([half(true)?, half(false)?].concat())
            }
        }
    }

    /// Of rows whose columns are `fitted`, by their numbers in the schema.
    fn of_fitted<'rows>(
        &self,
        rows: &RecordBatch,
        fitted: impl Iterator<Item = (u32, &'rows ArrayRef)>,
    ) -> Result<Vec<Option<RowDigest>>, ArrowError> {
        let mut hashers = vec![self.keys.build_hasher(); rows.num_rows()];
        for (number, column) in fitted.filter(|(_, column)| !is_all_null(column)) {
            let values = Values::of(column)?;
            for (row, hasher) in hashers.iter_mut().enumerate().filter(|(row, _)| values.has(*row)) {
                hasher.write_u32(number);
                values.write(row, hasher);
            }
        }
        let mut digests: Vec<_> = hashers.into_iter().map(|hasher| Some(digest(hasher))).collect();
        let is_ours = |field: &FieldRef| self.schema.field_with_name(field.name()).is_ok();
        let schema = rows.schema();
        for (_, column) in schema.fields().iter().zip(rows.columns()).filter(|(field, _)| !is_ours(field)) {
            for (row, digest) in digests.iter_mut().enumerate() {
                *digest = digest.filter(|_| column.is_null(row));
            }
        }
        Ok(digests)
    }
}

/// The hash gives 64 bits, so it is read twice.
fn digest(mut hasher: impl Hasher) -> RowDigest {
    let low = hasher.finish();
    hasher.write_u8(0xff);
    RowDigest { high: hasher.finish(), low }
}

fn is_all_null(array: &dyn Array) -> bool {
    array.null_count() == array.len()
}

/// The values of a column, or of a field of one.
struct Values {
    nulls: Option<NullBuffer>,
    of: Kind,
}

enum Kind {
    /// The fields that are not null in all rows, by their number.
    Structure(Vec<(u32, Values)>),
    List(OffsetBuffer<i32>, Box<Values>),
    Bytes(OffsetBuffer<i32>, Buffer),
    Bits(BooleanBuffer),
    /// All are of the same width.
    Numbers(usize, Buffer),
}

/// No field of a structure has this number.
const NO_MORE_PARTS: u32 = u32::MAX;

impl Values {
    fn of(array: &ArrayRef) -> Result<Self, ArrowError> {
        let list = |offsets: &OffsetBuffer<i32>, items: &ArrayRef| -> Result<_, ArrowError> {
            Ok(Kind::List(offsets.clone(), Box::new(Self::of(items)?)))
        };
        let of = match array.data_type() {
            DataType::Struct(_) => {
                let fields = (0..).zip(array.as_struct().columns()).filter(|(_, field)| !is_all_null(field));
                Kind::Structure(
                    fields.map(|(number, field)| Ok((number, Self::of(field)?))).collect::<Result<_, ArrowError>>()?,
                )
            }
            DataType::List(_) => list(array.as_list::<i32>().offsets(), array.as_list::<i32>().values())?,
            DataType::Map(..) => {
                let entries: ArrayRef = Arc::new(array.as_map().entries().clone());
                list(array.as_map().offsets(), &entries)?
            }
            DataType::Utf8 => {
                Kind::Bytes(array.as_string::<i32>().offsets().clone(), array.as_string::<i32>().values().clone())
            }
            DataType::Binary => {
                Kind::Bytes(array.as_binary::<i32>().offsets().clone(), array.as_binary::<i32>().values().clone())
            }
            DataType::Boolean => Kind::Bits(array.as_boolean().values().clone()),
            of_width => {
                let no_number = || ArrowError::NotYetImplemented(format!("a digest of {of_width}"));
                let width = of_width.primitive_width().ok_or_else(no_number)?;
                let data = array.to_data();
                let numbers = data.buffers().first().ok_or_else(no_number)?;
                Kind::Numbers(width, numbers.slice(data.offset() * width))
            }
        };
        Ok(Self { nulls: array.nulls().cloned(), of })
    }

    fn has(&self, row: usize) -> bool {
        self.nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row))
    }

    /// Writes the value of a row that has one, so that its end can be told from what follows.
    fn write(&self, row: usize, into: &mut impl Hasher) {
        match &self.of {
            Kind::Structure(fields) => {
                for (number, field) in fields.iter().filter(|(_, field)| field.has(row)) {
                    into.write_u32(*number);
                    field.write(row, into);
                }
                into.write_u32(NO_MORE_PARTS);
            }
            Kind::List(offsets, items) => {
                let (start, end) = (offsets[row].as_usize(), offsets[row + 1].as_usize());
                into.write_usize(end - start);
                for item in start..end {
                    into.write_u8(items.has(item).into());
                    if items.has(item) {
                        items.write(item, into);
                    }
                }
            }
            Kind::Bytes(offsets, bytes) => {
                let value = &bytes[offsets[row].as_usize()..offsets[row + 1].as_usize()];
                into.write_usize(value.len());
                into.write(value);
            }
            Kind::Bits(bits) => into.write_u8(bits.value(row).into()),
            Kind::Numbers(width, bytes) => into.write(&bytes[row * width..][..*width]),
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{
            ArrayRef, Decimal128Array, Float64Array, Int64Array, ListArray, StringArray, StructArray,
            TimestampMicrosecondArray, TimestampMillisecondArray, UInt32Array, new_null_array,
        },
        compute::take,
        datatypes::{Field, TimeUnit},
    };
    use arrow_json::ReaderBuilder;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::table::data_file::fill::narrow;

    fn is_same(stored: &RecordBatch, stored_row: usize, received: &RecordBatch, received_row: usize) -> bool {
        let digester = RowDigester::new(&received.schema());
        let digest = |rows: &RecordBatch, row: usize| digester.digests(rows).unwrap()[row];
        digest(stored, stored_row).is_some() && digest(stored, stored_row) == digest(received, received_row)
    }

    /// The same, column by column.
    fn is_equal(stored: &RecordBatch, received: &RecordBatch) -> bool {
        let names = |batch: &RecordBatch| -> Vec<String> {
            batch.schema().fields().iter().map(|field| field.name().clone()).collect()
        };
        let only_stored = names(stored).into_iter().filter(|name| received.column_by_name(name).is_none());
        let mut compared = names(received).into_iter().chain(only_stored);
        compared.all(|name| match (stored.column_by_name(&name), received.column_by_name(&name)) {
            _ if RUN_COLUMNS.contains(&name.as_str()) => true,
            // Of the row alone: a list that is a slice still has the items of all rows.
            (Some(stored), Some(received)) => {
                let field = Field::new(&name, received.data_type().clone(), true);
                let stored = take(stored, &UInt32Array::from(vec![0]), None).unwrap();
                let stored = RecordBatch::try_from_iter([(&name, stored)]).unwrap();
                fit(&stored, &Arc::new(Schema::new(vec![field]))).is_ok_and(|stored| stored.column(0) == received)
            }
            (Some(one), None) | (None, Some(one)) => one == &new_null_array(one.data_type(), 1),
            (None, None) => true,
        })
    }

    /// Rows with a list of structures of these fields.
    fn lists(fields: &[(&str, [Option<&str>; 2])]) -> RecordBatch {
        let fields = fields.iter().map(|(name, values)| {
            let values: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
            (Arc::new(Field::new(*name, DataType::Utf8, true)), values)
        });
        let structure = StructArray::from(fields.collect::<Vec<_>>());
        let item = Arc::new(Field::new_list_field(structure.data_type().clone(), true));
        let list = ListArray::new(item, OffsetBuffer::from_lengths([1, 1]), Arc::new(structure), None);
        RecordBatch::try_from_iter([("name", Arc::new(list) as ArrayRef)]).unwrap()
    }

    #[test]
    fn a_part_that_another_row_has_in_its_list_makes_no_difference() {
        let stored = lists(&[("text", [Some("x"), Some("y")]), ("family", [None, Some("z")])]);
        let received = lists(&[("text", [Some("x"), Some("y")])]);
        assert!(is_same(&stored, 0, &received, 0));
        assert!(!is_same(&stored, 1, &received, 1));
    }

    /// A row with a structure of these fields.
    fn row(fields: &[(&str, Option<&str>)]) -> RecordBatch {
        let fields = fields.iter().map(|(name, value)| {
            let value: ArrayRef = Arc::new(StringArray::from(vec![*value]));
            (Arc::new(Field::new(*name, DataType::Utf8, true)), value)
        });
        let structure: ArrayRef = Arc::new(StructArray::from(fields.collect::<Vec<_>>()));
        RecordBatch::try_from_iter([("name", structure)]).unwrap()
    }

    #[test]
    fn a_part_of_a_structure_that_one_row_lacks_is_compared_as_null() {
        let narrow = row(&[("text", Some("x"))]);
        let wide = |family| row(&[("family", family), ("text", Some("x"))]);
        for (one, other, same) in [
            (&narrow, &wide(None), true),
            (&narrow, &wide(Some("y")), false),
            (&wide(Some("y")), &narrow, false),
            (&wide(None), &narrow, true),
            (&wide(Some("y")), &wide(Some("y")), true),
        ] {
            assert_eq!(is_same(one, 0, other, 0), same, "{one:?} {other:?}");
        }
        assert!(!is_same(&row(&[("text", Some("z"))]), 0, &wide(None), 0));
    }

    /// Each stored row against each received one: is the answer that of a comparison column by column?
    fn agrees(stored: &RecordBatch, received: &RecordBatch) {
        let digester = RowDigester::new(&received.schema());
        let [of_stored, of_received] = [stored, received].map(|rows| digester.digests(rows).unwrap());
        assert!(of_received.iter().all(Option::is_some));
        for (row, digest) in of_stored.iter().enumerate() {
            for (other, of_other) in of_received.iter().enumerate() {
                let (one, other) = (stored.slice(row, 1), received.slice(other, 1));
                assert_eq!(digest == of_other, is_equal(&one, &other), "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn numbers_are_compared_as_those_of_the_received_column() {
        let of = |column: ArrayRef| RecordBatch::try_from_iter([("number", column)]).unwrap();
        let decimals = |values: [i128; 4], scale| {
            let values = values.map(Some).into_iter().chain([None]).collect::<Decimal128Array>();
            of(Arc::new(values.with_precision_and_scale(38, scale).unwrap()))
        };
        // The last one has a digit that the received column has not.
        agrees(&decimals([410, 4_100, 0, 4_101], 3), &decimals([41, 410, 0, 4], 2));
        agrees(&decimals([41, 410, 0, 4], 2), &decimals([410, 4_100, 0, 4_101], 3));
        let floats = of(Arc::new(Float64Array::from(vec![Some(0.0), Some(-0.0), Some(f64::NAN), None])));
        agrees(&floats, &floats);
        let millis = of(Arc::new(TimestampMillisecondArray::from(vec![Some(1), Some(-1), Some(i64::MAX), None])));
        let micros = TimestampMicrosecondArray::from(vec![Some(1_000), Some(-1_000), Some(1), None]);
        agrees(&millis, &of(Arc::new(micros.with_timezone("UTC"))));
        agrees(
            &of(Arc::new(StringArray::from(vec![Some("1"), Some("x"), Some(""), None]))),
            &of(Arc::new(Int64Array::from(vec![1]))),
        );
    }

    #[test]
    fn what_follows_a_structure_is_not_taken_for_a_part_of_it() {
        let numbers = |names: &[&str]| names.iter().map(|name| field(name, DataType::Int32)).collect::<Vec<_>>();
        let inner = field("inner", DataType::Struct(numbers(&["one", "two"]).into()));
        let outer = field("outer", DataType::Struct([vec![inner], numbers(&["two"])].concat().into()));
        let mut decoder = ReaderBuilder::new(Arc::new(Schema::new(vec![outer]))).build_decoder().unwrap();
        let rows = [
            json!({ "outer": { "inner": { "one": 1, "two": 2 } } }),
            json!({ "outer": { "inner": { "one": 1 }, "two": 2 } }),
        ];
        decoder.serialize(&rows).unwrap();
        let rows = decoder.flush().unwrap().unwrap();
        agrees(&rows, &rows);
    }

    fn field(name: &str, data_type: DataType) -> Field {
        Field::new(name, data_type, true)
    }

    fn schema() -> SchemaRef {
        let fields =
            vec![field("text", DataType::Utf8), field("flag", DataType::Boolean), field("number", DataType::Int32)];
        let flat = DataType::Struct(fields.into());
        let list = |of| DataType::List(Arc::new(field("element", of)));
        let nested = DataType::Struct(vec![field("flat", flat.clone()), field("all", list(flat))].into());
        let entry = vec![Field::new("key", DataType::Utf8, false), field("value", list(DataType::Utf8))];
        let entries = Field::new("key_value", DataType::Struct(entry.into()), false);
        Arc::new(Schema::new(vec![
            field("text", DataType::Utf8),
            field("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
            field("nested", nested.clone()),
            field("list", list(nested)),
            field("map", DataType::Map(Arc::new(entries), false)),
            field("_sync_at", DataType::Int64),
        ]))
    }

    /// Few values, so that many rows are equal.
    fn row_of_schema() -> impl Strategy<Value = Value> {
        let or_null = |value: Value| prop_oneof![Just(Value::Null), Just(value)];
        let flat = move || {
            let fields = (or_null(json!("a")), or_null(json!(true)), or_null(json!(0)));
            let flat = fields.prop_map(|(text, flag, number)| json!({ "text": text, "flag": flag, "number": number }));
            prop_oneof![1 => Just(Value::Null), 1 => flat]
        };
        let many = |of: BoxedStrategy<Value>| prop_oneof![1 => Just(Value::Null), 2 => proptest::collection::vec(of, 0..3).prop_map(Value::from)];
        let nested = move || {
            let fields = (flat(), many(flat().boxed()));
            let nested = fields.prop_map(|(flat, all)| json!({ "flat": flat, "all": all }));
            prop_oneof![1 => Just(Value::Null), 1 => nested]
        };
        let map =
            prop_oneof![Just(Value::Null), Just(json!({})), Just(json!({ "a": null })), Just(json!({ "a": [""] }))];
        let simple = (prop_oneof![Just(""), Just("a"), Just("aa")], or_null(json!("1969-12-31T23:59:59.999Z")));
        (simple, nested(), many(nested().boxed()), map, 0i64..9).prop_map(|((text, at), nested, list, map, run)| {
            json!({ "text": text, "at": at, "nested": nested, "list": list, "map": map, "_sync_at": run })
        })
    }

    fn rows(rows: &[Value]) -> RecordBatch {
        let mut decoder = ReaderBuilder::new(schema()).build_decoder().unwrap();
        decoder.serialize(rows).unwrap();
        decoder.flush().unwrap().unwrap()
    }

    proptest! {
        #[test]
        fn rows_have_the_same_digest_where_all_their_columns_are_equal(
            stored in proptest::collection::vec(row_of_schema(), 1..6),
            received in proptest::collection::vec(row_of_schema(), 1..6),
        ) {
            // Some rows are the same, but for the run.
            let stored = rows(&[stored, received.clone()].concat());
            let (received, wide) = (rows(&received), stored.clone());
            for stored in [wide, narrow(&stored).unwrap(), stored.slice(1, stored.num_rows() - 1)] {
                agrees(&stored, &received);
            }
            let digester = RowDigester::new(&schema());
            prop_assert_eq!(digester.digests(&received).unwrap(), digester.digests(&narrow(&received).unwrap()).unwrap());
        }
    }
}
