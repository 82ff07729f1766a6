//! A scenario: how the server behaves. The default is a server without problems; each setting imitates what some real
//! servers do.
//!
//! Settings may change while the server runs. Those of the files (`lines_per_file`, `outcomes`, `alterations`,
//! `repeats_export`) take effect at kick-off, all others at the next request.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use axum::http::StatusCode;
use chrono::TimeDelta;
use serde_json::Value;
use url::Url;

use super::token::Auth;
use crate::fhir::ResourceType;

/// How the server behaves.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent settings, not the states of one thing")]
pub struct Scenario {
    /// This many polls are answered "in progress" before the manifest is sent.
    pub polls_before_done: u32,
    /// `Retry-After` of the answers "in progress", sent as it is: seconds, a date, or an invalid value.
    pub retry_after: Option<String>,
    /// Every job stays "in progress" while this is set.
    pub hold: bool,
    /// While a job is in progress, its manifest names this many of its files as ready, to clients that allow it
    /// (rule 64).
    pub ready_files: Option<usize>,
    /// A job that was asked for one of these types stays "in progress".
    pub held_types: BTreeSet<ResourceType>,
    /// Every status URL answers 404, as after a server lost its jobs (rule 45).
    pub lose_job: bool,
    /// Kick-off answers 429 while this many jobs have not been deleted (rule 34).
    pub max_jobs: usize,
    /// Any request beyond it is answered 429 (rule 78).
    pub rate_limit: Option<RateLimit>,

    /// By which method a kick-off is accepted; another is answered 405.
    pub methods: Methods,
    /// A kick-off for one of these types is answered 400.
    pub refused_types: BTreeSet<ResourceType>,
    /// That answer names the types.
    pub names_refused_types: bool,
    /// `_since` is accepted, and changes nothing.
    pub ignores_since: bool,
    /// What becomes of `_elements`.
    pub elements: Elements,
    /// Types that exports leave out without a word (rule 21).
    pub left_out: BTreeSet<ResourceType>,
    /// The ids of the groups; any other is answered 404, unless the world has it as a resource. `None`: any id is a
    /// group, of all resources.
    pub groups: Option<BTreeSet<String>>,
    /// Groups cannot be read, only exported.
    pub hides_groups: bool,
    /// What becomes of the files of an export, in this order.
    pub alterations: Vec<Alteration>,
    /// A kick-off gets the export of the kick-off before, with its data and its transactionTime.
    pub repeats_export: bool,
    /// Added to the clock of the world in `Date` and `transactionTime`.
    pub clock_offset: TimeDelta,
    /// `[type]?_summary=count` is answered with the number of resources.
    pub answers_counts: bool,
    /// A type with more lines is split into several files.
    pub lines_per_file: usize,
    /// Lines of the files under `error`, usually one `OperationOutcome` each.
    pub outcomes: Vec<Value>,
    /// Files per page of the manifest; the pages are linked by `next` (rule 66).
    pub pages: Option<usize>,
    /// Added to the `count` that the manifest states for a type, so that it differs from the lines that are sent.
    pub count_offset: BTreeMap<ResourceType, i64>,
    pub omit_counts: bool,
    pub omit_transaction_time: bool,
    /// Sent as `transactionTime`, as it is.
    pub transaction_time: Option<String>,
    /// `requiresAccessToken` of the manifest; by default, whether `auth` is set. Files require a token if it is `true`.
    pub requires_access_token: Option<bool>,
    /// The manifest links files on this origin; see [`Server::open_file_origin`](super::Server::open_file_origin).
    pub file_origin: Option<Url>,

    /// The links of a manifest expire when this many requests for files were made by them, or when the manifest is sent
    /// again with other ones (rule 61): then 403, as stores of objects answer.
    pub link_requests: Option<u32>,

    /// Files are sent compressed to clients that accept it.
    pub gzip: bool,
    /// Every body is sent compressed, whether the client accepts it or not.
    pub gzip_unasked: bool,
    /// Files that are not compressed have a `Content-Length`; otherwise they are sent with chunked encoding.
    pub content_length: bool,
    /// Files have `Accept-Ranges` and `ETag`, and requests with a `Range` are answered with that part (rule 77).
    pub ranges: bool,
    /// A file's body stops in the middle of its first chunk while this is set.
    pub hold_files: bool,
    /// `Content-Type` of files.
    pub content_type: String,

