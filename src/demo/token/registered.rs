//! A registered client: a new key pair, of which the client has one half and the server the other.

use aws_lc_rs::{
    encoding::{AsBigEndian as _, EcPrivateKeyBin},
    error::Unspecified,
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::Jwk;
use serde_json::json;

use super::Auth;

/// A client with a new P-384 key.
pub struct Registered {
    pub client_id: String,
    /// The private key as a JWK. The key is as short-lived as the demo's server.
    pub private_jwk: String,
    public_jwk: Jwk,
}

/// An uncompressed point: a byte of its form, and two numbers of this many bytes.
const NUMBER_BYTES: usize = 48;

impl Registered {
    pub fn new(client_id: &str) -> Result<Self, Unspecified> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING)?;
        let number: EcPrivateKeyBin = pair.private_key().as_be_bytes()?;
        let point = pair.public_key().as_ref().get(1..).ok_or(Unspecified)?;
        let (x, y) = point.split_at_checked(NUMBER_BYTES).ok_or(Unspecified)?;
        let [x, y, d] = [x, y, number.as_ref()].map(|number| URL_SAFE_NO_PAD.encode(number));
        let public = json!({"kty": "EC", "crv": "P-384", "alg": "ES384", "kid": "demo", "x": x, "y": y});
        let mut private = public.clone();
        private["d"] = d.into();
        let public_jwk = serde_json::from_value(public).map_err(|_| Unspecified)?;
        Ok(Self { client_id: client_id.to_owned(), private_jwk: private.to_string(), public_jwk })
    }

    /// What the server knows of the client.
    pub fn auth(&self) -> Auth {
        Auth::new(&self.client_id, self.public_jwk.clone())
    }
}
