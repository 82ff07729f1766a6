//! The replay: lines of the quarantine become rows, as they are or corrected, by the way of any other line.
//!
//! A row that is replayed is as old as the export that brought its line, so it never takes the place of a newer one,
//! nor of a deletion. No watermark moves. The run is in the ledger like a sync.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::runtime::Handle;

use super::Policy;
use crate::{
    fhir::{ResourceType, TransactionTime},
    resource::{Decoder, Line, Lines, MappingPool, OverLines, Reason, Shape, stated_type},
    sync::{Error, Export, Syncer, blocking::blocking, clock::now, columns::definition, intake::MAX_BATCH_BYTES},
    table::{
        ChangeSet, Committed, LedgerRow, MemoryBudget, MemoryDemand, OutputIndex, QuarantineFate, QuarantineRow, Root,
        Upsert,
    },
};

/// Which lines are replayed, by their whole ids.
#[derive(Clone, Debug)]
pub enum ReplayOf {
    All,
    Lines(BTreeSet<String>),
    /// One line, with these resources in its place: all of them, or none.
    Corrected {
        id: String,
        text: Vec<u8>,
    },
}

/// Which lines are purged.
#[derive(Clone, Debug)]
pub enum Purge {
    All,
    Lines(BTreeSet<String>),
    OlderThan(Duration),
}

/// What a replay did.
#[derive(Debug, Default)]
pub struct Replayed {
    /// Of each table that received something.
    pub tables: Vec<(ResourceType, Result<Committed, Error>)>,
    /// Lines whose resources are in their tables now.
    pub lines: u64,
    /// Lines that stay in the quarantine, with the reason.
    pub left: BTreeMap<String, String>,
}

impl Syncer {
    /// Upserts what the lines hold, and marks those whose resources are in their tables.
    pub async fn replay(&self, exports: &[Export], of: ReplayOf) -> Result<Replayed, Error> {
        let (run, started_at) = (self.next_run().await?, now());
        // Alone, the number is in no state until then: it must not be given again after a restart.
        self.remember(move |state| state.run = state.run.max(run)).await?;
        let mut rows = self.root.quarantine().await.map_err(Error::Quarantine)?;
        rows.retain(|row| row.replayed_at.is_none() && of.includes(&row.id));
        let mut replay = Replay::new(self, exports, &rows, run, started_at).await?;
        let (root, is_corrected) = (self.root.clone(), matches!(of, ReplayOf::Corrected { .. }));
        let read = blocking(move || {
            let read = Handle::current().block_on(replay.read(&root, &rows, &of));
            read.map(|()| replay)
        });
        let replay = read.await?;
        if is_corrected && !replay.left.is_empty() {
            return Ok(Replayed { left: replay.abandon().await, ..Replayed::default() });
        }
        let (mut done, replayed) = replay.commit(self).await;
        done.lines = replayed.len() as u64;
        self.change_quarantine(move |row| {
            let is_replayed = replayed.contains(&row.id);
            if is_replayed { QuarantineFate::Replayed { at: started_at } } else { QuarantineFate::Stays }
        })
        .await?;
        Ok(done)
    }

    /// Drops lines; returns how many.
    pub async fn purge_quarantine(&self, purge: Purge) -> Result<u64, Error> {
        let older_than = |age: &Duration| now().checked_sub_signed(TimeDelta::from_std(*age).ok()?);
        let oldest = match &purge {
            Purge::OlderThan(age) => older_than(age),
            Purge::All | Purge::Lines(_) => None,
        };
        self.change_quarantine(move |row| {
            let drops = match &purge {
                Purge::All => true,
                Purge::Lines(ids) => ids.contains(&row.id),
                Purge::OlderThan(_) => row.first_seen.zip(oldest).is_some_and(|(seen, oldest)| seen < oldest),
            };
            if drops { QuarantineFate::Dropped } else { QuarantineFate::Stays }
        })
        .await
    }

    async fn change_quarantine(
        &self,
        fate: impl Fn(&QuarantineRow) -> QuarantineFate + Send + Sync + 'static,
    ) -> Result<u64, Error> {
        let root = self.root.clone();
        let changed = blocking(move || {
            let changed = Handle::current().block_on(root.change_quarantine(&fate))?;
            root.sync_to_disk().map(|()| changed)
        });
        changed.await.map_err(Error::Quarantine)
    }
}

impl ReplayOf {
    fn includes(&self, id: &str) -> bool {
        match self {
            Self::All => true,
            Self::Lines(ids) => ids.contains(id),
            Self::Corrected { id: corrected, .. } => id == corrected,
        }
    }
}

/// The export and the type whose rows a line becomes.
type Target = (String, ResourceType);

struct Replay {
    exports: Vec<Export>,
    source: Arc<str>,
    policy: Policy,
    max_line_bytes: usize,
    run: u64,
    started_at: DateTime<Utc>,
    shapes: BTreeMap<ResourceType, Arc<Shape>>,
    budget: MemoryBudget,
    spool_folder: PathBuf,
    targets: BTreeMap<Target, Waiting>,
    left: BTreeMap<String, String>,
}

