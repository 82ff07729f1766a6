//! What a Spark with one Delta table does with the statements of the engine: a model of the table and of its history.
//!
//! It reads the staged files as Spark does, by the paths in the statements. A MERGE applies them row by row, with the
//! guards that are in its text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::PathBuf,
    sync::Arc,
};

use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, Int64Array, MapBuilder, RecordBatch, StringArray, StringBuilder},
    compute::concat_batches,
    datatypes::{Int64Type, SchemaRef, TimestampMicrosecondType},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::{
    spark::sql::{CHANGED, INCOMPLETE},
    table::{OPERATION, SEEN_HASH, SEEN_TRANSACTION_TIME, TARGET_ID},
};

/// Result batches; none of a command.
pub type Outcome = Vec<RecordBatch>;

/// A stored row, with the columns that statements look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub id: String,
    pub line: String,
    hash: Option<i64>,
    transaction_time: Option<i64>,
}

pub struct Commit {
    operation: &'static str,
    pub metadata: Option<String>,
    metrics: [u64; 3],
}

/// One table, which is there after its CREATE TABLE.
pub struct Warehouse {
    schema: SchemaRef,
    pub is_created: bool,
    pub rows: Vec<Row>,
    pub commits: Vec<Commit>,
    /// How many staged rows the next MERGE does not find.
    pub unstaged_rows: usize,
    /// The last transaction version of each application.
    versions: BTreeMap<String, i64>,
}

type Conf = BTreeMap<String, String>;

impl Warehouse {
    /// The columns that the table is created with.
    pub fn new(schema: SchemaRef) -> Self {
        let (rows, commits) = (Vec::new(), Vec::new());
        Self { schema, is_created: false, rows, commits, unstaged_rows: 0, versions: BTreeMap::new() }
    }

    /// The metadata of our own commits.
    pub fn commit_metadata(&self) -> Vec<&str> {
        self.commits.iter().filter_map(|commit| commit.metadata.as_deref()).collect()
    }

    /// The lines of the rows, by their ids.
    pub fn lines(&self) -> BTreeMap<&str, &str> {
        let lines: BTreeMap<_, _> = self.rows.iter().map(|row| (row.id.as_str(), row.line.as_str())).collect();
        assert_eq!(lines.len(), self.rows.len(), "an id is there twice");
        lines
    }

    pub fn change_by_somebody_else(&mut self) {
        let row = self.rows.first_mut().unwrap();
        row.hash = row.hash.map(|hash| hash.wrapping_add(1));
        self.commit("UPDATE", None, [0, 1, 0]);
    }

    /// The same, of a writer that leaves our columns as they were.
    pub fn change_lines_by_somebody_else(&mut self) {
        self.rows.iter_mut().for_each(|row| row.line.push(' '));
        let rows = self.rows.len() as u64;
        self.commit("UPDATE", None, [0, rows, 0]);
    }

    /// Somebody restores a version without the first row.
    pub fn restore_by_somebody_else(&mut self) {
        self.rows.remove(0);
        self.commit("RESTORE", None, [0; 3]);
    }

    /// Doubles the first row, as if a later export had brought the copy.
    pub fn double_the_first_row_later(&mut self) {
        let mut copy = self.rows[0].clone();
        copy.transaction_time = copy.transaction_time.map(|micros| micros + 1_000_000);
        self.rows.push(copy);
    }

    /// As our own engine leaves the table: without a note, and with the watermark of an export as its transaction.
    pub fn hand_over(&mut self, app_id: &str, watermark_micros: i64) {
        self.commits.iter_mut().for_each(|commit| commit.metadata = None);
        self.versions = BTreeMap::from([(app_id.to_owned(), watermark_micros)]);
    }

    fn commit(&mut self, operation: &'static str, metadata: Option<String>, metrics: [u64; 3]) {
        self.commits.push(Commit { operation, metadata, metrics });
    }

    /// The error is what Spark answers.
    pub fn carry_out(&mut self, statement: &str, conf: &Conf) -> Result<Outcome, String> {
        let begins = |words: &str| statement.starts_with(words);
        if begins("SELECT version()") {
            return Ok(vec![batch([("version", texts([Some("4.1.4 0123abc")]))])]);
        }
        if begins("CREATE TABLE IF NOT EXISTS") {
            self.is_created = true;
            self.commit("CREATE TABLE", None, [0; 3]);
            return Ok(Vec::new());
        }
        if !self.is_created {
            return Err("[DELTA_PATH_DOES_NOT_EXIST] There is no such table.".to_owned());
        }
        match statement {
            _ if begins("DESCRIBE DETAIL") => Ok(vec![self.detail()]),
            _ if begins("DESCRIBE HISTORY") => Ok(vec![self.history()]),
            _ if begins("SELECT * FROM") => Ok(vec![RecordBatch::new_empty(Arc::clone(&self.schema))]),
            _ if begins("SELECT sum(copies) AS rows") => {
                let missing = self.missing(statement);
                let copies = missing["copies"].as_primitive::<Int64Type>();
                Ok(vec![batch([("rows", numbers([arrow::compute::sum(copies)]))])])
            }
            _ if begins("SELECT count(*) AS rows") => {
                Ok(vec![batch([("rows", numbers([i64::try_from(self.rows.len()).ok()]))])])
            }
            _ if begins("SELECT t.`id` AS id, t.`_sync_hash`") => Ok(self.stored_rows(statement)),
            _ if begins("SELECT count(*) AS copies, ") => Ok(vec![self.missing(statement)]),
            _ if begins("MERGE INTO") => self.merge(statement, conf).map(|()| Vec::new()),
            _ => Err(format!("[PARSE_SYNTAX_ERROR] {statement}")),
        }
    }

