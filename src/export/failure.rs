//! Failures of one attempt: what another attempt may mend, and what it cannot.
//!
//! What always holds: a fault says in words for people what happened and what to check; of a URL it holds host and port
//! alone.

use std::{fmt, time::Duration};

use reqwest::StatusCode;

use super::{
    Error, Issues,
    address::RefusedAddress,
    connection::{self, Problem},
};

/// Why an attempt did not succeed.
pub enum Failure {
    /// Another attempt may help.
    Retry(Fault),
    Fatal(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Fatal(error)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Retry(fault)
    }
}

/// What may be transient. Becomes the source of [`Error::Unreachable`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    #[error("cannot connect to {host}: {problem}")]
    NotConnected { host: String, problem: Problem },
    #[error("{0}")]
    RefusedAddress(RefusedAddress),
    #[error("the connection failed: {0}")]
    Transport(Cause),
    #[error("nothing arrived for {} s", .0.as_secs_f64())]
    Idle(Duration),
    #[error("the server answered {status}, {issues}")]
    Status { status: StatusCode, retry_after: Option<Duration>, issues: Issues },
    #[error("the gzip stream ended early")]
    GzipCut,
    #[error("only {bytes} bytes arrived in {} s", window.as_secs_f64())]
    TooSlow { bytes: u64, window: Duration },
    /// 200 with a page for people, of a login or of maintenance.
    #[error("the server sent an HTML page")]
    Page,
    /// A transfer cannot go on where it was cut: the file is sent from its beginning, or has to be.
    #[error("the transfer cannot go on where it was cut")]
    FromTheBeginning,
    #[error("{0}")]
    NotAManifest(String),
}

impl Fault {
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// A server that limits the rate is well, and its limit passes.
    pub fn is_rate_limit(&self) -> bool {
        matches!(self, Self::Status { status: StatusCode::TOO_MANY_REQUESTS, .. })
    }

    /// In a word or two, for a line of progress.
    pub fn in_short(&self) -> String {
        match self {
            Self::NotConnected { problem, .. } => problem.to_string(),
            Self::RefusedAddress(_) => "an address that may not be asked".to_owned(),
            Self::Status { status, .. } => status.as_u16().to_string(),
            Self::Transport(_) => "the connection failed".to_owned(),
            Self::Idle(_) => "nothing arrived".to_owned(),
            Self::TooSlow { .. } => "too slow".to_owned(),
            Self::GzipCut | Self::FromTheBeginning => "the transfer was cut".to_owned(),
            Self::Page => "an HTML page".to_owned(),
            Self::NotAManifest(_) => "not a manifest".to_owned(),
        }
    }

    /// Whether no other attempt helps: a certificate, a setting or an address has to be changed first.
    pub fn is_final(&self) -> bool {
        match self {
            Self::NotConnected { problem, .. } => problem.is_final(),
            Self::RefusedAddress(_) => true,
            _ => false,
        }
    }

    /// What a person can do about it.
    pub fn way_out(&self) -> &'static str {
        match self {
            Self::NotConnected { problem, .. } => problem.way_out(),
            Self::RefusedAddress(_) => "check the URLs that the server sends",
            Self::Transport(_) | Self::GzipCut => "check the network and any proxy between this host and the server",
            Self::TooSlow { .. } => "check the network and the server, or lower server.http.min_throughput",
            Self::Idle(_) => "check that the server is not overloaded, or raise server.http.idle_timeout",
            Self::Status { .. } | Self::Page => "check the server and any proxy in front of it",
            Self::NotAManifest(_) | Self::FromTheBeginning => "check the server",
        }
    }
}

impl From<reqwest::Error> for Fault {
    fn from(error: reqwest::Error) -> Self {
        if let Some(refused) = connection::refused_address(&error) {
            return Self::RefusedAddress(refused);
        }
        // In TLS 1.3 a server refuses a client certificate after our side of the handshake has ended.
        let problem = Problem::of(&error).filter(|problem| error.is_connect() || problem.is_of_client_certificate());
        let host = error.url().and_then(|url| Some((url.host_str()?, url.port_or_known_default()?)));
        match (problem, host) {
            (Some(problem), Some((host, port))) => Self::NotConnected { host: format!("{host}:{port}"), problem },
            _ => Self::Transport(error.into()),
        }
    }
}

/// What a library reports, with its own causes, in one line and without a URL: the query of one may be a secret
/// (rule 63).
#[derive(Clone, Debug)]
pub struct Cause(String);

impl From<reqwest::Error> for Cause {
    fn from(error: reqwest::Error) -> Self {
        Self::new(&error.without_url())
    }
}

impl From<std::io::Error> for Cause {
    fn from(error: std::io::Error) -> Self {
        Self::new(&error)
    }
}

impl Cause {
    fn new(error: &dyn std::error::Error) -> Self {
        let texts = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
        Self(texts.collect::<Vec<_>>().join(": "))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Cause {}
