//! A scenario: how the server behaves. The default is a friendly one; each knob stands for something that servers do.
//!
//! Knobs may be turned while the server runs. Those that shape files (`lines_per_file`, `outcomes`) count at kick-off,
//! all others at the request.

use std::{collections::BTreeMap, time::Duration};

use axum::http::StatusCode;
use serde_json::Value;
use url::Url;

use super::token::Auth;
use crate::fhir::ResourceType;

/// How the server behaves.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "knobs that are turned one by one, not the states of one thing")]
pub struct Scenario {
    /// So many polls are answered "in progress" before the manifest comes.
    pub polls_before_done: u32,
    /// `Retry-After` of the answers "in progress", as it is sent: seconds, a date, or nonsense.
    pub retry_after: Option<String>,
    /// Every job stays "in progress" for as long as this is set.
    pub hold: bool,
    /// Every status URL answers 404, as after a server lost its jobs (rule 45).
    pub lose_job: bool,
    /// Kick-off answers 429 while so many jobs have not been deleted (rule 34).
    pub max_jobs: usize,

    /// A type with more lines comes in several files.
    pub lines_per_file: usize,
    /// Lines of the files under `error`: an `OperationOutcome` each, mostly.
    pub outcomes: Vec<Value>,
    /// Files per page of the manifest; the pages are linked by `next` (rule 66).
    pub pages: Option<usize>,
    /// What the manifest says as `count`, more or fewer than the lines that are sent.
    pub count_offset: BTreeMap<ResourceType, i64>,
    pub omit_counts: bool,
    pub omit_transaction_time: bool,
    /// Sent as `transactionTime`, verbatim.
    pub transaction_time: Option<String>,
    /// What the manifest says as `requiresAccessToken`; without it, whether `auth` is set. File URLs ask for a token
    /// where it says so.
    pub requires_access_token: Option<bool>,
    /// Files are linked on this origin; see [`Server::open_file_origin`](super::Server::open_file_origin).
    pub file_origin: Option<Url>,

    /// Files are sent compressed to clients that accept it.
    pub gzip: bool,
    /// Files that are not compressed say their length; otherwise they are sent in chunks of unsaid number.
    pub content_length: bool,
    /// Files say `Accept-Ranges` and `ETag`, and a `Range` of them can be had (rule 77).
    pub ranges: bool,
    /// A file's body stops in the middle of its first chunk for as long as this is set.
    pub hold_files: bool,
    /// `Content-Type` of files.
    pub content_type: String,

    /// Requests need an access token; there is a token endpoint that gives it.
    pub auth: Option<Auth>,
    /// What goes wrong, and how often. The first that fits a request strikes.
    pub faults: Vec<Fault>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            polls_before_done: 1,
            retry_after: Some("1".to_owned()),
            hold: false,
            lose_job: false,
            max_jobs: 1_000,
            lines_per_file: 2_000,
            outcomes: Vec::new(),
            pages: None,
            count_offset: BTreeMap::new(),
            omit_counts: false,
            omit_transaction_time: false,
            transaction_time: None,
            requires_access_token: None,
            file_origin: None,
            gzip: true,
            content_length: true,
            ranges: false,
            hold_files: false,
            content_type: "application/fhir+ndjson".to_owned(),
            auth: None,
            faults: Vec::new(),
        }
    }
}

impl Scenario {
    /// Whether files ask for a token, as the manifest says it.
    pub fn requires_access_token(&self) -> bool {
        self.requires_access_token.unwrap_or(self.auth.is_some())
    }

    /// The fault that strikes a request of this path and query; it has struck once more then.
    pub(super) fn strike(&mut self, path: &str) -> Option<Fault> {
        self.take(|fault| fault.path_contains().is_some_and(|part| path.contains(part)))
    }

    /// The fault that strikes where the manifest would be sent.
    pub(super) fn strike_manifest(&mut self) -> Option<String> {
        match self.take(|fault| fault.path_contains().is_none())? {
            Fault::NotAManifest { body, .. } => Some(body),
            _ => None,
        }
    }

    fn take(&mut self, strikes: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let fits = self.faults.iter_mut().filter(|fault| strikes(fault));
        for fault in fits {
            if let Some(left) = fault.times().checked_sub(1) {
                *fault.times() = left;
                return Some(fault.clone());
            }
        }
        None
    }
}

/// Something that goes wrong `times` times, with requests whose path and query contain `path_contains`.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Another answer, without asking the server behind. Its `Content-Type` is guessed from how `body` begins.
    Status { path_contains: String, status: StatusCode, times: u32, retry_after: Option<String>, body: String },
    /// A redirect; `location` may stand on another origin.
    Redirect { path_contains: String, status: StatusCode, location: String, times: u32 },
    /// The request is served, and the connection is cut before a byte of the answer is sent (rule 36).
    LoseAnswer { path_contains: String, times: u32 },
    /// The connection is cut after so many bytes of the body, as sent (compressed, where it is).
    CutAfter { path_contains: String, bytes: usize, times: u32 },
    /// The body ends in good order after so many bytes, without a word about its length.
    EndAfter { path_contains: String, bytes: usize, times: u32 },
    /// The body comes in chunks of so many bytes with a pause before each.
    Slow { path_contains: String, chunk_bytes: usize, pause: Duration, times: u32 },
    /// Status 200 and this body, called `application/json`, in the place of the manifest.
    NotAManifest { body: String, times: u32 },
}

impl Fault {
    fn path_contains(&self) -> Option<&str> {
        match self {
            Self::Status { path_contains, .. }
            | Self::Redirect { path_contains, .. }
            | Self::LoseAnswer { path_contains, .. }
            | Self::CutAfter { path_contains, .. }
            | Self::EndAfter { path_contains, .. }
            | Self::Slow { path_contains, .. } => Some(path_contains),
            Self::NotAManifest { .. } => None,
        }
    }

    fn times(&mut self) -> &mut u32 {
        match self {
            Self::Status { times, .. }
            | Self::Redirect { times, .. }
            | Self::LoseAnswer { times, .. }
            | Self::CutAfter { times, .. }
            | Self::EndAfter { times, .. }
            | Self::Slow { times, .. }
            | Self::NotAManifest { times, .. } => times,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_as_often_as_it_says_and_then_the_next_one_does() {
        let cut = |bytes| Fault::CutAfter { path_contains: "Patient".to_owned(), bytes, times: 1 };
        let mut scenario = Scenario { faults: vec![cut(1), cut(2)], ..Scenario::default() };
        assert!(scenario.strike("/fhir/bulkfiles/1/Observation.1.ndjson").is_none());
        for bytes in [1, 2] {
            let struck = scenario.strike("/fhir/bulkfiles/1/Patient.1.ndjson");
            assert!(matches!(struck, Some(Fault::CutAfter { bytes: of, .. }) if of == bytes));
        }
        assert!(scenario.strike("/fhir/bulkfiles/1/Patient.1.ndjson").is_none());
    }
}
