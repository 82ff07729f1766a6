//! Rows become row groups: each leaf column is encoded in pages, which are in memory until its row group ends.
//!
//! Most leaves of a resource type have no value in a file. What they cost is their levels, one for each row and element
//! of a list, and these are the same for all leaves below one structure: they are written once, and all these leaves
//! get the same pages. A file is the same as if each leaf had been written.

mod page;
mod pages;
mod projection;
mod texts;

use std::{
    collections::VecDeque,
    io::{self, Write},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arrow::{
    array::{ArrayRef, AsArray as _, RecordBatch},
    datatypes::{DataType, FieldRef, Schema, SchemaRef},
};
use bytes::Bytes;
use parquet::{
    arrow::{
        ArrowSchemaConverter, add_encoded_arrow_schema_to_metadata,
        arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves},
        async_writer::AsyncFileWriter,
    },
    basic::Compression,
    column::writer::ColumnCloseResult,
    errors::{ParquetError, Result},
    file::{
        metadata::ParquetMetaData,
        properties::{EnabledStatistics, WriterProperties},
        writer::SerializedFileWriter,
    },
    schema::types::ColumnDescPtr,
};

use self::{
    page::{ChunkPages, Compressor},
    pages::{AllPages, Pages, WrittenLeaf, chunk},
    projection::{Projection, Role},
    texts::{TextColumn, TextWriter},
};
use crate::table::data_file::fill::{Fill, leaves_of};

/// A Parquet file that is being encoded.
pub struct Encoder {
    pieces: Pieces,
    file: SerializedFileWriter<Pieces>,
    properties: WriterProperties,
    compressor: Arc<Compressor>,
    columns: Vec<Column>,
    projections: Projections,
    /// The open row group; empty between two of them.
    open: Vec<OpenColumn>,
    open_rows: usize,
}

/// A top-level column of the file.
struct Column {
    field: FieldRef,
    leaves: Range<usize>,
    /// `None` where each leaf has a writer of its own, in any case.
    fill: Option<Fill>,
    text: Option<TextColumn>,
}

impl Encoder {
    /// All pages are compressed by zstd here, so `properties` must not compress any.
    pub fn new(schema: &SchemaRef, properties: WriterProperties) -> Result<Self> {
        let leaves = ArrowSchemaConverter::new().convert(schema)?;
        if leaves.columns().iter().any(|leaf| properties.compression(leaf.path()) != Compression::UNCOMPRESSED) {
            return Err(ParquetError::General("pages would be compressed twice".to_owned()));
        }
        let compressor = Arc::new(Compressor::new()?);
        let mut with_schema = properties.clone();
        add_encoded_arrow_schema_to_metadata(schema, &mut with_schema);
        let pieces = Pieces::default();
        let file = SerializedFileWriter::new(pieces.clone(), leaves.root_schema_ptr(), Arc::new(with_schema))?;
        let columns = columns(schema, leaves.columns(), &properties)?;
        let projections = Projections::new(&columns, leaves.columns(), &properties, &compressor)?;
        Ok(Self { pieces, file, properties, compressor, columns, projections, open: Vec::new(), open_rows: 0 })
    }

    /// How many more rows like the last ones the open row group takes.
    pub fn room(&self) -> usize {
        let rows = self.properties.max_row_group_row_count().unwrap_or(usize::MAX).saturating_sub(self.open_rows);
        let Some(max_bytes) = self.properties.max_row_group_bytes().filter(|_| self.open_rows > 0) else { return rows };
        let bytes = self.open_bytes();
        match bytes / self.open_rows {
            0 => rows,
            row_bytes => rows.min(max_bytes.saturating_sub(bytes) / row_bytes),
        }
    }

