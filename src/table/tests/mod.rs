//! What an upsert does to a real table, read back by another reader.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::datatypes::Schema;
use proptest::prelude::*;

use super::*;
use crate::{
    fhir::{ResourceType, TransactionTime},
    resource::{self, Decoder, Line, MappingPool, Shape},
};

mod bloom;
mod convergence;
mod damage;
mod deletions;
mod features;
mod foreign_files;
mod change_feed;
#[cfg(feature = "sql")]
mod other_writers;
mod lost_answer;
mod maintain;
mod deletion_vectors;
#[cfg(feature = "sql")]
mod same_as_delta_merge;
mod partition;
#[cfg(feature = "sql")]
mod race;
mod read_back;
mod restored;
mod spark_files;
mod spilled;
mod store_requests;
#[cfg(all(feature = "s3", feature = "azure", feature = "gcs"))]
mod stores;
mod traced;
mod unreliable;

const APP_ID: &str = "fhir-sync/all";
const WHOLE: Extent = Extent::Whole { removes_returned: false };

/// Tables in a folder of their own, and the type that the test is about.
struct Lake {
    root: Root,
    folder: tempfile::TempDir,
    resource_type: ResourceType,
}

/// One line of an export.
#[derive(Clone, Debug)]
enum Change {
    Line(String),
    Delete { id: String, at: Option<String> },
}

fn patient() -> ResourceType {
    "Patient".parse().unwrap()
}

fn shape() -> Arc<Shape> {
    shape_of(patient())
}

fn shape_of(resource_type: ResourceType) -> Arc<Shape> {
    Shape::of(resource_type, resource::Options { layout: resource::Layout::Pathling, raw_json: true })
}

fn definition_of(shape: &Shape) -> TableDefinition {
    TableDefinition { schema: shape.schema(), leading: shape.leading(), properties: shape.properties() }
}

/// Microseconds since the epoch; small numbers count from February 2026, because an export is not earlier than what it
/// has, and the rows of [`line`] are of January.
fn time(micros: i64) -> TransactionTime {
    const FEBRUARY: i64 = 1_769_904_000_000_000;
    TransactionTime::from_micros(if micros < 1_000_000 { FEBRUARY + micros } else { micros }).unwrap()
}

fn line(id: &str, version: u32, content: &str) -> Change {
    Change::Line(format!(
        r#"{{"resourceType":"Patient","id":"{id}","meta":{{"versionId":"{version}","lastUpdated":"2026-01-01T00:00:{version:02}Z"}},"x":"{content}"}}"#
    ))
}

fn deletion(id: &str, at: Option<&str>) -> Change {
    Change::Delete { id: id.to_owned(), at: at.map(ToOwned::to_owned) }
}

fn config(folder: &Path, update_mode: UpdateMode) -> Config {
    Config { update_mode, ..Config::new(Location::Folder(folder.join("lake"))) }
}

fn root(folder: &Path, update_mode: UpdateMode) -> Root {
    Root::new(config(folder, update_mode)).unwrap()
}

impl Lake {
    fn new() -> Self {
        Self::of(patient())
    }

