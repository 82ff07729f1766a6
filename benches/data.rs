//! Input: a file of NDJSON resources of one type, made once and kept from run to run.
//!
//! No two lines have the same id. The same source and size give the same file.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use async_compression::tokio::bufread::GzipDecoder;
use fhir_sync::{demo::generate, fhir::ResourceType};
use tokio::io::AsyncReadExt as _;

use crate::Setup;

/// The path of a file of at least `bytes` bytes of Observations: synthetic ones, or those of `--data` again and again.
pub fn observations(setup: &Setup, bytes: u64) -> anyhow::Result<PathBuf> {
    resources(setup, ResourceType::OBSERVATION, bytes)
}

/// The same for resources of any type.
pub fn resources(setup: &Setup, of: ResourceType, bytes: u64) -> anyhow::Result<PathBuf> {
    let source = if setup.data.is_some() { "data" } else { "demo" };
    let path = setup.dir.join(format!("{of}-{source}-{bytes}.ndjson"));
    if path.exists() {
        return Ok(path);
    }
    println!("making {} …", path.display());
    let unfinished = path.with_extension("unfinished");
    let mut out = Out { file: BufWriter::new(File::create(&unfinished)?), written: 0, bytes };
    match &setup.data {
        Some(folder) => copies(&lines(folder, of)?, &mut out)?,
        None => synthetic(of, &mut out)?,
    }
    out.file.flush()?;
    std::fs::rename(&unfinished, &path)?;
    Ok(path)
}

/// The path of a file with one line, the shortest that a server sends.
pub fn narrow(setup: &Setup) -> anyhow::Result<PathBuf> {
    const LINE: &str = r#"{"resourceType":"Observation","id":"1","meta":{"versionId":"1","lastUpdated":"2026-01-01T00:00:00Z"},"status":"final"}"#;
    let path = setup.dir.join("Observation-narrow.ndjson");
    std::fs::write(&path, format!("{LINE}\n"))?;
    Ok(path)
}

struct Out {
    file: BufWriter<File>,
    written: u64,
    bytes: u64,
}

impl Out {
    /// Whether more is wanted.
    fn line(&mut self, parts: [&str; 3]) -> std::io::Result<bool> {
        for part in parts.into_iter().chain(["\n"]) {
            self.file.write_all(part.as_bytes())?;
            self.written += part.len() as u64;
        }
        Ok(self.written < self.bytes)
    }
}

/// A world after another, so that none is large.
fn synthetic(of: ResourceType, out: &mut Out) -> anyhow::Result<()> {
    const PATIENTS: usize = 500;
    for seed in 0.. {
        for (_, line) in generate::world(PATIENTS, seed).resources(of) {
            if !out.line([line, "", ""])? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The lines with ids of the same length as theirs.
fn copies(lines: &[String], out: &mut Out) -> anyhow::Result<()> {
    #[derive(serde::Deserialize)]
    struct Resource {
        id: String,
    }
    let parts = lines.iter().map(|line| {
        let Resource { id } = serde_json::from_str(line)?;
        let (before, after) = line.split_once(&format!("\"{id}\"")).context("an id that is escaped")?;
        Ok((before, id, after))
    });
    let parts: Vec<_> = parts.collect::<anyhow::Result<_>>()?;
    for copy in 0u32.. {
        for (before, id, after) in &parts {
            let fresh = format!("\"{copy:08x}{}\"", id.get(8..).unwrap_or_default());
            if !out.line([before, &fresh, after])? {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn lines(folder: &Path, of: ResourceType) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(&format!("{of}.")) && (name.ends_with(".ndjson") || name.ends_with(".ndjson.gz")) {
            lines.extend(text(&path)?.lines().map(str::to_owned));
        }
    }
    anyhow::ensure!(!lines.is_empty(), "{} has no {of}", folder.display());
    Ok(lines)
}

fn text(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path)?;
    if path.extension().is_none_or(|extension| extension != "gz") {
        return Ok(String::from_utf8(bytes)?);
    }
    let mut text = String::new();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    runtime.block_on(GzipDecoder::new(bytes.as_slice()).read_to_string(&mut text))?;
    Ok(text)
}
