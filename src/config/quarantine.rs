//! `[sync.quarantine]`: in which form lines are kept that are not resources.

use secrecy::ExposeSecret as _;

use super::{
    KeyFile, Section,
    secrets::{self, KeyedSecret},
};
use crate::sync::{Policy, QuarantineKey};

pub(super) fn read(mut section: Section, key_file: &KeyFile) -> Option<Policy> {
    let policy = section.choice("policy", "plain", &["plain", "encrypted", "withheld"].map(|word| (word, word)));
    let keyed = secrets::read(&mut section, "key");
    let policy = match (policy, keyed) {
        (None, _) | (_, Err(_)) => None,
        (Some("encrypted"), Ok(None)) => {
            section.mistake("key_file", "is missing; policy = \"encrypted\" needs the file of its key");
            None
        }
        (Some("encrypted"), Ok(Some(keyed))) => encrypted(&section, &keyed, key_file),
        (Some(_), Ok(Some(keyed))) => {
            section.mistake(&keyed.key, "is set, and policy is not \"encrypted\"; remove one of them");
            None
        }
        (Some("withheld"), Ok(None)) => Some(Policy::Withheld),
        (Some(_), Ok(None)) => Some(Policy::Plain),
    };
    section.end();
    policy
}

/// Without the key, which may be elsewhere, no line is kept.
fn encrypted(section: &Section, keyed: &KeyedSecret, key_file: &KeyFile) -> Option<Policy> {
    let Some(text) = keyed.text(section, key_file).ok()? else { return Some(Policy::Withheld) };
    match QuarantineKey::parse(text.expose_secret()) {
        Ok(key) => Some(Policy::Encrypted(key)),
        Err(what) => {
            section.mistake(&keyed.key, what);
            None
        }
    }
}
