//! An upsert by Spark, without a Spark: what is staged, what is sent, and what follows from an answer that is lost.

mod other_writers;
mod server;
mod warehouse;

use std::{
    ops::Range,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

pub(crate) use self::server::{Fault, Server};
use self::warehouse::Warehouse;
use super::{Config, Spark, SparkTable, engine::AnswerRows};
use crate::{
    fhir::{ResourceType, TransactionTime},
    resource::{Decoder, Layout, Line, MappingPool, Options, Shape},
    table::{
        self, ChangeSet, Committed, Counts, Extent, Location, MemoryBudget, NewWatermark, OutputIndex, Reconcile, Root,
        TableDefinition, Upsert,
    },
};

const APP_ID: &str = "fhir-sync/all";
const MEMORY_BYTES: usize = 1 << 20;

/// A scripted server, and the root of the tables that it writes.
struct Site {
    server: Server,
    root: Root,
    folder: tempfile::TempDir,
}

/// A server without tables.
pub(crate) async fn server() -> Server {
    Server::start(Warehouse::new(shape().schema())).await
}

fn shape() -> Arc<Shape> {
    Shape::untyped(ResourceType::PATIENT, Options { layout: Layout::Pathling, raw_json: true })
}

/// Small numbers count from February 2026; the rows of [`patient`] are of January.
fn time(micros: i64) -> TransactionTime {
    TransactionTime::from_micros(1_769_904_000_000_000 + micros).unwrap()
}

fn patient(id: &str, version: u32) -> String {
    let meta = format!(r#"{{"versionId":"{version}","lastUpdated":"2026-01-01T00:00:{version:02}Z"}}"#);
    format!(r#"{{"resourceType":"Patient","id":"{id}","meta":{meta}}}"#)
}

fn upsert(at: i64) -> Upsert {
    Upsert {
        app_id: APP_ID.to_owned(),
        source: "hospital".to_owned(),
        watermark: NewWatermark::Raised(time(at)),
        exported_at: Some(time(at)),
        job: "all#1".to_owned(),
        run: 7,
        ..Upsert::default()
    }
}

impl Site {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(table::Config::new(Location::Folder(folder.path().join("lake")))).unwrap();
        Self { server: server().await, root, folder }
    }

    /// A table with two patients, `a` and `b`.
    async fn loaded() -> Self {
        let site = Self::new().await;
        site.sync(&[patient("a", 1), patient("b", 1)], &[], 1).await.unwrap();
        site
    }

    fn changes(&self, lines: &[String], deleted: &[&str], at: i64) -> ChangeSet {
        let changes = ChangeSet::new(&shape().schema(), MemoryBudget::alone(MEMORY_BYTES), self.folder.path());
        Self::fill(&changes, lines, deleted, at);
        changes
    }

    /// The same in chunks of three rows, and in shards of a few ids.
    fn tiny_changes(&self, lines: &[String], deleted: &[&str], at: i64) -> ChangeSet {
        let changes = ChangeSet::tiny(&shape().schema(), self.folder.path());
        lines.chunks(3).for_each(|lines| Self::fill(&changes, lines, &[], at));
        Self::fill(&changes, &[], deleted, at);
        assert!(changes.shards().count() > 4 && changes.chunks().count() > 4);
        changes
    }

    fn fill(changes: &ChangeSet, lines: &[String], deleted: &[&str], at: i64) {
        let decoder = Decoder {
            mappings: MappingPool::of(&shape()),
            shape: shape(),
            source: "hospital".into(),
            run_started_micros: 0,
            transaction_time: Some(time(at)),
            job: "all#1".into(),
        };
        let line = |(number, line): (u64, &String)| Line { number, offset: 0, bytes: line.clone().into_bytes().into() };
        let decoded = decoder.decode(&(1..).zip(lines).map(line).collect::<Vec<_>>()).unwrap();
        changes.push(OutputIndex(0), decoded.keys, decoded.rows).unwrap();
        for id in deleted {
            changes.delete((*id).to_owned(), None).unwrap();
        }
    }

    async fn table(&self, config: &Config) -> SparkTable {
        let shape = shape();
        let definition =
            TableDefinition { schema: shape.schema(), leading: shape.leading(), properties: shape.properties() };
        let spark = Spark::new(config, &self.root).unwrap();
        spark.open_or_create(ResourceType::PATIENT, &definition).await.unwrap()
    }

    async fn sync(&self, lines: &[String], deleted: &[&str], at: i64) -> Result<Committed, table::Error> {
        self.upsert(&self.changes(lines, deleted, at), &upsert(at)).await
    }

    async fn upsert(&self, changes: &ChangeSet, upsert: &Upsert) -> Result<Committed, table::Error> {
        self.table(&self.server.config()).await.upsert(changes, upsert).await
    }

    /// The same, where an answer of Spark has at most so many rows.
    async fn upsert_with(
        &self,
        answers: AnswerRows,
        changes: &ChangeSet,
        upsert: &Upsert,
    ) -> Result<Committed, table::Error> {
        let mut table = self.table(&self.server.config()).await;
        table.spark.answers = answers;
        table.upsert(changes, upsert).await
    }

    async fn watermark(&self) -> Option<TransactionTime> {
        self.table(&self.server.config()).await.watermark(APP_ID)
    }

    fn staging(&self) -> PathBuf {
        self.folder.path().join("lake/_fhir_sync/staging/Patient")
    }

    /// The ids and their lines as the server has them.
    fn assert_rows(&self, expected: &[(&str, u32)]) {
        let inner = self.server.inner();
        let expected: Vec<_> = expected.iter().map(|(id, version)| (*id, patient(id, *version))).collect();
        let expected: Vec<_> = expected.iter().map(|(id, line)| (*id, line.as_str())).collect();
        assert_eq!(inner.warehouse.lines().into_iter().collect::<Vec<_>>(), expected);
    }

    /// MERGEs that arrived, and those that became a commit.
    fn merges(&self) -> (usize, usize) {
        (self.server.count("MERGE INTO"), self.server.inner().warehouse.commit_metadata().len())
    }
}

/// The causes of an error as one text.
fn text(error: &table::Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[tokio::test]
async fn a_change_set_is_staged_and_merged_in_one_statement_and_nothing_is_left_staged() {
    let site = Site::loaded().await;
    let committed = site.sync(&[patient("a", 2), patient("c", 1)], &["b", "unknown"], 2).await.unwrap();
    let counts = Counts { inserted: 1, updated: 1, deleted: 1, unchanged: 1, ..Counts::default() };
    assert_eq!((committed.counts, committed.version), (counts, 2));
    site.assert_rows(&[("a", 2), ("c", 1)]);
    assert_eq!((site.merges(), site.watermark().await), ((2, 2), Some(time(2))));
    assert!(!site.staging().exists());
    assert!(site.root.has_tombstones().await.unwrap());
}

#[tokio::test]
async fn the_same_export_again_sends_no_merge() {
    let site = Site::loaded().await;
    let committed = site.sync(&[patient("a", 1), patient("b", 1)], &[], 1).await.unwrap();
    assert_eq!(committed.counts, Counts { unchanged: 2, ..Counts::default() });
    assert_eq!(site.merges(), (1, 1));
    assert!(!site.staging().exists());
}

/// (rule 98)
#[tokio::test]
async fn a_full_refresh_removes_rows_that_the_server_no_longer_has() {
    let site = Site::loaded().await;
    let limits = Reconcile { max_missing: 1, max_missing_percent: 0.0, allow_empty: false };
    let whole = Upsert { extent: Extent::Whole { removes_returned: false }, reconcile: Some(limits), ..upsert(2) };
    let committed = site.upsert(&site.changes(&[patient("b", 1)], &[], 2), &whole).await.unwrap();
    assert_eq!(committed.counts, Counts { unchanged: 1, removed: 1, ..Counts::default() });
    site.assert_rows(&[("b", 1)]);
}

/// Statements that ask for the keys of stored rows, and for missing ids.
const KEYS: &str = "SELECT t.`id` AS id, t.`_sync_hash`";
const MISSING: &str = "SELECT count(*) AS copies, ";

fn patients(numbers: Range<u32>, version: u32) -> Vec<String> {
    numbers.map(|number| patient(&format!("p{number}"), version)).collect()
}

#[tokio::test]
async fn a_change_set_of_many_shards_is_decoded_twice_at_most_and_the_stored_rows_are_read_once() {
    let (spilled, held) = (Site::new().await, Site::new().await);
    let first = patients(0..40, 2);
    let changes = spilled.tiny_changes(&first, &[], 1);
    let chunks = changes.chunks().count() as u64;
    spilled.upsert(&changes, &upsert(1)).await.unwrap();
    let decoded = changes.decoded.load(Ordering::Relaxed);
    assert_eq!((decoded, spilled.server.count(KEYS)), (chunks, 0), "a first load looks for nothing");
    held.sync(&first, &[], 1).await.unwrap();
    // Equal rows, newer ones, one of them twice, older ones, new ones, and rows that are deleted as well.
    let second =
        [patients(0..10, 2), patients(10..25, 3), patients(24..25, 4), patients(25..30, 1), patients(40..45, 1)];
    let (second, deleted) = (second.concat(), ["p1", "p33", "p34", "p35", "nobody"]);
    let changes = spilled.tiny_changes(&second, &deleted, 2);
    let chunks = changes.chunks().count() as u64;
    let by_spilled = spilled.upsert(&changes, &upsert(2)).await.unwrap();
    let decoded = changes.decoded.load(Ordering::Relaxed);
    assert!(decoded <= 2 * chunks, "{decoded} of {chunks}");
    assert_eq!(spilled.server.count(KEYS), 1);
    let by_held = held.sync(&second, &deleted, 2).await.unwrap();
    assert_eq!(by_spilled.counts, by_held.counts);
    assert_eq!((by_held.counts.updated, by_held.counts.deleted, by_held.counts.duplicate), (15, 3, 2));
    assert_eq!(spilled.server.inner().warehouse.lines(), held.server.inner().warehouse.lines());
}

#[tokio::test]
async fn stored_rows_that_are_too_many_for_one_answer_are_read_in_several() {
    let site = Site::new().await;
    site.sync(&patients(0..20, 1), &[], 1).await.unwrap();
    let changes = site.tiny_changes(&patients(5..25, 2), &[], 2);
    let answers = AnswerRows { stored_rows: 6, missing_rows: 6 };
    let committed = site.upsert_with(answers, &changes, &upsert(2)).await.unwrap();
    assert_eq!(committed.counts, Counts { inserted: 5, updated: 15, ..Counts::default() });
    assert_eq!(site.server.count(KEYS), 4);
}

/// (rule 98)
#[tokio::test]
async fn missing_rows_that_may_not_be_removed_are_counted_and_not_fetched() {
    let site = Site::new().await;
    site.sync(&patients(0..20, 1), &[], 1).await.unwrap();
    let may_all = Reconcile { max_missing: 100, max_missing_percent: 100.0, allow_empty: false };
    for (number, (lines, limits)) in [(vec![], may_all), (patients(0..2, 1), Reconcile::NONE)].into_iter().enumerate() {
        let at = 2 + i64::try_from(number).unwrap();
        let whole = Upsert { extent: Extent::Whole { removes_returned: false }, reconcile: Some(limits), ..upsert(at) };
        let committed = site.upsert(&site.changes(&lines, &[], at), &whole).await.unwrap();
        let unchanged = lines.len() as u64;
        assert_eq!(committed.counts, Counts { unchanged, missing: 20 - unchanged, ..Counts::default() });
    }
    assert_eq!(site.server.count(MISSING), 0);
    assert!(!site.root.has_tombstones().await.unwrap());
}

/// (rule 98)
#[tokio::test]
async fn missing_rows_are_removed_some_at_a_time_also_where_another_writer_has_doubled_one() {
    let site = Site::new().await;
    site.sync(&patients(0..20, 1), &[], 1).await.unwrap();
    {
        let rows = &mut site.server.inner().warehouse.rows;
        rows.push(rows[7].clone());
    }
    let limits = Reconcile { max_missing: 100, max_missing_percent: 0.0, allow_empty: false };
    let whole = Upsert { extent: Extent::Whole { removes_returned: false }, reconcile: Some(limits), ..upsert(2) };
    let changes = site.changes(&patients(0..2, 1), &[], 2);
    let answers = AnswerRows { stored_rows: 100, missing_rows: 5 };
    let committed = site.upsert_with(answers, &changes, &whole).await.unwrap();
    assert_eq!(committed.counts, Counts { unchanged: 2, removed: 19, ..Counts::default() });
    site.assert_rows(&[("p0", 1), ("p1", 1)]);
    assert_eq!((site.server.count(MISSING), site.merges()), (4, (2, 2)));
    let log = site.folder.path().join("lake/_fhir_sync/deleted/_delta_log");
    let is_commit = |file: &std::fs::DirEntry| file.path().extension().is_some_and(|of| of == "json");
    let commits = std::fs::read_dir(log).unwrap().map(Result::unwrap).filter(is_commit).count();
    assert_eq!(commits, 1 + 4, "a commit of its own for each of them");
}

#[tokio::test]
async fn a_stream_that_breaks_in_the_middle_of_a_merge_is_attached_to_again_and_the_merge_is_sent_once() {
    let site = Site::loaded().await;
    site.server.fail("MERGE INTO", Fault::Cut { after: 0 });
    site.sync(&[patient("a", 2)], &[], 2).await.unwrap();
    site.assert_rows(&[("a", 2), ("b", 1)]);
    assert_eq!((site.merges(), site.server.reattached()), ((2, 2), 1));
}

#[tokio::test]
async fn a_result_whose_stream_breaks_is_read_on_behind_what_has_arrived() {
    let site = Site::loaded().await;
    site.server.fail("SELECT t.`id` AS id, t.`_sync_hash`", Fault::Cut { after: 1 });
    let committed = site.sync(&[patient("a", 2), patient("b", 1)], &[], 2).await.unwrap();
    assert_eq!(committed.counts, Counts { updated: 1, unchanged: 1, ..Counts::default() });
    assert_eq!(site.server.reattached(), 1);
}

#[tokio::test]
async fn a_merge_whose_answer_is_lost_is_found_in_the_history_and_not_sent_again() {
    let site = Site::loaded().await;
    site.server.fail("MERGE INTO", Fault::EndedAfter);
    let committed = site.sync(&[patient("a", 2)], &["b"], 2).await.unwrap();
    assert_eq!(committed.counts, Counts { updated: 1, deleted: 1, ..Counts::default() });
    site.assert_rows(&[("a", 2)]);
    assert_eq!((site.merges(), site.watermark().await), ((2, 2), Some(time(2))));
}

#[tokio::test]
async fn a_merge_that_a_server_has_not_carried_out_is_decided_again() {
    let site = Site::loaded().await;
    site.server.fail("MERGE INTO", Fault::EndedBefore);
    let committed = site.sync(&[patient("a", 2)], &["b"], 2).await.unwrap();
    assert_eq!(committed.counts, Counts { updated: 1, deleted: 1, ..Counts::default() });
    site.assert_rows(&[("a", 2)]);
    assert_eq!(site.merges(), (3, 2));
}

#[tokio::test]
async fn a_merge_that_arrives_twice_is_carried_out_once() {
    let site = Site::loaded().await;
    site.server.fail("MERGE INTO", Fault::Denied);
    site.sync(&[patient("a", 2), patient("c", 1)], &[], 2).await.unwrap();
    site.assert_rows(&[("a", 2), ("b", 1), ("c", 1)]);
    assert_eq!(site.merges(), (3, 2));
}

#[tokio::test]
async fn a_row_that_another_writer_changes_before_the_merge_is_decided_about_again() {
    let site = Site::loaded().await;
    site.server.fail("MERGE INTO", Fault::Overtaken);
    let committed = site.sync(&[patient("a", 2)], &[], 2).await.unwrap();
    assert_eq!((committed.counts.updated, committed.foreign), (1, 1));
    site.assert_rows(&[("a", 2), ("b", 1)]);
    assert_eq!(site.merges(), (3, 2));
}

#[tokio::test]
async fn a_row_that_changes_before_every_merge_fails_the_type_and_the_watermark_stays() {
    let site = Site::loaded().await;
    for _ in 0..5 {
        site.server.fail("MERGE INTO", Fault::Overtaken);
    }
    let error = site.sync(&[patient("a", 2)], &[], 2).await.unwrap_err();
    assert!(matches!(error, table::Error::Conflict { attempts: 5, .. }), "{error}");
    site.assert_rows(&[("a", 1), ("b", 1)]);
    assert_eq!((site.merges(), site.watermark().await), ((6, 1), Some(time(1))));
    assert!(!site.staging().exists());
}

#[tokio::test]
async fn a_refused_merge_is_sent_once_and_leaves_nothing_staged() {
    let site = Site::loaded().await;
    site.server.fail("MERGE INTO", Fault::Refused("DELTA_VIOLATE_CONSTRAINT_WITH_VALUES"));
    let error = site.sync(&[patient("a", 2)], &[], 2).await.unwrap_err();
    let text = text(&error);
    assert!(text.contains("DELTA_VIOLATE_CONSTRAINT_WITH_VALUES") && !text.contains("marker"), "{text}");
    assert_eq!((site.merges(), site.watermark().await), ((2, 1), Some(time(1))));
    assert!(!site.staging().exists());
}

#[tokio::test]
async fn what_a_killed_run_has_staged_is_removed_by_the_next_upsert_and_not_merged() {
    let site = Site::loaded().await;
    let left = site.staging().join("6-killed/rows");
    std::fs::create_dir_all(&left).unwrap();
    std::fs::write(left.join("part-0.parquet"), "half a file").unwrap();
    site.sync(&[patient("a", 2)], &[], 2).await.unwrap();
    site.assert_rows(&[("a", 2), ("b", 1)]);
    assert!(!site.staging().exists());
}

/// A run that was killed is gone, and Spark is about to carry out its MERGE, when the next run removes what it staged.
#[tokio::test]
async fn a_merge_that_finds_only_some_of_its_staged_rows_is_not_carried_out() {
    let site = Site::loaded().await;
    for _ in 0..3 {
        site.server.fail("MERGE INTO", Fault::Unstaged);
    }
    let error = site.sync(&[patient("a", 2), patient("c", 1)], &["b"], 2).await.unwrap_err();
    assert!(text(&error).contains("staged rows are missing"), "{}", text(&error));
    site.assert_rows(&[("a", 1), ("b", 1)]);
    assert_eq!((site.merges(), site.watermark().await), ((4, 1), Some(time(1))));
    site.server.fail("MERGE INTO", Fault::Unstaged);
    site.sync(&[patient("a", 2), patient("c", 1)], &["b"], 2).await.unwrap();
    site.assert_rows(&[("a", 2), ("c", 1)]);
}

#[tokio::test]
async fn a_server_that_is_away_for_longer_than_the_patience_fails_the_type() {
    let site = Site::loaded().await;
    let config = site.server.config();
    let table = site.table(&config).await;
    let Site { server, folder, root } = site;
    drop(server);
    let spark = Spark::new(&Config { outage_patience: Duration::ZERO, ..config }, &root).unwrap();
    let error = spark.open(ResourceType::PATIENT).await.unwrap_err();
    assert!(text(&error).contains("cannot be reached"), "{}", text(&error));
    drop((table, folder));
}