/// Lines for one target.
struct Waiting {
    changes: ChangeSet,
    /// Lines that are not decoded yet, by how far their export goes.
    lines: BTreeMap<Option<TransactionTime>, Vec<Line>>,
    bytes: usize,
    /// Of each line; its number is the index.
    ids: Vec<String>,
}

impl Replay {
    async fn new(
        syncer: &Syncer,
        exports: &[Export],
        rows: &[QuarantineRow],
        run: u64,
        started_at: DateTime<Utc>,
    ) -> Result<Self, Error> {
        let named: BTreeSet<_> = rows.iter().map(|row| row.export.as_str()).collect();
        let of_rows = exports.iter().filter(|export| named.contains(export.name.as_str()));
        let types: Vec<_> = of_rows.flat_map(|export| export.types.iter().copied()).collect();
        let demand =
            MemoryDemand { types: types.len(), waiting: types.len(), first_loads: 0, at_once: 1, read_at_once: 1 };
        let mut shapes = BTreeMap::new();
        for resource_type in types {
            shapes.insert(resource_type, syncer.shape(resource_type).await?);
        }
        Ok(Self {
            exports: exports.to_vec(),
            source: Arc::clone(&syncer.config.source),
            policy: syncer.config.quarantine_policy.clone(),
            max_line_bytes: syncer.config.max_line_bytes,
            run,
            started_at,
            shapes,
            budget: MemoryBudget::of(syncer.config.change_set_memory_bytes, demand),
            spool_folder: syncer.config.spool_folder.clone(),
            targets: BTreeMap::new(),
            left: BTreeMap::new(),
        })
    }

    /// Takes the lines of these rows. Blocks on decoding.
    async fn read(&mut self, root: &Root, rows: &[QuarantineRow], of: &ReplayOf) -> Result<(), Error> {
        let mut taken = Ok(());
        if let ReplayOf::Corrected { text, .. } = of {
            taken = rows.iter().try_for_each(|row| self.take_corrected(row, text));
        } else {
            let wanted = rows.iter().map(|row| row.id.clone()).collect();
            let mut take = |row: QuarantineRow| {
                if taken.is_ok() {
                    taken = self.take(&row);
                }
            };
            root.read_quarantine(&wanted, &mut take).await.map_err(Error::Quarantine)?;
        }
        taken?;
        let targets: Vec<_> = self.targets.keys().cloned().collect();
        targets.iter().try_for_each(|target| self.decode(target))
    }

    /// A row that was read with its line.
    fn take(&mut self, row: &QuarantineRow) -> Result<(), Error> {
        let is_no_resource = [Reason::NoDeletion { entry: 0 }, Reason::NoEnvelope].map(|reason| reason.code());
        if is_no_resource.contains(&row.reason.as_str()) {
            self.left.insert(row.id.clone(), "it should not have been a resource".to_owned());
            return Ok(());
        }
        match self.policy.line_of(row) {
            Ok(bytes) => self.add(row, Line { number: 0, offset: 0, bytes: bytes.into() }),
            Err(reason) => {
                self.left.insert(row.id.clone(), reason.to_owned());
                Ok(())
            }
        }
    }

    /// A text in the place of a row's line.
    fn take_corrected(&mut self, row: &QuarantineRow, text: &[u8]) -> Result<(), Error> {
        let (mut splitter, mut lines) = (Lines::new(self.max_line_bytes), Vec::new());
        splitter.push(Bytes::copy_from_slice(text), &mut lines);
        lines.extend(splitter.finish());
        if let Some(too_long) = splitter.too_long().first() {
            self.left.insert(row.id.clone(), too_long.to_string());
            return Ok(());
        }
        let mut over_lines = OverLines::new(self.max_line_bytes);
        let mut whole = over_lines.join(lines);
        whole.append(&mut over_lines.finish());
        if whole.is_empty() {
            self.left.insert(row.id.clone(), "the corrected text holds no resource".to_owned());
        }
        whole.into_iter().try_for_each(|line| self.add(row, line))
    }

    fn add(&mut self, row: &QuarantineRow, line: Line) -> Result<(), Error> {
        let target = match self.target(row, &line) {
            Ok(target) => target,
            Err(reason) => {
                self.left.insert(row.id.clone(), reason);
                return Ok(());
            }
        };
        let Some(shape) = self.shapes.get(&target.1) else { return Ok(()) };
        let new = || Waiting {
            changes: ChangeSet::new(&shape.schema(), self.budget, &self.spool_folder),
            lines: BTreeMap::new(),
            bytes: 0,
            ids: Vec::new(),
        };
        let waiting = self.targets.entry(target.clone()).or_insert_with(new);
        let exported_at = row.transaction_time.map(TransactionTime::from);
        waiting.bytes += line.bytes.len();
        let number = waiting.ids.len() as u64;
        waiting.ids.push(row.id.clone());
        waiting.lines.entry(exported_at).or_default().push(Line { number, ..line });
        if waiting.bytes > MAX_BATCH_BYTES { self.decode(&target) } else { Ok(()) }
    }