    fn of(resource_type: ResourceType) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { root: root(folder.path(), UpdateMode::default()), folder, resource_type }
    }

    fn with(change: impl FnOnce(Config) -> Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(change(config(folder.path(), UpdateMode::default()))).unwrap();
        Self { root, folder, resource_type: patient() }
    }

    /// Another process over the same tables.
    fn root_with(&self, update_mode: UpdateMode) -> Root {
        root(self.folder.path(), update_mode)
    }

    fn shape(&self) -> Arc<Shape> {
        shape_of(self.resource_type)
    }

    /// One file per slice of `files`; all of it spills.
    fn change_set(&self, files: &[Vec<Change>], transaction_time: i64) -> ChangeSet {
        let changes = ChangeSet::tiny(&self.shape().schema(), self.folder.path());
        self.fill(&changes, files, transaction_time);
        changes
    }

    /// The same for a table that is empty: rows become data files as they arrive.
    fn first_load(&self, table: &Table, files: &[Vec<Change>], transaction_time: i64) -> ChangeSet {
        let (schema, budget) = (self.shape().schema(), MemoryBudget::alone(1 << 20));
        let changes = ChangeSet::for_first_load(table, &schema, budget, self.folder.path()).unwrap();
        tokio::task::block_in_place(|| self.fill(&changes, files, transaction_time));
        changes
    }

    fn decoder(&self, transaction_time: i64) -> Decoder {
        Decoder {
            mappings: MappingPool::of(&self.shape()),
            shape: self.shape(),
            source: "hospital".into(),
            run_started_micros: 0,
            transaction_time: Some(time(transaction_time)),
            job: "all#1".into(),
        }
    }

    /// One file per slice of `files`; they arrive in the opposite order, which must not matter.
    fn fill(&self, changes: &ChangeSet, files: &[Vec<Change>], transaction_time: i64) {
        let decoder = self.decoder(transaction_time);
        for (index, file) in files.iter().enumerate().rev() {
            let mut lines = Vec::new();
            for (number, change) in (1..).zip(file) {
                match change {
                    Change::Line(text) => {
                        lines.push(Line { number, offset: 0, bytes: text.clone().into_bytes().into() });
                    }
                    Change::Delete { id, at } => {
                        let at = at.as_deref().and_then(crate::fhir::parse_instant);
                        changes.delete(id.clone(), at).unwrap();
                    }
                }
            }
            let decoded = decoder.decode(&lines).unwrap();
            changes.push(OutputIndex(u32::try_from(index).unwrap()), decoded.keys, decoded.rows).unwrap();
        }
    }

    async fn table(&self) -> Table {
        self.root.open_or_create(self.resource_type, &definition_of(&self.shape())).await.unwrap()
    }

    async fn upsert(&self, files: &[Vec<Change>], transaction_time: i64) -> Committed {
        let changes = self.change_set(files, transaction_time);
        self.table().await.upsert(&changes, &upsert(transaction_time)).await.unwrap()
    }

    fn table_folder(&self) -> PathBuf {
        self.folder.path().join(format!("lake/{}.parquet", self.resource_type))
    }

    /// These columns of the table, ordered by the first one; read by the Delta kernel, not by the code that wrote.
    fn drawn(&self, columns: &[&str]) -> String {
        read_back::draw(&read_back::read(&self.table_folder(), columns).unwrap())
    }

    async fn rows(&self) -> BTreeMap<String, String> {
        if self.root.open(self.resource_type).await.unwrap().is_none() {
            return BTreeMap::new();
        }
        let drawn = self.drawn(&["id", "resource_json"]);
        let mut rows = BTreeMap::new();
        for row in drawn.lines().filter(|row| row.contains("resourceType")) {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            assert!(rows.insert(cells[1].to_owned(), cells[2].to_owned()).is_none(), "an id twice:\n{drawn}");
        }
        rows
    }

    async fn watermark(&self) -> Option<TransactionTime> {
        self.root.open(self.resource_type).await.unwrap()?.watermark(APP_ID).await.unwrap()
    }
}

fn upsert(transaction_time: i64) -> Upsert {
    Upsert {
        app_id: APP_ID.to_owned(),
        source: "hospital".to_owned(),
        watermark: NewWatermark::Raised(time(transaction_time)),
        exported_at: Some(time(transaction_time)),
        job: "all#1".to_owned(),
        run: 1,
        ..Upsert::default()
    }
}

fn full_refresh(transaction_time: i64, max_missing_percent: f64) -> Upsert {
    Upsert { extent: WHOLE, reconcile: Some(limits(max_missing_percent)), ..upsert(transaction_time) }
}

fn limits(max_missing_percent: f64) -> Reconcile {
    Reconcile { max_missing: 0, max_missing_percent, allow_empty: false }
}

/// (rules 81 and 137)
#[tokio::test]
async fn a_first_load_keeps_the_newest_of_each_id_and_moves_the_watermark_in_the_same_commit() {
    let lake = Lake::new();
    let committed = lake.upsert(&[vec![line("a", 2, "new"), line("b", 1, "")], vec![line("a", 1, "old")]], 5).await;
    assert_eq!(committed.counts, Counts { inserted: 2, duplicate: 1, ..Counts::default() });
    assert_eq!(committed.version, 1, "the empty first commit, then one for the rows");
    assert!(lake.rows().await["a"].contains("new"));
    assert_eq!(lake.watermark().await, Some(time(5)));
}

