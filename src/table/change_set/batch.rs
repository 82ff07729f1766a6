//! A spooled batch: some received rows as bytes, and back.
//!
//! Columns that are null in all rows of the batch are left out, and so are the fields of a column without any value,
//! which are most of the hundreds that a resource type may have. The schema is not written, because it would often be
//! larger than the rows; the reader has it, and one bit for each field says whether it is there.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::RecordBatch,
    buffer::{Buffer, MutableBuffer},
    datatypes::{Schema, SchemaRef},
    error::ArrowError,
    ipc::{
        reader::RecordBatchDecoder,
        root_as_message,
        writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions},
    },
};
use lz4_flex::block::{compress_prepend_size, decompress_into, uncompressed_size};

use crate::table::data_file::fill::{fields_of, fit, narrow, with_fields};

pub struct SpooledBatch {
    /// Indices of the columns that are not null in all rows, ascending.
    pub columns: Vec<usize>,
    /// One after the other: how many bytes the bits take, the bits, the length of the Arrow IPC message, the message, and
    /// its buffers, all compressed together by LZ4.
    pub block: Vec<u8>,
}

impl SpooledBatch {
    /// The columns of `rows` are some of `schema`, perhaps without some of their fields; what they lack is null.
    pub fn encode(schema: &SchemaRef, rows: &RecordBatch) -> Result<Self, ArrowError> {
        let rows = narrow(rows)?;
        let bits = fields_of(schema.fields(), rows.schema().fields())?;
        // In the order of `schema`.
        let ordered = with_fields(schema.fields(), &mut bits.iter().copied()).ok_or_else(cut)?;
        let rows = fit(&rows, &Arc::new(Schema::new(ordered)))?;
        let is_there = |(index, name): (usize, &String)| rows.column_by_name(name).map(|_| index);
        let columns = schema.fields().iter().map(|field| field.name()).enumerate().filter_map(is_there).collect();
        let (_, message) = IpcDataGenerator::default().encode(
            &rows,
            &mut DictionaryTracker::new(false),
            &IpcWriteOptions::default(),
            &mut IpcWriteContext::default(),
        )?;
        // Lines of JSON shrink to a fifth, in less time than their decoding took. All buffers at once: they are hundreds,
        // and most of them small.
        if i32::try_from(message.arrow_data.len()).is_err() {
            return Err(ArrowError::OffsetOverflowError(message.arrow_data.len()));
        }
        let buffers = compress_prepend_size(&message.arrow_data);
        let bits: Vec<u8> = bits.chunks(8).map(byte).collect();
        let mut block = Vec::with_capacity(message.ipc_message.len() + buffers.len() + 1024);
        block.extend((bits.len() as u64).to_le_bytes());
        block.extend(bits);
        block.extend((message.ipc_message.len() as u64).to_le_bytes());
        block.extend(message.ipc_message);
        block.extend(buffers);
        Ok(Self { columns, block })
    }

    /// The rows of a block, with the columns and fields that it has, in the order of `schema`.
    pub fn decode(schema: &SchemaRef, block: &[u8]) -> Result<RecordBatch, ArrowError> {
        let mut rest = block;
        let count = number(&mut rest).ok_or_else(cut)?;
        let (bits, after) = rest.split_at_checked(count).ok_or_else(cut)?;
        rest = after;
        let mut bits = bits.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1));
        let fields = with_fields(schema.fields(), &mut bits).ok_or_else(cut)?;
        let bytes = number(&mut rest).ok_or_else(cut)?;
        let (message, buffers) = rest.split_at_checked(bytes).ok_or_else(cut)?;
        let message = root_as_message(message).map_err(|error| ArrowError::IpcError(error.to_string()))?;
        let batch = message.header_as_record_batch().ok_or_else(cut)?;
        let schema = Arc::new(Schema::new(fields));
        let body = Buffer::from(decompressed(buffers)?);
        RecordBatchDecoder::try_new(&body, batch, schema, &HashMap::new(), &message.version())?.read_record_batch()
    }
}

fn cut() -> ArrowError {
    ArrowError::IpcError("a batch of received rows ends too early".to_owned())
}

/// Into memory that is aligned as arrow wants it, so that nothing is copied again.
fn decompressed(buffers: &[u8]) -> Result<MutableBuffer, ArrowError> {
    let (bytes, compressed) = uncompressed_size(buffers).map_err(|error| ArrowError::IpcError(error.to_string()))?;
    let mut body = MutableBuffer::from_len_zeroed(bytes);
    let length = decompress_into(compressed, &mut body).map_err(|error| ArrowError::IpcError(error.to_string()))?;
    if length == bytes { Ok(body) } else { Err(cut()) }
}

/// The first bit is the lowest.
fn byte(bits: &[bool]) -> u8 {
    bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit))
}

fn number(bytes: &mut &[u8]) -> Option<usize> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    usize::try_from(u64::from_le_bytes(*head)).ok()
}
