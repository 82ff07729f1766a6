//! `healthcheck`: asks a running daemon whether its data are fresh. An image without shell and curl needs nothing else.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use clap::Args;
use reqwest::StatusCode;
use serde_json::Value;
use url::Url;

use super::{
    ConfigFile,
    exit::{Exit, FAILED, failed, misconfigured},
};
use crate::{config, sync::chain};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigFile,
    /// URL of the health endpoint, instead of the address in the configuration; without a path it is /health
    #[arg(long)]
    url: Option<Url>,
    /// How old the data may be, instead of what the configuration says, such as 90m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
}

/// Less than the timeout of the Dockerfile's HEALTHCHECK (5 s), so that the reason is printed.
const LIMIT: Duration = Duration::from_secs(4);
const MAX_BODY_BYTES: usize = 4 << 20;

pub(super) async fn run(arguments: Arguments) -> Result<(), Exit> {
    let mut url = match arguments.url {
        Some(mut url) => {
            if url.path() == "/" {
                url.set_path("/health");
            }
            url
        }
        None => url_of(config::health(&arguments.config.path).map_err(misconfigured)?.listen)?,
    };
    if let Some(max_age) = arguments.max_age {
        url.query_pairs_mut().append_pair("max_age", &humantime::format_duration(max_age).to_string());
    }
    // A query may hold anything; messages do without.
    let mut shown = url.clone();
    shown.set_query(None);
    // The listener speaks plain HTTP; without TLS the check depends on no certificate of the machine.
    if url.scheme() != "http" {
        return Err(failed(&format!("{shown} cannot be asked: the health endpoint speaks plain http://")));
    }
    let asked = ask(&url).await;
    let (status, body) =
        asked.map_err(|error| failed(&format!("{shown} does not answer: {}", chain(&error.without_url()))))?;
    let answer = Answer::of(status, &body).ok_or_else(|| {
        failed(&format!("{shown} is not the health endpoint of a fhir-sync, which is /health: it answers {status}"))
    })?;
    say!("{}", body.trim());
    if answer == Answer::Healthy { Ok(()) } else { Err(FAILED) }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Healthy,
    Unhealthy,
    /// A sentence about the question.
    Refused,
}

impl Answer {
    /// `None` of an answer that is not one of `/health`: a page, `/livez`, or another server.
    fn of(status: StatusCode, body: &str) -> Option<Self> {
        if matches!(status, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND) {
            // Ours is one line of text.
            return (body.trim().lines().count() == 1 && !body.starts_with(['<', '{'])).then_some(Self::Refused);
        }
        let health: Value = serde_json::from_str(body).ok()?;
        // Other servers have a status, too.
        health.get("age_seconds")?;
        match (status, health["status"].as_str()?) {
            (StatusCode::OK, "healthy") => Some(Self::Healthy),
            (StatusCode::SERVICE_UNAVAILABLE, "unhealthy") => Some(Self::Unhealthy),
            _ => None,
        }
    }
}

/// Where a listener of this machine is reached. One that listens on all addresses is reached on loopback too.
fn url_of(mut listen: SocketAddr) -> Result<Url, Exit> {
    if listen.port() == 0 {
        return Err(failed("health.listen has port 0, so only the log says where the daemon listens; use --url"));
    }
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Url::parse(&format!("http://{listen}/health")).map_err(|error| failed(&error.to_string()))
}

async fn ask(url: &Url) -> reqwest::Result<(StatusCode, String)> {
    let client = reqwest::Client::builder()
        .timeout(LIMIT)
        // Neither a proxy nor a redirect may answer for the daemon.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_certs_only(std::iter::empty())
        .build()?;
    let mut response = client.get(url.clone()).send().await?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() >= MAX_BODY_BYTES {
            body.truncate(MAX_BODY_BYTES);
            break;
        }
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_health_endpoint_answers_counts_as_healthy() {
        let healthy = r#"{"status":"healthy","last_sync":null,"age_seconds":null}"#;
        let (unhealthy, metadata) = (healthy.replace("healthy", "unhealthy"), r#"{"status":"active"}"#);
        let (ok, down) = (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE);
        for (status, body, expected) in [
            (ok, healthy, Some(Answer::Healthy)),
            (down, unhealthy.as_str(), Some(Answer::Unhealthy)),
            (StatusCode::BAD_REQUEST, "max_age is no duration\n", Some(Answer::Refused)),
            (StatusCode::NOT_FOUND, "<!DOCTYPE html>", None),
            (down, healthy, None),
            (ok, unhealthy.as_str(), None),
            (ok, metadata, None),
            (ok, r#"{"status":"healthy"}"#, None),
            (ok, "alive\n", None),
            (ok, "<!DOCTYPE html>", None),
        ] {
            assert_eq!(Answer::of(status, body), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        let url = |listen: &str| url_of(listen.parse().unwrap()).unwrap().to_string();
        assert_eq!(url("127.0.0.1:9187"), "http://127.0.0.1:9187/health");
        assert_eq!(url("0.0.0.0:9999"), "http://127.0.0.1:9999/health");
        assert_eq!(url("[::]:9999"), "http://[::1]:9999/health");
        assert!(url_of("127.0.0.1:0".parse().unwrap()).is_err());
    }
}
