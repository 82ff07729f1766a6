//! The private key that signs assertions: RSA with RS384, or EC on P-384 with ES384 (rule 118).
//!
//! A [`SigningKey`] has been checked: it can sign. Its numbers are never printed.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPairComponents, PublicKeyComponents},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P256K1_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
        ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA384, RsaKeyPair,
    },
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::key_text;
use crate::export::Error;

/// A private key and the id of its public half.
#[derive(Clone)]
pub struct SigningKey {
    pair: Arc<Pair>,
    /// The key id by which the server finds the public key (rule 119).
    pub kid: String,
}

enum Pair {
    Rs384(RsaKeyPair),
    Es384(EcdsaKeyPair),
}

/// The length of a number of P-384.
const P384_BYTES: usize = 48;

impl PartialEq for SigningKey {
    /// Whether the server would find the same public key.
    fn eq(&self, other: &Self) -> bool {
        self.kid == other.kid && self.pair.public() == other.pair.public()
    }
}

impl SigningKey {
    /// The key that signs, from the text of a JWK, a JWKS or a PEM (PKCS#8, PKCS#1 or SEC1). Of several keys it is the
    /// one with the id `key_id`; without that the first, so that a key that is added to a set does not sign at once. A
    /// single key may have another id at the server: then `key_id` is sent.
    ///
    /// # Errors
    /// [`Error::Key`], which never quotes the text.
    pub fn parse(text: &str, key_id: Option<&str>) -> Result<Self, Error> {
        Self::chosen(text, key_id).map_err(|reason| refused("the private key", reason))
    }

    /// As [`Self::parse`]; on an error, as in all private functions here: what the text holds, and what is needed.
    pub fn chosen(text: &str, key_id: Option<&str>) -> Result<Self, String> {
        let keys = Self::all(text, key_id)?;
        let found = keys.into_iter().find(|key| key_id.is_none_or(|id| key.kid == id));
        found.ok_or_else(|| "holds several keys, none of them with the id of server.key_id".to_owned())
    }

    /// All keys of the text that can sign.
    pub fn all(text: &str, key_id: Option<&str>) -> Result<Vec<Self>, String> {
        let identified = |(pair, kid): (Pair, Option<String>), key_id: Option<&str>| {
            let kid = key_id.map(str::to_owned).or(kid).filter(|kid| !kid.is_empty());
            let kid = kid.ok_or_else(|| {
                "holds a key without kid; set server.key_id to the id under which the server knows the key".to_owned()
            })?;
            Ok(Self { pair: Arc::new(pair), kid })
        };
        let text = key_text::unwrapped(text);
        if !text.starts_with('{') {
            return Ok(vec![identified((Pair::from_pem(&text)?, None), key_id)?]);
        }
        let jwks: Jwks = serde_json::from_str(&text).map_err(|_| "is neither a JWK, a JWKS nor a PEM")?;
        let Some(keys) = jwks.keys else { return Ok(vec![identified(Pair::from_jwk(&jwks.key)?, key_id)?]) };
        let mut pairs: Vec<_> = keys.iter().filter_map(|key| Pair::from_jwk(key).ok()).collect();
        match (pairs.pop(), pairs.is_empty()) {
            (None, _) => Err(format!("holds no private key for signing; use {USABLE}")),
            (Some(only), true) => Ok(vec![identified(only, key_id)?]),
            (Some(last), false) => pairs.into_iter().chain([last]).map(|pair| identified(pair, None)).collect(),
        }
    }

