//! The model: what a table must hold after some exports, by the rules alone.

use std::collections::{BTreeMap, BTreeSet};

use super::{Counts, instant};

/// One line of an export.
#[derive(Clone, Debug)]
pub enum Entry {
    Row { id: &'static str, last_updated: Option<u32>, version_id: Option<u32>, subsetted: bool, content: u8 },
    Deletion { id: &'static str, at: Option<u32> },
}

impl Entry {
    fn id(&self) -> &'static str {
        match self {
            Self::Row { id, .. } | Self::Deletion { id, .. } => id,
        }
    }

    /// The resource as the server writes it; empty for a deletion.
    pub fn line(&self) -> String {
        let Self::Row { id, last_updated, version_id, subsetted, content } = self else { return String::new() };
        let mut meta = Vec::new();
        meta.extend(last_updated.map(|second| format!(r#""lastUpdated":"{}""#, instant(second))));
        meta.extend(version_id.map(|version| format!(r#""versionId":"{version}""#)));
        meta.extend(subsetted.then(|| r#""tag":[{"code":"SUBSETTED"}]"#.to_owned()));
        let meta = meta.join(",");
        format!(r#"{{"resourceType":"Binary","id":"{id}","meta":{{{meta}}},"contentType":"text/{content}"}}"#)
    }
}

#[derive(Clone, Debug)]
pub struct Export {
    pub files: Vec<Vec<Entry>>,
    pub transaction_time: u32,
    /// Set for a full refresh: the share of the rows, in percent, that it may remove.
    pub refresh: Option<f64>,
}

impl Export {
    pub fn received(&self) -> u64 {
        self.files.iter().map(|file| file.len() as u64).sum()
    }
}

#[derive(Clone, Debug)]
struct Row {
    last_updated: Option<u32>,
    version_id: Option<u32>,
    transaction_time: u32,
    subsetted: bool,
    line: String,
}

impl Row {
    /// Is it certainly older? Decided by what both state: the server's clock, then the version id, then the export.
    fn is_older_than(&self, other: &Self) -> bool {
        let pairs = [
            self.last_updated.zip(other.last_updated),
            self.version_id.zip(other.version_id),
            Some((self.transaction_time, other.transaction_time)),
        ];
        pairs.into_iter().flatten().find(|(a, b)| a != b).is_some_and(|(a, b)| a < b)
    }

    fn may_replace(&self, stored: &Self) -> bool {
        !self.is_older_than(stored) && (!self.subsetted || stored.subsetted)
    }
}

/// A deletion that an export reported.
#[derive(Clone, Copy, Debug)]
struct Tombstone {
    at: Option<u32>,
    transaction_time: u32,
}

impl Tombstone {
    /// When the resource was deleted and when the row was written, by a clock that both have.
    fn times(self, row: &Row) -> (u32, u32) {
        self.at.zip(row.last_updated).unwrap_or((self.transaction_time, row.transaction_time))
    }
}

#[derive(Default)]
pub struct Model {
    rows: BTreeMap<&'static str, Row>,
    tombstones: BTreeMap<&'static str, Vec<Tombstone>>,
}

/// What an export says of one id, after its contradictions are resolved.
enum Newest {
    Row(Row),
    Deleted(Option<u32>),
}

impl Model {
    pub fn rows(&self) -> BTreeMap<String, String> {
        self.rows.iter().map(|(id, row)| ((*id).to_owned(), row.line.clone())).collect()
    }

    pub fn take(&mut self, export: &Export) -> Counts {
        let mut counts = Counts::default();
        let before = self.rows.len();
        let old: Vec<_> = self.rows.iter().filter(|(_, row)| row.transaction_time <= export.transaction_time).collect();
        let ids: BTreeSet<_> = export.files.iter().flatten().map(Entry::id).collect();
        let gone: Vec<_> = old.into_iter().map(|(id, _)| *id).filter(|id| !ids.contains(id)).collect();
        let mut any_row = false;
        for id in ids {
            let entries: Vec<_> = export.files.iter().flatten().filter(|entry| entry.id() == id).collect();
            counts.duplicate += entries.len() as u64 - 1;
            match newest(&entries, export.transaction_time) {
                Newest::Row(row) => {
                    any_row = true;
                    self.take_row(id, row, &mut counts);
                }
                Newest::Deleted(at) => self.take_deletion(id, at, export.transaction_time, &mut counts),
            }
        }
        if let Some(most_percent) = export.refresh {
            // Never all rows, and never by an export without a row.
            let most_percent = if any_row && gone.len() < before { most_percent } else { -1.0 };
            self.reconcile(&gone, before, most_percent, export.transaction_time, &mut counts);
        }
        counts
    }

    fn take_row(&mut self, id: &'static str, row: Row, counts: &mut Counts) {
        let counter = match self.rows.get(id) {
            Some(stored) if stored.line == row.line => &mut counts.unchanged,
            Some(stored) if row.may_replace(stored) => {
                self.rows.insert(id, row);
                &mut counts.updated
            }
            Some(_) => &mut counts.stale,
            None if self.is_deleted(id, &row) => &mut counts.stale,
            None => {
                self.rows.insert(id, row);
                &mut counts.inserted
            }
        };
        *counter += 1;
    }

    /// Is there a tombstone that is not older than the row?
    fn is_deleted(&self, id: &str, row: &Row) -> bool {
        self.tombstones.get(id).into_iter().flatten().any(|tombstone| {
            let (deleted, made) = tombstone.times(row);
            deleted >= made
        })
    }

    /// A deletion that states no time gets the time of the export.
    fn take_deletion(&mut self, id: &'static str, at: Option<u32>, transaction_time: u32, counts: &mut Counts) {
        let tombstone = Tombstone { at: at.or(Some(transaction_time)), transaction_time };
        let made_later = |row: &Row| {
            let (deleted, made) = tombstone.times(row);
            deleted < made
        };
        if self.rows.get(id).is_some_and(made_later) {
            counts.stale += 1;
            return;
        }
        let counter = if self.rows.remove(id).is_some() { &mut counts.deleted } else { &mut counts.unchanged };
        *counter += 1;
        self.tombstones.entry(id).or_default().push(tombstone);
    }

    fn reconcile(
        &mut self,
        gone: &[&'static str],
        before: usize,
        most_percent: f64,
        transaction_time: u32,
        counts: &mut Counts,
    ) {
        let count = gone.len() as u64;
        if f64::from(u32::try_from(gone.len()).unwrap()) * 100.0 / f64::from(u32::try_from(before.max(1)).unwrap())
            > most_percent
        {
            counts.missing = count;
            return;
        }
        counts.removed = count;
        for id in gone {
            self.rows.remove(id);
            self.tombstones.entry(id).or_default().push(Tombstone { at: None, transaction_time });
        }
    }
}

/// A row wins over a deletion of the same export, unless both state a time and the deletion is later. Among rows, the
/// last one that is not older wins; complete rows win over subsetted ones.
fn newest(entries: &[&Entry], transaction_time: u32) -> Newest {
    let deleted = entries.iter().filter_map(|entry| match entry {
        Entry::Deletion { at, .. } => Some(*at),
        Entry::Row { .. } => None,
    });
    let deleted = deleted.max();
    let rows = entries.iter().filter_map(|entry| match entry {
        Entry::Row { last_updated, version_id, subsetted, .. } => Some(Row {
            last_updated: *last_updated,
            version_id: *version_id,
            transaction_time,
            subsetted: *subsetted,
            line: entry.line(),
        }),
        Entry::Deletion { .. } => None,
    });
    let is_there = |row: &Row| deleted.flatten().zip(row.last_updated).is_none_or(|(deleted, made)| deleted <= made);
    let rows: Vec<_> = rows.filter(is_there).collect();
    let any_whole = rows.iter().any(|row| !row.subsetted);
    let rows = rows.into_iter().filter(|row| !any_whole || !row.subsetted);
    let row = rows.reduce(|known, next| if next.is_older_than(&known) { known } else { next });
    match (row, deleted) {
        (Some(row), _) => Newest::Row(row),
        (None, deleted) => Newest::Deleted(deleted.flatten()),
    }
}
