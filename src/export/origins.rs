//! Origins: what the configuration says of the places that a URL may name. Whom may a request go to, and what of ours
//! may it carry?
//!
//! What always holds: a token, a client certificate and headers of one's own go to origins that the configuration
//! names, and to no others; a URL that the server writes for an inner address is never replaced by a less protected
//! one.

use url::{Origin, Url};

use super::{
    Config, Error,
    address::Addresses,
    error::shown,
    redirect::{check_url, secured},
};

/// The origins of one server, as its configuration has them.
#[derive(Clone, Debug)]
pub struct Origins {
    /// The server's own, and `token_origins` (rule 92).
    trusted: Vec<Origin>,
    /// That of a token endpoint that the configuration names.
    token_endpoint: Option<Origin>,
    allow_http: bool,
    addresses: Addresses,
    rewrite: Rewrite,
}

impl Origins {
    /// `config.server` ends with a slash. `proxies` are those that the environment names.
    pub fn new(config: &Config, proxies: &[Url]) -> Self {
        let token_url = config.auth.as_ref().and_then(|auth| auth.token_url()).map(|token_url| &token_url.url);
        let trusted = || std::iter::once(&config.server).chain(&config.token_origins);
        let named = trusted().chain(token_url);
        Self {
            trusted: trusted().map(Url::origin).collect(),
            token_endpoint: token_url.map(Url::origin),
            allow_http: config.allow_http,
            addresses: Addresses::new(named, proxies, config.allow_private_addresses),
            rewrite: Rewrite::new(&config.server, &config.rewrite_origin),
        }
    }

    /// The origins that may receive the token.
    pub fn trusted(&self) -> &[Origin] {
        &self.trusted
    }

    /// Whether requests there may carry the token, and headers of one's own.
    pub fn may_have_token(&self, url: &Url) -> bool {
        self.trusted.contains(&url.origin())
    }

    /// Whether the client certificate may be shown there.
    pub fn may_see_certificate(&self, url: &Url) -> bool {
        let origin = url.origin();
        self.trusted.contains(&origin) || self.token_endpoint.as_ref() == Some(&origin)
    }

    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    pub fn rewrite(&self) -> &Rewrite {
        &self.rewrite
    }

    /// Whether a request may go to `url`, which was received from `from`; as [`check_url`], and by its address.
    ///
    /// # Errors
    /// [`Error::UnusableUrl`] and [`Error::RefusedAddress`], in this context.
    pub fn check(&self, url: &Url, from: &Url, context: &str) -> Result<(), Error> {
        check_url(url, Some(from), self.allow_http).map_err(|reason| {
            let is_of_server = from.scheme() == "https" && url.scheme() == "http" && self.may_have_token(from);
            let reason = if is_of_server { format!("{reason}{}", way_out(url)) } else { reason };
            Error::UnusableUrl { context: context.to_owned(), reason }
        })?;
        let refused = |refused| Error::RefusedAddress { context: context.to_owned(), refused };
        self.addresses.check(url).map_err(refused)
    }
}

/// What to set where a server writes an inner address of its own.
fn way_out(url: &Url) -> String {
    let origin = url.origin().ascii_serialization();
    format!("; if that is the inner address of the server itself, set server.rewrite_origin = [\"{origin}\"]")
}

/// The inner addresses of a server behind a proxy, which it writes into the URLs that it sends. They are replaced
/// by its FHIR base, as we know it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rewrite {
    /// Each with the address that takes its place; both end with a slash. The longest paths are first.
    inner: Vec<(Url, Url)>,
}

impl Rewrite {
    /// An inner address without a path stands for the origin of the server; one with a path, for its FHIR base.
    pub fn new(server: &Url, inner: &[Url]) -> Self {
        let replacement = |inner: &Url| {
            let mut server = server.clone();
            if inner.path() == "/" {
                server.set_path("/");
            }
            server
        };
        let mut inner: Vec<_> =
            inner.iter().map(with_slash).map(|inner| (inner.clone(), replacement(&inner))).collect();
        inner.sort_by_key(|(inner, _)| std::cmp::Reverse(inner.path().len()));
        Self { inner }
    }

    /// The URL that is meant by one which the server sent from `from`.
    pub fn meant(&self, url: Url, from: &Url) -> Url {
        secured(self.rewritten(url), from)
    }

    fn rewritten(&self, url: Url) -> Url {
        let replaced = self.inner.iter().find_map(|(inner, outer)| {
            let path = url.path();
            let rest = path.strip_prefix(inner.path()).or_else(|| {
                // The base itself, without its slash.
                inner.path().strip_suffix('/').filter(|base| *base == path).map(|_| "")
            })?;
            if inner.origin() != url.origin() {
                return None;
            }
            let mut outer = outer.clone();
            outer.set_path(&format!("{}{rest}", outer.path()));
            outer.set_query(url.query());
            Some(outer)
        });
        replaced.unwrap_or(url)
    }
}

/// Why an address cannot be an inner one of this server, if so.
pub fn check_inner(inner: &Url, server: &Url) -> Result<(), String> {
    if !inner.username().is_empty() || inner.password().is_some() {
        return Err("must not hold a user or password".to_owned());
    }
    if inner.query().is_some() || inner.fragment().is_some() {
        return Err(format!("{} must be an address without ? and #", shown(inner)));
    }
    if inner.origin() == server.origin() {
        return Err(format!("{} is the origin of server.url itself", shown(inner)));
    }
    if inner.scheme() == "https" && server.scheme() == "http" {
        return Err(format!("{} is https and server.url is http; nothing is sent less protected", shown(inner)));
    }
    Ok(())
}

fn with_slash(url: &Url) -> Url {
    let mut url = url.clone();
    if !url.path().ends_with('/') {
        url.set_path(&format!("{}/", url.path()));
    }
    url
}
