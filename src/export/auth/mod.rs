//! SMART Backend Services: how this client proves its identity, and the access tokens that it receives for that.

use url::Url;

mod discovery;
mod key;
mod key_text;
mod scopes;
mod tokens;

pub use key::{SigningKey, is_open_to_others};
pub use scopes::{Granted, covers};
pub(super) use tokens::Tokens;

/// How this client proves its identity.
#[derive(Clone, PartialEq, Debug)]
pub struct AuthConfig {
    pub client_id: String,
    pub key: SigningKey,
    /// Instead of what the server publishes (rule 116).
    pub token_url: Option<TokenUrl>,
    /// The `aud` of our assertions, instead of the endpoint's URL as it was published or set (rule 121).
    pub audience: Option<String>,
    /// Without any: all resource types, in the form that the server supports (rule 124).
    pub scopes: Vec<String>,
}

/// The URL of a token endpoint. Servers compare the `aud` of an assertion with its text, byte for byte, and a parsed
/// URL is written another way: without the default port, the host in lower case (rule 121).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenUrl {
    pub url: Url,
    /// As it was published or set.
    pub text: String,
}

impl AuthConfig {
    pub fn new(client_id: &str, key: SigningKey) -> Self {
        Self { client_id: client_id.to_owned(), key, token_url: None, audience: None, scopes: Vec::new() }
    }
}

impl From<Url> for TokenUrl {
    fn from(url: Url) -> Self {
        Self { text: url.as_str().to_owned(), url }
    }
}
