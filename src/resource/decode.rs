//! A decoder turns the lines of one file into rows of one resource type.
//!
//! Every line ends as exactly one row or exactly one [`BadLine`]. The line itself goes into `resource_json` byte for byte.

use std::{borrow::Cow, fmt, sync::Arc};

use arrow::{
    array::{ArrayRef, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray},
    error::ArrowError,
};
use serde::Deserialize;

use super::{Line, schema};
use crate::fhir::{Meta, ResourceType, RowKey, TransactionTime, Version, content_hash};

/// Decodes for one resource type of one run; what all its rows have in common.
#[derive(Clone, Debug)]
pub struct Decoder {
    pub resource_type: ResourceType,
    /// `_sync_source`
    pub source: Arc<str>,
    /// `_sync_at`, microseconds since the epoch
    pub at_micros: i64,
    /// `_sync_transaction_time`
    pub transaction_time: Option<TransactionTime>,
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

/// Why a line cannot be a row. Speaks of places, never of content: the text goes into logs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    NotUtf8 {
        at_byte: usize,
    },
    NotJson {
        at_byte: usize,
    },
    NoResourceType,
    NoId,
    OtherType {
        found: Option<ResourceType>,
    },
    /// An entry of a `deleted` bundle that is no plain deletion.
    NoDeletion {
        entry: usize,
    },
}

impl Reason {
    /// A word for metrics and for the quarantine.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotUtf8 { .. } => "not-utf8",
            Self::NotJson { .. } => "not-json",
            Self::NoResourceType => "no-resource-type",
            Self::NoId => "no-id",
            Self::OtherType { .. } => "other-type",
            Self::NoDeletion { .. } => "no-deletion",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 { at_byte } => write!(out, "not UTF-8 at byte {at_byte}"),
            Self::NotJson { at_byte } => write!(out, "not a JSON object at byte {at_byte}"),
            Self::NoResourceType => write!(out, "no resourceType"),
            Self::NoId => write!(out, "no id"),
            Self::OtherType { found: Some(found) } => write!(out, "a {found} in a file of another type"),
            Self::NoDeletion { entry } => write!(out, "entry {entry} is no deletion of one resource"),
            Self::OtherType { found: None } => write!(out, "an unknown resource type in a file of another type"),
        }
    }
}

impl Decoder {
    /// Lines to rows. `Err` only where the rows exceed what Arrow can hold in one batch (2 GiB of text).
    pub fn decode(&self, lines: Vec<Line>) -> Result<Decoded, ArrowError> {
        let text_bytes = lines.iter().map(|line| line.bytes.len()).sum();
        let mut keys = Vec::with_capacity(lines.len());
        let mut bad = Vec::new();
        let mut json = StringBuilder::with_capacity(lines.len(), text_bytes);
        for line in lines {
            match self.key(&line) {
                Ok((key, text)) => {
                    keys.push(key);
                    json.append_value(text);
                }
                Err(reason) => bad.push(BadLine { line, reason }),
            }
        }
        let rows = self.rows(&keys, json.finish())?;
        Ok(Decoded { keys, rows, bad })
    }

    fn key<'line>(&self, line: &'line Line) -> Result<(RowKey, &'line str), Reason> {
        let text =
            std::str::from_utf8(&line.bytes).map_err(|error| Reason::NotUtf8 { at_byte: error.valid_up_to() })?;
        if !text.trim_ascii_start().starts_with('{') {
            return Err(Reason::NotJson { at_byte: 0 });
        }
        // serde_json's own message may quote the value it tripped over; only its place is kept.
        let head: Head = serde_json::from_str(text).map_err(|error| Reason::NotJson { at_byte: error.column() })?;
        let found = head.resource_type.ok_or(Reason::NoResourceType)?;
        if found != self.resource_type.as_str() {
            return Err(Reason::OtherType { found: found.parse().ok() });
        }
        let id = head.id.filter(|id| !id.is_empty()).ok_or(Reason::NoId)?;
        let key = RowKey {
            id: id.into_owned(),
            version: Version::of(head.meta.as_ref()).at(self.transaction_time),
            line: line.number,
            hash: content_hash(text),
        };
        Ok((key, text))
    }

    fn rows(&self, keys: &[RowKey], json: StringArray) -> Result<RecordBatch, ArrowError> {
        let count = keys.len();
        let instants = |micros: Option<i64>| -> ArrayRef {
            let column: TimestampMicrosecondArray = std::iter::repeat_n(micros, count).collect();
            Arc::new(column.with_timezone("UTC"))
        };
        let texts =
            |text: &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(std::iter::repeat_n(text, count))) };
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(keys.iter().map(|key| &key.id))),
            texts(&self.source),
            instants(Some(self.at_micros)),
            instants(self.transaction_time.map(TransactionTime::as_micros)),
            texts(self.resource_type.as_str()),
            Arc::new(json),
        ];
        RecordBatch::try_new(schema(), columns)
    }
}

