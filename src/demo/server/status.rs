//! The status URL of a job: in progress, then the manifest, in pages if the scenario says so; and its DELETE.

use std::sync::Arc;

use axum::{
    extract::{Path, RawQuery, State},
    http::{StatusCode, header},
    response::{AppendHeaders, IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use super::{
    Shared, answer,
    job::{Export, OutputFile, Section},
    locked,
};
use crate::demo::{Scenario, world::instant};

pub(super) async fn poll(
    State(shared): State<Arc<Shared>>,
    Path(job): Path<usize>,
    RawQuery(query): RawQuery,
) -> Response {
    let scenario = shared.scenario();
    let page = page_asked(query.as_deref());
    let polled = match page {
        0 => locked(&shared.jobs).poll(job),
        _ => locked(&shared.jobs).polled(job),
    };
    let Some((polls, export)) = polled.filter(|_| !scenario.lose_job) else { return gone() };
    let is_held = scenario.held_types.iter().any(|of| export.request.contains(of.as_str()));
    if scenario.hold || is_held || polls <= scenario.polls_before_done {
        let ready = locked(&shared.jobs).allows_partial(job).then_some(scenario.ready_files).flatten();
        let ready = ready.and_then(|ready| export.files.get(..ready.min(export.files.len())));
        let partial = ready.and_then(|ready| manifest(&shared, &scenario, &export, ready, job, page));
        return in_progress(&scenario, polls, partial.as_ref());
    }
    if let Some(body) = shared.take_manifest_fault() {
        return (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    }
    match manifest(&shared, &scenario, &export, &export.files, job, page) {
        Some(manifest) => answer::document(StatusCode::OK, "application/json", &manifest),
        None => gone(),
    }
}

pub(super) async fn delete(State(shared): State<Arc<Shared>>, Path(job): Path<usize>) -> Response {
    if locked(&shared.jobs).delete(job) && !shared.scenario().lose_job {
        return StatusCode::ACCEPTED.into_response();
    }
    gone()
}

fn gone() -> Response {
    answer::outcome(StatusCode::NOT_FOUND, "not-found", "the export does not exist, or was deleted")
}

fn in_progress(scenario: &Scenario, polls: u32, partial: Option<&Value>) -> Response {
    let progress = if scenario.hold {
        format!("held, asked {polls} times")
    } else {
        format!("in progress, {polls} of {} polls", scenario.polls_before_done)
    };
    let progress = [("x-progress".to_owned(), progress)];
    let retry_after = scenario.retry_after.clone().map(|value| ("retry-after".to_owned(), value));
    let headers = AppendHeaders(progress.into_iter().chain(retry_after));
    match partial {
        Some(partial) => (headers, answer::document(StatusCode::ACCEPTED, "application/json", partial)).into_response(),
        None => (StatusCode::ACCEPTED, headers).into_response(),
    }
}

/// The number of the requested page, counted from 0; the query counts from 1.
fn page_asked(query: Option<&str>) -> usize {
    let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let page = pairs.filter(|(name, _)| name == "page").find_map(|(_, value)| value.parse::<usize>().ok());
    page.unwrap_or(1).saturating_sub(1)
}

/// One page of these files. `None`: the page does not exist.
fn manifest(
    shared: &Shared,
    scenario: &Scenario,
    export: &Export,
    files: &[OutputFile],
    job: usize,
    page: usize,
) -> Option<Value> {
    let per_page = scenario.pages.unwrap_or(usize::MAX).max(1);
    let first = page.saturating_mul(per_page);
    if page > 0 && first >= files.len() {
        return None;
    }
    let after = first.saturating_add(per_page);
    let on_page = files.get(first..after.min(files.len()))?;
    let section = |section| -> Vec<Value> {
        let listed = on_page.iter().filter(|file| file.section == section);
        listed.map(|file| entry(shared, scenario, job, file)).collect()
    };
    let mut manifest = json!({
        "transactionTime": scenario.transaction_time.clone().unwrap_or_else(|| instant(export.transaction_time)),
        "request": export.request,
        "requiresAccessToken": scenario.requires_access_token(),
        "output": section(Section::Output),
        "deleted": section(Section::Deleted),
        "error": section(Section::Error),
    });
    if let Some(members) = manifest.as_object_mut() {
        if scenario.omit_transaction_time {
            members.remove("transactionTime");
        }
        if after < files.len() {
            members.insert("link".to_owned(), next(shared, job, page));
        }
    }
    Some(manifest)
}

fn next(shared: &Shared, job: usize, page: usize) -> Value {
    json!([{"relation": "next", "url": format!("{}/bulkstatus/{job}?page={}", shared.base, page + 2)}])
}

/// What is added to the count of a type's file.
fn offset(scenario: &Scenario, type_name: Option<&str>) -> i64 {
    let resource_type = type_name.and_then(|name| name.parse().ok());
    resource_type.and_then(|of| scenario.count_offset.get(&of).copied()).unwrap_or_default()
}

/// The parameter of a link that expires.
pub(super) const SIGNATURE: &str = "signature";

fn entry(shared: &Shared, scenario: &Scenario, job: usize, file: &OutputFile) -> Value {
    let mut entry = Map::new();
    entry.extend(file.type_name.as_deref().map(|name| ("type".to_owned(), name.into())));
    let path = format!("bulkfiles/{job}/{}", file.name);
    let url = match &scenario.file_origin {
        Some(origin) => format!("{}/fhir/{path}", origin.as_str().trim_end_matches('/')),
        None => format!("{}/{path}", shared.base),
    };
    let signature = scenario.link_requests.and_then(|_| locked(&shared.jobs).signature(job));
    let url = signature.map_or(url.clone(), |signature| format!("{url}?{SIGNATURE}={signature}"));
    entry.insert("url".to_owned(), url.into());
    if !scenario.omit_counts {
        let offset = match file.section {
            Section::Output => offset(scenario, file.type_name.as_deref()),
            Section::Deleted | Section::Error => 0,
        };
        entry.insert("count".to_owned(), file.count.saturating_add_signed(offset).into());
    }
    entry.into()
}
