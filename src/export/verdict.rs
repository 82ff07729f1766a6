//! Failed polls: how many of them in a row amount to an error, and to which.
//!
//! A fault of the network ends nothing before its patience does; what the server reports about the export itself is
//! believed when it has repeated it for long enough (rule 44, Q-22).

use std::time::Duration;

use reqwest::StatusCode;
use tokio::time::Instant;

use super::{
    Error, HttpConfig, Issues, PollConfig,
    failure::Fault,
    retry::{Retries, is_transient},
};
use crate::telemetry::metrics::Endpoint;

/// How many polls a server must answer with the same verdict before it is believed (rule 44, Q-22).
const MIN_REPORTS: u32 = 5;

/// Polls of one page that failed in a row.
pub struct PollFailures {
    retries: Retries,
    believed_after: Duration,
    believed_after_outage: Duration,
    patience_with_words: Duration,
    verdict: Option<Verdict>,
}

/// What the server reports about the export itself, again and again.
struct Verdict {
    kind: VerdictKind,
    since: Instant,
    reports: u32,
}

#[derive(PartialEq, Eq)]
enum VerdictKind {
    /// A 4xx, or a 200 that is not a manifest.
    Final,
    /// A 5xx with issues: the server may be unwell, or the export failed for good.
    PerhapsOutage,
    /// Only issues that ask for patience, in these words.
    Transient(StatusCode, Issues),
}

impl PollFailures {
    pub fn new(poll: &PollConfig, http: &HttpConfig) -> Self {
        Self {
            retries: Retries::new(http, Endpoint::Status),
            believed_after: poll.believed_after,
            believed_after_outage: poll.believed_after.max(http.outage_patience),
            patience_with_words: poll.patience_with_words,
            verdict: None,
        }
    }

    /// The wait before another poll, or the error that these failures amount to. A fault of the network is neither a
    /// verdict nor the end of one.
    pub fn failed(&mut self, context: &str, fault: Fault) -> Result<Duration, Error> {
        let Some(kind) = VerdictKind::of(&fault) else { return self.retries.failed(context, fault) };
        self.retries.reached();
        let believed_after = match kind {
            VerdictKind::Final => self.believed_after,
            VerdictKind::PerhapsOutage => self.believed_after_outage,
            VerdictKind::Transient(..) => self.patience_with_words,
        };
        let verdict = match self.verdict.take() {
            Some(verdict) if verdict.kind == kind => Verdict { reports: verdict.reports.saturating_add(1), ..verdict },
            _ => Verdict { kind, since: Instant::now(), reports: 1 },
        };
        let is_believed = verdict.reports >= MIN_REPORTS && verdict.since.elapsed() >= believed_after;
        self.verdict = Some(verdict);
        let context = context.to_owned();
        match fault {
            Fault::NotAManifest(reason) if is_believed => Err(Error::NotAManifest { context, reason }),
            Fault::Status { status, issues, .. } if is_believed => Err(Error::ExportFailed { context, status, issues }),
            fault => Ok(self.retries.wait(&context, &fault)),
        }
    }

    pub fn reset(&mut self) {
        self.retries.reset();
        self.verdict = None;
    }
}

impl VerdictKind {
    fn of(fault: &Fault) -> Option<Self> {
        match fault {
            Fault::NotAManifest(_) => Some(Self::Final),
            Fault::Status { status, issues, .. } if issues.are_transient() => {
                Some(Self::Transient(*status, issues.clone()))
            }
            Fault::Status { status, .. } if !is_transient(*status) => Some(Self::Final),
            Fault::Status { issues, .. } if !issues.0.is_empty() => Some(Self::PerhapsOutage),
            Fault::Status { .. }
            | Fault::NotConnected { .. }
            | Fault::RefusedAddress(_)
            | Fault::Transport(_)
            | Fault::Idle(_)
            | Fault::Page
            | Fault::TooSlow { .. }
            | Fault::GzipCut
            | Fault::FromTheBeginning => None,
        }
    }
}
