//! A decoder turns lines into rows of one resource type: those of all its files in one run.
//!
//! Every line ends as exactly one row or exactly one [`BadLine`]. The line itself goes into `resource_json` byte for
//! byte; what its typed columns do not hold is listed in `_sync_issues`. An invalid value is null in its column; the
//! row stays.

mod canonical;
mod column;
mod complex;
mod derived;
mod derived_from;
mod extension;
mod head;
mod issues;
mod learned;
mod leaf;
mod mapped_lines;
mod mapper;
mod mapping;
mod nulls;
mod offsets;
mod rows;
mod stages;
mod string_columns;
mod walk;

use std::{fmt, sync::Arc};

use arrow::{
    array::{RecordBatch, UInt64Array},
    compute::take_record_batch,
    error::ArrowError,
};

use self::{
    head::Head,
    learned::{Learned, MappedLine},
    mapping::LineMapping,
    rows::Rows,
};
pub use self::{learned::MappingPool, stages::Stage};
use super::{
    Line,
    json::{Document, SyntaxError, Tape, Value},
    shape::Shape,
};
use crate::fhir::{ResourceType, RowKey, TransactionTime};

/// Decodes lines of one resource type in one run. Its fields are what all those rows have in common.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub shape: Arc<Shape>,
    /// `_sync_source`
    pub source: Arc<str>,
    /// `_sync_at`, microseconds since the epoch
    pub run_started_micros: i64,
    /// `_sync_transaction_time`
    pub transaction_time: Option<TransactionTime>,
    /// `_sync_job`
    pub job: Arc<str>,
    pub mappings: MappingPool,
}

/// The rows and their keys, in the same order, which is not that of the lines; and the lines that became no row.
pub struct Decoded {
    pub keys: Vec<RowKey>,
    pub rows: RecordBatch,
    pub bad: Vec<BadLine>,
}

impl Decoded {
    /// The same, with the rows in the order of the numbers of their lines.
    pub fn in_line_order(self) -> Result<Self, ArrowError> {
        let Self { keys, rows, bad } = self;
        let mut keys: Vec<_> = (0u64..).zip(keys).collect();
        keys.sort_by_key(|(_, key)| key.line);
        let (order, keys): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
        let rows = take_record_batch(&rows, &UInt64Array::from(order))?;
        Ok(Self { keys, rows, bad })
    }
}

/// A line that cannot be a row.
#[derive(Debug, PartialEq, Eq)]
pub struct BadLine {
    pub line: Line,
    pub reason: Reason,
}

/// Why a line cannot be a row. It names positions, never content, because it is written to logs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    NotUtf8 {
        at_byte: usize,
    },
    NotJson {
        at_byte: usize,
    },
    /// More objects and arrays inside each other than any resource has.
    TooDeepJson {
        at_byte: usize,
    },
    NoResourceType,
    NoId,
    OtherType {
        found: Option<ResourceType>,
    },
    /// Entries of a `deleted` bundle that are not the deletion of one resource each; the first of them.
    NoDeletion {
        entry: usize,
    },
    /// A `Binary` that should hold lines, and does not.
    NoEnvelope,
}

impl Reason {
    /// A word for metrics and for the quarantine.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotUtf8 { .. } => "not-utf8",
            Self::NotJson { .. } => "not-json",
            Self::TooDeepJson { .. } => "too-deep-json",
            Self::NoResourceType => "no-resource-type",
            Self::NoId => "no-id",
            Self::OtherType { .. } => "other-type",
            Self::NoDeletion { .. } => "no-deletion",
            Self::NoEnvelope => "no-envelope",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 { at_byte } => write!(out, "not UTF-8 at byte {at_byte}"),
            Self::NotJson { at_byte } => write!(out, "not a JSON object at byte {at_byte}"),
            Self::TooDeepJson { at_byte } => write!(out, "nested too deep at byte {at_byte}"),
            Self::NoResourceType => write!(out, "no resourceType"),
            Self::NoId => write!(out, "no id"),
            Self::OtherType { found: Some(found) } => write!(out, "a {found} in a file of another type"),
            Self::NoDeletion { entry } => write!(out, "entry {entry} is not the deletion of one resource"),
            Self::NoEnvelope => write!(out, "a Binary whose data are not lines in base64, or too many"),
            Self::OtherType { found: None } => write!(out, "an unknown resource type in a file of another type"),
        }
    }
}

