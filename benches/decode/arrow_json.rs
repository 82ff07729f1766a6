//! arrow-json: decodes the same lines and throws the batches away.
//!
//! Its schema is that of the table without what JSON does not have: the columns of ours at the top level, `_extension`,
//! and inside structs `_fid`, `…_scale`, `…_versioned` and the canonical quantities. Extensions are passed over, no
//! text of a date is checked, nothing is hashed, and one bad value would fail a whole batch.

use std::{path::Path, sync::Arc};

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema};
use arrow_json::reader::{Decoder, ReaderBuilder};
use bytes::{Buf as _, Bytes};
use fhir_sync::{
    fhir::ResourceType,
    resource::{Layout, Options, Shape},
};

use super::in_parts;
use crate::child::Work;

/// Input and threads.
pub fn run(arguments: &[String]) -> anyhow::Result<Work> {
    let [input, threads] = arguments else { anyhow::bail!("two arguments") };
    let shape = Shape::of(ResourceType::OBSERVATION, Options { layout: Layout::Pathling, raw_json: false });
    let (table, leading) = (shape.schema(), shape.leading());
    let own = ["contained", "_primitive_ext", "_extension"];
    let fields = table.fields().iter().enumerate();
    let fields = fields.filter(|(index, field)| {
        field.name() == "id"
            || (*index >= leading && !field.name().starts_with("_sync") && !own.contains(&field.name().as_str()))
    });
    let fields: Fields = fields.map(|(_, field)| Arc::clone(field)).collect();
    let schema = Arc::new(Schema::new(in_json(&fields)));
    // Rows of a batch: those of about as many bytes as our batches have.
    let begin = |_| Ok((ReaderBuilder::new(Arc::clone(&schema)).with_batch_size(8192).build_decoder()?, 0));
    let flush = |(decoder, rows): &mut (Decoder, u64)| -> anyhow::Result<()> {
        *rows += decoder.flush()?.map_or(0, |batch| batch.num_rows() as u64);
        Ok(())
    };
    let piece = |state: &mut (Decoder, u64), mut piece: Bytes| loop {
        let count = state.0.decode(&piece)?;
        piece.advance(count);
        if piece.is_empty() {
            return Ok(());
        }
        flush(state)?;
    };
    let end = |mut state: (Decoder, u64)| {
        flush(&mut state)?;
        Ok(Work { bytes_in: 0, bytes_out: 0, rows: state.1 })
    };
    in_parts(Path::new(input), threads.parse()?, begin, piece, end)
}

/// Without the fields that no JSON has.
fn in_json(fields: &Fields) -> Fields {
    let names: Vec<_> = fields.iter().map(|field| field.name().as_str()).collect();
    let made = |name: &str| {
        let of = name.strip_suffix("_scale").or_else(|| name.strip_suffix("_versioned"));
        name.starts_with('_') || of.is_some_and(|of| names.contains(&of))
    };
    fields.iter().filter(|field| !made(field.name())).map(field_in_json).collect()
}

fn field_in_json(field: &FieldRef) -> FieldRef {
    let of = match field.data_type() {
        DataType::Struct(fields) => DataType::Struct(in_json(fields)),
        DataType::List(item) => DataType::List(field_in_json(item)),
        other => other.clone(),
    };
    Arc::new(Field::new(field.name(), of, true))
}
