//! The bytes of a file as they are transferred, before they are decoded.
//!
//! What always holds: every silence and every trickle has a limit. A transfer that is cut goes on where it was cut, where
//! the server's validators show that it is still the same file (rule 77); otherwise it is a fault, and the file is read
//! again from its beginning. So a gzip stream goes on as well.

use std::{
    io,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use async_compression::tokio::bufread::GzipDecoder;
use bytes::Bytes;
use futures::{StreamExt, stream, stream::BoxStream};
use reqwest::{
    Response,
    header::{CONTENT_ENCODING, CONTENT_LENGTH},
};
use tokio::time::Instant;
use tokio_util::io::{ReaderStream, StreamReader};

use super::{
    attempts::Attempts,
    error::code,
    failure::{Failure, Fault},
    http::{GZIP_MAGIC, next_within},
    pace::Pass,
    range::{Continuation, Validator},
};
use crate::telemetry::metrics::{ByteCounter, Stage};

const DECODED_CHUNK_BYTES: usize = 64 * 1024;

/// What the headers say about the body.
pub enum Encoding {
    Gzip,
    /// Recognised by the first bytes: object stores send `.ndjson.gz` without a header.
    Unknown,
}

impl Encoding {
    pub fn of(response: &Response) -> Result<Self, String> {
        let header =
            |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
        match header(CONTENT_ENCODING).to_ascii_lowercase() {
            gzip if gzip == "gzip" || gzip == "x-gzip" => Ok(Self::Gzip),
            none if none.is_empty() || none == "identity" => Ok(Self::Unknown),
            other => Err(format!("its Content-Encoding is {}, only gzip was requested", code(other))),
        }
    }
}

/// The body of a response, and of those that continue it.
pub struct Wire<'r, 'a> {
    attempts: &'r mut Attempts<'a>,
    chunks: BoxStream<'static, Result<Bytes, reqwest::Error>>,
    pass: Option<Arc<Pass>>,
    validator: Option<Validator>,
    throughput: Throughput,
    idle_timeout: Duration,
    /// Of the file, whatever the number of responses.
    bytes: Arc<AtomicU64>,
    measured: ByteCounter,
    /// As the last rest says.
    length: Option<u64>,
    /// Something has arrived since the last request.
    has_arrived: bool,
    /// `Content-Length: 0`.
    is_empty: bool,
}

type Chunks<'r> = BoxStream<'r, Result<Bytes, io::Error>>;

impl<'r, 'a: 'r> Wire<'r, 'a> {
    pub fn new(attempts: &'r mut Attempts<'a>, mut response: Response) -> Self {
        let is_empty = response.headers().get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() == b"0");
        let config = attempts.config();
        Self {
            throughput: Throughput::new(config.limits.min_throughput_bytes),
            idle_timeout: config.http.idle_timeout,
            attempts,
            validator: Validator::of(&response),
            pass: response.extensions_mut().remove(),
            chunks: response.bytes_stream().boxed(),
            bytes: Arc::default(),
            measured: ByteCounter::of(Stage::Wire),
            length: None,
            has_arrived: false,
            is_empty,
        }
    }

    /// How many bytes were transferred so far.
    pub fn counter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes)
    }

    pub async fn decoded(mut self, encoding: Encoding) -> Result<Chunks<'r>, Failure> {
        let mut head: Vec<u8> = Vec::new();
        while head.len() < GZIP_MAGIC.len() {
            match self.next().await? {
                Some(chunk) => head.extend_from_slice(&chunk),
                None => break,
            }
        }
        let is_gzip = match encoding {
            Encoding::Gzip => !self.is_empty,
            Encoding::Unknown => head.starts_with(&GZIP_MAGIC),
        };
        let rest = stream::try_unfold(self, |mut wire| async move {
            let chunk = wire.next().await.map_err(io_error)?;
            Ok(chunk.map(|chunk| (chunk, wire)))
        });
        let chunks = stream::once(async { Ok(Bytes::from(head)) }).chain(rest);
        if !is_gzip {
            return Ok(chunks.boxed());
        }
        let mut decoder = GzipDecoder::new(StreamReader::new(chunks.boxed()));
        decoder.multiple_members(true);
        Ok(ReaderStream::with_capacity(decoder, DECODED_CHUNK_BYTES).boxed())
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match self.arriving().await {
                Ok(Some(chunk)) => {
                    self.has_arrived = true;
                    self.bytes.fetch_add(chunk.len() as u64, Relaxed);
                    self.measured.add(chunk.len());
                    return Ok(Some(chunk));
                }
                Ok(None) if self.length.is_some_and(|length| length != self.bytes.load(Relaxed)) => {
                    self.go_on(Fault::Transport(io::Error::from(io::ErrorKind::UnexpectedEof).into())).await?;
                }
                Ok(None) => return Ok(None),
                Err(fault) => self.go_on(fault).await?,
            }
        }
    }

    async fn arriving(&mut self) -> Result<Option<Bytes>, Fault> {
        let asked = Instant::now();
        let chunk = next_within(self.idle_timeout, &mut self.chunks).await?;
        self.throughput.arrived(chunk.as_ref().map_or(0, Bytes::len), asked.elapsed())?;
        Ok(chunk)
    }

    /// After a fault: the rest of the file, where the server can say that it is the rest of the same one.
    async fn go_on(&mut self, fault: Fault) -> Result<(), Failure> {
        if let Some(pass) = self.pass.take() {
            pass.failed(&fault);
        }
        let from = self.bytes.load(Relaxed);
        let Some(rest) = self.validator.as_ref().and_then(|validator| validator.rest(from)) else {
            return Err(fault.into());
        };
        self.attempts.failed(fault, self.has_arrived).await?;
        let mut response = self.attempts.response(Some(&rest)).await?;
        self.has_arrived = false;
        self.throughput.begin();
        match rest.continuation(&response) {
            Continuation::Rest { length } => {
                self.length = Some(length);
                tracing::debug!(file = self.attempts.file_name(), from, "the transfer goes on where it was cut");
                self.pass = response.extensions_mut().remove();
                self.chunks = response.bytes_stream().boxed();
                Ok(())
            }
            Continuation::Nothing => {
                self.chunks = stream::empty().boxed();
                Ok(())
            }
            Continuation::Whole => {
                self.attempts.begin_with(response);
                Err(Fault::FromTheBeginning.into())
            }
            Continuation::Other => Err(Fault::FromTheBeginning.into()),
        }
    }
}

