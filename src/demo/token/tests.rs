//! What the token endpoint accepts and refuses.

use aws_lc_rs::{
    encoding::AsDer,
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};

use super::*;

const TOKEN_URL: &str = "http://127.0.0.1:1/auth/token";

/// A client with its own key.
pub(in crate::demo) struct Client {
    key: EncodingKey,
    algorithm: Algorithm,
    pub auth: Auth,
}

impl Client {
    pub fn new(algorithm: Algorithm) -> Self {
        let key = if algorithm == Algorithm::ES384 {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &SystemRandom::new());
            EncodingKey::from_ec_der(pkcs8.unwrap().as_ref())
        } else {
            let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
            let base64 = STANDARD.encode(pair.as_der().unwrap().as_ref());
            let pem = format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n");
            EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap()
        };
        let mut jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
        jwk.common.key_id = Some("key-1".to_owned());
        Self { key, algorithm, auth: Auth::new("client", jwk) }
    }

    pub fn claims(&self, token_url: &str, jti: &str) -> Value {
        json!({
            "iss": self.auth.client_id,
            "sub": self.auth.client_id,
            "aud": token_url,
            "exp": get_current_timestamp() + 240,
            "jti": jti,
        })
    }

    pub fn form(&self, claims: &Value) -> Vec<u8> {
        let header = Header { kid: Some("key-1".to_owned()), ..Header::new(self.algorithm) };
        let assertion = jsonwebtoken::encode(&header, claims, &self.key).unwrap();
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "client_credentials")
            .append_pair("scope", "system/*.rs")
            .append_pair("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
            .append_pair("client_assertion", &assertion)
            .finish();
        form.into_bytes()
    }

    fn refusal(&self, claims: &Value) -> &'static str {
        Tokens::default().grant(&self.auth, TOKEN_URL, &self.form(claims)).unwrap_err().description
    }
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

#[tokio::test]
async fn a_good_assertion_gets_a_token_with_either_algorithm() {
    for algorithm in [Algorithm::RS384, Algorithm::ES384] {
        let client = Client::new(algorithm);
        let mut tokens = Tokens::default();
        let granted = tokens.grant(&client.auth, TOKEN_URL, &client.form(&client.claims(TOKEN_URL, "jti-1"))).unwrap();
        assert_eq!(granted.scope, "system/*.rs");
        assert!(tokens.admits(Some(&format!("Bearer {}", granted.access_token))));
        assert!(!tokens.admits(Some("Bearer another")));
        assert!(!tokens.admits(None));
    }
}

#[test]
fn an_assertion_of_another_key_is_refused() {
    let (client, other_client) = (Client::new(Algorithm::ES384), Client::new(Algorithm::ES384));
    let refusal = Tokens::default()
        .grant(&client.auth, TOKEN_URL, &other_client.form(&client.claims(TOKEN_URL, "jti-1")))
        .unwrap_err();
    assert_eq!(refusal, invalid_client("the signature is not the registered key's"));
}

#[tokio::test]
async fn an_assertion_is_accepted_once() {
    let client = Client::new(Algorithm::ES384);
    let mut tokens = Tokens::default();
    tokens.grant(&client.auth, TOKEN_URL, &client.form(&client.claims(TOKEN_URL, "jti-1"))).unwrap();
    let again = tokens.grant(&client.auth, TOKEN_URL, &client.form(&client.claims(TOKEN_URL, "jti-1"))).unwrap_err();
    assert_eq!(again.description, "the jti was used before");
}

#[test]
fn an_assertion_with_a_wrong_claim_is_refused_and_the_claim_named() {
    let client = Client::new(Algorithm::ES384);
    let now = get_current_timestamp();
    for (name, value, expected) in [
        ("aud", json!("http://127.0.0.1:1/auth/token/"), "aud is not this token endpoint"),
        ("aud", json!([TOKEN_URL]), "a claim is missing or of the wrong type"),
        ("exp", json!(now + 330), "exp is more than five minutes ahead"),
        ("exp", json!(now - 10), "exp is past"),
        ("iss", json!("another"), "iss and sub are not the registered client"),
        ("jti", json!(""), "jti is empty"),
        ("jti", Value::Null, "a claim is missing or of the wrong type"),
    ] {
        assert_eq!(client.refusal(&with(client.claims(TOKEN_URL, "jti-1"), name, value)), expected);
    }
}

#[test]
fn an_algorithm_that_the_guide_does_not_name_is_refused() {
    let mut client = Client::new(Algorithm::RS384);
    client.algorithm = Algorithm::RS256;
    assert_eq!(client.refusal(&client.claims(TOKEN_URL, "jti-1")), "alg is neither RS384 nor ES384");
}

#[tokio::test(start_paused = true)]
async fn a_token_expires_after_its_lifetime() {
    let client = Client::new(Algorithm::ES384);
    let mut tokens = Tokens::default();
    let granted = tokens.grant(&client.auth, TOKEN_URL, &client.form(&client.claims(TOKEN_URL, "jti-1"))).unwrap();
    let authorization = format!("Bearer {}", granted.access_token);
    tokio::time::advance(granted.lifetime.saturating_sub(Duration::from_secs(1))).await;
    assert!(tokens.admits(Some(&authorization)));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!tokens.admits(Some(&authorization)));
}

#[tokio::test]
async fn a_token_is_revoked_after_the_configured_number_of_files() {
    let mut client = Client::new(Algorithm::ES384);
    client.auth.expire_tokens_after_file_requests = Some(2);
    let mut tokens = Tokens::default();
    for jti in ["jti-1", "jti-2"] {
        let form = client.form(&client.claims(TOKEN_URL, jti));
        let granted = tokens.grant(&client.auth, TOKEN_URL, &form).unwrap();
        let authorization = format!("Bearer {}", granted.access_token);
        let admitted: Vec<bool> = (0..3).map(|_| tokens.admits_file(&client.auth, Some(&authorization))).collect();
        assert_eq!(admitted, [true, true, false]);
        assert!(!tokens.admits(Some(&authorization)), "a revoked token is not admitted");
    }
}
