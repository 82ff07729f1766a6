//! Any sequence of exports, full refreshes, maintenance and update modes ends in the table that a plain model
//! describes.
//!
//! The model is written from the rules, not from the upsert: it has no files, deletion vectors or hashes. All times are
//! seconds of one minute.

mod model;

use std::time::Duration;

use proptest::{collection::vec, option::weighted, sample::subsequence};

use self::model::{Entry, Export, Model};
use object_store::local::LocalFileSystem;
use url::Url;

use super::{traced::Traced, *};
use crate::store::cache;
use crate::table::{DryRun, MaintenanceOptions, MaintenanceStep, Retention};

/// What happens to the table.
#[derive(Clone, Debug)]
enum Step {
    Export(Export),
    /// A small target, so that small files are large ones.
    Maintain {
        target_file_bytes: u64,
        purge_percent: f64,
    },
    Switch {
        update_mode: UpdateMode,
        change_data_feed: bool,
    },
}

const IDS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

fn row() -> impl Strategy<Value = Entry> {
    let parts = (0..IDS.len(), weighted(0.8, 1u32..30), weighted(0.7, 1u32..5), prop::bool::weighted(0.1), 0u8..3);
    parts.prop_map(|(id, last_updated, version_id, subsetted, content)| Entry::Row {
        id: IDS[id],
        last_updated,
        version_id,
        subsetted,
        content,
    })
}

fn removal() -> impl Strategy<Value = Entry> {
    (0..IDS.len(), weighted(0.7, 1u32..30)).prop_map(|(id, at)| Entry::Deletion { id: IDS[id], at })
}

fn export() -> impl Strategy<Value = Export> {
    let entry = prop_oneof![4 => row(), 1 => removal()];
    let refresh = weighted(0.2, prop_oneof![Just(100.0), Just(50.0)]);
    (vec(vec(entry, 0..5), 0..4), 1u32..30, refresh).prop_map(|(files, transaction_time, refresh)| Export {
        files,
        transaction_time,
        refresh,
    })
}

/// Mostly deletions, of two resources.
fn export_of_few() -> impl Strategy<Value = Export> {
    let of_two = |entry: Entry| match entry {
        Entry::Row { id, last_updated, version_id, subsetted, content } if id > "b" => {
            Entry::Row { id: "b", last_updated, version_id, subsetted, content }
        }
        Entry::Deletion { id, at } if id > "b" => Entry::Deletion { id: "a", at },
        entry => entry,
    };
    let entry = prop_oneof![1 => row(), 1 => removal()].prop_map(of_two);
    (vec(entry, 1..3), 1u32..30).prop_map(|(file, transaction_time)| Export {
        files: vec![file],
        transaction_time,
        refresh: None,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let maintain = (prop_oneof![Just(1), Just(20_000), Just(1 << 27)], prop_oneof![Just(1.0), Just(20.0)]);
    prop_oneof![
        6 => export().prop_map(Step::Export),
        1 => maintain.prop_map(|(target_file_bytes, purge_percent)| Step::Maintain { target_file_bytes, purge_percent }),
        1 => switch(),
    ]
}

fn switch() -> impl Strategy<Value = Step> {
    let update_mode = prop_oneof![Just(UpdateMode::DeletionVectors), Just(UpdateMode::CopyOnWrite)];
    (update_mode, any::<bool>())
        .prop_map(|(update_mode, change_data_feed)| Step::Switch { update_mode, change_data_feed })
}

/// A minute of the year 2026.
fn instant(second: u32) -> String {
    format!("2026-01-01T00:00:{second:02}Z")
}

fn micros(second: u32) -> i64 {
    crate::fhir::parse_instant(&instant(second)).unwrap().timestamp_micros()
}

impl Entry {
    fn change(&self) -> Change {
        match self {
            Self::Row { .. } => Change::Line(self.line()),
            Self::Deletion { id, at } => deletion(id, at.map(instant).as_deref()),
        }
    }
}

impl Export {
    fn changes(&self) -> Vec<Vec<Change>> {
        self.files.iter().map(|file| file.iter().map(Entry::change).collect()).collect()
    }

    fn upsert(&self) -> Upsert {
        let reconcile = self.refresh.map(limits);
        let extent = if reconcile.is_some() { WHOLE } else { Extent::Partial };
        Upsert { extent, reconcile, ..upsert(micros(self.transaction_time)) }
    }
}

/// Rows with few columns, so that there is time for many cases.
fn lake() -> Lake {
    Lake::of("Binary".parse().unwrap())
}

/// The same through the layers around an object store: requests are counted, and what is read again is kept.
fn lake_in_store() -> Lake {
    let lake = lake();
    Lake { root: in_store(&lake, config(lake.folder.path(), UpdateMode::default())), ..lake }
}

fn in_store(lake: &Lake, config: Config) -> Root {
    let url = format!("store://lake{}", lake.folder.path().join("lake").display());
    let settings = cache::Settings { folder: lake.folder.path().to_owned(), max_bytes: 1 << 22 };
    let root = Location::ObjectStore(Url::parse(&url).unwrap());
    let store = Traced::new(Arc::new(LocalFileSystem::new()));
    Root::over(Arc::new(store), Config { root, cache: Some(settings), ..config }).unwrap()
}

fn converges(mut lake: Lake, steps: &[Step]) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut model = Model::default();
        lake.table().await;
        for step in steps {
            take(&mut lake, &mut model, step).await;
        }
        assert_eq!(lake.stated_rows().await, model.rows().len());
    });
}