    /// Requests need an access token from the token endpoint.
    pub auth: Option<Auth>,
    /// What goes wrong, and how often. A request gets the first fault that matches it.
    pub faults: Vec<Fault>,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            polls_before_done: 1,
            retry_after: Some("1".to_owned()),
            hold: false,
            ready_files: None,
            held_types: BTreeSet::new(),
            lose_job: false,
            max_jobs: 1_000,
            methods: Methods::Both,
            refused_types: BTreeSet::new(),
            names_refused_types: true,
            ignores_since: false,
            elements: Elements::Tagged,
            rate_limit: None,
            left_out: BTreeSet::new(),
            groups: None,
            hides_groups: false,
            alterations: Vec::new(),
            repeats_export: false,
            clock_offset: TimeDelta::zero(),
            answers_counts: true,
            lines_per_file: 2_000,
            outcomes: Vec::new(),
            pages: None,
            count_offset: BTreeMap::new(),
            omit_counts: false,
            omit_transaction_time: false,
            transaction_time: None,
            requires_access_token: None,
            file_origin: None,
            link_requests: None,
            gzip: true,
            gzip_unasked: false,
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
    /// Whether files require a token, as the manifest states it.
    pub fn requires_access_token(&self) -> bool {
        self.requires_access_token.unwrap_or(self.auth.is_some())
    }

    /// The first fault for a request with this path and query; one of its `times` is used up.
    pub(super) fn take_fault(&mut self, path: &str) -> Option<Fault> {
        self.take(|fault| fault.path_contains().is_some_and(|part| path.contains(part)))
    }

    /// The body to send instead of the manifest, from the first such fault; one of its `times` is used up.
    pub(super) fn take_manifest_fault(&mut self) -> Option<String> {
        match self.take(|fault| fault.path_contains().is_none())? {
            Fault::NotAManifest { body, .. } => Some(body),
            _ => None,
        }
    }

    fn take(&mut self, matches: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let matching = self.faults.iter_mut().filter(|fault| matches(fault));
        for fault in matching {
            if let Some(left) = fault.times().checked_sub(1) {
                *fault.times() = left;
                return Some(fault.clone());
            }
        }
        None
    }
}

/// The methods of a kick-off.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Methods {
    Both,
    Get,
    Post,
}

/// What a server makes of `_elements`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Elements {
    /// The other elements are left out, and the resource says so (rule 26).
    Tagged,
    /// They are left out without a word.
    Untagged,
    Ignored,
}

/// How many requests a server takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RateLimit {
    /// In any time as long as `window`; refused requests do not count.
    pub requests: usize,
    pub window: Duration,
    /// Whether a refusal says when the next request will be taken, in whole seconds.
    pub says_when: bool,
}

/// What some servers make of the files of an export.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Alteration {
    /// The files of this type are one file with one `OperationOutcome`.
    OutcomeInsteadOf(ResourceType),
    /// All resources are in one file, which is listed under the first type.
    MixedTypes,
    /// All resources are in one file without a type, with `Parameters` lines as headers between them.
    Organized,
    /// Each file is a `Binary` with the lines as base64.
    Envelopes,
    /// Each resource is printed over several lines.
    PrettyPrinted,
    /// The first lines of a type lack the `id`.
    WithoutId { of: ResourceType, lines: usize },
    /// A file of a type that FHIR does not know is listed as well.
    UnknownType,
    /// A type without a resource in the export has an empty file all the same, which is answered 204.
    EmptyFiles,
    /// Deletions of types that nobody keeps are among the others.
    ForeignDeletions,
    /// A conditional deletion of this type is among the others; nobody can tell what it deleted.
    ConditionalDeletion(ResourceType),
    /// The last deletion is counted and not sent.
    ShortDeletions,
}

/// A fault that happens `times` times, to requests whose path and query contain `path_contains`.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer is sent and the request is not served. `Content-Type` is derived from the first character of `body`.
    Status { path_contains: String, status: StatusCode, times: u32, retry_after: Option<String>, body: String },
    /// A redirect; `location` may be on another origin.
    Redirect { path_contains: String, status: StatusCode, location: String, times: u32 },
    /// The request is served, and the connection is cut before a byte of the answer is sent (rule 36).
    LoseAnswer { path_contains: String, times: u32 },
    /// The connection is cut after this many bytes of the body, counted as sent (compressed, if it is).
    CutAfter { path_contains: String, bytes: usize, times: u32 },
    /// The body ends regularly after this many bytes; no header states its length.
    EndAfter { path_contains: String, bytes: usize, times: u32 },
    /// The body is sent in chunks of `chunk_bytes`, with a pause before each.
    Slow { path_contains: String, chunk_bytes: usize, pause: Duration, times: u32 },
    /// Status 200 with this body as `application/json`, instead of the manifest.
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
    fn a_fault_happens_as_often_as_it_says_and_then_the_next_one_does() {
        let cut = |bytes| Fault::CutAfter { path_contains: "Patient".to_owned(), bytes, times: 1 };
        let mut scenario = Scenario { faults: vec![cut(1), cut(2)], ..Scenario::default() };
        assert!(scenario.take_fault("/fhir/bulkfiles/1/Observation.1.ndjson").is_none());
        for bytes in [1, 2] {
            let fault = scenario.take_fault("/fhir/bulkfiles/1/Patient.1.ndjson");
            assert!(matches!(fault, Some(Fault::CutAfter { bytes: of, .. }) if of == bytes));
        }
        assert!(scenario.take_fault("/fhir/bulkfiles/1/Patient.1.ndjson").is_none());
    }
}
