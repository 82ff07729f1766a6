//! A probe reads only the row groups that may have one of the ids. The tests damage the ids of a row group on the disk:
//! if it is read, the upsert fails.

use std::{
    fs,
    io::{Seek as _, SeekFrom, Write as _},
    path::PathBuf,
};

use arrow::{
    array::{RecordBatch, StringArray},
    datatypes::{DataType, Field},
};
use bytes::Bytes;
use parquet::{
    arrow::ArrowWriter,
    bloom_filter::Sbbf,
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData},
        properties::{ReaderProperties, WriterProperties, WriterPropertiesBuilder},
        reader::FileReader as _,
        serialized_reader::{ReadOptionsBuilder, SerializedFileReader},
    },
    schema::types::ColumnPath,
};

use super::*;
use crate::table::{
    data_file::properties::with_bloom_filter, data_file::rolling::FileTarget, data_file::stored::StoredFile, ids::Ids,
    upsert::row_groups::prune,
};

/// Enough for a filter to pay.
const ROWS: u32 = 25_000;

/// As random as those of most servers.
fn id(number: u32) -> String {
    let mixed = (u128::from(number) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    uuid::Uuid::from_u128(mixed ^ (mixed >> 67)).to_string()
}

fn ids(numbers: impl Iterator<Item = u32>) -> Vec<String> {
    numbers.map(id).collect()
}

fn binary(id: &str, version: u32) -> Change {
    Change::Line(format!(
        r#"{{"resourceType":"Binary","id":"{id}","meta":{{"versionId":"{version}","lastUpdated":"2026-01-01T00:00:{version:02}Z"}}}}"#
    ))
}

fn binaries(numbers: impl Iterator<Item = u32>, version: u32) -> Vec<Change> {
    numbers.map(|number| binary(&id(number), version)).collect()
}

fn lake() -> Lake {
    Lake::of("Binary".parse().unwrap())
}

fn plain() -> WriterPropertiesBuilder {
    WriterProperties::builder().set_max_row_group_row_count(Some(ROWS as usize))
}

fn with_filter() -> WriterPropertiesBuilder {
    plain().set_column_bloom_filter_fpp(ColumnPath::from("id"), 0.001)
}

/// A Parquet file of our source with these ids and no other columns.
fn file_of(ids: &[String], properties: WriterPropertiesBuilder) -> Vec<u8> {
    let field = |name| Field::new(name, DataType::Utf8, true);
    let schema = Arc::new(Schema::new(vec![field("id"), field("_sync_source")]));
    let sources = StringArray::from(vec!["hospital"; ids.len()]);
    let columns: Vec<arrow::array::ArrayRef> = vec![Arc::new(StringArray::from(ids.to_vec())), Arc::new(sources)];
    let rows = RecordBatch::try_new(Arc::clone(&schema), columns).unwrap();
    let mut file = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut file, schema, Some(properties.build())).unwrap();
    writer.write(&rows).unwrap();
    writer.close().unwrap();
    file
}

const OURS: &str = "fhir-sync-made.parquet";
const THEIRS: &str = "part-0.parquet";

impl Lake {
    /// A table with only this data file; the log states no bounds of it.
    async fn with_file(name: &str, file: &[u8]) -> Self {
        let lake = lake();
        let version = lake.table().await.version() + 1;
        fs::write(lake.binaries().join(name), file).unwrap();
        let add = format!(
            r#"{{"add":{{"path":"{name}","partitionValues":{{}},"size":{},"modificationTime":0,"dataChange":true}}}}"#,
            file.len()
        );
        fs::write(lake.binaries().join(format!("_delta_log/{version:020}.json")), add).unwrap();
        lake
    }

    fn binaries(&self) -> PathBuf {
        self.folder.path().join("lake/Binary.parquet")
    }

    async fn only_file(&self) -> (StoredFile, Arc<ParquetMetaData>) {
        let mut files = self.table().await.stored_files().await.unwrap();
        assert_eq!(files.len(), 1);
        let stored = files.remove(0);
        let footer = stored.footer().await.unwrap();
        (stored, Arc::clone(footer.metadata()))
    }

