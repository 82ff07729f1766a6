//! Pages of a leaf, in memory until its row group ends, and the column chunk that they become.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use parquet::{
    basic::{EncodingMask, PageType, Type},
    column::{
        page_store::{PageKey, PageStore, PageStoreArgs, PageStoreFactory},
        writer::ColumnCloseResult,
    },
    errors::{ParquetError, Result},
    file::{
        metadata::{ColumnChunkMetaData, ColumnChunkMetaDataBuilder, PageEncodingStats},
        page_index::offset_index::{OffsetIndexMetaData, PageLocation},
    },
    schema::types::ColumnDescPtr,
};

use super::page::{ChunkPages, Compressor, Header, Page, codec};

/// The pages of one writer, in the order in which it made them.
#[derive(Clone, Debug)]
pub struct Pages(Arc<Mutex<Made>>);

#[derive(Debug)]
struct Made {
    compressor: Arc<Compressor>,
    /// Comes before its page.
    header: Option<Bytes>,
    pages: Vec<Page>,
    /// The size of the pages.
    bytes: usize,
    /// The same before they were compressed, as their writer counts them.
    uncompressed_bytes: usize,
    /// How often the writer has handed over something.
    count: u64,
}

impl Pages {
    pub fn take_all(&self) -> Vec<Page> {
        std::mem::take(&mut self.lock().pages)
    }

