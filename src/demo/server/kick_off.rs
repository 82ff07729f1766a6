//! The kick-off: `$export` by GET or POST, answered at once with the status URL.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use chrono::DateTime;
use serde_json::Value;

use super::{
    Shared,
    answer::{self, FHIR_JSON},
    job::{Export, ExportRequest, Since},
    locked,
    narrowed::Narrowing,
};
use crate::{
    demo::{Scenario, World, scenario::Methods},
    fhir::ResourceType,
};

pub(super) async fn kick_off(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let takes = shared.scenario().methods;
    if takes != Methods::Both && (takes == Methods::Post) != (method == Method::POST) {
        return answer::outcome(StatusCode::METHOD_NOT_ALLOWED, "not-supported", "the other method is required");
    }
    let sent = parameters(&method, &uri, &body);
    let request = sent.and_then(|parameters| read(&shared, &method, &uri, &headers, parameters));
    match request {
        Ok(request) => start(&shared, request),
        Err(refused) => answer::outcome(StatusCode::BAD_REQUEST, refused.code, &refused.diagnostics),
    }
}

/// Why a kick-off is refused: an issue code and a sentence. Answered with status 400.
struct BadRequest {
    code: &'static str,
    diagnostics: String,
}

fn refused(code: &'static str, diagnostics: impl Into<String>) -> BadRequest {
    BadRequest { code, diagnostics: diagnostics.into() }
}

fn start(shared: &Shared, mut request: ExportRequest) -> Response {
    let scenario = shared.scenario();
    let refused: Vec<_> = request.types.iter().filter(|of| scenario.refused_types.contains(of)).collect();
    if !refused.is_empty() {
        let names: Vec<_> = refused.iter().map(|of| of.as_str()).collect();
        let named = format!("resource type {} is invalid for this type of export", names.join(", "));
        let words = if scenario.names_refused_types { &named } else { "a resource type is invalid" };
        return answer::outcome(StatusCode::BAD_REQUEST, "not-supported", words);
    }
    // The world's lock is always taken before the jobs' lock; a caller of `Server::world` may ask for the jobs inside.
    let mut world = locked(&shared.world);
    let mut jobs = locked(&shared.jobs);
    if jobs.kept() >= scenario.max_jobs {
        let busy = "another export has not been deleted yet";
        let mut response = answer::outcome(StatusCode::TOO_MANY_REQUESTS, "throttled", busy);
        let retry_after = scenario.retry_after.and_then(|value| value.try_into().ok());
        response.headers_mut().extend(retry_after.map(|value| (header::RETRY_AFTER, value)));
        return response;
    }
    if !is_group(&world, &scenario, &request.path) {
        return answer::outcome(StatusCode::NOT_FOUND, "not-found", "there is no such group");
    }
    request.narrowing.members = members(&world, &request.path);
    let again = scenario.repeats_export.then(|| jobs.last()).flatten();
    let export = again.unwrap_or_else(|| Export::of(&world, &shared.folder_files, &scenario, &request).into());
    if !shared.folder_files.is_empty() {
        world.advance(Duration::from_secs(1));
    }
    let number = jobs.add(request, export);
    let status_url = format!("{}/bulkstatus/{number}", shared.base);
    (StatusCode::ACCEPTED, [(header::CONTENT_LOCATION, status_url)]).into_response()
}

/// The patients of the group in the path, where the world has it as a resource.
fn members(world: &World, path: &str) -> Option<Vec<String>> {
    let group = path.strip_prefix("/fhir/Group/")?.strip_suffix("/$export")?;
    let group: Value = serde_json::from_str(world.line(ResourceType::GROUP, group)?).ok()?;
    let members = group["member"].as_array()?.iter();
    Some(members.filter_map(|member| member["entity"]["reference"].as_str().map(str::to_owned)).collect())
}

/// Whether the path of a kick-off names a group that exists, or none.
fn is_group(world: &World, scenario: &Scenario, path: &str) -> bool {
    let group = path.strip_prefix("/fhir/Group/").and_then(|rest| rest.strip_suffix("/$export"));
    let (Some(group), Some(groups)) = (group, &scenario.groups) else { return true };
    groups.contains(group) || world.line(ResourceType::GROUP, group).is_some()
}

