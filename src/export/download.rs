//! One file of an export, as a stream of its decoded bytes.
//!
//! What always holds: the reader receives each byte exactly once and in order, whatever the network does; `Ok` means
//! that the transfer and the gzip stream were read to their ends (rule 76). No more than a few chunks are in memory.
//! Bytes are handed on as they are, a BOM included.

use std::{
    io,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use async_compression::tokio::bufread::GzipDecoder;
use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Buf, Bytes};
use futures::{StreamExt, stream, stream::BoxStream};
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
};
use tokio::{
    sync::mpsc::Sender,
    time::{Instant, timeout},
};
use tokio_util::io::{ReaderStream, StreamReader};

use super::{
    Client, Error, File, FileAuth, Links, Refusal,
    error::code,
    failure::{Failure, Fault},
    http::{GZIP_MAGIC, OnRedirect, RequestSpec, TokenUse, next_within},
    links::Link,
    redirect::check_url,
    retry::{Retries, is_transient},
};

/// A file that has been read to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// As transferred, in the reading that reached the end.
    pub wire_bytes: u64,
    /// Decoded: what the reader received.
    pub bytes: u64,
    /// Of the decoded bytes: names what the reader received, however it was transferred.
    pub sha256: [u8; 32],
}

const FILE: &[(&str, &str)] = &[("accept-encoding", "gzip")];
const DECODED_CHUNK_BYTES: usize = 64 * 1024;

impl Client {
    /// Streams a file, decoded, into a bounded channel, which slows the transfer down to the reader's pace. After an
    /// interruption the file is read again from its beginning; what the reader already has is compared, not sent again.
    ///
    /// Where the link is refused, the download goes on by a new one from `links`.
    ///
    /// # Errors
    /// After any of them, what was read of the file must be discarded. [`Error::FileGone`] and
    /// [`Error::FileDenied`]: a new link did not help either. [`Error::LinkExpired`]: there is no new one.
    /// [`Error::ForeignOrigin`]: the file needs a token that its
    /// origin may not have. [`Error::Abandoned`] when the receiver was dropped.
    pub async fn download(&self, file: &File, links: &Links, into: Sender<Bytes>) -> Result<Receipt, Error> {
        let (receiver, limit) = (into.clone(), self.config.limits.max_transfer_time);
        tokio::select! {
            biased;
            receipt = timeout(limit, self.deliver(file, links, into)) => {
                receipt.unwrap_or_else(|_| Err(Error::TransferTime { file: file.name.clone(), limit }))
            }
            // Between two chunks too: a silent server must not keep a download that has no reader.
            () = receiver.closed() => Err(Error::Abandoned { file: file.name.clone() }),
        }
    }

    async fn deliver(&self, file: &File, links: &Links, into: Sender<Bytes>) -> Result<Receipt, Error> {
        let mut delivery = Delivery::new(file, into, self.config.limits.max_file_bytes);
        let mut retries = Retries::new(&self.config.http);
        let mut link = links.of(file).await;
        let mut refused_at: Option<Instant> = None;
        let mut is_repeated = false;
        loop {
            let bytes_before = delivery.bytes;
            let read = self.read_through(file, &link, &mut delivery).await;
            // A file that drips makes progress for ever.
            if delivery.bytes > bytes_before && !matches!(read, Err(Failure::Retry(Fault::TooSlow { .. }))) {
                retries.reached();
                refused_at = None;
            }
            match read {
                Ok(wire_bytes) => {
                    links.worked(&link).await;
                    return Ok(delivery.receipt(wire_bytes));
                }
                Err(Failure::Retry(fault)) => retries.pause(&file.name, fault).await?,
                // A link that is refused although it is newer than a refusal has not expired.
                Err(Failure::Fatal(error))
                    if may_have_expired(&error) && refused_at.is_none_or(|at| link.fetched_at < at) =>
                {
                    refused_at = Some(Instant::now());
                    let fresh = links.renewed(self, file, &link, error).await?;
                    is_repeated = fresh.url == link.url;
                    link = fresh;
                }
                // The server does not sign it again, so it opens nothing as long as the export exists.
                Err(Failure::Fatal(Error::FileDenied { file, status, .. }))
                    if is_repeated && link.url.query().is_some() && !self.sends_token(&link) =>
                {
                    return Err(Error::LinkExpired { file, status });
                }
                Err(Failure::Fatal(error)) => return Err(error),
            }
        }
    }

