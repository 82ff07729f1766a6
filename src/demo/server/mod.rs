//! The server: Bulk Data `$export` over real HTTP, behaving as the scenario says.
//!
//! It owns its tasks and its ports: when it is stopped or dropped, its ports are closed and every connection ends.
//! `Date`, `lastUpdated` and `transactionTime` all follow the clock of its world.

mod altered;
mod answer;
mod content;
mod job;
mod kick_off;
mod middleware;
mod narrowed;
mod status;

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    middleware::from_fn_with_state,
    routing::{get, post},
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use url::Url;

pub use self::job::JobView;
use self::{job::Jobs, middleware::Port};
use super::{
    World,
    folder::{self, Keep, NdjsonFile},
    scenario::{Fault, RateLimit, Scenario},
    token::Tokens,
};
use crate::fhir::ResourceType;

/// A running server.
#[derive(Debug)]
pub struct Server {
    url: Url,
    shared: Arc<Shared>,
    tasks: JoinSet<io::Result<()>>,
    _closing: DropGuard,
}

/// A request that was answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecordedRequest {
    /// The origin of the request, such as `http://127.0.0.1:8080`; there may be a second one for files.
    pub origin: String,
    pub method: String,
    /// With the query.
    pub path: String,
    pub authorization: Option<String>,
    pub accept: Option<String>,
    pub prefer: Option<String>,
    pub range: Option<String>,
    pub status: u16,
}

impl Server {
    /// Serves a world. Port 0 takes any free port; [`url`](Self::url) has it. Fails if the address cannot be bound.
    pub async fn start(world: World, listen: SocketAddr) -> io::Result<Self> {
        Self::serve(world, Vec::new(), listen).await
    }

    /// Serves the `*.ndjson` and `*.ndjson.gz` files of a folder as they are, all of them in every export: the lines
    /// need not have a `lastUpdated` (rule 17). The clock moves by a second at each kick-off.
    pub async fn start_folder(folder: &Path, keep: Keep, listen: SocketAddr) -> io::Result<Self> {
        Self::serve(World::new(), folder::files(folder, keep).await?, listen).await
    }

    /// The base of the FHIR server, `http://…/fhir`.
    pub fn url(&self) -> Url {
        self.url.clone()
    }

    /// Opens a second port that serves only the files, and makes manifests link there (rule 92).
    pub async fn open_file_origin(&mut self, listen: SocketAddr) -> io::Result<Url> {
        let (listener, origin) = bind(listen).await?;
        let url = Url::parse(&origin).map_err(io::Error::other)?;
        let port = Port { shared: self.shared.clone(), origin };
        self.tasks.spawn(run(listener, files(self.shared.clone(), port), self.shared.closing.clone()));
        self.scenario(|scenario| scenario.file_origin = Some(url.clone()));
        Ok(url)
    }

    /// The resource types of the data, sorted.
    pub fn types(&self) -> Vec<ResourceType> {
        self.shared.types().into_iter().collect()
    }

    /// Reads or changes the data. A running job keeps the data of its kick-off.
    pub fn world<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut locked(&self.shared.world))
    }

    /// Changes the scenario; a body that waits for `hold_files` continues at once.
    pub fn scenario(&self, change: impl FnOnce(&mut Scenario)) {
        self.shared.scenario.send_modify(change);
    }

    /// The requests so far, oldest first; only the newest [`MAX_RECORDED_REQUESTS`] are kept.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        locked(&self.shared.requests).iter().cloned().collect()
    }

    /// The jobs so far, oldest first.
    pub fn jobs(&self) -> Vec<JobView> {
        locked(&self.shared.jobs).views()
    }

    /// Ends every connection and waits until the ports are free, for a few seconds at most.
    pub async fn stop(mut self) {
        self.shared.closing.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(STOP_LIMIT, ended).await.is_err() {
            tracing::warn!("a connection of the demo server did not end in time");
        }
    }

    async fn serve(world: World, folder_files: Vec<NdjsonFile>, listen: SocketAddr) -> io::Result<Self> {
        let (listener, origin) = bind(listen).await?;
        let closing = CancellationToken::new();
        let shared = Arc::new(Shared {
            base: format!("{origin}/fhir"),
            token_url: format!("{origin}/auth/token"),
            world: Mutex::new(world),
            folder_files,
            scenario: watch::Sender::new(Scenario::default()),
            jobs: Mutex::default(),
            requests: Mutex::default(),
            counted: Mutex::default(),
            tokens: Mutex::default(),
            closing: closing.clone(),
        });
        let port = Port { shared: shared.clone(), origin };
        let mut tasks = JoinSet::new();
        tasks.spawn(run(listener, router(shared.clone(), port), closing.clone()));
        let url = Url::parse(&shared.base).map_err(io::Error::other)?;
        Ok(Self { url, shared, tasks, _closing: closing.drop_guard() })
    }
}

