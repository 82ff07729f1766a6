//! String columns of a row's bookkeeping: lists of strings, and maps from string to string. Null where a row has none.
//!
//! They hold paths, which are longer than what they point to. So their size is checked: one array holds at most 2 GiB
//! of text.

use std::sync::Arc;

use arrow::{
    array::{ArrayBuilder, ArrayRef, ListArray, MapArray, NullBufferBuilder, StringBuilder, StructArray},
    datatypes::{DataType, Field},
    error::ArrowError,
};

use super::offsets::Offsets;

/// A column of lists.
pub struct StringListColumn {
    values: StringValues,
    offsets: Offsets,
    present: NullBufferBuilder,
}

impl StringListColumn {
    pub fn new() -> Self {
        Self { values: StringValues::default(), offsets: Offsets::default(), present: NullBufferBuilder::new(0) }
    }

    pub fn append<'text>(&mut self, texts: Option<impl Iterator<Item = Option<&'text str>>>) -> Result<(), ArrowError> {
        self.present.append(texts.is_some());
        for text in texts.into_iter().flatten() {
            self.values.append(text)?;
        }
        self.offsets.end(self.values.builder.len());
        Ok(())
    }

    pub fn append_nulls(&mut self, count: usize) {
        self.offsets.end_empty(count);
        self.present.append_n_nulls(count);
    }

    pub fn finish(mut self, field: &Field) -> Result<ArrayRef, ArrowError> {
        let DataType::List(item) = field.data_type() else {
            return Err(ArrowError::SchemaError(format!("{} is not a list", field.name())));
        };
        let values = Arc::new(self.values.builder.finish());
        Ok(Arc::new(ListArray::try_new(Arc::clone(item), self.offsets.finish(), values, self.present.finish())?))
    }
}

/// A column of maps; the keys of a row are distinct.
pub struct StringMapColumn {
    keys: StringValues,
    values: StringValues,
    offsets: Offsets,
    present: NullBufferBuilder,
}

impl StringMapColumn {
    pub fn new() -> Self {
        let present = NullBufferBuilder::new(0);
        Self { keys: StringValues::default(), values: StringValues::default(), offsets: Offsets::default(), present }
    }

    pub fn append<'text>(
        &mut self,
        entries: impl ExactSizeIterator<Item = (&'text str, &'text str)>,
    ) -> Result<(), ArrowError> {
        self.present.append(entries.len() > 0);
        for (key, value) in entries {
            self.keys.append(Some(key))?;
            self.values.append(Some(value))?;
        }
        self.offsets.end(self.keys.builder.len());
        Ok(())
    }

    pub fn append_nulls(&mut self, count: usize) {
        self.offsets.end_empty(count);
        self.present.append_n_nulls(count);
    }

    pub fn finish(mut self, field: &Field) -> Result<ArrayRef, ArrowError> {
        let wrong = || ArrowError::SchemaError(format!("{} is not a map of strings", field.name()));
        let DataType::Map(entry, ordered) = field.data_type() else { return Err(wrong()) };
        let DataType::Struct(fields) = entry.data_type() else { return Err(wrong()) };
        let columns: Vec<ArrayRef> = vec![Arc::new(self.keys.builder.finish()), Arc::new(self.values.builder.finish())];
        let entries = StructArray::try_new(fields.clone(), columns, None)?;
        let (offsets, present) = (self.offsets.finish(), self.present.finish());
        Ok(Arc::new(MapArray::try_new(Arc::clone(entry), offsets, entries, present, *ordered)?))
    }
}

#[derive(Default)]
struct StringValues {
    builder: StringBuilder,
    bytes: usize,
}

impl StringValues {
    fn append(&mut self, text: Option<&str>) -> Result<(), ArrowError> {
        self.bytes = self.bytes.saturating_add(text.map_or(0, str::len));
        if i32::try_from(self.bytes).is_err() {
            return Err(ArrowError::OffsetOverflowError(self.bytes));
        }
        self.builder.append_option(text);
        Ok(())
    }
}
