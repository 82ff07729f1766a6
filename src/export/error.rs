//! What can go wrong between us and a FHIR server, one variant for each thing that a caller does differently.
//!
//! No variant holds a token, a key, a URL's query, or the content of a resource or of an `OperationOutcome`'s free text.

use std::{fmt, path::PathBuf, time::Duration};

use reqwest::StatusCode;
use url::Url;

use crate::fhir::{Issue, operation_outcome};

/// The cause of an error, without its URL.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting that cannot work; nothing was sent.
    #[error("{setting} {reason}")]
    Config { setting: &'static str, reason: String },
    #[error("signing key: {reason}")]
    Key { reason: String },
    #[error("cannot read the signing key {}", path.display())]
    KeyFile { path: PathBuf, source: std::io::Error },
    #[error("cannot set up the HTTP client")]
    Setup { source: Cause },

    /// The server gave a URL that we do not go to: not HTTP, in clear, or a step down from https (rule 1).
    #[error("{context}: {reason}")]
    UnusableUrl { context: String, reason: String },
    /// A token is wanted by an origin that may not have it (rule 92).
    #[error(
        "{context}: {origin} wants an access token and is not allowed one; if it is to be trusted, add it to server.token_origins"
    )]
    ForeignOrigin { context: String, origin: String },
    #[error("{context}: more than {limit} redirects; ask the server for its real address")]
    TooManyRedirects { context: String, limit: usize },

    /// Neither discovery document names a token endpoint.
    #[error("no token endpoint is published at {context}; set server.token_url")]
    NoTokenEndpoint { context: String },
    /// The token endpoint refused us: a fault of configuration, which time does not heal (rule 128).
    #[error("{context} refused a token: {code}; check the client id, the registered public key and the scopes")]
    TokenDenied { context: String, code: String },
    /// 401 or 403, also with a fresh token. For a file: its link may have expired (rule 61).
    #[error(
        "{context}: access denied, {status}, {issues}; check that the scopes cover the requested types and the job"
    )]
    Denied { context: String, status: StatusCode, issues: Issues },

    /// Another export was still running when our patience ended (rule 34).
    #[error("{context}: the server was busy with another export for {}; it is asked again at the next run", waited.as_secs_f64())]
    Busy { context: String, waited: Duration },
    /// An answer that no repetition makes better.
    #[error("{context}: the server answered {status}, {issues}")]
    Refused { context: String, status: StatusCode, issues: Issues },
    /// 202 without a `Content-Location` (rule 32).
    #[error("{context}: accepted, but no Content-Location says where to ask for the result")]
    NoStatusUrl { context: String },
    /// The network or the server failed as often as we try. Whatever was begun there may still be running.
    #[error("{context}: no usable answer in {attempts} attempts; the next run goes on from here")]
    Unreachable { context: String, attempts: u32, source: Cause },

    /// The server no longer knows the job (rule 45): start afresh with the old `_since`.
    #[error("{context}: the server no longer has this export, {status}; it is started afresh")]
    JobLost { context: String, status: StatusCode },
    /// The export itself failed (rule 43).
    #[error("{context}: the export failed on the server, {status}, {issues}")]
    ExportFailed { context: String, status: StatusCode, issues: Issues },
    /// The export took longer than `poll_deadline`.
    #[error("{context}: the export is not done after {} h; raise server.poll.deadline or cancel it", deadline.as_secs() / 3600)]
    Deadline { context: String, deadline: Duration },
    /// 200 with something that is no completion manifest (rule 46): never an empty export.
    #[error("{context}: not a completion manifest, {reason}")]
    NotAManifest { context: String, reason: String },

    /// 404 or 410 for a file of a complete export (rule 61).
    #[error("{file}: the server no longer has it, {status}; a fresh manifest may name it anew")]
    FileGone { file: String, status: StatusCode },
    /// A second reading differs from what was already handed on.
    #[error("{file}: changed between two readings; what was read of it must be discarded")]
    FileChanged { file: String },
    /// The gzip stream is damaged, or something follows it (rule 76).
    #[error("{file}: the gzip stream is damaged, ask for the file again")]
    Corrupt { file: String, source: Cause },
    #[error("{file}: not NDJSON, {reason}")]
    NotNdjson { file: String, reason: String },
    #[error("{context}: larger than {limit_bytes} bytes; raise the limit if this size is right")]
    TooLarge { context: String, limit_bytes: u64 },
    /// The receiver of the bytes went away; nobody wants the rest.
    #[error("{file}: the download was abandoned by its reader")]
    Abandoned { file: String },
}

/// The issues of an answer, severity and code alone: diagnostics may quote a patient.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Issues(pub Vec<Issue>);

impl Issues {
    /// From a body that may be an `OperationOutcome`, or anything.
    pub(super) fn read(body: &[u8]) -> Self {
        let issues = operation_outcome(body).unwrap_or_default().into_iter();
        Self(issues.map(|issue| Issue { severity: code(issue.severity), code: code(issue.code) }).collect())
    }

    /// The server asks for patience and nothing else (rule 43).
    pub(super) fn are_transient(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(Issue::is_transient)
    }
}

/// A longer list is cut short for people.
const ISSUES_SHOWN: usize = 10;

impl fmt::Display for Issues {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return out.write_str("without an OperationOutcome");
        }
        for (index, issue) in self.0.iter().take(ISSUES_SHOWN).enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(out, "{comma}{issue}")?;
        }
        if self.0.len() > ISSUES_SHOWN { out.write_str(", …") } else { Ok(()) }
    }
}

/// A URL for people: without user, query and fragment, which may be secrets (rule 63).
pub(super) fn shown(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), url.path())
}

/// A word from a server that is safe to show: a code as FHIR and OAuth write them, or "unknown".
pub(super) fn code(word: String) -> String {
    let is_code = !word.is_empty()
        && word.len() <= 40
        && word.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'-' | b'_'));
    if is_code { word } else { "unknown".to_owned() }
}
