//! A secret URL: whoever knows it can send to its receiver. Neither an error nor a Debug form shows it.

use std::{fmt, fs::File, io::Read as _, path::Path};

use url::Url;

use crate::export::{auth::is_open_to_others, is_loopback};

#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Url);

const MAX_FILE_BYTES: u64 = 8 * 1024;

impl SecretUrl {
    /// An https URL; http for loopback addresses only, because the URL itself must not travel unencrypted. On an error,
    /// a phrase that never quotes the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url: Url = text.trim().parse().map_err(|_| "is not a URL".to_owned())?;
        match url.scheme() {
            "https" => Ok(Self(url)),
            "http" if is_loopback(&url) => Ok(Self(url)),
            _ => Err("is not an https URL; http is accepted for loopback addresses only".to_owned()),
        }
    }

    /// From a file that only its owner can read. Blocks: it is meant for start-up. On an error, a phrase that never
    /// quotes the file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err("is a directory, not a file with a URL".to_owned());
        }
        if is_open_to_others(&metadata) {
            return Err(format!("can be read by other users; run chmod 600 {}", path.display()));
        }
        let mut text = String::new();
        file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(unreadable)?;
        Self::parse(&text).map_err(|what| format!("holds a text that {what}"))
    }

    /// For the request alone.
    pub(super) fn url(&self) -> &Url {
        &self.0
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("SecretUrl(…)")
    }
}
