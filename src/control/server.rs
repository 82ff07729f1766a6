//! The side of the daemon: it listens to the socket, and turns requests into [`Order`]s.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Answer, Error, Place, ROOT, Work, our_user,
    protocol::{Event, MAX_REQUEST_BYTES, Request, line, read_line, write_line},
};
use crate::sync::Board;

/// Work that somebody has asked for, and waits for.
pub struct Order {
    pub work: Work,
    /// Cancelled when the client is gone, and when the daemon stops.
    pub stop: CancellationToken,
    answer: oneshot::Sender<Result<Answer, Error>>,
}

impl Order {
    pub fn answer(self, answer: Result<Answer, Error>) {
        // Nobody may be there any more.
        drop(self.answer.send(answer));
    }
}

/// The listener. It removes its socket when it is closed.
pub struct Server {
    socket: PathBuf,
    listening: JoinSet<()>,
    closed: CancellationToken,
}

/// What all connections share.
struct Shared {
    tables: String,
    orders: mpsc::Sender<Order>,
    board: watch::Receiver<Board>,
    stop: CancellationToken,
}

/// Commands are given by people: more at a time are a mistake.
const MAX_CONNECTIONS: usize = 8;
/// How long a client may take to send its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How long a client may take to read an event.
const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How often progress is sent at most.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long answers may take when the daemon ends.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

impl Server {
    /// Listens at `control`, with the suffix of a socket. The caller holds the state: a socket that is there is of a
    /// process that has ended, and is replaced. `tables` is the place of the tables ([`super::place_of`]); `stop` ends
    /// the work of all orders.
    pub fn start(
        control: &Path,
        tables: String,
        board: watch::Receiver<Board>,
        stop: CancellationToken,
    ) -> io::Result<(Self, mpsc::Receiver<Order>)> {
        let place = Place::beside(control)?;
        let (new, socket) = (place.path(".new"), place.path(""));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        // Before it has its name, so that nobody else connects in between.
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
        fs::rename(&new, &socket)?;
        let (orders, receiver) = mpsc::channel(MAX_CONNECTIONS);
        let shared = Arc::new(Shared { tables, orders, board, stop });
        let closed = CancellationToken::new();
        let mut listening = JoinSet::new();
        listening.spawn(listen(listener, shared, closed.clone()));
        let socket = control.with_file_name(&place.name);
        Ok((Self { socket, listening, closed }, receiver))
    }

    /// Takes no more connections, and waits until those that are open have their answers.
    pub async fn close(mut self) {
        self.closed.cancel();
        while self.listening.join_next().await.is_some() {}
        if let Err(error) = fs::remove_file(&self.socket) {
            tracing::debug!(%error, "the control socket was not removed; the next start replaces it");
        }
    }
}

async fn listen(listener: UnixListener, shared: Arc<Shared>, closed: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = closed.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() >= MAX_CONNECTIONS => refuse(&stream),
                Ok((stream, _)) => {
                    let shared = Arc::clone(&shared);
                    connections.spawn(async move {
                        if let Err(error) = serve(stream, &shared).await {
                            tracing::debug!(%error, "the connection of a command failed");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "commands by hand cannot be accepted; trying again");
                    sleep(Duration::from_secs(1)).await;
                }
            },
        }
    }
    let answered = async { while connections.join_next().await.is_some() {} };
    drop(timeout(CLOSE_LIMIT, answered).await);
}

fn refuse(stream: &UnixStream) {
    let reason = format!("the service works on {MAX_CONNECTIONS} commands already; try again when one has ended");
    let refused = line(&Event::Answer(Err(Error::Busy(reason)))).and_then(|line| stream.try_write(&line));
    if let Err(error) = refused {
        tracing::debug!(%error, "a command could not be refused");
    }
}

/// One request, to its answer.
async fn serve(stream: UnixStream, shared: &Shared) -> io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    if peer != our_user() && peer != ROOT {
        tracing::warn!(user = peer, "a command of another user was refused");
        return Ok(());
    }
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let request = timeout(REQUEST_LIMIT, read_line::<Request>(&mut read, MAX_REQUEST_BYTES)).await;
    let work = match request {
        Ok(Ok(Some(request))) => request.work(&shared.tables),
        // Somebody only wanted to know whether we are here.
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error)) => Err(Error::Failed(format!("the service cannot read the request: {error}"))),
        Err(_) => Err(Error::Failed(format!("no request within {} s", REQUEST_LIMIT.as_secs()))),
    };
    let answer = match work {
        Ok(work) => ordered(work, &mut read, &mut write, shared).await?,
        Err(error) => Err(error),
    };
    send(&mut write, &Event::Answer(answer)).await
}

/// Hands the work to the daemon, and sends its progress until it is done.
async fn ordered(
    work: Work,
    read: &mut BufReader<OwnedReadHalf>,
    write: &mut OwnedWriteHalf,
    shared: &Shared,
) -> io::Result<Result<Answer, Error>> {
    let activity = work.activity();
    let (answer, mut answered) = oneshot::channel();
    let stop = shared.stop.child_token();
    // A connection that fails withdraws its request as well.
    let _withdrawn = stop.clone().drop_guard();
    if shared.orders.send(Order { work, stop: stop.clone(), answer }).await.is_err() {
        return Ok(Err(Error::Stopped));
    }
    let mut board = shared.board.clone();
    board.mark_changed();
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut listens = true;
    loop {
        tokio::select! {
            answer = &mut answered => {
                return Ok(answer.unwrap_or_else(|_| Err(Error::Failed(
                    "the work panicked; this is a bug in fhir-sync, and the log of the service has it".to_owned(),
                ))));
            }
            // Nothing follows a request but its end.
            _ = read.read_u8(), if listens => {
                listens = false;
                stop.cancel();
            }
            _ = ticks.tick() => {
                if board.has_changed().unwrap_or(false) {
                    let progress = board.borrow_and_update().get(&activity).cloned();
                    let progress = progress.map(|progress| (activity.clone(), progress));
                    send(write, &Event::Progress(progress.into_iter().collect())).await?;
                }
            }
        }
    }
}

async fn send(write: &mut OwnedWriteHalf, event: &Event) -> io::Result<()> {
    match timeout(WRITE_LIMIT, write_line(write, event)).await {
        Ok(sent) => sent,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
