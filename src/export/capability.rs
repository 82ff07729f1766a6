//! The `CapabilityStatement` of a server, as far as it is needed here.

use serde::Deserialize;

use super::{Client, RequestSpec, error, request::under};
use crate::telemetry::metrics::Endpoint;

/// Larger than any known one; HAPI's has 2 MB.
const MAX_BYTES: u64 = 32 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CapabilityStatement {
    fhir_version: Option<String>,
}

impl Client {
    /// The FHIR version that the server speaks, such as `4.0.1`. `None` where the statement cannot be read or
    /// does not say: many servers declare little (rule 6), and the kick-off shows whether the server can be reached.
    pub async fn fhir_version(&self) -> Option<String> {
        let url = under(&self.config.server, ["metadata"]);
        let context = format!("capabilities at {}", error::shown(&url));
        let spec = RequestSpec::get(Endpoint::Metadata, &url, "application/fhir+json", &context);
        let response = self.send(&spec).await.ok().filter(|response| response.status().is_success())?;
        let body = self.http.read(response, MAX_BYTES).await.ok()??;
        let statement: CapabilityStatement = serde_json::from_slice(&body).ok()?;
        statement.fhir_version
    }
}