impl Lake {
    /// As the daemon does it: the export of an empty table is a first load.
    async fn bring(&self, export: &Export) -> Committed {
        let table = self.table().await;
        let transaction_time = micros(export.transaction_time);
        let changes = if table.files().await.unwrap().is_empty() {
            self.first_load(&table, &export.changes(), transaction_time)
        } else {
            tokio::task::block_in_place(|| self.change_set(&export.changes(), transaction_time))
        };
        assert_eq!(changes.received(), export.received());
        table.upsert(&changes, &export.upsert()).await.unwrap()
    }

    /// The number of live rows that the log states.
    async fn stated_rows(&self) -> usize {
        let files = self.table().await.stored_files().await.unwrap();
        let stated = files.iter().map(|file| {
            let stats: serde_json::Value = serde_json::from_str(file.add.stats.as_deref().unwrap()).unwrap();
            let dead = file.add.deletion_vector.as_ref().map_or(0, |vector| vector.cardinality);
            stats["numRecords"].as_i64().unwrap() - dead
        });
        usize::try_from(stated.sum::<i64>()).unwrap()
    }

    async fn small_maintenance(&self, target_file_bytes: u64, purge_percent: f64) {
        let maintenance = MaintenanceOptions {
            steps: MaintenanceStep::ALL.into(),
            target_file_bytes,
            purge_percent,
            vacuum_retention: Retention::Forced(Duration::ZERO),
            log_retention: Duration::ZERO,
            quarantine_retention: Duration::MAX,
        };
        #[expect(clippy::disallowed_methods, reason = "files have just been written by the same clock")]
        let now = chrono::Utc::now() + chrono::TimeDelta::days(1);
        for table in [TableName::from(self.resource_type), TableName::Tombstones] {
            self.root.maintain(table, &maintenance, DryRun::No, now, &|| true).await.unwrap();
        }
    }
}

