//! When the rows of an export were last updated, by the server's own word: whether it honours `_since`, and from
//! when the rows of a full load are.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use crate::fhir::{ResourceType, RowKey, TransactionTime};

pub struct Dates {
    /// As planned; `None` in a full load.
    since: Option<TransactionTime>,
    of_types: Mutex<BTreeMap<ResourceType, Span>>,
}

/// The rows of one type that have a `lastUpdated`.
#[derive(Clone, Copy)]
struct Span {
    rows: u64,
    /// Before `_since`.
    older: u64,
    first_micros: i64,
    last_micros: i64,
}

/// Of fewer rows nothing follows: resources that others refer to may be sent whatever `_since` says (rule 17).
const MIN_ROWS: u64 = 10;

impl Dates {
    pub fn new(since: Option<TransactionTime>) -> Self {
        Self { since, of_types: Mutex::default() }
    }

    pub fn see(&self, of: ResourceType, keys: &[RowKey]) {
        let since_micros = self.since.map(TransactionTime::as_micros);
        let mut of_types = self.of_types.lock().unwrap_or_else(PoisonError::into_inner);
        for micros in keys.iter().filter_map(|key| key.version.last_updated_micros) {
            let new = Span { rows: 0, older: 0, first_micros: micros, last_micros: micros };
            let span = of_types.entry(of).or_insert(new);
            span.rows += 1;
            span.older += u64::from(since_micros.is_some_and(|since| micros < since));
            span.first_micros = span.first_micros.min(micros);
            span.last_micros = span.last_micros.max(micros);
        }
    }

    /// What to note of an increment: most of its rows are older than what was asked for.
    pub fn note(&self) -> Option<String> {
        let of_types = self.of_types.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |of: fn(&Span) -> u64| of_types.values().map(of).sum::<u64>();
        let (rows, older) = (sum(|span| span.rows), sum(|span| span.older));
        let since = self.since.filter(|_| rows >= MIN_ROWS && older * 2 > rows)?;
        Some(format!(
            "{older} of {rows} rows were last updated before {since}, from which was asked: the server seems to \
             ignore _since at this level, so each sync transfers everything; the tables are right, and unchanged rows \
             were not written again"
        ))
    }

    /// A full load that begins later than the data do shows here.
    pub fn log(&self) {
        if self.since.is_some() {
            return;
        }
        for (resource_type, span) in &*self.of_types.lock().unwrap_or_else(PoisonError::into_inner) {
            let [first, last] = [span.first_micros, span.last_micros].map(TransactionTime::from_micros);
            if let (Some(first), Some(last)) = (first, last) {
                tracing::info!(
                    %resource_type, rows = span.rows, %first, %last,
                    "{resource_type}: the rows of the full load were last updated from {first} to {last}"
                );
            }
        }
    }
}
