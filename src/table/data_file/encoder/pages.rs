//! Pages of a leaf, in memory until its row group ends, and the chunk that they become.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use parquet::{
    basic::{EncodingMask, Type},
    column::{
        page_store::{PageKey, PageStore, PageStoreArgs, PageStoreFactory},
        writer::ColumnCloseResult,
    },
    errors::{ParquetError, Result},
    file::{
        metadata::{ColumnChunkMetaData, PageEncodingStats},
        page_index::offset_index::{OffsetIndexMetaData, PageLocation},
    },
    schema::types::ColumnDescPtr,
};

/// The pages of one writer: header and body of each, in the order in which they were written.
#[derive(Clone, Debug, Default)]
pub struct Pages(Arc<Mutex<Vec<Bytes>>>);

impl Pages {
    fn lock(&self) -> MutexGuard<'_, Vec<Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take_all(&self) -> Vec<Bytes> {
        std::mem::take(&mut *self.lock())
    }
}

impl PageStore for Pages {
    fn put(&mut self, value: Bytes) -> Result<PageKey> {
        let mut pages = self.lock();
        pages.push(value);
        Ok(PageKey::new(pages.len() as u64 - 1))
    }

    fn take(&mut self, key: PageKey) -> Result<Bytes> {
        let at = usize::try_from(key.get()).ok();
        let page = at.and_then(|at| self.lock().get_mut(at).map(std::mem::take));
        page.ok_or_else(|| ParquetError::General("a page is not in memory".into()))
    }
}

/// Makes the pages of each writer, and keeps a handle to them, in the order of the writers.
#[derive(Debug, Default)]
pub struct AllPages(Mutex<Vec<Pages>>);

impl AllPages {
    pub fn take(&self) -> Vec<Pages> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl PageStoreFactory for AllPages {
    fn create(&self, _: &PageStoreArgs<'_>) -> Result<Box<dyn PageStore>> {
        let pages = Pages::default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(pages.clone());
        Ok(Box::new(pages))
    }
}

/// Pages without values. They are those of any leaf with the same levels, whatever its type: such a page has no bytes
/// behind its levels.
pub struct NullPages {
    pages: Vec<Bytes>,
    close: ColumnCloseResult,
}

impl NullPages {
    pub fn new(close: ColumnCloseResult, pages: Vec<Bytes>) -> Self {
        Self { pages, close }
    }

    pub fn size_bytes(&self) -> usize {
        self.pages.iter().map(Bytes::len).sum()
    }
}

/// The chunk of a leaf: pages without values, and then those of its own writer, if it has one.
pub fn chunk(
    leaf: &ColumnDescPtr,
    nulls: &[Arc<NullPages>],
    own: Option<(ColumnCloseResult, Vec<Bytes>)>,
) -> Result<(Bytes, ColumnCloseResult)> {
    let (close, mut pages) = own.unzip();
    let mut pages = pages.take().unwrap_or_default();
    let parts: Vec<_> = nulls.iter().map(|nulls| &nulls.close).chain(&close).collect();
    let has_dictionary = close.as_ref().is_some_and(|close| close.metadata.dictionary_page_offset().is_some());
    // A writer makes its dictionary at the end, and readers expect it at the beginning.
    let dictionary = if has_dictionary { pages.split_off(pages.len().saturating_sub(2)) } else { Vec::new() };
    let dictionary_bytes: usize = dictionary.iter().map(Bytes::len).sum();
    let in_order = dictionary.iter().chain(nulls.iter().flat_map(|nulls| &nulls.pages)).chain(&pages);
    let bytes = in_order.cloned().collect::<Vec<_>>().concat();
    let dictionary_bytes = i64::try_from(dictionary_bytes).unwrap_or(i64::MAX);
    let close = ColumnCloseResult {
        bytes_written: parts.iter().map(|part| part.bytes_written).sum(),
        rows_written: parts.iter().map(|part| part.rows_written).sum(),
        metadata: metadata(leaf, &parts, has_dictionary.then_some(dictionary_bytes))?,
        bloom_filter: None,
        column_index: None,
        offset_index: offset_index(leaf, &parts, dictionary_bytes),
    };
    Ok((bytes.into(), close))
}

fn metadata(
    leaf: &ColumnDescPtr,
    parts: &[&ColumnCloseResult],
    dictionary: Option<i64>,
) -> Result<ColumnChunkMetaData> {
    let sum = |of: fn(&ColumnChunkMetaData) -> i64| parts.iter().map(|part| of(&part.metadata)).sum();
    let encodings: Vec<_> = parts.iter().flat_map(|part| part.metadata.encodings()).collect();
    let mut pages: Vec<PageEncodingStats> = Vec::new();
    for of in parts.iter().filter_map(|part| part.metadata.page_encoding_stats()).flatten() {
        match pages.iter_mut().find(|known| known.page_type == of.page_type && known.encoding == of.encoding) {
            Some(known) => known.count += of.count,
            None => pages.push(of.clone()),
        }
    }
    let mut builder = ColumnChunkMetaData::builder(Arc::clone(leaf))
        .set_encodings_mask(EncodingMask::new_from_encodings(encodings.iter()))
        .set_page_encoding_stats(pages)
        .set_total_compressed_size(sum(ColumnChunkMetaData::compressed_size))
        .set_total_uncompressed_size(sum(ColumnChunkMetaData::uncompressed_size))
        .set_num_values(sum(ColumnChunkMetaData::num_values))
        .set_data_page_offset(dictionary.unwrap_or_default())
        .set_dictionary_page_offset(dictionary.map(|_| 0));
    if let Some(part) = parts.first() {
        builder = builder.set_compression_codec(part.metadata.compression_codec());
    }
    builder.build()
}

fn offset_index(leaf: &ColumnDescPtr, parts: &[&ColumnCloseResult], begin: i64) -> Option<OffsetIndexMetaData> {
    let (mut page_locations, mut value_bytes) = (Vec::new(), Vec::new());
    let (mut offset, mut rows) = (begin, 0);
    for part in parts {
        let of_part = part.offset_index.as_ref()?;
        for page in &of_part.page_locations {
            let first_row_index = rows + page.first_row_index;
            page_locations.push(PageLocation { offset, first_row_index, ..page.clone() });
            offset += i64::from(page.compressed_page_size);
        }
        let pages = of_part.page_locations.len();
        value_bytes.extend(of_part.unencoded_byte_array_data_bytes.clone().unwrap_or_else(|| vec![0; pages]));
        rows += i64::try_from(part.rows_written).ok()?;
    }
    let is_text = leaf.physical_type() == Type::BYTE_ARRAY;
    Some(OffsetIndexMetaData { page_locations, unencoded_byte_array_data_bytes: is_text.then_some(value_bytes) })
}
