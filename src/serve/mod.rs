//! The health listener of the daemon: the status page at `/`, `/health` for all exports and for each, `/livez`, `/readyz`,
//! `/metrics`, `/jwks.json`.
//!
//! Responses come from a [`View`] that the daemon publishes, and from the series of the process; no request reaches the
//! FHIR server, a table or a disk. The listener has its own thread and runtime, so that an upsert on all cores cannot
//! silence it.

mod connections;
mod health;
mod page;
mod question;
mod view;

use std::{net::SocketAddr, thread, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, RawQuery, State},
    http::{HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{Html, IntoResponse, Response},
    routing::get,
};
use chrono::{DateTime, Utc};
use tokio::{runtime, sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

pub use self::view::{ExportView, Moment, TypeView, View};
use self::{connections::Connections, page::Refresh, question::AllowedAge};
use crate::telemetry::metrics::{self, Exposition};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub listen: SocketAddr,
    /// Whether `/jwks.json` has our public keys, for a server that fetches them.
    pub serve_jwks: bool,
}

/// The listener. It runs on its own thread until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

/// How long a response that has begun may take when the process ends.
const STOP_LIMIT: Duration = Duration::from_secs(2);

impl Server {
    /// Binds before it returns, so that an address in use fails the start.
    pub fn start(
        config: &Config,
        views: watch::Receiver<View>,
        metrics: Exposition,
        jwks: watch::Receiver<Option<String>>,
    ) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(config.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (router, stopped) = (router(views, metrics, jwks), stop.clone());
        let thread = thread::Builder::new().name("serve".to_owned()).spawn(move || {
            let served = runtime.block_on(async {
                let listener = Connections::new(tokio::net::TcpListener::from_std(listener)?);
                let serving = axum::serve(listener, router).with_graceful_shutdown(stopped.clone().cancelled_owned());
                // A client that keeps a connection open does not keep the process alive.
                let given_up = async {
                    stopped.cancelled().await;
                    tokio::time::sleep(STOP_LIMIT).await;
                };
                tokio::select! {
                    served = serving.into_future() => served,
                    () = given_up => Ok(()),
                }
            });
            if let Err(error) = served {
                tracing::error!(%error, "the health listener failed; /health does not answer until a restart");
            }
        })?;
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the health listener panicked");
        }
    }
}

type Views = watch::Receiver<View>;

/// Our public keys; none where they are not served, or not yet.
type PublicKeys = watch::Receiver<Option<String>>;

fn router(views: Views, metrics: Exposition, jwks: PublicKeys) -> Router {
    Router::new()
        .route("/", get(status_page))
        .route("/style.css", get(|| async { ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], page::STYLE) }))
        .route("/{icon}", get(icon))
        .route("/health", get(health))
        .route("/health/{export}", get(health_of_export))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(views.clone())
        .merge(Router::new().route("/metrics", get(text)).with_state((views, metrics)))
        .merge(Router::new().route("/jwks.json", get(public_keys)).with_state(jwks))
        .layer(map_response(with_headers))
}

async fn status_page(State(views): State<Views>, RawQuery(query): RawQuery) -> Response {
    let refresh = Refresh::of(query.as_deref());
    let page = page::page(&views.borrow(), refresh, now(), Instant::now());
    let mut response = Html(page.into_string()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(page::CONTENT_SECURITY_POLICY));
    if refresh == Refresh::On {
        headers.insert(header::REFRESH, HeaderValue::from_static(Refresh::SECONDS));
    }
    response
}

async fn icon(Path(name): Path<String>) -> Response {
    match page::icon(&name) {
        Some(icon) => ([(header::CONTENT_TYPE, "image/svg+xml")], icon.into_string()).into_response(),
        None => refuse(StatusCode::NOT_FOUND, "there is nothing here; the status page is /"),
    }
}

async fn health(State(views): State<Views>, RawQuery(query): RawQuery) -> Response {
    let allowed = match AllowedAge::parse(query.as_deref()) {
        Ok(allowed) => allowed,
        Err(sentence) => return refuse(StatusCode::BAD_REQUEST, sentence),
    };
    let health = health::health(&views.borrow(), allowed, now(), Instant::now());
    respond(health.status.is_healthy(), Json(health))
}

async fn health_of_export(State(views): State<Views>, name: Path<String>, RawQuery(query): RawQuery) -> Response {
    let allowed = match AllowedAge::parse(query.as_deref()) {
        Ok(allowed) => allowed,
        Err(sentence) => return refuse(StatusCode::BAD_REQUEST, sentence),
    };
    let view = views.borrow();
    let Some(export) = view.exports.iter().find(|export| export.name == *name) else {
        let names: Vec<_> = view.exports.iter().map(|export| export.name.as_str()).collect();
        return refuse(
            StatusCode::NOT_FOUND,
            &format!("there is no such export; the exports are {}", names.join(", ")),
        );
    };
    let health = health::export_health(export, allowed, now(), Instant::now());
    respond(health.status.is_healthy(), Json(health))
}

/// Is the daemon's loop alive, and does what is at work advance? It says nothing about the FHIR server or the tables: a
/// restart would not repair those.
async fn livez(State(views): State<Views>) -> Response {
    let alive = health::is_alive(&views.borrow(), Instant::now());
    respond(alive, if alive { "alive\n" } else { "it does not respond, or a sync hangs\n" })
}

async fn readyz(State(views): State<Views>) -> Response {
    let ready = views.borrow().ready;
    respond(ready, if ready { "ready\n" } else { "starting or stopping\n" })
}

/// The series of the process, for Prometheus. Whether an export is healthy is decided now, as for `/health`: data age
/// while the daemon's loop hangs.
async fn text(State((views, exposition)): State<(Views, Exposition)>) -> Response {
    for export in &views.borrow().exports {
        let health = health::export_health(export, AllowedAge::OfExport, now(), Instant::now());
        metrics::healthy(&export.name, health.status.is_healthy());
    }
    let headers = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")];
    (headers, exposition.text()).into_response()
}

/// For a server that fetches the keys of its clients (rule 117). A key is served for some minutes before it signs.
async fn public_keys(State(jwks): State<PublicKeys>) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/jwk-set+json"), (header::CACHE_CONTROL, "public, max-age=300")];
    match &*jwks.borrow() {
        Some(jwks) => (headers, jwks.clone()).into_response(),
        None => refuse(StatusCode::NOT_FOUND, "there is nothing here; health.serve_jwks serves our public keys"),
    }
}

fn respond(good: bool, body: impl IntoResponse) -> Response {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, body).into_response()
}

fn refuse(status: StatusCode, sentence: &str) -> Response {
    (status, format!("{sentence}\n")).into_response()
}

/// What every response has that does not say otherwise: it is of this moment, it is what its type says, and a browser
/// loads nothing for it.
async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

#[expect(clippy::disallowed_methods, reason = "the age of the data is measured by the local clock")]
fn now() -> DateTime<Utc> {
    Utc::now()
}