    async fn path_of_only_file(&self) -> PathBuf {
        self.binaries().join(self.only_file().await.0.file.path.as_ref())
    }

    /// Damages the ids of a row group, so that reading them is an error.
    async fn damage_ids(&self, row_group: usize) {
        let (_, footer) = self.only_file().await;
        let (start, bytes) = of_ids(&footer, row_group).byte_range();
        overwrite(&self.path_of_only_file().await, start, &vec![0xff; usize::try_from(bytes).unwrap()]);
    }

    async fn try_upsert(&self, changes: &[Change], upsert: &Upsert) -> Result<Counts, Error> {
        let lines = changes.to_vec();
        let changes = ChangeSet::new(&self.shape().schema(), MemoryBudget::alone(1 << 20), self.folder.path());
        self.fill(&changes, &[lines], 6);
        Ok(self.table().await.upsert(&changes, upsert).await?.counts)
    }
}

fn of_ids(footer: &ParquetMetaData, row_group: usize) -> &ColumnChunkMetaData {
    let mut chunks = footer.row_group(row_group).columns().iter();
    chunks.find(|chunk| chunk.column_path().string() == "id").unwrap()
}

fn overwrite(path: &Path, start: u64, bytes: &[u8]) {
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(start)).unwrap();
    file.write_all(bytes).unwrap();
}

