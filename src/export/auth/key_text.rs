//! The text of a private key, as environments and secret stores hand it on: quoted, with `\n` written out, in base64.
//!
//! What always holds: the text is never part of an error, and copies of it are wiped.

use base64::{
    Engine,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};
use secrecy::zeroize::Zeroizing;

/// The JWK, JWKS or PEM in a text, or what else it holds.
pub fn unwrapped(text: &str) -> Zeroizing<String> {
    let mut text = Zeroizing::new(trimmed(text).to_owned());
    if text.starts_with('"')
        && let Ok(inner) = serde_json::from_str::<String>(&text)
    {
        text = Zeroizing::new(trimmed(&inner).to_owned());
    }
    for quote in ['"', '\''] {
        let inner = text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)).map(str::to_owned);
        if let Some(inner) = inner {
            text = Zeroizing::new(inner);
        }
    }
    if let Some(inner) = from_base64(&text) {
        text = inner;
    }
    if text.starts_with(PEM) { lines_of_a_pem(&text) } else { text }
}

const PEM: &str = "-----BEGIN ";

fn trimmed(text: &str) -> &str {
    text.trim().trim_start_matches('\u{feff}').trim()
}

/// The text that is written in base64; `None` where it is not, or does not hold a text.
fn from_base64(text: &str) -> Option<Zeroizing<String>> {
    if text.starts_with('{') || text.starts_with(PEM) {
        return None;
    }
    let joined: String = text.split_whitespace().collect();
    let joined = Zeroizing::new(joined.replace("\\n", ""));
    let digits = joined.trim_end_matches('=');
    let bytes = STANDARD_NO_PAD.decode(digits).or_else(|_| URL_SAFE_NO_PAD.decode(digits)).ok()?;
    let text = String::from_utf8(bytes).ok().map(Zeroizing::new)?;
    Some(Zeroizing::new(trimmed(&text).to_owned()))
}

/// A PEM whose lines were joined: by `\n` written out, by blanks, or by nothing.
fn lines_of_a_pem(text: &str) -> Zeroizing<String> {
    let text = Zeroizing::new(text.replace("\\r", "").replace("\\n", "\n"));
    if text.contains('\n') {
        return text;
    }
    let rebuilt = (|| {
        let (label, rest) = text.strip_prefix(PEM)?.split_once("-----")?;
        let (body, _) = rest.split_once("-----END ")?;
        let body: String = body.split_whitespace().collect();
        Some(format!("{PEM}{label}-----\n{body}\n-----END {label}-----\n"))
    })();
    rebuilt.map_or(text, Zeroizing::new)
}