/// Names and values, from the query or from a `Parameters` resource (rules 11 and 12).
fn parameters(method: &Method, uri: &Uri, body: &[u8]) -> Result<Vec<(String, String)>, BadRequest> {
    if method != Method::POST {
        let query = uri.query().unwrap_or_default();
        return Ok(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect());
    }
    let parameters: Value = serde_json::from_slice(body).map_err(|_| refused("structure", "the body is not JSON"))?;
    if parameters["resourceType"] != "Parameters" {
        return Err(refused("structure", "the body is not a Parameters resource"));
    }
    let list = parameters["parameter"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(list.iter().map(|parameter| (string(&parameter["name"]), value(parameter))).collect())
}

fn value(parameter: &Value) -> String {
    let members = parameter.as_object().into_iter().flatten();
    let value = members.filter(|(name, _)| name.starts_with("value")).map(|(_, value)| value).next();
    match value {
        Some(Value::Object(of)) if of.contains_key("reference") => string(&of["reference"]),
        Some(Value::Object(of)) if of.contains_key("code") => {
            format!("{}|{}", of.get("system").map(string).unwrap_or_default(), string(&of["code"]))
        }
        value => value.map(string).unwrap_or_default(),
    }
}

fn string(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn read(
    shared: &Shared,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    parameters: Vec<(String, String)>,
) -> Result<ExportRequest, BadRequest> {
    let accept = answer::header_text(headers, &header::ACCEPT).unwrap_or_default();
    if accept.split(';').next().map(str::trim) != Some(FHIR_JSON) {
        return Err(refused("invalid", "Accept must be application/fhir+json"));
    }
    let prefer = answer::header_text(headers, &HeaderName::from_static("prefer")).unwrap_or_default();
    let prefers = |preference| prefer.split([',', ';']).any(|part| part.trim() == preference);
    if !prefers("respond-async") {
        return Err(refused("invalid", "Prefer must contain respond-async"));
    }
    let target = uri.path_and_query().map_or(uri.path(), |path| path.as_str());
    let request = format!("{}{}", shared.base.trim_end_matches("/fhir"), target);
    let mut request = ExportRequest {
        path: uri.path().to_owned(),
        request,
        since: None,
        types: Vec::new(),
        method: method.to_string(),
        parameters: parameters.clone(),
        narrowing: Narrowing::default(),
        is_organized: false,
        allows_partial: false,
    };
    for (name, value) in parameters {
        match name.as_str() {
            "_since" => request.since = Some(since(value)?),
            "_type" => request.types.extend(types(&value)?),
            "_typeFilter" => request.narrowing.type_filters.push(value),
            "_elements" => request.narrowing.elements.extend(value.split(',').map(str::to_owned)),
            "patient" if *method == Method::POST && uri.path() != "/fhir/$export" => {
                request.narrowing.patients.push(value);
            }
            "organizeOutputBy" => request.is_organized = true,
            // Optional, and without an effect here.
            "_until" | "includeAssociatedData" => {}
            "_outputFormat" if OUTPUT_FORMATS.contains(&value.as_str()) => {}
            "_outputFormat" => return Err(refused("not-supported", "only NDJSON is supported")),
            "allowPartialManifests" => request.allows_partial = value == "true",
            _ if prefers("handling=lenient") => {}
            _ => return Err(refused("not-supported", format!("the parameter {name:?} is not supported"))),
        }
    }
    Ok(request)
}

const OUTPUT_FORMATS: [&str; 3] = ["application/fhir+ndjson", "application/ndjson", "ndjson"];

fn since(sent: String) -> Result<Since, BadRequest> {
    match DateTime::parse_from_rfc3339(&sent) {
        Ok(at) => Ok(Since { at: at.to_utc(), sent }),
        Err(_) => Err(refused("value", "_since is not an instant with date, time, seconds and time zone")),
    }
}

fn types(list: &str) -> Result<Vec<ResourceType>, BadRequest> {
    list.split(',').map(|name| name.parse().map_err(|unknown| refused("value", format!("_type: {unknown}")))).collect()
}
