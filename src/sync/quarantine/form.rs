//! The form in which lines are kept: as they were sent, encrypted, or not at all.
//!
//! An encrypted line is bound to its place: a row whose content was taken from another row cannot be opened.

use std::{fmt, sync::Arc};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::zeroize::Zeroizing;

use crate::{resource::Line, sync::hex::from_hex, table::QuarantineRow};

/// How the lines of the quarantine are kept.
#[derive(Clone, Debug)]
pub enum Policy {
    Plain,
    Encrypted(QuarantineKey),
    /// Only the place of the line, and why it is not a resource.
    Withheld,
}

/// The line cannot be kept in this form. It has no cause that could be named.
#[derive(Debug)]
pub struct NotEncrypted;

impl Policy {
    /// The form of a line, and what is kept of it.
    pub(super) fn form(&self, file: &str, line: &Line) -> Result<(&'static str, Option<Vec<u8>>), NotEncrypted> {
        match self {
            Self::Plain => Ok((QuarantineRow::PLAIN, Some(line.bytes.to_vec()))),
            Self::Encrypted(key) => Ok((QuarantineRow::ENCRYPTED, Some(key.encrypt(file, line)?))),
            Self::Withheld => Ok((QuarantineRow::WITHHELD, None)),
        }
    }

    /// The line of a row that was read with its content. On an error, why it cannot be had.
    pub fn line_of(&self, row: &QuarantineRow) -> Result<Vec<u8>, &'static str> {
        let content = match (&row.content, row.form.as_str(), row.replayed_at) {
            (_, _, Some(_)) => return Err("its resource is in its table, and the line is no longer kept"),
            (None, _, _) => {
                return Err("the line itself was not kept: it was too long, or sync.quarantine.policy was withheld");
            }
            (Some(content), QuarantineRow::PLAIN, _) => return Ok(content.clone()),
            (Some(content), _, _) => content,
        };
        let Self::Encrypted(key) = self else {
            return Err("it is encrypted; set sync.quarantine.policy = \"encrypted\" and its key_file");
        };
        key.decrypt(&row.file, row.line, content).ok_or("it cannot be decrypted; was it kept with another key?")
    }
}

/// A key for AES-256-GCM.
#[derive(Clone)]
pub struct QuarantineKey(
    /// AWS-LC overwrites all memory that it frees.
    Arc<LessSafeKey>,
);

impl QuarantineKey {
    /// From 32 bytes as hexadecimal digits or in base64. On an error, a phrase that never quotes the text.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let what = "does not hold 32 bytes as hexadecimal digits or in base64; `openssl rand -hex 32` makes them";
        Self::from_bytes(text.as_bytes()).ok_or(what)
    }

    fn from_bytes(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        let bytes = Zeroizing::new(from_hex(text).map(Vec::from).or_else(|| STANDARD.decode(text).ok())?);
        let key = UnboundKey::new(&AES_256_GCM, bytes.as_slice()).ok()?;
        Some(Self(Arc::new(LessSafeKey::new(key))))
    }

    /// The nonce, the ciphertext and the tag.
    fn encrypt(&self, file: &str, line: &Line) -> Result<Vec<u8>, NotEncrypted> {
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).map_err(|_| NotEncrypted)?;
        let mut sealed = line.bytes.to_vec();
        let place = Aad::from(place(file, line.number));
        let nonce_of_line = Nonce::assume_unique_for_key(nonce);
        self.0.seal_in_place_append_tag(nonce_of_line, place, &mut sealed).map_err(|_| NotEncrypted)?;
        Ok([&nonce, sealed.as_slice()].concat())
    }

    fn decrypt(&self, file: &str, line: u64, content: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = content.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.0.open_in_place(nonce, Aad::from(place(file, line)), &mut sealed).ok()?;
        Some(opened.to_vec())
    }
}

/// What an encrypted line is bound to.
fn place(file: &str, line: u64) -> Vec<u8> {
    [&line.to_be_bytes(), file.as_bytes()].concat()
}

impl fmt::Debug for QuarantineKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("QuarantineKey")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_32_bytes_as_hexadecimal_digits_or_in_base64() {
        let hex = "00ff".repeat(16);
        let base64 = STANDARD.encode([0, 255].repeat(16));
        for text in [hex.clone(), format!("{hex}\n"), format!("  {base64}\r\n")] {
            let (one, other) =
                (QuarantineKey::from_bytes(hex.as_bytes()).unwrap(), QuarantineKey::from_bytes(text.as_bytes()));
            let line = Line { number: 7, offset: 0, bytes: b"{".to_vec().into() };
            let content = one.encrypt("a", &line).unwrap();
            assert_eq!(other.unwrap().decrypt("a", 7, &content).unwrap(), b"{", "{text}");
        }
        for text in ["", "00ff", &"x".repeat(64), &STANDARD.encode([1; 31]), &STANDARD.encode([1; 33])] {
            assert!(QuarantineKey::from_bytes(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn an_encrypted_line_opens_only_in_its_own_place_and_is_never_encrypted_the_same_twice() {
        let key = QuarantineKey::parse(&"ab".repeat(32)).unwrap();
        let line = Line { number: 7, offset: 0, bytes: b"{\"id\":".to_vec().into() };
        let content = key.encrypt("Patient file 1 of 1", &line).unwrap();
        assert!(!content.windows(line.bytes.len()).any(|window| window == line.bytes));
        assert_ne!(content, key.encrypt("Patient file 1 of 1", &line).unwrap());
        assert_eq!(key.decrypt("Patient file 1 of 1", 7, &content), Some(line.bytes.to_vec()));
        assert_eq!(key.decrypt("Patient file 1 of 1", 8, &content), None);
        assert_eq!(key.decrypt("Patient file 2 of 2", 7, &content), None);
        assert_eq!(key.decrypt("Patient file 1 of 1", 7, &content[..20]), None);
    }
}
