//! A folder of NDJSON files, served byte for byte: someone's own data, without a word changed.
//!
//! The type is the part of a file's name before the first dot (`Organization.123.ndjson.gz`); the lines are counted
//! once, at the start. Nothing of a file is held in memory.

use std::{
    io,
    path::{Path, PathBuf},
};

use async_compression::tokio::bufread::GzipDecoder;
use axum::body::Bytes;
use futures::{StreamExt, TryStreamExt, stream::BoxStream};
use tokio::{
    fs::File,
    io::{AsyncRead, BufReader},
};
use tokio_util::io::ReaderStream;

use crate::fhir::ResourceType;

/// One file of the folder.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub resource_type: ResourceType,
    /// Lines that are not empty.
    pub lines: u64,
    /// Of the text, not of the compressed file.
    pub bytes: u64,
    path: PathBuf,
    packing: Packing,
}

#[derive(Clone, Copy, Debug)]
enum Packing {
    Plain,
    Gzip,
}

/// The NDJSON files of a folder, sorted by name. An error names the file it is about.
pub(super) async fn documents(folder: &Path) -> io::Result<Vec<Document>> {
    let mut entries = tokio::fs::read_dir(folder).await.map_err(|error| at(folder, &error))?;
    let mut documents = Vec::new();
    while let Some(entry) = entries.next_entry().await.map_err(|error| at(folder, &error))? {
        let path = entry.path();
        let Some((resource_type, packing)) = name(&path) else { continue };
        let document = Document { resource_type, lines: 0, bytes: 0, path, packing };
        documents.push(document.counted().await?);
    }
    documents.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(documents)
}

impl Document {
    /// The text of the file, in the pieces in which it was read.
    pub(super) async fn text(&self) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let file = File::open(&self.path).await.map_err(|error| at(&self.path, &error))?;
        Ok(match self.packing {
            Packing::Plain => pieces(file),
            Packing::Gzip => {
                let mut decoder = GzipDecoder::new(BufReader::new(file));
                decoder.multiple_members(true);
                pieces(decoder)
            }
        })
    }

    async fn counted(mut self) -> io::Result<Self> {
        let mut text = self.text().await?;
        // Whether the line under way has anything in it.
        let mut begun = false;
        while let Some(piece) = text.try_next().await.map_err(|error| at(&self.path, &error))? {
            self.bytes += piece.len() as u64;
            for byte in piece {
                match byte {
                    b'\n' => self.lines += u64::from(std::mem::take(&mut begun)),
                    b'\r' => {}
                    _ => begun = true,
                }
            }
        }
        self.lines += u64::from(begun);
        Ok(self)
    }
}

const PIECE_BYTES: usize = 64 * 1024;

fn pieces(reader: impl AsyncRead + Send + 'static) -> BoxStream<'static, io::Result<Bytes>> {
    ReaderStream::with_capacity(reader, PIECE_BYTES).boxed()
}

/// What a file's name says of it; `None`: not a file to serve.
fn name(path: &Path) -> Option<(ResourceType, Packing)> {
    let name = path.file_name()?.to_str()?;
    let packing = match (name.strip_suffix(".ndjson"), name.strip_suffix(".ndjson.gz")) {
        (Some(_), _) => Packing::Plain,
        (_, Some(_)) => Packing::Gzip,
        _ => return None,
    };
    match name.split('.').next()?.parse() {
        Ok(resource_type) => Some((resource_type, packing)),
        Err(unknown) => {
            tracing::warn!(file = name, %unknown, "left out: the name does not begin with a resource type");
            None
        }
    }
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn only_ndjson_files_named_after_a_type_are_served_and_empty_lines_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("Patient.ndjson", "{}\r\n\n{}\n\r\n{}"),
            ("Organization.123.ndjson", "{}\n"),
            ("log.ndjson", "{}\n"),
            ("notes.txt", "x"),
        ] {
            std::fs::File::create(folder.path().join(name)).unwrap().write_all(text.as_bytes()).unwrap();
        }
        let documents = documents(folder.path()).await.unwrap();
        let seen: Vec<_> = documents.iter().map(|document| (document.resource_type.as_str(), document.lines)).collect();
        assert_eq!(seen, [("Organization", 1), ("Patient", 3)]);
    }

    #[tokio::test]
    async fn a_folder_that_is_not_there_is_named() {
        let error = documents(Path::new("/nowhere/at/all")).await.unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/at/all: "), "{error}");
    }
}
