//! The sections of the server: how long to wait for an export and for an answer, with the defaults of the room `export`.

use super::{Section, bytes, duration, duration_text, number, size_text};
use crate::export::{self, WaitRange};

pub fn read_poll(mut section: Section) -> Option<export::PollConfig> {
    let default = export::PollConfig::default();
    let interval = read_waits(&mut section, ["min_interval", "max_interval"], default.interval);
    let deadline = section.or("deadline", &duration_text(default.deadline), duration);
    let kick_off_deadline = section.or("kick_off_deadline", &duration_text(default.kick_off_deadline), duration);
    section.end();
    Some(export::PollConfig { interval: interval?, deadline: deadline?, kick_off_deadline: kick_off_deadline? })
}

/// What the section says of waiting, and of how much is accepted.
pub fn read_http(mut section: Section) -> Option<(export::HttpConfig, export::Limits)> {
    let default = export::HttpConfig::default();
    let connect_timeout = section.or("connect_timeout", &duration_text(default.connect_timeout), duration);
    let idle_timeout = section.or("idle_timeout", &duration_text(default.idle_timeout), duration);
    let retry_attempts = section.or("retry_attempts", &default.retry_attempts.to_string(), number);
    let retry_wait = read_waits(&mut section, ["retry_min_wait", "retry_max_wait"], default.retry_wait);
    section.renamed(&[("max_file_bytes", "max_file_size")]);
    let limits = export::Limits::default();
    let max_file_bytes = section.or("max_file_size", &size_text(limits.max_file_bytes), bytes);
    section.end();
    let http = export::HttpConfig {
        connect_timeout: connect_timeout?,
        idle_timeout: idle_timeout?,
        retry_attempts: retry_attempts?,
        retry_wait: retry_wait?,
    };
    Some((http, export::Limits { max_file_bytes: max_file_bytes?, ..limits }))
}

fn read_waits(section: &mut Section, [min_key, max_key]: [&str; 2], default: WaitRange) -> Option<WaitRange> {
    let min = section.or(min_key, &duration_text(default.min()), duration);
    let max = section.or(max_key, &duration_text(default.max()), duration);
    let range = WaitRange::new(min?, max?);
    if range.is_none() {
        section.mistake(min_key, &format!("is longer than {max_key}"));
    }
    range
}
