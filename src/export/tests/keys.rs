//! Signing keys: every form that is read, and what is refused.

use auth::SigningKey;
use aws_lc_rs::{
    encoding::{AsBigEndian, AsDer, EcPrivateKeyBin, EcPrivateKeyRfc5915Der, Pkcs8V1Der},
    rsa,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::*;

/// A key made for one test: in every form that is read, and its public half to check signatures with.
pub struct Made {
    pub jwk: Value,
    pub pems: Vec<String>,
    pub public: DecodingKey,
    pub algorithm: Algorithm,
}

pub fn rsa_key() -> Made {
    let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
    let pkcs8: Pkcs8V1Der = pair.as_der().unwrap();
    // PrivateKeyInfo is version, algorithm, key; the key is version, n, e, d, p, q, dp, dq, qi (RFC 5208, RFC 8017).
    let pkcs1 = der(der(pkcs8.as_ref())[0].1)[2].1;
    let numbers: Vec<_> = der(der(pkcs1)[0].1).into_iter().map(|(_, number)| URL_SAFE_NO_PAD.encode(number)).collect();
    let names = ["n", "e", "d", "p", "q", "dp", "dq", "qi"];
    let mut jwk = json!({ "kty": "RSA", "kid": "rsa-1", "alg": "RS384", "key_ops": ["sign"] });
    for (name, number) in names.iter().zip(&numbers[1..]) {
        jwk[name] = Value::from(number.as_str());
    }
    let modulus = pair.public_key().modulus().big_endian_without_leading_zero().to_vec();
    let exponent = pair.public_key().exponent().big_endian_without_leading_zero().to_vec();
    Made {
        jwk,
        pems: vec![pem("PRIVATE KEY", pkcs8.as_ref()), pem("RSA PRIVATE KEY", pkcs1)],
        public: DecodingKey::from_rsa_raw_components(&modulus, &exponent),
        algorithm: Algorithm::RS384,
    }
}

pub fn ec_key() -> Made {
    let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let private: EcPrivateKeyBin = pair.private_key().as_be_bytes().unwrap();
    let sec1: EcPrivateKeyRfc5915Der = pair.private_key().as_der().unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(48);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    Made {
        jwk: json!({
            "kty": "EC", "crv": "P-384", "kid": "ec-1", "use": "sig",
            "x": x, "y": y, "d": URL_SAFE_NO_PAD.encode(private.as_ref()),
        }),
        pems: vec![
            pem("PRIVATE KEY", pair.to_pkcs8v1().unwrap().as_ref()),
            format!(
                "{}{}",
                pem("EC PARAMETERS", b"\x06\x05\x2b\x81\x04\x00\x22"),
                pem("EC PRIVATE KEY", sec1.as_ref())
            ),
        ],
        public: DecodingKey::from_ec_components(&x, &y).unwrap(),
        algorithm: Algorithm::ES384,
    }
}

impl Made {
    /// The claims of a JWT that this key signed for this audience.
    pub fn verified(&self, jwt: &str, audience: &str) -> Value {
        let mut validation = Validation::new(self.algorithm);
        validation.set_audience(&[audience]);
        jsonwebtoken::decode(jwt, &self.public, &validation).unwrap().claims
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// The elements of a DER value, tag and content.
fn der(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut elements = Vec::new();
    while let [tag, length, rest @ ..] = bytes {
        let (length, rest) = match length {
            0x80.. => {
                let (digits, rest) = rest.split_at(usize::from(length - 0x80));
                (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
            }
            length => (usize::from(*length), rest),
        };
        let (content, rest) = rest.split_at(length);
        elements.push((*tag, content));
        bytes = rest;
    }
    elements
}

/// (rules 117 to 120)
#[test]
fn an_assertion_signed_with_any_form_of_a_key_is_verified_by_its_public_half() {
    let claims = json!({ "aud": "https://token.example.org", "exp": 4_102_444_800_u64, "sub": "me" });
    for made in [rsa_key(), ec_key()] {
        let kid = made.jwk["kid"].as_str();
        let others = json!({ "kty": "EC", "crv": "P-256", "d": "AA", "x": "AA", "y": "AA" });
        let mut public = made.jwk.clone();
        public.as_object_mut().unwrap().remove("d");
        let jwks = json!({ "keys": [public, others, made.jwk.clone()] });
        let mut forms = vec![(made.jwk.to_string(), None), (jwks.to_string(), None)];
        forms.extend(made.pems.iter().map(|pem| (pem.clone(), kid)));
        for (text, key_id) in forms {
            let key = SigningKey::parse(&text, key_id).unwrap();
            let jwt = key.sign(&claims, None).unwrap();
            assert_eq!(made.verified(jwt.expose_secret(), "https://token.example.org"), claims);
            let header = jsonwebtoken::decode_header(jwt.expose_secret()).unwrap();
            assert_eq!((header.alg, header.typ.as_deref(), header.kid.as_deref()), (made.algorithm, Some("JWT"), kid));
        }
    }
}

/// (rules 118 and 129)
#[test]
fn a_key_that_cannot_sign_is_refused_and_never_quoted() {
    let made = rsa_key();
    let with = |name: &str, value: Value| {
        let mut jwk = made.jwk.clone();
        jwk[name] = value;
        jwk.to_string()
    };
    let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    for (text, expected) in [
        (with("d", Value::Null), "public key"),
        (with("p", Value::Null), "without p"),
        (with("d", Value::from("s3cret!")), "whose d is not base64url"),
        (with("d", Value::from("c2VjcmV0")), "do not fit together"),
        (with("alg", Value::from("RS256")), "its alg must be RS384"),
        (with("key_ops", json!(["verify"])), "do not include signing"),
        (with("use", Value::from("enc")), "do not include signing"),
        (with("kty", Value::from("oct")), "of another kind; use RSA"),
        (with("kty", Value::from("EC")), "of another kind"),
        (
            json!({ "kty": "EC", "crv": "P-256", "d": "AA" }).to_string(),
            "holds an EC key on P-256; use RSA of at least",
        ),
        (json!({ "keys": [] }).to_string(), "holds no private key for signing"),
        ("{\"kty\": s3cret".to_owned(), "neither a JWK"),
        ("s3cret".to_owned(), "neither a JWK"),
        (pem("ENCRYPTED PRIVATE KEY", b"s3cret"), "must be decrypted"),
        (pem("PRIVATE KEY", p256.to_pkcs8v1().unwrap().as_ref()), "holds an EC key on P-256; use"),
        (pem("RSA PRIVATE KEY", b"s3cret"), "less than 2048 bits"),
    ] {
        let error = SigningKey::parse(&text, Some("id")).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} (expected: {expected})");
        assert!(!error.contains("s3cret"), "{error}");
    }
}

/// (rule 129)
#[test]
fn a_key_prints_no_secret() {
    let made = ec_key();
    let key = SigningKey::parse(&made.jwk.to_string(), None).unwrap();
    assert_eq!(format!("{key:?}"), r#"SigningKey { algorithm: "ES384", kid: "ec-1", .. }"#);
}

#[test]
fn a_key_is_read_as_environments_and_secret_stores_hand_it_on() {
    for made in [rsa_key(), ec_key()] {
        let jwk = made.jwk.to_string();
        let mut forms =
            vec![format!("\u{feff}{jwk}\n"), format!("'{jwk}'"), json!(jwk).to_string(), STANDARD.encode(&jwk)];
        for pem in &made.pems {
            forms.push(pem.replace('\n', "\\n"));
            forms.push(format!("\"{}\"", pem.replace('\n', "\\n")));
            forms.push(format!("\u{feff}'{pem}'"));
            forms.push(STANDARD.encode(pem));
            forms.push(pem.replace('\n', "\r\n"));
        }
        // One PEM in one line; the other form has two parts.
        forms.push(made.pems[0].replace('\n', " "));
        for text in forms {
            let key = SigningKey::parse(&text, Some("id")).unwrap_or_else(|error| panic!("{error}: {}", &text[..30]));
            assert!(key.sign(&json!({}), None).is_ok());
        }
    }
}

/// Shows (rule 119).
#[test]
fn a_key_without_an_id_is_refused_and_another_id_may_be_set() {
    let made = ec_key();
    let mut unnamed = made.jwk.clone();
    unnamed.as_object_mut().unwrap().remove("kid");
    for text in [unnamed.to_string(), json!({ "keys": [unnamed] }).to_string(), made.pems[0].clone()] {
        let error = SigningKey::parse(&text, None).unwrap_err().to_string();
        assert!(error.contains("set server.key_id"), "{error}");
        assert_eq!(SigningKey::parse(&text, Some("at the server")).unwrap().kid, "at the server");
    }
    assert_eq!(SigningKey::parse(&made.jwk.to_string(), Some("at the server")).unwrap().kid, "at the server");
}

/// Shows (rule 119).
#[test]
fn of_several_keys_the_first_signs_unless_a_setting_names_another() {
    let named = |made: &Made, kid: &str| {
        let mut jwk = made.jwk.clone();
        jwk["kid"] = kid.into();
        jwk
    };
    let (old, new) = (ec_key(), rsa_key());
    let set = json!({ "keys": [named(&old, "old"), named(&new, "new")] }).to_string();
    let algorithm = |key_id| SigningKey::parse(&set, key_id).map(|key| (key.kid.clone(), key.algorithm()));
    assert_eq!(algorithm(None).unwrap(), ("old".to_owned(), "ES384"));
    assert_eq!(algorithm(Some("new")).unwrap(), ("new".to_owned(), "RS384"));
    assert!(algorithm(Some("none")).unwrap_err().to_string().contains("none of them with the id"));
}

/// Shows (rules 117 to 120).
#[test]
fn a_new_key_signs_and_its_published_half_verifies_and_holds_nothing_secret() {
    for (algorithm, name) in [(auth::generate::Algorithm::Es384, "ES384"), (auth::generate::Algorithm::Rs384, "RS384")]
    {
        let set = auth::generate::generated(algorithm).unwrap();
        let both = auth::generate::with_added(&set, auth::generate::Algorithm::Es384).unwrap();
        let key = SigningKey::parse(&both, None).unwrap();
        assert_eq!(key.algorithm(), name);
        let published: Value = serde_json::from_str(&auth::generate::public_jwks(&both, None).unwrap()).unwrap();
        let keys = published["keys"].as_array().unwrap();
        assert_eq!((keys.len(), keys[0]["kid"].as_str().unwrap()), (2, key.kid.as_str()));
        assert_ne!(keys[0]["kid"], keys[1]["kid"]);
        for private in ["d", "p", "q", "dp", "dq", "qi"] {
            assert!(keys.iter().all(|key| key.get(private).is_none()), "{private}");
        }
        let jwt = key.sign(&json!({ "aud": "a", "exp": 4_102_444_800_u64 }), Some("https://me/jwks.json")).unwrap();
        let public: jsonwebtoken::jwk::Jwk = serde_json::from_value(keys[0].clone()).unwrap();
        let header = jsonwebtoken::decode_header(jwt.expose_secret()).unwrap();
        assert_eq!((header.kid, header.jku), (Some(key.kid.clone()), Some("https://me/jwks.json".to_owned())));
        let mut validation = Validation::new(header.alg);
        validation.set_audience(&["a"]);
        let public = DecodingKey::from_jwk(&public).unwrap();
        jsonwebtoken::decode::<Value>(jwt.expose_secret(), &public, &validation).unwrap();
    }
    assert!(auth::generate::with_added("-----BEGIN PRIVATE KEY-----", auth::generate::Algorithm::Es384).is_err());
}
