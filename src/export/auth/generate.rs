//! Key pairs that this program makes: a private JWK, and the set of public keys to register.
//!
//! A new key has the thumbprint of its public half as its id (RFC 7638), so two keys never have the same one.

use aws_lc_rs::{
    digest::{SHA256, digest},
    encoding::{AsBigEndian as _, AsDer as _, EcPrivateKeyBin, Pkcs8V1Der},
    error::Unspecified,
    rsa::{self, KeySize},
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::zeroize::Zeroizing;
use serde_json::{Value, json};

use super::{SigningKey, key_text};

/// The two that each server has to support one of (rule 118).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    Es384,
    Rs384,
}

/// A set with one new private key. On an error, a phrase.
pub fn generated(algorithm: Algorithm) -> Result<Zeroizing<String>, String> {
    let key = private_jwk(algorithm).ok_or("no key could be made")?;
    Ok(written(&json!({ "keys": [key] })))
}

/// The set in `text`, or the single JWK, with one new private key behind the others.
pub fn with_added(text: &str, algorithm: Algorithm) -> Result<Zeroizing<String>, String> {
    let text = key_text::unwrapped(text);
    let mut set: Value =
        serde_json::from_str(&text).map_err(|_| "is neither a JWK nor a JWKS; keys are added to these")?;
    if set.get("keys").is_none() {
        set = json!({ "keys": [set] });
    }
    let key = private_jwk(algorithm).ok_or("no key could be made")?;
    set["keys"].as_array_mut().ok_or("has no list of keys")?.push(key);
    let set = written(&set);
    // Each needs an id as soon as there are two.
    SigningKey::all(&set, None)?;
    Ok(set)
}

/// The public halves of all keys in the text of a private key, as they are registered (rules 117 and 119).
pub fn public_jwks(text: &str, key_id: Option<&str>) -> Result<String, String> {
    let keys: Vec<_> = SigningKey::all(text, key_id)?.iter().map(SigningKey::public_jwk).collect();
    Ok(written(&json!({ "keys": keys })).to_string())
}

fn written(set: &Value) -> Zeroizing<String> {
    Zeroizing::new(format!("{set:#}\n"))
}

fn private_jwk(algorithm: Algorithm) -> Option<Value> {
    let (mut jwk, alg) = match algorithm {
        Algorithm::Es384 => (ec_jwk().ok()?, "ES384"),
        Algorithm::Rs384 => (rsa_jwk()?, "RS384"),
    };
    jwk["kid"] = thumbprint(&jwk)?.into();
    jwk["alg"] = alg.into();
    jwk["use"] = "sig".into();
    Some(jwk)
}

/// An uncompressed point is a byte of its form, and two numbers of this many bytes.
const NUMBER_BYTES: usize = 48;

fn ec_jwk() -> Result<Value, Unspecified> {
    let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING)?;
    let number: EcPrivateKeyBin = pair.private_key().as_be_bytes()?;
    let point = pair.public_key().as_ref().get(1..).ok_or(Unspecified)?;
    let (x, y) = point.split_at_checked(NUMBER_BYTES).ok_or(Unspecified)?;
    let [x, y, d] = [x, y, number.as_ref()].map(|number| URL_SAFE_NO_PAD.encode(number));
    Ok(json!({ "kty": "EC", "crv": "P-384", "x": x, "y": y, "d": d }))
}

/// `PrivateKeyInfo` is version, algorithm, key; the key is version, n, e, d, p, q, dp, dq, qi (RFC 5208; RFC 8017,
/// A.1.2).
fn rsa_jwk() -> Option<Value> {
    let pkcs8: Pkcs8V1Der = rsa::KeyPair::generate(KeySize::Rsa3072).ok()?.as_der().ok()?;
    let info = elements(pkcs8.as_ref())?.into_iter().next()?;
    let key = elements(info)?.into_iter().nth(2)?;
    let numbers = elements(elements(key)?.into_iter().next()?)?;
    let mut jwk = json!({ "kty": "RSA" });
    for (name, number) in ["n", "e", "d", "p", "q", "dp", "dq", "qi"].iter().zip(numbers.get(1..)?) {
        // DER writes a zero before a number that would look negative; a JWK has none.
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        jwk[name] = URL_SAFE_NO_PAD.encode(number.get(zeros..)?).into();
    }
    Some(jwk)
}

/// The contents of the elements of a DER value.
fn elements(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut elements = Vec::new();
    while let [_, length, rest @ ..] = bytes {
        let (length, rest) = match *length {
            long @ 0x80.. => {
                let (digits, rest) = rest.split_at_checked(usize::from(long - 0x80))?;
                (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
            }
            short => (usize::from(short), rest),
        };
        let (content, rest) = rest.split_at_checked(length)?;
        elements.push(content);
        bytes = rest;
    }
    Some(elements)
}

/// SHA-256 of the required members in the order of their names (RFC 7638, 3).
fn thumbprint(jwk: &Value) -> Option<String> {
    let names: &[&str] = if jwk["kty"] == "EC" { &["crv", "kty", "x", "y"] } else { &["e", "kty", "n"] };
    let members: Vec<_> =
        names.iter().map(|name| Some(format!("\"{name}\":{}", jwk.get(name)?))).collect::<Option<_>>()?;
    let text = format!("{{{}}}", members.join(","));
    Some(URL_SAFE_NO_PAD.encode(digest(&SHA256, text.as_bytes())))
}
