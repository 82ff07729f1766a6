//! Results: the Arrow batches of a statement, and their values.

use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, RecordBatch, new_null_array},
    compute::cast,
    datatypes::{DataType, Int64Type},
    error::ArrowError,
    ipc::reader::StreamReader,
};

/// The batches of a part of a result, which is a stream of Arrow IPC.
pub fn batches(part: &[u8]) -> Result<Vec<RecordBatch>, ArrowError> {
    let reader = StreamReader::try_new(part, None)?;
    let schema = reader.schema();
    let mut batches = reader.collect::<Result<Vec<_>, _>>()?;
    // A result without rows still says which columns it has.
    if batches.is_empty() {
        batches.push(RecordBatch::new_empty(schema));
    }
    Ok(batches)
}

fn column(batch: &RecordBatch, name: &str, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
    match batch.column_by_name(name) {
        Some(column) => cast(column, data_type),
        None => Ok(new_null_array(data_type, batch.num_rows())),
    }
}

/// The texts of a column; null in all rows where there is no such column.
pub fn texts(batch: &RecordBatch, name: &str) -> Result<Vec<Option<String>>, ArrowError> {
    let column = column(batch, name, &DataType::Utf8)?;
    Ok(column.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect())
}

/// The whole numbers of a column; null in all rows where there is no such column.
pub fn numbers(batch: &RecordBatch, name: &str) -> Result<Vec<Option<i64>>, ArrowError> {
    let column = column(batch, name, &DataType::Int64)?;
    let numbers = column.as_primitive::<Int64Type>();
    Ok(numbers.iter().collect())
}

/// A column of truth values, of which null is false.
pub fn truths(batch: &RecordBatch, name: &str) -> Result<Vec<bool>, ArrowError> {
    let column = column(batch, name, &DataType::Boolean)?;
    Ok(column.as_boolean().iter().map(Option::unwrap_or_default).collect())
}

/// The entries of a column of maps from texts to texts.
pub fn maps(batch: &RecordBatch, name: &str) -> Result<Vec<Vec<(String, String)>>, ArrowError> {
    let Some(column) = batch.column_by_name(name).and_then(|column| column.as_map_opt()) else {
        return Ok(vec![Vec::new(); batch.num_rows()]);
    };
    let entries = |row: usize| {
        if column.is_null(row) {
            return Ok(Vec::new());
        }
        let entries = column.value(row);
        let (keys, values) = (cast(entries.column(0), &DataType::Utf8)?, cast(entries.column(1), &DataType::Utf8)?);
        let pairs = keys.as_string::<i32>().iter().zip(values.as_string::<i32>());
        Ok(pairs.filter_map(|(key, value)| Some((key?.to_owned(), value?.to_owned()))).collect())
    };
    (0..batch.num_rows()).map(entries).collect()
}