/// (rules 16 and 139, Q-76)
#[tokio::test]
async fn the_same_export_again_writes_no_data_file_and_still_moves_the_watermark() {
    let lake = Lake::new();
    let export = [vec![line("a", 1, ""), line("b", 1, "")]];
    let first = lake.upsert(&export, 5).await;
    assert!(first.bytes_written > 0);
    let second = lake.upsert(&export, 6).await;
    assert_eq!(second.counts, Counts { unchanged: 2, ..Counts::default() });
    assert_eq!(second.bytes_written, 0);
    assert_eq!(lake.watermark().await, Some(time(6)));
    let third = lake.upsert(&export, 6).await;
    assert_eq!(third.version, second.version, "not even a watermark changed: no commit");
}

/// (rule 139)
#[tokio::test]
async fn an_empty_change_set_moves_the_watermark() {
    let lake = Lake::new();
    lake.upsert(&[], 5).await;
    assert_eq!(lake.watermark().await, Some(time(5)));
}

#[tokio::test]
async fn a_run_that_changes_nothing_and_holds_its_watermark_makes_no_commit() {
    let lake = Lake::new();
    let first = lake.upsert(&[vec![line("a", 1, "")]], 5).await;
    let held = Upsert { watermark: NewWatermark::Stays, ..upsert(6) };
    let changes = lake.change_set(&[vec![line("a", 1, "")]], 6);
    let committed = lake.table().await.upsert(&changes, &held).await.unwrap();
    assert_eq!((committed.counts.unchanged, committed.version), (1, first.version));
    assert_eq!(lake.watermark().await, Some(time(5)));
}

/// (rule 52)
#[tokio::test]
async fn a_watermark_never_goes_backwards() {
    let lake = Lake::new();
    lake.upsert(&[], 5).await;
    lake.upsert(&[vec![line("a", 1, "")]], 3).await;
    assert_eq!(lake.watermark().await, Some(time(5)));
}

/// (rule 52)
#[tokio::test]
async fn a_watermark_is_set_back_only_by_the_operator() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, "")]], 5).await;
    let mut table = lake.table().await;
    let version = table.set_watermark(APP_ID, time(2)).await.unwrap();
    assert_eq!((version, lake.watermark().await), (2, Some(time(2))));
    let table = lake.table().await;
    assert_eq!(table.row_count().await.unwrap(), Some(2));
    let lowered = Upsert { watermark: NewWatermark::Exactly(time(1)), ..upsert(1) };
    lake.table().await.upsert(&lake.change_set(&[], 1), &lowered).await.unwrap();
    assert_eq!(lake.watermark().await, Some(time(1)));
    lake.upsert(&[vec![line("a", 2, "")]], 6).await;
    assert_eq!(lake.table().await.row_count().await.unwrap(), Some(2));
    assert_eq!(lake.table().await.id().unwrap(), table.id().unwrap());
    assert!(!lake.table().await.restored_since(0).await.unwrap());
    assert!(!lake.root.has_tombstones().await.unwrap());
}

#[tokio::test]
async fn an_upsert_updates_inserts_deletes_and_leaves_newer_rows_alone() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, ""), line("b", 3, "newest"), line("c", 1, ""), line("d", 1, "")]], 5).await;
    let deletions = [deletion("c", None), deletion("unknown", None)];
    let mut file = vec![line("a", 2, "changed"), line("b", 2, "late"), line("e", 1, "new"), line("d", 1, "")];
    file.extend(deletions);
    let committed = lake.upsert(&[file], 60_000_000_000_000_000).await;
    let expected = Counts { inserted: 1, updated: 1, unchanged: 2, stale: 1, deleted: 1, ..Counts::default() };
    assert_eq!(committed.counts, expected);
    let rows = lake.rows().await;
    assert_eq!(rows.keys().collect::<Vec<_>>(), ["a", "b", "d", "e"]);
    assert!(rows["a"].contains("changed") && rows["b"].contains("newest"));
}

