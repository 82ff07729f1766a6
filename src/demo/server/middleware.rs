//! The door: what every request passes, whatever it asks for. Faults strike here, tokens are asked for here, and each
//! answer gets the `Date` of the world and is noted.

use std::{io, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{AppendHeaders, IntoResponse, Response},
};
use futures::{Stream, StreamExt, TryStreamExt, future::ready, stream};

use super::{FILES, Seen, Shared, answer, content::first_bytes, locked};
use crate::demo::scenario::Fault;

/// One of the server's ports.
#[derive(Clone, Debug)]
pub(super) struct Door {
    pub shared: Arc<Shared>,
    /// Such as `http://127.0.0.1:8080`.
    pub origin: String,
}

pub(super) async fn pass(State(door): State<Door>, request: Request, next: Next) -> Response {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let mut seen = Seen {
        origin: door.origin,
        method: request.method().to_string(),
        authorization: answer::header_text(request.headers(), &header::AUTHORIZATION),
        accept: answer::header_text(request.headers(), &header::ACCEPT),
        prefer: answer::header_text(request.headers(), &HeaderName::from_static("prefer")),
        range: answer::header_text(request.headers(), &header::RANGE),
        path,
        status: 0,
    };
    let mut response = match door.shared.strike(&seen.path) {
        Some(Fault::Status { status, retry_after, body, .. }) => {
            let retry_after = retry_after.map(|value| (header::RETRY_AFTER, value));
            (status, [(header::CONTENT_TYPE, content_type(&body))], AppendHeaders(retry_after), body).into_response()
        }
        Some(Fault::Redirect { status, location, .. }) => (status, [(header::LOCATION, location)]).into_response(),
        fault => {
            let response = match refusal(&door.shared, &seen) {
                Some(refusal) => refusal,
                None => next.run(request).await,
            };
            spoil(response, fault.as_ref())
        }
    };
    if let Ok(date) = HeaderValue::try_from(date(&door.shared)) {
        response.headers_mut().insert(header::DATE, date);
    }
    seen.status = response.status().as_u16();
    door.shared.note(seen);
    response
}

fn date(shared: &Shared) -> String {
    locked(&shared.world).now().format("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// The answer to a request that needs a token and has none that counts.
fn refusal(shared: &Shared, seen: &Seen) -> Option<Response> {
    let scenario = shared.scenario();
    let auth = scenario.auth.as_ref()?;
    let path = seen.path.split('?').next().unwrap_or_default();
    if matches!(path, "/fhir/metadata" | "/fhir/.well-known/smart-configuration" | "/auth/token") {
        return None;
    }
    let authorization = seen.authorization.as_deref();
    let admitted = if path.starts_with(FILES) {
        !scenario.requires_access_token() || locked(&shared.tokens).admits_file(auth, authorization)
    } else {
        locked(&shared.tokens).admits(authorization)
    };
    if admitted {
        return None;
    }
    let mut refusal = answer::outcome(StatusCode::UNAUTHORIZED, "login", "there is no access token, or it has ended");
    refusal.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Some(refusal)
}

fn content_type(body: &str) -> &'static str {
    match body.trim_start().chars().next() {
        Some('{' | '[') => answer::FHIR_JSON,
        Some('<') => "text/html",
        _ => "text/plain",
    }
}

/// The answer, with its body as the fault leaves it.
fn spoil(response: Response, fault: Option<&Fault>) -> Response {
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

/// An end that no client can take for a good one. What was sent before is flushed first: hyper writes what it has when
/// the body makes it wait, and drops it when the body fails.
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
