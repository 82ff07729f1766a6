//! Access tokens, each in exchange for a signed assertion.
//!
//! What always holds: at most one request for a token is under way; a token that is handed out is not about to
//! expire; an assertion is used once (rule 122). Neither is ever printed.

use std::{collections::HashSet, sync::Arc, time::Duration};

use reqwest::{
    StatusCode,
    header::{HeaderMap, HeaderValue},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::Mutex, time::Instant};
use uuid::Uuid;

use super::{
    AuthConfig,
    discovery::{Endpoint, discover},
};
use crate::{
    export::{
        Client, Error, Issues,
        clock::local_now,
        error::{code, shown},
        failure::{Failure, Fault},
        http::MAX_OUTCOME_BYTES,
        measured,
        redirect::check_url,
        retry::{date, is_transient, retry_after, retrying},
    },
    telemetry::metrics,
};

/// The access token of one client at one server.
pub struct Tokens {
    config: AuthConfig,
    /// Held across the request for a token: other requests wait for the same token.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    endpoint: Option<Endpoint>,
    token: Option<Arc<Token>>,
    /// Why there is no token, until [`Tokens::forget_refusal`]: a client that goes on asking is locked out.
    refusal: Option<Error>,
}

/// An access token and until when it is good to use.
pub struct Token {
    /// The whole value of the header.
    authorization: SecretString,
    renew_at: Instant,
    /// The scopes granted: as the answer says, else those requested (RFC 6749, 5.1).
    pub scope: String,
}

/// How long an assertion is valid. The guide allows five minutes; one of them allows for the clocks (rule 121).
const ASSERTION_LIFETIME_SECONDS: i64 = 240;
/// How long a token is valid where the server does not say (rule 125).
const DEFAULT_LIFETIME: Duration = Duration::from_mins(5);
const MAX_LIFETIME: Duration = Duration::from_hours(24);
const RENEW_BEFORE: Duration = Duration::from_secs(30);
const CLOCK_SKEW_SECONDS: i64 = 60;
impl Tokens {
    /// # Errors
    /// [`Error::UnusableUrl`] when the assertion would be sent to `token_url` unencrypted; [`Error::Config`].
    pub fn new(config: AuthConfig, allow_http: bool) -> Result<Self, Error> {
        if config.client_id.is_empty() {
            return Err(Error::Config { setting: "server.client_id", reason: "is empty".to_owned() });
        }
        if let Some(token_url) = &config.token_url {
            check_url(&token_url.url, None, allow_http)
                .map_err(|reason| Error::UnusableUrl { context: "server.token_url".to_owned(), reason })?;
        }
        Ok(Self { config, state: Mutex::default() })
    }

    /// A token that is not about to expire.
    pub async fn current(&self, client: &Client) -> Result<Arc<Token>, Error> {
        let mut state = self.state.lock().await;
        match &state.token {
            Some(token) if Instant::now() < token.renew_at => Ok(Arc::clone(token)),
            _ => self.renew(client, &mut state).await,
        }
    }

    /// Another token than the refused one; if another request has renewed it already, that one.
    pub async fn renewed(&self, client: &Client, refused: &Arc<Token>) -> Result<Arc<Token>, Error> {
        let mut state = self.state.lock().await;
        match &state.token {
            Some(token) if !Arc::ptr_eq(token, refused) => Ok(Arc::clone(token)),
            _ => self.renew(client, &mut state).await,
        }
    }

    /// A new run may ask again: the cause may have been removed.
    pub async fn forget_refusal(&self) {
        self.state.lock().await.refusal = None;
    }

    async fn renew(&self, client: &Client, state: &mut State) -> Result<Arc<Token>, Error> {
        if let Some(refusal) = state.refusal.as_ref().and_then(Error::of_token_endpoint) {
            return Err(refusal);
        }
        // Boxed: every request waits on this future, and most of them never need it.
        let renewed = Box::pin(self.discover_and_ask(client, state)).await;
        state.refusal = renewed.as_ref().err().and_then(Error::of_token_endpoint);
        renewed
    }

    async fn discover_and_ask(&self, client: &Client, state: &mut State) -> Result<Arc<Token>, Error> {
        state.token = None;
        // Taken out, so that after a failure the endpoint is discovered again: it may have moved.
        let endpoint = match state.endpoint.take() {
            Some(endpoint) => endpoint,
            None => discover(&self.config, client).await?,
        };
        let token = Arc::new(self.token(client, &endpoint).await?);
        state.endpoint = Some(endpoint);
        state.token = Some(Arc::clone(&token));
        Ok(token)
    }

