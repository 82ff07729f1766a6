//! `[server]`, what concerns the network: addresses, inner addresses, headers of one's own, proxy and `[server.tls]`.

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::{
    Section,
    authorization::{KeyFile, is_elsewhere},
    boolean, path, proxy, url,
};
use crate::export::{self, ClientCertificate, Proxy, Tls, TlsVersion, Trust};

pub(super) struct Network {
    pub proxy: Proxy,
    pub rewrite_origin: Vec<Url>,
    pub allow_private_addresses: bool,
    pub headers: HeaderMap,
    pub tls: Tls,
}

pub(super) fn read(section: &mut Section, server: Option<&Url>, key_file: &KeyFile) -> Option<Network> {
    let proxy = section.or("proxy", "none", proxy);
    let rewrite_origin = section.list("rewrite_origin", |text| {
        let inner = url(text)?;
        server.map_or(Ok(()), |server| export::check_inner(&inner, server))?;
        Ok(inner)
    });
    let allow_private_addresses = section.or("allow_private_addresses", "false", boolean);
    // They are often keys of an interface.
    section.is_secret("headers");
    let texts = section.texts("headers");
    let read: Vec<_> = texts.iter().map(|(name, value)| header(section, name, value)).collect();
    let headers: Option<HeaderMap> = read.into_iter().collect();
    let tls = read_tls(section.section("tls"), key_file);
    Some(Network {
        proxy: proxy?,
        rewrite_origin: rewrite_origin?,
        allow_private_addresses: allow_private_addresses?,
        headers: headers?,
        tls: tls?,
    })
}

/// What fhir-sync says itself, or HTTP between two machines, or a cookie of a session that nobody has.
const NOT_ONES_OWN: [&str; 19] = [
    "accept",
    "accept-encoding",
    "authorization",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "host",
    "if-range",
    "keep-alive",
    "prefer",
    "proxy-authorization",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A header of one's own; a mistake never quotes its value.
fn header(section: &Section, name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let mistake = |what: &str| {
        section.mistake("headers", &format!("{name:?} {what}"));
        None
    };
    let Ok(known) = HeaderName::from_bytes(name.as_bytes()) else { return mistake("is not the name of a header") };
    if NOT_ONES_OWN.contains(&known.as_str()) {
        return mistake("is a header that fhir-sync or its HTTP library sets; remove it");
    }
    let Ok(mut value) = HeaderValue::from_str(value) else {
        return mistake("has a value with characters that a header cannot hold");
    };
    value.set_sensitive(true);
    Some((known, value))
}

fn read_tls(mut section: Section, key_file: &KeyFile) -> Option<Tls> {
    let ca_file = section.optional("ca_file", path);
    let is_exclusive = section.or("exclusive_ca", "false", boolean);
    let min_version = section.choice("min_version", "1.2", &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)]);
    let certificate = section.optional("client_certificate_file", path);
    let key = section.optional("client_key_file", path);
    let trust = match (ca_file, is_exclusive?) {
        (Some(path), true) => Some(Trust::Only(path)),
        (Some(path), false) => Some(Trust::HostAnd(path)),
        (None, false) => Some(Trust::Host),
        (None, true) => {
            section.mistake("ca_file", "is missing; exclusive_ca = true needs the file of the only authorities");
            None
        }
    };
    let client_certificate = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Some(ClientCertificate { certificate, key })),
        (None, None) => Some(None),
        (Some(_), None) => {
            section.mistake("client_key_file", "is missing; the client certificate needs its private key");
            None
        }
        (None, Some(_)) => {
            section.mistake("client_certificate_file", "is missing; client_key_file belongs to one");
            None
        }
    };
    let tls = Tls { trust: trust?, min_version: min_version?, client_certificate: client_certificate? };
    check_files(&section, &tls, key_file);
    section.end();
    Some(tls)
}

/// The files are read once more when a client is made; here, so that `check` finds what is wrong with them.
fn check_files(section: &Section, tls: &Tls, key_file: &KeyFile) {
    if matches!(key_file, KeyFile::MayBeElsewhere) {
        let elsewhere = tls.files().into_iter().filter(|(_, path)| is_elsewhere(path));
        let remarks =
            elsewhere.map(|(key, _)| section.remark(key, "cannot be read here; it is read when a sync starts"));
        if remarks.count() > 0 {
            return;
        }
    }
    match tls.read() {
        Ok(_) => {}
        Err(export::Error::Config { setting, reason }) => {
            section.mistake(setting.rsplit('.').next().unwrap_or(setting), &reason);
        }
        Err(other) => section.mistake("ca_file", &other.to_string()),
    }
}
