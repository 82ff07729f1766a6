//! Another writer commits at each step: its changes stay, ours are applied on top, and no row is lost or doubled.

use deltalake::{
    DeltaTable,
    datafusion::prelude::{col, lit},
    kernel::{DataType, PrimitiveType, StructField},
};
use tokio::runtime::Handle;

use super::{
    maintain::{in_days, maintenance},
    *,
};
use crate::table::{
    DryRun, MaintenanceStep,
    commit::{self, CommitOutcome},
    tombstones::TombstoneTable,
    upsert::{decide::decide, write::write},
};

/// What the other writer does.
#[derive(Clone, Copy, Debug)]
enum Other {
    UpsertsOtherIds,
    UpsertsTheSameIds,
    Optimizes,
    Deletes,
    Updates,
    AddsAColumn,
}

/// The step before which the other writer commits.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Point {
    Decide,
    Write,
    Commit,
}

const OTHERS: [Other; 6] = [
    Other::UpsertsOtherIds,
    Other::UpsertsTheSameIds,
    Other::Optimizes,
    Other::Deletes,
    Other::Updates,
    Other::AddsAColumn,
];
const POINTS: [Point; 3] = [Point::Decide, Point::Write, Point::Commit];

impl Other {
    async fn act(self, lake: &Lake) {
        let delta = lake.root.open(patient()).await.unwrap().unwrap().delta;
        match self {
            Self::UpsertsOtherIds => {
                lake.upsert(&[vec![line("other", 1, "")]], 6).await;
            }
            Self::UpsertsTheSameIds => {
                lake.upsert(&[vec![line("a", 2, "other"), line("new", 1, "other"), line("b", 9, "other")]], 6).await;
            }
            Self::Optimizes => {
                let (_, metrics) = delta.optimize().await.unwrap();
                assert_eq!((metrics.num_files_added, metrics.num_files_removed), (1, 2));
            }
            Self::Deletes => {
                delta.delete().with_predicate(col("id").in_list(vec![lit("a"), lit("c")], false)).await.unwrap();
            }
            Self::Updates => {
                update(delta, "c", "gender", "other").await;
            }
            Self::AddsAColumn => {
                let field = StructField::nullable("added", DataType::Primitive(PrimitiveType::String));
                delta.add_columns().with_fields([field]).await.unwrap();
            }
        }
    }

    /// The content of each id after both have written.
    fn expected(self) -> BTreeMap<&'static str, &'static str> {
        let mut expected =
            BTreeMap::from([("a", "ours"), ("b", "ours"), ("c", "first"), ("d", "first"), ("new", "ours")]);
        match self {
            Self::UpsertsOtherIds => _ = expected.insert("other", ""),
            Self::UpsertsTheSameIds => _ = expected.insert("b", "other"),
            Self::Deletes => _ = expected.remove("c"),
            Self::Optimizes | Self::Updates | Self::AddsAColumn => {}
        }
        expected
    }
}

/// An UPDATE as other engines do it: all other columns stay, ours among them.
pub(super) async fn update(delta: DeltaTable, id: &str, column: &str, value: &str) -> DeltaTable {
    let update = delta.update().with_predicate(col("id").eq(lit(id))).with_update(column, lit(value));
    let (delta, metrics) = update.await.unwrap();
    assert_eq!(metrics.num_updated_rows, 1);
    delta
}

/// Two files, one of them with a deletion vector.
async fn lake() -> Lake {
    let lake = Lake::new();
    let first = ["a", "b", "c", "d"].map(|id| line(id, 1, "first")).to_vec();
    lake.upsert(&[first], 4).await;
    lake.upsert(&[vec![line("a", 2, "second")]], 5).await;
    lake
}

fn ours() -> Vec<Change> {
    vec![line("a", 3, "ours"), line("b", 3, "ours"), line("new", 3, "ours")]
}

async fn contents(lake: &Lake) -> BTreeMap<String, String> {
    let rows = lake.rows().await.into_iter();
    let content =
        |json: String| serde_json::from_str::<serde_json::Value>(&json).unwrap()["x"].as_str().unwrap().to_owned();
    rows.map(|(id, json)| (id, content(json))).collect()
}

async fn assert_contents(lake: &Lake, other: Other) {
    let expected = other.expected().into_iter().map(|(id, content)| (id.to_owned(), content.to_owned())).collect();
    assert_eq!(contents(lake).await, expected, "{other:?}");
}

