//! Measured: what the metrics say of requests, jobs and files, in the words of `telemetry`.

use std::time::Duration;

use reqwest::{Response, StatusCode};

use super::{
    Error,
    clock::local_now,
    failure::{Failure, Fault},
    retry::date,
};
use crate::telemetry::metrics::{self, Code, Endpoint, JobEvent, Peer, Rejection, RetryReason, TokenOutcome};

/// A request that was answered, or was not.
pub fn request(endpoint: Endpoint, answer: &Result<Response, Fault>, took: Duration) {
    let status = answer.as_ref().map(Response::status);
    metrics::requested(endpoint, status.map_or(Code::NoAnswer, code), took);
    if let Some(theirs) = answer.as_ref().ok().and_then(|response| date(response.headers())) {
        metrics::clock_skew(peer(endpoint), (local_now() - theirs).num_seconds());
    }
}

/// A request that is sent again.
pub fn retry(endpoint: Endpoint, fault: &Fault) {
    metrics::retried(endpoint, reason(fault));
}

/// The end of a wait for a job. What another run may still wait for is not an end.
pub fn waited<T>(result: &Result<T, Error>) {
    match result {
        Ok(_) => metrics::job(JobEvent::Completed),
        Err(Error::JobLost { .. }) => metrics::job(JobEvent::Lost),
        Err(
            Error::ExportFailed { .. } | Error::NotAManifest { .. } | Error::Deadline { .. } | Error::TooLarge { .. },
        ) => metrics::job(JobEvent::Failed),
        Err(_) => {}
    }
    checked(result);
}

/// Counts what was not followed, or not read, because of its address or size.
pub fn checked<T>(result: &Result<T, Error>) {
    let rejection = match result {
        Err(Error::UnusableUrl { .. }) => Rejection::Scheme,
        Err(Error::TooManyRedirects { .. }) => Rejection::Redirects,
        Err(Error::ForeignOrigin { .. } | Error::ForeignTokenEndpoint { .. }) => Rejection::Origin,
        Err(Error::TooLarge { .. }) => Rejection::Size,
        _ => return,
    };
    metrics::rejected(rejection);
}

pub fn token<T>(result: &Result<T, Failure>) {
    metrics::token_requested(match result {
        Ok(_) => TokenOutcome::Granted,
        Err(Failure::Retry(_)) => TokenOutcome::Failed,
        Err(Failure::Fatal(_)) => TokenOutcome::Refused,
    });
}

/// How many files may be read from a server at the same time.
pub fn downloads_allowed(downloads: usize) {
    metrics::downloads_allowed(downloads);
}

/// The server that was asked for this is not asked for anything as long as this.
pub fn paused(endpoint: Endpoint, pause: Duration) {
    metrics::paused_until(peer(endpoint), local_now() + pause);
}

/// The time between the beginnings of two requests.
pub fn interval(endpoint: Endpoint, interval: Duration) {
    metrics::request_interval(peer(endpoint), interval);
}

fn peer(endpoint: Endpoint) -> Peer {
    match endpoint {
        Endpoint::Token => Peer::TokenEndpoint,
        Endpoint::File => Peer::FileServer,
        Endpoint::Discovery
        | Endpoint::Metadata
        | Endpoint::Count
        | Endpoint::KickOff
        | Endpoint::Status
        | Endpoint::Delete => Peer::FhirServer,
    }
}

fn code(status: StatusCode) -> Code {
    match status {
        StatusCode::UNAUTHORIZED => Code::Unauthorized,
        StatusCode::FORBIDDEN => Code::Forbidden,
        StatusCode::TOO_MANY_REQUESTS => Code::TooManyRequests,
        status if status.is_client_error() => Code::ClientError,
        status if status.is_server_error() => Code::ServerError,
        status if status.is_redirection() => Code::Redirection,
        _ => Code::Success,
    }
}

fn reason(fault: &Fault) -> RetryReason {
    match fault {
        fault if fault.is_rate_limit() => RetryReason::RateLimit,
        Fault::Status { status, .. } if status.is_server_error() => RetryReason::ServerError,
        Fault::Status { .. } => RetryReason::OtherStatus,
        Fault::NotConnected { problem, .. } if problem.is_of_tls() => RetryReason::Tls,
        Fault::NotConnected { .. } | Fault::RefusedAddress(_) => RetryReason::Connect,
        Fault::Transport(_) => RetryReason::Transport,
        Fault::Idle(_) => RetryReason::Timeout,
        Fault::GzipCut | Fault::FromTheBeginning => RetryReason::Truncated,
        Fault::TooSlow { .. } => RetryReason::Slow,
        Fault::Page | Fault::NotAManifest(_) => RetryReason::NotFhir,
    }
}
