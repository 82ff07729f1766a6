use arrow::{
    array::{
        Array as _, BooleanArray, Decimal128Array, Int32Array, Int64Array, ListArray, MapArray, StringArray,
        StructArray,
    },
    buffer::{NullBuffer, OffsetBuffer},
    datatypes::{DataType, Field, Fields},
};
use futures::executor::block_on;
use parquet::{
    arrow::{
        ArrowWriter, ProjectionMask,
        arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder, RowSelection, RowSelector},
    },
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type,
    file::{
        metadata::{PageIndexPolicy, ParquetMetaDataReader},
        properties::WriterPropertiesBuilder,
        reader::{FileReader as _, SerializedFileReader},
    },
    schema::types::ColumnPath,
};
use proptest::prelude::*;

use super::{page::codec, *};

fn list(element: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", element, true)))
}

fn group<const N: usize>(fields: [(&str, DataType); N]) -> DataType {
    DataType::Struct(fields.into_iter().map(|(name, of)| Field::new(name, of, true)).collect())
}

fn map(value: DataType) -> DataType {
    let entries = [Field::new("key", DataType::Int32, false), Field::new("value", value, true)];
    DataType::Map(Arc::new(Field::new("key_value", DataType::Struct(Fields::from(entries.to_vec())), false)), false)
}

/// A type with what resources have: structures in lists in structures, texts and numbers, and a map of such.
fn schema() -> SchemaRef {
    let quantity =
        || group([("value", DataType::Decimal128(32, 6)), ("scale", DataType::Int32), ("unit", DataType::Utf8)]);
    let coding = || list(group([("code", DataType::Utf8), ("selected", DataType::Boolean)]));
    let component =
        group([("code", coding()), ("range", list(group([("low", quantity()), ("texts", list(DataType::Utf8))])))]);
    let fields = [
        Field::new("id", DataType::Utf8, false),
        Field::new("at", DataType::Int64, true),
        Field::new("quantity", quantity(), true),
        Field::new("component", list(component), true),
        Field::new("extension", map(list(group([("url", DataType::Utf8), ("quantity", quantity())]))), true),
        Field::new("line", DataType::Utf8, false),
        Field::new("line or null", DataType::Utf8, true),
    ];
    Arc::new(Schema::new(fields.to_vec()))
}

/// Random rows. Each field of a column has its first value in a batch of its own, or in none, so that leaves get values
/// late.
struct Rows {
    random: fastrand::Rng,
    begins: Vec<usize>,
    batch: usize,
    field: usize,
}

impl Rows {
    fn batches(seed: u64, sizes: &[usize]) -> Vec<RecordBatch> {
        let mut random = fastrand::Rng::with_seed(seed);
        let begins = std::iter::repeat_with(|| random.usize(0..2 * sizes.len())).take(100).collect();
        let mut rows = Self { random, begins, batch: 0, field: 0 };
        sizes.iter().map(|size| rows.batch(*size)).collect()
    }

    fn batch(&mut self, size: usize) -> RecordBatch {
        self.field = 0;
        let schema = schema();
        let columns = schema.fields().iter().map(|field| self.array(field, size)).collect();
        self.batch += 1;
        RecordBatch::try_new(schema, columns).unwrap()
    }

    fn array(&mut self, field: &Field, size: usize) -> ArrayRef {
        let nulls = self.nulls(field, size);
        match field.data_type() {
            DataType::Struct(fields) => {
                let columns = fields.iter().map(|field| self.array(field, size)).collect();
                Arc::new(StructArray::new(fields.clone(), columns, nulls))
            }
            DataType::List(element) => {
                let (offsets, count) = self.offsets(size, nulls.as_ref());
                let values = self.array(element, count);
                Arc::new(ListArray::new(Arc::clone(element), offsets, values, nulls))
            }
            DataType::Map(entries, _) => {
                let (offsets, count) = self.offsets(size, nulls.as_ref());
                let values = self.array(entries, count).as_any().downcast_ref::<StructArray>().unwrap().clone();
                Arc::new(MapArray::new(Arc::clone(entries), offsets, values, nulls, false))
            }
            flat => self.values(flat, size, nulls.as_ref()),
        }
    }

