//! SMART Backend Services: how we prove who we are, and the access token that we get for it.

use url::Url;

mod discovery;
mod key;
mod tokens;

pub use key::SigningKey;
pub(super) use tokens::Tokens;

/// How we prove who we are.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    pub client_id: String,
    pub key: SigningKey,
    /// Instead of what the server publishes (rule 116).
    pub token_url: Option<Url>,
    /// Without any: all resource types, in the form that the server seems to know (rule 124).
    pub scopes: Vec<String>,
}
