//! The answers that need no job: metadata, SMART configuration, tokens and errors.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{Shared, locked};
use crate::fhir::ResourceType;

pub(super) const FHIR_JSON: &str = "application/fhir+json";

/// A search for the number of resources of a type, and no other search.
pub(super) async fn count(State(shared): State<Arc<Shared>>, Path(resource_type): Path<String>, uri: Uri) -> Response {
    let is_count = uri.query() == Some("_summary=count") && shared.folder_files.is_empty();
    match resource_type.parse::<ResourceType>() {
        Ok(resource_type) if is_count && shared.scenario().answers_counts => {
            let total = locked(&shared.world).resources(resource_type).count();
            document(StatusCode::OK, FHIR_JSON, &json!({"resourceType": "Bundle", "type": "searchset", "total": total}))
        }
        _ => outcome(StatusCode::NOT_FOUND, "not-supported", "only counts of resources can be searched for"),
    }
}

/// A Group of the world, or one that is not there.
pub(super) async fn group(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Response {
    if shared.scenario().hides_groups {
        return outcome(StatusCode::FORBIDDEN, "forbidden", "groups cannot be read");
    }
    let group = locked(&shared.world).line(ResourceType::GROUP, &id).map(ToString::to_string);
    match group {
        Some(group) => (StatusCode::OK, [(header::CONTENT_TYPE, FHIR_JSON)], group).into_response(),
        None => not_found().await,
    }
}

pub(super) async fn metadata(State(shared): State<Arc<Shared>>) -> Response {
    let now = crate::demo::world::instant(locked(&shared.world).now());
    let group = json!({
        "name": "export",
        "definition": "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/group-export",
    });
    let patient = json!({
        "name": "export",
        "definition": "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/patient-export",
    });
    let system = json!({
        "name": "export",
        "definition": "http://hl7.org/fhir/uv/bulkdata/OperationDefinition/export",
    });
    let mut types = shared.types();
    types.extend([ResourceType::GROUP, ResourceType::PATIENT]);
    let resource = |of: &ResourceType| match of.as_str() {
        "Group" => json!({"type": "Group", "operation": [group]}),
        "Patient" => json!({"type": "Patient", "operation": [patient]}),
        name => json!({"type": name}),
    };
    let resources: Vec<_> = types.iter().map(resource).collect();
    let mut rest = json!({"mode": "server", "resource": resources, "operation": [system]});
    if shared.scenario().auth.is_some() {
        rest["security"] = json!({"extension": [{
            "url": "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris",
            "extension": [{"url": "token", "valueUri": shared.token_url}],
        }]});
    }
    let statement = json!({
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": now,
        "kind": "instance",
        "instantiates": ["http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"],
        "software": {"name": "fhir-sync demo", "version": env!("CARGO_PKG_VERSION")},
        "implementation": {"description": "Synthetic data", "url": shared.base},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "application/fhir+ndjson"],
        "rest": [rest],
    });
    document(StatusCode::OK, FHIR_JSON, &statement)
}

pub(super) async fn smart_configuration(State(shared): State<Arc<Shared>>) -> Response {
    let Some(auth) = shared.scenario().auth else { return not_found().await };
    let method = if auth.secret.is_some() { "client_secret_basic" } else { "private_key_jwt" };
    let configuration = json!({
        "token_endpoint": shared.token_url,
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": [method],
        "token_endpoint_auth_signing_alg_values_supported": auth.algorithms,
        "scopes_supported": ["system/*.rs"],
        "capabilities": ["client-confidential-asymmetric", "permission-v2"],
    });
    document(StatusCode::OK, "application/json", &configuration)
}

pub(super) async fn token(State(shared): State<Arc<Shared>>, headers: HeaderMap, form: Bytes) -> Response {
    let Some(auth) = shared.scenario().auth else { return not_found().await };
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let granted = match &auth.secret {
        Some(secret) => locked(&shared.tokens).grant_by_secret(&auth, secret, authorization, &form),
        None => locked(&shared.tokens).grant(&auth, &shared.token_url, &form),
    };
    let (status, answer) = match granted {
        Ok(granted) => (
            StatusCode::OK,
            json!({
                "access_token": granted.access_token,
                "token_type": "bearer",
                "expires_in": granted.lifetime.as_secs(),
                "scope": granted.scope,
            }),
        ),
        Err(refusal) => {
            (StatusCode::BAD_REQUEST, json!({"error": refusal.error, "error_description": refusal.description}))
        }
    };
    let mut response = document(status, "application/json", &answer);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(super) async fn not_found() -> Response {
    outcome(StatusCode::NOT_FOUND, "not-found", "no resource or operation has this address")
}

/// An `OperationOutcome` of one error.
pub(super) fn outcome(status: StatusCode, code: &str, diagnostics: &str) -> Response {
    let outcome = json!({
        "resourceType": "OperationOutcome",
        "issue": [{"severity": "error", "code": code, "diagnostics": diagnostics}],
    });
    document(status, FHIR_JSON, &outcome)
}

pub(super) fn document(status: StatusCode, content_type: &'static str, document: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, content_type)], document.to_string()).into_response()
}

/// The value of a request's header, where it is text.
pub(super) fn header_text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}