    fn nulls(&mut self, field: &Field, size: usize) -> Option<NullBuffer> {
        let begin = self.begins[self.field];
        self.field += 1;
        field.is_nullable().then(|| (0..size).map(|_| self.batch >= begin && self.random.bool()).collect())
    }

    fn offsets(&mut self, size: usize, nulls: Option<&NullBuffer>) -> (OffsetBuffer<i32>, usize) {
        let is_null = |at| nulls.is_some_and(|nulls| nulls.is_null(at));
        let lengths: Vec<_> = (0..size).map(|at| if is_null(at) { 0 } else { self.random.usize(0..4) }).collect();
        (OffsetBuffer::from_lengths(lengths.iter().copied()), lengths.iter().sum())
    }

    fn values(&mut self, of: &DataType, size: usize, nulls: Option<&NullBuffer>) -> ArrayRef {
        let numbers: Vec<i32> = (0..size).map(|_| self.random.i32(0..9)).collect();
        let each = numbers
            .iter()
            .enumerate()
            .map(|(at, number)| nulls.is_none_or(|nulls| nulls.is_valid(at)).then_some(*number));
        match of {
            DataType::Utf8 => Arc::new(each.map(|of| of.map(|of| format!("text {of}"))).collect::<StringArray>()),
            DataType::Int32 => Arc::new(each.collect::<Int32Array>()),
            DataType::Int64 => Arc::new(each.map(|of| of.map(i64::from)).collect::<Int64Array>()),
            DataType::Boolean => Arc::new(each.map(|of| of.map(|of| of > 4)).collect::<BooleanArray>()),
            _ => Arc::new(
                each.map(|of| of.map(i128::from)).collect::<Decimal128Array>().with_precision_and_scale(32, 6).unwrap(),
            ),
        }
    }
}

fn properties() -> WriterPropertiesBuilder {
    let properties = WriterProperties::builder()
        .set_statistics_enabled(EnabledStatistics::None)
        .set_max_row_group_row_count(Some(50))
        // Many pages, even in a few rows, and dictionaries that are given up.
        .set_write_batch_size(5)
        .set_data_page_row_count_limit(9)
        .set_dictionary_page_size_limit(30);
    let texts = ["line", "line or null"].map(|name| ColumnPath::from(name.to_owned()));
    texts.into_iter().fold(properties, |properties, path| properties.set_column_dictionary_enabled(path, false))
}

fn ours(batches: &[RecordBatch], known: usize) -> Bytes {
    let mut encoder = Encoder::new(&schema(), properties().build()).unwrap();
    let mut out = Vec::new();
    for rows in &batches[..known] {
        encoder.note(rows).unwrap();
    }
    for rows in batches {
        let mut begin = 0;
        while begin < rows.num_rows() {
            let fitting = encoder.room().min(rows.num_rows() - begin);
            encoder.write(&rows.slice(begin, fitting)).unwrap();
            begin += fitting;
            if encoder.room() == 0 {
                block_on(encoder.end_row_group(&mut out)).unwrap();
            }
        }
    }
    block_on(encoder.end_row_group(&mut out)).unwrap();
    encoder.finish().unwrap();
    while let Some(rest) = encoder.rest() {
        out.extend_from_slice(&rest);
    }
    assert_eq!(out.len(), encoder.bytes_written());
    out.into()
}

fn of_parquet(batches: &[RecordBatch]) -> Bytes {
    let properties = properties().set_compression(codec()).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), schema(), Some(properties)).unwrap();
    for rows in batches {
        writer.write(rows).unwrap();
    }
    writer.into_inner().unwrap().into()
}