    fn detail(&self) -> RecordBatch {
        let files = i64::from(!self.rows.is_empty());
        batch([("format", texts([Some("delta")])), ("id", texts([Some("0e0e")])), ("numFiles", numbers([Some(files)]))])
    }

    fn history(&self) -> RecordBatch {
        let mut commits: Vec<_> = self.commits.iter().zip(0..).collect();
        commits.reverse();
        let mut metrics = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
        for (commit, _) in &commits {
            for (name, rows) in ["Inserted", "Updated", "Deleted"].iter().zip(commit.metrics) {
                metrics.keys().append_value(format!("numTargetRows{name}"));
                metrics.values().append_value(rows.to_string());
            }
            metrics.append(true).unwrap();
        }
        batch([
            ("version", numbers(commits.iter().map(|(_, version)| Some(*version)))),
            ("timestamp", numbers(commits.iter().map(|_| Some(1)))),
            ("operation", texts(commits.iter().map(|(commit, _)| Some(commit.operation)))),
            ("userMetadata", texts(commits.iter().map(|(commit, _)| commit.metadata.as_deref()))),
            ("operationMetrics", Arc::new(metrics.finish())),
        ])
    }

    /// A batch for each row, as a large result arrives in several.
    fn stored_rows(&self, statement: &str) -> Outcome {
        // Any other join has a row for each of the staged ids, which are repeated.
        assert!(statement.contains("LEFT SEMI JOIN"), "{statement}");
        let ids = staged_ids(statement);
        let is_asked_for = |row: &&Row| ids.contains(&row.id) && is_in_portion(statement, &row.id);
        let rows = self.rows.iter().filter(is_asked_for).map(|row| {
            let meta = serde_json::from_str::<serde_json::Value>(&row.line).unwrap()["meta"].to_string();
            batch([
                ("id", texts([Some(row.id.as_str())])),
                ("hash", numbers([row.hash])),
                ("transaction_time", numbers([row.transaction_time])),
                ("meta", texts([Some(meta.as_str())])),
            ])
        });
        rows.collect()
    }

    fn missing(&self, statement: &str) -> RecordBatch {
        let there = if statement.contains("LEFT ANTI JOIN") { staged_ids(statement) } else { BTreeSet::new() };
        let until = statement.split_once("<= ").map(|(_, until)| until.trim_end_matches(')').parse::<i64>().unwrap());
        let mut missing: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
        let others = self.rows.iter().filter(|row| !there.contains(&row.id) && is_in_portion(statement, &row.id));
        others.for_each(|row| missing.entry(&row.id).or_default().push(row));
        missing.retain(|_, copies| copies.iter().map(|row| row.transaction_time).max().flatten() <= until);
        let of = |value: fn(&Row) -> Option<i64>| numbers(missing.values().map(move |copies| value(copies[0])));
        batch([
            ("copies", numbers(missing.values().map(|copies| i64::try_from(copies.len()).ok()))),
            ("hash", of(|row| row.hash)),
            ("transaction_time", of(|row| row.transaction_time)),
            ("id", texts(missing.keys().copied().map(Some))),
        ])
    }

    fn merge(&mut self, statement: &str, conf: &Conf) -> Result<(), String> {
        let of = |name: &str| conf[&format!("spark.databricks.delta.{name}")].clone();
        let (app_id, version) = (of("write.txnAppId"), of("write.txnVersion").parse().unwrap());
        // Delta skips a transaction that was carried out already.
        if self.versions.get(&app_id).is_some_and(|last| *last >= version) {
            return Ok(());
        }
        let mut rows = self.rows.clone();
        let mut metrics = [0; 3];
        if statement.contains("parquet.`") {
            let staged = read(statement, "FROM parquet.`");
            let found = staged.num_rows() - std::mem::take(&mut self.unstaged_rows);
            let staged = staged.slice(staged.num_rows() - found, found);
            if !statement.contains(&format!("`) = {found} THEN true ELSE CAST(raise_error('{INCOMPLETE}')")) {
                return Err(format!("[USER_RAISED_EXCEPTION] {INCOMPLETE}"));
            }
            for row in staged_rows(&staged) {
                row.apply(&mut rows, &mut metrics)?;
            }
        }
        self.rows = rows;
        self.versions.insert(app_id, version);
        self.commit("MERGE", Some(of("commitInfo.userMetadata")), metrics);
        Ok(())
    }
}

