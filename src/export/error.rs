//! What can go wrong between us and a FHIR server, one variant for each thing that a caller does differently.
//!
//! No variant holds a token, a key, a URL's query, or the content of a resource. An `OperationOutcome`'s free text is
//! held of the answer to a kick-off alone, printable and cut short.

use std::{collections::BTreeSet, fmt, time::Duration};

use reqwest::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderMap},
};
use url::Url;

use super::{
    address::RefusedAddress,
    failure::{Cause, Fault},
};
use crate::fhir::{self, Issue, ResourceType};

/// `context` is what was asked for and where, such as `kick-off at https://ehr.example.org/fhir/$export`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that cannot work; nothing was sent.
    #[error("{setting} {reason}")]
    Config { setting: &'static str, reason: String },
    /// A private key or another secret that cannot be used; `holder` is its place.
    #[error("{holder} {reason}")]
    Key { holder: String, reason: String },
    #[error("cannot set up the HTTP client")]
    Setup { source: Cause },

    /// A URL that no request is sent to: not HTTP, unencrypted, or a downgrade from https (rule 1).
    #[error("{context}: {reason}")]
    UnusableUrl { context: String, reason: String },
    /// A URL with an address that no request is sent to. A name that has such an address is [`Fault::RefusedAddress`].
    #[error("{context}: {refused}")]
    RefusedAddress { context: String, refused: RefusedAddress },
    /// An origin requires a token and may not have it (rule 92).
    #[error(
        "{context}: {origin} requires an access token and is not allowed to receive it; if you trust it, add it to \
         server.token_origins; if it is an inner address of the server itself, set server.rewrite_origin = [\"{origin}\"]"
    )]
    ForeignOrigin { context: String, origin: String },
    #[error("{context}: more than {limit} redirects; ask the administrator of the server for the final address")]
    TooManyRedirects { context: String, limit: usize },

    /// Neither discovery document names a token endpoint.
    #[error(
        "no token endpoint is published at {well_known} or in the server's CapabilityStatement; set server.token_url"
    )]
    NoTokenEndpoint { well_known: String },
    /// A server publishes a token endpoint that is neither its own nor trusted (rule 92).
    #[error(
        "the server publishes a token endpoint at {origin}, which is not allowed to receive our signed assertion; if you \
         trust it, add it to server.token_origins, or set server.token_url; if it is an inner address of the server \
         itself, set server.rewrite_origin = [\"{origin}\"]"
    )]
    ForeignTokenEndpoint { origin: String },
    /// The server does not accept assertions that our key signs (rule 118).
    #[error(
        "the server's token endpoint accepts assertions signed with {theirs}, and our key signs with {ours}; register a key \
         for one of these (`fhir-sync keygen --algorithm`), or set server.token_url and server.scopes if the list is wrong"
    )]
    Algorithm { ours: &'static str, theirs: String },
    /// The token endpoint refused us: a mistake in the configuration, which waiting does not resolve (rule 128).
    #[error("{context} refused a token: {code}; check the client id, the registered public key and the scopes")]
    TokenDenied { context: String, code: String },
    /// 401 from a server for which no authorization is configured.
    #[error("{context}: the server requires authorization ({status}) and server.client_id is not set")]
    AuthorizationRequired { context: String, status: StatusCode },
    /// 401 or 403, also with a fresh token.
    #[error(
        "{context}: access denied, {status}, {issues}; check that the scopes cover the requested types and the job"
    )]
    Denied { context: String, status: StatusCode, issues: Issues },

    /// Another export was still running at the end of `kick_off_deadline` (rule 34).
    #[error(
        "{context}: the server was busy with another export for {:.0} s; the next sync asks again",
        waited.as_secs_f64()
    )]
    Busy { context: String, waited: Duration },
    /// An answer that no other attempt makes better.
    #[error("{context}: {refusal}")]
    Refused { context: String, refusal: Refusal },
    /// Patients cannot be named by GET (rule 27).
    #[error(
        "{context}: the server takes no POST, and `patients` cannot be sent by GET; remove `patients` from the export, or \
         export a Group of these patients"
    )]
    PostRefused { context: String },
    /// 202 without a `Content-Location` (rule 32).
    #[error("{context}: accepted, but no Content-Location says where the status of the export is")]
    NoStatusUrl { context: String },
    /// The network or the server failed at every attempt. An export that was begun there may still be running.
    #[error(
        "{context}: {source} ({attempts} attempts in {:.1} s); {}; the next sync tries again",
        elapsed.as_secs_f64(), source.way_out()
    )]
    Unreachable { context: String, attempts: u32, elapsed: Duration, source: Fault },

    /// The server no longer knows the job (rule 45): start another with the old `_since`.
    #[error("{context}: the server no longer has this export, {status}; another one is started")]
    JobLost { context: String, status: StatusCode },
    /// The export itself failed (rule 43).
    #[error("{context}: the export failed on the server, {status}, {issues}")]
    ExportFailed { context: String, status: StatusCode, issues: Issues },
    /// The export took longer than `poll.deadline`.
    #[error(
        "{context}: the export is not complete after {} h; raise server.poll.deadline if exports take that long here",
        deadline.as_secs() / 3600
    )]
    Deadline { context: String, deadline: Duration },
    /// 200 with something other than a completion manifest (rule 46): never an empty export.
    #[error("{context}: not a completion manifest, {reason}")]
    NotAManifest { context: String, reason: String },

    /// 400, 401 or 403 for a file, also by a fresh link (rule 61): it may need a token, or take none.
    #[error("{file}: access denied, {status}, {issues}; {way_out}")]
    FileDenied { file: String, status: StatusCode, issues: Issues, way_out: String },
    /// The same for a link with a query, which may be a signature, that a fresh manifest repeats.
    #[error(
        "{file}: access denied, {status}; its link may have expired, and the server gives no other one; the next sync \
         starts another export"
    )]
    LinkExpired { file: String, status: StatusCode },
    #[error(
        "{file}: not read to its end after {limit} requests, and server.http.max_requests_per_file allows no more; the \
         next sync starts another export"
    )]
    TooManyRequests { file: String, limit: u32 },
    /// 404 or 410 for a file of a complete export (rule 61).
    #[error("{file}: the server no longer has this file, {status}; the next sync starts another export")]
    FileGone { file: String, status: StatusCode },
    /// A refused link, and a manifest that does not name the same files any more (rule 61).
    #[error(
        "{file}: its link was refused, and the manifest is not the same any more: {what}; the next sync starts another \
         export"
    )]
    ManifestChanged { file: String, what: String },
    /// A refused link, and no manifest that has another one.
    #[error(
        "{file}: its link was refused, and the manifest could not be fetched again: {cause}; the next sync goes on with \
         the same export"
    )]
    LinkNotRenewed { file: String, cause: String },
    /// A second reading differs from what was already handed on.
    #[error(
        "{file}: it changed between two readings, so what was read is discarded; the next sync starts another export"
    )]
    FileChanged { file: String },
    /// The gzip stream is damaged, or something follows it (rule 76).
    #[error("{file}: the gzip stream is damaged; the next sync starts another export")]
    Corrupt { file: String, source: Cause },
    #[error("{file}: not NDJSON, {reason}")]
    NotNdjson { file: String, reason: String },
    /// A file or a manifest beyond its limit.
    #[error("{context}: larger than {limit_bytes} bytes; {way_out}")]
    TooLarge { context: String, limit_bytes: u64, way_out: &'static str },
    /// A gzip stream that holds far more than was transferred.
    #[error(
        "{file}: holds more than {limit} times as many bytes as were transferred, as a gzip bomb does; raise \
         server.http.max_decompression_ratio if this is right"
    )]
    DecompressionRatio { file: String, limit: u32 },
    /// Attempts and progress, but no end.
    #[error(
        "{file}: not read to its end after {:.1} h; check the network and the server, or raise server.http.max_transfer_time",
        limit.as_secs_f64() / 3600.0
    )]
    TransferTime { file: String, limit: Duration },
    /// The receiver of the bytes was dropped: the rest is not needed.
    #[error("{file}: the download was abandoned by its reader")]
    Abandoned { file: String },
}