    async fn token(&self, client: &Client, endpoint: &Endpoint) -> Result<Token, Error> {
        let context = format!("token endpoint {}", shown(&endpoint.token_url.url));
        let ask = || async {
            let asked = self.ask(client, endpoint, &context).await;
            measured::token(&asked);
            asked
        };
        let token = retrying(&client.config.http, metrics::Endpoint::Token, &context, ask).await?;
        let renewed_in = token.renew_at.saturating_duration_since(Instant::now());
        metrics::token_renewed_at(local_now() + renewed_in);
        Ok(token)
    }

    /// Asks once, with a new assertion (rules 122 and 123).
    async fn ask(&self, client: &Client, endpoint: &Endpoint, context: &str) -> Result<Token, Failure> {
        let assertion = self.assertion(&endpoint.token_url.text)?;
        let form = [
            ("grant_type", "client_credentials"),
            ("scope", &endpoint.scope),
            ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
            ("client_assertion", assertion.expose_secret()),
        ];
        let asked_at = Instant::now();
        let response = client.http.post_form(&endpoint.token_url.url, &form).await?;
        warn_of_skew(context, response.headers());
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        if is_transient(status) {
            return Err(client.http.fault(response).await.into());
        }
        let body = client.http.read(response, MAX_OUTCOME_BYTES).await?.unwrap_or_default();
        if status.is_success() {
            return Ok(Token::read(&body, asked_at, context, &endpoint.scope)?);
        }
        match oauth_error(&body) {
            Some(code) => Err(denied(context, code).into()),
            // Epic sometimes answers 400 without a body.
            None if status == StatusCode::BAD_REQUEST => {
                Err(Fault::Status { status, retry_after, issues: Issues::default() }.into())
            }
            None => Err(denied(context, status.as_str().to_owned()).into()),
        }
    }

    /// Names the client and this endpoint, is valid for a short time, and is signed (rules 120 and 121).
    fn assertion(&self, token_url: &str) -> Result<SecretString, Error> {
        let now = local_now().timestamp();
        let client_id = &self.config.client_id;
        self.config.key.sign(&json!({
            "iss": client_id,
            "sub": client_id,
            "aud": self.config.audience.as_deref().unwrap_or(token_url),
            "exp": now + ASSERTION_LIFETIME_SECONDS,
            "iat": now,
            "jti": Uuid::new_v4().to_string(),
        }))
    }
}

impl Token {
    /// # Errors
    /// Without the server's own words: they may be the token.
    fn read(body: &[u8], asked_at: Instant, context: &str, scope: &str) -> Result<Self, Error> {
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
        let authorization = SecretString::from(format!("Bearer {}", answer.access_token));
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
    Duration::try_from_secs_f64(seconds).ok()
}

/// The `error` of an OAuth answer, without its description (rule 128).
fn oauth_error(body: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    Some(code(answer.get("error")?.as_str()?))
}

fn denied(context: &str, code: String) -> Error {
    Error::TokenDenied { context: context.to_owned(), code }
}

/// With fewer scopes an export lacks resource types, and nothing reports it (rule 126). A wildcard may be granted as a
/// list: nothing is missing then.
fn warn_of_scopes(context: &str, requested: &str, granted: Option<&str>) {
    let Some(granted) = granted else { return };
    let granted: HashSet<_> = granted.split_whitespace().collect();
    let missing: Vec<_> =
        requested.split_whitespace().filter(|scope| !scope.contains('*') && !granted.contains(scope)).collect();
    if !missing.is_empty() {
        tracing::warn!(
            context,
            missing = missing.join(" "),
            "the server granted fewer scopes than requested; resource types may be missing"
        );
    }
}

/// Assertions are refused when our clock is wrong, and no message says why (rule 132).
fn warn_of_skew(context: &str, headers: &HeaderMap) {
    let Some(theirs) = date(headers) else { return };
    let skew_seconds = (local_now() - theirs).num_seconds();
    if skew_seconds.abs() > CLOCK_SKEW_SECONDS {
        tracing::warn!(
            context,
            skew_seconds,
            "our clock differs from the token endpoint's; signed assertions may be refused"
        );
    }
}
