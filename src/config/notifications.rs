//! `[notify]`: whom to notify when a run ends. The URLs are secrets: files that only their owner can read, or variables
//! of the environment.

use std::collections::BTreeMap;

use super::{KeyFile, Section, parsed, path, proxy};
use crate::notify::{Config, Patience, SecretUrl, Webhook};

/// `heartbeats` are those of single exports, by their names.
pub(super) fn read(
    mut section: Section,
    heartbeats: BTreeMap<String, SecretUrl>,
    key_file: &KeyFile,
) -> Option<Config> {
    let heartbeat = secret_url(&mut section, "heartbeat_url", key_file);
    let heartbeat_style = section.or("heartbeat_style", "healthchecks", parsed);
    let url = secret_url(&mut section, "webhook_url", key_file);
    let format = section.or("webhook_format", "json", parsed);
    let on = section.or("webhook_on", "change", parsed);
    let proxy = section.or("proxy", "none", proxy);
    section.end();
    let (format, on) = (format?, on?);
    Some(Config {
        heartbeat,
        heartbeats,
        heartbeat_style: heartbeat_style?,
        webhook: url.map(|url| Webhook { url, format, on }),
        proxy: proxy?,
        patience: Patience::default(),
    })
}

/// The URL that the environment sets as `key`, or that is in the file of `<key>_file`.
fn secret_url(section: &mut Section, key: &str, key_file: &KeyFile) -> Option<SecretUrl> {
    let in_file = secret_url_file(section, &format!("{key}_file"), key_file);
    let Some(text) = section.of_environment(key) else { return in_file };
    if in_file.is_some() {
        section.mistake(key, &format!("is set in the environment, and {key}_file too; remove one of them"));
        return None;
    }
    SecretUrl::parse(&text).map_err(|what| section.mistake(key, &what)).ok()
}

/// The URL in the file that `key` names.
pub(super) fn secret_url_file(section: &mut Section, key: &str, key_file: &KeyFile) -> Option<SecretUrl> {
    let path = section.optional(key, path)?;
    // Somebody who sets the URL in the place of its file must not find it in the message.
    if path.to_string_lossy().contains("://") {
        section.mistake(key, "is the URL itself, which is a secret; write it to a file and set the file's path");
        return None;
    }
    if matches!(key_file, KeyFile::MayBeElsewhere) && !path.exists() {
        section.remark(key, "does not exist here; it is read when the daemon or a sync starts");
        return None;
    }
    SecretUrl::read(&path).map_err(|what| section.mistake(key, &what)).ok()
}