    /// Adds rows to the open row group. The caller passes at most [`Self::room`] rows, and ends the row group when
    /// there is no more room.
    pub fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.note(rows)?;
        if self.open.is_empty() {
            let writers = self.projections.writers(self.file.flushed_row_groups().len())?;
            let columns = self.projections.of.iter().zip(writers).zip(&self.columns);
            let open = columns.map(|((projection, writers), of)| match &of.text {
                Some(text) => OpenColumn::Text(TextWriter::new(text.clone(), Arc::clone(&self.compressor))),
                None => OpenColumn::Leaves(OpenLeaves::new(projection, writers)),
            });
            self.open = open.collect();
        }
        for ((projection, open), column) in self.projections.of.iter().zip(&mut self.open).zip(rows.columns()) {
            open.write(projection, column)?;
        }
        self.open_rows += rows.num_rows();
        Ok(())
    }

    /// Records which leaves have values in `rows`. A leaf with its first value gets its own writer; until then it used
    /// the shared pages without values.
    pub fn note(&mut self, rows: &RecordBatch) -> Result<()> {
        let columns = self.columns.iter_mut().zip(rows.columns());
        let changed: Vec<_> =
            columns.map(|(of, column)| of.fill.as_mut().is_some_and(|fill| fill.note(column))).collect();
        if !changed.contains(&true) {
            return Ok(());
        }
        let leaves = self.file.schema_descr().columns();
        let projections = Projections::new(&self.columns, leaves, &self.properties, &self.compressor)?;
        if !self.open.is_empty() {
            let writers = projections.writers(self.file.flushed_row_groups().len())?;
            let all = self.open.iter_mut().zip(&self.projections.of).zip(&projections.of).zip(writers).zip(changed);
            for ((((open, from), to), writers), _) in all.filter(|(_, changed)| *changed) {
                if let OpenColumn::Leaves(leaves) = open {
                    leaves.change_projection(from, to, writers)?;
                }
            }
        }
        self.projections = projections;
        Ok(())
    }

    /// Ends the open row group. What is written of it goes to `out` after each column, so it is in memory once.
    pub async fn end_row_group(&mut self, out: &mut impl AsyncFileWriter) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        self.open_rows = 0;
        let leaves = self.file.schema_descr().columns().to_vec();
        let mut row_group = self.file.next_row_group()?;
        let all = std::mem::take(&mut self.open).into_iter().zip(&self.projections.of).zip(&self.columns);
        for ((open, projection), column) in all {
            let mut ended = open.ended(projection)?;
            for (at, leaf) in column.leaves.clone().enumerate() {
                let (pages, close) = ended.chunk(projection, at, &leaves[leaf])?;
                row_group.append_column(&pages, close)?;
                drop(pages);
                while let Some(piece) = self.pieces.full() {
                    out.write(piece).await?;
                }
            }
        }
        row_group.close()?;
        Ok(())
    }

    /// Writes the footer; the caller has ended the last row group, and writes the [`Self::rest`] to `out` afterwards.
    pub fn finish(&mut self) -> Result<ParquetMetaData> {
        self.file.finish()
    }

    /// Takes the next piece of what was written and is not in `out` yet. The caller asks until there is none.
    pub fn rest(&self) -> Option<Bytes> {
        self.pieces.full().or_else(|| self.pieces.rest())
    }

    pub fn bytes_written(&self) -> usize {
        self.file.bytes_written()
    }

    /// How large the open row group would be if it ended here; what is not encoded yet is an estimate.
    pub fn open_bytes(&self) -> usize {
        self.projections.of.iter().zip(&self.open).map(|(projection, open)| open.bytes(projection)).sum()
    }
}

fn columns(schema: &Schema, leaves: &[ColumnDescPtr], properties: &WriterProperties) -> Result<Vec<Column>> {
    let mut begin = 0;
    let columns = schema.fields().iter().map(|field| {
        let count = leaves_of(field.data_type());
        let count = count.ok_or_else(|| ParquetError::NYI(format!("a column of type {}", field.data_type())))?;
        let range = begin..begin + count;
        begin = range.end;
        let has_statistics =
            |leaf: &ColumnDescPtr| properties.statistics_enabled(leaf.path()) != EnabledStatistics::None;
        let is_shared = field.data_type().is_nested() && !leaves[range.clone()].iter().any(has_statistics);
        let fill = is_shared.then(|| Fill::of(field.data_type()));
        let is_text = *field.data_type() == DataType::Utf8;
        let text = is_text.then(|| TextColumn::of(&leaves[range.start], properties)).flatten();
        Ok(Column { field: Arc::clone(field), leaves: range, fill, text })
    });
    columns.collect()
}

/// What is written of each column.
struct Projections {
    of: Vec<Projection>,
    pages: Arc<AllPages>,
    factory: ArrowRowGroupWriterFactory,
}

