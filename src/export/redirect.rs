//! Redirects: where a request may go, and where a redirect leads it.
//!
//! What always holds: no request goes down from https to http, or unencrypted to another host unless that is allowed.

use reqwest::{Response, header::LOCATION};
use url::{Host, Url};

use super::{
    Error,
    error::shown,
    http::{OnRedirect, RequestSpec},
    origins::Origins,
};

/// How many redirects of one request are followed (rule 91).
const MAX_REDIRECTS: usize = 5;

/// The redirects of one request; each URL is checked before the request goes there.
pub struct Redirects<'a> {
    spec: &'a RequestSpec<'a>,
    origins: &'a Origins,
    from: Url,
    url: Url,
    followed: usize,
}

impl<'a> Redirects<'a> {
    pub fn new(spec: &'a RequestSpec<'a>, server: &Url, origins: &'a Origins) -> Self {
        let (from, url) = (server.clone(), spec.url.clone());
        Self { spec, origins, from, url, followed: 0 }
    }

    /// Where the request goes now.
    pub fn url(&self) -> Result<&Url, Error> {
        self.origins.check(&self.url, &self.from, self.spec.context)?;
        Ok(&self.url)
    }

    /// Whether the answer is a redirect that is followed: then [`Redirects::url`] is another one.
    pub fn follow(&mut self, response: &Response) -> Result<bool, Error> {
        let next = match self.spec.on_redirect {
            OnRedirect::Follow => {
                redirect_target(response, &self.url).map(|url| self.origins.rewrite().meant(url, &self.url))
            }
            OnRedirect::Refuse => None,
        };
        let Some(next) = next else { return Ok(false) };
        if self.followed == MAX_REDIRECTS {
            return Err(Error::TooManyRedirects { context: self.spec.context.to_owned(), limit: MAX_REDIRECTS });
        }
        self.followed += 1;
        self.from = std::mem::replace(&mut self.url, next);
        Ok(true)
    }
}

/// Where a redirect leads; `None` when the answer is not one.
pub fn redirect_target(response: &Response, from: &Url) -> Option<Url> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    from.join(location).ok()
}

/// Behind a proxy that ends TLS, a server may write `http:` for its own host: then `https:` is meant.
pub fn secured(mut url: Url, from: &Url) -> Url {
    if from.scheme() == "https" && url.scheme() == "http" && url.host() == from.host() {
        // Neither fails for a URL of HTTP that has a host.
        let _ = url.set_scheme("https");
        let _ = url.set_port(from.port());
    }
    url
}

/// Whether a request may go to `url`, which was received from `from`: by HTTP alone, unencrypted only where that is
/// allowed, and never down from https (rule 1). The reason if not.
pub fn check_url(url: &Url, from: Option<&Url>, allow_http: bool) -> Result<(), String> {
    let refused = |why: &str| Err(format!("{} {why}", shown(url)));
    match (url.scheme(), from.map(Url::scheme)) {
        ("https", _) => Ok(()),
        ("http", Some("https")) => {
            refused("downgrades https to http; correct the base URL in the settings of the server")
        }
        ("http", _) if allow_http || is_loopback(url) => Ok(()),
        ("http", _) => refused("would be sent unencrypted; use https, or set server.allow_http"),
        (scheme, _) => Err(format!("a {scheme}: URL cannot be fetched, only https and http can")),
    }
}

/// Whether a request to `url` stays on this machine.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}
