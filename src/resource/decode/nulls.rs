//! Null arrays: columns, and fields of columns, that no line of a batch fills.
//!
//! A resource type has hundreds of them in each batch, and all look into the same zeros. Fresh zeros for each would be
//! new pages of memory, which the kernel has to provide: a fifth of the CPU time of a first load.

use std::sync::{Arc, LazyLock};

use arrow::{
    array::{
        Array, ArrayRef, BinaryArray, BooleanArray, Decimal128Array, Int32Array, Int64Array, ListArray, MapArray,
        StringArray, StructArray, TimestampMicrosecondArray, new_empty_array, new_null_array,
    },
    buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer},
    datatypes::{ArrowNativeType, DataType, Field, TimeUnit},
    error::ArrowError,
};

/// Null arrays of one length, each made once: a structure has many fields of few types that no line fills.
pub struct Nulls {
    len: usize,
    made: Vec<ArrayRef>,
}

impl Nulls {
    pub fn of(len: usize) -> Self {
        Self { len, made: Vec::new() }
    }

    pub fn array(&mut self, field: &Field) -> ArrayRef {
        let made = self.made.iter().find(|made| made.data_type() == field.data_type());
        made.cloned().unwrap_or_else(|| {
            let array = null_array(field.data_type(), self.len);
            self.made.push(Arc::clone(&array));
            array
        })
    }
}

/// More rows and items than a batch of lines usually has. Longer arrays get zeros of their own.
const MAX_LEN: usize = 64 * 1024;

static ZEROS: LazyLock<Buffer> = LazyLock::new(|| Buffer::from(vec![0; MAX_LEN * size_of::<i128>()]));
static NO_LENGTHS: LazyLock<OffsetBuffer<i32>> = LazyLock::new(|| OffsetBuffer::new_zeroed(MAX_LEN));

fn null_array(data_type: &DataType, len: usize) -> ArrayRef {
    if len > MAX_LEN {
        return new_null_array(data_type, len);
    }
    shared(data_type, len).ok().flatten().unwrap_or_else(|| new_null_array(data_type, len))
}

/// `None` for a type that no column has.
fn shared(data_type: &DataType, len: usize) -> Result<Option<ArrayRef>, ArrowError> {
    let nulls = Some(NullBuffer::new(BooleanBuffer::new(ZEROS.clone(), 0, len)));
    let lengths = || NO_LENGTHS.slice(0, len);
    Ok(Some(match data_type {
        DataType::Utf8 => Arc::new(StringArray::try_new(lengths(), Buffer::default(), nulls)?),
        DataType::Binary => Arc::new(BinaryArray::try_new(lengths(), Buffer::default(), nulls)?),
        DataType::Boolean => Arc::new(BooleanArray::new(BooleanBuffer::new(ZEROS.clone(), 0, len), nulls)),
        DataType::Int32 => Arc::new(Int32Array::try_new(zeros(len), nulls)?),
        DataType::Int64 => Arc::new(Int64Array::try_new(zeros(len), nulls)?),
        DataType::Decimal128(precision, scale) => {
            let values = Decimal128Array::try_new(zeros(len), nulls)?;
            Arc::new(values.with_precision_and_scale(*precision, *scale)?)
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let values = TimestampMicrosecondArray::try_new(zeros(len), nulls)?;
            Arc::new(values.with_timezone_opt(zone.clone()))
        }
        DataType::Struct(fields) => {
            let mut of_fields = Nulls::of(len);
            let columns = fields.iter().map(|field| of_fields.array(field)).collect();
            Arc::new(StructArray::try_new(fields.clone(), columns, nulls)?)
        }
        DataType::List(item) => {
            Arc::new(ListArray::try_new(Arc::clone(item), lengths(), new_empty_array(item.data_type()), nulls)?)
        }
        DataType::Map(entries, ordered) => {
            let none = StructArray::from(new_empty_array(entries.data_type()).to_data());
            Arc::new(MapArray::try_new(Arc::clone(entries), lengths(), none, nulls, *ordered)?)
        }
        _ => return Ok(None),
    }))
}

fn zeros<T: ArrowNativeType>(len: usize) -> ScalarBuffer<T> {
    ScalarBuffer::new(ZEROS.clone(), 0, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fhir::RESOURCE_TYPES,
        resource::{Layout, Options, Shape},
    };

    #[test]
    fn a_column_of_any_type_is_null_in_every_row() {
        for name in RESOURCE_TYPES {
            let shape = Shape::of(name.parse().unwrap(), Options { layout: Layout::Pathling, raw_json: true });
            for field in shape.schema().fields() {
                for len in [0, 1, 9, 1000] {
                    let array = shared(field.data_type(), len).unwrap().unwrap();
                    assert_eq!(array.as_ref(), new_null_array(field.data_type(), len).as_ref(), "{field:?}");
                    assert_eq!((array.len(), array.null_count()), (len, len));
                    array.to_data().validate_full().unwrap();
                }
            }
        }
        let many = null_array(&DataType::Utf8, MAX_LEN + 1);
        assert_eq!(many.null_count(), MAX_LEN + 1);
    }
}
