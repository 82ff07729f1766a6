//! A spooled batch: some received rows as bytes, and back.
//!
//! Columns that are null in all rows of the batch are left out, which is most of the hundreds that a resource type may
//! have. The schema is not written, because it would often be larger than the rows; the reader has it.

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{Array as _, RecordBatch},
    buffer::Buffer,
    datatypes::{FieldRef, SchemaRef},
    error::ArrowError,
    ipc::{
        CompressionType,
        reader::RecordBatchDecoder,
        root_as_message,
        writer::{DictionaryTracker, IpcDataGenerator, IpcWriteContext, IpcWriteOptions},
    },
};
use bytes::Bytes;

pub struct SpooledBatch {
    /// Indices of the columns that are not null in all rows, ascending.
    pub columns: Vec<usize>,
    /// How many columns there are, their indices, the length of the Arrow IPC message, the message, its buffers.
    pub block: Vec<u8>,
}

/// Buffers of a message are aligned to this, so that arrow need not copy those that are not compressed.
const ALIGNMENT: usize = 64;

impl SpooledBatch {
    /// The columns of `rows` are some of `schema`; those that it lacks are null.
    pub fn encode(schema: &SchemaRef, rows: &RecordBatch) -> Result<Self, ArrowError> {
        let given = rows.schema();
        let filled = |(index, field): (usize, &FieldRef)| {
            let (column, found) = given.column_with_name(field.name())?;
            let fits = found.data_type() == field.data_type();
            (rows.column(column).null_count() < rows.num_rows()).then_some((index, column, fits))
        };
        let filled: Vec<_> = schema.fields().iter().enumerate().filter_map(filled).collect();
        if filled.iter().any(|(_, _, fits)| !fits) {
            return Err(ArrowError::SchemaError("the rows are of another schema than the change set".to_owned()));
        }
        let columns: Vec<_> = filled.iter().map(|(index, ..)| *index).collect();
        let projection: Vec<_> = filled.iter().map(|(_, column, _)| *column).collect();
        // Lines of JSON shrink to a fifth, in less time than their decoding took.
        let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
        let (_, message) = IpcDataGenerator::default().encode(
            &rows.project(&projection)?,
            &mut DictionaryTracker::new(false),
            &options,
            &mut IpcWriteContext::default(),
        )?;
        let mut block = Vec::with_capacity(message.ipc_message.len() + message.arrow_data.len() + 1024);
        for number in [columns.len()].iter().chain(&columns).chain([&message.ipc_message.len()]) {
            block.extend((*number as u64).to_le_bytes());
        }
        block.extend(message.ipc_message);
        block.resize(block.len().next_multiple_of(ALIGNMENT), 0);
        block.extend(message.arrow_data);
        Ok(Self { columns, block })
    }

    /// The rows of a block, with the columns that it has, in the order of `schema`.
    pub fn decode(schema: &SchemaRef, block: Bytes) -> Result<RecordBatch, ArrowError> {
        let block = Buffer::from(block);
        let cut = || ArrowError::IpcError("a batch of received rows ends too early".to_owned());
        let mut rest = block.as_slice();
        let count = number(&mut rest).ok_or_else(cut)?;
        let columns: Vec<_> = (0..count).map(|_| number(&mut rest)).collect::<Option<_>>().ok_or_else(cut)?;
        let bytes = number(&mut rest).ok_or_else(cut)?;
        let message = rest.get(..bytes).ok_or_else(cut)?;
        let buffers = (block.len() - rest.len() + bytes).next_multiple_of(ALIGNMENT);
        let message = root_as_message(message).map_err(|error| ArrowError::IpcError(error.to_string()))?;
        let batch = message.header_as_record_batch().ok_or_else(cut)?;
        let schema = Arc::new(schema.project(&columns)?);
        let body = block.slice(buffers.min(block.len()));
        RecordBatchDecoder::try_new(&body, batch, schema, &HashMap::new(), &message.version())?.read_record_batch()
    }
}

fn number(bytes: &mut &[u8]) -> Option<usize> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    usize::try_from(u64::from_le_bytes(*head)).ok()
}
