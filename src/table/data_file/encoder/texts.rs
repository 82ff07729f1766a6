//! Texts: a flat column of texts that are not repeated, such as `resource_json`.
//!
//! Its pages are those that parquet's own writer makes of them: data pages of version 1, values as they are, compressed
//! by zstd. That writer takes fresh memory for each page, and copies the page twice before it is compressed; this was a
//! twelfth of the time of a first load. Here the memory of a page is used again for the next one.

use std::sync::Arc;

use arrow::array::StringArray;
use parquet::{
    basic::{Encoding, EncodingMask, PageType, Type},
    column::writer::ColumnCloseResult,
    errors::Result,
    file::{
        metadata::{ColumnChunkMetaData, PageEncodingStats},
        page_index::offset_index::{OffsetIndexMetaData, PageLocation},
        properties::{EnabledStatistics, WriterProperties},
    },
    schema::types::ColumnDescPtr,
};

use super::{
    page::{Compressor, Header, Page, push_varint, too_large},
    pages::WrittenLeaf,
};

/// A column whose pages are written here, and how.
#[derive(Clone)]
pub struct TextColumn {
    leaf: ColumnDescPtr,
    max_page_bytes: usize,
    max_page_rows: usize,
}

pub struct TextWriter {
    column: TextColumn,
    compressor: Arc<Compressor>,
    open: OpenPage,
    pages: Vec<Page>,
    index: OffsetIndexMetaData,
    rows: usize,
    compressed_bytes: usize,
}

/// Levels and values of the rows that are in no page yet.
struct OpenPage {
    /// Room for the levels of rows that all have a value, and then the values.
    bytes: Vec<u8>,
    /// Neighbouring rows with a value, or without.
    runs: Vec<(usize, bool)>,
    rows: usize,
    value_bytes: usize,
}

/// The length of the levels, and one run: at most ten bytes for its length, and its level.
const LEVELS_ROOM: usize = 4 + 11;

impl TextColumn {
    /// `None` for a column that parquet's writer has to write: one with statistics, a filter or a dictionary, or with
    /// anything but texts.
    pub fn of(leaf: &ColumnDescPtr, properties: &WriterProperties) -> Option<Self> {
        let path = leaf.path();
        let is_plain = leaf.physical_type() == Type::BYTE_ARRAY
            && leaf.max_rep_level() == 0
            && leaf.max_def_level() <= 1
            && !properties.dictionary_enabled(path)
            && properties.statistics_enabled(path) == EnabledStatistics::None
            && properties.bloom_filter_properties(path).is_none();
        is_plain.then(|| Self {
            leaf: Arc::clone(leaf),
            max_page_bytes: properties.column_data_page_size_limit(path),
            max_page_rows: properties.data_page_row_count_limit(),
        })
    }
}

impl TextWriter {
    pub fn new(column: TextColumn, compressor: Arc<Compressor>) -> Self {
        Self {
            column,
            compressor,
            open: OpenPage::default(),
            pages: Vec::new(),
            index: OffsetIndexMetaData { page_locations: vec![], unencoded_byte_array_data_bytes: Some(vec![]) },
            rows: 0,
            compressed_bytes: 0,
        }
    }

    pub fn write(&mut self, texts: &StringArray) -> Result<()> {
        for text in texts {
            if self.open.rows >= self.column.max_page_rows || self.open.bytes.len() >= self.column.max_page_bytes {
                self.end_page()?;
            }
            self.open.push(text)?;
        }
        Ok(())
    }

    /// How large the column would be if it ended here. The open page is not compressed yet.
    pub fn bytes(&self) -> usize {
        self.compressed_bytes + self.open.bytes.len()
    }

    pub fn close(mut self) -> Result<WrittenLeaf> {
        if self.open.rows > 0 {
            self.end_page()?;
        }
        let pages = PageEncodingStats {
            page_type: PageType::DATA_PAGE,
            encoding: Encoding::PLAIN,
            count: i32::try_from(self.pages.len()).map_err(too_large)?,
        };
        let metadata = ColumnChunkMetaData::builder(Arc::clone(&self.column.leaf))
            .set_encodings_mask(EncodingMask::new_from_encodings([Encoding::PLAIN, Encoding::RLE].iter()))
            .set_page_encoding_stats(vec![pages])
            .set_num_values(i64::try_from(self.rows).map_err(too_large)?)
            .build()?;
        let close = ColumnCloseResult {
            bytes_written: self.compressed_bytes as u64,
            rows_written: self.rows as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(self.index),
        };
        Ok(WrittenLeaf { close, pages: self.pages })
    }

    fn end_page(&mut self) -> Result<()> {
        let is_optional = self.column.leaf.max_def_level() > 0;
        let begin = self.open.begin(is_optional)?;
        let page = self.compressor.page(&Header::of_plain_values(self.open.rows)?, &self.open.bytes[begin..])?;
        self.index.page_locations.push(PageLocation {
            offset: i64::try_from(self.compressed_bytes).unwrap_or(i64::MAX),
            compressed_page_size: i32::try_from(page.len()).map_err(too_large)?,
            first_row_index: i64::try_from(self.rows).unwrap_or(i64::MAX),
        });
        let value_bytes = i64::try_from(self.open.value_bytes).unwrap_or(i64::MAX);
        self.index.unencoded_byte_array_data_bytes.get_or_insert_default().push(value_bytes);
        self.compressed_bytes += page.len();
        self.rows += self.open.rows;
        self.pages.push(page);
        self.open.clear();
        Ok(())
    }
}

impl Default for OpenPage {
    fn default() -> Self {
        Self { bytes: vec![0; LEVELS_ROOM], runs: Vec::new(), rows: 0, value_bytes: 0 }
    }
}

impl OpenPage {
    fn push(&mut self, text: Option<&str>) -> Result<()> {
        self.rows += 1;
        match self.runs.last_mut() {
            Some((rows, has_value)) if *has_value == text.is_some() => *rows += 1,
            _ => self.runs.push((1, text.is_some())),
        }
        if let Some(text) = text {
            let length = u32::try_from(text.len()).map_err(too_large)?;
            self.bytes.extend_from_slice(&length.to_le_bytes());
            self.bytes.extend_from_slice(text.as_bytes());
            self.value_bytes += text.len();
        }
        Ok(())
    }

    /// Writes the levels before the values; gives back where the page begins.
    fn begin(&mut self, is_optional: bool) -> Result<usize> {
        if !is_optional {
            return Ok(LEVELS_ROOM);
        }
        let mut runs = Vec::new();
        for (rows, has_value) in &self.runs {
            // A run of the hybrid encoding of levels: twice its length, and the level in one byte.
            push_varint(*rows as u64 * 2, &mut runs);
            runs.push(u8::from(*has_value));
        }
        let length = u32::try_from(runs.len()).map_err(too_large)?;
        let levels = [&length.to_le_bytes(), runs.as_slice()].concat();
        if levels.len() > LEVELS_ROOM {
            let room = std::iter::repeat_n(0, levels.len() - LEVELS_ROOM);
            self.bytes.splice(..0, room);
        }
        let end = levels.len().max(LEVELS_ROOM);
        let begin = end - levels.len();
        self.bytes[begin..end].copy_from_slice(&levels);
        Ok(begin)
    }

    fn clear(&mut self) {
        self.bytes.truncate(LEVELS_ROOM);
        self.runs.clear();
        (self.rows, self.value_bytes) = (0, 0);
    }
}
