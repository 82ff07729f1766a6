//! Our engine, as a sync uses it.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use fhir_sync::{
    fhir::{ResourceType, TransactionTime},
    resource::{self, Decoder, Line, MappingPool, Options, Shape},
    sync::MAX_BATCH_BYTES,
    table::{
        ChangeSet, Committed, Config, Extent, Location, MemoryBudget, NewWatermark, OutputIndex, Root, TableDefinition,
        UpdateMode, Upsert, is_first_load,
    },
};
use tokio::runtime::Runtime;

use crate::child::Work;

const MEMORY_BYTES: usize = 256 * 1024 * 1024;
const THREADS: usize = 2;
/// When the table was loaded, in microseconds, and when it was changed.
const LOADED: i64 = 1_800_000_000_000_000;
pub const CHANGED: i64 = LOADED + 1_000_000;

/// Folder, lines, rows: a table of this many rows, made from the lines, which are repeated with new ids.
pub fn load(arguments: &[String]) -> anyhow::Result<Work> {
    let [folder, lines, rows] = arguments else { anyhow::bail!("three arguments") };
    let bench = Bench::new(folder, UpdateMode::DeletionVectors)?;
    let ids = 0..rows.parse()?;
    let committed = bench.upsert(Path::new(lines), LOADED, ids.map(Some))?;
    ensure!(committed.counts.inserted == rows.parse::<u64>()?, "not all rows were new: {:?}", committed.counts);
    Ok(bench.work(&committed))
}

/// Folder, lines, rows of the table, changes.
pub fn run(arguments: &[String]) -> anyhow::Result<Work> {
    changes(arguments, UpdateMode::DeletionVectors, 1, ids)
}

/// The same with new rows only.
pub fn new(arguments: &[String]) -> anyhow::Result<Work> {
    changes(arguments, UpdateMode::DeletionVectors, 1, new_ids)
}

pub fn copy_on_write(arguments: &[String]) -> anyhow::Result<Work> {
    changes(arguments, UpdateMode::CopyOnWrite, 1, ids)
}

/// The same changes twice. Reported is the cost of the second upsert; of the first one it includes a part of the time.
pub fn again(arguments: &[String]) -> anyhow::Result<Work> {
    changes(arguments, UpdateMode::DeletionVectors, 2, ids)
}

fn changes<Ids: Iterator<Item = Option<u64>> + Send>(
    arguments: &[String],
    update_mode: UpdateMode,
    times: usize,
    ids: impl Fn(u64, u64) -> Ids,
) -> anyhow::Result<Work> {
    let [folder, lines, rows, changes] = arguments else { anyhow::bail!("four arguments") };
    let (rows, changes) = (rows.parse()?, changes.parse::<u64>()?);
    let bench = Bench::new(folder, update_mode)?;
    let mut last = None;
    for _ in 0..times {
        let committed = bench.upsert(Path::new(lines), CHANGED, ids(rows, changes))?;
        ensure!(committed.counts.total() == changes, "{:?}", committed.counts);
        last = Some(committed);
    }
    Ok(bench.work(&last.context("nothing was done")?))
}

/// Half of them are of the table, scattered over it; half are not there yet.
pub fn ids(rows: u64, changes: u64) -> impl Iterator<Item = Option<u64>> + Send {
    let half = (changes / 2).min(rows);
    let updates = (0..half).map(move |n| n * (rows / half.max(1)) + n % (rows / half.max(1)));
    updates.chain(rows..rows + (changes - half)).map(Some)
}

/// The same of other rows, for a second upsert.
pub fn shifted_ids(rows: u64, changes: u64) -> impl Iterator<Item = Option<u64>> + Send {
    let half = (changes / 2).min(rows);
    ids(rows, changes).map(move |id| id.map(|id| if id < rows { (id + 1) % rows } else { id + changes - half }))
}

/// None of them is there.
fn new_ids(rows: u64, changes: u64) -> impl Iterator<Item = Option<u64>> + Send {
    (rows..rows + changes).map(Some)
}

pub struct Bench {
    runtime: Runtime,
    root: Root,
    shape: Arc<Shape>,
    spool: tempfile::TempDir,
    bytes_in: AtomicU64,
}

impl Bench {
    fn new(folder: &str, update_mode: UpdateMode) -> anyhow::Result<Self> {
        let root = Location::Folder(folder.into());
        Self::over(Root::new(Config { update_mode, ..Config::new(root) })?)
    }

    pub fn over(root: Root) -> anyhow::Result<Self> {
        Ok(Self {
            runtime: tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?,
            root,
            shape: Shape::of(ResourceType::OBSERVATION, Options { layout: resource::Layout::Pathling, raw_json: true }),
            spool: tempfile::tempdir()?,
            bytes_in: AtomicU64::new(0),
        })
    }

