//! One file of an export, as a stream of its decoded bytes.
//!
//! What always holds: the reader receives each byte exactly once and in order, whatever the network does; `Ok` means
//! that the transfer and the gzip stream were read to their ends (rule 76). No more than a few chunks are in memory.
//! Bytes are handed on as they are, a BOM included.

use std::{hash::Hasher as _, io, sync::atomic::Ordering::Relaxed};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures::StreamExt;
use reqwest::{Method, Response, StatusCode, header::CONTENT_TYPE};
use tokio::{sync::mpsc::Sender, time::timeout};
use twox_hash::XxHash3_64;

use super::{
    Client, Config, Error, File, FileAuth, Links, Refusal,
    attempts::Attempts,
    failure::{Failure, Fault},
    http::{OnRedirect, RequestSpec, TokenUse},
    links::Link,
    measured,
    range::Rest,
    retry::is_transient,
    wire::{Encoding, Wire, failure},
};
use crate::telemetry::metrics::{self, ByteCounter, Endpoint, FileOutcome, Stage};

/// A file that has been read to its end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// As transferred, in the reading that reached the end.
    pub wire_bytes: u64,
    /// Decoded: what the reader received.
    pub bytes: u64,
    /// Of the decoded bytes, where [`HttpConfig::hash_files`](super::HttpConfig::hash_files) asks for it: names what the
    /// reader received, however it was transferred.
    pub sha256: Option<[u8; 32]>,
}

const FILE: &[(&str, &str)] = &[("accept-encoding", "gzip")];

impl Client {
    /// Streams a file, decoded, into a bounded channel, which slows the transfer down to the reader's pace. After an
    /// interruption the transfer goes on where it was cut, or else the file is read again from its beginning; what the
    /// reader already has is compared, not sent again.
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
        let receipt = tokio::select! {
            biased;
            receipt = timeout(limit, self.deliver(file, links, into)) => {
                receipt.unwrap_or_else(|_| Err(Error::TransferTime { file: file.name.clone(), limit }))
            }
            // Between two chunks too: a silent server must not keep a download that has no reader.
            () = receiver.closed() => Err(Error::Abandoned { file: file.name.clone() }),
        };
        metrics::file_ended(if receipt.is_ok() { FileOutcome::Complete } else { FileOutcome::Failed });
        measured::checked(&receipt);
        receipt
    }

    async fn deliver(&self, file: &File, links: &Links, into: Sender<Bytes>) -> Result<Receipt, Error> {
        let mut delivery = Delivery::new(file, into, &self.config);
        let mut attempts = Attempts::new(self, file, links).await;
        loop {
            let response = attempts.beginning().await?;
            let received_before = delivery.received_bytes;
            match read_through(file, &mut attempts, response, &mut delivery).await {
                Ok(wire_bytes) => {
                    attempts.ended().await;
                    return Ok(delivery.receipt(wire_bytes));
                }
                Err(Failure::Retry(Fault::FromTheBeginning)) => {}
                Err(Failure::Retry(fault)) => {
                    attempts.failed(fault, delivery.received_bytes > received_before).await?;
                }
                Err(Failure::Fatal(error)) => return Err(error),
            }
        }
    }

    /// A response with the file. It has its rest, or nothing, only where a rest is asked for.
    pub(super) async fn request_file(
        &self,
        file: &File,
        link: &Link,
        rest: Option<&Rest>,
    ) -> Result<Response, Failure> {
        self.origins.check(&link.url, &self.config.server, &file.name)?;
        let spec = RequestSpec {
            endpoint: Endpoint::File,
            method: Method::GET,
            url: &link.url,
            // With another Accept HAPI wraps the file in a Binary resource.
            accept: "application/fhir+ndjson",
            headers: FILE,
            body: None,
            rest,
            token: self.token_for(link),
            on_redirect: OnRedirect::Follow,
            context: &file.name,
        };
        let response = self.send(&spec).await?;
        match response.status() {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(response),
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if rest.is_some() => Ok(response),
            status @ (StatusCode::NOT_FOUND | StatusCode::GONE) => {
                Err(Error::FileGone { file: file.name.clone(), status }.into())
            }
            status if is_transient(status) => Err(self.http.fault(response).await.into()),
            _ => Err(self.file_refusal(file, link, response).await.into()),
        }
    }

    /// Whether the request for a file carries a token, where its origin may have it (rules 89, 90 and 92). Elsewhere
    /// the file is asked for without one: the manifest may say `true` of links that are signed.
    fn token_for(&self, link: &Link) -> TokenUse {
        match (self.config.file_auth, link.requires_access_token) {
            (FileAuth::Always, _) | (FileAuth::Auto, true) => TokenUse::WhereAllowed,
            (FileAuth::Never, _) | (FileAuth::Auto, false) => TokenUse::Never,
        }
    }

    pub(super) fn sends_token(&self, link: &Link) -> bool {
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

/// Reads the file once, from its first byte to its last. Gives the number of bytes that were transferred.
async fn read_through(
    file: &File,
    attempts: &mut Attempts<'_>,
    response: Response,
    delivery: &mut Delivery<'_>,
) -> Result<u64, Failure> {
    let mut reading = delivery.begin(is_html(&response));
    let max_ratio = attempts.config().limits.max_decompression_ratio;
    // An empty file; where the manifest announced lines, the reader finds that they are missing.
    if response.status() == StatusCode::NO_CONTENT {
        return delivery.end().map(|()| 0);
    }
    let encoding = Encoding::of(&response).map_err(|reason| not_ndjson(file, reason))?;
    let wire = Wire::new(attempts, response);
    let wire_bytes = wire.counter();
    let mut chunks = wire.decoded(encoding).await?;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| failed(file, error))?;
        delivery.check_ratio(chunk.len(), wire_bytes.load(Relaxed), max_ratio)?;
        delivery.take(&mut reading, chunk).await?;
    }
    delivery.end()?;
    Ok(wire_bytes.load(Relaxed))
}

