//! Writer properties of data files: compression, row groups, statistics, and the Bloom filter of the ids.

use arrow::{array::RecordBatch, datatypes::SchemaRef};
use parquet::{
    arrow::ArrowSchemaConverter,
    basic::{Compression, ZstdLevel},
    errors::ParquetError,
    file::properties::{BloomFilterPosition, EnabledStatistics, WriterProperties, WriterPropertiesBuilder},
    schema::types::ColumnPath,
};

use super::sample::samples;

/// While a file is rewritten, two row groups are in memory: one of the old file and one of the new.
pub const ROW_GROUP_BYTES: usize = 64 * 1024 * 1024;

/// More rows than this in a row group serve no reader: most of them work through one row group at a time.
const MAX_ROW_GROUP_ROWS: usize = 256 * 1024;

/// How the columns of a data file are encoded; `leading` of them from the left get statistics.
pub fn writer_properties(schema: &SchemaRef, leading: usize) -> WriterProperties {
    let properties = WriterProperties::builder()
        .set_compression(zstd())
        // Rows differ in size a thousandfold, so bytes bound a row group, not only rows.
        .set_max_row_group_row_count(Some(MAX_ROW_GROUP_ROWS))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES))
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

/// For files that are written side by side. Each leaf column has its own compressor; those of zstd take 60 MB for one
/// file with hundreds of leaves, most of which have hardly a value. Those of Snappy take nothing; the large columns,
/// which are the flat ones, keep zstd.
fn with_small_compressors(properties: WriterPropertiesBuilder, schema: &SchemaRef) -> WriterPropertiesBuilder {
    let large = schema.fields().iter().filter(|field| !field.data_type().is_nested());
    large.fold(properties.set_compression(Compression::SNAPPY), |properties, field| {
        properties.set_column_compression(ColumnPath::from(field.name().as_str()), zstd())
    })
}

/// What the first rows of a file show decides for each leaf column: a compressor of zstd where there is a value, and a
/// dictionary where values repeat.
///
/// Each leaf column has its own compressor, and those of zstd take 60 MB for one file with hundreds of leaves. Most of
/// them have no value in `rows`, the first ones of the file, and hardly any later: their pages are a few bytes, and
/// Snappy, whose compressors take nothing, is as good for them. `small` asks for the compressors of
/// [`with_small_compressors`] instead.
pub fn by_first_rows(
    properties: WriterPropertiesBuilder,
    schema: &SchemaRef,
    rows: &[RecordBatch],
    small: bool,
) -> Result<WriterPropertiesBuilder, ParquetError> {
    let leaves = ArrowSchemaConverter::new().convert(schema)?;
    let samples = samples(rows, leaves.num_columns());
    let properties = if small { with_small_compressors(properties, schema) } else { properties };
    let properties = leaves.columns().iter().zip(samples).fold(properties, |properties, (leaf, sample)| {
        let path = leaf.path();
        let properties = if small || sample.is_filled() {
            properties
        } else {
            properties.set_column_compression(path.clone(), Compression::SNAPPY)
        };
        if sample.repeats() { properties } else { properties.set_column_dictionary_enabled(path.clone(), false) }
    });
    Ok(properties)
}

fn zstd() -> Compression {
    Compression::ZSTD(ZstdLevel::default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::{
        array::{ArrayRef, ListArray, MapArray, StringArray, StructArray},
        buffer::OffsetBuffer,
        datatypes::{DataType, Field, Fields},
    };

    use super::*;

    fn text(name: &str) -> Field {
        Field::new(name, DataType::Utf8, true)
    }

    fn texts<const N: usize>(texts: [Option<&str>; N]) -> ArrayRef {
        Arc::new(StringArray::from(texts.to_vec()))
    }

    fn lengths<const N: usize>(lengths: [usize; N]) -> OffsetBuffer<i32> {
        OffsetBuffer::from_lengths(lengths)
    }

    /// Two rows with structures alone, in a list and in a map.
    fn rows() -> RecordBatch {
        let fields = Fields::from(vec![text("start"), text("end")]);
        let period = StructArray::new(fields.clone(), vec![texts([None, None]), texts([Some("2020"), None])], None);
        let element = Arc::new(Field::new("element", DataType::Struct(fields.clone()), true));
        let periods = StructArray::new(fields, vec![texts([Some("2021")]), texts([None])], None);
        let periods = ListArray::new(element, lengths([0, 1]), Arc::new(periods), None);
        let fields = Fields::from(vec![Field::new("keys", DataType::Utf8, false), text("values")]);
        let entries = Arc::new(Field::new("entries", DataType::Struct(fields.clone()), false));
        let extension = StructArray::new(fields, vec![texts([Some("k")]), texts([None])], None);
        let extension = MapArray::new(entries, lengths([1, 0]), extension, None, false);
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("id", texts([Some("1"), Some("2")])),
            ("period", Arc::new(period)),
            ("periods", Arc::new(periods)),
            ("extension", Arc::new(extension)),
            ("last", texts([None, Some("x")])),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true)))
            .unwrap()
    }

    #[test]
    fn only_leaves_with_values_among_the_first_rows_get_a_large_compressor() {
        let rows = [rows()];
        let schema = rows[0].schema();
        let properties = writer_properties(&schema, 1).into_builder();
        let properties = by_first_rows(properties, &schema, &rows, false).unwrap().build();
        let leaves = ArrowSchemaConverter::new().convert(&schema).unwrap();
        let small = leaves.columns().iter().filter(|leaf| properties.compression(leaf.path()) == Compression::SNAPPY);
        let small: Vec<_> = small.map(|leaf| leaf.path().string()).collect();
        assert_eq!(small, ["period.start", "periods.list.element.end", "extension.entries.values"]);
    }
}