    /// `RS384` or `ES384`.
    pub fn algorithm(&self) -> &'static str {
        self.pair.algorithm()
    }

    /// A JWT of these claims. Its header names the set of our public keys only where that is registered (rule 120).
    pub(in crate::export) fn sign(&self, claims: &Value, jwks_url: Option<&str>) -> Result<SecretString, Error> {
        let mut header = json!({ "alg": self.algorithm(), "typ": "JWT", "kid": self.kid });
        if let Some(jwks_url) = jwks_url {
            header["jku"] = jwks_url.into();
        }
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(&header), encode(claims));
        let signature =
            self.pair.sign(message.as_bytes()).map_err(|_| refused("the private key", "cannot sign".to_owned()))?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)).into())
    }

    /// The public half, as it is registered at the server (rules 117 and 119).
    pub fn public_jwk(&self) -> Value {
        let encode = |number: &[u8]| URL_SAFE_NO_PAD.encode(number);
        let mut jwk = json!({ "kid": self.kid, "alg": self.algorithm(), "use": "sig" });
        match &*self.pair {
            Pair::Rs384(pair) => {
                let public = pair.public_key();
                jwk["kty"] = "RSA".into();
                jwk["n"] = encode(public.modulus().big_endian_without_leading_zero()).into();
                jwk["e"] = encode(public.exponent().big_endian_without_leading_zero()).into();
            }
            Pair::Es384(pair) => {
                let (x, y) = pair.public_key().as_ref().get(1..).unwrap_or_default().split_at(P384_BYTES);
                jwk["kty"] = "EC".into();
                jwk["crv"] = "P-384".into();
                jwk["x"] = encode(x).into();
                jwk["y"] = encode(y).into();
            }
        }
        jwk
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("SigningKey")
            .field("algorithm", &self.algorithm())
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl Pair {
    fn public(&self) -> &[u8] {
        match self {
            Self::Rs384(pair) => pair.public_key().as_ref(),
            Self::Es384(pair) => pair.public_key().as_ref(),
        }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, aws_lc_rs::error::Unspecified> {
        let random = SystemRandom::new();
        match self {
            Self::Rs384(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA384, &random, message, &mut signature)?;
                Ok(signature)
            }
            Self::Es384(pair) => Ok(pair.sign(&random, message)?.as_ref().to_vec()),
        }
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Rs384(_) => "RS384",
            Self::Es384(_) => "ES384",
        }
    }

    fn from_pem(text: &str) -> Result<Self, String> {
        let ec =
            |der: &[u8]| EcdsaKeyPair::from_private_key_der(&ECDSA_P384_SHA384_FIXED_SIGNING, der).map(Self::Es384);
        let der = PrivateKeyDer::from_pem_slice(text.as_bytes())
            .map_err(|_| "is neither a JWK nor a PEM with a private key; an encrypted one must be decrypted first")?;
        match &der {
            PrivateKeyDer::Pkcs1(der) => {
                RsaKeyPair::from_der(der.secret_pkcs1_der()).map(Self::Rs384).map_err(|_| unusable_rsa())
            }
            PrivateKeyDer::Sec1(der) => {
                let der = der.secret_sec1_der();
                ec(der).map_err(|_| unusable_key(der))
            }
            PrivateKeyDer::Pkcs8(der) => {
                let der = der.secret_pkcs8_der();
                RsaKeyPair::from_pkcs8(der).map(Self::Rs384).or_else(|_| ec(der)).map_err(|_| unusable_key(der))
            }
            _ => Err("is a PEM of an unknown kind; convert it to PKCS#8".to_owned()),
        }
    }

    fn from_jwk(jwk: &Jwk) -> Result<(Self, Option<String>), String> {
        let is_for_signing = jwk.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "sign"))
            && jwk.r#use.as_ref().is_none_or(|r#use| r#use == "sig");
        if !is_for_signing {
            return Err("holds a key whose use or key_ops do not include signing".to_owned());
        }
        if jwk.d.is_none() {
            return Err("holds a public key; the private one is needed, with d".to_owned());
        }
        let pair = match (jwk.kty.as_deref(), jwk.crv.as_deref()) {
            (Some("RSA"), _) => Self::from_rsa_jwk(jwk)?,
            (Some("EC"), Some("P-384")) => Self::from_ec_jwk(jwk)?,
            (Some("EC"), Some(curve @ ("P-256" | "P-521" | "secp256k1"))) => return Err(unusable_curve(curve)),
            _ => return Err(format!("holds a key of another kind; use {USABLE}")),
        };
        match jwk.alg.as_deref() {
            Some(alg) if alg != pair.algorithm() => {
                Err(format!("holds a key for another algorithm; its alg must be {}", pair.algorithm()))
            }
            _ => Ok((pair, jwk.kid.clone())),
        }
    }

    fn from_rsa_jwk(jwk: &Jwk) -> Result<Self, String> {
        let number = |name, value: &Option<SecretString>| {
            let number = decoded(name, value.as_ref())?;
            // A leading zero is allowed in a JWK, and not by the library.
            let zeros = number.iter().take_while(|byte| **byte == 0).count();
            Ok::<_, String>(Zeroizing::new(number[zeros..].to_vec()))
        };
        let components = KeyPairComponents {
            public_key: PublicKeyComponents { n: number("n", &jwk.n)?, e: number("e", &jwk.e)? },
            d: number("d", &jwk.d)?,
            p: number("p", &jwk.p)?,
            q: number("q", &jwk.q)?,
            dP: number("dp", &jwk.dp)?,
            dQ: number("dq", &jwk.dq)?,
            qInv: number("qi", &jwk.qi)?,
        };
        RsaKeyPair::from_components(&components).map(Self::Rs384).map_err(|_| unusable_rsa())
    }

    fn from_ec_jwk(jwk: &Jwk) -> Result<Self, String> {
        let number = |name, value: &Option<SecretString>| {
            let number = decoded(name, value.as_ref())?;
            let missing =
                P384_BYTES.checked_sub(number.len()).ok_or_else(|| format!("holds a key whose {name} is too long"))?;
            Ok::<_, String>(Zeroizing::new([vec![0; missing].as_slice(), number.as_slice()].concat()))
        };
        // An uncompressed point (SEC 1, 2.3.3).
        let public = [&[4], number("x", &jwk.x)?.as_slice(), number("y", &jwk.y)?.as_slice()].concat();
        EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P384_SHA384_FIXED_SIGNING, &number("d", &jwk.d)?, &public)
            .map(Self::Es384)
            .map_err(|_| "holds an EC key whose numbers do not fit together".to_owned())
    }
}