fn is_html(response: &Response) -> bool {
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    content_type.trim().to_ascii_lowercase().starts_with("text/html")
}

fn failed(file: &File, error: io::Error) -> Failure {
    failure(error).unwrap_or_else(|damaged| Error::Corrupt { file: file.name.clone(), source: damaged.into() }.into())
}

fn not_ndjson(file: &File, reason: String) -> Failure {
    Failure::Fatal(Error::NotNdjson { file: file.name.clone(), reason })
}

/// What the reader has received so far, and the reading that is going on. A reading that begins again is compared with
/// what the reader already has, by a hash that finds a file that has changed. It resists no server that means to deceive,
/// which could send wrong resources in the first place.
struct Delivery<'a> {
    file: &'a File,
    into: Sender<Bytes>,
    max_bytes: u64,
    received_bytes: u64,
    received_hash: u64,
    sha256: Option<Context>,
    /// Of the reading.
    read_bytes: u64,
    measured: ByteCounter,
    hash: XxHash3_64,
}

/// One reading of the file, and what its beginning looks like.
struct Reading {
    /// The server calls it a page. Some call NDJSON so too; the first byte tells.
    is_html: bool,
    first_bytes: FirstBytes,
}

/// How much is known of the beginning of a file.
enum FirstBytes {
    /// This many bytes of a BOM were read.
    Bom(usize),
    Blank,
    Object,
}

/// A small file may be compressed as well as it can: it harms nobody.
const UNSUSPICIOUS_BYTES: u64 = 16 << 20;

const BOM: [u8; 3] = [0xef, 0xbb, 0xbf];

impl<'a> Delivery<'a> {
    fn new(file: &'a File, into: Sender<Bytes>, config: &Config) -> Self {
        let hash = XxHash3_64::default();
        Self {
            file,
            into,
            max_bytes: config.limits.max_file_bytes,
            received_bytes: 0,
            received_hash: hash.finish(),
            sha256: config.http.hash_files.then(|| Context::new(&SHA256)),
            read_bytes: 0,
            measured: ByteCounter::of(Stage::Decoded),
            hash,
        }
    }

    fn begin(&mut self, is_html: bool) -> Reading {
        if self.read_bytes == self.received_bytes {
            self.received_hash = self.hash.finish();
        }
        self.read_bytes = 0;
        self.hash = XxHash3_64::default();
        Reading { is_html, first_bytes: FirstBytes::Bom(0) }
    }

    /// Whether a chunk still fits to what was transferred: a few kilobytes of gzip can hold a gigabyte.
    fn check_ratio(&self, chunk_bytes: usize, wire_bytes: u64, limit: u32) -> Result<(), Failure> {
        let read_bytes = self.read_bytes + chunk_bytes as u64;
        if read_bytes > UNSUSPICIOUS_BYTES && read_bytes / u64::from(limit) > wire_bytes {
            return Err(Error::DecompressionRatio { file: self.file.name.clone(), limit }.into());
        }
        Ok(())
    }

    async fn take(&mut self, reading: &mut Reading, mut chunk: Bytes) -> Result<(), Failure> {
        if let Err(reason) = reading.first_bytes.read(&chunk) {
            return Err(if reading.is_html { Fault::Page.into() } else { not_ndjson(self.file, reason.to_owned()) });
        }
        let again = usize::try_from(self.received_bytes - self.read_bytes).unwrap_or(usize::MAX).min(chunk.len());
        if again > 0 {
            self.read(&chunk.split_to(again));
            if self.read_bytes == self.received_bytes && self.hash.finish() != self.received_hash {
                return Err(self.changed());
            }
        }
        if chunk.is_empty() {
            return Ok(());
        }
        if self.received_bytes + chunk.len() as u64 > self.max_bytes {
            let way_out = "raise server.http.max_file_size if this size is right";
            let (context, limit_bytes) = (self.file.name.clone(), self.max_bytes);
            return Err(Error::TooLarge { context, limit_bytes, way_out }.into());
        }
        self.read(&chunk);
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(&chunk);
        }
        self.received_bytes = self.read_bytes;
        self.measured.add(chunk.len());
        self.into.send(chunk).await.map_err(|_| Error::Abandoned { file: self.file.name.clone() }.into())
    }

    fn read(&mut self, bytes: &[u8]) {
        self.hash.write(bytes);
        self.read_bytes += bytes.len() as u64;
    }

    /// At the end of a reading: it must not be shorter than the one before.
    fn end(&self) -> Result<(), Failure> {
        if self.read_bytes == self.received_bytes { Ok(()) } else { Err(self.changed()) }
    }

    fn receipt(self, wire_bytes: u64) -> Receipt {
        Receipt { wire_bytes, bytes: self.received_bytes, sha256: self.sha256.map(digest) }
    }

    fn changed(&self) -> Failure {
        Failure::Fatal(Error::FileChanged { file: self.file.name.clone() })
    }
}

fn digest(hash: Context) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(hash.finish().as_ref());
    sha256
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
