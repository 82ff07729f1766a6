//! The `_extension` column: for each row a map from the `_fid` of a structure to the extensions of that structure.
//!
//! An extension is a structure itself: extensions inside it are under its own `_fid`. A row without extensions has an
//! empty map.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, Int32Array, ListArray, MapArray, StructArray},
    buffer::OffsetBuffer,
    datatypes::{DataType, Field},
    error::ArrowError,
};

use super::{
    complex::ComplexColumn,
    issues::IssueCode,
    mapped_lines::MappedLines,
    mapping::LineMapping,
    offsets::Offsets,
    walk::{Carrier, Walk},
};
use crate::resource::{
    element::{Complex, Digits},
    json::TokenKind,
};

pub struct ExtensionColumn<'shape> {
    rows: Offsets,
    fids: Vec<i32>,
    lists: Offsets,
    items: ComplexColumn<'shape>,
}

impl<'shape> ExtensionColumn<'shape> {
    pub fn new(extension: &'shape Complex) -> Self {
        let items = ComplexColumn::new(extension);
        Self { rows: Offsets::default(), fids: Vec::new(), lists: Offsets::default(), items }
    }

    /// Writes the extensions of all carriers of the walk, those inside of extensions included. One of those waits until
    /// the list that is being written has ended, and comes before any other carrier.
    pub fn write(&mut self, walk: &mut Walk<'_>) {
        while let Some(carrier) = walk.carriers.pop_front() {
            self.append(walk, carrier);
        }
    }

    /// Appends one entry of the row's map.
    fn append(&mut self, walk: &mut Walk<'_>, carrier: Carrier) {
        let outside = std::mem::replace(&mut walk.path, carrier.path);
        walk.path.enter("extension");
        for (index, item) in walk.document.items(carrier.at).enumerate() {
            walk.path.enter_item(index);
            if walk.document.kind(item) == TokenKind::Object {
                self.items.append(walk, &mut |_| {}, item);
            } else {
                self.items.append_nulls(1);
                walk.issue(IssueCode::Invalid);
            }
            walk.path.leave();
        }
        walk.path = outside;
        self.fids.push(carrier.fid);
        self.lists.end(self.items.len());
    }

    pub fn end_row(&mut self) {
        self.rows.end(self.fids.len());
    }

    /// Appends the extensions of lines with the same mapping.
    pub fn append_mapped(&mut self, mapped: &mut MappedLines<'_>, mapping: &LineMapping) {
        let mut items = self.items.len();
        for _ in mapped.lines {
            for (fid, extensions) in &mapping.carriers {
                self.fids.push(*fid);
                items += extensions;
                self.lists.end(items);
            }
            self.rows.end(self.fids.len());
        }
        self.items.append_mapped(mapped, &mapping.extensions);
    }

    pub fn finish(self, field: &Field, digits: Digits) -> Result<ArrayRef, ArrowError> {
        let wrong = || ArrowError::SchemaError(format!("{} is not a map from numbers to lists", field.name()));
        let DataType::Map(entry, ordered) = field.data_type() else { return Err(wrong()) };
        let DataType::Struct(fields) = entry.data_type() else { return Err(wrong()) };
        let Some(DataType::List(item)) = fields.get(1).map(|value| value.data_type()) else { return Err(wrong()) };
        let items = Arc::new(self.items.finish(item, digits)?);
        let lists = ListArray::try_new(Arc::clone(item), self.lists.finish(), items, None)?;
        let keys: ArrayRef = Arc::new(Int32Array::from(self.fids));
        let entries = StructArray::try_new(fields.clone(), vec![keys, Arc::new(lists)], None)?;
        let rows: OffsetBuffer<i32> = self.rows.finish();
        let map = MapArray::try_new(Arc::clone(entry), rows, entries, None, *ordered)?;
        debug_assert_eq!(map.data_type(), field.data_type());
        Ok(Arc::new(map))
    }
}