    /// The size of the pages, and the same before they were compressed, as their writer counts them.
    pub fn bytes(&self) -> (usize, usize) {
        let made = self.lock();
        (made.bytes, made.uncompressed_bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Made> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PageStore for Pages {
    fn put(&mut self, value: Bytes) -> Result<PageKey> {
        let mut made = self.lock();
        match made.header.take() {
            None => made.header = Some(value),
            Some(header) => {
                made.uncompressed_bytes += header.len() + value.len();
                let page = made.compressor.page(&Header::parse(header, &value)?, &value)?;
                made.bytes += page.len();
                made.pages.push(page);
            }
        }
        made.count += 1;
        Ok(PageKey::new(made.count - 1))
    }

    fn take(&mut self, _: PageKey) -> Result<Bytes> {
        Err(ParquetError::General("pages are taken all at once".to_owned()))
    }
}

/// Makes the pages of each writer, and keeps a handle to them, in the order of the writers.
#[derive(Debug)]
pub struct AllPages {
    compressor: Arc<Compressor>,
    of_writers: Mutex<Vec<Pages>>,
}

impl AllPages {
    pub fn new(compressor: &Arc<Compressor>) -> Self {
        Self { compressor: Arc::clone(compressor), of_writers: Mutex::default() }
    }

    pub fn take(&self) -> Vec<Pages> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Pages>> {
        self.of_writers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PageStoreFactory for AllPages {
    fn create(&self, _: &PageStoreArgs<'_>) -> Result<Box<dyn PageStore>> {
        let compressor = Arc::clone(&self.compressor);
        let made = Made { compressor, header: None, pages: Vec::new(), uncompressed_bytes: 0, bytes: 0, count: 0 };
        let pages = Pages(Arc::new(Mutex::new(made)));
        self.lock().push(pages.clone());
        Ok(Box::new(pages))
    }
}

/// What a writer has written.
pub struct WrittenLeaf {
    pub close: ColumnCloseResult,
    pub pages: Vec<Page>,
}

impl WrittenLeaf {
    pub fn size_bytes(&self) -> usize {
        self.pages.iter().map(Page::len).sum()
    }
}

/// The column chunk of a leaf: pages without values, and then those of its own writer, if it has one. Pages without
/// values are those of any leaf with the same levels, whatever its type: such a page has no bytes behind its levels.
pub fn chunk(
    leaf: &ColumnDescPtr,
    nulls: &[Arc<WrittenLeaf>],
    own: Option<&WrittenLeaf>,
) -> Result<(ChunkPages, ColumnCloseResult)> {
    let written: Vec<_> = nulls.iter().map(AsRef::as_ref).chain(own).collect();
    let pages = || written.iter().flat_map(|leaf| &leaf.pages);
    // A writer hands over its dictionary after pages that use it; in a file it comes first.
    let dictionary = || pages().filter(|page| page.is_dictionary);
    let in_order = || dictionary().chain(pages().filter(|page| !page.is_dictionary));
    let count = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
    let dictionary_bytes = count(dictionary().map(Page::len).sum());
    let metadata = match (nulls, own) {
        ([], Some(own)) => own.close.metadata.clone().into_builder(),
        _ => metadata(leaf, &written),
    };
    let metadata = metadata
        .set_compression(codec())
        .set_total_compressed_size(count(in_order().map(Page::len).sum()))
        .set_total_uncompressed_size(count(in_order().map(Page::uncompressed_len).sum()))
        .set_data_page_offset(dictionary_bytes)
        .set_dictionary_page_offset((dictionary_bytes > 0).then_some(0))
        .build()?;
    let alone = own.filter(|_| nulls.is_empty());
    let close = ColumnCloseResult {
        bytes_written: metadata.compressed_size().unsigned_abs(),
        rows_written: written.iter().map(|leaf| leaf.close.rows_written).sum(),
        metadata,
        bloom_filter: alone.and_then(|own| own.close.bloom_filter.clone()),
        column_index: alone.and_then(|own| own.close.column_index.clone()),
        offset_index: offset_index(leaf, &written, dictionary_bytes),
    };
    Ok((ChunkPages::new(in_order()), close))
}

fn metadata(leaf: &ColumnDescPtr, written: &[&WrittenLeaf]) -> ColumnChunkMetaDataBuilder {
    let of_written = || written.iter().map(|leaf| &leaf.close.metadata);
    let encodings: Vec<_> = of_written().flat_map(ColumnChunkMetaData::encodings).collect();
    let mut pages: Vec<PageEncodingStats> = Vec::new();
    for of in of_written().filter_map(ColumnChunkMetaData::page_encoding_stats).flatten() {
        match pages.iter_mut().find(|known| known.page_type == of.page_type && known.encoding == of.encoding) {
            Some(known) => known.count += of.count,
            None => pages.push(of.clone()),
        }
    }
    // As parquet does it.
    pages.sort_by_key(|of| of.page_type != PageType::DICTIONARY_PAGE);
    ColumnChunkMetaData::builder(Arc::clone(leaf))
        .set_encodings_mask(EncodingMask::new_from_encodings(encodings.iter()))
        .set_page_encoding_stats(pages)
        .set_num_values(of_written().map(ColumnChunkMetaData::num_values).sum())
}

fn offset_index(leaf: &ColumnDescPtr, written: &[&WrittenLeaf], begin: i64) -> Option<OffsetIndexMetaData> {
    let (mut page_locations, mut value_bytes) = (Vec::new(), Vec::new());
    let (mut offset, mut rows) = (begin, 0);
    for of in written {
        let index = of.close.offset_index.as_ref()?;
        let data_pages = of.pages.iter().filter(|page| !page.is_dictionary);
        for (location, page) in index.page_locations.iter().zip(data_pages) {
            let compressed_page_size = i32::try_from(page.len()).ok()?;
            page_locations.push(PageLocation {
                offset,
                compressed_page_size,
                first_row_index: rows + location.first_row_index,
            });
            offset += i64::from(compressed_page_size);
        }
        let pages = index.page_locations.len();
        value_bytes.extend(index.unencoded_byte_array_data_bytes.clone().unwrap_or_else(|| vec![0; pages]));
        rows += i64::try_from(of.close.rows_written).ok()?;
    }
    let is_text = leaf.physical_type() == Type::BYTE_ARRAY;
    Some(OffsetIndexMetaData { page_locations, unencoded_byte_array_data_bytes: is_text.then_some(value_bytes) })
}
