//! What partitions by a date change in a table, and what they do not change.

use std::collections::BTreeSet;

use super::{maintain::in_days, *};
use crate::table::{MaintenanceStep, change_set::window::Window};

fn by(finest: DatePart) -> BTreeMap<ResourceType, DatePartition> {
    BTreeMap::from([(patient(), DatePartition { date: "birthDate".to_owned(), finest })])
}

fn partitioned(finest: DatePart) -> Lake {
    Lake::with(|config| Config { partitions: by(finest), change_data_feed: true, ..config })
}

fn born(id: &str, version: u32, date: Option<&str>) -> Change {
    let date = date.map(|date| format!(r#","birthDate":"{date}""#)).unwrap_or_default();
    Change::Line(format!(r#"{{"resourceType":"Patient","id":"{id}","meta":{{"versionId":"{version}"}}{date}}}"#))
}

impl Lake {
    /// The ids of the rows with the text of the partition columns.
    fn partitions_of(&self, columns: &[&str]) -> Vec<String> {
        let drawn = self.drawn(&[&["id"], columns].concat());
        let rows = drawn.lines().skip(3).filter(|row| row.starts_with('|'));
        rows.map(|row| row.split_whitespace().collect()).collect()
    }

    /// As [`Lake::upsert`], with rows that are divided by partition while they arrive.
    async fn upsert_divided(&self, files: &[Vec<Change>], transaction_time: i64) -> Committed {
        let table = self.table().await;
        let window = Window::new(table.partitioned_by().unwrap().clone(), 1, 2);
        let changes = ChangeSet::tiny(&self.shape().schema(), self.folder.path()).divided(window);
        self.fill(&changes, files, transaction_time);
        table.upsert(&changes, &upsert(transaction_time)).await.unwrap()
    }

    /// The folders of the files of the newest version.
    async fn folders(&self) -> Vec<String> {
        let table = self.root.open(patient()).await.unwrap().unwrap();
        let files = table.stored_files().await.unwrap();
        let mut folders: Vec<_> = files
            .iter()
            .map(|file| file.add.path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned())
            .collect();
        folders.sort();
        for file in files {
            assert!(self.table_folder().join(&file.add.path).exists(), "{}", file.add.path);
        }
        folders
    }
}

#[tokio::test]
async fn rows_are_in_hive_folders_of_their_date_and_are_found_by_it() {
    let lake = partitioned(DatePart::Month);
    let rows = [
        born("a", 1, Some("1970-05-03")),
        born("b", 1, Some("1970-05")),
        born("c", 1, Some("1971")),
        born("d", 1, None),
        born("e", 1, Some("no date")),
    ];
    let committed = lake.upsert(&[rows.to_vec()], 5).await;
    assert_eq!(committed.counts.inserted, 5);
    let folders =
        ["year=1970/month=5", "year=1971/month=1", "year=__HIVE_DEFAULT_PARTITION__/month=__HIVE_DEFAULT_PARTITION__"];
    assert_eq!(lake.folders().await, folders);
    let rows = lake.partitions_of(&["year", "month"]);
    assert_eq!(rows, ["|a|1970|5|", "|b|1970|5|", "|c|1971|1|", "|d|||", "|e|||"]);
    let columns = lake.root.open(patient()).await.unwrap().unwrap().columns().unwrap();
    let last: Vec<_> = columns.fields().iter().rev().take(2).map(|field| field.name().as_str()).collect();
    assert_eq!(last, ["month", "year"], "at the end, so that the leading ones stay");
}

#[tokio::test]
async fn a_partition_is_as_fine_as_configured() {
    for (finest, folder) in [
        (DatePart::Year, "year=1970"),
        (DatePart::Month, "year=1970/month=12"),
        (DatePart::Day, "year=1970/month=12/day=31"),
    ] {
        let lake = partitioned(finest);
        lake.upsert(&[vec![born("a", 1, Some("1970-12-31"))]], 5).await;
        assert_eq!(lake.folders().await, [folder]);
    }
}

#[tokio::test]
async fn a_row_whose_date_changes_moves_and_has_one_preimage_and_one_postimage() {
    let lake = partitioned(DatePart::Year);
    lake.upsert(&[vec![born("a", 1, Some("1970")), born("b", 1, Some("1970")), born("c", 1, None)]], 5).await;
    let moved = vec![born("a", 2, Some("1980")), born("c", 2, Some("1970"))];
    let committed = lake.upsert(&[moved], 6).await;
    assert_eq!(committed.counts, Counts { updated: 2, ..Counts::default() });
    assert_eq!(lake.partitions_of(&["year"]), ["|a|1980|", "|b|1970|", "|c|1970|"]);
    let changes = lake.changes_since(committed.version, &["id", "_change_type", "year"]);
    let expected = [
        ["a", "update_postimage", "1980"],
        ["a", "update_preimage", "1970"],
        ["c", "update_postimage", "1970"],
        ["c", "update_preimage", ""],
    ];
    assert_eq!(changes, expected);
    let folders: BTreeSet<_> = std::fs::read_dir(lake.table_folder().join("_change_data"))
        .unwrap()
        .map(|folder| folder.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(Vec::from_iter(folders), ["year=1970", "year=1980", "year=__HIVE_DEFAULT_PARTITION__"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_and_a_rebuild_leave_every_row_in_its_partition() {
    let lake = partitioned(DatePart::Month);
    for (number, date) in (1u32..).zip(["1970-01-01", "1970-02-01", "1970-01-02", "1970-02-02"]) {
        lake.upsert(&[vec![born(&format!("p{number}"), 1, Some(date))]], i64::from(number)).await;
    }
    let before = lake.partitions_of(&["year", "month"]);
    assert_eq!(lake.folders().await.len(), 4);
    let done = lake.maintain(&MaintenanceStep::ALL, in_days(0)).await;
    assert_eq!((done.rewritten.files, done.written.files), (4, 2));
    assert_eq!(lake.folders().await, ["year=1970/month=1", "year=1970/month=2"]);
    assert_eq!(lake.partitions_of(&["year", "month"]), before);
    let decode = |lines: Vec<Vec<u8>>| {
        let lines =
            (1..).zip(lines).map(|(number, bytes)| Line { number, offset: 0, bytes: bytes.into() }).collect::<Vec<_>>();
        Ok(lake.decoder(9).decode(&lines).unwrap().in_line_order().unwrap().rows)
    };
    let table = lake.root.open(patient()).await.unwrap().unwrap();
    assert_eq!(rebuild(table, &definition_of(&shape_of(patient())), &decode).await.unwrap().counts.updated, 4);
    assert_eq!(lake.folders().await, ["year=1970/month=1", "year=1970/month=2"]);
    assert_eq!(lake.partitions_of(&["year", "month"]), before);
    for name in ["year=1970/month=1/killed.parquet#1", "_change_data/killed.parquet#7", "_delta_log/kept.parquet#1"] {
        let file = lake.table_folder().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "x").unwrap();
    }
    let vacuumed = lake.maintain(&[MaintenanceStep::Vacuum], in_days(8)).await.vacuumed;
    assert_eq!(vacuumed.files, 8, "in the folders of the partitions and of change files too");
    assert!(lake.table_folder().join("_delta_log/kept.parquet#1").exists());
    assert_eq!(lake.partitions_of(&["year", "month"]), before);
}

#[tokio::test]
async fn a_partition_setting_that_differs_from_the_table_is_refused_with_the_way_out() {
    let mut lake = partitioned(DatePart::Month);
    lake.upsert(&[vec![born("a", 1, Some("1970-05-03"))]], 5).await;
    let refused = async |lake: &mut Lake, partitions| {
        lake.root.partitions = Arc::new(partitions);
        let error =
            lake.root.open_or_create(patient(), &definition_of(&shape_of(patient()))).await.err().unwrap().to_string();
        assert!(error.contains("move it away") && error.contains("partition_by"), "{error}");
        let maintenance = maintain::maintenance(&[MaintenanceStep::Compact]);
        let maintained = lake.root.maintain(patient(), &maintenance, DryRun::No, in_days(0), &|| true).await;
        assert!(matches!(maintained, Err(Error::Unsupported { .. })));
        error
    };
    let error = refused(&mut lake, BTreeMap::new()).await;
    assert!(error.contains("columns year, month of birthDate where the configuration says no partition"), "{error}");
    refused(&mut lake, by(DatePart::Day)).await;
    let of_another_date = DatePartition { date: "deceased".to_owned(), finest: DatePart::Month };
    refused(&mut lake, BTreeMap::from([(patient(), of_another_date)])).await;
    let mut plain = Lake::new();
    plain.upsert(&[vec![born("a", 1, Some("1970-05-03"))]], 5).await;
    let error = refused(&mut plain, by(DatePart::Year)).await;
    assert!(error.contains("no partition columns where the configuration says the partition columns year"), "{error}");
}

#[tokio::test]
async fn a_type_without_the_date_column_is_refused_before_a_table_is_created() {
    let lake = partitioned(DatePart::Year);
    let untyped = Shape::untyped(patient(), resource::Options { layout: resource::Layout::Pathling, raw_json: true });
    let error = lake.root.open_or_create(patient(), &definition_of(&untyped)).await.err().unwrap().to_string();
    assert!(error.contains("birthDate") && error.contains("typed"), "{error}");
    assert!(!lake.table_folder().exists());
}

#[tokio::test]
async fn no_resource_type_has_a_column_with_the_name_of_a_partition() {
    for name in crate::fhir::RESOURCE_TYPES {
        let shape = Shape::of(name.parse().unwrap(), shape().options);
        assert!(DatePart::ALL.iter().all(|part| shape.schema().field_with_name(part.as_str()).is_err()), "{name}");
    }
}

#[tokio::test]
async fn many_partitions_get_one_file_each() {
    let lake = partitioned(DatePart::Year);
    let rows = (0..100).map(|number| born(&format!("p{number}"), 1, Some(&format!("{}", 1950 + number % 40))));
    let committed = lake.upsert(&[rows.clone().collect(), rows.collect()], 5).await;
    assert_eq!(committed.counts, Counts { inserted: 100, duplicate: 100, ..Counts::default() });
    let expected: Vec<_> = (1950..1990).map(|year| format!("year={year}")).collect();
    assert_eq!(lake.folders().await, expected);
    assert_eq!(lake.rows().await.len(), 100);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn a_partitioned_table_holds_the_same_rows_as_one_without_partitions(
        exports in proptest::collection::vec(
            proptest::collection::vec((0usize..6, 1u32..5, 0usize..5), 0..8), 1..5,
        ),
        finest in proptest::sample::select(DatePart::ALL.to_vec()),
        (copy_on_write, divided) in any::<(bool, bool)>(),
        maintained in 0usize..5,
    ) {
        const IDS: [&str; 6] = ["id0", "id1", "id2", "id3", "id4", "id5"];
        const DATES: [Option<&str>; 4] = [None, Some("1970-05-03"), Some("1970-06"), Some("1971")];
        let update_mode = if copy_on_write { UpdateMode::CopyOnWrite } else { UpdateMode::DeletionVectors };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let lakes = [
                Lake::with(|config| Config { update_mode, ..config }),
                Lake::with(|config| Config { update_mode, partitions: by(finest), change_data_feed: true, ..config }),
            ];
            for (number, export) in exports.iter().enumerate() {
                let file: Vec<_> = export
                    .iter()
                    .map(|(id, version, date)| match DATES.get(*date) {
                        Some(date) => born(IDS[*id], *version, *date),
                        None => deletion(IDS[*id], None),
                    })
                    .collect();
                let time = i64::try_from(number + 1).unwrap() * 1_000_000;
                let [plain, partitioned] = &lakes;
                // Small files, so that they have different columns.
                let files: Vec<_> = file.chunks(2).map(<[_]>::to_vec).collect();
                let counts = plain.upsert(&files, time).await.counts;
                let committed = if divided {
                    partitioned.upsert_divided(&files, time).await
                } else {
                    partitioned.upsert(&files, time).await
                };
                assert_eq!(committed.counts, counts);
                if number == maintained {
                    partitioned.maintain(&MaintenanceStep::ALL, in_days(0)).await;
                }
                assert_eq!(plain.rows().await, partitioned.rows().await);
                for row in partitioned.partitions_of(&["year", "birthDate"]) {
                    let cells: Vec<_> = row.split('|').collect();
                    assert_eq!(cells[2], cells[3].get(..4).unwrap_or_default(), "{row}");
                }
            }
        });
    }
}
