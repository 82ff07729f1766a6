//! The change data feed of a table, read back by the Delta kernel.

use deltalake::kernel::Add;

use super::{maintain::in_days, *};
use crate::table::MaintenanceStep;

/// A change: what happened, to which resource, and the line.
type RowChange = (String, String, String);

fn with_feed(config: Config) -> Config {
    Config { change_data_feed: true, ..config }
}

impl Lake {
    /// The changes of all commits from `version` on, in order.
    pub(super) fn changes_since(&self, version: u64, columns: &[&str]) -> Vec<Vec<String>> {
        let batches = [read_back::changes(&self.table_folder(), version, columns).unwrap()];
        let mut rows = Vec::new();
        for batch in batches {
            let columns: Vec<_> = (0..batch.num_columns())
                .map(|column| arrow::compute::cast(batch.column(column), &arrow::datatypes::DataType::Utf8).unwrap())
                .collect();
            for row in 0..batch.num_rows() {
                let cell = |column: &arrow::array::ArrayRef| {
                    let column = arrow::array::AsArray::as_string::<i32>(column);
                    if arrow::array::Array::is_valid(column, row) { column.value(row) } else { "" }.to_owned()
                };
                rows.push(columns.iter().map(cell).collect::<Vec<_>>());
            }
        }
        rows.sort();
        rows
    }

    /// The changes of one commit.
    fn changes_in(&self, version: u64) -> Vec<RowChange> {
        let changes = self.changes_since(version, &["_change_type", "id", "resource_json", "_commit_version"]);
        let of = changes.into_iter().filter(|row| row[3] == version.to_string());
        of.map(|row| <[_; 4]>::try_from(row).unwrap()).map(|[change, id, json, _]| (change, id, json)).collect()
    }

    /// The change types and ids of one commit.
    fn changes_of(&self, version: u64) -> Vec<(String, String)> {
        self.changes_in(version).into_iter().map(|(change, id, _)| (change, id)).collect()
    }

    fn change_files(&self, version: u64) -> usize {
        self.actions(version).iter().filter(|action| !action["cdc"].is_null()).count()
    }
}

fn pairs(changes: &[(&str, &str)]) -> Vec<(String, String)> {
    changes.iter().map(|(change, id)| ((*change).to_owned(), (*id).to_owned())).collect()
}

#[tokio::test]
async fn a_commit_reports_inserts_updates_with_both_images_and_deletes() {
    let lake = Lake::with(with_feed);
    lake.upsert(&[vec![line("a", 1, "old"), line("b", 3, ""), line("c", 1, "gone"), line("d", 1, "")]], 5).await;
    let deletions = [deletion("c", None), deletion("unknown", None)];
    let mut file = vec![line("a", 2, "new"), line("b", 2, "late"), line("e", 1, "inserted"), line("d", 1, "")];
    file.extend(deletions);
    let version = lake.upsert(&[file], 60_000_000_000_000_000).await.version;
    let changes = lake.changes_in(version);
    let reported: Vec<_> = changes.iter().map(|(change, id, _)| (change.as_str(), id.as_str())).collect();
    assert_eq!(reported, [("delete", "c"), ("insert", "e"), ("update_postimage", "a"), ("update_preimage", "a")]);
    for ((.., json), content) in changes.iter().zip(["gone", "inserted", "new", "old"]) {
        assert!(json.contains(content), "{json}");
    }
    let info = lake
        .actions(version)
        .into_iter()
        .find_map(|mut action| action.get_mut("commitInfo").map(serde_json::Value::take));
    let metrics = &info.unwrap()["operationMetrics"];
    assert_eq!(metrics["numTargetChangeFilesAdded"], "2");
    assert!(metrics["numTargetChangeFileBytes"].as_str().is_some_and(|bytes| bytes.len() > 2), "{metrics}");
}

#[tokio::test]
async fn a_change_file_is_where_readers_look_and_changes_no_data() {
    let lake = Lake::with(with_feed);
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, "")]], 5).await;
    let version = lake.upsert(&[vec![line("a", 2, "")]], 6).await.version;
    let files: Vec<_> = lake.actions(version).into_iter().filter(|action| !action["cdc"].is_null()).collect();
    assert_eq!(files.len(), 2);
    for file in files {
        let path = file["cdc"]["path"].as_str().unwrap();
        assert!(path.starts_with("_change_data/cdc-") && path.ends_with(".parquet"), "{path}");
        let bytes = std::fs::metadata(lake.table_folder().join(path)).unwrap().len();
        assert_eq!((&file["cdc"]["size"], &file["cdc"]["dataChange"]), (&bytes.into(), &false.into()));
    }
    assert_eq!(lake.rows().await.len(), 2);
}

