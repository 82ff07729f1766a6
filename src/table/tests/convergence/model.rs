//! The model: what a table must hold after some exports, by the rules alone.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

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
    /// By the server's clock and by the version id, `None` where they say nothing.
    fn stated(&self, other: &Self) -> [Option<Ordering>; 2] {
        let by_clock = self.last_updated.zip(other.last_updated).map(|(a, b)| a.cmp(&b));
        let by_version = self.version_id.zip(other.version_id).map(|(a, b)| a.cmp(&b));
        [by_clock, by_version].map(|stated| stated.filter(|stated| stated.is_ne()))
    }

    fn contradicts(&self, other: &Self) -> bool {
        matches!(self.stated(other), [Some(by_clock), Some(by_version)] if by_clock != by_version)
    }

    /// Is it certainly older? Where clock and version id say nothing, or the opposite of each other, the export
    /// decides.
    fn is_older_than(&self, other: &Self) -> bool {
        match self.stated(other) {
            [Some(stated), None] | [None, Some(stated)] => stated.is_lt(),
            [Some(by_clock), Some(by_version)] if by_clock == by_version => by_clock.is_lt(),
            _ => self.transaction_time < other.transaction_time,
        }
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

    fn covers(self, row: &Row) -> bool {
        let (deleted, made) = self.times(row);
        deleted >= made
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
        let missing: Vec<_> = old.into_iter().map(|(id, _)| *id).filter(|id| !ids.contains(id)).collect();
        let mut any_row = false;
        for id in ids {
            let entries: Vec<_> = export.files.iter().flatten().filter(|entry| entry.id() == id).collect();
            counts.duplicate += entries.len() as u64 - 1;
            match newest(&entries, export.transaction_time) {
                Newest::Row(row) => {
                    any_row = true;
                    self.take_row(id, row, export.refresh.is_some(), &mut counts);
                }
                Newest::Deleted(at) => {
                    let is_refresh = export.refresh.is_some();
                    self.take_deletion(id, at, export.transaction_time, is_refresh, &mut counts);
                }
            }
        }
        if let Some(most_percent) = export.refresh {
            // Never all rows, and never by an export without a row.
            let most_percent = if any_row && missing.len() < before { most_percent } else { -1.0 };
            self.reconcile(&missing, before, most_percent, export.transaction_time, &mut counts);
        }
        counts
    }

    fn take_row(&mut self, id: &'static str, row: Row, is_refresh: bool, counts: &mut Counts) {
        let earlier_tombstones = self.only_earlier_tombstones_cover(id, &row);
        let counter = match self.rows.get(id) {
            Some(stored) if stored.line == row.line => &mut counts.unchanged,
            Some(stored) => {
                counts.conflicts += u64::from(row.contradicts(stored));
                let is_truth = is_refresh
                    && stored.transaction_time < row.transaction_time
                    && (!row.subsetted || stored.subsetted);
                if row.may_replace(stored) || is_truth {
                    counts.overruled += u64::from(!row.may_replace(stored));
                    self.rows.insert(id, row);
                    &mut counts.updated
                } else {
                    &mut counts.stale
                }
            }
            None if self.is_deleted(id, &row) && !(is_refresh && earlier_tombstones) => &mut counts.stale,
            None => {
                counts.overruled += u64::from(self.is_deleted(id, &row));
                self.rows.insert(id, row);
                &mut counts.inserted
            }
        };
        *counter += 1;
    }

    /// Is there a tombstone that is not older than the row?
    fn is_deleted(&self, id: &str, row: &Row) -> bool {
        self.tombstones.get(id).into_iter().flatten().any(|tombstone| tombstone.covers(row))
    }

    /// Tombstones that state a time count together, and so do the others.
    fn only_earlier_tombstones_cover(&self, id: &str, row: &Row) -> bool {
        let known = || self.tombstones.get(id).into_iter().flatten();
        [true, false].into_iter().all(|timed| {
            let mut same = known().filter(|tombstone| tombstone.at.is_some() == timed);
            let covers = same.clone().any(|tombstone| tombstone.covers(row));
            !covers || same.all(|tombstone| tombstone.transaction_time < row.transaction_time)
        })
    }

    /// A deletion that states no time gets the time of the export, and none is later than that.
    fn take_deletion(
        &mut self,
        id: &'static str,
        at: Option<u32>,
        transaction_time: u32,
        is_refresh: bool,
        counts: &mut Counts,
    ) {
        let at = at.unwrap_or(transaction_time).min(transaction_time);
        let tombstone = Tombstone { at: Some(at), transaction_time };
        if let Some(row) = self.rows.get(id) {
            let (deleted, made) = tombstone.times(row);
            let is_truth = is_refresh && row.transaction_time < transaction_time;
            if deleted < made && !is_truth {
                counts.stale += 1;
                return;
            }
            counts.overruled += u64::from(deleted < made);
        }
        let counter = if self.rows.remove(id).is_some() { &mut counts.deleted } else { &mut counts.unchanged };
        *counter += 1;
        self.tombstones.entry(id).or_default().push(tombstone);
    }

    fn reconcile(
        &mut self,
        missing: &[&'static str],
        before: usize,
        most_percent: f64,
        transaction_time: u32,
        counts: &mut Counts,
    ) {
        let count = missing.len() as u64;
        if f64::from(u32::try_from(missing.len()).unwrap()) * 100.0 / f64::from(u32::try_from(before.max(1)).unwrap())
            > most_percent
        {
            counts.missing = count;
            return;
        }
        counts.removed = count;
        for id in missing {
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
    let deleted = deleted.max().map(|at| at.map(|at| at.min(transaction_time)));
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