impl Decoder {
    /// Decodes lines to rows. The rows are not in the order of the lines: lines with the same members become
    /// neighbours. `Err` only if the rows exceed what Arrow can hold in one batch (2 GiB of text), or if a line was
    /// lost.
    pub fn decode(&self, lines: &[Line]) -> Result<Decoded, ArrowError> {
        let lines_bytes = lines.iter().map(|line| line.bytes.len()).sum();
        self.check_size(lines.len(), lines_bytes)?;
        let mut rows = Rows::new(self, lines.len(), lines_bytes);
        let mut keys = Vec::with_capacity(lines.len());
        let mut reasons = Vec::new();
        let mut learned = self.mappings.take();
        for (first, slice) in slices(lines) {
            let sorted = self.mappings.sort(&mut learned, &self.shape, slice);
            for lines in sorted.by_mapping() {
                if let Some(mapping) = learned.mapping(lines) {
                    keys.extend(self.append_mapped(lines, &sorted.values, mapping, &mut rows)?);
                }
            }
            for place in sorted.by_name {
                match self.append_by_name(&slice[place], &mut learned, &mut rows)? {
                    Ok(key) => keys.push(key),
                    Err(reason) => reasons.push((first + place, reason)),
                }
            }
        }
        self.mappings.give_back(learned);
        let rows = rows.finish()?;
        if keys.len() + reasons.len() != lines.len() || rows.num_rows() != keys.len() {
            let text = format!("{} lines gave {} rows and {} bad lines", lines.len(), rows.num_rows(), reasons.len());
            return Err(ArrowError::ComputeError(text));
        }
        reasons.sort_unstable_by_key(|(place, _)| *place);
        let bad = reasons.into_iter().map(|(place, reason)| BadLine { line: lines[place].clone(), reason });
        Ok(Decoded { keys, rows, bad: bad.collect() })
    }

    /// Appends the rows of lines with the same mapping; gives back their keys.
    fn append_mapped<'line>(
        &self,
        lines: &'line [MappedLine<'line>],
        values: &'line [Value],
        mapping: &LineMapping,
        rows: &mut Rows<'_>,
    ) -> Result<impl Iterator<Item = RowKey>, ArrowError> {
        let heads: Vec<_> = lines.iter().map(|line| mapping.head(|number| line.value(values, number))).collect();
        rows.append_mapped(lines, values, mapping, &heads)?;
        let time = self.transaction_time;
        Ok(lines.iter().zip(heads).map(move |(line, head)| head.key(time, line.number, line.hash)))
    }

    /// Appends the row of a line without a mapping; gives back its key.
    fn append_by_name(
        &self,
        line: &Line,
        learned: &mut Learned,
        rows: &mut Rows<'_>,
    ) -> Result<Result<RowKey, Reason>, ArrowError> {
        let read = match read(&mut learned.tape, line, self.shape.resource_type) {
            Ok(read) => read,
            Err(reason) => return Ok(Err(reason)),
        };
        let hash = learned.content_hash.of(read.document);
        rows.append(read.document, read.text, &read.head, hash)?;
        Ok(Ok(read.head.key(self.transaction_time, line.number, hash)))
    }

    /// No column that copies from the lines is longer than they are; those that repeat the same text are checked here.
    fn check_size(&self, lines: usize, lines_bytes: usize) -> Result<(), ArrowError> {
        let repeated_bytes = self.source.len().max(self.job.len()).max(64).saturating_mul(lines);
        let most_bytes = lines_bytes.saturating_add(repeated_bytes);
        if i32::try_from(most_bytes).is_err() { Err(ArrowError::OffsetOverflowError(most_bytes)) } else { Ok(()) }
    }
}

/// As much text as the cache of a core holds beside other things.
const SLICE_BYTES: usize = 512 << 10;

/// Neighbouring lines, about [`SLICE_BYTES`] each time, and the place of the first of them.
fn slices(lines: &[Line]) -> impl Iterator<Item = (usize, &[Line])> {
    let mut rest = lines;
    std::iter::from_fn(move || {
        let first = lines.len() - rest.len();
        let mut bytes = 0;
        let fits = |line: &&Line| {
            let fits = bytes < SLICE_BYTES;
            bytes += line.bytes.len();
            fits
        };
        let count = rest.iter().take_while(fits).count();
        let (slice, after) = rest.split_at(count);
        rest = after;
        (!slice.is_empty()).then_some((first, slice))
    })
}

struct ParsedLine<'line> {
    text: &'line str,
    document: Document<'line>,
    head: Head<'line>,
}

fn read<'line>(tape: &'line mut Tape, line: &'line Line, expected: ResourceType) -> Result<ParsedLine<'line>, Reason> {
    let text = std::str::from_utf8(&line.bytes).map_err(|error| Reason::NotUtf8 { at_byte: error.valid_up_to() })?;
    let document = tape.read(text).map_err(|fault| match fault {
        SyntaxError::Invalid { at_byte } => Reason::NotJson { at_byte },
        SyntaxError::TooDeep { at_byte } => Reason::TooDeepJson { at_byte },
    })?;
    Ok(ParsedLine { text, document, head: Head::read(document, expected)? })
}

#[cfg(test)]
mod tests;