#[tokio::test]
async fn an_insert_only_commit_needs_no_change_files() {
    let lake = Lake::with(with_feed);
    let first = lake.upsert(&[vec![line("a", 1, "")], vec![line("a", 2, ""), line("b", 1, "")]], 5).await.version;
    let second = lake.upsert(&[vec![line("c", 1, ""), line("b", 1, "")]], 6).await.version;
    assert_eq!((lake.change_files(first), lake.change_files(second)), (0, 0));
    assert_eq!(lake.changes_of(first), pairs(&[("insert", "a"), ("insert", "b")]));
    assert_eq!(lake.changes_of(second), pairs(&[("insert", "c")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_files_of_a_first_load_have_no_superseded_rows_that_readers_take_for_inserts() {
    let lake = Lake::with(with_feed);
    let table = lake.root.open_or_create(patient(), &definition_of(&shape_of(patient()))).await.unwrap();
    let mut file: Vec<_> = (0..20).map(|id| line(&format!("id{id}"), 2, "")).collect();
    file.push(line("id7", 1, "superseded"));
    let changes = lake.first_load(&table, &[file], 5);
    let committed = table.upsert(&changes, &upsert(5)).await.unwrap();
    assert_eq!(committed.counts, Counts { inserted: 20, duplicate: 1, ..Counts::default() });
    let actions = lake.actions(committed.version);
    let adds = actions.iter().filter_map(|action| serde_json::from_value::<Add>(action.get("add")?.clone()).ok());
    assert_eq!(adds.map(|add| add.deletion_vector.is_some()).collect::<Vec<_>>(), [false]);
    assert_eq!(lake.change_files(committed.version), 0);
    let changes = lake.changes_in(committed.version);
    assert!(
        changes.len() == 20
            && changes.iter().all(|(change, _, json)| change == "insert" && !json.contains("superseded"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_load_that_another_one_overtook_reports_its_updates() {
    let lake = Lake::with(with_feed);
    let late = lake.root.open_or_create(patient(), &definition_of(&shape_of(patient()))).await.unwrap();
    let file = vec![line("a", 2, "late"), line("a", 1, ""), line("c", 1, "")];
    let changes = lake.first_load(&late, &[file], 7);
    lake.upsert(&[vec![line("a", 1, "first"), line("b", 1, "")]], 6).await;
    let committed = late.upsert(&changes, &upsert(7)).await.unwrap();
    assert_eq!(committed.counts, Counts { inserted: 1, updated: 1, duplicate: 1, ..Counts::default() });
    let expected = [("insert", "c"), ("update_postimage", "a"), ("update_preimage", "a")];
    assert_eq!(lake.changes_of(committed.version), pairs(&expected));
}

#[tokio::test]
async fn rows_that_a_full_refresh_removes_are_reported_as_deleted() {
    let lake = Lake::with(with_feed);
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, "")]], 5).await;
    let changes = lake.change_set(&[vec![line("a", 1, "")]], 6);
    let committed = lake.table().await.upsert(&changes, &full_refresh(6, 100.0)).await.unwrap();
    assert_eq!(lake.changes_of(committed.version), pairs(&[("delete", "b")]));
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_duplicate_rows_is_not_reported_as_deletion() {
    let lake = Lake::with(with_feed);
    lake.upsert(&[vec![line("a", 1, "")]], 5).await;
    let mut late = lake.root.open(patient()).await.unwrap().unwrap();
    // Another writer doubles the row: the same data file under a second name.
    let mut stored = late.stored_files().await.unwrap().remove(0).add;
    let copy = format!("copy-{}", stored.path);
    std::fs::copy(lake.table_folder().join(&stored.path), lake.table_folder().join(&copy)).unwrap();
    stored.path = copy;
    let double = vec![deltalake::kernel::Action::Add(stored)];
    let operation = deltalake::protocol::DeltaOperation::Write {
        mode: deltalake::protocol::SaveMode::Append,
        partition_by: None,
        predicate: None,
    };
    commit::attempt(&mut late, double, operation, Vec::new(), BTreeMap::new()).await.unwrap();
    let version = lake.upsert(&[vec![line("a", 2, "")]], 6).await.version;
    let expected = [("update_postimage", "a"), ("update_preimage", "a"), ("update_preimage", "a")];
    assert_eq!(lake.changes_of(version), pairs(&expected));
}

#[tokio::test]
async fn a_table_without_the_property_gains_it_and_records_changes_from_then_on() {
    let mut lake = Lake::new();
    let first = lake.upsert(&[vec![line("a", 1, "")]], 5).await.version;
    let second = lake.upsert(&[vec![line("a", 2, "")]], 6).await.version;
    assert_eq!(lake.change_files(second), 0);
    lake.root.change_data_feed = true;
    let version = lake.upsert(&[vec![line("a", 3, "")]], 7).await.version;
    assert_eq!((first, version), (1, 4), "the property is a commit of its own");
    assert_eq!(lake.changes_of(version), pairs(&[("update_postimage", "a"), ("update_preimage", "a")]));
    assert!(lake.table().await.has_feature("changeDataFeed").unwrap());
}

#[cfg(feature = "sql")]
#[tokio::test]
async fn the_setting_of_another_writer_for_the_feed_is_respected() {
    let mut lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, "")]], 5).await;
    let decide = async |lake: &Lake, on: &str| {
        let properties = std::collections::HashMap::from([(
            crate::table::properties::ENABLE_CHANGE_DATA_FEED.to_owned(),
            on.to_owned(),
        )]);
        lake.table().await.delta.set_tbl_properties().with_properties(properties).await.unwrap();
    };
    decide(&lake, "true").await;
    let on = lake.upsert(&[vec![line("a", 2, "")]], 6).await.version;
    assert_eq!(lake.change_files(on), 2);
    decide(&lake, "false").await;
    lake.root.change_data_feed = true;
    let off = lake.upsert(&[vec![line("a", 3, "")]], 7).await.version;
    assert_eq!(lake.change_files(off), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_reports_no_changes_and_keeps_the_change_files_of_the_retention() {
    let lake = Lake::with(with_feed);
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, "")]], 5).await;
    let version = lake.upsert(&[vec![line("a", 2, "")]], 6).await.version;
    lake.maintain(&MaintenanceStep::ALL, in_days(1)).await;
    assert!(lake.table().await.version() > version, "something was compacted");
    assert_eq!(lake.changes_since(version + 1, &["_change_type"]), Vec::<Vec<String>>::new());
    assert_eq!(lake.changes_in(version).len(), 2);
    lake.maintain(&[MaintenanceStep::Vacuum], in_days(8)).await;
    let left = std::fs::read_dir(lake.table_folder().join("_change_data")).unwrap().count();
    assert_eq!(left, 0, "after the retention they go");
}

