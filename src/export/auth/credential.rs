//! A credential: what a request for a token proves itself with, an assertion or a secret.
//!
//! What always holds: it is read anew for each request, and an assertion is used once (rule 122). Neither is printed.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{Response, header::HeaderValue};
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroizing};
use serde_json::json;
use url::form_urlencoded::byte_serialize;
use uuid::Uuid;

use super::{ClientSecret, SentIn, SigningKey, Smart, TokenEndpoint, discovery::Endpoint};
use crate::{
    export::{Client, Error, clock::local_now, failure::Failure},
    secret::Secret,
};

#[derive(Clone, Copy)]
pub enum Credential<'a> {
    Key(&'a Smart),
    Secret(&'a ClientSecret),
}

/// How long an assertion is valid. The guide allows five minutes; one of them allows for the clocks (rule 121).
const ASSERTION_LIFETIME_SECONDS: i64 = 240;
/// How far back an assertion dates itself: a server whose clock is behind ours refuses one of the future.
const ISSUED_BEFORE_SECONDS: i64 = 30;
const JWT_BEARER: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

impl<'a> Credential<'a> {
    pub fn client_id(self) -> &'a str {
        match self {
            Self::Key(smart) => &smart.client_id,
            Self::Secret(client) => &client.client_id,
        }
    }

    /// The key or the secret.
    pub fn secret(self) -> &'a Secret {
        match self {
            Self::Key(smart) => &smart.key,
            Self::Secret(client) => &client.secret,
        }
    }

    pub fn endpoint(self) -> &'a TokenEndpoint {
        match self {
            Self::Key(smart) => &smart.endpoint,
            Self::Secret(client) => &client.endpoint,
        }
    }

    /// Asks once, with a new assertion (rules 122 and 123) or with the secret.
    pub async fn post(self, client: &Client, endpoint: &Endpoint) -> Result<Response, Failure> {
        let text = current(self.secret()).await?;
        let mut form = vec![("grant_type", "client_credentials"), ("scope", endpoint.scope.as_str())];
        let url = &endpoint.token_url.url;
        let sent = match self {
            Self::Key(smart) => {
                let key = smart.signing_key(text.expose_secret())?;
                endpoint.check_algorithm(key.algorithm())?;
                let assertion = smart.assertion(&key, &endpoint.token_url.text)?;
                form.extend([("client_assertion_type", JWT_BEARER), ("client_assertion", assertion.expose_secret())]);
                client.http.post_form(url, None, &form).await?
            }
            Self::Secret(ClientSecret { client_id, sent_in: SentIn::Header, .. }) => {
                client.http.post_form(url, Some(basic(client_id, &text)?), &form).await?
            }
            Self::Secret(ClientSecret { client_id, sent_in: SentIn::Form, .. }) => {
                form.extend([("client_id", client_id.as_str()), ("client_secret", text.expose_secret())]);
                client.http.post_form(url, None, &form).await?
            }
        };
        Ok(sent)
    }
}

/// The text of a secret; on an error, its place and what is wrong there.
pub async fn current(secret: &Secret) -> Result<SecretString, Error> {
    match secret.current().await {
        Ok(reading) => Ok((*reading.text).clone()),
        Err(reason) => Err(Error::Key { holder: secret.place().to_string(), reason: reason.to_string() }),
    }
}

impl Smart {
    fn signing_key(&self, text: &str) -> Result<SigningKey, Error> {
        let unusable = |reason| Error::Key { holder: self.key.place().to_string(), reason };
        SigningKey::chosen(text, self.key_id.as_deref()).map_err(unusable)
    }

    /// Names the client and this endpoint, is valid for a short time, and is signed (rules 120 and 121).
    fn assertion(&self, key: &SigningKey, token_url: &str) -> Result<SecretString, Error> {
        let now = local_now().timestamp();
        let claims = json!({
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": self.audience.as_deref().unwrap_or(token_url),
            "exp": now + ASSERTION_LIFETIME_SECONDS,
            "iat": now - ISSUED_BEFORE_SECONDS,
            "jti": Uuid::new_v4().to_string(),
        });
        key.sign(&claims, self.jwks_url.as_deref())
    }
}

/// Both parts are encoded as in a form before they are joined (RFC 6749, 2.3.1).
fn basic(client_id: &str, secret: &SecretString) -> Result<HeaderValue, Error> {
    let encoded = |text: &str| Zeroizing::new(byte_serialize(text.as_bytes()).collect::<String>());
    let pair = Zeroizing::new(format!("{}:{}", *encoded(client_id), *encoded(secret.expose_secret())));
    let value = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    let mut header = HeaderValue::from_str(&value).map_err(|_| Error::Key {
        holder: "the client secret".to_owned(),
        reason: "cannot be sent in a header".to_owned(),
    })?;
    header.set_sensitive(true);
    Ok(header)
}
