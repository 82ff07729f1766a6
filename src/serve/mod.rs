//! What others may ask the daemon: `/health`, `/livez`, `/readyz`.
//!
//! Answers come from a [`View`] that the daemon publishes; no request reaches a server, a table or a disk. The listener
//! has a thread and a runtime of its own, so that a merge that takes all cores cannot silence it.

mod health;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

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
use url::Url;

pub use health::{ExportView, LastComplete, View};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub listen: SocketAddr,
    /// How old the last complete sync may be.
    pub max_age: Duration,
}

/// The listener, on its own thread until it is dropped.
pub struct Server {
    pub address: SocketAddr,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<()>>,
}

/// How long an answer that is under way may take when the process ends.
const STOP_LIMIT: Duration = Duration::from_secs(2);

impl Server {
    /// Binds before it returns, so that an address in use stops the start.
    pub fn start(config: &Config, views: watch::Receiver<View>) -> std::io::Result<Self> {
        let listener = std::net::TcpListener::bind(config.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (router, stopped) = (router(config.max_age, views), stop.clone());
        let thread = thread::Builder::new().name("serve".to_owned()).spawn(move || {
            let served = runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let serving = axum::serve(listener, router).with_graceful_shutdown(stopped.clone().cancelled_owned());
                // Whoever keeps a connection open does not keep the process.
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
                tracing::error!(%error, "the health listener ended");
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

#[derive(Clone)]
struct Context {
    max_age: Duration,
    views: watch::Receiver<View>,
}

fn router(max_age: Duration, views: watch::Receiver<View>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(Context { max_age, views })
}

#[expect(clippy::disallowed_methods, reason = "the age of the data is told by our own clock")]
async fn health(State(context): State<Context>) -> Response {
    let health = health::health(&context.views.borrow(), context.max_age, Utc::now(), Instant::now());
    answer(health.is_healthy(), Json(health))
}

/// Is the daemon's loop alive? Never a question about the server or the tables: a restart would not mend those.
async fn livez(State(context): State<Context>) -> Response {
    let alive = health::is_alive(&context.views.borrow(), Instant::now());
    answer(alive, if alive { "alive\n" } else { "the event loop stands still\n" })
}

async fn readyz(State(context): State<Context>) -> Response {
    let ready = context.views.borrow().ready;
    answer(ready, if ready { "ready\n" } else { "starting or stopping\n" })
}

fn answer(good: bool, body: impl IntoResponse) -> Response {
    let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, [(header::CACHE_CONTROL, "no-store")], body).into_response()
}

/// Asks a daemon's `/health`, for `fhir-sync healthcheck`: whether it is healthy, and what it says. Blocks, for ten
/// seconds at most. Speaks plain HTTP only; an image without shell and curl needs nothing else.
pub fn ask(url: &Url) -> std::io::Result<(bool, String)> {
    const LIMIT: Duration = Duration::from_secs(5);
    let unusable = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidInput, what.to_owned());
    if url.scheme() != "http" {
        return Err(unusable("only http:// can be asked"));
    }
    let addresses = url.socket_addrs(|| None)?;
    let address = addresses.first().ok_or_else(|| unusable("the host has no address"))?;
    let mut stream = TcpStream::connect_timeout(address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let host = url.host_str().unwrap_or("localhost");
    write!(stream, "GET {} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n", url.path())?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| unusable("the answer is no HTTP"))?;
    let healthy = head.split_whitespace().nth(1) == Some("200");
    Ok((healthy, body.trim().to_owned()))
}