/// (rule 97)
#[tokio::test]
async fn a_late_deletion_does_not_remove_a_recreated_resource() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 30, "")]], 5).await;
    let late = vec![deletion("a", Some("2026-01-01T00:00:10Z"))];
    assert_eq!(lake.upsert(&[late], 6).await.counts, Counts { stale: 1, ..Counts::default() });
    let newer = vec![deletion("a", Some("2026-01-01T00:00:40Z"))];
    assert_eq!(lake.upsert(&[newer], 7).await.counts, Counts { deleted: 1, ..Counts::default() });
}

/// (rule 96)
#[tokio::test]
async fn a_row_that_the_same_export_also_deletes_stays() {
    let lake = Lake::new();
    let both = vec![deletion("a", None), line("a", 1, "")];
    assert_eq!(lake.upsert(&[both], 5).await.counts, Counts { inserted: 1, duplicate: 1, ..Counts::default() });
}

/// (rule 98)
#[tokio::test]
async fn a_full_refresh_removes_missing_rows_unless_they_are_too_many() {
    let lake = Lake::new();
    let all: Vec<_> = ["a", "b", "c", "d"].map(|id| line(id, 1, "")).to_vec();
    lake.upsert(std::slice::from_ref(&all), 5).await;
    let refresh = async |lines: &[Change], transaction_time, max_missing_percent| {
        let changes = lake.change_set(&[lines.to_vec()], transaction_time);
        let table = lake.root.open(patient()).await.unwrap().unwrap();
        table.upsert(&changes, &full_refresh(transaction_time, max_missing_percent)).await.unwrap().counts
    };
    let too_much = refresh(&all[..2], 6, 25.0).await;
    assert_eq!(too_much, Counts { unchanged: 2, missing: 2, ..Counts::default() });
    assert_eq!(lake.rows().await.len(), 4);
    let removed = refresh(&all[..3], 7, 25.0).await;
    assert_eq!(removed, Counts { unchanged: 3, removed: 1, ..Counts::default() });
    assert_eq!(lake.rows().await.into_keys().collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[tokio::test]
async fn a_full_refresh_keeps_rows_of_a_later_export() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, ""), line("b", 1, "")]], 9).await;
    let changes = lake.change_set(&[vec![line("a", 1, "")]], 5);
    let table = lake.root.open(patient()).await.unwrap().unwrap();
    let committed = table.upsert(&changes, &full_refresh(5, 100.0)).await.unwrap();
    assert_eq!(committed.counts, Counts { unchanged: 1, ..Counts::default() });
}

#[tokio::test]
async fn rows_of_another_source_are_not_touched() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, "hospital")]], 5).await;
    let changes = lake.change_set(&[vec![line("a", 2, "clinic")]], 6);
    let table = lake.root.open(patient()).await.unwrap().unwrap();
    let clinic = Upsert { source: "clinic".to_owned(), app_id: "fhir-sync/clinic".to_owned(), ..upsert(6) };
    let committed = table.upsert(&changes, &clinic).await.unwrap();
    assert_eq!(committed.counts.inserted, 1);
}

#[tokio::test]
async fn a_commit_that_another_writer_overtook_is_merged_again() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, "")]], 5).await;
    let late = lake.root.open(patient()).await.unwrap().unwrap();
    lake.upsert(&[vec![line("a", 2, "first"), line("b", 1, "")]], 6).await;
    let changes = lake.change_set(&[vec![line("a", 3, "second")]], 7);
    let committed = late.upsert(&changes, &upsert(7)).await.unwrap();
    assert_eq!(committed.counts, Counts { updated: 1, ..Counts::default() });
    let rows = lake.rows().await;
    assert_eq!(rows.len(), 2);
    assert!(rows["a"].contains("second"));
}

#[tokio::test]
async fn a_table_of_another_writer_is_refused_with_the_way_out() {
    let lake = Lake::new();
    let others =
        arrow::datatypes::Schema::new(vec![arrow::datatypes::Field::new("id", arrow::datatypes::DataType::Utf8, true)]);
    let foreign = TableDefinition { schema: Arc::new(others), leading: 1, properties: Vec::new() };
    let table = lake.root.open_or_create(patient(), &foreign).await.unwrap();
    let changes = lake.change_set(&[vec![line("a", 1, "")]], 5);
    let error = table.upsert(&changes, &upsert(5)).await.unwrap_err().to_string();
    assert!(
        error.contains("Patient.parquet") && error.contains("_sync_source") && error.contains("move it away"),
        "{error}"
    );
}