fn decoded(name: &str, value: Option<&SecretString>) -> Result<Zeroizing<Vec<u8>>, String> {
    let value = value.ok_or_else(|| format!("holds a key without {name}; export the key with all its parts"))?;
    let bytes = URL_SAFE_NO_PAD.decode(value.expose_secret().trim_end_matches('='));
    bytes.map(Zeroizing::new).map_err(|_| format!("holds a key whose {name} is not base64url"))
}

const USABLE: &str = "RSA of at least 2048 bits or EC P-384";

/// Why a key that was read as EC or PKCS#8 cannot be used.
fn unusable_key(der: &[u8]) -> String {
    let curves = [
        (&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256"),
        (&ECDSA_P521_SHA512_FIXED_SIGNING, "P-521"),
        (&ECDSA_P256K1_SHA256_FIXED_SIGNING, "secp256k1"),
    ];
    let is_on = |curve| EcdsaKeyPair::from_private_key_der(curve, der).is_ok();
    match curves.into_iter().find(|(curve, _)| is_on(curve)) {
        Some((_, curve)) => unusable_curve(curve),
        None => format!("holds a key that is too short, damaged or of another kind; use {USABLE}"),
    }
}

fn unusable_curve(curve: &str) -> String {
    format!("holds an EC key on {curve}; use {USABLE}")
}

fn unusable_rsa() -> String {
    "holds an RSA key of less than 2048 bits, or one whose numbers do not fit together".to_owned()
}

fn refused(holder: &str, reason: String) -> Error {
    Error::Key { holder: holder.to_owned(), reason }
}

/// A JWK, or a set of them: then its own members are absent.
#[derive(Deserialize)]
struct Jwks {
    keys: Option<Vec<Jwk>>,
    #[serde(flatten)]
    key: Jwk,
}

#[derive(Deserialize)]
struct Jwk {
    kty: Option<String>,
    kid: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    n: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    e: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    d: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    p: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    q: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    dp: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    dq: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    qi: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    x: Option<SecretString>,
    #[serde(default, deserialize_with = "secret")]
    y: Option<SecretString>,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(SecretString::from))
}