    /// Reads the file once, from its first byte to its last. Gives the number of bytes that were transferred.
    async fn read_through(&self, file: &File, link: &Link, delivery: &mut Delivery<'_>) -> Result<u64, Failure> {
        check_url(&link.url, Some(&self.config.server), self.config.allow_http)
            .map_err(|reason| Error::UnusableUrl { context: file.name.clone(), reason })?;
        let spec = RequestSpec {
            method: Method::GET,
            url: &link.url,
            // With another Accept HAPI wraps the file in a Binary resource.
            accept: "application/fhir+ndjson",
            headers: FILE,
            token: self.token_for(link),
            on_redirect: OnRedirect::Follow,
            context: &file.name,
        };
        let response = self.send(&spec).await?;
        match response.status() {
            StatusCode::OK => {}
            // An empty file; where the manifest announced lines, the reader finds that they are missing.
            StatusCode::NO_CONTENT => return delivery.end(&Reading::new(false)).map(|()| 0),
            status @ (StatusCode::NOT_FOUND | StatusCode::GONE) => {
                return Err(Error::FileGone { file: file.name.clone(), status }.into());
            }
            status if is_transient(status) => return Err(self.http.fault(response).await.into()),
            _ => return Err(self.file_refusal(file, link, response).await.into()),
        }
        let encoding = Encoding::of(&response).map_err(|reason| not_ndjson(file, reason))?;
        let mut reading = Reading::new(is_html(&response));
        let wire = Wire::new(response, self.config.http.idle_timeout, self.config.limits.min_throughput_bytes);
        let counter = Arc::clone(&wire.bytes);
        let mut chunks = wire.decoded(encoding).await?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| failure(file, error))?;
            delivery.take(&mut reading, chunk).await?;
        }
        delivery.end(&reading)?;
        Ok(counter.load(Relaxed))
    }

    /// Whether the request for a file carries a token, where its origin may have it (rules 89, 90 and 92). Elsewhere
    /// the file is asked for without one: the manifest may say `true` of links that are signed.
    fn token_for(&self, link: &Link) -> TokenUse {
        match (self.config.file_auth, link.requires_access_token) {
            (FileAuth::Always, _) | (FileAuth::Manifest, true) => TokenUse::WhereAllowed,
            (FileAuth::Never, _) | (FileAuth::Manifest, false) => TokenUse::Never,
        }
    }

    fn sends_token(&self, link: &Link) -> bool {
        matches!(self.token_for(link), TokenUse::WhereAllowed)
            && self.tokens.is_some()
            && self.may_have_token(&link.url)
    }

    /// Says what to change, by whether the request had a token (rule 93).
    async fn file_refusal(&self, file: &File, link: &Link, response: Response) -> Error {
        let (name, status) = (file.name.clone(), response.status());
        let issues = self.http.issues(response).await;
        if !matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Error::Refused { context: name, refusal: Refusal::Status { status, issues } };
        }
        let origin = || link.url.origin().ascii_serialization();
        let way_out = match self.token_for(link) {
            _ if self.tokens.is_none() => "if the files need a token, set server.client_id".to_owned(),
            TokenUse::Never => "if the files need a token, set server.file_auth = \"always\"".to_owned(),
            TokenUse::WhereAllowed if self.may_have_token(&link.url) => {
                "check that the scopes cover its type; if its link is signed and takes no token, set \
                 server.file_auth = \"never\""
                    .to_owned()
            }
            TokenUse::WhereAllowed if status == StatusCode::UNAUTHORIZED => {
                return Error::ForeignOrigin { context: name, origin: origin() };
            }
            TokenUse::WhereAllowed => {
                format!(
                    "{} received no token; if it needs one and you trust it, add it to server.token_origins",
                    origin()
                )
            }
        };
        Error::FileDenied { file: name, status, issues, way_out }
    }
}

/// Whether the refusal of a file may be that of a link that has expired (rule 61): stores answer 400, 403, 404 or 410.
fn may_have_expired(error: &Error) -> bool {
    match error {
        Error::FileGone { .. } => true,
        Error::FileDenied { status, .. } => *status != StatusCode::UNAUTHORIZED,
        _ => false,
    }
}

/// What the headers say about the body.
enum Encoding {
    Gzip,
    /// Recognised by the first bytes: object stores send `.ndjson.gz` without a header.
    Unknown,
}

