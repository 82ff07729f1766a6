//! Headers of one's own: what a server or its gateway asks for beside FHIR, such as a client id. They may be secrets.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

/// Sent to the origins that may receive the token, and to no others. The values are never printed.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct OwnHeaders(HeaderMap);

/// What fhir-sync says itself, or HTTP between two machines, or a cookie of a session that nobody has.
const NOT_ONES_OWN: [&str; 19] = [
    "accept",
    "accept-encoding",
    "authorization",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "if-range",
    "keep-alive",
    "prefer",
    "proxy-authorization",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

impl OwnHeaders {
    /// # Errors
    /// Why it cannot be one of one's own, without its value.
    pub fn add(&mut self, name: &str, value: &str) -> Result<(), String> {
        let known =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("{name:?} is not the name of a header"))?;
        if NOT_ONES_OWN.contains(&known.as_str()) {
            return Err(format!("{name:?} is a header that fhir-sync or its HTTP library sets; remove it"));
        }
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| format!("{name:?} has a value with characters that a header cannot hold"))?;
        value.set_sensitive(true);
        match self.0.insert(known, value) {
            None => Ok(()),
            Some(_) => Err(format!("{name:?} is set twice; capital letters make no difference")),
        }
    }

    pub(super) fn map(&self) -> &HeaderMap {
        &self.0
    }
}
