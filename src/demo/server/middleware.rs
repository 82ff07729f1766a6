//! The middleware of every request: applies the scenario's faults, checks access tokens, sets `Date` from the world's
//! clock and records the request.

use std::{io, sync::Arc, time::Duration};

use async_compression::tokio::bufread::GzipEncoder;
use axum::{
    body::{Body, Bytes, HttpBody as _},
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{AppendHeaders, IntoResponse, Response},
};
use futures::{Stream, StreamExt, TryStreamExt, future::ready, stream};

use tokio_util::io::{ReaderStream, StreamReader};

use super::{FILES, RecordedRequest, Shared, answer, content::first_bytes, locked};
use crate::demo::scenario::Fault;

/// One of the ports on which the server listens.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub shared: Arc<Shared>,
    /// For example `http://127.0.0.1:8080`.
    pub origin: String,
}

pub(super) async fn handle(State(port): State<Port>, request: Request, next: Next) -> Response {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let mut recorded = RecordedRequest {
        origin: port.origin,
        method: request.method().to_string(),
        authorization: answer::header_text(request.headers(), &header::AUTHORIZATION),
        accept: answer::header_text(request.headers(), &header::ACCEPT),
        prefer: answer::header_text(request.headers(), &HeaderName::from_static("prefer")),
        range: answer::header_text(request.headers(), &header::RANGE),
        path,
        status: 0,
    };
    let mut response = match throttled(&port.shared) {
        Some(throttled) => throttled,
        None => served(&port.shared, &recorded, request, next).await,
    };
    if port.shared.scenario().gzip_unasked {
        response = compressed(response);
    }
    if let Ok(date) = HeaderValue::try_from(date(&port.shared)) {
        response.headers_mut().insert(header::DATE, date);
    }
    recorded.status = response.status().as_u16();
    port.shared.record(recorded);
    response
}

/// The answer, with the scenario's faults.
async fn served(shared: &Shared, recorded: &RecordedRequest, request: Request, next: Next) -> Response {
    match shared.take_fault(&recorded.path) {
        Some(Fault::Status { status, retry_after, body, .. }) => {
            let retry_after = retry_after.map(|value| (header::RETRY_AFTER, value));
            (status, [(header::CONTENT_TYPE, content_type(&body))], AppendHeaders(retry_after), body).into_response()
        }
        Some(Fault::Redirect { status, location, .. }) => (status, [(header::LOCATION, location)]).into_response(),
        fault => {
            let response = match refusal(shared, recorded) {
                Some(refusal) => refusal,
                None => next.run(request).await,
            };
            apply_fault(response, fault.as_ref())
        }
    }
}

fn date(shared: &Shared) -> String {
    (locked(&shared.world).now() + shared.scenario().clock_offset).format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// The answer to a request that is one too many.
fn throttled(shared: &Shared) -> Option<Response> {
    let limit = shared.scenario().rate_limit?;
    let wait = shared.over_limit(limit)?;
    let mut throttled = answer::outcome(StatusCode::TOO_MANY_REQUESTS, "throttled", "too many requests");
    if limit.says_when {
        throttled.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
    }
    Some(throttled)
}

/// The answer to a request that needs a token and has no valid one.
fn refusal(shared: &Shared, recorded: &RecordedRequest) -> Option<Response> {
    let scenario = shared.scenario();
    let auth = scenario.auth.as_ref()?;
    let path = recorded.path.split('?').next().unwrap_or_default();
    if matches!(path, "/fhir/metadata" | "/fhir/.well-known/smart-configuration" | "/auth/token") {
        return None;
    }
    let authorization = recorded.authorization.as_deref();
    let admitted = if path.starts_with(FILES) {
        !scenario.requires_access_token() || locked(&shared.tokens).admits_file(auth, authorization)
    } else {
        locked(&shared.tokens).admits(authorization)
    };
    if admitted {
        return None;
    }
    let mut refusal =
        answer::outcome(StatusCode::UNAUTHORIZED, "login", "the access token is missing, invalid or expired");
    refusal.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Some(refusal)
}

/// The answer with a compressed body, unless it has one, or none.
fn compressed(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    if parts.headers.contains_key(header::CONTENT_ENCODING) || body.is_end_stream() {
        return Response::from_parts(parts, body);
    }
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    let encoder = GzipEncoder::new(StreamReader::new(body_chunks(body)));
    Response::from_parts(parts, Body::from_stream(ReaderStream::new(encoder)))
}

fn content_type(body: &str) -> &'static str {
    match body.trim_start().chars().next() {
        Some('{' | '[') => answer::FHIR_JSON,
        Some('<') => "text/html",
        _ => "text/plain",
    }
}

/// The answer with the fault applied to its body.
fn apply_fault(response: Response, fault: Option<&Fault>) -> Response {
    let (mut parts, body) = response.into_parts();
    let body = match fault {
        Some(Fault::CutAfter { bytes, .. }) => Body::from_stream(first_bytes(body_chunks(body), *bytes).chain(cut())),
        Some(Fault::LoseAnswer { .. }) => Body::from_stream(stream::once(ready(Err::<Bytes, _>(reset())))),
        Some(Fault::EndAfter { bytes, .. }) => {
            parts.headers.remove(header::CONTENT_LENGTH);
            Body::from_stream(first_bytes(body_chunks(body), *bytes))
        }
        Some(Fault::Slow { chunk_bytes, pause, .. }) => {
            Body::from_stream(slow(body_chunks(body), *chunk_bytes, *pause))
        }
        Some(Fault::Status { .. } | Fault::Redirect { .. } | Fault::NotAManifest { .. }) | None => body,
    };
    Response::from_parts(parts, body)
}

fn body_chunks(body: Body) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    body.into_data_stream().map_err(io::Error::other)
}

/// An error at the end of a body, which no client can take for a regular end. The yield lets hyper send what it has
/// buffered: it flushes when a body is not ready, and drops its buffer when a body fails.
fn cut() -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::once(async {
        tokio::task::yield_now().await;
        Err(reset())
    })
}

fn reset() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "cut by the scenario")
}

fn slow(
    chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    chunk_bytes: usize,
    pause: Duration,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let split = chunks.flat_map(move |chunk| {
        let parts: Vec<_> = match chunk {
            Ok(bytes) => {
                let size = chunk_bytes.max(1);
                (0..bytes.len())
                    .step_by(size)
                    .map(|from| Ok(bytes.slice(from..bytes.len().min(from.saturating_add(size)))))
                    .collect()
            }
            Err(error) => vec![Err(error)],
        };
        stream::iter(parts)
    });
    split.then(move |part| async move {
        tokio::time::sleep(pause).await;
        part
    })
}
