//! What the server says beside an export: how many resources of a type it has, and whether our token covers the type.
//!
//! Both are evidence, not data: a type that an export lacks may be empty, denied or lost, and these tell which
//! (rule 21).

use serde::Deserialize;

use super::{
    Client, Error, RequestSpec,
    auth::{Granted, covers},
    error::shown,
    failure::Failure,
    request::under,
};
use crate::{fhir::ResourceType, telemetry::metrics::Endpoint};

/// A Bundle without entries is small; some servers send the entries in spite of `_summary=count`.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SearchSet {
    resource_type: String,
    total: Option<u64>,
}

impl Client {
    /// How many resources of a type the server has, by a search for their number alone. `None` where it does not say:
    /// it offers no search, refuses it, or is too busy. Asked once: a count is not worth a second request.
    ///
    /// # Errors
    /// No connection, or no token.
    pub async fn count(&self, resource_type: ResourceType) -> Result<Option<u64>, Error> {
        let mut url = under(&self.config.server, [resource_type.as_str()]);
        url.set_query(Some("_summary=count"));
        let context = format!("number of resources at {}", shown(&url));
        let spec = RequestSpec {
            // HAPI answers a search again with its result of a minute ago, unless it is told not to.
            headers: &[("cache-control", "no-cache")],
            ..RequestSpec::get(Endpoint::Count, &url, "application/fhir+json", &context)
        };
        let response = match self.send(&spec).await {
            Ok(response) if response.status().is_success() => response,
            Ok(_) => return Ok(None),
            Err(Failure::Fatal(error)) => return Err(error),
            Err(Failure::Retry(source)) => {
                return Err(Error::Unreachable { context, attempts: 1, elapsed: std::time::Duration::ZERO, source });
            }
        };
        let Ok(Some(body)) = self.http.read(response, MAX_BYTES).await else { return Ok(None) };
        let found: Option<SearchSet> = serde_json::from_slice(&body).ok();
        Ok(found.filter(|found| found.resource_type == "Bundle").and_then(|found| found.total))
    }

    /// Whether the scopes of our token cover a type. Without authorization nothing limits us; without a token nobody
    /// can say.
    pub async fn granted(&self, resource_type: ResourceType) -> Granted {
        let Some(tokens) = &self.tokens else { return Granted::Yes };
        match tokens.current(self).await {
            Ok(token) => covers(&token.scope, resource_type),
            Err(_) => Granted::Unknown,
        }
    }

    /// A new run asks for a token again where one was refused; within a run a refusal is final (rule 128). It reads the
    /// files of certificates again: they are renewed while the daemon runs.
    ///
    /// # Errors
    /// [`Error::Config`] where one of them cannot be used.
    pub async fn begin_run(&self) -> Result<(), Error> {
        if let Some(tokens) = &self.tokens {
            tokens.begin_run().await;
        }
        self.http.renew_certificates().await
    }
}
