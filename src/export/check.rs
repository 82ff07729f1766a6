//! Checks: whether a server can be reached and what it grants, one step at a time, for the person who sets it up.
//!
//! What always holds: a check changes nothing on the server but what [`Client::check_export`] starts, which it cancels;
//! and no step waits longer than a minute.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::{StatusCode, header::HeaderMap};
use serde_json::Value;
use tokio::{net::lookup_host, time::timeout};
use url::Url;

use super::{
    Client, Error, ExportRequest, Level, Proxy, RequestSpec, TokenUse,
    auth::{CLOCK_SKEW_SECONDS, Granted, covers},
    clock::local_now,
    error::shown,
    failure::Failure,
    redirect::is_loopback,
    request::under,
    retry::{date, is_transient, retrying},
};
use crate::{fhir::ResourceType, telemetry::metrics::Endpoint};

/// One thing that was tried.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// What was tried, and on what.
    pub what: String,
    pub verdict: CheckVerdict,
    /// What was found; of a failure also the way out.
    pub found: String,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CheckVerdict {
    Good,
    /// A sync may work, and something about it should be known.
    Doubtful,
    Failed,
}

/// A CapabilityStatement can be long.
const MAX_BYTES: u64 = 32 << 20;
const STEP_LIMIT: Duration = Duration::from_mins(1);
/// What servers of the guide instantiate (rule 6); a version may follow.
const BULK_DATA: &str = "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data";

/// What a server answers about itself.
enum Capabilities {
    /// `None` where it is something else.
    Statement(Option<Value>),
    NotFound,
}

impl Check {
    pub fn good(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: CheckVerdict::Good, found: found.into() }
    }

    pub fn doubtful(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: CheckVerdict::Doubtful, found: found.into() }
    }

    pub fn failed(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: CheckVerdict::Failed, found: found.into() }
    }

    fn of(what: impl Into<String>, result: Result<String, String>) -> Self {
        match result {
            Ok(found) => Self::good(what, found),
            Err(found) => Self::failed(what, found),
        }
    }
}

impl Client {
    /// The server, from its name to what it declares; then the token and its scopes. Steps that need one that failed
    /// are left out.
    pub async fn check(&self, exports: &[(Level, Vec<ResourceType>)]) -> Vec<Check> {
        let mut checks = Vec::from_iter(self.check_name().await);
        if checks.iter().any(|check| check.verdict == CheckVerdict::Failed) {
            return checks;
        }
        let url = under(&self.config.server, ["metadata"]);
        let what = format!("connection to {}", shown(&self.config.server));
        match self.capabilities(&url).await {
            Err(error) => {
                checks.push(Check::failed(what, error));
                return checks;
            }
            Ok((headers, answer)) => {
                let how = if self.config.server.scheme() == "https" { "over TLS" } else { "without encryption" };
                checks.push(Check::good(what, format!("answers {how}")));
                checks.extend(skew(&headers, local_now()));
                checks.push(match answer {
                    Capabilities::NotFound => unknown_base(&url),
                    Capabilities::Statement(statement) => declared(statement.as_ref(), exports),
                });
            }
        }
        let (token, has_token) = self.check_token(exports).await;
        checks.extend(token);
        if has_token {
            for group in exports.iter().filter_map(|(level, _)| level.group()) {
                checks.push(self.check_group(group).await);
            }
        }
        checks.push(self.file_hosts());
        checks
    }

    /// Starts this export and cancels it at once.
    pub async fn check_export(&self, name: &str, request: &ExportRequest) -> Check {
        let what = format!("export {name}: kick-off");
        let job = match within_limit(self.kick_off(request)).await {
            Ok(job) => job,
            Err(found) => return Check::failed(what, found),
        };
        let url = shown(&job.status_url);
        match within_limit(job.delete(self)).await {
            Ok(()) => Check::good(what, "accepted, and cancelled again"),
            Err(found) => {
                Check::doubtful(what, format!("accepted, but {url} could not be cancelled and may go on: {found}"))
            }
        }
    }

    /// `None` where a proxy resolves the name.
    async fn check_name(&self) -> Option<Check> {
        let server = &self.config.server;
        if self.config.proxy != Proxy::None && !is_loopback(server) {
            return Some(Check::good("proxy", "the name of the server is resolved by the proxy, not here"));
        }
        let (host, port) = (server.host_str()?, server.port_or_known_default()?);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let what = format!("name {host}");
        let found = match timeout(STEP_LIMIT, lookup_host((host, port))).await {
            Ok(Ok(addresses)) => Ok(addresses.map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ")),
            Ok(Err(_)) => Err("cannot be resolved; check server.url and the DNS of this host".to_owned()),
            Err(_) => Err("the DNS of this host does not answer".to_owned()),
        };
        Some(Check::of(what, found))
    }

    /// The CapabilityStatement, without a token: a server has to give it to everybody.
    async fn capabilities(&self, url: &Url) -> Result<(HeaderMap, Capabilities), String> {
        let context = format!("capabilities at {}", shown(url));
        let spec = RequestSpec {
            token: TokenUse::Never,
            ..RequestSpec::get(Endpoint::Metadata, url, "application/fhir+json", &context)
        };
        let ask = || async {
            let response = self.send(&spec).await?;
            if is_transient(response.status()) {
                return Err(self.http.fault(response).await.into());
            }
            let (status, headers) = (response.status(), response.headers().clone());
            if status == StatusCode::NOT_FOUND {
                return Ok::<_, Failure>((headers, Capabilities::NotFound));
            }
            let body = self.http.read(response, MAX_BYTES).await?.filter(|_| status == StatusCode::OK);
            Ok((headers, Capabilities::Statement(body.and_then(|body| serde_json::from_slice(&body).ok()))))
        };
        within_limit(retrying(&self.config.http, spec.endpoint, &context, ask)).await
    }

    /// Whether there is a token, or none is needed.
    async fn check_token(&self, exports: &[(Level, Vec<ResourceType>)]) -> (Vec<Check>, bool) {
        let Some(tokens) = &self.tokens else {
            return (vec![Check::doubtful("authorization", "none is configured: requests carry no token")], true);
        };
        let token = match within_limit(tokens.current(self)).await {
            Ok(token) => token,
            Err(found) => return (vec![Check::failed("token", found)], false),
        };
        let mut checks = vec![Check::good("token", format!("received, with the scopes {:?}", token.scope))];
        let types = exports.iter().flat_map(|(_, types)| types.iter().copied());
        let mut missing: Vec<_> = types
            .filter_map(|of| match covers(&token.scope, of) {
                Granted::No { missing } => Some(missing),
                Granted::Yes | Granted::Unknown => None,
            })
            .collect();
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            let missing = missing.join(" ");
            let found = format!("not granted: {missing}; have the client registered with these scopes");
            checks.push(Check::failed("scopes", found));
        }
        (checks, true)
    }

