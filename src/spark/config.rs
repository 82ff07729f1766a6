//! Settings: where the Spark server is, and how it names the tables.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use crate::secret::Secret;

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub address: Address,
    pub token: Option<Secret>,
    pub tables: Tables,
    /// Settings of the session, by Spark's names.
    pub confs: BTreeMap<String, String>,
    pub connect_timeout: Duration,
    /// How long one statement may take.
    pub statement_timeout: Duration,
    /// How long a server that cannot be reached is asked again.
    pub outage_patience: Duration,
}

impl Config {
    pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
    pub const DEFAULT_STATEMENT_TIMEOUT: Duration = Duration::from_hours(2);
    pub const DEFAULT_OUTAGE_PATIENCE: Duration = Duration::from_mins(5);
}

/// How Spark names what is below the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// `tables.root`, as Spark reaches it; `None` where that is the same.
    pub root: Option<String>,
    /// The catalog and schema of the tables, part by part; `None` where they are named by their paths.
    pub schema: Option<Vec<String>>,
}

/// The address of a Spark Connect server, in the form that Spark's own clients read: `sc://host:port/;name=value;…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
    pub tls: bool,
    pub user: String,
    /// Every other parameter is sent as a header, such as `x-databricks-cluster-id`.
    pub headers: BTreeMap<String, String>,
}

const DEFAULT_PORT: u16 = 15_002;
const DEFAULT_USER: &str = "fhir-sync";
/// A connection without TLS may carry a token to this machine only.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

impl Address {
    pub fn is_local(&self) -> bool {
        LOCAL.contains(&self.host.as_str())
    }

    /// For people.
    pub fn place(&self) -> String {
        format!("sc://{}:{}", self.host, self.port)
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("sc://").ok_or("is not of the form sc://host:port/;name=value")?;
        let (authority, parameters) = match rest.split_once('/') {
            Some((authority, path)) => (authority, path.strip_prefix(';').unwrap_or(path)),
            None => (rest, ""),
        };
        if !parameters.is_empty() && !parameters.contains('=') {
            return Err("has a path; only parameters may follow the slash, such as /;use_ssl=true".to_owned());
        }
        let (host, port) = host_and_port(authority)?;
        let mut address = Self { host, port, tls: false, user: DEFAULT_USER.to_owned(), headers: BTreeMap::new() };
        for parameter in parameters.split(';').filter(|parameter| !parameter.is_empty()) {
            let (name, value) =
                parameter.split_once('=').ok_or("has a parameter without a value; each is name=value")?;
            address.set(name, value)?;
        }
        Ok(address)
    }
}

impl Address {
    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "token" => return Err("has a token, which is a secret; set token_file instead".to_owned()),
            "use_ssl" => {
                self.tls = value.parse().map_err(|_| "use_ssl is not true or false".to_owned())?;
            }
            "user_id" => value.clone_into(&mut self.user),
            // A session belongs to one upsert.
            "session_id" => return Err("has a session_id; fhir-sync opens sessions of its own".to_owned()),
            "user_agent" => {}
            _ => {
                let is_header = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_');
                if name.is_empty() || !name.chars().all(is_header) || !value.is_ascii() {
                    return Err(format!("has a parameter {name:?} that cannot be a header"));
                }
                self.headers.insert(name.to_ascii_lowercase(), value.to_owned());
            }
        }
        Ok(())
    }
}

fn host_and_port(authority: &str) -> Result<(String, u16), String> {
    let is_v6_alone = authority.ends_with(']');
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !is_v6_alone => (host, port.parse().map_err(|_| format!("{port:?} is not a port"))?),
        _ => (authority, DEFAULT_PORT),
    };
    if host.is_empty() || host.contains(['@', '?', '#', ' ']) {
        return Err("has no host, or more than a host".to_owned());
    }
    Ok((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_sparks_own_clients_read_it() {
        let address: Address =
            "sc://spark.example:443/;use_ssl=true;user_id=me;x-databricks-cluster-id=7".parse().unwrap();
        assert_eq!((address.host.as_str(), address.port, address.tls), ("spark.example", 443, true));
        assert_eq!(address.user, "me");
        assert_eq!(address.headers.get("x-databricks-cluster-id").map(String::as_str), Some("7"));
        let address: Address = "sc://localhost".parse().unwrap();
        assert_eq!((address.port, address.tls, address.is_local()), (15_002, false, true));
        assert_eq!("sc://[::1]:7".parse::<Address>().unwrap().port, 7);
    }

    #[test]
    fn an_address_with_a_secret_or_without_a_host_is_refused() {
        for (text, what) in [
            ("sc://host/;token=marker", "token_file"),
            ("http://host", "sc://host:port"),
            ("sc://:15002", "no host"),
            ("sc://host:x", "not a port"),
            ("sc://host/path", "has a path"),
            ("sc://host/;use_ssl=maybe", "true or false"),
            ("sc://host/;a b=1", "cannot be a header"),
        ] {
            let mistake = text.parse::<Address>().unwrap_err();
            assert!(mistake.contains(what) && !mistake.contains("marker"), "{text}: {mistake}");
        }
    }
}
