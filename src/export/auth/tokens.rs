//! Access tokens, each in exchange for a credential, or as somebody else obtained it.
//!
//! What always holds: at most one request for a token is under way; a token that is handed out is not about to
//! expire. It is never printed.

use std::sync::Arc;

use reqwest::{StatusCode, header::HeaderMap};
use secrecy::ExposeSecret as _;
use tokio::{sync::Mutex, time::Instant};

use super::{
    AuthConfig, BearerToken,
    answer::{MAX_LIFETIME, Token, bearer, denied, oauth_error},
    credential::{Credential, current},
    discovery::{Endpoint, discover},
};
use crate::{
    export::{
        Client, Error, Issues,
        clock::local_now,
        error::shown,
        failure::{Failure, Fault},
        http::MAX_OUTCOME_BYTES,
        measured,
        redirect::check_url,
        retry::{date, is_transient, retry_after, retrying},
    },
    secret::Place,
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
    /// Why there is no token, until [`Tokens::begin_run`]: a client that goes on asking is locked out.
    refusal: Option<Error>,
    /// The credential has brought a token. When it is refused later, a command may have another one.
    is_proved: bool,
    /// The command was asked again after a refusal, and printed the same token.
    is_repeated: bool,
}

/// How a token is had.
enum Way<'a> {
    Ask(Credential<'a>),
    Bearer(&'a BearerToken),
}

/// Our clock and a server's may differ by this much: assertions live a few minutes (rule 132).
pub const CLOCK_SKEW_SECONDS: i64 = 60;

impl Tokens {
    /// # Errors
    /// [`Error::UnusableUrl`] when the credential would be sent to `token_url` unencrypted; [`Error::Config`].
    pub fn new(config: AuthConfig, allow_http: bool) -> Result<Self, Error> {
        if let Way::Ask(credential) = config.way() {
            if credential.client_id().is_empty() {
                return Err(Error::Config { setting: "server.client_id", reason: "is empty".to_owned() });
            }
            if let Some(token_url) = &credential.endpoint().token_url {
                check_url(&token_url.url, None, allow_http)
                    .map_err(|reason| Error::UnusableUrl { context: "server.token_url".to_owned(), reason })?;
            }
        }
        Ok(Self { config, state: Mutex::default() })
    }

    /// A token that is not about to expire.
    pub async fn current(&self, client: &Client) -> Result<Arc<Token>, Error> {
        let mut state = self.state.lock().await;
        match self.config.way() {
            Way::Bearer(bearer) => bearer.token(&mut state).await,
            Way::Ask(credential) => match &state.token {
                Some(token) if Instant::now() < token.renew_at => Ok(Arc::clone(token)),
                _ => renew(credential, client, &mut state).await,
            },
        }
    }

    /// Another token than the refused one; if another request has renewed it already, that one.
    pub async fn renewed(&self, client: &Client, refused: &Arc<Token>) -> Result<Arc<Token>, Error> {
        let mut state = self.state.lock().await;
        match (self.config.way(), &state.token) {
            (_, Some(token)) if !Arc::ptr_eq(token, refused) => Ok(Arc::clone(token)),
            (Way::Ask(credential), _) => renew(credential, client, &mut state).await,
            (Way::Bearer(bearer), _) => bearer.after_refusal(&mut state, refused).await,
        }
    }

    /// A new run may ask again: the cause may have been removed. Commands run again.
    pub async fn begin_run(&self) {
        let mut state = self.state.lock().await;
        state.refusal = None;
        state.is_repeated = false;
        match self.config.way() {
            Way::Ask(credential) => _ = credential.secret().forget(),
            Way::Bearer(bearer) => _ = bearer.token.forget(),
        }
    }
}

impl AuthConfig {
    fn way(&self) -> Way<'_> {
        match self {
            Self::Smart(smart) => Way::Ask(Credential::Key(smart)),
            Self::ClientSecret(client) => Way::Ask(Credential::Secret(client)),
            Self::Token(bearer) => Way::Bearer(bearer),
        }
    }
}

