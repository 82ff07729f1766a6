//! A secret URL: whoever knows it can send to its receiver. Neither an error nor a Debug form shows it.

use std::fmt;

use url::Url;

use crate::export::is_loopback;

#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Url);

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