impl Projections {
    fn new(
        columns: &[Column],
        leaves: &[ColumnDescPtr],
        properties: &WriterProperties,
        compressor: &Arc<Compressor>,
    ) -> Result<Self> {
        let projection = |column: &Column| {
            let leaves = &leaves[column.leaves.clone()];
            match &column.fill {
                Some(fill) => Projection::new(&column.field, fill, leaves),
                None => Projection::whole(&column.field, leaves.len()),
            }
        };
        let of: Vec<_> = columns.iter().map(projection).collect();
        let schema =
            Arc::new(Schema::new(of.iter().map(|projection| Arc::clone(projection.field())).collect::<Vec<_>>()));
        // With a dictionary, a page without values would differ from that of a type that has none.
        let shared =
            columns.iter().zip(&of).flat_map(|(column, projection)| column.leaves.clone().zip(&projection.roles));
        let shared = shared.filter(|(_, role)| matches!(role, Role::Nulls(_)));
        let properties = shared.fold(properties.clone().into_builder(), |properties, (leaf, _)| {
            properties.set_column_dictionary_enabled(leaves[leaf].path().clone(), false)
        });
        let written = ArrowSchemaConverter::new().convert(&schema)?.root_schema_ptr();
        let pages = Arc::new(AllPages::new(compressor));
        // The factory takes schema and properties of a file that nobody reads.
        let file = SerializedFileWriter::new(io::sink(), written, Arc::new(properties.build()))?;
        let factory = ArrowRowGroupWriterFactory::new(&file, schema).with_page_store_factory(Arc::clone(&pages) as _);
        Ok(Self { of, pages, factory })
    }

    /// New writers for each column.
    fn writers(&self, row_group: usize) -> Result<Vec<Vec<LeafWriter>>> {
        let writers = self.factory.create_column_writers(row_group)?;
        let mut writers =
            writers.into_iter().zip(self.pages.take()).map(|(writer, pages)| LeafWriter { writer, pages });
        let count =
            |projection: &Projection| projection.roles.iter().map(|role| role.writer() + 1).max().unwrap_or_default();
        Ok(self.of.iter().map(|projection| writers.by_ref().take(count(projection)).collect()).collect())
    }
}

struct LeafWriter {
    writer: ArrowColumnWriter,
    pages: Pages,
}

impl LeafWriter {
    fn close(self) -> Result<WrittenLeaf> {
        let close = self.writer.close()?.close().clone();
        Ok(WrittenLeaf { close, pages: self.pages.take_all() })
    }

    fn bytes(&self) -> usize {
        let (pages, uncompressed_pages) = self.pages.bytes();
        self.writer.get_estimated_total_bytes().saturating_sub(uncompressed_pages) + pages
    }
}

/// A column in the open row group.
enum OpenColumn {
    Leaves(OpenLeaves),
    Text(TextWriter),
}

impl OpenColumn {
    fn write(&mut self, projection: &Projection, column: &ArrayRef) -> Result<()> {
        match self {
            Self::Leaves(leaves) => leaves.write(projection, column),
            Self::Text(text) => text.write(column.as_string()),
        }
    }

    fn bytes(&self, projection: &Projection) -> usize {
        match self {
            Self::Leaves(leaves) => leaves.bytes(projection),
            Self::Text(text) => text.bytes(),
        }
    }

    fn ended(self, projection: &Projection) -> Result<EndedColumn> {
        Ok(match self {
            Self::Leaves(leaves) => EndedColumn::Leaves(leaves.ended(projection)?),
            Self::Text(text) => EndedColumn::Text(Some(Box::new(text.close()?))),
        })
    }
}

/// The writers of a column.
struct OpenLeaves {
    writers: Vec<LeafWriter>,
    /// Of each leaf: the pages of the rows before it got another writer. They have no values.
    before: Vec<Vec<Arc<WrittenLeaf>>>,
}

impl OpenLeaves {
    fn new(projection: &Projection, writers: Vec<LeafWriter>) -> Self {
        Self { writers, before: vec![Vec::new(); projection.roles.len()] }
    }

    fn write(&mut self, projection: &Projection, column: &ArrayRef) -> Result<()> {
        let leaves = compute_leaves(projection.field(), &projection.project(column)?)?;
        self.writers.iter_mut().zip(&leaves).try_for_each(|(of, leaf)| of.writer.write(leaf))
    }

