//! Spark with Delta, in a warm session: it is given the decoded rows of the same changes, so decoding is not in its
//! figures.

use std::{fs::File, path::Path};

use anyhow::Context as _;
use fhir_sync::{
    fhir::ResourceType,
    resource::{Layout, Options, Shape},
    table::writer_properties,
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
};

use super::ours::{Batches, CHANGED, decoder, ids};
use crate::child::{self, Figures, Work};

/// Of Java's heap: what was found to be enough for the merge into 4,000,000 rows.
const MEMORY: &str = "4g";
const SESSION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop");

/// `python` is that of `install.sh spark`; `small` a table that the session becomes warm with.
pub fn measure(python: &Path, table: &str, small: &str, changes: &Path) -> anyhow::Result<Figures> {
    let changes = changes.to_str().context("the path is not UTF-8")?;
    let [table, small] = [table, small].map(|lake| format!("{lake}/Observation.parquet"));
    child::measure_python(python, include_str!("spark.py"), &[SESSION, &table, &small, changes, MEMORY])
}

/// File, lines, rows of the table, changes: writes the decoded rows of the changes.
pub fn changes(arguments: &[String]) -> anyhow::Result<Work> {
    let [file, lines, rows, changes] = arguments else { anyhow::bail!("four arguments") };
    let shape = Shape::of(ResourceType::OBSERVATION, Options { layout: Layout::Pathling, raw_json: true });
    let decoder = decoder(&shape, CHANGED);
    let ids = ids(rows.parse()?, changes.parse()?);
    let mut batches = Batches { lines: Path::new(lines), reader: None, ids, number: 0 };
    let properties = writer_properties(&shape.schema(), shape.leading()).into_builder();
    let properties = properties.set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let mut writer = ArrowWriter::try_new(File::create(file)?, shape.schema(), Some(properties))?;
    let mut work = Work { bytes_in: 0, bytes_out: 0, rows: 0 };
    loop {
        let (_, lines) = batches.next(CHANGED)?;
        if lines.is_empty() {
            break;
        }
        work.rows += lines.len() as u64;
        writer.write(&decoder.decode(&lines)?.rows)?;
    }
    writer.finish()?;
    work.bytes_out = writer.bytes_written() as u64;
    Ok(work)
}