impl Encoding {
    fn of(response: &Response) -> Result<Self, String> {
        let header =
            |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().trim();
        match header(CONTENT_ENCODING).to_ascii_lowercase() {
            gzip if gzip == "gzip" || gzip == "x-gzip" => Ok(Self::Gzip),
            none if none.is_empty() || none == "identity" => Ok(Self::Unknown),
            other => Err(format!("its Content-Encoding is {}, only gzip was requested", code(other))),
        }
    }
}

fn is_html(response: &Response) -> bool {
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.trim().to_ascii_lowercase().starts_with("text/html")
}

/// The body as it is transferred: counted, and with a limit to every silence.
struct Wire {
    chunks: BoxStream<'static, Result<Bytes, io::Error>>,
    bytes: Arc<AtomicU64>,
    /// `Content-Length: 0`.
    empty: bool,
}

impl Wire {
    fn new(response: Response, idle_timeout: Duration, min_throughput_bytes: u64) -> Self {
        let empty = response.headers().get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() == b"0");
        let bytes = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&bytes);
        let throughput = Throughput { min_bytes_per_second: min_throughput_bytes, waited: Duration::ZERO, bytes: 0 };
        let start = (response.bytes_stream(), throughput);
        let chunks = stream::try_unfold(start, move |(mut chunks, mut throughput)| {
            let counter = Arc::clone(&counter);
            async move {
                let asked = Instant::now();
                let chunk = next_within(idle_timeout, &mut chunks).await.map_err(io::Error::other)?;
                throughput.arrived(chunk.as_ref().map_or(0, Bytes::len), asked.elapsed()).map_err(io::Error::other)?;
                counter.fetch_add(chunk.as_ref().map_or(0, Bytes::len) as u64, Relaxed);
                Ok(chunk.map(|chunk| (chunk, (chunks, throughput))))
            }
        });
        Self { chunks: chunks.boxed(), bytes, empty }
    }

    async fn decoded(mut self, encoding: Encoding) -> Result<BoxStream<'static, Result<Bytes, io::Error>>, Failure> {
        let mut head: Vec<u8> = Vec::new();
        while head.len() < GZIP_MAGIC.len() {
            match self.chunks.next().await {
                Some(chunk) => head.extend_from_slice(&chunk.map_err(fault)?),
                None => break,
            }
        }
        let gzip = match encoding {
            Encoding::Gzip => !self.empty,
            Encoding::Unknown => head.starts_with(&GZIP_MAGIC),
        };
        let chunks = stream::once(async { Ok(Bytes::from(head)) }).chain(self.chunks);
        if !gzip {
            return Ok(chunks.boxed());
        }
        let mut decoder = GzipDecoder::new(StreamReader::new(chunks.boxed()));
        decoder.multiple_members(true);
        Ok(ReaderStream::with_capacity(decoder, DECODED_CHUNK_BYTES).boxed())
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
    fn arrived(&mut self, bytes: usize, waited: Duration) -> Result<(), Fault> {
        self.bytes += bytes as u64;
        self.waited += waited;
        if self.waited < THROUGHPUT_WINDOW {
            return Ok(());
        }
        let (bytes, window) = (self.bytes, self.waited);
        (self.bytes, self.waited) = (0, Duration::ZERO);
        if bytes < self.min_bytes_per_second.saturating_mul(window.as_secs()) {
            return Err(Fault::TooSlow { bytes, window });
        }
        Ok(())
    }
}

/// The fault behind an error of the byte stream.
fn fault(error: io::Error) -> Failure {
    match error.downcast::<Fault>() {
        Ok(fault) => Failure::Retry(fault),
        Err(_) => Failure::Retry(Fault::GzipCut),
    }
}

/// A gzip stream that ends early may have been cut by the network; a damaged one is damaged at the next attempt too.
fn failure(file: &File, error: io::Error) -> Failure {
    let is_ours = error.get_ref().and_then(|source| source.downcast_ref::<Fault>()).is_some();
    if is_ours || error.kind() == io::ErrorKind::UnexpectedEof {
        return fault(error);
    }
    Failure::Fatal(Error::Corrupt { file: file.name.clone(), source: error.into() })
}

fn not_ndjson(file: &File, reason: String) -> Failure {
    Failure::Fatal(Error::NotNdjson { file: file.name.clone(), reason })
}

/// What the reader has received so far.
struct Delivery<'a> {
    file: &'a File,
    into: Sender<Bytes>,
    max_bytes: u64,
    bytes: u64,
    hash: Context,
}