impl BearerToken {
    /// The token as its place has it now; the one of before where it is the same.
    async fn token(&self, state: &mut State) -> Result<Arc<Token>, Error> {
        let is_over = state.token.as_ref().is_some_and(|token| token.renew_at <= Instant::now());
        if is_over {
            self.token.forget();
        }
        let text = current(&self.token).await?;
        let authorization = bearer(text.expose_secret());
        if let Some(token) = &state.token
            && !is_over
            && token.authorization.expose_secret() == authorization.expose_secret()
        {
            return Ok(Arc::clone(token));
        }
        let lifetime = if matches!(self.token.place(), Place::Command(_)) { self.lifetime } else { MAX_LIFETIME };
        // Nobody says for which scopes the token is.
        let token = Token { authorization, renew_at: Instant::now() + lifetime, scope: String::new() };
        token.authorization("the access token")?;
        let token = Arc::new(token);
        state.token = Some(Arc::clone(&token));
        Ok(token)
    }

    /// A command that printed a refused token runs again, and if it prints the same one, not once more in this run.
    async fn after_refusal(&self, state: &mut State, refused: &Token) -> Result<Arc<Token>, Error> {
        if !state.is_repeated {
            self.token.forget();
        }
        let token = self.token(state).await?;
        state.is_repeated = token.authorization.expose_secret() == refused.authorization.expose_secret();
        Ok(token)
    }
}

async fn renew(credential: Credential<'_>, client: &Client, state: &mut State) -> Result<Arc<Token>, Error> {
    if let Some(refusal) = state.refusal.as_ref().and_then(Error::of_token_endpoint) {
        return Err(refusal);
    }
    // Boxed: every request waits on this future, and most of them never need it.
    let mut renewed = Box::pin(discover_and_ask(credential, client, state)).await;
    let was_proved = std::mem::replace(&mut state.is_proved, renewed.is_ok());
    if matches!(renewed, Err(Error::TokenDenied { .. })) && was_proved && credential.secret().forget() {
        renewed = Box::pin(discover_and_ask(credential, client, state)).await;
        state.is_proved = renewed.is_ok();
    }
    state.refusal = renewed.as_ref().err().and_then(Error::of_token_endpoint);
    renewed
}

async fn discover_and_ask(credential: Credential<'_>, client: &Client, state: &mut State) -> Result<Arc<Token>, Error> {
    state.token = None;
    // Taken out, so that after a failure the endpoint is discovered again: it may have moved.
    let endpoint = match state.endpoint.take() {
        Some(endpoint) => endpoint,
        None => discover(credential.endpoint(), client).await?,
    };
    let token = Arc::new(token(credential, client, &endpoint).await?);
    state.endpoint = Some(endpoint);
    state.token = Some(Arc::clone(&token));
    Ok(token)
}

async fn token(credential: Credential<'_>, client: &Client, endpoint: &Endpoint) -> Result<Token, Error> {
    let context = format!("token endpoint {}", shown(&endpoint.token_url.url));
    let ask = || async {
        let asked = ask(credential, client, endpoint, &context).await;
        measured::token(&asked);
        asked
    };
    let token = retrying(&client.config.http, metrics::Endpoint::Token, &context, ask).await?;
    let renewed_in = token.renew_at.saturating_duration_since(Instant::now());
    metrics::token_renewed_at(local_now() + renewed_in);
    Ok(token)
}

async fn ask(
    credential: Credential<'_>,
    client: &Client,
    endpoint: &Endpoint,
    context: &str,
) -> Result<Token, Failure> {
    let asked_at = Instant::now();
    let response = credential.post(client, endpoint).await?;
    warn_of_skew(context, response.headers());
    let (status, retry_after) = (response.status(), retry_after(response.headers()));
    if is_transient(status) {
        return Err(client.http.fault(response).await.into());
    }
    let body = client.http.read(response, MAX_OUTCOME_BYTES).await?.unwrap_or_default();
    if status.is_success() {
        return Ok(Token::read(&body, asked_at, context, &endpoint.scope)?);
    }
    let again = || Fault::Status { status, retry_after, issues: Issues::default() };
    match oauth_error(&body) {
        // Not about us (rule 128). The codes are those of RFC 6749, 4.1.2.1, which servers use here too.
        Some(code) if matches!(code.as_str(), "temporarily_unavailable" | "server_error") => Err(again().into()),
        Some(code) => Err(denied(context, code).into()),
        // Epic sometimes answers 400 without a body.
        None if status == StatusCode::BAD_REQUEST => Err(again().into()),
        None => Err(denied(context, status.as_str().to_owned()).into()),
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
