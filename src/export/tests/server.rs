//! A server that gives the answers of a test, and records the requests. One request for each connection.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use url::Url;

/// A connection, of TLS or without.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

type Connection = Box<dyn Stream>;

pub struct Server {
    base: Url,
    asked: Arc<Mutex<Vec<Asked>>>,
    _connections: JoinSet<()>,
}

/// One request as it was received.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    pub method: String,
    /// With its query.
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// The client certificate that was shown, as DER.
    pub certificate: Option<Vec<u8>>,
}

pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

enum Body {
    Whole(Vec<u8>),
    /// Announced as longer than it is.
    Cut {
        bytes: Vec<u8>,
        announced: usize,
    },
    Chunked {
        chunks: Vec<Vec<u8>>,
        is_ended: bool,
    },
    /// Headers and these bytes, and then nothing more.
    Silent(Vec<u8>),
}

impl Server {
    pub async fn start(answer: impl FnMut(&Asked) -> Answer + Send + 'static) -> Self {
        Self::listen(None, answer).await
    }

    /// At `https://localhost`. Connections whose handshake fails are not recorded.
    pub async fn start_tls(tls: TlsAcceptor, answer: impl FnMut(&Asked) -> Answer + Send + 'static) -> Self {
        Self::listen(Some(tls), answer).await
    }

    async fn listen(tls: Option<TlsAcceptor>, answer: impl FnMut(&Asked) -> Answer + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let base = match tls {
            Some(_) => format!("https://localhost:{}", address.port()),
            None => format!("http://{address}"),
        };
        let base = base.parse().unwrap();
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::new(Mutex::new(Vec::new())));
        let log = Arc::clone(&asked);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, log, tls) = (Arc::clone(&answer), Arc::clone(&log), tls.clone());
                connections.spawn(async move {
                    let mut certificate = None;
                    let stream: Connection = match tls {
                        Some(tls) => {
                            let stream = match tls.accept(stream).into_fallible().await {
                                Ok(stream) => stream,
                                Err((_, mut refused)) => {
                                    // Closed with something unread, it would be reset, and the alert lost.
                                    let _ = tokio::io::copy(&mut refused, &mut tokio::io::sink()).await;
                                    return;
                                }
                            };
                            let shown = stream.get_ref().1.peer_certificates();
                            certificate = shown.and_then(|chain| Some(chain.first()?.to_vec()));
                            Box::new(stream)
                        }
                        None => Box::new(stream),
                    };
                    let (mut asked, stream) = read(stream).await;
                    asked.certificate = certificate;
                    log.lock().unwrap().push(asked.clone());
                    let answer = (answer.lock().unwrap())(&asked);
                    // In some tests the client has closed the connection.
                    let _ = answer.write(stream).await;
                });
            }
        });
        Self { base, asked, _connections: accepting }
    }

    pub fn url(&self, path: &str) -> Url {
        self.base.join(path).unwrap()
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A value of a form that was posted.
    pub fn field(&self, name: &str) -> Option<String> {
        let mut fields = url::form_urlencoded::parse(self.body.as_bytes());
        fields.find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
    }
}

impl Answer {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Body::Whole(Vec::new()) }
    }

    pub fn json(body: &str) -> Self {
        Self::status(200).header("content-type", "application/json").body(body)
    }

    pub fn ndjson(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200).header("content-type", "application/fhir+ndjson").body(body)
    }

    pub fn outcome(status: u16, code: &str) -> Self {
        let body = format!(
            r#"{{"resourceType":"OperationOutcome","issue":[{{"severity":"error","code":"{code}","diagnostics":"Jane Doe"}}]}}"#
        );
        Self::status(status).body(body)
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: Body::Whole(body.into()), ..self }
    }

    /// The first `length` bytes of a body that was announced whole.
    pub fn cut_after(self, length: usize) -> Self {
        let Body::Whole(mut bytes) = self.body else { panic!("only a whole body can be cut") };
        let announced = bytes.len();
        bytes.truncate(length);
        Self { body: Body::Cut { bytes, announced }, ..self }
    }

    pub fn chunked(self, chunks: &[&[u8]]) -> Self {
        let chunks = chunks.iter().map(|chunk| chunk.to_vec()).collect();
        Self { body: Body::Chunked { chunks, is_ended: true }, ..self }
    }

    pub fn chunked_without_end(self, chunks: &[&[u8]]) -> Self {
        let chunks = chunks.iter().map(|chunk| chunk.to_vec()).collect();
        Self { body: Body::Chunked { chunks, is_ended: false }, ..self }
    }

    pub fn silent_after(self, bytes: &[u8]) -> Self {
        Self { body: Body::Silent(bytes.to_vec()), ..self }
    }

    async fn write(self, mut stream: Connection) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Status\r\nconnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            write!(head, "{name}: {value}\r\n").unwrap();
        }
        let length = match &self.body {
            Body::Whole(bytes) => Some(bytes.len()),
            Body::Cut { announced, .. } => Some(*announced),
            Body::Chunked { .. } | Body::Silent(_) => None,
        };
        head.push_str(
            &length
                .map_or("transfer-encoding: chunked\r\n".to_owned(), |length| format!("content-length: {length}\r\n")),
        );
        stream.write_all(format!("{head}\r\n").as_bytes()).await?;
        match self.body {
            Body::Whole(bytes) | Body::Cut { bytes, .. } => stream.write_all(&bytes).await?,
            Body::Chunked { chunks, is_ended } => {
                for chunk in &chunks {
                    write_chunk(&mut stream, chunk).await?;
                }
                if is_ended {
                    stream.write_all(b"0\r\n\r\n").await?;
                }
            }
            Body::Silent(bytes) => {
                write_chunk(&mut stream, &bytes).await?;
                std::future::pending::<()>().await;
            }
        }
        stream.shutdown().await
    }
}

async fn write_chunk(stream: &mut Connection, chunk: &[u8]) -> std::io::Result<()> {
    if chunk.is_empty() {
        return stream.flush().await;
    }
    stream.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
    stream.write_all(chunk).await?;
    stream.write_all(b"\r\n").await?;
    // So that chunks arrive as chunks.
    stream.flush().await?;
    tokio::task::yield_now().await;
    Ok(())
}

async fn read(stream: Connection) -> (Asked, Connection) {
    let mut reader = BufReader::new(stream);
    let mut asked = Asked::default();
    let mut line = String::new();
    reader.read_line(&mut line).await.unwrap();
    let mut words = line.split_whitespace();
    asked.method = words.next().unwrap_or_default().to_owned();
    asked.path = words.next().unwrap_or_default().to_owned();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await.unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        asked.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = asked.header("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.unwrap();
    asked.body = String::from_utf8(body).unwrap();
    (asked, reader.into_inner())
}
