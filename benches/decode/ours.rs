//! Ours: lines, decoder, Parquet, with the properties of the table writer.
//!
//! Like a table's data files, a file has no columns that none of its rows fills: a batch that brings one more begins
//! another file. `all` writes them too, `none` only decodes.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::ensure;
use arrow::{
    array::{Array as _, RecordBatch},
    datatypes::{Schema, SchemaRef},
};
use bytes::Bytes;
use fhir_sync::{
    fhir::ResourceType,
    resource::{Decoder, Layout, Line, LineGrouping, Lines, Options, Shape},
    sync::DECODE_BYTES,
    table::writer_properties,
};
use parquet::arrow::ArrowWriter;

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
        let files = Files {
            folder: Path::new(output).join(number.to_string()),
            schema: shape.schema(),
            leading: shape.leading(),
            all_columns: columns == "all",
            nothing: columns == "none",
            open: None,
            count: 0,
            bytes: 0,
        };
        std::fs::create_dir_all(&files.folder)?;
        Ok(Part {
            grouping: LineGrouping::of(&shape),
            decoder,
            lines: Lines::new(16 << 20),
            waiting: Vec::new(),
            waiting_bytes: 0,
            files,
            rows: 0,
        })
    };
    in_parts(Path::new(input), threads.parse()?, begin, Part::push, Part::end)
}

/// The decoder of a run.
pub fn decoder(shape: &Arc<Shape>) -> Decoder {
    Decoder {
        shape: Arc::clone(shape),
        source: "bench".into(),
        run_started_micros: 0,
        transaction_time: None,
        job: "bench#1".into(),
    }
}

struct Part {
    grouping: LineGrouping,
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
        if self.waiting_bytes >= DECODE_BYTES { self.decode() } else { Ok(()) }
    }

    fn decode(&mut self) -> anyhow::Result<()> {
        self.waiting_bytes = 0;
        self.grouping.group(&mut self.waiting);
        let decoded = self.decoder.decode(std::mem::take(&mut self.waiting))?;
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
    folder: PathBuf,
    /// Of the table.
    schema: SchemaRef,
    leading: usize,
    all_columns: bool,
    nothing: bool,
    open: Option<Open>,
    count: usize,
    bytes: u64,
}

/// The file that is being written.
struct Open {
    schema: SchemaRef,
    writer: ArrowWriter<File>,
}

impl Files {
    fn write(&mut self, rows: &RecordBatch) -> anyhow::Result<()> {
        if self.nothing {
            return Ok(());
        }
        let mut open = match self.open.take() {
            Some(open) if filled(rows).all(|name| has(&open.schema, name)) => open,
            closed => self.next(closed, rows)?,
        };
        let columns = rows.schema_ref().fields().iter().zip(rows.columns());
        let columns =
            columns.filter(|(field, _)| has(&open.schema, field.name())).map(|(_, column)| Arc::clone(column));
        open.writer.write(&RecordBatch::try_new(Arc::clone(&open.schema), columns.collect())?)?;
        self.open = Some(open);
        Ok(())
    }

    /// A file with the columns of the last one and those of `rows`.
    fn next(&mut self, last: Option<Open>, rows: &RecordBatch) -> anyhow::Result<Open> {
        let before = last.as_ref().map(|open| Arc::clone(&open.schema));
        self.end(last)?;
        let fields = self.schema.fields().iter().enumerate().filter(|(index, field)| {
            let name = field.name();
            let had = before.as_ref().is_some_and(|before| has(before, name));
            self.all_columns || *index < self.leading || had || filled(rows).any(|filled| filled == name)
        });
        let schema = Arc::new(Schema::new(fields.map(|(_, field)| Arc::clone(field)).collect::<Vec<_>>()));
        self.count += 1;
        let file = File::create(self.folder.join(format!("{}.parquet", self.count)))?;
        let properties = writer_properties(&schema, self.leading);
        let writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties))?;
        Ok(Open { schema, writer })
    }

    fn end(&mut self, open: Option<Open>) -> anyhow::Result<()> {
        if let Some(mut open) = open {
            open.writer.finish()?;
            self.bytes += open.writer.bytes_written() as u64;
        }
        Ok(())
    }

    /// How many bytes all files have.
    fn close(mut self) -> anyhow::Result<u64> {
        let open = self.open.take();
        self.end(open)?;
        Ok(self.bytes)
    }
}

/// The columns that some row has a value for.
fn filled(rows: &RecordBatch) -> impl Iterator<Item = &str> {
    let columns = rows.schema_ref().fields().iter().zip(rows.columns());
    columns.filter(|(_, column)| column.null_count() < column.len()).map(|(field, _)| field.name().as_str())
}

fn has(schema: &Schema, name: &str) -> bool {
    schema.field_with_name(name).is_ok()
}
