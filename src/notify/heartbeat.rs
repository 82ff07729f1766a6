//! A heartbeat: the ping that a dead man's switch waits for. It alerts when none arrives, so it notices what `/health`
//! cannot report: that the host is gone.

use std::str::FromStr;

use url::Url;

use super::SecretUrl;
use crate::sync::{Outcome, Report, TypeEnd};

#[derive(Clone, Debug)]
pub struct Heartbeat {
    pub url: SecretUrl,
    pub style: HeartbeatStyle,
}

/// Which pings a receiver understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeartbeatStyle {
    /// `/start` and `/fail` behind the URL, and the URL itself for a success
    /// (<https://healthchecks.io/docs/http_api/>).
    Healthchecks,
    /// `status=up` or `status=down` in the query (<https://github.com/louislam/uptime-kuma/wiki/Internal-API>).
    UptimeKuma,
    /// The URL as it is, for a success only.
    Plain,
}

impl FromStr for HeartbeatStyle {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "healthchecks" => Ok(Self::Healthchecks),
            "uptime-kuma" => Ok(Self::UptimeKuma),
            "plain" => Ok(Self::Plain),
            _ => Err("is not one of healthchecks, uptime-kuma, plain".to_owned()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ping {
    Start,
    Success,
    Failure,
}

impl Ping {
    /// The ping at the end of a run: a success if it brought every type up to date, as `/health` counts the age of the
    /// data. So a partial run whose only flaw is a warning, such as a line in quarantine, is a success, and one that
    /// left a type behind is not. None after a stop: the next start continues.
    pub fn at_end(report: &Report) -> Option<Self> {
        let is_current = |end: &TypeEnd| matches!(end, TypeEnd::Committed { .. } | TypeEnd::Unconfirmed);
        let are_current = report.types.values().all(|of| is_current(&of.end));
        match report.outcome {
            Outcome::Complete => Some(Self::Success),
            Outcome::Partial if are_current => Some(Self::Success),
            Outcome::Partial | Outcome::Failed => Some(Self::Failure),
            Outcome::Stopped => None,
        }
    }
}

impl Heartbeat {
    /// Where the ping goes; none where the receiver has no such ping.
    pub fn url_of(&self, ping: Ping) -> Option<Url> {
        let mut url = self.url.url().clone();
        match (self.style, ping) {
            (HeartbeatStyle::Healthchecks | HeartbeatStyle::Plain, Ping::Success) => Some(url),
            (HeartbeatStyle::Plain, _) | (HeartbeatStyle::UptimeKuma, Ping::Start) => None,
            (HeartbeatStyle::Healthchecks, Ping::Start | Ping::Failure) => {
                let last = if ping == Ping::Start { "start" } else { "fail" };
                // Fails for URLs without a host only.
                url.path_segments_mut().ok()?.pop_if_empty().push(last);
                Some(url)
            }
            (HeartbeatStyle::UptimeKuma, Ping::Success | Ping::Failure) => {
                let (status, said) = if ping == Ping::Success { ("up", "OK") } else { ("down", "failed") };
                let is_ours = |name: &str| matches!(name, "status" | "msg" | "ping");
                let others: Vec<_> = url.query_pairs().into_owned().filter(|(name, _)| !is_ours(name)).collect();
                url.query_pairs_mut().clear().extend_pairs(others).extend_pairs([("status", status), ("msg", said)]);
                Some(url)
            }
        }
    }
}