/// One reading of the file: first what the reader already has, then the rest.
struct Reading {
    /// The server calls it a page. Some call NDJSON so too; the first byte tells.
    is_html: bool,
    first_bytes: FirstBytes,
    /// How many of the reader's bytes have been read again.
    again_bytes: u64,
    hash: Context,
}

/// How much is known of the beginning of a file.
enum FirstBytes {
    /// This many bytes of a BOM were read.
    Bom(usize),
    Blank,
    Object,
}

const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

impl<'a> Delivery<'a> {
    fn new(file: &'a File, into: Sender<Bytes>, max_bytes: u64) -> Self {
        Self { file, into, max_bytes, bytes: 0, hash: Context::new(&SHA256) }
    }

    async fn take(&mut self, reading: &mut Reading, mut chunk: Bytes) -> Result<(), Failure> {
        if let Err(reason) = reading.first_bytes.read(&chunk) {
            return Err(if reading.is_html { Fault::Page.into() } else { not_ndjson(self.file, reason.to_owned()) });
        }
        let again = usize::try_from(self.bytes - reading.again_bytes).unwrap_or(usize::MAX).min(chunk.len());
        if again > 0 {
            reading.hash.update(&chunk[..again]);
            reading.again_bytes += again as u64;
            chunk.advance(again);
            if reading.again_bytes == self.bytes && self.digest() != digest(&reading.hash) {
                return Err(self.changed());
            }
        }
        if chunk.is_empty() {
            return Ok(());
        }
        if self.bytes + chunk.len() as u64 > self.max_bytes {
            let way_out = "raise server.http.max_file_size if this size is right";
            let (context, limit_bytes) = (self.file.name.clone(), self.max_bytes);
            return Err(Error::TooLarge { context, limit_bytes, way_out }.into());
        }
        self.hash.update(&chunk);
        self.bytes += chunk.len() as u64;
        reading.again_bytes = self.bytes;
        self.into.send(chunk).await.map_err(|_| Error::Abandoned { file: self.file.name.clone() }.into())
    }

    /// At the end of a reading: it must not be shorter than the one before.
    fn end(&self, reading: &Reading) -> Result<(), Failure> {
        if reading.again_bytes == self.bytes { Ok(()) } else { Err(self.changed()) }
    }

    fn receipt(&self, wire_bytes: u64) -> Receipt {
        Receipt { wire_bytes, bytes: self.bytes, sha256: self.digest() }
    }

    fn digest(&self) -> [u8; 32] {
        digest(&self.hash)
    }

    fn changed(&self) -> Failure {
        Failure::Fatal(Error::FileChanged { file: self.file.name.clone() })
    }
}

/// The hash so far; more bytes may follow.
fn digest(hash: &Context) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(hash.clone().finish().as_ref());
    sha256
}

impl Reading {
    fn new(is_html: bool) -> Self {
        Self { is_html, first_bytes: FirstBytes::Bom(0), again_bytes: 0, hash: Context::new(&SHA256) }
    }
}

impl FirstBytes {
    /// The first byte that is not blank begins a JSON object; a BOM may precede it (rule 86).
    fn read(&mut self, chunk: &[u8]) -> Result<(), &'static str> {
        for byte in chunk {
            *self = match (&*self, byte) {
                (Self::Object, _) => return Ok(()),
                (Self::Bom(read), byte) if BOM.get(*read) == Some(byte) => Self::Bom(read + 1),
                (Self::Bom(1 | 2), _) => return Err("it does not begin with a JSON object"),
                (_, b' ' | b'\t' | b'\r' | b'\n') => Self::Blank,
                (_, b'{') => Self::Object,
                (_, b'<') => return Err("the server sent XML or HTML; it may need another Accept or _outputFormat"),
                _ => return Err("it does not begin with a JSON object"),
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_drips_is_too_slow_and_a_slow_reader_is_not() {
        let mut drip = Throughput { min_bytes_per_second: 1024, waited: Duration::ZERO, bytes: 0 };
        let first = (1..100).find(|_| drip.arrived(1, Duration::from_secs(2)).is_err());
        assert_eq!(first, Some(60), "one byte every two seconds");
        let mut well = Throughput { min_bytes_per_second: 1024, waited: Duration::ZERO, bytes: 0 };
        assert!((0..1000).all(|_| well.arrived(16 << 10, Duration::from_secs(10)).is_ok()));
    }
}
