//! Failures of one attempt: what another attempt may mend, and what it cannot.

use std::time::Duration;

use reqwest::StatusCode;

use super::{Error, Issues};

/// Why there is no answer.
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

/// What may pass by itself. Becomes the source of [`Error::Unreachable`].
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    #[error("the connection failed")]
    Transport(#[source] reqwest::Error),
    #[error("nothing came for {} s", .0.as_secs_f64())]
    Idle(Duration),
    #[error("the server answered {status}, {issues}")]
    Status { status: StatusCode, retry_after: Option<Duration>, issues: Issues },
    #[error("the gzip stream ended early")]
    GzipCut,
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
}
