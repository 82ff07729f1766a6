//! The client of Spark Connect: sessions, and statements in them.
//!
//! A statement has an operation id of our choice. When its stream breaks, the client attaches to the operation again
//! and goes on behind the last answer that it has; it never starts a statement twice, unless the server says that the
//! first request never arrived. Every wait and every retry has a limit.

use std::{collections::BTreeMap, time::Duration};

use arrow::array::RecordBatch;
use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    metadata::{Ascii, MetadataKey, MetadataValue},
    transport::{Channel, ClientTlsConfig, Endpoint, Uri},
};
use tonic_prost::ProstCodec;
use uuid::Uuid;

use super::{
    config::{Address, Config},
    error::{Error, class_and_reason},
    messages::{
        Command, ConfigOperation, ConfigRequest, ConfigSet, Empty, ExecutePlanRequest, ExecutePlanResponse, KeyValue,
        Plan, ReattachExecuteRequest, ReattachOptions, Relation, ReleaseExecuteRequest, ReleaseSessionRequest,
        RequestOption, SessionResponse, Sql, SqlCommand, UserContext,
    },
    results::batches,
};
use crate::secret::Secret;

#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    address: Address,
    token: Option<Secret>,
    confs: BTreeMap<String, String>,
    statement_timeout: Duration,
    outage_patience: Duration,
}

/// How long one call of another kind than a statement may take.
const CALL_PATIENCE: Duration = Duration::from_mins(1);
/// The server ends a stream after two minutes, so one that is silent for longer is broken.
const SILENCE_PATIENCE: Duration = Duration::from_mins(5);
/// How long the goodbye may take, which nobody needs.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);
/// Java's servers close connections that send more pings than one in five minutes; the system's own do not count.
const TCP_KEEPALIVE: Duration = Duration::from_mins(1);
/// The waits between two attempts, each twice as long as the one before.
const WAITS: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Spark sends batches of 4 MiB; a single row may be larger.
const MAX_MESSAGE_BYTES: usize = 128 * 1024 * 1024;
/// Of one result, also where each of its batches is taken as it arrives.
const MAX_RESULT_BYTES: usize = 2 * 1024 * 1024 * 1024;
const CLIENT_TYPE: &str = concat!("fhir-sync/", env!("CARGO_PKG_VERSION"));

/// What each session is set to, whatever the server is.
const SETTINGS: [(&str, &str); 3] = [
    // Instants without a zone would be taken for those of the server's zone.
    ("spark.sql.session.timeZone", "UTC"),
    // Staged files that are gone or damaged are errors.
    ("spark.sql.files.ignoreMissingFiles", "false"),
    ("spark.sql.files.ignoreCorruptFiles", "false"),
];