impl Error {
    /// The same error again, for those who need a token after one was refused; `None` where asking again may help.
    pub(super) fn of_token_endpoint(&self) -> Option<Self> {
        Some(match self {
            Self::TokenDenied { context, code } => Self::TokenDenied { context: context.clone(), code: code.clone() },
            Self::Algorithm { ours, theirs } => Self::Algorithm { ours, theirs: theirs.clone() },
            Self::NoTokenEndpoint { well_known } => Self::NoTokenEndpoint { well_known: well_known.clone() },
            Self::ForeignTokenEndpoint { origin } => Self::ForeignTokenEndpoint { origin: origin.clone() },
            Self::UnusableUrl { context, reason } => {
                Self::UnusableUrl { context: context.clone(), reason: reason.clone() }
            }
            Self::RefusedAddress { context, refused } => {
                Self::RefusedAddress { context: context.clone(), refused: refused.clone() }
            }
            Self::Unreachable { context, attempts, elapsed, source } => Self::Unreachable {
                context: context.clone(),
                attempts: *attempts,
                elapsed: *elapsed,
                source: source.clone(),
            },
            _ => return None,
        })
    }
}

/// What an answer says that is not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the server answered {status}, {issues}")]
    Status { status: StatusCode, issues: Issues },
    #[error(
        "there is no $export at this URL ({status}, {issues}); check server.url, and that the server offers Bulk Data \
         export at this level"
    )]
    NoExport { status: StatusCode, issues: Issues },
    /// A success, but not the 202 of an accepted export.
    #[error(
        "expected 202 Accepted and got {status} with {content_type}; it may be a login page or a proxy, check server.url"
    )]
    NotAccepted { status: StatusCode, content_type: String },
    #[error("the server redirects to {location} ({status}); set server.url to the final address")]
    Redirected { status: StatusCode, location: String },
}

