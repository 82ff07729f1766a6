//! The answer of a token endpoint: the token, how long it is good to use, and for which scopes.

use std::time::Duration;

use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use super::scopes;
use crate::export::{Error, error::code};

/// An access token and until when it is good to use.
pub struct Token {
    /// The whole value of the header.
    pub authorization: SecretString,
    pub renew_at: Instant,
    /// The scopes granted: as the answer says, else those requested (RFC 6749, 5.1). Empty where nobody says.
    pub scope: String,
}

/// How long a token is valid where the server does not say (rule 125).
const DEFAULT_LIFETIME: Duration = Duration::from_mins(5);
pub const MAX_LIFETIME: Duration = Duration::from_hours(24);
const RENEW_BEFORE: Duration = Duration::from_secs(30);

impl Token {
    /// # Errors
    /// Without the server's own words: they may be the token.
    pub fn read(body: &[u8], asked_at: Instant, context: &str, scope: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct TokenResponse {
            access_token: String,
            token_type: Option<String>,
            expires_in: Option<Value>,
            scope: Option<Value>,
        }
        let answer: TokenResponse =
            serde_json::from_slice(body).map_err(|_| denied(context, "no access_token in its answer".to_owned()))?;
        if answer.token_type.is_some_and(|kind| !is_bearer(&kind)) {
            return Err(denied(context, "a token_type other than bearer".to_owned()));
        }
        let granted = answer.scope.as_ref().and_then(words);
        warn_of_scopes(context, scope, granted.as_deref());
        let lifetime = answer.expires_in.as_ref().and_then(lifetime).unwrap_or(DEFAULT_LIFETIME).min(MAX_LIFETIME);
        let margin = if lifetime < 4 * RENEW_BEFORE { lifetime / 4 } else { RENEW_BEFORE };
        let authorization = bearer(&answer.access_token);
        let renew_at = asked_at + lifetime.saturating_sub(margin);
        let token = Self { authorization, renew_at, scope: granted.unwrap_or_else(|| scope.to_owned()) };
        token.authorization(context)?;
        Ok(token)
    }

    /// The header, marked sensitive.
    pub fn authorization(&self, context: &str) -> Result<HeaderValue, Error> {
        let mut header = HeaderValue::from_str(self.authorization.expose_secret())
            .map_err(|_| denied(context, "a token that cannot be sent in a header".to_owned()))?;
        header.set_sensitive(true);
        Ok(header)
    }
}

/// The value of the header with this token.
pub fn bearer(token: &str) -> SecretString {
    format!("Bearer {token}").into()
}

/// The word in any case, and as some gateways write it.
fn is_bearer(token_type: &str) -> bool {
    ["bearer", "bearertoken"].iter().any(|known| token_type.trim().eq_ignore_ascii_case(known))
}

/// A list of scopes as text, with spaces or commas, or as a JSON array.
fn words(scope: &Value) -> Option<String> {
    let text = match scope {
        Value::String(text) => text.replace(',', " "),
        Value::Array(scopes) => scopes.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        _ => return None,
    };
    (!text.trim().is_empty()).then_some(text)
}

/// A number, or a number as text.
fn lifetime(expires_in: &Value) -> Option<Duration> {
    let seconds = match expires_in {
        Value::String(text) => text.trim().parse().ok()?,
        number => number.as_f64()?,
    };
    // A token that expires at once would be renewed before each request: some servers mean "never".
    Duration::try_from_secs_f64(seconds).ok().filter(|lifetime| !lifetime.is_zero())
}

/// The `error` of an OAuth answer, without its description (rule 128).
pub fn oauth_error(body: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    Some(code(answer.get("error")?.as_str()?))
}

pub fn denied(context: &str, code: String) -> Error {
    Error::TokenDenied { context: context.to_owned(), code }
}

/// With fewer scopes an export lacks resource types, and nothing reports it (rule 126).
fn warn_of_scopes(context: &str, requested: &str, granted: Option<&str>) {
    let missing = granted.map(|granted| scopes::missing(requested, granted)).unwrap_or_default();
    if !missing.is_empty() {
        tracing::warn!(
            context,
            missing = missing.join(" "),
            "the server granted fewer scopes than requested; resource types may be missing"
        );
    }
}
