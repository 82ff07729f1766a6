//! The private key that signs assertions: RSA with RS384, or EC on P-384 with ES384 (rule 118).
//!
//! A [`SigningKey`] has been checked: it can sign. Its numbers are never printed.

use std::{
    fmt,
    fs::{File, Metadata},
    io::Read,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::Arc,
};

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
    /// The key id by which the server finds the public key (rule 119). From the JWK; a PEM has none.
    pub kid: Option<String>,
}

enum Pair {
    Rs384(RsaKeyPair),
    Es384(EcdsaKeyPair),
}

/// Keys are small; a larger file is not one.
const MAX_KEY_FILE_BYTES: u64 = 1 << 20;
/// The length of a number of P-384.
const P384_BYTES: usize = 48;

impl PartialEq for SigningKey {
    /// Whether the server would find the same public key.
    fn eq(&self, other: &Self) -> bool {
        self.kid == other.kid && self.pair.public() == other.pair.public()
    }
}

impl SigningKey {
    /// From a file that only its owner can read: a JWK, a JWKS or a PEM. Blocks: it is meant for start-up.
    ///
    /// # Errors
    /// [`Error::KeyFile`], [`Error::Key`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let unreadable = |source| Error::KeyFile { path: path.to_owned(), source };
        if key_text::is_key(path) {
            let reason = "is the key itself; write it to a file that only its owner can read, and set the file's path";
            return Err(refused("the path of the private key", reason.to_owned()));
        }
        let refused = |reason| refused(&path.display().to_string(), reason);
        let file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if metadata.is_dir() {
            return Err(refused("is a directory, not a key file".to_owned()));
        }
        if is_open_to_others(&metadata) {
            return Err(refused(format!("can be read by other users; run chmod 600 {}", path.display())));
        }
        let mut text = Zeroizing::new(String::new());
        file.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text).map_err(unreadable)?;
        Self::from_text(&text).map_err(refused)
    }

    /// Whether a setting that should name the file holds the key itself: then it must not be shown.
    pub fn is_given_as_path(path: &Path) -> bool {
        key_text::is_key(path)
    }

    /// From the text of a JWK, a JWKS with a private key that can sign, or a PEM (PKCS#8, PKCS#1 or SEC1).
    ///
    /// # Errors
    /// [`Error::Key`], which never quotes the text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::from_text(text).map_err(|reason| refused("the text of the private key", reason))
    }

    /// `RS384` or `ES384`.
    pub fn algorithm(&self) -> &'static str {
        match *self.pair {
            Pair::Rs384(_) => "RS384",
            Pair::Es384(_) => "ES384",
        }
    }

    /// A JWT of these claims (rule 120).
    pub(in crate::export) fn sign(&self, claims: &Value) -> Result<SecretString, Error> {
        let mut header = json!({ "alg": self.algorithm(), "typ": "JWT" });
        if let Some(kid) = &self.kid {
            header["kid"] = Value::from(kid.as_str());
        }
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let message = format!("{}.{}", encode(&header), encode(claims));
        let signature =
            self.pair.sign(message.as_bytes()).map_err(|_| refused("the private key", "cannot sign".to_owned()))?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)).into())
    }

    /// On an error, as in all private functions here: what the text holds, and what is needed.
    fn from_text(text: &str) -> Result<Self, String> {
        let text = key_text::unwrapped(text);
        if !text.starts_with('{') {
            return Ok(Self { pair: Arc::new(Pair::from_pem(&text)?), kid: None });
        }
        let jwks: Jwks = serde_json::from_str(&text).map_err(|_| "is neither a JWK, a JWKS nor a PEM")?;
        match jwks {
            Jwks { keys: Some(keys), .. } => keys
                .iter()
                .find_map(|key| Self::from_jwk(key).ok())
                .ok_or_else(|| format!("holds no private key for signing; use {USABLE}")),
            Jwks { key, .. } => Self::from_jwk(&key),
        }
    }

    fn from_jwk(jwk: &Jwk) -> Result<Self, String> {
        let is_for_signing = jwk.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "sign"))
            && jwk.r#use.as_ref().is_none_or(|r#use| r#use == "sig");
        if !is_for_signing {
            return Err("holds a key whose use or key_ops do not include signing".to_owned());
        }
        if jwk.d.is_none() {
            return Err("holds a public key; the private one is needed, with d".to_owned());
        }
        let pair = match (jwk.kty.as_deref(), jwk.crv.as_deref()) {
            (Some("RSA"), _) => Pair::from_rsa_jwk(jwk)?,
            (Some("EC"), Some("P-384")) => Pair::from_ec_jwk(jwk)?,
            (Some("EC"), Some(curve @ ("P-256" | "P-521" | "secp256k1"))) => return Err(unusable_curve(curve)),
            _ => return Err(format!("holds a key of another kind; use {USABLE}")),
        };
        let key = Self { pair: Arc::new(pair), kid: jwk.kid.clone() };
        match jwk.alg.as_deref() {
            Some(alg) if alg != key.algorithm() => {
                Err(format!("holds a key for another algorithm; its alg must be {}", key.algorithm()))
            }
            _ => Ok(key),
        }
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

/// Whether anybody else can read or change the file of a secret.
pub fn is_open_to_others(metadata: &Metadata) -> bool {
    is_exposed(metadata.mode(), metadata.uid(), own_uid())
}

/// Whether anybody else can read or change a file of this mode and owner. A secret that Kubernetes mounts with
/// `fsGroup`, or a credential of a newer systemd, belongs to root and is readable through our group alone: nothing
/// tighter is possible there.
fn is_exposed(mode: u32, owner: u32, own_uid: u32) -> bool {
    let lent_by_root = owner == 0 && own_uid != 0;
    mode & if lent_by_root { 0o037 } else { 0o077 } != 0
}

fn own_uid() -> u32 {
    // Without /proc our user is not known, and the strict rule holds.
    std::fs::metadata("/proc/self").map_or(0, |process| process.uid())
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

#[cfg(test)]
mod tests {
    use super::is_exposed;

    #[test]
    fn a_key_file_is_for_its_owner_or_for_our_group_when_root_owns_it() {
        for (mode, owner, own_uid, exposed) in [
            (0o100_600, 1000, 1000, false),
            (0o100_640, 1000, 1000, true),
            (0o100_604, 1000, 1000, true),
            (0o100_440, 0, 65532, false),
            (0o100_444, 0, 65532, true),
            (0o100_460, 0, 65532, true),
            (0o100_440, 0, 0, true),
        ] {
            assert_eq!(is_exposed(mode, owner, own_uid), exposed, "{mode:o} of {owner} for {own_uid}");
        }
    }
}