    /// Where the resource of a line goes, or why it goes nowhere.
    fn target(&self, row: &QuarantineRow, line: &Line) -> Result<Target, String> {
        if row.source != *self.source {
            return Err(format!("it is of the source {:?}", row.source));
        }
        let Some(export) = self.exports.iter().find(|export| export.name == row.export) else {
            return Err(format!("the configuration has no export {:?}", row.export));
        };
        match stated_type(line).map_err(|reason| reason.to_string())? {
            Some(of) if export.types.contains(&of) => Ok((export.name.clone(), of)),
            Some(of) => Err(format!("the export has no type {of}")),
            None => Err("FHIR does not know its type".to_owned()),
        }
    }

    /// Decodes what waits for a target.
    fn decode(&mut self, target: &Target) -> Result<(), Error> {
        let (Some(waiting), Some(shape)) = (self.targets.get_mut(target), self.shapes.get(&target.1)) else {
            return Ok(());
        };
        waiting.bytes = 0;
        for (transaction_time, lines) in std::mem::take(&mut waiting.lines) {
            let decoder = Decoder {
                mappings: MappingPool::of(shape),
                shape: Arc::clone(shape),
                source: Arc::clone(&self.source),
                run_started_micros: self.started_at.timestamp_micros(),
                transaction_time,
                job: job(target, self.run).into(),
            };
            let decoded = decoder.decode(&lines)?;
            waiting.changes.push(OutputIndex(0), decoded.keys, decoded.rows)?;
            for bad in decoded.bad {
                let id = usize::try_from(bad.line.number).ok().and_then(|index| waiting.ids.get(index));
                self.left.extend(id.map(|id| (id.clone(), bad.reason.to_string())));
            }
        }
        Ok(())
    }

    /// Gives up what was taken; why each line is no resource.
    async fn abandon(self) -> BTreeMap<String, String> {
        for waiting in self.targets.into_values() {
            waiting.changes.abandon().await;
        }
        self.left
    }

    /// Upserts what was taken; gives also the ids of the lines whose resources are in their tables.
    async fn commit(mut self, syncer: &Syncer) -> (Replayed, BTreeSet<String>) {
        let (mut done, mut ids) = (Replayed::default(), BTreeSet::new());
        for (target, waiting) in std::mem::take(&mut self.targets) {
            if waiting.changes.received() == 0 {
                continue;
            }
            let result = self.upsert(syncer, &target, waiting.changes).await;
            match &result {
                Ok(_) => ids.extend(waiting.ids),
                Err(_) => self.left.extend(waiting.ids.into_iter().map(|id| (id, "its table failed".to_owned()))),
            }
            done.tables.push((target.1, result));
        }
        ids.retain(|id| !self.left.contains_key(id));
        done.left = self.left;
        (done, ids)
    }

    async fn upsert(&self, syncer: &Syncer, target: &Target, changes: ChangeSet) -> Result<Committed, Error> {
        let (name, resource_type) = target;
        let export = self.exports.iter().find(|export| export.name == *name);
        let (Some(export), Some(shape)) = (export, self.shapes.get(resource_type).cloned()) else {
            return Err(Error::Stopped);
        };
        let resource_type = *resource_type;
        let upsert = Upsert {
            app_id: export.app_id_before(),
            source: self.source.to_string(),
            run_started_micros: self.started_at.timestamp_micros(),
            job: job(target, self.run),
            run: self.run,
            ..Upsert::default()
        };
        let (root, engine) = (syncer.root.clone(), syncer.engine.clone());
        let (runtime, received) = (Handle::current(), changes.received());
        let committed = blocking(move || {
            runtime.block_on(async {
                let table = engine.open_or_create(resource_type, &definition(&shape)).await?;
                let committed = table.upsert(&changes, &upsert).await?;
                root.sync_to_disk().map(|()| committed)
            })
        });
        let committed = committed.await?;
        let row = self.ledger_row(target, received, &committed);
        syncer.append_to_ledger(vec![row]).await;
        Ok(committed)
    }

    fn ledger_row(&self, (export, resource_type): &Target, received: u64, committed: &Committed) -> LedgerRow {
        let (counts, ended_at) = (&committed.counts, now());
        LedgerRow {
            run: self.run,
            export: export.clone(),
            resource_type: resource_type.to_string(),
            source: self.source.to_string(),
            mode: "replay".to_owned(),
            started_at: Some(self.started_at),
            ended_at: Some(ended_at),
            duration_ms: u64::try_from((ended_at - self.started_at).num_milliseconds()).unwrap_or_default(),
            outcome: "complete".to_owned(),
            end: "committed".to_owned(),
            table_version: Some(committed.version),
            received,
            inserted: counts.inserted,
            updated: counts.updated,
            unchanged: counts.unchanged,
            stale: counts.stale,
            duplicate: counts.duplicate,
            conflicts: Some(counts.conflicts),
            bytes_written: committed.bytes_written,
            foreign_commits: committed.foreign,
            ..LedgerRow::default()
        }
    }
}

/// `_sync_job` of the rows.
fn job((export, _): &Target, run: u64) -> String {
    format!("{export}#{run}")
}
