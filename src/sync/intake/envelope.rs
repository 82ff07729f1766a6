//! An envelope: a `Binary` whose data are the lines of a file. HAPI sends it to clients that ask for JSON.

use async_compression::tokio::bufread::GzipDecoder;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use tokio::{io::AsyncReadExt as _, runtime::Handle};

use crate::{
    export::File,
    fhir::ResourceType,
    resource::{Line, Lines, OverLines, Reason},
};

/// Unpacked lines are in memory all at once.
const MAX_UNPACKED_BYTES: u64 = 256 * 1024 * 1024;
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The lines in a `Binary`, which may be compressed. Blocks.
///
/// # Errors
/// It holds no lines, or too many.
pub fn unpack(envelope: &Line, max_line_bytes: usize) -> Result<Vec<Line>, Reason> {
    #[derive(Deserialize)]
    struct Binary {
        data: String,
    }
    let Ok(Binary { data }) = serde_json::from_slice(&envelope.bytes) else { return Err(Reason::NoEnvelope) };
    let text: Vec<u8> = data.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let mut bytes = STANDARD.decode(text).map_err(|_| Reason::NoEnvelope)?;
    if bytes.starts_with(&GZIP_MAGIC) {
        bytes = gunzip(&bytes).ok_or(Reason::NoEnvelope)?;
    }
    lines(bytes, max_line_bytes).ok_or(Reason::NoEnvelope)
}

/// The lines of a file of `Binary` resources that arrived in an envelope. A resource may hold NDJSON as well; what
/// tells the two apart is that the server serves an envelope in the place of the file: it has no id, or the one that
/// the file's URL ends with, or as many lines as the file should have. Blocks.
pub fn unpack_file_of_binaries(only_line: &Line, file: &File, max_line_bytes: usize) -> Option<Vec<Line>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Binary {
        resource_type: String,
        content_type: String,
        id: Option<String>,
    }
    let binary: Binary = serde_json::from_slice(&only_line.bytes).ok()?;
    if binary.resource_type != ResourceType::BINARY.as_str() || !binary.content_type.contains("ndjson") {
        return None;
    }
    let lines = unpack(only_line, max_line_bytes).ok()?;
    let is_of_url = |id: &str| file.url.path_segments().and_then(|mut segments| segments.next_back()) == Some(id);
    let is_counted = lines.len() > 1 && file.count == Some(lines.len() as u64);
    binary.id.is_none_or(|id| is_counted || is_of_url(&id)).then_some(lines)
}

fn gunzip(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoder = GzipDecoder::new(bytes);
    decoder.multiple_members(true);
    let mut unpacked = Vec::new();
    let reading = async {
        let read = decoder.take(MAX_UNPACKED_BYTES + 1).read_to_end(&mut unpacked).await;
        read.ok().filter(|read| *read as u64 <= MAX_UNPACKED_BYTES)
    };
    Handle::current().block_on(reading)?;
    Some(unpacked)
}

/// `None` if it ends in the middle of a line.
fn lines(bytes: Vec<u8>, max_line_bytes: usize) -> Option<Vec<Line>> {
    let mut splitter = Lines::new(max_line_bytes);
    let mut lines = Vec::new();
    splitter.push(bytes.into(), &mut lines);
    lines.extend(splitter.finish());
    if !splitter.too_long().is_empty() {
        return None;
    }
    let mut over_lines = OverLines::new(max_line_bytes);
    let lines = over_lines.join(lines);
    let is_whole = over_lines.finish().is_empty()
        && lines.last().is_none_or(|last| serde_json::from_slice::<serde::de::IgnoredAny>(&last.bytes).is_ok());
    is_whole.then_some(lines)
}
