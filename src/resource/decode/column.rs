//! A column of an element: for each structure that the element belongs to, one value or one list of values.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, ListArray, NullBufferBuilder},
    datatypes::{DataType, Field, FieldRef},
    error::ArrowError,
};

use super::{
    complex::ComplexColumn,
    issues::IssueCode,
    leaf::Leaf,
    offsets::Offsets,
    walk::{Walk, WriteExtensions},
};
use crate::resource::{
    element::{Digits, Element, ElementContent},
    json::{TokenIndex, TokenKind},
};

pub struct Column<'shape> {
    items: Items<'shape>,
    kind: Many,
}

enum Items<'shape> {
    Leaf(Leaf),
    Complex(ComplexColumn<'shape>),
}

enum Many {
    One { len: usize },
    List { offsets: Offsets, present: NullBufferBuilder, items: usize },
}

impl<'shape> Column<'shape> {
    pub fn new(element: &'shape Element) -> Self {
        let items = match &element.content {
            ElementContent::Primitive(primitive) => Items::Leaf(Leaf::new(*primitive)),
            ElementContent::Complex(complex) => Items::Complex(ComplexColumn::new(complex)),
        };
        let list = || Many::List { offsets: Offsets::default(), present: NullBufferBuilder::new(0), items: 0 };
        Self { items, kind: if element.repeated { list() } else { Many::One { len: 0 } } }
    }

    pub fn len(&self) -> usize {
        match &self.kind {
            Many::One { len } => *len,
            Many::List { offsets, .. } => offsets.len(),
        }
    }

    pub fn append_nulls(&mut self, count: usize) {
        if count == 0 {
            return;
        }
        match &mut self.kind {
            Many::One { len } => {
                *len += count;
                self.items.append_nulls(count);
            }
            Many::List { offsets, present, .. } => {
                offsets.end_empty(count);
                present.append_n_nulls(count);
            }
        }
    }

    /// Appends the value of a member, or a null and an issue; says whether there was a value.
    pub fn append(&mut self, walk: &mut Walk<'_>, write_extensions: &mut WriteExtensions<'_>, at: TokenIndex) -> bool {
        match &mut self.kind {
            Many::One { len } => {
                *len += 1;
                self.items.append(walk, write_extensions, at)
            }
            Many::List { .. } if walk.document.kind(at) != TokenKind::Array => {
                walk.issue(IssueCode::Invalid);
                self.append_nulls(1);
                false
            }
            Many::List { offsets, present, items } => {
                for (index, item) in walk.document.items(at).enumerate() {
                    walk.path.enter_item(index);
                    self.items.append_item(walk, write_extensions, item);
                    walk.path.leave();
                    *items += 1;
                }
                offsets.end(*items);
                present.append_non_null();
                true
            }
        }
    }

    /// The arrays of the first one or two of `fields`.
    pub fn finish(self, fields: &[FieldRef], digits: Digits) -> Result<(ArrayRef, Option<ArrayRef>), ArrowError> {
        let Self { items, kind } = self;
        let [first, rest @ ..] = fields else {
            return Err(ArrowError::SchemaError("an element has no column".to_owned()));
        };
        let (offsets, mut present) = match kind {
            Many::One { .. } => return items.finish(first, digits),
            Many::List { offsets, present, .. } => (offsets.finish(), present),
        };
        let present = present.finish();
        let list = |field: &FieldRef, items| -> Result<ArrayRef, ArrowError> {
            Ok(Arc::new(ListArray::try_new(Arc::clone(item(field)?), offsets.clone(), items, present.clone())?))
        };
        let (array, second) = items.finish(item(first)?, digits)?;
        let second = rest.first().zip(second).map(|(field, items)| list(field, items)).transpose()?;
        Ok((list(first, array)?, second))
    }
}

fn item(field: &Field) -> Result<&FieldRef, ArrowError> {
    match field.data_type() {
        DataType::List(item) => Ok(item),
        _ => Err(ArrowError::SchemaError(format!("{} is not a list", field.name()))),
    }
}

impl Items<'_> {
    fn append(&mut self, walk: &mut Walk<'_>, write_extensions: &mut WriteExtensions<'_>, at: TokenIndex) -> bool {
        match self {
            Self::Leaf(leaf) => leaf.append(walk, at),
            Self::Complex(complex) if walk.document.kind(at) == TokenKind::Object => {
                complex.append(walk, write_extensions, at);
                true
            }
            Self::Complex(complex) => {
                complex.append_nulls(1);
                walk.issue(IssueCode::Invalid);
                false
            }
        }
    }

    /// In an array of primitives, a null means that the item has extensions and no value.
    fn append_item(&mut self, walk: &mut Walk<'_>, write_extensions: &mut WriteExtensions<'_>, at: TokenIndex) {
        match self {
            Self::Leaf(leaf) if walk.document.kind(at) == TokenKind::Null => leaf.append_nulls(1),
            _ => {
                self.append(walk, write_extensions, at);
            }
        }
    }

    fn append_nulls(&mut self, count: usize) {
        match self {
            Self::Leaf(leaf) => leaf.append_nulls(count),
            Self::Complex(complex) => complex.append_nulls(count),
        }
    }

    fn finish(self, field: &Field, digits: Digits) -> Result<(ArrayRef, Option<ArrayRef>), ArrowError> {
        match self {
            Self::Leaf(mut leaf) => leaf.finish(digits),
            Self::Complex(complex) => Ok((Arc::new(complex.finish(field, digits)?), None)),
        }
    }
}