/// Levels and values of each column chunk, as a text, with what its metadata says of them.
fn chunks(file: &Bytes) -> Vec<String> {
    fn read<T: data_type::DataType>(mut reader: ColumnReaderImpl<T>) -> String {
        let (mut def, mut rep, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let read = reader.read_records(usize::MAX, Some(&mut def), Some(&mut rep), &mut values).unwrap();
        format!("{read:?} {def:?} {rep:?} {values:?}")
    }
    let reader = SerializedFileReader::new(file.clone()).unwrap();
    let row_groups = (0..reader.num_row_groups()).map(|at| reader.get_row_group(at).unwrap());
    let chunks = row_groups.flat_map(|row_group| {
        let of_row_group = (0..row_group.num_columns()).map(|leaf| {
            let read = match row_group.get_column_reader(leaf).unwrap() {
                ColumnReader::BoolColumnReader(reader) => read(reader),
                ColumnReader::Int32ColumnReader(reader) => read(reader),
                ColumnReader::Int64ColumnReader(reader) => read(reader),
                ColumnReader::ByteArrayColumnReader(reader) => read(reader),
                ColumnReader::FixedLenByteArrayColumnReader(reader) => read(reader),
                _ => panic!("no leaf has this type"),
            };
            let chunk = row_group.metadata().column(leaf);
            let has_filter = chunk.bloom_filter_offset().is_some();
            let path = chunk.column_path();
            format!(
                "{path} {} {:?} {:?} {has_filter} {read}",
                chunk.num_values(),
                chunk.compression(),
                chunk.statistics()
            )
        });
        of_row_group.collect::<Vec<_>>()
    });
    chunks.collect()
}

/// The rows of one column, of which the page index skips some.
fn selected(file: &Bytes, column: usize, rows: usize) -> Vec<RecordBatch> {
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(file.clone(), options).unwrap();
    let mask = ProjectionMask::roots(builder.parquet_schema(), [column]);
    let skipped = rows / 3;
    let selection = RowSelection::from(vec![RowSelector::skip(skipped), RowSelector::select(rows - skipped)]);
    let reader = builder.with_projection(mask).with_row_selection(selection).with_batch_size(rows).build().unwrap();
    reader.map(std::result::Result::unwrap).collect()
}

/// The pages of each column chunk, as the page index has them, are all of it but its dictionary.
fn assert_page_index(file: &Bytes) {
    let metadata =
        ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Required).parse_and_finish(file).unwrap();
    for (row_group, indexes) in metadata.row_groups().iter().zip(metadata.offset_index().unwrap()) {
        for (chunk, index) in row_group.columns().iter().zip(indexes) {
            let mut next = chunk.data_page_offset();
            for page in index.page_locations() {
                assert_eq!(page.offset, next, "{}", chunk.column_path());
                next += i64::from(page.compressed_page_size);
            }
            let (begin, bytes) = chunk.byte_range();
            assert_eq!(next.unsigned_abs(), begin + bytes, "{}", chunk.column_path());
        }
    }
}