impl Client {
    /// Connects with the first call.
    pub fn new(config: &Config) -> Result<Self, Error> {
        let Address { host, port, tls, .. } = &config.address;
        let scheme = if *tls { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{host}:{port}"))?
            .connect_timeout(config.connect_timeout)
            .tcp_keepalive(Some(TCP_KEEPALIVE));
        if *tls {
            endpoint = endpoint.tls_config(ClientTlsConfig::new().with_native_roots())?;
        }
        Ok(Self {
            channel: endpoint.connect_lazy(),
            address: config.address.clone(),
            token: config.token.clone(),
            confs: config.confs.clone(),
            statement_timeout: config.statement_timeout,
            outage_patience: config.outage_patience,
        })
    }

    /// For people.
    pub fn place(&self) -> String {
        self.address.place()
    }

    /// A new session with the configured settings and `more`.
    pub async fn session(&self, more: &[(&str, String)]) -> Result<Session, Error> {
        let pairs = self.confs.iter().map(|(key, value)| (key.as_str(), value.clone()));
        let pairs = SETTINGS.map(|(key, value)| (key, value.to_owned())).into_iter().chain(pairs);
        let mut session = Session { client: self.clone(), id: Uuid::new_v4().to_string(), observed: None };
        session.set(pairs.chain(more.iter().cloned()).collect()).await?;
        Ok(session)
    }

    fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn user(&self) -> UserContext {
        let user = self.address.user.clone();
        UserContext { user_id: user.clone(), user_name: user }
    }

    /// With the headers that each call has.
    async fn request<T>(&self, message: T) -> Result<Request<T>, Error> {
        let mut request = Request::new(message);
        for (name, value) in &self.address.headers {
            let (name, value) = (MetadataKey::<Ascii>::from_bytes(name.as_bytes()), value.parse());
            if let (Ok(name), Ok(value)) = (name, value) {
                request.metadata_mut().insert(name, value);
            }
        }
        if let Some(token) = &self.token {
            let reading = token.current().await?;
            let value = reading.with(|text| format!("Bearer {text}").parse::<MetadataValue<Ascii>>());
            if let Ok(mut value) = value {
                value.set_sensitive(true);
                request.metadata_mut().insert("authorization", value);
            }
        }
        Ok(request)
    }

    async fn unary<T>(&self, path: &'static str, message: T) -> Result<SessionResponse, Failed>
    where
        T: prost::Message + 'static,
    {
        let request = self.request(message).await?;
        let mut grpc = self.grpc();
        let call = async {
            grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
            let codec = ProstCodec::<T, SessionResponse>::default();
            // The type of a path has no name here.
            let Some(path) = Uri::from_static(path).into_parts().path_and_query else { return Err(no_path()) };
            grpc.unary(request, path, codec).await
        };
        match timeout(CALL_PATIENCE, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Status::deadline_exceeded("no answer").into()),
        }
    }

    async fn stream<T>(&self, path: &'static str, message: T) -> Result<Streaming<ExecutePlanResponse>, Failed>
    where
        T: prost::Message + 'static,
    {
        let request = self.request(message).await?;
        let mut grpc = self.grpc();
        let call = async {
            grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
            let codec = ProstCodec::<T, ExecutePlanResponse>::default();
            let Some(path) = Uri::from_static(path).into_parts().path_and_query else { return Err(no_path()) };
            grpc.server_streaming(request, path, codec).await
        };
        match timeout(SILENCE_PATIENCE, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(_) => Err(Status::deadline_exceeded("no answer").into()),
        }
    }
}

/// A call that failed: on its way or on the server, or before it was sent.
enum Failed {
    Status(Box<Status>),
    Error(Error),
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// A session, which has settings of its own. The server forgets it an hour after its last statement.
#[derive(Debug)]
pub struct Session {
    client: Client,
    id: String,
    /// How the server calls the session: a server that was started again has another word for it, and refuses.
    observed: Option<String>,
}

/// A statement of which the result is on its way.
struct Running {
    id: String,
    what: &'static str,
    last_response_id: Option<String>,
    /// The server knows it, or may know it.
    is_sent: bool,
    bytes: usize,
}

/// Takes the parts of a result as they arrive, each of them once.
type Take<'a> = &'a mut (dyn FnMut(Bytes) -> Result<(), Error> + Send);

/// How a stream ended.
enum StreamEnd {
    Complete,
    /// The server sends the rest in another stream.
    Early,
}

impl Session {
    /// Changes settings of the session.
    pub async fn set(&mut self, pairs: Vec<(&str, String)>) -> Result<(), Error> {
        let pairs: Vec<_> =
            pairs.into_iter().map(|(key, value)| KeyValue { key: key.to_owned(), value: Some(value) }).collect();
        let mut retries = Retries::begin(self.client.outage_patience);
        loop {
            let request = ConfigRequest {
                session_id: self.id.clone(),
                user_context: Some(self.client.user()),
                operation: Some(ConfigOperation { set: Some(ConfigSet { pairs: pairs.clone() }) }),
                client_type: Some(CLIENT_TYPE.to_owned()),
                observed_session_id: self.observed.clone(),
            };
            match self.client.unary("/spark.connect.SparkConnectService/Config", request).await {
                Ok(answer) => {
                    self.observed = Some(answer.server_session_id).filter(|id| !id.is_empty());
                    return Ok(());
                }
                Err(Failed::Error(error)) => return Err(error),
                Err(Failed::Status(status)) => {
                    let error = self.error("the settings of a session", &status);
                    retries.again(error).await?;
                }
            }
        }
    }

    /// The result of a SELECT or a DESCRIBE; at least one batch, which may be empty.
    pub async fn query(&self, what: &'static str, sql: String) -> Result<Vec<RecordBatch>, Error> {
        let mut all = Vec::new();
        let keep = |batch| {
            all.push(batch);
            Ok(())
        };
        self.query_each(what, sql, keep).await?;
        Ok(all)
    }

    /// The same, but each batch is handed over as it arrives. After an error some of them may have been.
    pub async fn query_each(
        &self,
        what: &'static str,
        sql: String,
        mut take: impl FnMut(RecordBatch) -> Result<(), Error> + Send,
    ) -> Result<(), Error> {
        let plan = Plan { root: Some(Relation { sql: Some(Sql { query: sql }) }), command: None };
        let mut read = |part: Bytes| {
            let batches = batches(&part).map_err(|source| Error::Answer { what, source })?;
            batches.into_iter().try_for_each(&mut take)
        };
        self.execute(what, plan, &mut read).await
    }

    /// Carries out a statement, of which no result is read.
    pub async fn command(&self, what: &'static str, sql: String) -> Result<(), Error> {
        let command = Command { sql_command: Some(SqlCommand { sql }) };
        self.execute(what, Plan { root: None, command: Some(command) }, &mut |_| Ok(())).await
    }

    /// Says goodbye. A server that does not hear it forgets the session later.
    pub async fn close(self) {
        let request = ReleaseSessionRequest {
            session_id: self.id.clone(),
            user_context: Some(self.client.user()),
            client_type: Some(CLIENT_TYPE.to_owned()),
        };
        let path = "/spark.connect.SparkConnectService/ReleaseSession";
        let _ = timeout(RELEASE_PATIENCE, self.client.unary(path, request)).await;
    }

    async fn execute(&self, what: &'static str, plan: Plan, take: Take<'_>) -> Result<(), Error> {
        let id = Uuid::new_v4().to_string();
        let mut running = Running { id, what, last_response_id: None, is_sent: false, bytes: 0 };
        let limit = self.client.statement_timeout;
        let executed = timeout(limit, self.follow(&plan, &mut running, take)).await;
        let release = timeout(RELEASE_PATIENCE, self.release(&running.id));
        match executed {
            Ok(Ok(())) => {
                let _ = release.await;
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => {
                let _ = release.await;
                Err(Error::TooLong { what })
            }
        }
    }

    /// Follows the statement until it is complete, in one stream after the other.
    async fn follow(&self, plan: &Plan, running: &mut Running, take: Take<'_>) -> Result<(), Error> {
        let mut retries = Retries::begin(self.client.outage_patience);
        loop {
            let received = running.last_response_id.clone();
            let ended = match self.attach(plan, running).await {
                Ok(stream) => self.receive(stream, running, take).await,
                Err(failed) => Err(failed),
            };
            if running.last_response_id != received {
                retries = Retries::begin(self.client.outage_patience);
            }
            match ended {
                Ok(StreamEnd::Complete) => return Ok(()),
                Ok(StreamEnd::Early) => {}
                Err(Failed::Error(error)) => return Err(error),
                Err(Failed::Status(status)) => match self.error(running.what, &status) {
                    Error::Lost { class } if class == NEVER_ARRIVED && running.last_response_id.is_none() => {
                        running.is_sent = false;
                        retries.again(Error::Unreachable { place: self.client.place(), reason: class }).await?;
                    }
                    Error::Lost { class } if class == ARRIVED => {}
                    error => retries.again(error).await?,
                },
            }
        }
    }

    /// The stream of the answers: of a new statement, or the rest of one that was sent.
    async fn attach(&self, plan: &Plan, running: &mut Running) -> Result<Streaming<ExecutePlanResponse>, Failed> {
        let client_type = Some(CLIENT_TYPE.to_owned());
        if running.is_sent {
            let request = ReattachExecuteRequest {
                session_id: self.id.clone(),
                user_context: Some(self.client.user()),
                operation_id: running.id.clone(),
                client_type,
                last_response_id: running.last_response_id.clone(),
                observed_session_id: self.observed.clone(),
            };
            return self.client.stream("/spark.connect.SparkConnectService/ReattachExecute", request).await;
        }
        let reattach_options = Some(ReattachOptions { reattachable: true });
        let request = ExecutePlanRequest {
            session_id: self.id.clone(),
            user_context: Some(self.client.user()),
            plan: Some(plan.clone()),
            client_type,
            request_options: vec![RequestOption { reattach_options }],
            operation_id: Some(running.id.clone()),
            observed_session_id: self.observed.clone(),
        };
        running.is_sent = true;
        self.client.stream("/spark.connect.SparkConnectService/ExecutePlan", request).await
    }

    async fn receive(
        &self,
        mut stream: Streaming<ExecutePlanResponse>,
        running: &mut Running,
        take: Take<'_>,
    ) -> Result<StreamEnd, Failed> {
        loop {
            let Ok(message) = timeout(SILENCE_PATIENCE, stream.message()).await else {
                return Err(Status::deadline_exceeded("the stream is silent").into());
            };
            let Some(message) = message? else { return Ok(StreamEnd::Early) };
            if let Some(batch) = message.arrow_batch {
                running.bytes += batch.data.len();
                if running.bytes > MAX_RESULT_BYTES {
                    let (class, reason) = (TOO_LARGE.to_owned(), "its result is larger than 2 GiB".to_owned());
                    return Err(Error::Refused { what: running.what, class, reason }.into());
                }
                take(batch.data)?;
            }
            running.last_response_id = Some(message.response_id);
            if message.result_complete.is_some() {
                return Ok(StreamEnd::Complete);
            }
        }
    }

    async fn release(&self, operation_id: &str) {
        let request = ReleaseExecuteRequest {
            session_id: self.id.clone(),
            user_context: Some(self.client.user()),
            operation_id: operation_id.to_owned(),
            client_type: Some(CLIENT_TYPE.to_owned()),
            release_all: Some(Empty {}),
            observed_session_id: self.observed.clone(),
        };
        let _ = self.client.unary("/spark.connect.SparkConnectService/ReleaseExecute", request).await;
    }

    fn error(&self, what: &'static str, status: &Status) -> Error {
        of_status(self.client.place(), what, status)
    }
}

/// The server knows no such operation, or has one already.
const NEVER_ARRIVED: &str = "INVALID_HANDLE.OPERATION_NOT_FOUND";
const ARRIVED: &str = "INVALID_HANDLE.OPERATION_ALREADY_EXISTS";
const TOO_LARGE: &str = "RESULT_TOO_LARGE";

fn of_status(place: String, what: &'static str, status: &Status) -> Error {
    let (class, reason) = class_and_reason(status.message());
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => {
            Error::Denied { place, reason: status.code().description().to_owned() }
        }
        _ if class.starts_with("INVALID_HANDLE.") || class.starts_with("INVALID_CURSOR.") => Error::Lost { class },
        _ if !class.is_empty() => Error::Refused { what, class, reason },
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Aborted => {
            Error::Unreachable { place, reason: transport(status) }
        }
        // What the transport itself reports has a cause; what the server sends has none.
        _ if std::error::Error::source(status).is_some() => Error::Unreachable { place, reason: transport(status) },
        _ => Error::Refused { what, class, reason },
    }
}

/// The innermost cause of an error of the connection.
fn transport(status: &Status) -> String {
    let mut innermost = None;
    let mut next = std::error::Error::source(status);
    while let Some(error) = next {
        innermost = Some(error.to_string());
        next = error.source();
    }
    innermost.unwrap_or_else(|| status.code().description().to_owned())
}

fn no_path() -> Status {
    Status::internal("a call without a path")
}

/// Attempts at something, with growing waits, until the server was away for too long.
struct Retries {
    ends_at: Instant,
    wait: Duration,
}

impl Retries {
    fn begin(patience: Duration) -> Self {
        Self { ends_at: Instant::now() + patience, wait: WAITS.0 }
    }

    /// Waits before the next attempt; the error where no other attempt can help.
    async fn again(&mut self, error: Error) -> Result<(), Error> {
        if !matches!(error, Error::Unreachable { .. }) || Instant::now() >= self.ends_at {
            return Err(error);
        }
        tracing::debug!(%error, "the Spark server is asked again");
        sleep(self.wait.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        self.wait = (self.wait * 2).min(WAITS.1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_of_an_answer_decides_what_follows() {
        let of = |status: Status| of_status("sc://x".to_owned(), "a statement", &status);
        assert!(matches!(of(Status::unavailable("x")), Error::Unreachable { .. }));
        assert!(matches!(of(Status::permission_denied("x")), Error::Denied { .. }));
        assert!(matches!(of(Status::internal("[PATH_NOT_FOUND] x")), Error::Refused { .. }));
        let lost = of(Status::internal("[INVALID_HANDLE.SESSION_NOT_FOUND] x"));
        assert!(matches!(lost, Error::Lost { class } if class == "INVALID_HANDLE.SESSION_NOT_FOUND"));
        assert!(matches!(of(Status::internal("marker")), Error::Refused { reason, .. } if !reason.contains("marker")));
    }
}