    /// Some servers export an unknown group as an empty one.
    async fn check_group(&self, group: &str) -> Check {
        let url = under(&self.config.server, ["Group", group]);
        let (what, context) = (format!("Group/{group}"), format!("group at {}", shown(&url)));
        let spec = RequestSpec::get(Endpoint::Metadata, &url, "application/fhir+json", &context);
        let ask = || async { Ok::<_, Failure>(self.send(&spec).await?.status()) };
        match within_limit(retrying(&self.config.http, spec.endpoint, &context, ask)).await {
            Ok(status) if status.is_success() => Check::good(what, "exists"),
            Ok(StatusCode::NOT_FOUND | StatusCode::GONE) => {
                Check::failed(what, "does not exist; some servers export it as an empty group. Check `group`")
            }
            Ok(status) => Check::doubtful(what, format!("cannot be read ({status}), so it may not exist")),
            Err(found) => Check::doubtful(what, found),
        }
    }

    fn file_hosts(&self) -> Check {
        let origins =
            self.origins.trusted().iter().map(url::Origin::ascii_serialization).collect::<Vec<_>>().join(", ");
        let found = match self.tokens {
            Some(_) => format!("files at {origins} are requested with the token, at other hosts without"),
            None => "files are requested without a token".to_owned(),
        };
        Check::good("files", found)
    }
}

async fn within_limit<T>(step: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
    match timeout(STEP_LIMIT, step).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", STEP_LIMIT.as_secs())),
    }
}

/// Each server of FHIR has one (rule 6), so another address is the FHIR base.
fn unknown_base(url: &Url) -> Check {
    let found = format!("the server does not know {} (404 Not Found); check the path of server.url", shown(url));
    Check::failed("capabilities", found)
}

/// `None` where the server does not tell its time.
fn skew(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Check> {
    let seconds = (now - date(headers)?).num_seconds();
    Some(if seconds.abs() > CLOCK_SKEW_SECONDS {
        let found = format!("ours differs from the server's by {seconds} s; synchronize the clock of this host");
        Check::doubtful("clock", found)
    } else {
        Check::good("clock", "agrees with the server's")
    })
}

/// What the statement says about exports. Many servers declare little (rule 6), so nothing fails here.
fn declared(statement: Option<&Value>, exports: &[(Level, Vec<ResourceType>)]) -> Check {
    let what = "capabilities";
    let Some(statement) = statement.filter(|statement| statement["resourceType"] == "CapabilityStatement") else {
        let found = "what `metadata` answers is not a CapabilityStatement; check that server.url is the FHIR base";
        return Check::doubtful(what, found);
    };
    let version = statement["fhirVersion"].as_str().unwrap_or("an unknown version");
    let mut found = format!("FHIR {version}");
    if let Some(software) = statement["software"]["name"].as_str() {
        found.push_str(", ");
        found.extend(software.chars().filter(|char| !char.is_control()).take(80));
    }
    let instantiates = statement["instantiates"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let is_bulk_data = { instantiates }.any(|canonical| canonical.starts_with(BULK_DATA));
    let undeclared: Vec<_> =
        exports.iter().map(|(level, _)| level).filter(|level| !declares(statement, level)).map(Level::word).collect();
    if undeclared.is_empty() {
        Check::good(what, found)
    } else if is_bulk_data {
        Check::good(what, format!("{found}; Bulk Data is declared"))
    } else {
        let levels = undeclared.join(", ");
        Check::doubtful(what, format!("{found}; no export is declared at the level {levels}, which may mean little"))
    }
}

fn declares(statement: &Value, level: &Level) -> bool {
    let is_export = |operations: &Value| {
        let operations = operations.as_array().into_iter().flatten();
        operations.filter_map(|operation| operation["name"].as_str()).any(|name| name.contains("export"))
    };
    let of_type = match level {
        Level::System => None,
        Level::Patient => Some("Patient"),
        Level::Group(_) => Some("Group"),
    };
    statement["rest"].as_array().into_iter().flatten().any(|rest| match of_type {
        None => is_export(&rest["operation"]),
        Some(of) => {
            let resources = rest["resource"].as_array().into_iter().flatten();
            resources.filter(|resource| resource["type"] == of).any(|resource| is_export(&resource["operation"]))
        }
    })
}