async fn take(lake: &mut Lake, model: &mut Model, step: &Step) {
    match step {
        Step::Switch { update_mode, change_data_feed } => {
            let config = Config { change_data_feed: *change_data_feed, ..config(lake.folder.path(), *update_mode) };
            let is_in_store = lake.root.store.is_some();
            lake.root = if is_in_store { in_store(lake, config) } else { Root::new(config).unwrap() };
        }
        Step::Maintain { target_file_bytes, purge_percent } => {
            lake.small_maintenance(*target_file_bytes, *purge_percent).await;
        }
        Step::Export(export) => {
            let expected = model.take(export);
            let committed = lake.bring(export).await;
            assert_eq!(committed.counts, expected);
            assert_eq!((committed.counts.total(), committed.foreign), (export.received(), 0));
            let expected = model.take(export);
            let again = lake.bring(export).await;
            assert_eq!(again.counts, expected, "the second time");
            let Counts { inserted, updated, deleted, removed, .. } = again.counts;
            if removed == 0 {
                assert_eq!((again.bytes_written, inserted + updated + deleted), (0, 0), "the second time");
            }
        }
    }
    assert_eq!(lake.rows().await, model.rows());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_sequence_of_changes_gives_the_rows_of_the_model(steps in vec(step(), 1..7)) {
        converges(lake(), &steps);
    }

    #[test]
    fn any_sequence_of_changes_in_an_object_store_behind_a_cache_gives_the_rows_of_the_model(
        steps in vec(step(), 1..7),
    ) {
        converges(lake_in_store(), &steps);
    }

    #[test]
    fn a_fold_after_every_export_does_not_change_the_result(
        exports in vec(export_of_few(), 2..7),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let (mut lake, mut model) = (lake(), Model::default());
            for export in exports {
                take(&mut lake, &mut model, &Step::Export(export)).await;
                take(&mut lake, &mut model, &Step::Maintain { target_file_bytes: 1 << 27, purge_percent: 1.0 }).await;
            }
        });
    }

    #[test]
    fn exports_with_complete_versions_give_the_same_table_in_any_order(
        exports in vec(whole_export(), 2..5),
        order in Just((0..4usize).collect::<Vec<_>>()).prop_shuffle(),
        again in subsequence((0..4usize).collect::<Vec<_>>(), 0..3),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let rows = |order: Vec<usize>| {
            runtime.block_on(async {
                let lake = lake();
                for index in order.into_iter().filter(|index| *index < exports.len()) {
                    lake.bring(&exports[index]).await;
                }
                lake.rows().await
            })
        };
        let rows_in_order = rows((0..exports.len()).collect());
        prop_assert_eq!(rows(order.into_iter().chain(again).collect()), rows_in_order);
    }
}

/// Exports that state the time of every row and every deletion; a version has one content.
fn whole_export() -> impl Strategy<Value = Export> {
    let row = (0..IDS.len(), 1u32..9).prop_map(|(id, version)| Entry::Row {
        id: IDS[id],
        last_updated: Some(version),
        version_id: Some(version),
        subsetted: false,
        content: 0,
    });
    let removal = (0..IDS.len(), 1u32..9).prop_map(|(id, at)| Entry::Deletion { id: IDS[id], at: Some(at) });
    let files = vec(vec(prop_oneof![3 => row, 1 => removal], 0..5), 0..3);
    (files, 10u32..30).prop_map(|(files, transaction_time)| Export { files, transaction_time, refresh: None })
}

fn timed_row(id: &'static str, last_updated: Option<u32>) -> Entry {
    Entry::Row { id, last_updated, version_id: None, subsetted: false, content: 0 }
}

fn export_of(transaction_time: u32, entries: &[Entry], refresh: Option<f64>) -> Step {
    Step::Export(Export { files: vec![entries.to_vec()], transaction_time, refresh })
}

async fn take_all(steps: &[Step]) -> Model {
    let (mut lake, mut model) = (lake(), Model::default());
    for step in steps {
        take(&mut lake, &mut model, step).await;
    }
    model
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_a_full_refresh_removed_does_not_return_because_an_older_deletion_states_a_time() {
    let model = take_all(&[
        export_of(5, &[Entry::Deletion { id: "a", at: Some(1) }], None),
        export_of(8, &[timed_row("a", Some(2)), timed_row("b", Some(2))], None),
        export_of(9, &[timed_row("b", Some(2))], Some(100.0)),
        export_of(7, &[timed_row("a", Some(2))], None),
    ])
    .await;
    assert_eq!(model.rows().into_keys().collect::<Vec<_>>(), ["b"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_a_later_export_repeats_with_an_earlier_time_keeps_both_times() {
    let model = take_all(&[
        export_of(12, &[Entry::Deletion { id: "a", at: Some(11) }], None),
        export_of(20, &[Entry::Deletion { id: "a", at: Some(5) }], None),
        export_of(15, &[timed_row("a", None)], None),
        export_of(15, &[timed_row("a", Some(10))], None),
    ])
    .await;
    assert!(model.rows().is_empty());
}
