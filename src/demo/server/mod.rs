//! The server: Bulk Data `$export` over real HTTP, as the scenario wants it to behave.
//!
//! It owns its tasks and its ports: when it is stopped or dropped, nothing listens any more and every connection ends.
//! Its `Date` header, `lastUpdated` and `transactionTime` all follow the clock of its world.

mod answer;
mod content;
mod middleware;
mod job;
mod kick_off;
mod status;

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
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
use self::{job::Jobs, middleware::Door};
use super::{
    World,
    folder::{self, Document},
    scenario::{Fault, Scenario},
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
pub struct Seen {
    /// The origin that was asked, such as `http://127.0.0.1:8080`; there may be a second one for files.
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
    /// Serves a world; port 0 takes any free port, and [`url`](Self::url) tells which. Fails where the address cannot
    /// be had.
    pub async fn start(world: World, listen: SocketAddr) -> io::Result<Self> {
        Self::serve(world, Vec::new(), listen).await
    }

    /// Serves the `*.ndjson` and `*.ndjson.gz` files of a folder as they are, all of them at every export: such lines
    /// need not have a `lastUpdated` (rule 17). The clock moves on by a second at each kick-off.
    pub async fn start_folder(folder: &Path, listen: SocketAddr) -> io::Result<Self> {
        Self::serve(World::new(), folder::documents(folder).await?, listen).await
    }

    /// The base of the FHIR server, `http://…/fhir`.
    pub fn url(&self) -> Url {
        self.url.clone()
    }

    /// Opens a second port that serves the files, and nothing but the files, and makes manifests link there (rule 92).
    pub async fn open_file_origin(&mut self, listen: SocketAddr) -> io::Result<Url> {
        let (listener, origin) = bind(listen).await?;
        let url = Url::parse(&origin).map_err(io::Error::other)?;
        let door = Door { shared: self.shared.clone(), origin };
        self.tasks.spawn(run(listener, files(self.shared.clone(), door), self.shared.closing.clone()));
        self.scenario(|scenario| scenario.file_origin = Some(url.clone()));
        Ok(url)
    }

    /// The resource types that there is something of, sorted.
    pub fn types(&self) -> Vec<ResourceType> {
        let of_world: BTreeSet<_> = self.world(|world| world.types().collect());
        let of_folder = self.shared.documents.iter().map(|document| document.resource_type);
        of_world.into_iter().chain(of_folder).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Looks at the data, or changes them. A job that runs keeps what it saw at its kick-off.
    pub fn world<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut locked(&self.shared.world))
    }

    /// Turns knobs; what waits for one (`hold_files`) goes on at once.
    pub fn scenario(&self, change: impl FnOnce(&mut Scenario)) {
        self.shared.scenario.send_modify(change);
    }

    /// The requests so far, oldest first; of more than [`MAX_SEEN`] the newest.
    pub fn seen(&self) -> Vec<Seen> {
        locked(&self.shared.seen).iter().cloned().collect()
    }

    /// The jobs so far, oldest first.
    pub fn jobs(&self) -> Vec<JobView> {
        locked(&self.shared.jobs).views()
    }

    /// Ends every connection and waits until the ports are free; a connection that does not end is left after a few
    /// seconds.
    pub async fn stop(mut self) {
        self.shared.closing.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(STOP_LIMIT, ended).await.is_err() {
            tracing::warn!("a connection of the demo server did not end in time");
        }
    }

    async fn serve(world: World, documents: Vec<Document>, listen: SocketAddr) -> io::Result<Self> {
        let (listener, origin) = bind(listen).await?;
        let closing = CancellationToken::new();
        let shared = Arc::new(Shared {
            base: format!("{origin}/fhir"),
            token_url: format!("{origin}/auth/token"),
            world: Mutex::new(world),
            documents,
            scenario: watch::Sender::new(Scenario::default()),
            jobs: Mutex::default(),
            seen: Mutex::default(),
            tokens: Mutex::default(),
            closing: closing.clone(),
        });
        let door = Door { shared: shared.clone(), origin };
        let mut tasks = JoinSet::new();
        tasks.spawn(run(listener, router(shared.clone(), door), closing.clone()));
        let url = Url::parse(&shared.base).map_err(io::Error::other)?;
        Ok(Self { url, shared, tasks, _closing: closing.drop_guard() })
    }
}

/// So many requests are remembered.
pub const MAX_SEEN: usize = 100_000;

const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What the tasks of one server have in common.
#[derive(Debug)]
struct Shared {
    /// Without a slash at the end.
    base: String,
    token_url: String,
    world: Mutex<World>,
    documents: Vec<Document>,
    scenario: watch::Sender<Scenario>,
    jobs: Mutex<Jobs>,
    seen: Mutex<VecDeque<Seen>>,
    tokens: Mutex<Tokens>,
    closing: CancellationToken,
}

impl Shared {
    /// The scenario as it is now.
    fn scenario(&self) -> Scenario {
        self.scenario.borrow().clone()
    }

    fn strike(&self, path: &str) -> Option<Fault> {
        let mut fault = None;
        self.scenario.send_if_modified(|scenario| {
            fault = scenario.strike(path);
            fault.is_some()
        });
        fault
    }

    fn strike_manifest(&self) -> Option<String> {
        let mut body = None;
        self.scenario.send_if_modified(|scenario| {
            body = scenario.strike_manifest();
            body.is_some()
        });
        body
    }

    fn note(&self, request: Seen) {
        let mut seen = locked(&self.seen);
        if seen.len() >= MAX_SEEN {
            seen.pop_front();
        }
        seen.push_back(request);
    }
}

/// A test that panicked while it held the lock leaves data that are whole: no change in here stops half-way.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The path below which the files are, and the path of one file.
const FILES: &str = "/fhir/bulkfiles/";
const FILE: &str = "/fhir/bulkfiles/{job}/{name}";

fn router(shared: Arc<Shared>, door: Door) -> Router {
    Router::new()
        .route("/fhir/metadata", get(answer::metadata))
        .route("/fhir/.well-known/smart-configuration", get(answer::smart_configuration))
        .route("/auth/token", post(answer::token))
        .route("/fhir/$export", get(kick_off::kick_off).post(kick_off::kick_off))
        .route("/fhir/Patient/$export", get(kick_off::kick_off).post(kick_off::kick_off))
        .route("/fhir/Group/{id}/$export", get(kick_off::kick_off).post(kick_off::kick_off))
        .route("/fhir/bulkstatus/{job}", get(status::poll).delete(status::delete))
        .route(FILE, get(content::file))
        .fallback(answer::not_found)
        .layer(from_fn_with_state(door, middleware::pass))
        .with_state(shared)
}

fn files(shared: Arc<Shared>, door: Door) -> Router {
    Router::new()
        .route(FILE, get(content::file))
        .fallback(answer::not_found)
        .layer(from_fn_with_state(door, middleware::pass))
        .with_state(shared)
}

async fn run(listener: TcpListener, router: Router, closing: CancellationToken) -> io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(closing.cancelled_owned()).await
}

/// A port, and the origin by which a client on this machine reaches it.
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