/// The issues of an answer, their severity and code alone: diagnostics may quote a patient. Those of a kick-off come
/// with the server's words: they are about what was asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Issues(pub Vec<Issue>);

impl Issues {
    /// From a body that may be an `OperationOutcome`, or anything.
    pub fn read(body: &[u8]) -> Self {
        Self(fhir::issues(body))
    }

    /// The same with the server's words, for the answer to a kick-off.
    pub fn read_in_words(body: &[u8]) -> Self {
        Self(fhir::issues_in_words(body))
    }

    /// The severities and codes alone, for where the words may quote a patient or a token.
    #[must_use]
    pub fn without_words(self) -> Self {
        Self(self.0.into_iter().map(|issue| Issue { words: None, ..issue }).collect())
    }

    /// Whether the words are about GET or POST.
    pub fn name_a_method(&self) -> bool {
        let mut words = self.words();
        words.any(|word| matches!(word, "GET" | "POST") || word.eq_ignore_ascii_case("method"))
    }

    /// Of these types, those that the server names: in places, else in its words. "Patient" and "Group" may be the
    /// level of the export, so they count only where nothing else is named.
    pub fn types_named(&self, among: &[ResourceType]) -> Vec<ResourceType> {
        let places: BTreeSet<_> = self.0.iter().flat_map(|issue| issue.types.iter().copied()).collect();
        let words: BTreeSet<_> = self.words().filter_map(|word| word.parse().ok()).collect();
        let is_level = |of: &ResourceType| matches!(of.as_str(), "Patient" | "Group");
        for named in [places, words] {
            let mut named: Vec<_> = among.iter().copied().filter(|of| named.contains(of)).collect();
            if named.iter().any(|of| !is_level(of)) {
                named.retain(|of| !is_level(of));
            }
            if !named.is_empty() {
                return named;
            }
        }
        Vec::new()
    }

    fn words(&self) -> impl Iterator<Item = &str> {
        let texts = self.0.iter().filter_map(|issue| issue.words.as_deref());
        texts.flat_map(|text| text.split(|letter: char| !letter.is_ascii_alphanumeric()))
    }

    /// Whether the server asks to wait, and reports nothing else (rule 43).
    pub fn are_transient(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(Issue::is_transient)
    }
}

/// A longer list is cut short.
const MAX_ISSUES_SHOWN: usize = 10;

impl fmt::Display for Issues {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return out.write_str("without an OperationOutcome");
        }
        for (index, issue) in self.0.iter().take(MAX_ISSUES_SHOWN).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(out, "{comma}{issue}")?;
        }
        if self.0.len() > MAX_ISSUES_SHOWN { out.write_str(", …") } else { Ok(()) }
    }
}

/// A URL for people: without user, query and fragment, which may be secrets (rule 63).
pub fn shown(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

/// A word from a server as it is shown; see [`fhir::printable_code`].
pub fn code(word: impl AsRef<str>) -> String {
    fhir::printable_code(word.as_ref())
}

/// The media type of an answer, such as `text/html`, if it is safe to show.
pub fn content_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'+' | b'-' | b'.');
    match media_type.len() {
        0 => "no Content-Type".to_owned(),
        ..=60 if media_type.bytes().all(is_plain) => media_type,
        _ => "an unknown Content-Type".to_owned(),
    }
}

impl Error {
    /// Whether the refusal of a file may be that of a link that has expired (rule 61): stores answer 400, 403, 404 or
    /// 410.
    pub(super) fn may_be_of_expired_link(&self) -> bool {
        match self {
            Self::FileGone { .. } => true,
            Self::FileDenied { status, .. } => *status != StatusCode::UNAUTHORIZED,
            _ => false,
        }
    }
}
