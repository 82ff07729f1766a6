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
    leaf::{Appended, Leaf},
    mapped_lines::MappedLines,
    mapping::{ItemsMapping, MemberMapping, Repetition},
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
    List(Lists),
}

/// Where each list ends.
struct Lists {
    offsets: Offsets,
    present: NullBufferBuilder,
    items: usize,
}

impl<'shape> Column<'shape> {
    pub fn new(element: &'shape Element) -> Self {
        let items = match &element.content {
            ElementContent::Primitive(primitive) => Items::Leaf(Leaf::new(*primitive)),
            ElementContent::Complex(complex) => Items::Complex(ComplexColumn::new(complex)),
        };
        let list = || Many::List(Lists { offsets: Offsets::default(), present: NullBufferBuilder::new(0), items: 0 });
        Self { items, kind: if element.repeated { list() } else { Many::One { len: 0 } } }
    }

    pub fn len(&self) -> usize {
        match &self.kind {
            Many::One { len } => *len,
            Many::List(lists) => lists.offsets.len(),
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
            Many::List(lists) => lists.append_nulls(count),
        }
    }

    /// Appends the value of a member, or a null and an issue; says whether there was a value.
    pub fn append(&mut self, walk: &mut Walk<'_>, write_extensions: &mut WriteExtensions<'_>, at: TokenIndex) -> bool {
        match &mut self.kind {
            Many::One { len } => {
                *len += 1;
                self.items.append(walk, write_extensions, at)
            }
            Many::List(_) if walk.document.kind(at) != TokenKind::Array => {
                walk.issue(IssueCode::Invalid);
                self.append_nulls(1);
                false
            }
            Many::List(lists) => {
                let mut length = 0;
                for item in walk.document.items(at) {
                    walk.path.enter_item(length);
                    self.items.append_item(walk, write_extensions, item);
                    walk.path.leave();
                    length += 1;
                }
                lists.append(length);
                true
            }
        }
    }

    /// Appends the values of lines with the same mapping.
    pub fn append_mapped(&mut self, mapped: &mut MappedLines<'_>, mapping: &MemberMapping) {
        match (&mut self.kind, &mapping.many) {
            (Many::One { len }, _) => *len += mapping.items.count() * mapped.lines.len(),
            (Many::List(lists), Repetition::Lists(lengths)) => {
                for length in mapped.lines.iter().flat_map(|_| lengths) {
                    match length {
                        Some(length) => lists.append(*length),
                        None => lists.append_nulls(1),
                    }
                }
            }
            (Many::List(lists), Repetition::One) => {
                debug_assert!(false, "a mapping is made with the elements of its columns");
                lists.append_nulls(mapping.items.count() * mapped.lines.len());
            }
        }
        match (&mut self.items, &mapping.items) {
            (Items::Leaf(leaf), ItemsMapping::Leaf(values)) => leaf.append_mapped(mapped, values),
            (Items::Complex(complex), ItemsMapping::Complex(mapping)) => complex.append_mapped(mapped, mapping),
            (items, mapping) => {
                debug_assert!(false, "a mapping is made with the elements of its columns");
                items.append_nulls(mapping.count() * mapped.lines.len());
            }
        }
    }

    /// The arrays of the first one or two of `fields`.
    pub fn finish(self, fields: &[FieldRef], digits: Digits) -> Result<(ArrayRef, Option<ArrayRef>), ArrowError> {
        let Self { items, kind } = self;
        let [first, rest @ ..] = fields else {
            return Err(ArrowError::SchemaError("an element has no column".to_owned()));
        };
        let (offsets, present) = match kind {
            Many::One { .. } => return items.finish(first, digits),
            Many::List(mut lists) => (lists.offsets.finish(), lists.present.finish()),
        };
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

impl Lists {
    fn append(&mut self, length: usize) {
        self.items += length;
        self.offsets.end(self.items);
        self.present.append_non_null();
    }

    fn append_nulls(&mut self, count: usize) {
        self.offsets.end_empty(count);
        self.present.append_n_nulls(count);
    }
}

impl Items<'_> {
    fn append(&mut self, walk: &mut Walk<'_>, write_extensions: &mut WriteExtensions<'_>, at: TokenIndex) -> bool {
        match self {
            Self::Leaf(leaf) => {
                let appended = leaf.append(walk.document.scalar(at), walk.batch.digits);
                appended.issue().into_iter().for_each(|code| walk.issue(code));
                appended != Appended::Null
            }
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
