//! The files of an export as HTTP bodies: streamed, compressed, as a range, or held, as request and scenario say.

use std::{io, sync::Arc};

use async_compression::tokio::bufread::GzipEncoder;
use axum::{
    body::{Body, Bytes},
    extract::{Path, RawQuery, State},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{AppendHeaders, IntoResponse, Response},
};
use futures::{
    Stream, StreamExt,
    future::ready,
    stream::{self, BoxStream},
};
use tokio::sync::watch;
use tokio_util::{
    io::{ReaderStream, StreamReader},
    sync::CancellationToken,
};

use super::{
    Shared, answer,
    job::{Export, FileContent},
    locked,
    status::SIGNATURE,
};
use crate::demo::{Alteration, Scenario};

type Chunks = BoxStream<'static, io::Result<Bytes>>;

pub(super) async fn file(
    State(shared): State<Arc<Shared>>,
    Path((job, name)): Path<(usize, String)>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    if has_expired(&shared, job, query.as_deref()) {
        let body = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
        return (StatusCode::FORBIDDEN, [(header::CONTENT_TYPE, "application/xml")], body).into_response();
    }
    let found = locked(&shared.jobs).export(job).and_then(|export| {
        let index = export.files.iter().position(|file| file.name == name)?;
        Some((export, index))
    });
    let Some((export, index)) = found else { return answer::not_found().await };
    let bytes = export.files[index].content.bytes();
    let scenario = shared.scenario();
    if bytes == 0 && scenario.alterations.contains(&Alteration::EmptyFiles) {
        return StatusCode::NO_CONTENT.into_response();
    }
    let etag = format!("\"{job}-{name}\"");
    let representation = Representation::of(&scenario, &headers, &etag, bytes);
    let chunks = match text_of(export, index).await {
        Ok(chunks) => representation.encode(chunks),
        Err(error) => {
            tracing::warn!(%error, "a file of the folder can no longer be read");
            return answer::outcome(StatusCode::INTERNAL_SERVER_ERROR, "exception", "the file cannot be read");
        }
    };
    let chunks = until_closed(held(chunks, shared.scenario.subscribe()), shared.closing.clone());
    let mut response_headers = representation.headers(&scenario, bytes);
    response_headers.push((header::CONTENT_TYPE, scenario.content_type));
    if scenario.ranges {
        response_headers.push((header::ACCEPT_RANGES, "bytes".to_owned()));
        response_headers.push((header::ETAG, etag));
    }
    (representation.status(), AppendHeaders(response_headers), Body::from_stream(chunks)).into_response()
}

fn has_expired(shared: &Shared, job: usize, query: Option<&str>) -> bool {
    let Some(limit) = shared.scenario().link_requests else { return false };
    let mut pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let signature = pairs.find_map(|(name, value)| (name == SIGNATURE).then_some(value)).unwrap_or_default();
    !locked(&shared.jobs).admits(job, &signature, limit)
}

/// The first `bytes` bytes of a body.
pub(super) fn first_bytes(
    chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    bytes: usize,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    chunks.scan(bytes, |left, chunk| {
        let part = match chunk {
            _ if *left == 0 => None,
            Ok(mut bytes) => {
                bytes.truncate(*left);
                *left -= bytes.len();
                Some(Ok(bytes))
            }
            Err(error) => Some(Err(error)),
        };
        ready(part)
    })
}

/// The representation of the file that is sent.
#[derive(Clone, Copy)]
enum Representation {
    Whole,
    Gzip,
    /// The rest of the file, from this byte on.
    From(u64),
}

impl Representation {
    fn of(scenario: &Scenario, headers: &HeaderMap, etag: &str, bytes: u64) -> Self {
        let accepts = answer::header_text(headers, &header::ACCEPT_ENCODING).unwrap_or_default();
        let from = range_start(headers, etag).filter(|from| scenario.ranges && *from < bytes);
        match from {
            Some(from) => Self::From(from),
            None if scenario.gzip && accepts.split(',').any(|coding| coding.trim().starts_with("gzip")) => Self::Gzip,
            None => Self::Whole,
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::From(_) => StatusCode::PARTIAL_CONTENT,
            Self::Whole | Self::Gzip => StatusCode::OK,
        }
    }

