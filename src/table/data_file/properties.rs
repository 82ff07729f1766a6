//! Writer properties of data files: dictionaries, row groups, statistics, and the Bloom filter of the ids.

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use parquet::{
    arrow::ArrowSchemaConverter,
    errors::ParquetError,
    file::{
        metadata::KeyValue,
        properties::{BloomFilterPosition, EnabledStatistics, WriterProperties, WriterPropertiesBuilder},
    },
    schema::types::ColumnPath,
};

use super::sample::samples;

/// While a file is rewritten, two row groups are in memory: one of the old file and one of the new.
pub const ROW_GROUP_BYTES: usize = 64 * 1024 * 1024;

/// More rows than this in a row group serve no reader: most of them work through one row group at a time.
const MAX_ROW_GROUP_ROWS: usize = 256 * 1024;

/// Says that dates and times follow today's calendar throughout. Without it Spark 3 refuses to read a time before 1900,
/// such as the year of a birth, because Spark 2 might have written it in the calendar of that time
/// (<https://spark.apache.org/docs/3.5.7/sql-data-sources-parquet.html>, `datetimeRebaseModeInRead`).
const SPARK_VERSION: (&str, &str) = ("org.apache.spark.version", "3.1.0");

/// How the columns of a data file are encoded, before the encoder compresses their pages; `leading` of them from the left
/// get statistics.
pub fn writer_properties(schema: &SchemaRef, leading: usize) -> WriterProperties {
    let properties = WriterProperties::builder()
        // Rows differ in size a thousandfold, so bytes bound a row group, not only rows.
        .set_max_row_group_row_count(Some(MAX_ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
        .set_key_value_metadata(Some(vec![KeyValue::new(SPARK_VERSION.0.to_owned(), SPARK_VERSION.1.to_owned())]))
        // With statistics for each of a thousand leaves, reading the footer costs more than reading the ids.
        .set_statistics_enabled(EnabledStatistics::None);
    // Nearly all values of these columns are different, so a dictionary would only cost time.
    let properties = ["id", "id_versioned", "_sync_hash", "resource_json"]
        .into_iter()
        .fold(properties, |properties, name| properties.set_column_dictionary_enabled(ColumnPath::from(name), false));
    let leading = schema.fields().iter().take(leading);
    leading
        .fold(properties, |properties, field| {
            properties.set_column_statistics_enabled(ColumnPath::from(field.name().as_str()), EnabledStatistics::Chunk)
        })
        .build()
}

/// In a smaller file, reading the ids takes about as long as reading the filter.
const MIN_FILTER_ROWS: u64 = 16 * 1024;
/// The size of a filter is a power of two. With this rate that of a full row group has half a MiB, two bytes for each
/// row (docs/decisions/0010-bloom-filters-exclude-row-groups.md).
const FALSE_POSITIVE_RATE: f64 = 0.001;

/// Adds a Bloom filter of the ids for each row group, if the file may get enough rows. The filters are side by side at
/// the end of the file, so that one request reads all of them.
pub fn with_bloom_filter(properties: WriterPropertiesBuilder, max_rows: u64) -> WriterPropertiesBuilder {
    if max_rows < MIN_FILTER_ROWS {
        return properties;
    }
    let id = || ColumnPath::from("id");
    properties
        .set_bloom_filter_position(BloomFilterPosition::End)
        .set_column_bloom_filter_fpp(id(), FALSE_POSITIVE_RATE)
        .set_column_bloom_filter_max_ndv(id(), max_rows.min(MAX_ROW_GROUP_ROWS as u64))
}

/// What the first rows of a file show decides for each leaf column: a dictionary where values repeat.
pub fn by_first_rows(
    properties: WriterPropertiesBuilder,
    schema: &SchemaRef,
    rows: &[RecordBatch],
) -> Result<WriterPropertiesBuilder, ParquetError> {
    let leaves = ArrowSchemaConverter::new().convert(schema)?;
    let samples = samples(rows, leaves.num_columns());
    let leaves = leaves.columns().iter().zip(samples);
    let properties = leaves
        .filter(|(_, sample)| !sample.repeats())
        .fold(properties, |properties, (leaf, _)| properties.set_column_dictionary_enabled(leaf.path().clone(), false));
    Ok(properties)
}
