//! `healthcheck`: asks a running daemon whether its data are fresh. An image without shell and curl needs nothing else.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use clap::Args;
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
    /// URL of the health endpoint, instead of the address in the configuration
    #[arg(long)]
    url: Option<Url>,
    /// How old the data may be, instead of what the configuration says, such as 90m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    max_age: Option<Duration>,
}

/// Less than the timeout of the Dockerfile's HEALTHCHECK (5 s), so that the reason is printed.
const LIMIT: Duration = Duration::from_secs(4);
const MAX_BODY_BYTES: usize = 64 * 1024;

pub(super) async fn run(arguments: Arguments) -> Result<(), Exit> {
    let mut url = match arguments.url {
        Some(url) => url,
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
    let (healthy, body) =
        asked.map_err(|error| failed(&format!("{shown} does not answer: {}", chain(&error.without_url()))))?;
    say!("{}", body.trim());
    if healthy { Ok(()) } else { Err(FAILED) }
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

async fn ask(url: &Url) -> reqwest::Result<(bool, String)> {
    let client = reqwest::Client::builder()
        .timeout(LIMIT)
        // Neither a proxy nor a redirect may answer for the daemon.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .tls_certs_only(std::iter::empty())
        .build()?;
    let mut response = client.get(url.clone()).send().await?;
    let healthy = response.status() == reqwest::StatusCode::OK;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() >= MAX_BODY_BYTES {
            body.truncate(MAX_BODY_BYTES);
            break;
        }
    }
    Ok((healthy, String::from_utf8_lossy(&body).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_asked_on_loopback() {
        let url = |listen: &str| url_of(listen.parse().unwrap()).unwrap().to_string();
        assert_eq!(url("127.0.0.1:9187"), "http://127.0.0.1:9187/health");
        assert_eq!(url("0.0.0.0:9999"), "http://127.0.0.1:9999/health");
        assert_eq!(url("[::]:9999"), "http://[::1]:9999/health");
        assert!(url_of("127.0.0.1:0".parse().unwrap()).is_err());
    }
}