/// What of a resource decides where its row goes. Everything else of the line is read past, but must be JSON.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head<'line> {
    #[serde(borrow, default)]
    resource_type: Option<Cow<'line, str>>,
    #[serde(borrow, default)]
    id: Option<Cow<'line, str>>,
    #[serde(default)]
    meta: Option<Meta>,
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use proptest::prelude::*;

    use super::*;

    fn decode(lines: &[&[u8]]) -> Decoded {
        let decoder = Decoder {
            resource_type: "Patient".parse().unwrap(),
            source: "hospital".into(),
            at_micros: 7,
            transaction_time: TransactionTime::from_micros(5),
        };
        let line = |(index, bytes): (usize, &&[u8])| Line { number: index as u64 + 1, bytes: bytes.to_vec() };
        decoder.decode(lines.iter().enumerate().map(line).collect()).unwrap()
    }

    #[test]
    fn a_line_becomes_a_row_byte_for_byte() {
        let line = r#" {"resourceType":"Patient", "id":"a\u0062", "x":1.50,"meta":{"versionId":"3","lastUpdated":"1970-01-01T00:00:01Z"}}"#;
        let decoded = decode(&[line.as_bytes()]);
        assert_eq!(decoded.rows.column(5).as_string::<i32>().value(0), line);
        assert_eq!(decoded.keys[0].id, "ab");
        assert_eq!(decoded.keys[0].version.last_updated_micros, Some(1_000_000));
        assert_eq!(decoded.keys[0].version.transaction_time_micros, Some(5));
    }

    #[test]
    fn a_line_that_cannot_be_a_row_comes_back_with_its_reason() {
        let decoded = decode(&[
            br#"{"resourceType":"Patient","id":"a"}"#,
            b"{\"resourceType\":\"Patient\",\"id\":\"\xFF\"}",
            br#"{"resourceType":"Patient","id":"a""#,
            br#"{"resourceType":"Patient"}"#,
            br#"{"resourceType":"Patient","id":""}"#,
            br#"{"id":"a"}"#,
            br#"{"resourceType":"OperationOutcome","id":"a"}"#,
            br#"["resourceType"]"#,
            br#"{"resourceType":"Patient","id":7}"#,
        ]);
        let codes: Vec<_> = decoded.bad.iter().map(|bad| (bad.line.number, bad.reason.code())).collect();
        assert_eq!(decoded.rows.num_rows(), 1);
        assert_eq!(
            codes,
            [
                (2, "not-utf8"),
                (3, "not-json"),
                (4, "no-id"),
                (5, "no-id"),
                (6, "no-resource-type"),
                (7, "other-type"),
                (8, "not-json"),
                (9, "not-json"),
            ]
        );
    }

    #[test]
    fn a_reason_never_quotes_the_line() {
        let decoded = decode(&[br#"{"resourceType":"Patient","id":{"ssn":"123-45-6789"}}"#]);
        assert!(!decoded.bad[0].reason.to_string().contains("123"));
    }

    proptest! {
        #[test]
        fn every_line_is_one_row_or_one_bad_line_and_nothing_panics(lines in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..20)) {
            let lines: Vec<_> = lines.iter().map(Vec::as_slice).collect();
            let decoded = decode(&lines);
            prop_assert_eq!(decoded.rows.num_rows() + decoded.bad.len(), lines.len());
            prop_assert_eq!(decoded.rows.num_rows(), decoded.keys.len());
        }
    }
}
