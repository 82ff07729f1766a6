//! SMART Backend Services: how this client proves its identity, and the access tokens that it receives for that.

use url::Url;

mod discovery;
mod key;
mod tokens;

pub use key::SigningKey;
pub(super) use tokens::Tokens;

/// How this client proves its identity.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    pub client_id: String,
    pub key: SigningKey,
    /// Instead of what the server publishes (rule 116).
    pub token_url: Option<Url>,
    /// Without any: all resource types, in the form that the server supports (rule 124).
    pub scopes: Vec<String>,
}