    /// Writers of values go on; all others end, and the leaves keep their pages.
    fn change_projection(&mut self, from: &Projection, to: &Projection, fresh: Vec<LeafWriter>) -> Result<()> {
        let mut ended = std::mem::replace(self, Self::new(to, fresh)).ended(from)?;
        self.before = std::mem::take(&mut ended.before);
        for (leaf, (from, to)) in from.roles.iter().zip(&to.roles).enumerate() {
            match (*from, *to) {
                (Role::Nulls(writer), _) => self.before[leaf].extend(ended.nulls[writer].clone()),
                (Role::Values(old), to) => {
                    if let Some(old) = ended.values[old].take() {
                        self.writers[to.writer()] = old;
                    }
                }
            }
        }
        Ok(())
    }

    fn ended(self, projection: &Projection) -> Result<EndedLeaves> {
        let Self { writers, before } = self;
        let mut ended = EndedLeaves { values: Vec::new(), nulls: Vec::new(), before };
        for (at, writer) in writers.into_iter().enumerate() {
            let has_values = projection.roles.contains(&Role::Values(at));
            let (values, nulls) = if has_values { (Some(writer), None) } else { (None, Some(writer.close()?)) };
            ended.values.push(values);
            ended.nulls.push(nulls.map(Arc::new));
        }
        Ok(ended)
    }

    fn bytes(&self, projection: &Projection) -> usize {
        let open: Vec<_> = self.writers.iter().map(LeafWriter::bytes).collect();
        let before = self.before.iter().flatten().map(|nulls| nulls.size_bytes()).sum::<usize>();
        before + projection.roles.iter().map(|role| open[role.writer()]).sum::<usize>()
    }
}

/// A column of a row group that ends.
enum EndedColumn {
    Leaves(EndedLeaves),
    /// `None` when its column chunk is made.
    Text(Option<Box<WrittenLeaf>>),
}

impl EndedColumn {
    /// The column chunk of one of its leaves, which is number `at` in the column.
    fn chunk(
        &mut self,
        projection: &Projection,
        at: usize,
        leaf: &ColumnDescPtr,
    ) -> Result<(ChunkPages, ColumnCloseResult)> {
        match self {
            Self::Leaves(leaves) => leaves.chunk(projection.roles[at], at, leaf),
            Self::Text(text) => chunk(leaf, &[], text.take().as_deref()),
        }
    }
}

/// Leaves of which those without values are finished; each writer is in one of the two lists.
struct EndedLeaves {
    values: Vec<Option<LeafWriter>>,
    nulls: Vec<Option<Arc<WrittenLeaf>>>,
    before: Vec<Vec<Arc<WrittenLeaf>>>,
}

impl EndedLeaves {
    fn chunk(&mut self, role: Role, at: usize, leaf: &ColumnDescPtr) -> Result<(ChunkPages, ColumnCloseResult)> {
        let mut nulls = std::mem::take(&mut self.before[at]);
        match role {
            Role::Nulls(writer) => {
                nulls.extend(self.nulls[writer].clone());
                chunk(leaf, &nulls, None)
            }
            Role::Values(writer) => {
                let own = self.values[writer].take().map(LeafWriter::close).transpose()?;
                chunk(leaf, &nulls, own.as_ref())
            }
        }
    }
}

/// What the file has so far and nobody has taken, in pieces, so that each can be freed.
#[derive(Clone, Default)]
struct Pieces(Arc<Mutex<Waiting>>);

#[derive(Default)]
struct Waiting {
    full: VecDeque<Bytes>,
    open: Vec<u8>,
}

/// No piece is larger, unless it was written at once. Much smaller than a part of an upload, and large enough to be few.
const PIECE_BYTES: usize = 1024 * 1024;

impl Pieces {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn full(&self) -> Option<Bytes> {
        self.lock().full.pop_front()
    }

    fn rest(&self) -> Option<Bytes> {
        let rest = std::mem::take(&mut self.lock().open);
        (!rest.is_empty()).then(|| rest.into())
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut waiting = self.lock();
        if waiting.open.len() + bytes.len() > PIECE_BYTES && !waiting.open.is_empty() {
            let mut full = std::mem::take(&mut waiting.open);
            // A vector that grew may have room for twice what it holds, and a column chunk becomes many pieces at once.
            full.shrink_to_fit();
            waiting.full.push_back(full.into());
        }
        waiting.open.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