#[tokio::test]
async fn change_files_have_the_columns_that_their_rows_fill() {
    let lake = Lake::with(with_feed);
    let line = |id: &str, version: u32, member: &str| {
        Change::Line(format!(r#"{{"resourceType":"Patient","id":"{id}","meta":{{"versionId":"{version}"}},{member}}}"#))
    };
    lake.upsert(&[vec![line("a", 1, r#""gender":"female""#)]], 5).await;
    lake.upsert(&[vec![line("b", 1, r#""birthDate":"1970-01-01""#)]], 6).await;
    let both = vec![line("a", 2, r#""active":true"#), line("b", 2, r#""birthDate":"1971-01-01""#)];
    let version = lake.upsert(&[both], 7).await.version;
    let changes = lake.changes_since(version, &["id", "_change_type", "gender", "birthDate", "active"]);
    let expected = [
        ["a", "update_postimage", "", "", "true"],
        ["a", "update_preimage", "female", "", ""],
        ["b", "update_postimage", "", "1971-01-01", ""],
        ["b", "update_preimage", "", "1970-01-01", ""],
    ];
    assert_eq!(changes, expected);
}

#[tokio::test]
async fn a_rebuild_is_reported_as_every_row_deleted_and_inserted() {
    let lake = Lake::with(with_feed);
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, "")]], 5).await;
    lake.upsert(&[vec![line("a", 2, "")]], 6).await;
    let decode = |lines: Vec<Vec<u8>>| {
        let lines =
            (1..).zip(lines).map(|(number, bytes)| Line { number, offset: 0, bytes: bytes.into() }).collect::<Vec<_>>();
        Ok(lake.decoder(6).decode(&lines).unwrap().in_line_order().unwrap().rows)
    };
    let version = rebuild(lake.table().await, &definition_of(&shape_of(patient())), &decode).await.unwrap().version;
    let expected = [("delete", "a"), ("delete", "b"), ("insert", "a"), ("insert", "b")];
    assert_eq!(lake.changes_of(version), pairs(&expected));
}

/// The rows of the next version, computed from the changes of its commit: how often each row occurs.
fn follow(before: &BTreeMap<(String, String), i32>, changes: &[RowChange]) -> BTreeMap<(String, String), i32> {
    let mut after = before.clone();
    for (change, id, json) in changes {
        let is_added = matches!(change.as_str(), "insert" | "update_postimage");
        *after.entry((id.clone(), json.clone())).or_default() += if is_added { 1 } else { -1 };
    }
    after.retain(|_, count| *count != 0);
    after
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    #[test]
    fn a_reader_that_applies_the_feed_has_the_rows_of_the_table(
        exports in proptest::collection::vec(proptest::collection::vec((0u8..6, 1u32..5, 0u8..4), 0..8), 1..5),
        copy_on_write in any::<bool>(),
    ) {
        const IDS: [&str; 6] = ["id0", "id1", "id2", "id3", "id4", "id5"];
        let update_mode = if copy_on_write { UpdateMode::CopyOnWrite } else { UpdateMode::DeletionVectors };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let lake = Lake::with(|config| Config { update_mode, ..with_feed(config) });
            let mut followed = BTreeMap::new();
            for (transaction_time, export) in (1..).zip(&exports) {
                let file = export.iter().map(|(id, version, kind)| match kind {
                    0 => deletion(IDS[usize::from(*id)], None),
                    _ => line(IDS[usize::from(*id)], *version, ""),
                });
                let version = lake.upsert(&[file.collect()], transaction_time * 60_000_000_000_000_000).await.version;
                followed = follow(&followed, &lake.changes_in(version));
                let rows: BTreeMap<_, _> = lake.rows().await.into_iter().map(|row| (row, 1)).collect();
                assert_eq!(followed, rows);
            }
        });
    }
}