fn inserted(count: u64) -> Counts {
    Counts { inserted: count, ..Counts::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_whose_filter_has_none_of_the_ids_is_not_read() {
    let lake = lake();
    lake.upsert(&[binaries(0..ROWS, 1)], 5).await;
    lake.damage_ids(0).await;
    assert_eq!(lake.try_upsert(&binaries(ROWS..ROWS + 50, 1), &upsert(6)).await.unwrap(), inserted(50));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_may_have_one_of_the_ids_is_read() {
    let lake = Lake::with_file(OURS, &file_of(&ids(0..ROWS), with_filter())).await;
    let mut changes = binaries(ROWS..ROWS + 50, 2);
    changes.push(binary(&id(7), 2));
    lake.damage_ids(0).await;
    assert!(lake.try_upsert(&changes, &upsert(6)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_refresh_reads_every_file_despite_its_filter() {
    let lake = Lake::with_file(OURS, &file_of(&ids(0..ROWS), with_filter())).await;
    lake.damage_ids(0).await;
    assert!(lake.try_upsert(&binaries(ROWS..ROWS + 50, 1), &full_refresh(6, 100.0)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_without_its_filter_if_there_are_too_many_ids() {
    let lake = Lake::with_file(OURS, &file_of(&ids(0..ROWS), with_filter())).await;
    lake.damage_ids(0).await;
    assert!(lake.try_upsert(&binaries(ROWS..ROWS + 3_000, 1), &upsert(6)).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_row_groups_that_may_hold_a_changed_id_are_read() {
    for (name, properties) in [(OURS, with_filter()), (THEIRS, with_filter())] {
        let lake = Lake::with_file(name, &file_of(&ids(0..ROWS + ROWS), properties)).await;
        lake.damage_ids(0).await;
        let mut changes = binaries(2 * ROWS..2 * ROWS + 20, 2);
        changes.push(binary(&id(ROWS + 9), 2));
        let counts = lake.try_upsert(&changes, &upsert(6)).await.unwrap();
        assert_eq!(counts, Counts { updated: 1, ..inserted(20) }, "{name}");
        assert!(lake.try_upsert(&[binary(&id(9), 2)], &upsert(7)).await.is_err(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn row_groups_of_our_files_without_ids_in_the_range_are_not_read() {
    let numbered: Vec<_> = (0..3_000).map(|number| format!("{:06}", number * 10)).collect();
    let file = file_of(&numbered, plain().set_max_row_group_row_count(Some(1_000)));
    let lake = Lake::with_file(OURS, &file).await;
    lake.damage_ids(1).await;
    let changes = [binary("000010", 2), binary("029990", 2), binary("029995", 1), binary("009995", 1)];
    assert_eq!(lake.try_upsert(&changes, &upsert(6)).await.unwrap(), Counts { updated: 2, ..inserted(2) });
    assert!(lake.try_upsert(&[binary("010005", 1)], &upsert(7)).await.is_err());
    let lake = Lake::with_file(THEIRS, &file).await;
    lake.damage_ids(1).await;
    assert!(lake.try_upsert(&changes, &upsert(6)).await.is_err(), "bounds of other writers are not trusted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_filter_loses_no_row() {
    for name in [OURS, THEIRS] {
        for damage in [0xff, 0] {
            let lake = Lake::with_file(name, &file_of(&ids(0..ROWS), with_filter())).await;
            let (_, footer) = lake.only_file().await;
            let chunk = of_ids(&footer, 0);
            let start = u64::try_from(chunk.bloom_filter_offset().unwrap()).unwrap();
            let bytes = usize::try_from(chunk.bloom_filter_length().unwrap()).unwrap();
            let path = lake.path_of_only_file().await;
            let header = if damage == 0 { 32 } else { 0 };
            overwrite(&path, start + header, &vec![damage; bytes - usize::try_from(header).unwrap()]);
            let counts = lake.try_upsert(&[binary(&id(7), 2), binary(&id(ROWS), 1)], &upsert(6)).await.unwrap();
            assert_eq!(counts, Counts { updated: 1, ..inserted(1) }, "{name} {damage}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_with_an_impossible_or_missing_position_is_ignored() {
    let lake = Lake::with_file(OURS, &file_of(&ids(0..ROWS), with_filter())).await;
    let (stored, footer) = lake.only_file().await;
    let mut absent = Ids::default();
    absent.extend([id(ROWS).as_str()].into_iter());
    assert!(prune(&stored, &footer, &absent).await.unwrap().is_empty());
    let chunk = of_ids(&footer, 0).clone();
    let (offset, length) = (chunk.bloom_filter_offset().unwrap(), chunk.bloom_filter_length().unwrap());
    let end = i64::try_from(stored.file.size_bytes).unwrap();
    let stated = [
        (Some(end), Some(length)),
        (Some(-1), Some(length)),
        (Some(i64::MAX), Some(i32::MAX)),
        (Some(offset), None),
        (None, Some(length)),
        (Some(offset), Some(-1)),
        (Some(offset), Some(0)),
        (Some(offset), Some(length - 1)),
        (Some(offset - 1), Some(length)),
    ];
    for (offset, length) in stated {
        let chunk = chunk.clone().into_builder().set_bloom_filter_offset(offset).set_bloom_filter_length(length);
        let mut row_group = footer.row_group(0).clone().into_builder();
        let mut columns = footer.row_group(0).columns().to_vec();
        columns[0] = chunk.build().unwrap();
        row_group = row_group.set_column_metadata(columns);
        let builder = ParquetMetaData::clone(&footer).into_builder();
        let footer = builder.set_row_groups(vec![row_group.build().unwrap()]).build();
        let remaining = prune(&stored, &footer, &absent).await.unwrap();
        assert_eq!(remaining.len(), 1, "{offset:?} {length:?}");
    }
}

/// Read with parquet's own reader, which shares no code with ours.
fn filters(path: &Path) -> Vec<Vec<Option<Sbbf>>> {
    let properties = ReaderProperties::builder().set_read_bloom_filter(true).build();
    let options = ReadOptionsBuilder::new().with_reader_properties(properties).build();
    let reader = SerializedFileReader::new_with_options(fs::File::open(path).unwrap(), options).unwrap();
    let row_groups = (0..reader.num_row_groups()).map(|row_group| {
        let row_group = reader.get_row_group(row_group).unwrap();
        (0..row_group.num_columns()).map(|column| row_group.get_column_bloom_filter(column).cloned()).collect()
    });
    row_groups.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_large_files_have_a_filter_and_only_of_their_ids() {
    let lake = lake();
    lake.upsert(&[binaries(0..ROWS, 1)], 5).await;
    let large = filters(&lake.path_of_only_file().await);
    assert_eq!(large.len(), 1);
    let [Some(of_ids), of_others @ ..] = &large[0][..] else { panic!("no filter") };
    assert!(of_others.iter().all(Option::is_none));
    assert!((0..ROWS).all(|number| of_ids.check(id(number).as_str())));
    let passing = (ROWS..5 * ROWS).filter(|number| of_ids.check(id(*number).as_str())).count();
    assert!(passing < 4 * ROWS as usize / 500, "{passing} ids pass that are not there");
    let lake = self::lake();
    lake.upsert(&[binaries(0..4_000, 1)], 5).await;
    assert!(filters(&lake.path_of_only_file().await)[0].iter().all(Option::is_none));
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_are_together_between_the_rows_and_the_footer() {
    let lake = lake();
    let table = lake.table().await;
    let target = FileTarget { row_group_bytes: 1 << 20, ..table.target().unwrap() };
    let changes = ChangeSet::new(&lake.shape().schema(), MemoryBudget::alone(1 << 26), lake.folder.path())
        .of_first_load(target, 1 << 26);
    tokio::task::block_in_place(|| lake.fill(&changes, &[binaries(0..3 * ROWS, 1)], 5));
    lake.table().await.upsert(&changes, &upsert(5)).await.unwrap();
    for stored in lake.table().await.stored_files().await.unwrap() {
        let footer = stored.footer().await.unwrap();
        let footer = footer.metadata();
        let rows_end = footer.row_groups().iter().flat_map(RowGroupMetaData::columns).map(|chunk| {
            let (start, bytes) = chunk.byte_range();
            start + bytes
        });
        let mut end = rows_end.max().unwrap();
        for row_group in 0..footer.num_row_groups() {
            let chunk = of_ids(footer, row_group);
            assert_eq!(u64::try_from(chunk.bloom_filter_offset().unwrap()).unwrap(), end);
            end += u64::try_from(chunk.bloom_filter_length().unwrap()).unwrap();
        }
    }
}

#[test]
fn the_filter_of_a_whole_row_group_takes_two_bytes_a_row() {
    let all = ids(0..256 * 1024);
    let field = Field::new("id", DataType::Utf8, true);
    let properties = writer_properties(&Arc::new(Schema::new(vec![field])), 1).into_builder();
    let file = file_of(&all, with_bloom_filter(properties, u64::MAX));
    let footer = ParquetMetaDataReader::new().parse_and_finish(&Bytes::from(file)).unwrap();
    let filter_bytes = of_ids(&footer, 0).bloom_filter_length().unwrap();
    assert_eq!(footer.num_row_groups(), 1);
    assert!((512 * 1024..512 * 1024 + 32).contains(&filter_bytes), "{filter_bytes}");
}

/// A change of the resource with a number: a version of its row, or its deletion.
fn any_changes() -> impl Strategy<Value = Vec<Change>> {
    let number = prop_oneof![1 => 0..ROWS, 1 => 0..20u32, 4 => ROWS..2 * ROWS];
    let change = (number, proptest::option::weighted(0.8, 1u32..40)).prop_map(|(number, version)| match version {
        Some(version) => binary(&id(number), version),
        None => deletion(&id(number), Some("2026-01-01T00:00:20Z")),
    });
    proptest::collection::vec(change, 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn any_changes_have_the_same_result_with_and_without_filters(
        exports in proptest::collection::vec(any_changes(), 1..3),
        ours in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let (name, all) = (if ours { OURS } else { THEIRS }, ids(0..ROWS));
            let (few, filtered) = (file_of(&all, plain()), file_of(&all, with_filter()));
            let (plain, filtered) = (Lake::with_file(name, &few).await, Lake::with_file(name, &filtered).await);
            for export in &exports {
                let counts = plain.try_upsert(export, &upsert(6)).await.unwrap();
                assert_eq!(filtered.try_upsert(export, &upsert(6)).await.unwrap(), counts);
                let rows = |lake: &Lake| lake.drawn(&["id", "resource_json"]);
                assert_eq!(rows(&filtered), rows(&plain));
            }
        });
    }
}
