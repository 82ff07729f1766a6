//! A page as the file has it: its header, and its body, which is compressed by zstd.

use std::{
    collections::VecDeque,
    fmt,
    io::Read,
    num::TryFromIntError,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::{Buf as _, Bytes};
use parquet::{
    basic::{Compression, ZstdLevel},
    errors::{ParquetError, Result},
    file::reader::{ChunkReader, Length},
};

#[derive(Debug)]
pub struct Page {
    header: Bytes,
    body: Bytes,
    uncompressed_body_bytes: usize,
    pub is_dictionary: bool,
}

impl Page {
    pub fn len(&self) -> usize {
        self.header.len() + self.body.len()
    }

    pub fn uncompressed_len(&self) -> usize {
        self.header.len() + self.uncompressed_body_bytes
    }
}

/// What all pages of data files are compressed with.
pub fn codec() -> Compression {
    Compression::ZSTD(ZstdLevel::default())
}

/// Compresses the pages of all leaves of a file: a compressor takes more than half a MiB, and a file has hundreds of
/// leaves.
pub struct Compressor(Mutex<Zstd>);

/// A page is larger only if a single value is. The memory of such a page is given back.
const MAX_KEPT_BYTES: usize = 2 * 1024 * 1024;

struct Zstd {
    compressor: zstd::bulk::Compressor<'static>,
    compressed: Vec<u8>,
}

impl Compressor {
    pub fn new() -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(ZstdLevel::default().compression_level())?;
        Ok(Self(Mutex::new(Zstd { compressor, compressed: Vec::new() })))
    }

    pub fn page(&self, header: &Header, body: &[u8]) -> Result<Page> {
        let mut zstd = self.lock();
        let Zstd { compressor, compressed } = &mut *zstd;
        compressed.reserve(zstd::zstd_safe::compress_bound(body.len()));
        compressor.compress_to_buffer(body, compressed)?;
        let page = Page {
            header: header.bytes(body.len(), compressed.len())?,
            body: Bytes::copy_from_slice(compressed),
            uncompressed_body_bytes: body.len(),
            is_dictionary: header.page_type == DICTIONARY_PAGE,
        };
        compressed.clear();
        compressed.shrink_to(MAX_KEPT_BYTES);
        Ok(page)
    }

    fn lock(&self) -> MutexGuard<'_, Zstd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Compressor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Compressor")
    }
}

/// A header without the two sizes of its page, in Thrift's compact protocol
/// (<https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>, `PageHeader`).
pub struct Header {
    page_type: u64,
    /// What follows the sizes.
    rest: Vec<u8>,
}

const DATA_PAGE: u64 = 0;
const DICTIONARY_PAGE: u64 = 2;

/// A field whose number is one more than that of the field before, with a 32-bit integer.
const NEXT_INTEGER: u8 = 0x15;
/// After the two sizes, the field with the header of a data page of version 1.
const DATA_PAGE_HEADER: u8 = 0x2C;
/// The same of a dictionary.
const DICTIONARY_PAGE_HEADER: u8 = 0x4C;

impl Header {
    /// That of a data page of version 1 with plain values.
    pub fn of_plain_values(rows: usize) -> Result<Self> {
        const END: u8 = 0;
        const PLAIN: u64 = 0;
        const RLE: u64 = 3;
        let mut rest = vec![DATA_PAGE_HEADER];
        for integer in [size(rows)?, PLAIN, RLE, RLE] {
            push_integer(integer, &mut rest);
        }
        rest.extend([END, END]);
        Ok(Self { page_type: DATA_PAGE, rest })
    }

    /// That of a page that parquet's writer made, and did not compress. A checksum, or a page of version 2, would not
    /// survive the compression.
    pub fn parse(mut bytes: Bytes, body: &[u8]) -> Result<Self> {
        let mut next_integer = || {
            let begins = bytes.try_get_u8().is_ok_and(|field| field == NEXT_INTEGER);
            begins.then(|| varint(&mut bytes)).flatten().map(|zigzag| zigzag / 2)
        };
        let (page_type, sizes) = (next_integer(), [next_integer(), next_integer()]);
        let next_field = match page_type {
            Some(DATA_PAGE) => Some(DATA_PAGE_HEADER),
            Some(DICTIONARY_PAGE) => Some(DICTIONARY_PAGE_HEADER),
            _ => None,
        };
        let body_bytes = size(body.len())?;
        match page_type {
            Some(page_type) if bytes.first().copied() == next_field && sizes == [Some(body_bytes); 2] => {
                Ok(Self { page_type, rest: bytes.into() })
            }
            _ => Err(ParquetError::General("the header of a page is not as expected".to_owned())),
        }
    }

    fn bytes(&self, uncompressed: usize, compressed: usize) -> Result<Bytes> {
        let mut header = Vec::with_capacity(18 + self.rest.len());
        for integer in [self.page_type, size(uncompressed)?, size(compressed)?] {
            push_integer(integer, &mut header);
        }
        header.extend_from_slice(&self.rest);
        Ok(header.into())
    }
}

/// Sizes and counts in Parquet are signed 32-bit integers.
fn size(of: usize) -> Result<u64> {
    i32::try_from(of).map(|size| u64::from(size.unsigned_abs())).map_err(too_large)
}

pub fn too_large(error: TryFromIntError) -> ParquetError {
    ParquetError::External(Box::new(error))
}

/// The next field, a 32-bit integer that is not negative; zigzag doubles it.
fn push_integer(integer: u64, bytes: &mut Vec<u8>) {
    bytes.push(NEXT_INTEGER);
    push_varint(integer * 2, bytes);
}

pub fn push_varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
}

fn varint(bytes: &mut Bytes) -> Option<u64> {
    let mut number = 0;
    for shift in (0..35).step_by(7) {
        let byte = bytes.try_get_u8().ok()?;
        number |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// The pages of a column chunk, in the order of the file. They can be read once, and each is freed when it has been
/// read.
pub struct ChunkPages(Mutex<VecDeque<Bytes>>);

impl ChunkPages {
    pub fn new<'pages>(pages: impl IntoIterator<Item = &'pages Page>) -> Self {
        Self(Mutex::new(pages.into_iter().flat_map(|page| [page.header.clone(), page.body.clone()]).collect()))
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Length for ChunkPages {
    fn len(&self) -> u64 {
        self.lock().iter().map(|bytes| bytes.len() as u64).sum()
    }
}

impl ChunkReader for ChunkPages {
    type T = ChunkPagesReader;

    fn get_read(&self, start: u64) -> Result<ChunkPagesReader> {
        if start == 0 { Ok(ChunkPagesReader(std::mem::take(&mut *self.lock()))) } else { Err(not_from_the_beginning()) }
    }

    fn get_bytes(&self, _: u64, _: usize) -> Result<Bytes> {
        Err(not_from_the_beginning())
    }
}

fn not_from_the_beginning() -> ParquetError {
    ParquetError::General("a chunk is read from its beginning".to_owned())
}

pub struct ChunkPagesReader(VecDeque<Bytes>);

impl Read for ChunkPagesReader {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        while self.0.front().is_some_and(Bytes::is_empty) {
            self.0.pop_front();
        }
        let Some(bytes) = self.0.front_mut() else { return Ok(0) };
        let count = bytes.len().min(to.len());
        bytes.copy_to_slice(&mut to[..count]);
        Ok(count)
    }
}