/// As an error of a stream of bytes; [`failure`] finds it again.
fn io_error(failure: Failure) -> io::Error {
    match failure {
        Failure::Retry(fault) => io::Error::other(fault),
        Failure::Fatal(error) => io::Error::other(error),
    }
}

/// What an error of the decoded stream comes from: the transfer, a gzip stream that ends early, which the network may
/// have cut, or (`Err`) a damaged one, which is damaged at the next attempt too.
pub fn failure(error: io::Error) -> Result<Failure, io::Error> {
    let error = match error.downcast::<Fault>() {
        Ok(fault) => return Ok(fault.into()),
        Err(error) => error,
    };
    match error.downcast::<super::Error>() {
        Ok(error) => Ok(error.into()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Fault::GzipCut.into()),
        Err(error) => Err(error),
    }
}

/// How fast a body arrives. Only the time counts that was spent waiting for the network: a reader may be slow.
struct Throughput {
    min_bytes_per_second: u64,
    waited: Duration,
    bytes: u64,
}

const THROUGHPUT_WINDOW: Duration = Duration::from_mins(2);

impl Throughput {
    fn new(min_bytes_per_second: u64) -> Self {
        Self { min_bytes_per_second, waited: Duration::ZERO, bytes: 0 }
    }

    fn begin(&mut self) {
        (self.bytes, self.waited) = (0, Duration::ZERO);
    }

    fn arrived(&mut self, bytes: usize, waited: Duration) -> Result<(), Fault> {
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.waited < THROUGHPUT_WINDOW {
            return Ok(());
        }
        let (bytes, window) = (self.bytes, self.waited);
        self.begin();
        if bytes < self.min_bytes_per_second.saturating_mul(window.as_secs()) {
            return Err(Fault::TooSlow { bytes, window });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_drips_is_too_slow_and_a_slow_reader_is_not() {
        let mut drip = Throughput::new(1024);
        let first = (1..100).find(|_| drip.arrived(1, Duration::from_secs(2)).is_err());
        assert_eq!(first, Some(60), "one byte every two seconds");
        let mut well = Throughput::new(1024);
        assert!((0..1000).all(|_| well.arrived(16 << 10, Duration::from_secs(10)).is_ok()));
    }
}
