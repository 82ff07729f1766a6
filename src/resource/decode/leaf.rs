//! A leaf column: the values of one primitive element, one for each structure or list item that has the element.

use std::{mem, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BinaryBuilder, BooleanBuilder, Decimal128Builder, Int32Builder, StringBuilder,
        TimestampMicrosecondBuilder,
    },
    error::ArrowError,
};

use super::{issues::IssueCode, walk::Walk};
use crate::{
    fhir::parse_instant,
    resource::{
        element::{Digits, Primitive},
        json::{TokenIndex, TokenKind},
        value::{self, date, decimal::Decimal},
    },
};

pub enum Leaf {
    Boolean(BooleanBuilder),
    Integer(Int32Builder),
    Decimal {
        values: Decimal128Builder,
        scales: Int32Builder,
    },
    Id {
        values: StringBuilder,
        versioned: StringBuilder,
    },
    Instant(TimestampMicrosecondBuilder),
    Base64(BinaryBuilder),
    /// Text that must be what its type says.
    Checked {
        values: StringBuilder,
        is_valid: fn(&str) -> bool,
    },
    Text(StringBuilder),
}

impl Leaf {
    pub fn new(primitive: Primitive) -> Self {
        let checked = |is_valid| Self::Checked { values: StringBuilder::new(), is_valid };
        match primitive {
            Primitive::Boolean => Self::Boolean(BooleanBuilder::new()),
            Primitive::Integer => Self::Integer(Int32Builder::new()),
            Primitive::Decimal => Self::Decimal { values: Decimal128Builder::new(), scales: Int32Builder::new() },
            Primitive::Id => Self::Id { values: StringBuilder::new(), versioned: StringBuilder::new() },
            Primitive::Instant => Self::Instant(TimestampMicrosecondBuilder::new()),
            Primitive::Base64 => Self::Base64(BinaryBuilder::new()),
            Primitive::Date => checked(|text| date::date(text).is_some()),
            Primitive::DateTime => checked(date::is_date_time),
            Primitive::Time => checked(date::is_time),
            Primitive::Text => Self::Text(StringBuilder::new()),
        }
    }

    /// Appends the value of a token, or a null and an issue; says whether there was a value.
    pub fn append(&mut self, walk: &mut Walk<'_>, at: TokenIndex) -> bool {
        let appended = match self {
            Self::Boolean(values) => boolean(walk, at).map(|flag| values.append_value(flag)),
            Self::Integer(values) => {
                number(walk, at).and_then(|text| text.parse().ok()).map(|n| values.append_value(n))
            }
            Self::Decimal { values, scales } => decimal(walk, at).map(|(value, scale)| {
                values.append_value(value);
                scales.append_value(scale);
            }),
            Self::Id { values, versioned } => walk.document.string(at).map(|text| {
                values.append_value(&text);
                versioned.append_value(&text);
            }),
            Self::Instant(values) => {
                let text = walk.document.string(at);
                text.and_then(|text| instant_micros(&text)).map(|micros| values.append_value(micros))
            }
            Self::Base64(values) => {
                let text = walk.document.string(at);
                text.and_then(|text| value::base64(&text)).map(|bytes| values.append_value(bytes))
            }
            Self::Checked { values, is_valid } => {
                let text = walk.document.string(at).filter(|text| is_valid(text));
                text.map(|text| values.append_value(text))
            }
            Self::Text(values) => walk.document.string(at).map(|text| values.append_value(text)),
        };
        if appended.is_none() {
            self.append_nulls(1);
            walk.issue(IssueCode::Invalid);
        }
        appended.is_some()
    }

    pub fn append_nulls(&mut self, count: usize) {
        match self {
            Self::Boolean(values) => values.append_nulls(count),
            Self::Integer(values) => values.append_nulls(count),
            Self::Decimal { values, scales } => {
                values.append_nulls(count);
                scales.append_nulls(count);
            }
            Self::Id { values, versioned } => {
                values.append_nulls(count);
                versioned.append_nulls(count);
            }
            Self::Instant(values) => values.append_nulls(count),
            Self::Base64(values) => values.append_nulls(count),
            Self::Checked { values, .. } | Self::Text(values) => values.append_nulls(count),
        }
    }

    /// One array, or two where the element has two columns.
    pub fn finish(&mut self, digits: Digits) -> Result<(ArrayRef, Option<ArrayRef>), ArrowError> {
        Ok(match self {
            Self::Boolean(values) => (Arc::new(values.finish()), None),
            Self::Integer(values) => (Arc::new(values.finish()), None),
            Self::Decimal { values, scales } => {
                let values = mem::take(values).with_precision_and_scale(digits.precision, digits.scale)?.finish();
                (Arc::new(values), Some(Arc::new(scales.finish())))
            }
            Self::Id { values, versioned } => (Arc::new(values.finish()), Some(Arc::new(versioned.finish()))),
            Self::Instant(values) => (Arc::new(values.finish().with_timezone("UTC")), None),
            Self::Base64(values) => (Arc::new(values.finish()), None),
            Self::Checked { values, .. } | Self::Text(values) => (Arc::new(values.finish()), None),
        })
    }
}

/// Reads an instant as FHIR writes it, or as leniently as is unambiguous. Digits beyond the microsecond and the
/// offset are not kept: they are only in the line.
pub fn instant_micros(text: &str) -> Option<i64> {
    date::instant_micros(text).or_else(|| parse_instant(text).map(|instant| instant.timestamp_micros()))
}

fn boolean(walk: &Walk<'_>, at: TokenIndex) -> Option<bool> {
    match walk.document.kind(at) {
        TokenKind::True => Some(true),
        TokenKind::False => Some(false),
        _ => None,
    }
}

fn number<'line>(walk: &Walk<'line>, at: TokenIndex) -> Option<&'line str> {
    (walk.document.kind(at) == TokenKind::Number).then(|| walk.document.text(at))
}

/// The value at the scale of the column, and the scale of the text, which is at most that of the column.
fn decimal(walk: &mut Walk<'_>, at: TokenIndex) -> Option<(i128, i32)> {
    let Digits { precision, scale } = walk.batch.digits;
    let decimal = Decimal::parse(number(walk, at)?)?;
    let scaled = decimal.at_scale(scale, precision)?;
    if scaled.rounded {
        walk.issue(IssueCode::DecimalRounded);
    }
    Some((scaled.unscaled, decimal.lexical_scale().min(i32::from(scale))))
}
