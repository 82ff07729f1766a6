//! The token endpoint of SMART Backend Services, as strict as real servers (rules 117 to 125 and 128).
//!
//! An assertion is accepted once. Tokens expire by tokio's clock, which a test can pause; an assertion's `exp` is
//! compared with the system clock, which its signer uses too.

mod registered;

use std::{collections::HashMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind, get_current_timestamp, jwk::Jwk};
use serde::Deserialize;
use tokio::time::Instant;

pub use self::registered::Registered;

/// The one registered client, and the lifetime of its tokens.
#[derive(Clone, Debug)]
pub struct Auth {
    pub client_id: String,
    /// The client's public key: RSA for RS384, P-384 for ES384.
    pub jwk: Jwk,
    /// Sent as `expires_in`, in whole seconds.
    pub token_lifetime: Duration,
    /// A token is revoked after this many requests for files: they are answered 401 until the client gets a new token.
    pub expire_tokens_after_file_requests: Option<u32>,
    /// Sent as `scope` in the place of the scope that was asked for.
    pub granted_scope: Option<String>,
    /// A client of another kind: it sends this secret, in the header or in the form, and no assertion.
    pub secret: Option<String>,
    /// Published as the algorithms that assertions may be signed with.
    pub algorithms: Vec<&'static str>,
}

impl Auth {
    /// Tokens of five minutes, the longest that the guide recommends.
    pub fn new(client_id: impl Into<String>, jwk: Jwk) -> Self {
        Self {
            client_id: client_id.into(),
            jwk,
            token_lifetime: Duration::from_mins(5),
            expire_tokens_after_file_requests: None,
            granted_scope: None,
            secret: None,
            algorithms: vec!["RS384", "ES384"],
        }
    }
}

/// The tokens that were granted, and the assertions that were used.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    granted: u64,
    live: HashMap<String, Token>,
    /// The `jti` of each assertion that was used, with its `exp` in seconds since the epoch.
    assertions: HashMap<String, u64>,
}

#[derive(Debug)]
struct Token {
    expires_at: Instant,
    file_requests: u32,
}

/// The answer to a request for a token.
#[derive(Debug)]
pub(super) struct Granted {
    pub access_token: String,
    pub scope: String,
    pub lifetime: Duration,
}

/// Why a token was refused, as OAuth's error response says it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TokenError {
    pub error: &'static str,
    pub description: &'static str,
}

impl Tokens {
    /// Answers a request for a token; `form` is its body, `token_url` the only audience that is accepted.
    pub(super) fn grant(&mut self, auth: &Auth, token_url: &str, form: &[u8]) -> Result<Granted, TokenError> {
        let form = Form::read(form)?;
        let claims = verify(auth, token_url, &form.assertion)?;
        let now_seconds = get_current_timestamp();
        self.assertions.retain(|_, exp_seconds| *exp_seconds >= now_seconds);
        if self.assertions.insert(claims.jti, claims.exp).is_some() {
            return Err(invalid_client("the jti was used before"));
        }
        Ok(self.issue(auth, form.scope))
    }

    /// As [`grant`](Self::grant), to a client that has this secret.
    pub(super) fn grant_by_secret(
        &mut self,
        auth: &Auth,
        secret: &str,
        authorization: Option<&str>,
        form: &[u8],
    ) -> Result<Granted, TokenError> {
        let fields: HashMap<_, _> = url::form_urlencoded::parse(form).into_owned().collect();
        let in_form = fields.get("client_id").cloned().zip(fields.get("client_secret").cloned());
        let sent = authorization.and_then(basic).or(in_form);
        if sent != Some((auth.client_id.clone(), secret.to_owned())) {
            return Err(invalid_client("client_id and secret are not the registered ones"));
        }
        Ok(self.issue(auth, scope(&fields)?))
    }

    fn issue(&mut self, auth: &Auth, scope: String) -> Granted {
        let now = Instant::now();
        self.live.retain(|_, token| token.expires_at > now);
        self.granted += 1;
        let access_token = format!("demo-token-{}", self.granted);
        let token = Token { expires_at: now + auth.token_lifetime, file_requests: 0 };
        self.live.insert(access_token.clone(), token);
        let scope = auth.granted_scope.clone().unwrap_or(scope);
        Granted { access_token, scope, lifetime: auth.token_lifetime }
    }

    /// Whether this value of an `Authorization` header has a valid token.
    pub(super) fn admits(&self, authorization: Option<&str>) -> bool {
        let token = authorization.and_then(bearer).and_then(|token| self.live.get(token));
        token.is_some_and(|token| token.expires_at > Instant::now())
    }

