//! Files that Spark wrote into a table, made without Spark: their instants are INT96, and their structures may have fewer
//! parts than those of this program.

use std::fs;

use arrow::{
    array::{Array as _, AsArray as _, RecordBatch},
    datatypes::TimestampMicrosecondType,
};
use parquet::{
    column::writer::ColumnWriter,
    data_type::{ByteArray, Int96},
    file::{reader::FileReader as _, serialized_reader::SerializedFileReader, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use serde_json::json;

use super::{commit::newest_watermark, features::without_periods_of_names, *};

/// Some columns of a Patient, as Spark writes them by default.
const SCHEMA: &str = "message spark_schema {
    optional binary id (UTF8);
    optional binary _sync_source (UTF8);
    optional int96 _sync_at;
    optional int96 _sync_transaction_time;
    optional group meta { optional binary versionId (UTF8); optional int96 lastUpdated; }
    optional group name (LIST) { repeated group list { optional group element { optional binary family (UTF8); } } }
    optional binary birthDate (UTF8);
    optional int96 __birthDate_start;
    optional int96 __birthDate_end;
    optional binary resource_json (UTF8);
}";

/// The columns above.
const COLUMNS: [&str; 10] = [
    "id",
    "_sync_source",
    "_sync_at",
    "_sync_transaction_time",
    "meta",
    "name",
    "birthDate",
    "__birthDate_start",
    "__birthDate_end",
    "resource_json",
];

fn int96(micros: i64) -> Int96 {
    const MICROS_PER_DAY: i64 = 86_400_000_000;
    const JULIAN_DAY_OF_1970: i64 = 2_440_588;
    let nanos = micros.rem_euclid(MICROS_PER_DAY) * 1000;
    let julian_day = micros.div_euclid(MICROS_PER_DAY) + JULIAN_DAY_OF_1970;
    let mut value = Int96::new();
    let low = |number: i64| u32::try_from(number & i64::from(u32::MAX)).unwrap();
    value.set_data(low(nanos), low(nanos >> 32), low(julian_day));
    value
}

/// The leaf of these rows at a path of [`SCHEMA`]; every row has a value there.
fn leaf(rows: &RecordBatch, path: &[String]) -> arrow::array::ArrayRef {
    let mut column = Arc::clone(rows.column_by_name(&path[0]).unwrap());
    for part in path[1..].iter().filter(|part| !["list", "element"].contains(&part.as_str())) {
        let structure = column.as_list_opt::<i32>().map_or(&column, |list| list.values());
        column = Arc::clone(structure.as_struct().column_by_name(part).unwrap());
    }
    assert_eq!((column.len(), column.null_count()), (rows.num_rows(), 0), "{path:?}");
    column
}

fn write_as_spark(path: &Path, rows: &RecordBatch) {
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let mut file = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, Arc::default()).unwrap();
    let mut row_group = file.next_row_group().unwrap();
    while let Some(mut column) = row_group.next_column().unwrap() {
        let levels = |max: i16| vec![max; rows.num_rows()];
        match column.untyped() {
            ColumnWriter::Int96ColumnWriter(writer) => {
                let of = writer.get_descriptor().clone();
                let leaf = leaf(rows, of.path().parts());
                let values: Vec<_> =
                    leaf.as_primitive::<TimestampMicrosecondType>().values().iter().map(|at| int96(*at)).collect();
                writer.write_batch(&values, Some(&levels(of.max_def_level())), Some(&levels(0))).unwrap();
            }
            ColumnWriter::ByteArrayColumnWriter(writer) => {
                let of = writer.get_descriptor().clone();
                let leaf = leaf(rows, of.path().parts());
                let values: Vec<_> = leaf.as_string::<i32>().iter().flatten().map(ByteArray::from).collect();
                writer.write_batch(&values, Some(&levels(of.max_def_level())), Some(&levels(0))).unwrap();
            }
            _ => panic!("Spark writes no such column here"),
        }
        column.close().unwrap();
    }
    row_group.close().unwrap();
    file.close().unwrap();
}

impl Lake {
    /// Spark rewrites the only file of the table; `write` writes the new one.
    async fn rewrite_by_spark(&self, write: impl FnOnce(&Path)) {
        const NAME: &str = "part-00000-c000.snappy.parquet";
        let table = self.root.open(patient()).await.unwrap().unwrap();
        let files = table.stored_files().await.unwrap();
        let [file] = files.as_slice() else { panic!("{} files", files.len()) };
        write(&self.table_folder().join(NAME));
        let size = fs::metadata(self.table_folder().join(NAME)).unwrap().len();
        let stats = json!({ "numRecords": file.row_count().await.unwrap() }).to_string();
        let actions = [
            json!({"commitInfo": {"timestamp": 1_700_000_000_000_i64, "operation": "UPDATE"}}),
            json!({"remove": {
                "path": file.add.path, "dataChange": true, "deletionTimestamp": 1_700_000_000_000_i64,
                "extendedFileMetadata": true, "partitionValues": {}, "size": file.add.size,
            }}),
            json!({"add": {
                "path": NAME, "partitionValues": {}, "size": size, "modificationTime": 1_700_000_000_000_i64,
                "dataChange": true, "stats": stats,
            }}),
        ];
        let actions: Vec<_> = actions.iter().map(ToString::to_string).collect();
        let commit = self.table_folder().join(format!("_delta_log/{:020}.json", table.version() + 1));
        fs::write(commit, actions.join("\n")).unwrap();
    }

    async fn rewrite_with_int96(&self) {
        let rows = read_back::read(&self.table_folder(), &COLUMNS).unwrap();
        self.rewrite_by_spark(|path| write_as_spark(path, &rows)).await;
    }
}

