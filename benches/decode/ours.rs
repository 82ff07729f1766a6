//! Ours: lines, decoder, Parquet, by the writer of a table's data files.
//!
//! Like these, a file has no columns that none of its rows fills. `all` writes them too, `none` only decodes.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use anyhow::ensure;
use arrow::array::RecordBatch;
use bytes::Bytes;
use fhir_sync::{
    fhir::ResourceType,
    resource::{Decoder, Layout, Line, Lines, MappingPool, Options, Shape},
    sync::MAX_BATCH_BYTES,
    table::{DataFiles, FileTarget},
};
use object_store::local::LocalFileSystem;
use tokio::runtime::{Builder, Runtime};

use super::in_parts;
use crate::child::Work;

/// Input, folder for the output, threads, which columns are written (`filled`, `all` or `none`), resource type, and
/// whether `resource_json` is one of them.
pub fn run(arguments: &[String]) -> anyhow::Result<Work> {
    let [input, output, threads, columns, of, raw_json] = arguments else { anyhow::bail!("six arguments") };
    std::fs::create_dir_all(output)?;
    let of: ResourceType = of.parse()?;
    let shape = Shape::of(of, Options { layout: Layout::Pathling, raw_json: raw_json.parse()? });
    let begin = |number: usize| {
        let decoder = decoder(&shape);
        let files = Files::new(&Path::new(output).join(number.to_string()), &shape, columns)?;
        Ok(Part { decoder, lines: Lines::new(16 << 20), waiting: Vec::new(), waiting_bytes: 0, files, rows: 0 })
    };
    in_parts(Path::new(input), threads.parse()?, begin, Part::push, Part::end)
}

/// The decoder of a run.
pub fn decoder(shape: &Arc<Shape>) -> Decoder {
    Decoder {
        mappings: MappingPool::of(shape),
        shape: Arc::clone(shape),
        source: "bench".into(),
        run_started_micros: 0,
        transaction_time: None,
        job: "bench#1".into(),
    }
}

struct Part {
    decoder: Decoder,
    lines: Lines,
    waiting: Vec<Line>,
    waiting_bytes: usize,
    files: Files,
    rows: u64,
}

impl Part {
    fn push(&mut self, piece: Bytes) -> anyhow::Result<()> {
        self.waiting_bytes += piece.len();
        self.lines.push(piece, &mut self.waiting);
        if self.waiting_bytes >= MAX_BATCH_BYTES { self.decode() } else { Ok(()) }
    }

    fn decode(&mut self) -> anyhow::Result<()> {
        self.waiting_bytes = 0;
        let decoded = self.decoder.decode(&std::mem::take(&mut self.waiting))?;
        ensure!(decoded.bad.is_empty(), "a line is bad: {}", decoded.bad[0].reason);
        self.rows += decoded.rows.num_rows() as u64;
        self.files.write(&decoded.rows)
    }

    fn end(mut self) -> anyhow::Result<Work> {
        let mut lines = std::mem::replace(&mut self.lines, Lines::new(0));
        self.waiting.extend(lines.finish());
        self.decode()?;
        Ok(Work { bytes_in: 0, bytes_out: self.files.close()?, rows: self.rows })
    }
}

struct Files {
    /// `None`: nothing is written.
    files: Option<DataFiles>,
    runtime: Runtime,
}

impl Files {
    fn new(folder: &Path, shape: &Shape, columns: &str) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let store = Arc::new(LocalFileSystem::new_with_prefix(folder)?);
        let schema = shape.schema();
        let filled = if columns == "all" {
            schema.fields().iter().map(|field| field.name().clone()).collect()
        } else {
            BTreeSet::new()
        };
        let target = FileTarget::new(store, schema, None, shape.leading());
        let files = (columns != "none").then(|| DataFiles::new(target, Vec::new(), filled));
        Ok(Self { files, runtime: Builder::new_current_thread().build()? })
    }

    fn write(&mut self, rows: &RecordBatch) -> anyhow::Result<()> {
        if let Some(files) = &mut self.files {
            self.runtime.block_on(files.write(rows))?;
        }
        Ok(())
    }

    /// How many bytes all files have.
    fn close(self) -> anyhow::Result<u64> {
        let Some(files) = self.files else { return Ok(0) };
        let files = self.runtime.block_on(files.finish())?;
        Ok(files.iter().map(|file| file.size.unsigned_abs()).sum())
    }
}