    pub fn upsert(
        &self,
        lines: &Path,
        run_started_micros: i64,
        ids: impl Iterator<Item = Option<u64>> + Send,
    ) -> anyhow::Result<Committed> {
        let shape = &self.shape;
        let definition =
            TableDefinition { schema: shape.schema(), leading: shape.leading(), properties: shape.properties() };
        let open = || self.runtime.block_on(self.root.open_or_create(ResourceType::OBSERVATION, &definition));
        let (table, budget) = (open()?, MemoryBudget::alone(MEMORY_BYTES));
        let changes = if self.runtime.block_on(is_first_load(&table))? {
            ChangeSet::for_first_load(&table, &definition.schema, budget, self.spool.path())?
        } else {
            ChangeSet::for_rows(&table, &definition.schema, budget, self.spool.path())
        };
        let batches = Mutex::new(Batches { lines, reader: None, ids, number: 0 });
        let pushed: anyhow::Result<Vec<()>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..THREADS).map(|_| scope.spawn(|| self.push(&batches, &changes, run_started_micros))).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?).collect()
        });
        pushed?;
        let watermark = TransactionTime::from_micros(run_started_micros);
        let upsert = Upsert {
            app_id: "fhir-sync/bench".to_owned(),
            adopted_app_id: None,
            source: "bench".to_owned(),
            watermark: watermark.map_or(NewWatermark::Stays, NewWatermark::Raised),
            set_back_from: None,
            clock_was_ahead: false,
            exported_at: watermark,
            run_started_micros,
            job: "bench#1".to_owned(),
            run: 1,
            extent: Extent::Partial,
            reconcile: None,
        };
        Ok(self.runtime.block_on(open()?.upsert(&changes, &upsert))?)
    }

    fn push<Ids: Iterator<Item = Option<u64>>>(
        &self,
        batches: &Mutex<Batches<'_, Ids>>,
        changes: &ChangeSet,
        run_started_micros: i64,
    ) -> anyhow::Result<()> {
        let _runtime = self.runtime.enter();
        let decoder = decoder(&self.shape, run_started_micros);
        loop {
            let (number, lines) = batches.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.next(run_started_micros)?;
            if lines.is_empty() {
                return Ok(());
            }
            self.bytes_in.fetch_add(lines.iter().map(|line| line.bytes.len() as u64).sum(), Ordering::Relaxed);
            let decoded = decoder.decode(&lines)?;
            ensure!(decoded.bad.is_empty(), "a line is bad");
            changes.push(OutputIndex(number), decoded.keys, decoded.rows)?;
        }
    }

    pub fn work(&self, committed: &Committed) -> Work {
        let bytes_in = self.bytes_in.load(Ordering::Relaxed);
        Work { bytes_in, bytes_out: committed.bytes_written, rows: committed.counts.total() }
    }
}

pub fn decoder(shape: &Arc<Shape>, run_started_micros: i64) -> Decoder {
    Decoder {
        mappings: MappingPool::of(shape),
        shape: Arc::clone(shape),
        source: "bench".into(),
        run_started_micros,
        transaction_time: TransactionTime::from_micros(run_started_micros),
        job: "bench#1".into(),
    }
}

/// Lines with the wanted ids, some at a time.
pub struct Batches<'a, Ids> {
    pub lines: &'a Path,
    pub reader: Option<BufReader<File>>,
    pub ids: Ids,
    pub number: u32,
}

impl<Ids: Iterator<Item = Option<u64>>> Batches<'_, Ids> {
    /// Empty at the end.
    pub fn next(&mut self, run_started_micros: i64) -> anyhow::Result<(u32, Vec<Line>)> {
        let (mut lines, mut bytes, mut number) = (Vec::new(), 0, 0);
        while bytes < MAX_BATCH_BYTES {
            let Some(id) = self.ids.next().flatten() else { break };
            let line = with_id(&self.line()?, id, run_started_micros)?;
            bytes += line.len();
            number += 1;
            lines.push(Line { number, offset: 0, bytes: line.into_bytes().into() });
        }
        self.number += 1;
        Ok((self.number, lines))
    }

    fn line(&mut self) -> anyhow::Result<String> {
        loop {
            let reader = match &mut self.reader {
                Some(reader) => reader,
                none => none.insert(BufReader::new(File::open(self.lines)?)),
            };
            let mut line = String::new();
            if reader.read_line(&mut line)? > 0 {
                return Ok(line.trim_end().to_owned());
            }
            self.reader = None;
        }
    }
}

/// The line as another resource, changed at that time. Ids look random, as those of most servers do.
pub fn with_id(line: &str, id: u64, run_started_micros: i64) -> anyhow::Result<String> {
    let (_, rest) = line.split_once("\"id\":\"").context("a line without id")?;
    let (old, _) = rest.split_once('"').context("a line without id")?;
    let mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31) ^ 0x5851_f42d_4c95_7f2d;
    let hex = format!("{mixed:016x}{id:016x}");
    let fresh = format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]);
    let seconds = run_started_micros / 1_000_000 % 60;
    let line = line.replacen(&format!("\"id\":\"{old}\""), &format!("\"id\":\"{fresh}\""), 1);
    let (before, rest) = line.split_once("\"lastUpdated\":\"").context("a line without lastUpdated")?;
    let (_, after) = rest.split_once('"').context("a line without lastUpdated")?;
    Ok(format!("{before}\"lastUpdated\":\"2026-11-01T00:00:{seconds:02}Z\"{after}"))
}
