//! `healthcheck`: asks a running daemon whether its data are fresh. An image without shell and curl needs nothing else.

use std::time::Duration;

use url::Url;

use super::exit::{Exit, FAILED, failed};
use crate::sync::chain;

/// Less than the timeout of the Dockerfile's HEALTHCHECK (5 s), so that the reason is printed.
const LIMIT: Duration = Duration::from_secs(4);
const MAX_BODY_BYTES: usize = 64 * 1024;

pub async fn run(url: &Url) -> Result<(), Exit> {
    // The listener speaks plain HTTP; without TLS the check depends on no certificate of the machine.
    if url.scheme() != "http" {
        return Err(failed(&format!("{url} cannot be asked: the health endpoint speaks plain http://")));
    }
    let (healthy, body) =
        ask(url).await.map_err(|error| failed(&format!("{url} does not answer: {}", chain(&error.without_url()))))?;
    say!("{}", body.trim());
    if healthy { Ok(()) } else { Err(FAILED) }
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
