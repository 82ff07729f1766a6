//! Proxies: through which one requests go, here and in the room of the notifications.
//!
//! What always holds: requests that stay on this machine may be unencrypted, so none of them goes to a proxy (rule 1);
//! no proxy is used that the configuration does not name or allow.

use std::fmt;

use reqwest::{Client, ClientBuilder};
use url::Url;

use super::redirect::is_loopback;

/// Through which proxy requests go. Those to loopback addresses never go through one.
#[derive(Clone, PartialEq, Eq)]
pub enum Proxy {
    None,
    /// What `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    Environment,
    /// It may hold user and password.
    Url(Url),
}

impl fmt::Debug for Proxy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => out.write_str("None"),
            Self::Environment => out.write_str("Environment"),
            Self::Url(url) => write!(out, "Url({}, …)", url.origin().ascii_serialization()),
        }
    }
}

/// The names of the variables, which may be in small letters too.
const VARIABLES: [&str; 3] = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"];

impl Proxy {
    /// The proxies that may be used.
    pub fn urls(&self) -> Vec<Url> {
        match self {
            Self::None => Vec::new(),
            Self::Url(url) => vec![url.clone()],
            Self::Environment => {
                let names = VARIABLES.into_iter().flat_map(|name| [name.to_owned(), name.to_ascii_lowercase()]);
                let texts = names.filter_map(|name| std::env::var(name).ok());
                // The library takes a proxy without a scheme, too.
                texts
                    .filter_map(|text| {
                        let whole = text.parse().ok().filter(Url::has_host);
                        whole.or_else(|| format!("http://{text}").parse().ok())
                    })
                    .collect()
            }
        }
    }
}

/// A client for direct connections, and where there is a proxy, one for those through it.
#[derive(Clone, Debug)]
pub struct Clients {
    direct: Client,
    proxied: Option<Client>,
}

impl Clients {
    /// Both are made by `builder`.
    pub fn new(proxy: &Proxy, builder: impl Fn() -> reqwest::Result<ClientBuilder>) -> reqwest::Result<Self> {
        // Without `no_proxy` the library takes a proxy from the environment, and says nothing about it.
        let direct = builder()?.no_proxy().build()?;
        let proxied = match proxy {
            Proxy::None => None,
            Proxy::Environment => Some(builder()?.build()?),
            Proxy::Url(url) => Some(builder()?.no_proxy().proxy(reqwest::Proxy::all(url.clone())?).build()?),
        };
        Ok(Self { direct, proxied })
    }

    pub fn of(&self, url: &Url) -> &Client {
        match &self.proxied {
            Some(proxied) if !is_loopback(url) => proxied,
            _ => &self.direct,
        }
    }
}
