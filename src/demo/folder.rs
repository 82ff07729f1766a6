//! A folder of NDJSON files, served byte for byte, so that users can try fhir-sync with their own data.
//!
//! The resource type is the part of the file name before the first dot (`Organization.123.ndjson.gz`). The lines are
//! counted once, at the start. No file is kept in memory, unless the caller wants it.

use std::{
    io,
    path::{Path, PathBuf},
};

use async_compression::tokio::bufread::GzipDecoder;
use axum::body::Bytes;
use futures::{
    StreamExt, TryStreamExt,
    stream::{self, BoxStream},
};
use tokio::{
    fs::File,
    io::{AsyncRead, BufReader},
};
use tokio_util::io::ReaderStream;

use crate::fhir::ResourceType;

/// One file of the folder.
#[derive(Clone, Debug)]
pub(super) struct NdjsonFile {
    pub resource_type: ResourceType,
    /// The number of lines that are not empty.
    pub lines: u64,
    /// The size of the text, uncompressed.
    pub bytes: u64,
    path: PathBuf,
    compression: Compression,
    /// The text of a file that is kept.
    in_memory: Option<Vec<Bytes>>,
}

/// Whether files are read again for each answer, or kept in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    OnDisk,
    InMemory,
}

#[derive(Clone, Copy, Debug)]
enum Compression {
    None,
    Gzip,
}

/// The NDJSON files of a folder, sorted by name. An error names the file or folder that cannot be read.
pub(super) async fn files(folder: &Path, keep: Keep) -> io::Result<Vec<NdjsonFile>> {
    let mut entries = tokio::fs::read_dir(folder).await.map_err(|error| with_path(folder, &error))?;
    let mut files = Vec::new();
    while let Some(entry) = entries.next_entry().await.map_err(|error| with_path(folder, &error))? {
        let path = entry.path();
        let Some((resource_type, compression)) = name(&path) else { continue };
        let mut file = NdjsonFile { resource_type, lines: 0, bytes: 0, path, compression, in_memory: None };
        if keep == Keep::InMemory {
            file.in_memory = Some(file.text().await?.try_collect().await?);
        }
        files.push(file.counted().await?);
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

impl NdjsonFile {
    /// The uncompressed text of the file, in pieces.
    pub(super) async fn text(&self) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        if let Some(pieces) = &self.in_memory {
            return Ok(stream::iter(pieces.clone()).map(Ok).boxed());
        }
        let file = File::open(&self.path).await.map_err(|error| with_path(&self.path, &error))?;
        Ok(match self.compression {
            Compression::None => pieces(file),
            Compression::Gzip => {
                let mut decoder = GzipDecoder::new(BufReader::new(file));
                decoder.multiple_members(true);
                pieces(decoder)
            }
        })
    }

    async fn counted(mut self) -> io::Result<Self> {
        let mut text = self.text().await?;
        // Whether the current line has any character.
        let mut begun = false;
        while let Some(piece) = text.try_next().await.map_err(|error| with_path(&self.path, &error))? {
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

const PIECE_BYTES: usize = 256 * 1024;

fn pieces(reader: impl AsyncRead + Send + 'static) -> BoxStream<'static, io::Result<Bytes>> {
    ReaderStream::with_capacity(reader, PIECE_BYTES).boxed()
}

/// Resource type and compression from a file name; `None`: the file is not served.
fn name(path: &Path) -> Option<(ResourceType, Compression)> {
    let name = path.file_name()?.to_str()?;
    let compression = match (name.strip_suffix(".ndjson"), name.strip_suffix(".ndjson.gz")) {
        (Some(_), _) => Compression::None,
        (_, Some(_)) => Compression::Gzip,
        _ => return None,
    };
    match name.split('.').next()?.parse() {
        Ok(resource_type) => Some((resource_type, compression)),
        Err(unknown) => {
            tracing::warn!(file = name, %unknown, "file skipped: its name does not begin with a resource type");
            None
        }
    }
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
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
        let files = files(folder.path(), Keep::OnDisk).await.unwrap();
        let seen: Vec<_> = files.iter().map(|file| (file.resource_type.as_str(), file.lines)).collect();
        assert_eq!(seen, [("Organization", 1), ("Patient", 3)]);
    }

    #[tokio::test]
    async fn the_error_for_a_missing_folder_names_it() {
        let error = files(Path::new("/nowhere/at/all"), Keep::OnDisk).await.unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/at/all: "), "{error}");
    }
}