/// A row of the staged files.
struct StagedRow {
    operation: String,
    target: Option<String>,
    seen: (Option<i64>, Option<i64>),
    row: Row,
}

impl StagedRow {
    fn apply(self, rows: &mut Vec<Row>, metrics: &mut [u64; 3]) -> Result<(), String> {
        let Self { operation, target, seen, row } = self;
        let changed = || Err(format!("[USER_RAISED_EXCEPTION] {CHANGED}"));
        let is_target = |row: &Row| Some(&row.id) == target.as_ref();
        let matched: Vec<_> = (0..rows.len()).filter(|index| is_target(&rows[*index])).collect();
        let is_seen = |index: &usize| (rows[*index].hash, rows[*index].transaction_time) == seen;
        match operation.as_str() {
            "insert" if matched.is_empty() => {
                metrics[0] += 1;
                rows.push(row);
            }
            "update" if !matched.is_empty() && matched.iter().all(is_seen) => {
                metrics[1] += matched.len() as u64;
                for index in matched {
                    rows[index] = row.clone();
                }
            }
            "delete" if !matched.is_empty() && matched.iter().all(is_seen) => {
                metrics[2] += matched.len() as u64;
                rows.retain(|row| !is_target(row));
            }
            "delete-all" if !matched.is_empty() => {
                metrics[2] += matched.len() as u64;
                rows.retain(|row| !is_target(row));
            }
            _ => return changed(),
        }
        Ok(())
    }
}

fn staged_rows(staged: &RecordBatch) -> Vec<StagedRow> {
    let micros = |name: &str| -> Vec<Option<i64>> {
        let Some(column) = staged.column_by_name(name) else { return vec![None; staged.num_rows()] };
        match column.as_primitive_opt::<TimestampMicrosecondType>() {
            Some(times) => times.iter().collect(),
            None => column.as_primitive::<Int64Type>().iter().collect(),
        }
    };
    let (operations, targets) = (column(staged, OPERATION), column(staged, TARGET_ID));
    let (seen_hashes, seen_times) = (micros(SEEN_HASH), micros(SEEN_TRANSACTION_TIME));
    let (ids, lines) = (column(staged, "id"), column(staged, "resource_json"));
    let (hashes, times) = (micros("_sync_hash"), micros("_sync_transaction_time"));
    let row = |row: usize| StagedRow {
        operation: operations[row].clone().unwrap(),
        target: targets[row].clone(),
        seen: (seen_hashes[row], seen_times[row]),
        row: Row {
            id: ids[row].clone().unwrap_or_default(),
            line: lines[row].clone().unwrap_or_default(),
            hash: hashes[row],
            transaction_time: times[row],
        },
    };
    (0..staged.num_rows()).map(row).collect()
}

/// All rows of the Parquet files of the folder that a statement names behind these words.
fn read(statement: &str, words: &str) -> RecordBatch {
    let folder = statement.split_once(words).unwrap().1.split_once('`').unwrap().0;
    let folder = PathBuf::from(folder.strip_prefix("file:").unwrap());
    let mut batches = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file.unwrap().path()).unwrap()).unwrap();
        batches.extend(reader.build().unwrap().map(Result::unwrap));
    }
    concat_batches(&batches[0].schema(), &batches).unwrap()
}

/// The ids that are staged.
fn staged_ids(statement: &str) -> BTreeSet<String> {
    column(&read(statement, "JOIN parquet.`"), "id").into_iter().flatten().collect()
}

/// Is the id in the portion that a statement asks for? Its hash is another one than Spark's.
fn is_in_portion(statement: &str, id: &str) -> bool {
    let Some((_, portion)) = statement.split_once("pmod(xxhash64(t.`id`), ") else { return true };
    let (of, number) = portion.split_once(") = ").unwrap();
    let number = number.split(' ').next().unwrap();
    id.bytes().map(u64::from).sum::<u64>() % of.parse::<u64>().unwrap() == number.parse::<u64>().unwrap()
}

/// The texts of a column; none where there is no such column.
fn column(batch: &RecordBatch, name: &str) -> Vec<Option<String>> {
    let Some(column) = batch.column_by_name(name) else { return vec![None; batch.num_rows()] };
    let text = |row| (!column.is_null(row)).then(|| column.as_string::<i32>().value(row).to_owned());
    (0..column.len()).map(text).collect()
}

fn batch<const N: usize>(columns: [(&str, ArrayRef); N]) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

fn texts<'a>(texts: impl IntoIterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(texts.into_iter().collect::<StringArray>())
}

fn numbers(numbers: impl IntoIterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(numbers.into_iter().collect::<Int64Array>())
}
