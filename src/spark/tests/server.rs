//! A Spark Connect server that is scripted: it carries statements out on a [`Warehouse`], keeps what it was sent, and
//! breaks streams, forgets sessions and lets others write when it is told to.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use arrow::{array::RecordBatch, ipc::writer::StreamWriter};
use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    response::Response,
};
use futures::{StreamExt as _, stream};
use prost::Message;
use tokio::{net::TcpListener, task::JoinSet};
use tonic::{
    Status,
    codec::{Codec as _, EncodeBody, SingleMessageCompressionOverride},
};
use tonic_prost::ProstCodec;

use super::warehouse::{Outcome, Warehouse};
use crate::spark::{
    config::{Config, Tables},
    messages::{
        ArrowBatch, ConfigRequest, Empty, ExecutePlanRequest, ExecutePlanResponse, Plan, ReattachExecuteRequest,
        SessionResponse,
    },
};

/// What happens to the next statement of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is carried out; the connection breaks behind this many parts of its answer.
    Cut { after: usize },
    /// The server ends before it has carried the statement out, and is started again.
    EndedBefore,
    /// The same, when it was carried out.
    EndedAfter,
    /// It is carried out, and its answer is lost; the server says that it never arrived.
    Denied,
    /// Another writer changes the first stored row before it is carried out.
    Overtaken,
    /// Somebody restores the table to a version without its first row before it is carried out.
    Restored,
    /// A run that begins has removed the file with its first staged row.
    Unstaged,
    /// The server refuses it with this class of error.
    Refused(&'static str),
}

/// It ends when it is dropped.
pub struct Server {
    port: u16,
    inner: Arc<Mutex<Inner>>,
    _listener: JoinSet<()>,
}

