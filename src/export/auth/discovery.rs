//! Discovery: the token endpoint that a server publishes, and the scopes that it supports.

use reqwest::StatusCode;
use serde_json::Value;
use url::Url;

use super::{TokenEndpoint, TokenUrl};
use crate::{
    export::{
        Client, Error,
        error::{code, shown},
        http::{RequestSpec, TokenUse},
        request::under,
        retry::{is_transient, retrying},
    },
    telemetry::metrics,
};

/// Where tokens are obtained, and with which scope.
pub struct Endpoint {
    pub token_url: TokenUrl,
    pub scope: String,
    /// The algorithms that the server accepts assertions in, where it says so (rule 118).
    algorithms: Vec<String>,
}

impl Endpoint {
    /// Servers publish few details and not always right ones, but this list, where there is one, decides.
    pub fn check_algorithm(&self, ours: &'static str) -> Result<(), Error> {
        if self.algorithms.is_empty() || self.algorithms.iter().any(|algorithm| algorithm == ours) {
            return Ok(());
        }
        let theirs = self.algorithms.iter().take(MAX_ALGORITHMS_SHOWN).map(code).collect::<Vec<_>>().join(", ");
        Err(Error::Algorithm { ours, theirs })
    }
}

const MAX_ALGORITHMS_SHOWN: usize = 10;

/// A `CapabilityStatement` can be long.
const MAX_DISCOVERY_BYTES: u64 = 16 << 20;
const OAUTH_URIS: &str = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris";

/// Reads what the server publishes, without a token (rules 114 to 116); what is configured needs no discovery.
pub async fn discover(config: &TokenEndpoint, client: &Client) -> Result<Endpoint, Error> {
    let server = &client.config.server;
    let well_known = under(server, [".well-known", "smart-configuration"]);
    let smart = match (&config.token_url, config.scopes.is_empty()) {
        (Some(_), false) => None,
        _ => document(client, &well_known, "application/json").await.unwrap_or_else(|error| {
            tracing::warn!("no SMART configuration, reading the CapabilityStatement instead; {error}");
            None
        }),
    };
    let published = smart.as_ref().and_then(|smart| smart.get("token_endpoint")?.as_str()).map(str::to_owned);
    let token_url = match (&config.token_url, published) {
        (Some(token_url), _) => token_url.clone(),
        (None, Some(published)) => published_url(client, &published)?,
        (None, None) => {
            let metadata = document(client, &under(server, ["metadata"]), "application/fhir+json").await?;
            let published = metadata.as_ref().and_then(oauth_uris_token);
            let missing = || Error::NoTokenEndpoint { well_known: shown(&well_known) };
            published_url(client, published.ok_or_else(missing)?)?
        }
    };
    let scope = match config.scopes.as_slice() {
        [] if smart.as_ref().is_some_and(supports_scopes_v2) => "system/*.rs".to_owned(),
        [] => "system/*.read".to_owned(),
        scopes => scopes.join(" "),
    };
    let algorithms = smart.as_ref().map(algorithms).unwrap_or_default();
    Ok(Endpoint { token_url, scope, algorithms })
}

/// A published JSON document; `None` when the server answers with anything else.
async fn document(client: &Client, url: &Url, accept: &'static str) -> Result<Option<Value>, Error> {
    let context = format!("discovery at {}", shown(url));
    let spec =
        RequestSpec { token: TokenUse::Never, ..RequestSpec::get(metrics::Endpoint::Discovery, url, accept, &context) };
    retrying(&client.config.http, spec.endpoint, &context, || async {
        let response = client.send_untokened(&spec).await?;
        match response.status() {
            StatusCode::NOT_IMPLEMENTED => Ok(None),
            status if is_transient(status) => Err(client.http.fault(response).await.into()),
            status if !status.is_success() => Ok(None),
            _ => {
                let body = client.http.read(response, MAX_DISCOVERY_BYTES).await?;
                Ok(body.and_then(|body| serde_json::from_slice(&body).ok()))
            }
        }
    })
    .await
}

/// A published URL, absolute or relative to the FHIR base (rule 115). An assertion is as good as a password while it
/// lasts: it goes where the access token may go, and nowhere else (rule 92).
fn published_url(client: &Client, published: &str) -> Result<TokenUrl, Error> {
    let config = &client.config;
    let published = published.trim();
    let context = "published token endpoint";
    let unusable = |reason: String| Error::UnusableUrl { context: context.to_owned(), reason };
    let url = config.server.join(published).map_err(|error| unusable(error.to_string()))?;
    let url = client.origins.rewrite().meant(url, &config.server);
    client.origins.check(&url, &config.server, context)?;
    if !client.may_have_token(&url) {
        return Err(Error::ForeignTokenEndpoint { origin: url.origin().ascii_serialization() });
    }
    let is_absolute = Url::parse(published).is_ok();
    let text = if is_absolute { published.to_owned() } else { url.as_str().to_owned() };
    Ok(TokenUrl { url, text })
}

fn oauth_uris_token(metadata: &Value) -> Option<&str> {
    let named = |extensions: &'_ Value, url: &str| -> Option<usize> {
        extensions.as_array()?.iter().position(|extension| extension.get("url").and_then(Value::as_str) == Some(url))
    };
    metadata.get("rest")?.as_array()?.iter().find_map(|rest| {
        let security = rest.get("security")?.get("extension")?;
        let uris = security.get(named(security, OAUTH_URIS)?)?.get("extension")?;
        uris.get(named(uris, "token")?)?.get("valueUri")?.as_str()
    })
}

fn algorithms(smart: &Value) -> Vec<String> {
    let listed = smart.get("token_endpoint_auth_signing_alg_values_supported").and_then(Value::as_array);
    listed.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Whether the server supports scopes such as `system/*.rs`, where version 1 has `.read` (rule 124).
fn supports_scopes_v2(smart: &Value) -> bool {
    let words = |name: &str| smart.get(name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let is_v2 = |scope: &str| {
        let permissions =
            scope.rsplit_once('.').map(|(_, permissions)| permissions.split('?').next().unwrap_or_default());
        permissions.is_some_and(|letters| !letters.is_empty() && letters.chars().all(|letter| "cruds".contains(letter)))
    };
    words("capabilities").any(|capability| capability == "permission-v2")
        || words("scopes_supported").any(|scope| scope.starts_with("system/") && is_v2(scope))
}
