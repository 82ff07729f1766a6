//! `[notify]`: whom to notify when a run ends. The URLs are secrets: files that only their owner can read, or variables
//! of the environment.

use std::collections::BTreeMap;

use secrecy::ExposeSecret as _;

use super::{KeyFile, Section, parsed, proxy, secrets};
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

/// The URL that is kept where one of the keys of `name` says.
pub(super) fn secret_url(section: &mut Section, name: &str, key_file: &KeyFile) -> Option<SecretUrl> {
    let keyed = secrets::read(section, name).ok()??;
    let text = keyed.text(section, key_file).ok()??;
    let url = SecretUrl::parse(text.expose_secret());
    url.map_err(|what| section.mistake(&keyed.key, &format!("holds a text that {what}"))).ok()
}
