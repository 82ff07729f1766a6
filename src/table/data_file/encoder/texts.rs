//! Texts: a flat column of texts that are not repeated, such as `resource_json`.
//!
//! Its pages are those that parquet's own writer makes of them: data pages of version 1, values as they are, compressed
//! by zstd. That writer takes fresh memory for each page, and copies the page twice before it is compressed; this was a
//! twelfth of the time of a first load. Here the memory of a page is used again for the next one.

use std::{
    collections::VecDeque,
    io::{self, Read},
    num::TryFromIntError,
    sync::Arc,
};

use arrow::array::StringArray;
use bytes::{Buf as _, Bytes};
use parquet::{
    basic::{Compression, Encoding, EncodingMask, PageType, Type, ZstdLevel},
    column::writer::ColumnCloseResult,
    errors::{ParquetError, Result},
    file::{
        metadata::{ColumnChunkMetaData, PageEncodingStats},
        page_index::offset_index::{OffsetIndexMetaData, PageLocation},
        properties::{EnabledStatistics, WriterProperties},
        reader::{ChunkReader, Length},
    },
    schema::types::ColumnDescPtr,
};
use zstd::bulk::Compressor;

/// A column whose pages are written here, and how.
#[derive(Clone)]
pub struct TextColumn {
    leaf: ColumnDescPtr,
    level: i32,
    max_page_bytes: usize,
    max_page_rows: usize,
}

pub struct TextWriter {
    column: TextColumn,
    compressor: Compressor<'static>,
    page: OpenPage,
    compressed: Vec<u8>,
    pages: Vec<Bytes>,
    index: OffsetIndexMetaData,
    rows: usize,
    uncompressed_bytes: usize,
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
        let Compression::ZSTD(level) = properties.compression(path) else { return None };
        let is_plain = leaf.physical_type() == Type::BYTE_ARRAY
            && leaf.max_rep_level() == 0
            && leaf.max_def_level() <= 1
            && !properties.dictionary_enabled(path)
            && properties.statistics_enabled(path) == EnabledStatistics::None
            && properties.bloom_filter_properties(path).is_none();
        is_plain.then(|| Self {
            leaf: Arc::clone(leaf),
            level: level.compression_level(),
            max_page_bytes: properties.column_data_page_size_limit(path),
            max_page_rows: properties.data_page_row_count_limit(),
        })
    }
}

impl TextWriter {
    pub fn new(column: TextColumn) -> Result<Self> {
        let compressor = Compressor::new(column.level)?;
        Ok(Self {
            column,
            compressor,
            page: OpenPage::default(),
            compressed: Vec::new(),
            pages: Vec::new(),
            index: OffsetIndexMetaData { page_locations: vec![], unencoded_byte_array_data_bytes: Some(vec![]) },
            rows: 0,
            uncompressed_bytes: 0,
            compressed_bytes: 0,
        })
    }

    pub fn write(&mut self, texts: &StringArray) -> Result<()> {
        for text in texts {
            if self.page.rows >= self.column.max_page_rows || self.page.bytes.len() >= self.column.max_page_bytes {
                self.end_page()?;
            }
            self.page.push(text)?;
        }
        Ok(())
    }

    /// How large the column would be if it ended here. The open page is not compressed yet.
    pub fn bytes(&self) -> usize {
        self.compressed_bytes + self.page.bytes.len()
    }

