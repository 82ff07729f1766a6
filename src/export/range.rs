//! Ranges: the rest of a file whose transfer was cut (rule 77). RFC 9110, section 14, defines them.
//!
//! What always holds: a rest is taken only from a server that announced ranges, and only if a strong validator shows
//! that it is the rest of the same bytes.

use chrono::TimeDelta;
use reqwest::{
    Response, StatusCode,
    header::{
        ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, HeaderValue,
        IF_RANGE, LAST_MODIFIED, RANGE,
    },
};

use super::retry;

/// A file that was modified less than this before the response may change again in the same second, so that its date
/// does not tell the two apart (RFC 9110, 8.8.2.2).
const WEAK_FOR: TimeDelta = TimeDelta::minutes(1);

/// By what the server recognises the bytes that it has begun to send.
#[derive(Clone)]
pub struct Validator {
    /// A strong `ETag`, or else a `Last-Modified` that is old enough.
    value: HeaderValue,
    etag: Option<HeaderValue>,
    encoding: Option<HeaderValue>,
    length: Option<u64>,
}

/// The rest of a file, as it is requested.
pub struct Rest {
    from: u64,
    range: HeaderValue,
    validator: Validator,
}

/// What a response to a request for the rest has.
#[derive(Debug, PartialEq, Eq)]
pub enum Continuation {
    /// The file is this long.
    Rest { length: u64 },
    /// The file ends where the transfer was cut.
    Nothing,
    /// The file from its beginning: it has changed, or the server does not serve ranges after all.
    Whole,
    /// Something that cannot be used.
    Other,
}

impl Validator {
    pub fn of(response: &Response) -> Option<Self> {
        let headers = response.headers();
        let serves_ranges = headers.get(ACCEPT_RANGES)?.to_str().ok()?.trim().eq_ignore_ascii_case("bytes");
        let etag = headers.get(ETAG).filter(|etag| etag.as_bytes().starts_with(b"\"")).cloned();
        let value = etag.clone().or_else(|| last_modified(headers))?;
        let (encoding, length) = (headers.get(CONTENT_ENCODING).cloned(), length(headers));
        serves_ranges.then_some(Self { value, etag, encoding, length })
    }

    /// `None` at the first byte: of that there is no rest.
    pub fn rest(&self, from: u64) -> Option<Rest> {
        let range = HeaderValue::try_from(format!("bytes={from}-")).ok().filter(|_| from > 0)?;
        Some(Rest { from, range, validator: self.clone() })
    }
}

impl Rest {
    pub fn headers(&self) -> [(HeaderName, HeaderValue); 2] {
        [(RANGE, self.range.clone()), (IF_RANGE, self.validator.value.clone())]
    }

    pub fn continuation(&self, response: &Response) -> Continuation {
        let headers = response.headers();
        let range = headers.get(CONTENT_RANGE).and_then(|value| ContentRange::parse(value.to_str().ok()?));
        match (response.status(), range) {
            (StatusCode::PARTIAL_CONTENT, Some(range @ ContentRange { bytes: Some((_, last)), .. }))
                if self.is_rest(headers, &range) =>
            {
                Continuation::Rest { length: last + 1 }
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(ContentRange { bytes: None, length: Some(length) }))
                if self.is_end(length) =>
            {
                Continuation::Nothing
            }
            (StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE, _) => Continuation::Other,
            _ => Continuation::Whole,
        }
    }

    /// Whether the transfer was cut at the end of the file, which is this long now.
    fn is_end(&self, length: u64) -> bool {
        length == self.from && self.validator.length.is_none_or(|known| known == length)
    }

    /// A server may send less than the whole rest, and its end would look like that of the file.
    fn is_rest(&self, headers: &HeaderMap, range: &ContentRange) -> bool {
        let Validator { etag, encoding, length: known, .. } = &self.validator;
        let length = known.or(range.length);
        length.zip(range.bytes).is_some_and(|(length, (first, last))| (first, last + 1) == (self.from, length))
            && range.length.is_none_or(|said| Some(said) == length)
            && headers.get(CONTENT_ENCODING) == encoding.as_ref()
            && headers.get(ETAG).is_none_or(|said| etag.as_ref().is_none_or(|known| known == said))
    }
}

fn last_modified(headers: &HeaderMap) -> Option<HeaderValue> {
    let modified = headers.get(LAST_MODIFIED)?;
    let at = retry::http_date(modified.to_str().ok()?.trim())?;
    (retry::date(headers)? - at >= WEAK_FOR).then(|| modified.clone())
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}

/// `bytes 10-99/100`, `bytes 10-99/*`, `bytes */100`.
struct ContentRange {
    /// The first and the last.
    bytes: Option<(u64, u64)>,
    length: Option<u64>,
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (range, length) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let bytes = match range.trim() {
            "*" => None,
            range => {
                let (first, last) = range.split_once('-')?;
                Some((first.trim().parse().ok()?, last.trim().parse::<u64>().ok().filter(|last| *last < u64::MAX)?))
            }
        };
        let length = match length.trim() {
            "*" => None,
            length => Some(length.parse().ok()?),
        };
        Some(Self { bytes, length })
    }
}
