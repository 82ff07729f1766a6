//! The health listener of the daemon: `/health`, `/livez`, `/readyz`, `/metrics`.
//!
//! Responses come from a [`View`] that the daemon publishes, and from the series of the process; no request reaches the FHIR server, a table or a disk. The
//! listener has its own thread and runtime, so that an upsert on all cores cannot silence it.

mod connections;
mod health;
mod view;

use std::{net::SocketAddr, thread, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use chrono::Utc;
use tokio::{runtime, sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use self::connections::Connections;
pub use self::view::{ExportView, Moment, TypeView, View};
use crate::telemetry::metrics::{self, Exposition};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub listen: SocketAddr,
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
    pub fn start(config: &Config, views: watch::Receiver<View>, metrics: Exposition) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(config.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (router, stopped) = (router(views, metrics), stop.clone());
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

fn router(views: Views, metrics: Exposition) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(views)
        .merge(Router::new().route("/metrics", get(text)).with_state(metrics))
}

#[expect(clippy::disallowed_methods, reason = "the age of the data is measured by the local clock")]
async fn health(State(views): State<Views>) -> Response {
    let health = health::health(&views.borrow(), Utc::now(), Instant::now());
    respond(health.is_healthy(), Json(health))
}

/// Is the daemon's loop alive? It says nothing about the FHIR server or the tables: a restart would not repair those.
async fn livez(State(views): State<Views>) -> Response {
    let alive = health::is_alive(&views.borrow(), Instant::now());
    respond(alive, if alive { "alive\n" } else { "the event loop does not respond\n" })
}

async fn readyz(State(views): State<Views>) -> Response {
    let ready = views.borrow().ready;
    respond(ready, if ready { "ready\n" } else { "starting or stopping\n" })
}

/// The series of the process, for Prometheus.
async fn text(State(metrics): State<Exposition>) -> Response {
    let headers = [(header::CONTENT_TYPE, metrics::CONTENT_TYPE), (header::CACHE_CONTROL, "no-store")];
    (headers, metrics.text()).into_response()
}

fn respond(good: bool, body: impl IntoResponse) -> Response {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], body).into_response()
}