    /// The column in an open row group.
    pub fn close(mut self) -> Result<(Parts, ColumnCloseResult)> {
        if self.page.rows > 0 {
            self.end_page()?;
        }
        let count = |bytes: usize| i64::try_from(bytes).map_err(too_large);
        let pages = PageEncodingStats {
            page_type: PageType::DATA_PAGE,
            encoding: Encoding::PLAIN,
            count: i32::try_from(self.pages.len()).map_err(too_large)?,
        };
        let metadata = ColumnChunkMetaData::builder(Arc::clone(&self.column.leaf))
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(self.column.level)?))
            .set_encodings_mask(EncodingMask::new_from_encodings([Encoding::PLAIN, Encoding::RLE].iter()))
            .set_page_encoding_stats(vec![pages])
            .set_total_compressed_size(count(self.compressed_bytes)?)
            .set_total_uncompressed_size(count(self.uncompressed_bytes)?)
            .set_num_values(count(self.rows)?)
            .set_data_page_offset(0)
            .build()?;
        let close = ColumnCloseResult {
            bytes_written: self.compressed_bytes as u64,
            rows_written: self.rows as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(self.index),
        };
        Ok((Parts(self.pages), close))
    }

    fn end_page(&mut self) -> Result<()> {
        let size = |bytes: usize| i32::try_from(bytes).map_err(too_large);
        let is_optional = self.column.leaf.max_def_level() > 0;
        let begin = self.page.begin(is_optional)?;
        let page = &self.page.bytes[begin..];
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(page.len()));
        self.compressor.compress_to_buffer(page, &mut self.compressed)?;
        let header = header(size(page.len())?, size(self.compressed.len())?, size(self.page.rows)?);
        let bytes = [header.as_slice(), &self.compressed].concat();
        self.uncompressed_bytes += header.len() + page.len();
        self.index.page_locations.push(PageLocation {
            offset: i64::try_from(self.compressed_bytes).unwrap_or(i64::MAX),
            compressed_page_size: size(bytes.len())?,
            first_row_index: i64::try_from(self.rows).unwrap_or(i64::MAX),
        });
        let value_bytes = i64::try_from(self.page.value_bytes).unwrap_or(i64::MAX);
        self.index.unencoded_byte_array_data_bytes.get_or_insert_default().push(value_bytes);
        self.compressed_bytes += bytes.len();
        self.rows += self.page.rows;
        self.pages.push(bytes.into());
        self.page.clear();
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
            varint(*rows as u64 * 2, &mut runs);
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

/// The header of a data page of version 1 with plain values, in Thrift's compact protocol
/// (<https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>, `PageHeader`).
fn header(uncompressed_bytes: i32, compressed_bytes: i32, rows: i32) -> Vec<u8> {
    /// A field with the number after the last one, and a 32-bit integer in it.
    const NEXT_INTEGER: u8 = 0x15;
    /// A field with the second number after the last one, and a structure in it.
    const STRUCTURE_AFTER_NEXT: u8 = 0x2C;
    const END: u8 = 0;
    const DATA_PAGE: i32 = 0;
    const PLAIN: i32 = 0;
    const RLE: i32 = 3;
    let mut header = Vec::with_capacity(32);
    let integers = |header: &mut Vec<u8>, integers: &[i32]| {
        for integer in integers {
            header.push(NEXT_INTEGER);
            // Zigzag; sizes and numbers of encodings are never negative.
            varint(u64::from(integer.unsigned_abs()) * 2, header);
        }
    };
    integers(&mut header, &[DATA_PAGE, uncompressed_bytes, compressed_bytes]);
    header.push(STRUCTURE_AFTER_NEXT);
    integers(&mut header, &[rows, PLAIN, RLE, RLE]);
    header.extend([END, END]);
    header
}

fn too_large(error: TryFromIntError) -> ParquetError {
    ParquetError::External(Box::new(error))
}

fn varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

/// The bytes of a column, page by page.
pub struct Parts(Vec<Bytes>);

impl Length for Parts {
    fn len(&self) -> u64 {
        self.0.iter().map(|part| part.len() as u64).sum()
    }
}

impl ChunkReader for Parts {
    type T = PartsReader;

    /// From the beginning only, which is all that is asked for.
    fn get_read(&self, start: u64) -> Result<PartsReader> {
        if start == 0 { Ok(PartsReader(self.0.iter().cloned().collect())) } else { Err(not_from_the_beginning()) }
    }

    fn get_bytes(&self, _: u64, _: usize) -> Result<Bytes> {
        Err(not_from_the_beginning())
    }
}

fn not_from_the_beginning() -> ParquetError {
    ParquetError::General("a column is read from its beginning".to_owned())
}

pub struct PartsReader(VecDeque<Bytes>);

impl Read for PartsReader {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        while self.0.front().is_some_and(Bytes::is_empty) {
            self.0.pop_front();
        }
        let Some(part) = self.0.front_mut() else { return Ok(0) };
        let count = part.len().min(to.len());
        part.copy_to_slice(&mut to[..count]);
        Ok(count)
    }
}