#[tokio::test]
async fn only_the_leading_columns_have_statistics_in_the_log() {
    let lake = Lake::new();
    lake.upsert(&[vec![line("a", 1, "secret")]], 5).await;
    let log = lake.folder.path().join("lake/Patient.parquet/_delta_log/00000000000000000001.json");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("numRecords"), "{log}");
    assert!(!log.contains("secret") && !log.contains("resourceType"), "{log}");
}

#[tokio::test]
async fn a_table_of_an_older_schema_gains_its_columns_in_a_commit_of_its_own_and_keeps_its_rows() {
    let lake = Lake::new();
    let typed = shape().schema();
    let old = ["id", "_sync_source", "_sync_at", "_sync_transaction_time", "resourceType", "resource_json"];
    let old = old.map(|name| typed.field_with_name(name).unwrap().clone());
    let old = TableDefinition { schema: Arc::new(Schema::new(old.to_vec())), leading: 4, properties: Vec::new() };
    let table = lake.root.open_or_create(patient(), &old).await.unwrap();
    let changes = lake.change_set(&[], 5);
    assert!(table.upsert(&changes, &upsert(5)).await.is_err(), "a change set has more columns than that");
    let committed = lake.upsert(&[vec![line("a", 1, "")]], 6).await;
    assert_eq!(committed.counts.inserted, 1);
    let table = lake.root.open(patient()).await.unwrap().unwrap();
    let columns = table.columns().unwrap();
    assert!(
        typed.fields().iter().all(|field| columns.field_with_name(field.name()).is_ok_and(|there| there == &**field))
    );
    assert_eq!(lake.rows().await.len(), 1);
}

#[test]
fn a_root_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let root = Location::Folder(folder.path().join("file/lake"));
    let error = Root::new(Config::new(root)).unwrap_err().to_string();
    assert!(error.contains("file/lake") && error.contains("tables.root"), "{error}");
}

/// The newest version of each id in all exports.
fn fold(exports: &[Vec<(u8, u32)>]) -> BTreeMap<String, u32> {
    let mut newest = BTreeMap::new();
    for (id, version) in exports.iter().flatten() {
        let known = newest.entry(format!("id{id}")).or_insert(0);
        *known = (*known).max(*version);
    }
    newest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// (rule 83, Q-75)
    #[test]
    fn any_order_and_any_repetition_of_exports_converges_to_the_newest_version(
        exports in proptest::collection::vec(proptest::collection::vec((0u8..6, 1u32..9), 0..8), 1..5),
        again in proptest::collection::vec(0usize..5, 0..3),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let rows = runtime.block_on(async {
            let lake = Lake::new();
            let order = (0..exports.len()).chain(again.iter().map(|index| index % exports.len()));
            for (transaction_time, index) in (1..).zip(order) {
                let file = exports[index].iter().map(|(id, version)| line(&format!("id{id}"), *version, "")).collect();
                lake.upsert(&[file], transaction_time).await;
            }
            lake.rows().await
        });
        let expected = fold(&exports);
        prop_assert_eq!(rows.len(), expected.len());
        for (id, version) in expected {
            let version = format!(r#""versionId":"{version}""#);
            prop_assert!(rows[&id].contains(&version));
        }
    }
}

#[tokio::test]
async fn a_table_has_the_columns_that_it_was_created_with() {
    let lake = Lake::new();
    let layouts = [resource::Layout::Pathling, resource::Layout::Wide];
    let names =
        ["Binary", "Bundle", "Contract", "ExplanationOfBenefit", "Observation", "Patient", "QuestionnaireResponse"];
    for (at, name) in names.into_iter().enumerate() {
        let resource_type = name.parse().unwrap();
        let shape = Shape::of(resource_type, resource::Options { layout: layouts[at % 2], raw_json: at % 3 != 0 });
        let layout = definition_of(&shape);
        lake.root.open_or_create(resource_type, &layout).await.unwrap();
        let table = lake.root.open(resource_type).await.unwrap().unwrap();
        assert_eq!(table.columns().unwrap(), shape.schema(), "{name}");
    }
}