fn assert_as_parquet(batches: &[RecordBatch], known: usize) {
    let (ours, expected) = (ours(batches, known), of_parquet(batches));
    assert_eq!(chunks(&ours), chunks(&expected));
    assert_page_index(&ours);
    let rows = batches.iter().map(RecordBatch::num_rows).sum();
    for column in 0..schema().fields().len() {
        assert_eq!(selected(&ours, column, rows), selected(&expected, column, rows));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn leaves_that_share_pages_are_read_as_if_each_had_been_written(
        seed in any::<u64>(),
        sizes in prop::collection::vec(1usize..40, 1..8),
        known in 0usize..3,
    ) {
        let batches = Rows::batches(seed, &sizes);
        assert_as_parquet(&batches, known.min(batches.len()));
    }
}

/// Its dictionary comes after pages that do not use it, and before pages that do not either.
#[test]
fn a_leaf_that_gets_values_late_and_then_gives_up_its_dictionary_is_read() {
    let begins = vec![1; 100];
    let mut rows = Rows { random: fastrand::Rng::with_seed(7), begins, batch: 0, field: 0 };
    assert_as_parquet(&[rows.batch(10), rows.batch(35)], 0);
}

#[test]
fn the_open_row_group_is_estimated_by_its_compressed_pages() {
    let properties = properties().set_data_page_row_count_limit(200).set_write_batch_size(100);
    let properties = properties.set_dictionary_enabled(false).set_max_row_group_row_count(None).build();
    let mut encoder = Encoder::new(&schema(), properties).unwrap();
    for rows in Rows::batches(7, &[10_000]) {
        encoder.write(&rows).unwrap();
    }
    let estimate = i64::try_from(encoder.open_bytes()).unwrap();
    block_on(encoder.end_row_group(&mut Vec::new())).unwrap();
    let row_group = encoder.finish().unwrap().row_group(0).clone();
    let (bytes, uncompressed) = (row_group.compressed_size(), row_group.total_byte_size());
    assert!((bytes * 4 / 5..bytes * 6 / 5).contains(&estimate), "{estimate} of {bytes}");
    assert!(estimate * 2 < uncompressed, "{estimate} of {uncompressed}");
}

#[test]
fn only_one_of_the_leaves_without_values_below_a_structure_is_written() {
    let schema = schema();
    let leaves = ArrowSchemaConverter::new().convert(&schema).unwrap();
    let columns = columns(&schema, leaves.columns(), &properties().build()).unwrap();
    let compressor = Arc::new(Compressor::new().unwrap());
    let projections = Projections::new(&columns, leaves.columns(), &properties().build(), &compressor).unwrap();
    let written: Vec<_> = projections.writers(0).unwrap().iter().map(Vec::len).collect();
    // The levels of deeper leaves have more bits; a map has a key and a value.
    assert_eq!((written, leaves.num_columns()), (vec![1, 1, 1, 2, 2, 1, 1], 18));
}

#[test]
fn texts_without_dictionary_statistics_and_filter_are_written_here() {
    let written = |properties: WriterPropertiesBuilder| {
        let leaves = ArrowSchemaConverter::new().convert(&schema()).unwrap();
        let columns = columns(&schema(), leaves.columns(), &properties.build()).unwrap();
        let texts = columns.into_iter().filter(|column| column.text.is_some());
        texts.map(|column| column.field.name().clone()).collect::<Vec<_>>()
    };
    assert_eq!(written(properties()), ["line", "line or null"]);
    let line = || ColumnPath::from("line".to_owned());
    let with_statistics = properties().set_column_statistics_enabled(line(), EnabledStatistics::Chunk);
    assert_eq!(written(with_statistics), ["line or null"]);
    assert_eq!(written(properties().set_column_bloom_filter_enabled(line(), true)), ["line or null"]);
    assert_eq!(written(properties().set_column_dictionary_enabled(line(), true)), ["line or null"]);
}

/// Of one page: parquet's writer ends a page later, when it has taken some rows more.
#[test]
fn a_page_of_texts_is_that_of_parquet() {
    let leaf = ArrowSchemaConverter::new().convert(&schema()).unwrap().num_columns() - 2;
    for sizes in [&[4][..], &[8], &[1, 2, 3]] {
        let batches = Rows::batches(7, sizes);
        let [ours, expected] = [ours(&batches, 0), of_parquet(&batches)].map(|file| {
            let reader = SerializedFileReader::new(file).unwrap();
            let row_group = reader.get_row_group(0).unwrap();
            let column = row_group.metadata().column(leaf);
            let sizes =
                (column.uncompressed_size(), column.compressed_size(), column.unencoded_byte_array_data_bytes());
            let pages = row_group.get_column_page_reader(leaf).unwrap().map(|page| format!("{:?}", page.unwrap()));
            format!("{sizes:?} {:?} {:?}", column.encodings().collect::<Vec<_>>(), pages.collect::<Vec<_>>())
        });
        assert_eq!(ours, expected);
    }
}
