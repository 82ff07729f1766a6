//! Authorization: how this client proves who it is, and the access tokens that it receives for that.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use url::Url;

mod answer;
mod credential;
mod discovery;
pub mod generate;
mod key;
mod key_text;
mod scopes;
mod tokens;

pub use key::SigningKey;
pub use scopes::{Granted, covers};
pub(super) use tokens::{CLOCK_SKEW_SECONDS, Tokens};

use super::Error;
use crate::secret::Secret;

/// How this client proves who it is.
#[derive(Clone, PartialEq, Debug)]
pub enum AuthConfig {
    /// SMART Backend Services: an assertion that a private key signed.
    Smart(Smart),
    /// A secret that the server knows too, as RFC 6749, 2.3.1 has it.
    ClientSecret(ClientSecret),
    /// An access token that somebody else obtains.
    Token(BearerToken),
}

#[derive(Clone, PartialEq, Debug)]
pub struct Smart {
    pub client_id: String,
    /// The text of a JWK, a JWKS or a PEM. It is read for each assertion, so that a new key counts at once.
    pub key: Secret,
    /// Which of several keys signs, or under which id the server knows the only one (rule 119).
    pub key_id: Option<String>,
    /// Where our public keys are published, as it is registered at the server (rule 120).
    pub jwks_url: Option<String>,
    /// The `aud` of our assertions, instead of the endpoint's URL as it was published or set (rule 121).
    pub audience: Option<String>,
    pub endpoint: TokenEndpoint,
}

#[derive(Clone, PartialEq, Debug)]
pub struct ClientSecret {
    pub client_id: String,
    pub secret: Secret,
    pub sent_in: SentIn,
    pub endpoint: TokenEndpoint,
}

/// Where a request for a token has the secret.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SentIn {
    /// `Authorization: Basic …`.
    Header,
    /// `client_id` and `client_secret` of the form.
    Form,
}

#[derive(Clone, PartialEq, Debug)]
pub struct BearerToken {
    pub token: Secret,
    /// How long a token that a command printed is used before the command runs again.
    pub lifetime: Duration,
}

/// Where tokens are obtained, as far as it is configured.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TokenEndpoint {
    /// Instead of what the server publishes (rule 116).
    pub token_url: Option<TokenUrl>,
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

impl Smart {
    pub fn new(client_id: &str, key: Secret) -> Self {
        Self {
            client_id: client_id.to_owned(),
            key,
            key_id: None,
            jwks_url: None,
            audience: None,
            endpoint: TokenEndpoint::default(),
        }
    }
}

impl AuthConfig {
    /// The token endpoint that is set.
    pub fn token_url(&self) -> Option<&TokenUrl> {
        match self {
            Self::Smart(smart) => smart.endpoint.token_url.as_ref(),
            Self::ClientSecret(client) => client.endpoint.token_url.as_ref(),
            Self::Token(_) => None,
        }
    }

    /// The public halves of the keys as they are now, to be registered at the server or published (rules 117 and 119);
    /// `None` where authorization has no keys.
    pub async fn public_jwks(&self) -> Option<Result<String, Error>> {
        let Self::Smart(smart) = self else { return None };
        let unusable = |reason| Error::Key { holder: smart.key.place().to_string(), reason };
        Some(match credential::current(&smart.key).await {
            Ok(text) => generate::public_jwks(text.expose_secret(), smart.key_id.as_deref()).map_err(unusable),
            Err(error) => Err(error),
        })
    }
}

impl From<Smart> for AuthConfig {
    fn from(smart: Smart) -> Self {
        Self::Smart(smart)
    }
}

impl From<Url> for TokenUrl {
    fn from(url: Url) -> Self {
        Self { text: url.as_str().to_owned(), url }
    }
}
