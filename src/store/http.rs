//! How requests are sent: certificates, proxy, time limits, and how often a request is repeated.
//!
//! What always holds: a certificate is checked in full; every request, and every series of repetitions, has an end.

use std::{collections::BTreeMap, fs::File, io::Read as _, path::Path, time::Duration};

use object_store::{BackoffConfig, Certificate, ClientConfigKey, ClientOptions, RetryConfig};

use super::{Error, Options, Proxy};

/// A request that moves a part of 10 MiB within this time needs 1.4 Mbit/s.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The metadata services of clouds, which no proxy reaches.
const OF_THIS_HOST: &str = "127.0.0.0/8,::1,localhost,169.254.0.0/16,fd00:ec2::/32,metadata.google.internal";

/// The star stands for names only.
const EVERY_HOST: &str = "*,0.0.0.0/0,::/0";

/// A bundle of all public certificate authorities has a quarter of this.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Of all options those that concern HTTP. Blocks on the file of authorities.
pub fn client_options(options: &Options, texts: &BTreeMap<&'static str, String>) -> Result<ClientOptions, Error> {
    let mut client = ClientOptions::new().with_timeout(REQUEST_TIMEOUT).with_connect_timeout(CONNECT_TIMEOUT);
    for (name, text) in texts {
        if let Ok(key) = name.parse::<ClientConfigKey>() {
            client = client.with_config(key, text.clone());
        }
    }
    // The environment may say so, too.
    client = client.with_allow_invalid_certificates(false);
    let excluded = texts.get("proxy_excludes").map(|own| format!("{OF_THIS_HOST},{own}"));
    let excluded = excluded.unwrap_or_else(|| OF_THIS_HOST.to_owned());
    client = match &options.proxy {
        // Without a proxy of its own the client asks the environment: this one is for no host.
        Proxy::None => client.with_proxy_url("http://localhost").with_proxy_excludes(EVERY_HOST),
        Proxy::Environment => client,
        Proxy::Url(url) => client.with_proxy_url(url.as_str()).with_proxy_excludes(excluded),
    };
    let certificates = options.ca_file.as_deref().map(authorities).transpose()?;
    Ok(certificates.into_iter().flatten().fold(client, ClientOptions::with_root_certificate))
}

/// The certificates of a file in PEM; at least one. Blocks.
pub fn authorities(path: &Path) -> Result<Vec<Certificate>, Error> {
    let refused = |what: String| Error::Authorities { path: path.display().to_string(), what };
    let unreadable = |error: std::io::Error| refused(format!("cannot be read: {error}"));
    let file = File::open(path).map_err(unreadable)?;
    let mut pem = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut pem).map_err(unreadable)?;
    if pem.len() as u64 > MAX_FILE_BYTES {
        return Err(refused("is larger than 1 MiB".to_owned()));
    }
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|_| refused("holds a damaged PEM".to_owned()))?;
    if certificates.is_empty() {
        return Err(refused("holds no certificate in PEM".to_owned()));
    }
    Ok(certificates)
}

/// A store asks for fewer requests for seconds or minutes, so the time decides and not the number of attempts. The wait
/// of `object_store` is a random time up to `base` times the one before; with a base of 2 it hardly grows.
const RETRY_TIMEOUT: Duration = Duration::from_mins(3);
const MAX_RETRIES: usize = 100;
const BACKOFF: BackoffConfig =
    BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(15), base: 3.0 };

pub fn retries(texts: &BTreeMap<&'static str, String>) -> RetryConfig {
    // What is in the texts was checked.
    let number = |name: &str| texts.get(name).and_then(|text| text.parse().ok());
    let duration = |name: &str| texts.get(name).and_then(|text| humantime::parse_duration(text).ok());
    let init_backoff = duration("backoff_config.init_backoff").unwrap_or(BACKOFF.init_backoff);
    let max_backoff = duration("backoff_config.max_backoff").unwrap_or(BACKOFF.max_backoff);
    let base = texts.get("backoff_config.base").and_then(|text| text.parse().ok()).unwrap_or(BACKOFF.base);
    RetryConfig {
        // `object_store` panics where the longest wait is shorter than the first.
        backoff: BackoffConfig { init_backoff, max_backoff: max_backoff.max(init_backoff), base },
        max_retries: number("max_retries").unwrap_or(MAX_RETRIES),
        retry_timeout: duration("retry_timeout").unwrap_or(RETRY_TIMEOUT),
    }
}

/// For the services that hand out credentials: whoever waits for one has a request that waits too.
pub fn retries_of_credentials(texts: &BTreeMap<&'static str, String>) -> RetryConfig {
    let retries = retries(texts);
    RetryConfig {
        max_retries: retries.max_retries.min(3),
        retry_timeout: retries.retry_timeout.min(Duration::from_secs(30)),
        ..retries
    }
}
