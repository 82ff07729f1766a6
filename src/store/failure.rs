//! A failure: why a store did not do what it was asked for, in one sentence for people.
//!
//! What always holds: a failure has no URL but that of the endpoint, no query, no header and nothing of an answer but
//! its status and its code.

use std::{error::Error, fmt, io};

#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
use object_store::client::{HttpError, HttpErrorKind};

/// Why a request failed, for the last time.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct Failure {
    pub cause: Cause,
    /// Of the response, if there was one.
    pub status: Option<u16>,
    /// What the store calls it, such as `AccessDenied`.
    pub code: Option<String>,
}

/// Causes differ where the operator does something different about them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cause {
    /// The credentials were good once.
    Expired,
    /// The store does not know them, or they do not fit together.
    Refused,
    /// There are none; the phrase says what was asked in vain.
    Missing(String),
    /// They may not do this.
    Denied,
    NoBucket,
    OtherRegion,
    ClockSkew,
    /// It asks for fewer requests, or has a fault.
    Busy,
    /// Nobody vouches for its certificate, or it is for another host.
    Certificate(&'static str),
    Unreachable(String),
    /// What nobody was prepared for.
    Other(String),
}

impl Failure {
    pub fn new(cause: Cause) -> Self {
        Self { cause, status: None, code: None }
    }

    /// The failure that an error has among its causes.
    pub fn within<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        causes(error).find_map(|cause| cause.downcast_ref())
    }

    /// What an error of `object_store` means. `endpoint` is where requests go.
    pub fn of(error: &(dyn Error + 'static), endpoint: &str) -> Self {
        if let Some(failure) = Self::within(error) {
            return failure.clone();
        }
        #[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
        if let Some(http) = causes(error).find_map(|cause| cause.downcast_ref::<HttpError>()) {
            return Self::new(of_connection(http, endpoint));
        }
        // The type of these errors is not public, their text is the only way to the answer.
        let text = causes(error).map(ToString::to_string).find(|text| text.contains(STATUS)).unwrap_or_default();
        let status = text.split_once(STATUS).and_then(|(_, rest)| rest.get(..3)?.parse().ok());
        let whole = error.to_string();
        let code = code(&text).or_else(|| code(&whole));
        let cause = match (status, code.as_deref()) {
            (None, None) if whole.contains("redirect without LOCATION") => Cause::OtherRegion,
            (None, None) => Cause::Other(without_urls(&whole)),
            (status, code) => of_answer(status, code),
        };
        Self { cause, status, code }
    }

    /// Whether other credentials could be accepted, so that it makes sense to read them again. A response to `HEAD` has
    /// no code, and an expired token may be answered with 400.
    pub fn is_of_credentials(&self) -> bool {
        match (&self.cause, self.status) {
            (Cause::Expired | Cause::Refused, _) => true,
            (_, Some(400 | 401 | 403)) => self.code.is_none(),
            _ => false,
        }
    }

    /// Whether the next attempt may succeed although nobody did anything.
    pub fn is_transient(&self) -> bool {
        match self.cause {
            Cause::Busy | Cause::Unreachable(_) | Cause::Other(_) | Cause::Expired => true,
            Cause::Refused
            | Cause::Missing(_)
            | Cause::Denied
            | Cause::NoBucket
            | Cause::OtherRegion
            | Cause::ClockSkew
            | Cause::Certificate(_) => false,
        }
    }

    /// Whether the configuration names what can never work.
    pub fn is_of_configuration(&self) -> bool {
        matches!(self.cause, Cause::Refused | Cause::NoBucket | Cause::OtherRegion | Cause::Certificate(_))
    }
}