    fn headers(self, scenario: &Scenario, bytes: u64) -> Vec<(HeaderName, String)> {
        let length = |bytes: u64| scenario.content_length.then(|| (header::CONTENT_LENGTH, bytes.to_string()));
        match self {
            Self::Whole => length(bytes).into_iter().collect(),
            Self::Gzip => vec![(header::CONTENT_ENCODING, "gzip".to_owned())],
            Self::From(from) => {
                let range = format!("bytes {from}-{}/{bytes}", bytes.saturating_sub(1));
                length(bytes - from).into_iter().chain([(header::CONTENT_RANGE, range)]).collect()
            }
        }
    }

    fn encode(self, chunks: Chunks) -> Chunks {
        match self {
            Self::Whole => chunks,
            Self::Gzip => ReaderStream::new(GzipEncoder::new(StreamReader::new(chunks))).boxed(),
            Self::From(from) => skip(chunks, from),
        }
    }
}

/// N of `Range: bytes=N-`; `None` also if `If-Range` names another version of the file.
fn range_start(headers: &HeaderMap, etag: &str) -> Option<u64> {
    if answer::header_text(headers, &header::IF_RANGE).is_some_and(|condition| condition != etag) {
        return None;
    }
    answer::header_text(headers, &header::RANGE)?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

async fn text_of(export: Arc<Export>, index: usize) -> io::Result<Chunks> {
    match &export.files[index].content {
        FileContent::File(file) => file.text().await,
        FileContent::Lines(_) => Ok(packed(export, index)),
    }
}

/// Lines are sent in chunks of about this size.
const CHUNK_BYTES: usize = 16 * 1024;

fn packed(export: Arc<Export>, index: usize) -> Chunks {
    let chunk = move |first: usize| {
        let FileContent::Lines(lines) = &export.files[index].content else { return ready(None) };
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let mut next = first;
        while let Some(line) = lines.get(next).filter(|_| chunk.len() < CHUNK_BYTES) {
            chunk.extend_from_slice(line.as_bytes());
            chunk.push(b'\n');
            next += 1;
        }
        ready((next > first).then(|| (Ok(Bytes::from(chunk)), next)))
    };
    stream::unfold(0, chunk).boxed()
}

fn skip(chunks: Chunks, bytes: u64) -> Chunks {
    let rest = chunks.scan(bytes, |left, chunk| {
        ready(Some(chunk.map(|mut bytes| {
            let skipped = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            *left -= skipped as u64;
            bytes.split_off(skipped)
        })))
    });
    rest.filter(|chunk| ready(chunk.as_ref().map_or(true, |bytes| !bytes.is_empty()))).boxed()
}

/// Stops in the middle of the first chunk while the scenario holds files, so that no download can complete.
fn held(mut chunks: Chunks, mut scenario: watch::Receiver<Scenario>) -> Chunks {
    let begin = async move {
        let mut first = match chunks.next().await {
            Some(Ok(first)) => first,
            other => return stream::iter(other).chain(chunks).boxed(),
        };
        let rest = first.split_off(first.len() / 2);
        let released = async move {
            // An error means that the server has been dropped, and its scenario with it.
            let _ = scenario.wait_for(|scenario| !scenario.hold_files).await;
            Ok(rest)
        };
        stream::iter([Ok(first)]).chain(stream::once(released)).chain(chunks).boxed()
    };
    stream::once(begin).flatten().boxed()
}

/// A body that is being sent when the server stops ends with an error, so that no client takes it for complete.
fn until_closed(chunks: Chunks, closing: CancellationToken) -> Chunks {
    let next = |(mut chunks, closing): (Chunks, CancellationToken)| async move {
        let chunk = tokio::select! {
            biased;
            () = closing.cancelled() => {
                chunks = stream::empty().boxed();
                Some(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server is shutting down")))
            }
            chunk = chunks.next() => chunk,
        };
        chunk.map(|chunk| (chunk, (chunks, closing)))
    };
    stream::unfold((chunks, closing), next).boxed()
}
