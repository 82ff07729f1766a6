//! A change set: what one run brings for one resource type, reduced to the newest row per id.
//!
//! Neither the order in which rows are pushed nor their repetition changes what it holds: versions decide, and between
//! equal versions the place in the export (file, then line). The rows themselves lie in a spool that moves from memory to
//! an unnamed temporary file beyond its budget; what stays in memory is one small slot per id.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    fs::File,
    io::{BufReader, Seek, SeekFrom},
    path::Path,
};

use arrow::{
    array::RecordBatch,
    datatypes::SchemaRef,
    ipc::{reader::StreamReader, writer::StreamWriter},
};
use chrono::{DateTime, Utc};
use tempfile::SpooledTempFile;

use super::Error;
use crate::fhir::{RowKey, Version};

/// Where in the export a row stood: the index of its file in the manifest, then its line.
type Position = (u32, u64);

/// The newest that is known of one id.
pub(super) enum Slot {
    Row(RowSlot),
    Deleted { at: Option<DateTime<Utc>> },
}

pub(super) struct RowSlot {
    pub version: Version,
    pub hash: u64,
    position: Position,
    /// Which batch of the spool, and which row of it.
    pub batch: u32,
    pub row: u32,
}

pub struct ChangeSet {
    schema: SchemaRef,
    newest: HashMap<String, Slot>,
    spool: StreamWriter<SpooledTempFile>,
    batches: u32,
    /// The columns that are not null in all rows so far.
    filled: BTreeSet<String>,
    received: u64,
    duplicate: u64,
}

impl ChangeSet {
    /// An empty change set whose rows have `schema`. Up to `memory_bytes` of rows stay in memory; what is beyond goes to
    /// an unnamed file in `folder`, which is gone when the change set is dropped, or the process.
    pub fn new(schema: &SchemaRef, memory_bytes: usize, folder: &Path) -> Result<Self, Error> {
        let spool = tempfile::spooled_tempfile_in(memory_bytes, folder);
        Ok(Self {
            schema: schema.clone(),
            newest: HashMap::new(),
            spool: StreamWriter::try_new(spool, schema).map_err(Error::spool)?,
            batches: 0,
            filled: BTreeSet::new(),
            received: 0,
            duplicate: 0,
        })
    }

    /// Takes the rows of some lines of the file with index `file`; `keys` and `rows` run in parallel. Blocks on the disk.
    pub fn push(&mut self, file: u32, keys: Vec<RowKey>, rows: &RecordBatch) -> Result<(), Error> {
        self.spool.write(rows).map_err(Error::spool)?;
        for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
            if column.null_count() < column.len() && !self.filled.contains(field.name()) {
                self.filled.insert(field.name().clone());
            }
        }
        for (row, key) in (0..).zip(keys) {
            self.received += 1;
            let new =
                RowSlot { version: key.version, hash: key.hash, position: (file, key.line), batch: self.batches, row };
            match self.newest.entry(key.id) {
                Entry::Vacant(vacant) => {
                    vacant.insert(Slot::Row(new));
                }
                Entry::Occupied(mut occupied) => {
                    self.duplicate += 1;
                    if row_wins(&new, occupied.get()) {
                        occupied.insert(Slot::Row(new));
                    }
                }
            }
        }
        self.batches += 1;
        Ok(())
    }

    /// Takes an entry of a `deleted` bundle. A row of the same export stays: it was created again (rule 96), unless both
    /// say when and the deletion is the later one.
    pub fn delete(&mut self, id: String, at: Option<DateTime<Utc>>) {
        self.received += 1;
        match self.newest.entry(id) {
            Entry::Vacant(vacant) => {
                vacant.insert(Slot::Deleted { at });
            }
            Entry::Occupied(mut occupied) => {
                self.duplicate += 1;
                match occupied.get_mut() {
                    Slot::Row(row) if deletion_wins(at, &row.version) => {
                        occupied.insert(Slot::Deleted { at });
                    }
                    Slot::Row(_) => {}
                    Slot::Deleted { at: known } => *known = at.max(*known),
                }
            }
        }
    }

    /// Rows and deletions taken so far, duplicates included.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Those that another row or deletion of the same id made superfluous.
    pub fn duplicate(&self) -> u64 {
        self.duplicate
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    pub(super) fn filled_columns(&self) -> &BTreeSet<String> {
        &self.filled
    }

    pub(super) fn is_empty(&self) -> bool {
        self.newest.is_empty()
    }

    pub(super) fn get(&self, id: &str) -> Option<&Slot> {
        self.newest.get(id)
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = (&str, &Slot)> {
        self.newest.iter().map(|(id, slot)| (id.as_str(), slot))
    }

    /// The spooled batches in the order of their numbers, as often as asked. Blocks on the disk.
    pub(super) fn batches(&mut self) -> Result<StreamReader<BufReader<Rewound<'_>>>, Error> {
        self.spool.flush().map_err(Error::spool)?;
        let spool = self.spool.get_mut();
        spool.seek(SeekFrom::Start(0)).map_err(Error::spool)?;
        StreamReader::try_new(BufReader::new(Rewound(spool)), None).map_err(Error::spool)
    }
}

/// The spool, read from its beginning.
pub(super) struct Rewound<'spool>(&'spool mut SpooledTempFile);

impl std::io::Read for Rewound<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

fn row_wins(new: &RowSlot, known: &Slot) -> bool {
    match known {
        Slot::Row(known) if new.version.subsetted != known.version.subsetted => known.version.subsetted,
        Slot::Row(known) => new.version.compare(&known.version).then(new.position.cmp(&known.position)).is_gt(),
        Slot::Deleted { at } => !deletion_wins(*at, &new.version),
    }
}

/// Is the deletion certainly later than the row?
fn deletion_wins(at: Option<DateTime<Utc>>, row: &Version) -> bool {
    match (at, row.last_updated_micros) {
        (Some(at), Some(last_updated_micros)) => at.timestamp_micros() > last_updated_micros,
        _ => false,
    }
}

/// Is there a folder that takes our temporary files? Asked once, before anything is downloaded.
pub fn probe_spool_folder(folder: &Path) -> std::io::Result<File> {
    tempfile::tempfile_in(folder)
}
