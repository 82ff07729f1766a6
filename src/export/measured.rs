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

/// Counts what was not followed, or not read, because of its URL, its address or its size.
pub fn checked<T>(result: &Result<T, Error>) {
    if let Some(rejection) = result.as_ref().err().and_then(rejection) {
        metrics::rejected(rejection);
    }
}

fn rejection(error: &Error) -> Option<Rejection> {
    match error {
        Error::UnusableUrl { .. } => Some(Rejection::Scheme),
        // Written in the URL, or found for its name.
        Error::RefusedAddress { .. } | Error::Unreachable { source: Fault::RefusedAddress(_), .. } => {
            Some(Rejection::Address)
        }
        Error::TooManyRedirects { .. } => Some(Rejection::Redirects),
        Error::ForeignOrigin { .. } | Error::ForeignTokenEndpoint { .. } => Some(Rejection::Origin),
        Error::TooLarge { .. } | Error::DecompressionRatio { .. } => Some(Rejection::Size),
        _ => None,
    }
}

pub fn token<T>(result: &Result<T, Failure>) {
    metrics::token_requested(token_outcome(result.as_ref().err()));
}

fn token_outcome(failure: Option<&Failure>) -> TokenOutcome {
    match failure {
        None => TokenOutcome::Granted,
        Some(Failure::Retry(_)) => TokenOutcome::Failed,
        // Nothing was asked.
        Some(Failure::Fatal(Error::Key { .. })) => TokenOutcome::NoCredential,
        Some(Failure::Fatal(_)) => TokenOutcome::Refused,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::address::{RefusedAddress, Special};

    fn refused() -> RefusedAddress {
        let address = std::net::Ipv4Addr::new(169, 254, 169, 254).into();
        RefusedAddress { host: "files.example.org".to_owned(), address, special: Special::LinkLocal }
    }

    #[test]
    fn what_is_not_followed_or_not_read_is_counted_under_the_reason_that_the_runbook_has() {
        let text = String::new;
        let unreachable = |source| Error::Unreachable { context: text(), attempts: 1, elapsed: Duration::ZERO, source };
        for (error, expected) in [
            (Error::UnusableUrl { context: text(), reason: text() }, Some(Rejection::Scheme)),
            (Error::RefusedAddress { context: text(), refused: refused() }, Some(Rejection::Address)),
            (unreachable(Fault::RefusedAddress(refused())), Some(Rejection::Address)),
            (unreachable(Fault::Page), None),
            (Error::DecompressionRatio { file: text(), limit: 200 }, Some(Rejection::Size)),
        ] {
            assert_eq!(rejection(&error), expected, "{error}");
        }
    }

    #[test]
    fn a_key_that_cannot_be_read_is_no_refusal_of_the_token_endpoint() {
        let fatal = |error| token_outcome(Some(&Failure::Fatal(error)));
        let text = String::new;
        assert_eq!(fatal(Error::Key { holder: text(), reason: text() }), TokenOutcome::NoCredential);
        assert_eq!(fatal(Error::TokenDenied { context: text(), code: text() }), TokenOutcome::Refused);
        assert_eq!(token_outcome(Some(&Failure::Retry(Fault::Page))), TokenOutcome::Failed);
    }
}