impl fmt::Display for Failure {
    /// Goes behind the name of a place.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answer = match (self.status, &self.code) {
            (Some(status), Some(code)) => format!(" ({status} {code})"),
            (Some(status), None) => format!(" ({status})"),
            (None, Some(code)) => format!(" ({code})"),
            (None, None) => String::new(),
        };
        match &self.cause {
            Cause::Expired => write!(
                out,
                "the credentials have expired{answer}; renew them: files and commands are read again, variables of the \
                 environment at a start only"
            ),
            Cause::Refused => write!(
                out,
                "the store does not accept the credentials{answer}; correct those of storage_options, or of the \
                 environment"
            ),
            Cause::Missing(asked) => write!(
                out,
                "there are no credentials: {asked}; name some in storage_options, or give this machine a role"
            ),
            Cause::Denied => write!(
                out,
                "the credentials may not do this{answer}; docs/stores.md lists the permissions that are needed"
            ),
            Cause::NoBucket => {
                write!(out, "there is no such bucket or container{answer}; create it, or correct the URL")
            }
            Cause::OtherRegion => {
                write!(out, "the bucket is in another region{answer}; set aws_region in storage_options")
            }
            Cause::ClockSkew => write!(
                out,
                "the store refuses requests because the clock of this host is wrong{answer}; have it synchronised"
            ),
            Cause::Busy => write!(
                out,
                "the store did not take the request, however often it was repeated{answer}; the next run tries again"
            ),
            Cause::Certificate(problem) => write!(
                out,
                "the certificate of the store {problem}; if it is from an authority of your own, name the file with \
                 the authority in ca_file"
            ),
            Cause::Unreachable(problem) => write!(
                out,
                "the store cannot be reached: {problem}; check the endpoint, the network and the proxy between"
            ),
            Cause::Other(text) if text.is_empty() => write!(out, "the store refused the request{answer}"),
            Cause::Other(text) => write!(out, "{text}{answer}"),
        }
    }
}

/// Before the status in the text of an error of `object_store`.
const STATUS: &str = "status code: ";

fn of_answer(status: Option<u16>, code: Option<&str>) -> Cause {
    match (status, code.unwrap_or_default()) {
        (_, "ExpiredToken" | "TokenRefreshRequired") => Cause::Expired,
        (
            _,
            "InvalidToken"
            | "InvalidAccessKeyId"
            | "SignatureDoesNotMatch"
            | "InvalidSecurity"
            | "NotSignedUp"
            | "AuthenticationFailed"
            | "InvalidAuthenticationInfo"
            | "NoAuthenticationInformation",
        )
        | (Some(401), _) => Cause::Refused,
        (_, "RequestTimeTooSkewed") => Cause::ClockSkew,
        (_, "NoSuchBucket" | "ContainerNotFound") => Cause::NoBucket,
        (_, "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException") => {
            Cause::OtherRegion
        }
        (_, "SlowDown" | "ServerBusy" | "InternalError" | "OperationTimedOut" | "RequestTimeout") => Cause::Busy,
        (Some(429 | 500..=599), _) => Cause::Busy,
        (Some(403), _) | (_, "AccessDenied") => Cause::Denied,
        _ => Cause::Other(String::new()),
    }
}

#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
fn of_connection(error: &HttpError, endpoint: &str) -> Cause {
    let tls = causes(error).find_map(|cause| cause.downcast_ref::<rustls::Error>());
    if let Some(rustls::Error::InvalidCertificate(problem)) = tls {
        use rustls::CertificateError as E;
        return Cause::Certificate(match problem {
            E::UnknownIssuer => "is from an authority that this host does not trust",
            E::Expired | E::ExpiredContext { .. } => "has expired",
            E::NotValidForName | E::NotValidForNameContext { .. } => "is for another host name",
            E::NotValidYet | E::NotValidYetContext { .. } => "is not valid yet",
            _ => "is not valid",
        });
    }
    Cause::Unreachable(format!("{endpoint}: {}", problem(error)))
}

/// In a few words.
#[cfg(any(feature = "s3", feature = "azure", feature = "gcs"))]
pub fn problem(error: &HttpError) -> String {
    match error.kind() {
        HttpErrorKind::Timeout => "it did not answer in time".to_owned(),
        _ => causes(error).last().map(|cause| without_numbers(&cause.to_string())).unwrap_or_default(),
    }
}

/// "Connection refused (os error 111)" says the same twice.
fn without_numbers(text: &str) -> String {
    text.split(" (os error ").next().unwrap_or_default().to_owned()
}

/// The code of an answer in XML, or of an entry in the answer to a deletion of several objects.
fn code(text: &str) -> Option<String> {
    const MAX_CODE_BYTES: usize = 64;
    let within = |start: &str, end: &str| text.split_once(start)?.1.split_once(end).map(|(code, _)| code);
    let code = within("<Code>", "</Code>").or_else(|| within("(code: ", ")"))?;
    let is_code = code.len() <= MAX_CODE_BYTES && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_code && !code.is_empty()).then(|| code.to_owned())
}

/// The first words of a text, as long as nothing that looks like a URL is in them.
fn without_urls(text: &str) -> String {
    const MAX_WORDS: usize = 40;
    let words = text.split_whitespace().take(MAX_WORDS);
    words.map(|word| if word.contains("://") { "…" } else { word }).collect::<Vec<_>>().join(" ")
}

/// An error and its causes; an `io::Error` hides the first of them.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| {
        let error: &'a (dyn Error + 'static) = *error;
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        }
    })
}
