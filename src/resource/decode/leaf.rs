//! A leaf column: the values of one primitive element, one for each structure or list item that has the element.

use std::{mem, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BinaryBuilder, BooleanBuilder, Decimal128Builder, Int32Builder, StringBuilder,
        TimestampMicrosecondBuilder,
    },
    error::ArrowError,
};

use super::{
    issues::IssueCode,
    mapped_lines::{MappedLines, ValueIssue},
    mapping::ValueNumber,
};
use crate::resource::{
    element::{Digits, Primitive},
    json::{Scalar, TokenKind},
    value::{self, date, decimal::Decimal},
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

/// What became of a value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    Whole,
    /// A decimal with more digits than its column has.
    Rounded,
    /// It is not of the type.
    Null,
}

impl Appended {
    pub fn issue(self) -> Option<IssueCode> {
        match self {
            Self::Whole => None,
            Self::Rounded => Some(IssueCode::DecimalRounded),
            Self::Null => Some(IssueCode::Invalid),
        }
    }
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

    /// Appends a value, or a null where it is none of the type.
    #[inline]
    pub fn append(&mut self, value: Scalar<'_>, digits: Digits) -> Appended {
        let appended = match self {
            Self::Text(values) => value.string().map(|text| values.append_value(text)),
            Self::Boolean(values) => boolean(value.kind).map(|flag| values.append_value(flag)),
            Self::Integer(values) => {
                value.number().and_then(|text| text.parse().ok()).map(|number| values.append_value(number))
            }
            Self::Decimal { values, scales } => {
                if let Some(decimal) = value.number().and_then(|text| decimal(text, digits)) {
                    values.append_value(decimal.unscaled);
                    scales.append_value(decimal.scale);
                    return if decimal.rounded { Appended::Rounded } else { Appended::Whole };
                }
                None
            }
            Self::Id { values, versioned } => value.string().map(|text| {
                values.append_value(&text);
                versioned.append_value(&text);
            }),
            Self::Instant(values) => {
                value.string().and_then(|text| value::instant_micros(&text)).map(|micros| values.append_value(micros))
            }
            Self::Base64(values) => {
                value.string().and_then(|text| value::base64(&text)).map(|bytes| values.append_value(bytes))
            }
            Self::Checked { values, is_valid } => {
                value.string().filter(|text| is_valid(text)).map(|text| values.append_value(text))
            }
        };
        if appended.is_none() {
            self.append_nulls(1);
            return Appended::Null;
        }
        Appended::Whole
    }

    /// Appends these values of each of these lines, with nulls for `None`.
    pub fn append_mapped(&mut self, mapped: &mut MappedLines<'_>, values: &[Option<ValueNumber>]) {
        let digits = mapped.batch.digits;
        for (line, of) in mapped.lines.iter().enumerate() {
            for value in values {
                let Some(value) = *value else {
                    self.append_nulls(1);
                    continue;
                };
                let scalar = of.value(mapped.values, value);
                if let (Self::Text(values), TokenKind::String) = (&mut *self, scalar.kind) {
                    values.append_value(scalar.text);
                } else if let Some(code) = self.append(scalar, digits).issue() {
                    mapped.issues.push(ValueIssue { line, code, value, derived: None });
                }
            }
        }
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

fn boolean(kind: TokenKind) -> Option<bool> {
    match kind {
        TokenKind::True => Some(true),
        TokenKind::False => Some(false),
        _ => None,
    }
}

/// A decimal at the scale of its column, and the scale of its text, which is at most that of the column.
struct ColumnDecimal {
    unscaled: i128,
    scale: i32,
    rounded: bool,
}

fn decimal(text: &str, Digits { precision, scale }: Digits) -> Option<ColumnDecimal> {
    let decimal = Decimal::parse(text)?;
    let scaled = decimal.at_scale(scale, precision)?;
    let scale = decimal.lexical_scale().min(i32::from(scale));
    Some(ColumnDecimal { unscaled: scaled.unscaled, scale, rounded: scaled.rounded })
}
