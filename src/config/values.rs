//! Values: each function reads the text of one setting, or says in a phrase why it cannot.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use bytesize::ByteSize;
use url::Url;

use crate::{
    export::Proxy,
    fhir::printable_code,
    store::{self, Location},
};

pub fn text(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// A name that occurs in logs, in tables and in the names of files.
pub fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty() && text.len() <= 64 && text.chars().all(plain) && !text.starts_with('.') {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not a name: use up to 64 letters, digits, - _ and ."))
}

/// A code as a server may report it.
pub fn code(text: &str) -> Result<String, String> {
    let is_code = printable_code(text) == text;
    is_code.then(|| text.to_owned()).ok_or_else(|| format!("{text:?} is not a code such as \"not-found\""))
}

pub fn parsed<T: FromStr<Err: fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("{text:?}: {error}"))
}

pub fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

pub fn number<T: TryFrom<u32>>(text: &str) -> Result<T, String> {
    let number = text.parse().ok().filter(|number| (1..=1000).contains(number));
    number.and_then(|number| T::try_from(number).ok()).ok_or_else(|| format!("{text:?} is not a number from 1 to 1000"))
}

pub fn count(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count| (1..=1_000_000).contains(count));
    count.ok_or_else(|| format!("{text:?} is not a number from 1 to 1000000"))
}

pub fn whole(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a whole number"))
}

pub fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent));
    percent.ok_or_else(|| format!("{text:?} is not a number from 0 to 100"))
}

pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| format!("{text:?} is not a duration such as \"90s\", \"5m\" or \"2h\""))
}

/// A duration above zero.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("{text:?} is too short; it must be longer than 0s")),
        duration => Ok(duration),
    }
}

/// A number of bytes above 0: "64MiB", "1.5GB".
pub fn bytes(text: &str) -> Result<u64, String> {
    let size = text.parse().ok().map(|size: ByteSize| size.as_u64()).filter(|bytes| *bytes > 0);
    size.ok_or_else(|| format!("{text:?} is not a size such as \"64MiB\" or \"2GB\""))
}

/// The lines of a batch are one column, whose texts may have 2 GiB together. A batch has one longest line and some MiB
/// of others.
const MAX_LINE_BYTES: u64 = 1024 * 1024 * 1024;

/// The length of a line, as [`bytes`] reads it.
pub fn line_bytes(text: &str) -> Result<u64, String> {
    let most = |bytes: &u64| *bytes <= MAX_LINE_BYTES;
    Some(bytes(text)?)
        .filter(most)
        .ok_or_else(|| format!("{text:?} is more than 1GiB, the longest line that can be kept"))
}

/// A size as [`bytes`] reads it, or 0.
pub fn bytes_or_none(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { bytes(text) }
}

/// A duration as [`duration`] reads it.
pub fn duration_text(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

/// A size as [`bytes`] reads it, in the largest unit that it is a multiple of.
pub fn size_text(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(size, _)| bytes.is_multiple_of(*size));
    unit.map_or(bytes.to_string(), |(size, name)| format!("{}{name}", bytes / size))
}

pub fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IP address with a port, such as 127.0.0.1:9187"))
}

pub fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("is empty".to_owned()) } else { Ok(PathBuf::from(text)) }
}

pub fn url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("{:?} is not a URL: {error}", without_secrets(text)))?;
    if matches!(url.scheme(), "http" | "https") {
        Ok(url)
    } else {
        Err(format!("{:?} is not an http or https URL", without_secrets(text)))
    }
}

/// Through which proxy requests go.
pub fn proxy(text: &str) -> Result<Proxy, String> {
    match text {
        "none" => Ok(Proxy::None),
        "environment" => Ok(Proxy::Environment),
        text => url(text).map(Proxy::Url),
    }
}

/// A text that should be a URL, for people: without user, password, query and fragment, which may be secrets.
pub fn without_secrets(text: &str) -> String {
    let whole = text;
    let text = whole.split(['?', '#']).next().unwrap_or_default();
    // A password may hold these as well, in a text that is not a URL because of that.
    if whole.contains('@') && !text.contains('@') {
        return whole.split_once("://").map_or("…".to_owned(), |(scheme, _)| format!("{scheme}://…"));
    }
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://…@{rest}"),
        (None, Some((_, rest))) => format!("…@{rest}"),
        (_, None) => text.to_owned(),
    }
}

/// A folder, `file://…`, or a URL of an object store that this binary was built for.
pub fn location(text: &str) -> Result<Location, String> {
    let Some((scheme, _)) = text.split_once("://") else { return path(text).map(Location::Folder) };
    let shown = without_secrets(text);
    let url: Url = text.parse().map_err(|error| format!("{shown:?} is not a URL: {error}"))?;
    if scheme == "file" {
        return url.to_file_path().map(Location::Folder).map_err(|()| format!("{shown:?} does not name a folder"));
    }
    if store::SCHEMES.contains(&scheme) {
        return Ok(Location::ObjectStore(url));
    }
    let built_for = if store::SCHEMES.is_empty() { "none".to_owned() } else { store::SCHEMES.join(", ") };
    Err(format!("{shown:?}: this binary was not built for {scheme}:// (object stores built in: {built_for})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_text_that_should_be_a_url_neither_user_nor_password_is_shown() {
        for (text, shown) in [
            ("https://user:SECRET@host/path?SECRET#SECRET", "https://…@host/path"),
            ("http://user:SEC/RET@host", "http://…@host"),
            ("http://user:SECRET?more@host", "http://…"),
            ("http://user:SECRET#more@host", "http://…"),
            ("user:SECRET@host", "…@host"),
            ("user:SECRET?@host", "…"),
            ("https://host/path?key=SECRET", "https://host/path"),
        ] {
            assert_eq!(without_secrets(text), shown);
        }
    }
}