    /// As [`admits`](Self::admits), for a file; the request counts for `expire_tokens_after_file_requests`.
    pub(super) fn admits_file(&mut self, auth: &Auth, authorization: Option<&str>) -> bool {
        if !self.admits(authorization) {
            return false;
        }
        let token = authorization.and_then(bearer).unwrap_or_default();
        let Some(live) = self.live.get_mut(token) else { return false };
        live.file_requests += 1;
        let is_live = auth.expire_tokens_after_file_requests.is_none_or(|limit| live.file_requests <= limit);
        if !is_live {
            self.live.remove(token);
        }
        is_live
    }
}

struct Form {
    scope: String,
    assertion: String,
}

impl Form {
    fn read(form: &[u8]) -> Result<Self, TokenError> {
        let fields: HashMap<_, _> = url::form_urlencoded::parse(form).into_owned().collect();
        let field = |name: &str| fields.get(name).map(String::as_str);
        let scope = scope(&fields)?;
        if field("client_assertion_type") != Some("urn:ietf:params:oauth:client-assertion-type:jwt-bearer") {
            return Err(invalid_client("client_assertion_type is jwt-bearer"));
        }
        let assertion = field("client_assertion").ok_or(invalid_client("client_assertion is missing"))?;
        Ok(Self { scope, assertion: assertion.to_owned() })
    }
}

/// The scope that a request for a token of a client asks for.
fn scope(fields: &HashMap<String, String>) -> Result<String, TokenError> {
    if fields.get("grant_type").map(String::as_str) != Some("client_credentials") {
        return Err(TokenError { error: "unsupported_grant_type", description: "grant_type is client_credentials" });
    }
    let scope = fields.get("scope").cloned().unwrap_or_default();
    if scope.is_empty() || !scope.split(' ').all(|scope| scope.starts_with("system/")) {
        return Err(TokenError { error: "invalid_scope", description: "only system/ scopes are granted here" });
    }
    Ok(scope)
}

/// User and password of a header, which were encoded as in a form before they were joined (RFC 6749, 2.3.1).
fn basic(authorization: &str) -> Option<(String, String)> {
    let joined = STANDARD.decode(authorization.strip_prefix("Basic ")?).ok()?;
    let joined = String::from_utf8(joined).ok()?;
    let (user, password) = joined.split_once(':')?;
    let decoded = |text: &str| Some(url::form_urlencoded::parse(text.as_bytes()).next()?.0.into_owned());
    Some((decoded(user)?, decoded(password)?))
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: String,
    exp: u64,
    jti: String,
}

fn verify(auth: &Auth, token_url: &str, assertion: &str) -> Result<Claims, TokenError> {
    let header = jsonwebtoken::decode_header(assertion).map_err(|_| invalid_client("the assertion is not a JWT"))?;
    if !matches!(header.alg, Algorithm::RS384 | Algorithm::ES384) {
        return Err(invalid_client("alg is neither RS384 nor ES384"));
    }
    if header.kid.is_none() || header.kid != auth.jwk.common.key_id {
        return Err(invalid_client("kid names no registered key"));
    }
    let key = DecodingKey::from_jwk(&auth.jwk).map_err(|_| invalid_client("the registered key cannot be used"))?;
    let mut validation = Validation::new(header.alg);
    validation.leeway = 0;
    validation.set_audience(&[token_url]);
    validation.set_required_spec_claims(&["exp", "aud", "iss", "sub"]);
    let decoded = jsonwebtoken::decode::<Claims>(assertion, &key, &validation);
    let claims = decoded.map_err(|error| invalid_client(reason(error.kind())))?.claims;
    if claims.aud != token_url || claims.iss != auth.client_id || claims.sub != auth.client_id {
        return Err(invalid_client("iss and sub are not the registered client"));
    }
    if claims.exp > get_current_timestamp() + MAX_EXP_SECONDS {
        return Err(invalid_client("exp is more than five minutes ahead"));
    }
    if claims.jti.is_empty() {
        return Err(invalid_client("jti is empty"));
    }
    Ok(claims)
}

/// `exp` of an assertion is at most this far in the future (rule 121).
const MAX_EXP_SECONDS: u64 = 300;

fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidAudience => "aud is not this token endpoint",
        ErrorKind::ExpiredSignature => "exp is past",
        ErrorKind::InvalidSignature => "the signature is not the registered key's",
        ErrorKind::Json(_) | ErrorKind::MissingRequiredClaim(_) => "a claim is missing or of the wrong type",
        _ => "the assertion does not verify",
    }
}

fn invalid_client(description: &'static str) -> TokenError {
    TokenError { error: "invalid_client", description }
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

#[cfg(test)]
pub(super) mod tests;
