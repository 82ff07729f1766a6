//! `[server]`: where the FHIR server is, how long to wait. The defaults are those of `export`.

use super::{
    Section,
    authorization::{self, KeyFile},
    boolean, bytes, count, duration, duration_text, network, positive_duration, size_text, url,
};
use crate::export::{self, FileAuth, KickOffMethod, ListSeparator, WaitRange};

pub fn read(mut section: Section, key_file: &KeyFile) -> Option<export::Config> {
    let url = section.required("url", url);
    let allow_http = section.or("allow_http", "false", boolean);
    if let (Some(url), Some(allow_http)) = (&url, allow_http)
        && let Err(reason) = export::check_base(url, allow_http)
    {
        section.mistake("url", &reason);
    }
    let has_authorization = section.has("client_id");
    let auth = authorization::read(&mut section, key_file, allow_http);
    let token_origins = section.list("token_origins", super::url);
    section.renamed_word("file_auth", "manifest", "auto");
    let file_auth = [("auto", FileAuth::Auto), ("always", FileAuth::Always), ("never", FileAuth::Never)];
    let file_auth = section.choice("file_auth", "auto", &file_auth);
    if file_auth == Some(FileAuth::Always) && !has_authorization {
        section.mistake("file_auth", "\"always\" sends a token with each file, and without client_id there is none");
    }
    let network = network::read(&mut section, url.as_ref(), key_file);
    let default = export::HttpConfig::default();
    let outage_patience = section.or("outage_patience", &duration_text(default.outage_patience), duration);
    let methods = [("auto", KickOffMethod::Auto), ("get", KickOffMethod::Get), ("post", KickOffMethod::Post)];
    let method = section.choice("kickoff", "auto", &methods);
    let separators =
        [("auto", ListSeparator::Auto), ("comma", ListSeparator::Comma), ("repeat", ListSeparator::Repeat)];
    let separator = section.choice("list_separator", "auto", &separators);
    let poll = read_poll(section.section("poll"));
    let http = read_http(section.section("http"));
    section.end();
    let (url, network, (http, limits)) = (url?, network?, http?);
    Some(export::Config {
        allow_http: allow_http?,
        auth,
        token_origins: token_origins?,
        file_auth: file_auth?,
        kick_off: export::KickOffConfig { method: method?, separator: separator? },
        proxy: network.proxy,
        rewrite_origin: network.rewrite_origin,
        allow_private_addresses: network.allow_private_addresses,
        headers: network.headers,
        tls: network.tls,
        poll: poll?,
        http: export::HttpConfig { outage_patience: outage_patience?, ..http },
        limits,
        ..export::Config::new(url)
    })
}

fn read_poll(mut section: Section) -> Option<export::PollConfig> {
    let default = export::PollConfig::default();
    let interval = read_waits(&mut section, ["min_interval", "max_interval"], default.interval);
    let deadline = section.or("deadline", &duration_text(default.deadline), positive_duration);
    let kick_off_deadline = section.or("kick_off_deadline", &duration_text(default.kick_off_deadline), duration);
    section.end();
    let (interval, deadline, kick_off_deadline) = (interval?, deadline?, kick_off_deadline?);
    Some(export::PollConfig { interval, deadline, kick_off_deadline, ..default })
}

/// The waits of a request, and how much of a response is accepted.
fn read_http(mut section: Section) -> Option<(export::HttpConfig, export::Limits)> {
    let default = export::HttpConfig::default();
    let connect_timeout = section.or("connect_timeout", &duration_text(default.connect_timeout), positive_duration);
    let idle_timeout = section.or("idle_timeout", &duration_text(default.idle_timeout), positive_duration);
    section.replaced("retry_attempts", "is replaced by server.outage_patience, a time");
    let retry_wait = read_waits(&mut section, ["retry_min_wait", "retry_max_wait"], default.retry_wait);
    let max_requests_per_minute = section.optional_number("max_requests_per_minute", count);
    let max_requests_per_file = section.optional_number("max_requests_per_file", count);
    let hash_files = section.or("hash_files", "false", boolean);
    section.renamed(&[("max_file_bytes", "max_file_size")]);
    let limits = export::Limits::default();
    let max_file_bytes = section.or("max_file_size", &size_text(limits.max_file_bytes), bytes);
    let max_decompression_ratio =
        section.or("max_decompression_ratio", &limits.max_decompression_ratio.to_string(), count);
    let max_transfer_time =
        section.or("max_transfer_time", &duration_text(limits.max_transfer_time), positive_duration);
    let min_throughput_bytes = section.or("min_throughput", &size_text(limits.min_throughput_bytes), bytes);
    let max_manifest_bytes = section.or("max_manifest_size", &size_text(limits.max_manifest_bytes), bytes);
    section.end();
    let http = export::HttpConfig {
        connect_timeout: connect_timeout?,
        idle_timeout: idle_timeout?,
        retry_wait: retry_wait?,
        max_requests_per_minute,
        max_requests_per_file,
        hash_files: hash_files?,
        ..default
    };
    let limits = export::Limits {
        max_file_bytes: max_file_bytes?,
        max_decompression_ratio: max_decompression_ratio?,
        max_transfer_time: max_transfer_time?,
        min_throughput_bytes: min_throughput_bytes?,
        max_manifest_bytes: max_manifest_bytes?,
        ..limits
    };
    Some((http, limits))
}

fn read_waits(section: &mut Section, [min_key, max_key]: [&str; 2], default: WaitRange) -> Option<WaitRange> {
    let min = section.or(min_key, &duration_text(default.min()), positive_duration);
    let max = section.or(max_key, &duration_text(default.max()), duration);
    let range = WaitRange::new(min?, max?);
    if range.is_none() {
        section.mistake(min_key, &format!("is longer than {max_key}"));
    }
    range
}