/// Each step of an upsert, with the other writer before one of them.
async fn one_attempt(lake: &Lake, other: Other, point: Point) -> CommitOutcome {
    let changes = lake.change_set(&[ours()], 7);
    let upsert = upsert(7);
    let mut table = lake.root.open(patient()).await.unwrap().unwrap();
    let tombstones = TombstoneTable::open(&lake.root).await.unwrap();
    if point == Point::Decide {
        other.act(lake).await;
    }
    let decision = decide(&table, &changes, &upsert, &tombstones).await.unwrap();
    if point == Point::Write {
        other.act(lake).await;
    }
    let actions = write(&table, &changes, &decision).await.unwrap();
    if point == Point::Commit {
        other.act(lake).await;
    }
    commit::commit(&mut table, actions, &decision.counts, &upsert).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn any_commit_of_another_writer_at_any_step_overtakes_the_attempt_and_stays() {
    for (other, point) in OTHERS.into_iter().flat_map(|other| POINTS.map(|point| (other, point))) {
        let lake = lake().await;
        let outcome = one_attempt(&lake, other, point).await;
        assert!(matches!(outcome, CommitOutcome::Overtaken), "{other:?} {point:?}");
        assert_eq!(
            lake.watermark().await,
            Some(time(if matches!(other, Other::UpsertsOtherIds | Other::UpsertsTheSameIds) { 6 } else { 5 }))
        );
        lake.upsert(&[ours()], 7).await;
        assert_contents(&lake, other).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upsert_that_began_before_another_commit_merges_again_with_the_new_version() {
    for other in OTHERS {
        let lake = lake().await;
        let stale = lake.root.open(patient()).await.unwrap().unwrap();
        other.act(&lake).await;
        let changes = lake.change_set(&[ours()], 7);
        let committed = stale.upsert(&changes, &upsert(7)).await.unwrap();
        assert_eq!(committed.counts.total(), 3, "{other:?}");
        assert_eq!(committed.foreign, u64::from(matches!(other, Other::Deletes | Other::Updates)), "{other:?}");
        assert_contents(&lake, other).await;
        assert_eq!(lake.watermark().await, Some(time(7)));
        let again = lake.upsert(&[ours()], 7).await;
        assert_eq!((again.bytes_written, again.counts.unchanged + again.counts.stale), (0, 3), "{other:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn data_files_of_an_overtaken_attempt_are_deleted() {
    let lake = lake().await;
    let stale = lake.root.open(patient()).await.unwrap().unwrap();
    lake.upsert(&[vec![line("other", 1, "")]], 6).await;
    let changes = lake.change_set(&[ours()], 7);
    stale.upsert(&changes, &upsert(7)).await.unwrap();
    let folder = lake.folder.path().join("lake/Patient.parquet");
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let written = names.filter(|name| name.ends_with(".parquet")).count();
    assert_eq!(written, 5, "one of each upsert, and what it left of the first file");
}

#[tokio::test(flavor = "multi_thread")]
async fn upserts_at_the_same_time_lose_and_double_no_row() {
    for round in 0..20 {
        let lake = Lake::new();
        lake.upsert(&[(0..6).map(|id| line(&format!("id{id}"), 1, "")).collect()], 1).await;
        // In even rounds they have no id in common.
        let ids = [0..4, if round % 2 == 0 { 4..8 } else { 2..6 }];
        let runtime = Handle::current();
        std::thread::scope(|scope| {
            for (version, ids) in (2..).zip(ids.clone()) {
                let file = ids.map(|id| line(&format!("id{id}"), version, "")).collect();
                let (lake, runtime) = (&lake, &runtime);
                scope.spawn(move || runtime.block_on(lake.upsert(&[file], version.into())));
            }
        });
        let rows = lake.rows().await;
        assert_eq!(rows.len(), if round % 2 == 0 { 8 } else { 6 });
        for (id, json) in rows {
            let of = |ids: &std::ops::Range<i32>| ids.contains(&id[2..].parse().unwrap());
            let version = if of(&ids[1]) {
                3
            } else if of(&ids[0]) {
                2
            } else {
                1
            };
            assert!(json.contains(&format!(r#""versionId":"{version}""#)), "{id} {json}");
        }
        assert_eq!(lake.watermark().await, Some(time(3)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_load_becomes_an_upsert_if_another_writer_fills_the_table_meanwhile() {
    let lake = Lake::new();
    let table = lake.table().await;
    let file = vec![line("a", 1, "late"), line("b", 2, "ours"), line("b", 1, "older"), line("c", 1, "ours")];
    let changes = lake.first_load(&table, &[file], 7);
    lake.upsert(&[vec![line("a", 2, "other"), line("b", 1, "other"), line("d", 1, "other")]], 6).await;
    let committed = table.upsert(&changes, &upsert(7)).await.unwrap();
    assert_eq!(committed.counts, Counts { inserted: 1, updated: 1, stale: 1, duplicate: 1, ..Counts::default() });
    let expected = [("a", "other"), ("b", "ours"), ("c", "ours"), ("d", "other")];
    let expected = expected.map(|(id, content)| (id.to_owned(), content.to_owned()));
    assert_eq!(contents(&lake).await, BTreeMap::from(expected));
}

/// deltalake's conflict check does not notice that another compaction has removed the files of this one: both would
/// land, each with all rows. So the second one must not be tried again at the next version.
#[tokio::test(flavor = "multi_thread")]
async fn two_compactions_at_the_same_time_double_no_row() {
    for other_is_ours in [false, true] {
        let lake = lake().await;
        let before = lake.rows().await;
        let overtake = || {
            let act = || async {
                if other_is_ours {
                    lake.maintain(&[MaintenanceStep::Compact], in_days(0)).await;
                } else {
                    Other::Optimizes.act(&lake).await;
                }
            };
            std::thread::scope(|scope| {
                scope.spawn(|| tokio::runtime::Runtime::new().unwrap().block_on(act())).join().unwrap();
            });
            true
        };
        let compact = maintenance(&[MaintenanceStep::Compact]);
        let overtaken = lake.root.maintain(patient(), &compact, DryRun::No, in_days(0), &overtake).await;
        assert_eq!(lake.rows().await, before, "the other one is ours: {other_is_ours}");
        assert!(matches!(overtaken, Err(Error::Conflict { .. })), "{overtaken:?}");
        assert_eq!(lake.table().await.files().await.unwrap().len(), 1);
    }
}
