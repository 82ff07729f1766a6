//! Addresses: to which of them requests may go, so that a URL from a server cannot make us ask a machine of our own
//! network, or the metadata service of a cloud.
//!
//! What always holds: hosts that the configuration names may have any address. Of other hosts it is decided on the
//! addresses to which a connection is made, after the name was resolved: a name that changes its address in between
//! gains nothing. Through a proxy, the proxy resolves the name and decides.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// Which hosts may have which addresses.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// Hosts that the configuration names.
    named: Arc<BTreeSet<String>>,
    /// Hosts of proxies: connections are made to them, and no URL may name them.
    proxies: Arc<BTreeSet<String>>,
    allow_private: bool,
}

/// Why an address is not an ordinary one of the Internet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Special {
    Private,
    Loopback,
    LinkLocal,
    Unspecified,
    Multicast,
    Reserved,
}

/// A host that no request is sent to, because of its address.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{host} has the {special} address {address}, and requests go to such an address only where the configuration names \
     the host; if you trust it, add its origin to server.token_origins, or set server.allow_private_addresses = true"
)]
pub struct RefusedAddress {
    pub host: String,
    pub address: IpAddr,
    pub special: Special,
}

impl Addresses {
    pub fn new<'a>(named: impl IntoIterator<Item = &'a Url>, proxies: &[Url], allow_private: bool) -> Self {
        let named = named.into_iter().filter_map(host).collect();
        Self { named: Arc::new(named), proxies: Arc::new(proxies.iter().filter_map(host).collect()), allow_private }
    }

    /// A URL with an address in the place of a name; of names it is decided when they are resolved.
    pub fn check(&self, url: &Url) -> Result<(), RefusedAddress> {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        host(url).map_or(Ok(()), |host| self.admit(&host, address))
    }

    fn admit(&self, host: &str, address: IpAddr) -> Result<(), RefusedAddress> {
        match Special::of(address) {
            Some(special) if !self.allow_private && !self.named.contains(host) => {
                Err(RefusedAddress { host: host.to_owned(), address, special })
            }
            _ => Ok(()),
        }
    }

    /// Those of the addresses of a host that may be connected to.
    pub fn admitted(&self, host: &str, found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, RefusedAddress> {
        if self.proxies.contains(host) {
            return Ok(found);
        }
        let mut refused = None;
        let mut admitted = Vec::new();
        for address in found {
            match self.admit(host, address.ip()) {
                Ok(()) => admitted.push(address),
                Err(reason) => refused = Some(reason),
            }
        }
        refused.filter(|_| admitted.is_empty()).map_or(Ok(admitted), Err)
    }
}

impl Resolve for Addresses {
    fn resolve(&self, name: Name) -> Resolving {
        let addresses = self.clone();
        Box::pin(async move {
            let host = name.as_str().to_ascii_lowercase();
            // The library sets the port.
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            Ok(Box::new(addresses.admitted(&host, found)?.into_iter()) as Addrs)
        })
    }
}

/// The host of a URL as it is compared: in lower case, an address in its usual form.
fn host(url: &Url) -> Option<String> {
    url.host().map(|host| match host {
        Host::Domain(name) => name.to_ascii_lowercase(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    })
}

impl Special {
    /// `None` for the ordinary addresses of the Internet.
    pub fn of(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    /// By IANA's registry of special-purpose addresses (RFC 6890).
    fn of_v4(address: Ipv4Addr) -> Option<Self> {
        match address.octets() {
            [0, ..] => Some(Self::Unspecified),
            [127, ..] => Some(Self::Loopback),
            // The second one is Azure's, for its virtual machines; no registry has it.
            [169, 254, ..] | [168, 63, 129, 16] => Some(Self::LinkLocal),
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Some(Self::Private),
            [224..=239, ..] => Some(Self::Multicast),
            [192, 0, 0, _] | [198, 18..=19, ..] | [240..=255, ..] => Some(Self::Reserved),
            _ => None,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Option<Self> {
        let embedded = |high: u16, low: u16| {
            let [[a, b], [c, d]] = [high.to_be_bytes(), low.to_be_bytes()];
            Self::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Some(Self::Unspecified),
            [0, 0, 0, 0, 0, 0, 0, 1] => Some(Self::Loopback),
            // An IPv4 address in another form: compatible, mapped, translated (RFC 6052, RFC 8215), and 6to4.
            [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
            | [0, 0, 0, 0, 0xffff, 0, high, low]
            | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
            | [0x2002, high, low, ..] => embedded(high, low),
            [0x64, 0xff9b, 1, ..] => Some(Self::Private),
            [0xfc00..=0xfdff, ..] => Some(Self::Private),
            [0xfe80..=0xfebf, ..] => Some(Self::LinkLocal),
            [0xfec0..=0xfeff, ..] => Some(Self::Private),
            [0xff00..=0xffff, ..] => Some(Self::Multicast),
            // Teredo, which embeds an IPv4 address in a form of its own, and the discard prefix.
            [0x2001, 0, ..] | [0x100, 0, 0, 0, ..] => Some(Self::Reserved),
            _ => None,
        }
    }
}

impl fmt::Display for Special {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Private => "private",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Unspecified => "unspecified",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
        })
    }
}
