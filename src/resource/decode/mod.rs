//! A decoder turns the lines of one file into rows of one resource type.
//!
//! Every line ends as exactly one row or exactly one [`BadLine`]. The line itself goes into `resource_json` byte for
//! byte; what its typed columns do not hold is listed in `_sync_issues`. An invalid value is null in its column; the
//! row stays.

mod column;
mod complex;
mod derived;
mod extension;
mod head;
mod issues;
mod leaf;
mod nulls;
mod offsets;
mod rows;
mod stages;
mod string_columns;
mod walk;

use std::{fmt, sync::Arc};

use arrow::{array::RecordBatch, error::ArrowError};

pub use self::stages::Stage;
use self::{head::Head, rows::Rows};
use super::{
    Line,
    content_hash::ContentHash,
    json::{Document, SyntaxError, Tape},
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
}

/// The rows and their keys, in the order of the lines, and the lines that became no row.
pub struct Decoded {
    pub keys: Vec<RowKey>,
    pub rows: RecordBatch,
    pub bad: Vec<BadLine>,
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
    /// Decodes lines to rows. `Err` only if the rows exceed what Arrow can hold in one batch (2 GiB of text).
    pub fn decode(&self, lines: Vec<Line>) -> Result<Decoded, ArrowError> {
        let lines_bytes = lines.iter().map(|line| line.bytes.len()).sum();
        self.check_size(lines.len(), lines_bytes)?;
        let (mut keys, mut bad) = (Vec::with_capacity(lines.len()), Vec::new());
        let mut rows = Rows::new(self, lines.len(), lines_bytes);
        let (mut tape, mut content_hash) = (Tape::default(), ContentHash::default());
        for line in lines {
            let read = match read(&mut tape, &line, self.shape.resource_type) {
                Ok(read) => read,
                Err(reason) => {
                    bad.push(BadLine { line, reason });
                    continue;
                }
            };
            let hash = content_hash.of(read.document);
            rows.append(read.document, read.text, &read.head, hash)?;
            keys.push(RowKey {
                version: read.head.version.at(self.transaction_time),
                id: read.head.id.into_owned(),
                line: line.number,
                hash,
            });
        }
        Ok(Decoded { keys, rows: rows.finish()?, bad })
    }

    /// No column that copies from the lines is longer than they are; those that repeat the same text are checked here.
    fn check_size(&self, lines: usize, lines_bytes: usize) -> Result<(), ArrowError> {
        let repeated_bytes = self.source.len().max(self.job.len()).max(64).saturating_mul(lines);
        let most_bytes = lines_bytes.saturating_add(repeated_bytes);
        if i32::try_from(most_bytes).is_err() { Err(ArrowError::OffsetOverflowError(most_bytes)) } else { Ok(()) }
    }
}

struct ParsedLine<'line> {
    text: &'line str,
    document: Document<'line>,
    head: Head<'line>,
}

fn read<'line>(tape: &'line mut Tape, line: &'line Line, expected: ResourceType) -> Result<ParsedLine<'line>, Reason> {
    let (text, document) = parsed(tape, line)?;
    Ok(ParsedLine { text, document, head: Head::read(document, expected)? })
}

fn parsed<'line>(tape: &'line mut Tape, line: &'line Line) -> Result<(&'line str, Document<'line>), Reason> {
    let text = std::str::from_utf8(&line.bytes).map_err(|error| Reason::NotUtf8 { at_byte: error.valid_up_to() })?;
    let document = tape.read(text).map_err(|fault| match fault {
        SyntaxError::Invalid { at_byte } => Reason::NotJson { at_byte },
        SyntaxError::TooDeep { at_byte } => Reason::TooDeepJson { at_byte },
    })?;
    Ok((text, document))
}

#[cfg(test)]
mod tests;
