//! `[sync.quarantine]`: in which form lines are kept that are not resources.

use super::{KeyFile, Section, authorization::is_elsewhere, path};
use crate::sync::{Policy, QuarantineKey};

pub(super) fn read(mut section: Section, key_file: &KeyFile) -> Option<Policy> {
    let policy = section.choice("policy", "plain", &["plain", "encrypted", "withheld"].map(|word| (word, word)));
    let path = section.optional("key_file", path);
    let policy = match (policy, path) {
        (None, _) => None,
        (Some("encrypted"), None) => {
            section.mistake("key_file", "is missing; policy = \"encrypted\" needs the file of its key");
            None
        }
        (Some("encrypted"), Some(path)) if matches!(key_file, KeyFile::MayBeElsewhere) && is_elsewhere(&path) => {
            section.remark("key_file", "cannot be read here; it is read when a sync starts");
            Some(Policy::Withheld)
        }
        (Some("encrypted"), Some(path)) => match QuarantineKey::read(&path) {
            Ok(key) => Some(Policy::Encrypted(key)),
            Err(what) => {
                section.mistake("key_file", &what);
                None
            }
        },
        (Some(_), Some(_)) => {
            section.mistake("key_file", "is set, and policy is not \"encrypted\"; remove one of them");
            None
        }
        (Some("withheld"), None) => Some(Policy::Withheld),
        (Some(_), None) => Some(Policy::Plain),
    };
    section.end();
    policy
}