/// A patient whose birth date has an end of its own.
fn born(id: &str, second: u32, birth_date: &str) -> Change {
    Change::Line(format!(
        r#"{{"resourceType":"Patient","id":"{id}","meta":{{"versionId":"x","lastUpdated":"2026-01-01T00:00:{second:02}Z"}},"name":[{{"family":"Doe"}}],"birthDate":"{birth_date}"}}"#
    ))
}

/// Spark 3 reads the birth of 1899 only where the footer says so; seen with Spark 3.5.7.
#[tokio::test(flavor = "multi_thread")]
async fn a_data_file_says_that_its_times_follow_todays_calendar() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, r#"","birthDate":"1899-05-01"#)]], 5).await;
    let mut files = fs::read_dir(lake.table_folder()).unwrap().map(|entry| entry.unwrap().path());
    let path = files.find(|path| path.extension().is_some_and(|extension| extension == "parquet")).unwrap();
    let file = fs::File::open(path).unwrap();
    let footer = SerializedFileReader::new(file).unwrap().metadata().file_metadata().key_value_metadata().cloned();
    let value =
        |key: &str| footer.iter().flatten().find(|entry| entry.key == key).and_then(|entry| entry.value.clone());
    assert_eq!(value("org.apache.spark.version").as_deref(), Some("3.1.0"));
    assert_eq!(value("org.apache.spark.legacyDateTime"), None);
    assert!(value("ARROW:schema").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn instants_after_2262_stay_when_a_file_of_spark_is_rewritten_and_in_the_change_data_feed() {
    for update_mode in UpdateMode::ALL {
        let lake = Lake::with(|config| Config { update_mode, change_data_feed: true, ..config });
        let patients =
            vec![born("a", 1, "9999-12-31"), born("b", 1, "1970-05"), born("c", 1, "9999"), born("d", 1, "0001-01-01")];
        lake.upsert(&[patients], 5).await;
        let seen = || {
            let drawn = lake.drawn(&["id", "_sync_transaction_time", "__birthDate_start", "__birthDate_end"]);
            let rows = drawn.lines().filter(|row| row.starts_with("| a ") || row.starts_with("| b "));
            rows.map(ToOwned::to_owned).collect::<Vec<_>>()
        };
        let before = seen();
        assert!(before[0].contains("9999-12-31T23:59:59.999999Z"), "{before:?}");
        lake.rewrite_with_int96().await;
        // Half of the rows: then the file is rewritten in both modes.
        let committed = lake.upsert(&[vec![born("c", 2, "1970"), born("d", 2, "1970")]], 6).await;
        assert_eq!(committed.counts.updated, 2);
        let files = lake.table().await.stored_files().await.unwrap();
        assert!(files.iter().all(|file| file.own && file.dead.is_empty()));
        assert_eq!(seen(), before);
        assert!(lake.drawn(&["id", "meta"]).contains("lastUpdated: 2026-01-01T00:00:01Z"));
        let preimages = lake.changes_since(committed.version, &["_change_type", "id", "__birthDate_end"]);
        let preimages: Vec<_> = preimages.iter().filter(|row| row[0] == "update_preimage").collect();
        assert_eq!(preimages.len(), 2);
        assert!(preimages[0][2].starts_with("9999-12-31T23:59:59.999999"), "{preimages:?}");
        assert!(preimages[1][2].starts_with("0001-01-01T23:59:59.999999"), "{preimages:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_version_does_not_replace_a_newer_one_that_spark_moved() {
    let lake = Lake::new();
    lake.upsert(&[vec![born("a", 5, "1970"), born("b", 5, "1970")]], 5).await;
    lake.rewrite_with_int96().await;
    let late = lake.upsert(&[vec![born("a", 3, "1971"), born("b", 7, "1971")]], 6).await;
    assert_eq!(late.counts, Counts { stale: 1, updated: 1, ..Counts::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_spark_moved_in_a_table_of_an_older_program_are_compared_by_content() {
    let lake = Lake::new();
    lake.root.open_or_create(patient(), &without_periods_of_names()).await.unwrap();
    let patients = [born("a", 1, "1970"), born("b", 1, "1970"), born("c", 1, "1970")];
    lake.upsert(&[patients.to_vec()], 5).await;
    let own = lake.table().await.stored_files().await.unwrap()[0].add.path.clone();
    let copy = |path: &Path| assert!(fs::copy(lake.table_folder().join(own), path).is_ok());
    lake.rewrite_by_spark(copy).await;
    let again = lake.upsert(&[patients.to_vec()], 6).await;
    assert_eq!((again.counts, again.bytes_written), (Counts { unchanged: 3, ..Counts::default() }, 0));
    let changed = lake.upsert(&[vec![born("a", 1, "1970"), born("b", 2, "1971")]], 7).await;
    assert_eq!(changed.counts, Counts { unchanged: 1, updated: 1, ..Counts::default() });
}

#[tokio::test]
async fn the_version_of_a_table_that_spark_left_as_a_transaction_is_no_watermark() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, "")]], 5).await;
    let version = |version| TransactionTime::from_micros(version).unwrap();
    lake.table().await.set_watermark("fhir-sync/all#merge", version(2)).await.unwrap();
    assert_eq!(lake.watermark().await, Some(time(5)));
    assert_eq!(newest_watermark(&lake.table().await).await.unwrap(), Some(time(5)));
    // As earlier builds let Spark write it.
    lake.table().await.set_watermark(APP_ID, version(3)).await.unwrap();
    assert_eq!(lake.watermark().await, None);
    assert_eq!(newest_watermark(&lake.table().await).await.unwrap(), Some(time(5)));
    lake.upsert(&[vec![line("a", 2, "")]], 6).await;
    assert_eq!(lake.watermark().await, Some(time(6)));
}