/// At most this many requests are recorded.
pub const MAX_RECORDED_REQUESTS: usize = 100_000;

const STOP_LIMIT: Duration = Duration::from_secs(5);

/// The state that the tasks of one server share.
#[derive(Debug)]
struct Shared {
    /// Without a slash at the end.
    base: String,
    token_url: String,
    world: Mutex<World>,
    folder_files: Vec<NdjsonFile>,
    scenario: watch::Sender<Scenario>,
    jobs: Mutex<Jobs>,
    requests: Mutex<VecDeque<RecordedRequest>>,
    /// When the requests began that count for the scenario's limit of the rate, oldest first.
    counted: Mutex<VecDeque<Instant>>,
    tokens: Mutex<Tokens>,
    closing: CancellationToken,
}

impl Shared {
    /// The scenario as it is now.
    fn scenario(&self) -> Scenario {
        self.scenario.borrow().clone()
    }

    /// The resource types of the data.
    fn types(&self) -> BTreeSet<ResourceType> {
        let of_folder = self.folder_files.iter().map(|file| file.resource_type);
        locked(&self.world).types().chain(of_folder).collect()
    }

    /// Counts a request; when there were too many before it, how long none is taken.
    fn over_limit(&self, limit: RateLimit) -> Option<Duration> {
        let now = Instant::now();
        let mut counted = locked(&self.counted);
        while counted.front().is_some_and(|began| now - *began >= limit.window) {
            counted.pop_front();
        }
        let oldest = counted.front().copied().filter(|_| counted.len() >= limit.requests);
        if oldest.is_none() {
            counted.push_back(now);
        }
        oldest.map(|began| limit.window.saturating_sub(now - began))
    }

    fn take_fault(&self, path: &str) -> Option<Fault> {
        let mut fault = None;
        self.scenario.send_if_modified(|scenario| {
            fault = scenario.take_fault(path);
            fault.is_some()
        });
        fault
    }

    fn take_manifest_fault(&self) -> Option<String> {
        let mut body = None;
        self.scenario.send_if_modified(|scenario| {
            body = scenario.take_manifest_fault();
            body.is_some()
        });
        body
    }

    fn record(&self, request: RecordedRequest) {
        let mut requests = locked(&self.requests);
        if requests.len() >= MAX_RECORDED_REQUESTS {
            requests.pop_front();
        }
        requests.push_back(request);
    }
}

/// Ignores poisoning: a test that panics while it holds a lock leaves consistent data, because no change in this room
/// can panic halfway.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The path prefix of all files, and the route of one file.
const FILES: &str = "/fhir/bulkfiles/";
const FILE: &str = "/fhir/bulkfiles/{job}/{name}";

fn router(shared: Arc<Shared>, port: Port) -> Router {
    Router::new()
        .route("/fhir/metadata", get(answer::metadata))
        .route("/fhir/.well-known/smart-configuration", get(answer::smart_configuration))
        .route("/auth/token", post(answer::token))
        .route("/fhir/$export", get(kick_off::kick_off).post(kick_off::kick_off))
        .route("/fhir/Patient/$export", get(kick_off::kick_off).post(kick_off::kick_off))
        .route("/fhir/Group/{id}/$export", get(kick_off::kick_off).post(kick_off::kick_off))
        .route("/fhir/Group/{id}", get(answer::group))
        .route("/fhir/{resource_type}", get(answer::count))
        .route("/fhir/bulkstatus/{job}", get(status::poll).delete(status::delete))
        .route(FILE, get(content::file))
        .fallback(answer::not_found)
        .layer(from_fn_with_state(port, middleware::handle))
        .with_state(shared)
}

fn files(shared: Arc<Shared>, port: Port) -> Router {
    Router::new()
        .route(FILE, get(content::file))
        .fallback(answer::not_found)
        .layer(from_fn_with_state(port, middleware::handle))
        .with_state(shared)
}

async fn run(listener: TcpListener, router: Router, closing: CancellationToken) -> io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(closing.cancelled_owned()).await
}

/// A listener, and the origin under which a client on this machine reaches it.
async fn bind(listen: SocketAddr) -> io::Result<(TcpListener, String)> {
    let listener = TcpListener::bind(listen).await?;
    let mut address = listener.local_addr()?;
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    Ok((listener, format!("http://{address}")))
}

#[cfg(test)]
mod tests;
