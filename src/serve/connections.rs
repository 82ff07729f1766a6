//! Connections: how many the listener has at a time, and how long each may wait for its client.
//!
//! The endpoints have no authentication. Whoever opens connections and says nothing must neither use up the file
//! descriptors that syncs need nor keep monitoring out for long.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

/// A further client waits until another one has ended.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send a request, counted from the connection or from the last response.
const MAX_REQUEST_WAIT: Duration = Duration::from_secs(10);

/// A listener with these limits.
pub struct Connections {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl Connections {
    pub fn new(listener: TcpListener) -> Self {
        Self { listener, permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)) }
    }
}

impl axum::serve::Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // The semaphore is never closed; if it were, there would be no limit.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        // A response of several segments would wait for the client's delayed acknowledgement, for 40 ms.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection keeps its delay");
        }
        (Connection { stream, waits: Box::pin(sleep(MAX_REQUEST_WAIT)), _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when its client lets it wait for too long.
pub struct Connection {
    stream: TcpStream,
    waits: Pin<Box<Sleep>>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// The stream, unless the client is too late.
    fn in_time(&mut self, context: &mut Context) -> io::Result<Pin<&mut TcpStream>> {
        match self.waits.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(Pin::new(&mut self.stream)),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        self.in_time(context)?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = self.in_time(context)?.poll_write(context, bytes);
        if matches!(written, Poll::Ready(Ok(_))) {
            self.waits.as_mut().reset(Instant::now() + MAX_REQUEST_WAIT);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        self.in_time(context)?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        task::JoinSet,
    };

    use super::*;

    async fn served(tasks: &mut JoinSet<io::Result<()>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "alive" }));
        tasks.spawn(axum::serve(Connections::new(listener), router).into_future());
        address
    }

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

    async fn answer(stream: &mut TcpStream) -> String {
        stream.write_all(REQUEST).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"alive") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
        }
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_ends_its_request_is_cut_off() {
        let mut tasks = JoinSet::new();
        let address = served(&mut tasks).await;
        let begun = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&REQUEST[..20]).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        assert!(rest.is_empty() && begun.elapsed() >= MAX_REQUEST_WAIT, "{rest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_its_request_byte_by_byte_gets_no_more_time() {
        let mut tasks = JoinSet::new();
        let address = served(&mut tasks).await;
        let begun = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut rest = Vec::new();
        for byte in REQUEST {
            let sent = stream.write_all(&[*byte]).await;
            let cut_off = tokio::time::timeout(Duration::from_secs(1), stream.read_to_end(&mut rest)).await.is_ok();
            if sent.is_err() || cut_off {
                break;
            }
        }
        let waited = begun.elapsed();
        let is_in_time = waited >= MAX_REQUEST_WAIT && waited < 2 * MAX_REQUEST_WAIT;
        assert!(rest.is_empty() && is_in_time, "{waited:?}: {rest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn silent_clients_do_not_keep_others_out_for_long() {
        let mut tasks = JoinSet::new();
        let address = served(&mut tasks).await;
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_connection_may_be_used_again() {
        let mut tasks = JoinSet::new();
        let mut stream = TcpStream::connect(served(&mut tasks).await).await.unwrap();
        for _ in 0..2 {
            assert!(answer(&mut stream).await.starts_with("HTTP/1.1 200"));
        }
    }
}