pub struct Inner {
    pub warehouse: Warehouse,
    /// A statement that begins so meets the fault.
    faults: VecDeque<(&'static str, Fault)>,
    statements: Vec<String>,
    reattached: usize,
    sessions: BTreeMap<String, BTreeMap<String, String>>,
    operations: BTreeMap<String, Vec<Part>>,
    /// How often the server was started.
    starts: usize,
}

/// A part of an answer.
type Part = Result<ExecutePlanResponse, Status>;

impl Server {
    pub async fn start(warehouse: Warehouse) -> Self {
        let inner = Arc::new(Mutex::new(Inner {
            warehouse,
            faults: VecDeque::new(),
            statements: Vec::new(),
            reattached: 0,
            sessions: BTreeMap::new(),
            operations: BTreeMap::new(),
            starts: 1,
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        let mut task = JoinSet::new();
        task.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { port, inner, _listener: task }
    }

    pub fn config(&self) -> Config {
        Config {
            address: format!("sc://127.0.0.1:{}", self.port).parse().unwrap(),
            token: None,
            tables: Tables::default(),
            confs: BTreeMap::new(),
            connect_timeout: Config::DEFAULT_CONNECT_TIMEOUT,
            statement_timeout: Config::DEFAULT_STATEMENT_TIMEOUT,
            outage_patience: Duration::from_secs(2),
        }
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// The next statement that begins with `words` meets the fault.
    pub fn fail(&self, words: &'static str, fault: Fault) {
        self.inner().faults.push_back((words, fault));
    }

    /// How many statements arrived that begin with `words`.
    pub fn count(&self, words: &str) -> usize {
        self.inner().statements.iter().filter(|statement| statement.starts_with(words)).count()
    }

    /// How often a client asked for the rest of an answer.
    pub fn reattached(&self) -> usize {
        self.inner().reattached
    }
}

async fn answer(State(inner): State<Arc<Mutex<Inner>>>, request: Request) -> Response {
    let path = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
    let mut inner = inner.lock().unwrap();
    match path.as_str() {
        "Config" => inner.set(&decoded(&body)),
        "ExecutePlan" => inner.execute(&decoded(&body)),
        "ReattachExecute" => inner.reattach(&decoded(&body)),
        // What nobody needs any more.
        _ => unary(SessionResponse::default()),
    }
}

/// A message behind the five bytes of its frame.
fn decoded<T: Message + Default>(body: &Bytes) -> T {
    T::decode(&body[5..]).unwrap()
}

fn unary(message: SessionResponse) -> Response {
    grpc(Body::new(EncodeBody::new_server(
        ProstCodec::<SessionResponse, ConfigRequest>::default().encoder(),
        stream::iter([Ok(message)]),
        None,
        SingleMessageCompressionOverride::default(),
        None,
    )))
}

/// The parts of an answer; the connection breaks behind `until` of them.
fn streamed(parts: Vec<Part>, until: Option<usize>) -> Response {
    let sent = until.unwrap_or(parts.len());
    let body = Body::new(EncodeBody::new_server(
        ProstCodec::<ExecutePlanResponse, ExecutePlanRequest>::default().encoder(),
        stream::iter(parts.into_iter().take(sent)),
        None,
        SingleMessageCompressionOverride::default(),
        None,
    ));
    if until.is_none() {
        return grpc(body);
    }
    let broken = stream::iter([Err(axum::Error::new(std::io::Error::other("cut")))]);
    grpc(Body::from_stream(body.into_data_stream().chain(broken)))
}

fn grpc(body: Body) -> Response {
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

fn refused(message: &str) -> Response {
    Status::internal(message).into_http()
}

impl Inner {
    /// The server's own word for a session, another one after each start.
    fn word(&self) -> String {
        format!("start-{}", self.starts)
    }

    fn set(&mut self, request: &ConfigRequest) -> Response {
        let pairs = request.operation.clone().unwrap().set.unwrap().pairs;
        let session = self.sessions.entry(request.session_id.clone()).or_default();
        session.extend(pairs.into_iter().map(|pair| (pair.key, pair.value.unwrap())));
        unary(SessionResponse { server_session_id: self.word() })
    }

    fn execute(&mut self, request: &ExecutePlanRequest) -> Response {
        if request.observed_session_id.as_ref().is_some_and(|observed| *observed != self.word()) {
            return refused("[INVALID_HANDLE.SESSION_CHANGED] The session is another one.");
        }
        let id = request.operation_id.clone().unwrap();
        if self.operations.contains_key(&id) {
            return refused("[INVALID_HANDLE.OPERATION_ALREADY_EXISTS] The operation is there.");
        }
        let statement = text(request.plan.as_ref().unwrap());
        self.statements.push(statement.clone());
        let meets = self.faults.front().is_some_and(|(words, _)| statement.starts_with(words));
        let fault = if meets { self.faults.pop_front().map(|(_, fault)| fault) } else { None };
        match fault {
            Some(Fault::Refused(class)) => return refused(&format!("[{class}] It is refused: marker.")),
            Some(Fault::EndedBefore) => return self.restart(),
            Some(Fault::Overtaken) => self.warehouse.change_by_somebody_else(),
            Some(Fault::Restored) => self.warehouse.restore_by_somebody_else(),
            Some(Fault::Unstaged) => self.warehouse.unstaged_rows = 1,
            _ => {}
        }
        let conf = self.sessions.get(&request.session_id).cloned().unwrap_or_default();
        let parts = match self.warehouse.carry_out(&statement, &conf) {
            Ok(outcome) => parts(outcome),
            Err(message) => vec![Err(Status::internal(message))],
        };
        match fault {
            Some(Fault::Denied) => streamed(Vec::new(), Some(0)),
            Some(Fault::EndedAfter) => self.restart(),
            Some(Fault::Cut { after }) => {
                self.operations.insert(id, parts.clone());
                streamed(parts, Some(after))
            }
            _ => {
                self.operations.insert(id, parts.clone());
                streamed(parts, None)
            }
        }
    }

    /// Everything but the tables is forgotten.
    fn restart(&mut self) -> Response {
        self.starts += 1;
        self.sessions.clear();
        self.operations.clear();
        streamed(Vec::new(), Some(0))
    }

    fn reattach(&mut self, request: &ReattachExecuteRequest) -> Response {
        self.reattached += 1;
        if request.observed_session_id.as_ref().is_some_and(|observed| *observed != self.word()) {
            return refused("[INVALID_HANDLE.SESSION_CHANGED] The session is another one.");
        }
        let Some(parts) = self.operations.get(&request.operation_id) else {
            return refused("[INVALID_HANDLE.OPERATION_NOT_FOUND] There is no such operation.");
        };
        let is_behind = |part: &Part| {
            let is_last = |last: &String| part.as_ref().is_ok_and(|part| part.response_id == *last);
            request.last_response_id.as_ref().is_some_and(is_last)
        };
        let received = parts.iter().position(is_behind).map_or(0, |last| last + 1);
        streamed(parts[received..].to_vec(), None)
    }
}

fn text(plan: &Plan) -> String {
    let of_query = plan.root.as_ref().and_then(|root| root.sql.as_ref()).map(|sql| sql.query.clone());
    let of_command = plan.command.as_ref().and_then(|command| command.sql_command.as_ref());
    of_query.or_else(|| of_command.map(|command| command.sql.clone())).unwrap()
}

/// A part for each batch, and one that says that nothing follows.
fn parts(outcome: Outcome) -> Vec<Part> {
    let batches = outcome.into_iter().map(|batch| ExecutePlanResponse {
        arrow_batch: Some(ArrowBatch { row_count: batch.num_rows().try_into().unwrap(), data: ipc(&batch) }),
        ..ExecutePlanResponse::default()
    });
    let end = ExecutePlanResponse { result_complete: Some(Empty {}), ..ExecutePlanResponse::default() };
    let numbered = batches.chain([end]).enumerate();
    numbered.map(|(number, part)| Ok(ExecutePlanResponse { response_id: format!("part-{number}"), ..part })).collect()
}

fn ipc(batch: &RecordBatch) -> Bytes {
    let mut writer = StreamWriter::try_new(Vec::new(), &batch.schema()).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap().into()
}
