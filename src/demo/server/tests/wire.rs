//! A minimal HTTP client that shows the bytes of a response as they were sent, complete or cut.

use std::fmt::Write;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use url::Url;

pub(super) struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// The body is as long as its headers say.
    pub whole: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// Sends one request on a new connection.
pub(super) async fn send(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = open(method, url, headers, body).await;
    let mut bytes = Vec::new();
    // A connection that is cut may end with an error; the bytes before it count.
    let _ = stream.read_to_end(&mut bytes).await;
    answer(&bytes)
}

pub(super) async fn open(method: &str, url: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
    let url = Url::parse(url).unwrap();
    let (host, port) = (url.host_str().unwrap(), url.port().unwrap());
    let mut request = format!(
        "{method} {} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nContent-Length: {}\r\n",
        &url[url::Position::BeforePath..url::Position::AfterQuery],
        body.len()
    );
    for (name, value) in headers {
        write!(request, "{name}: {value}\r\n").unwrap();
    }
    let mut stream = TcpStream::connect((host, port)).await.unwrap();
    stream.write_all(format!("{request}\r\n{body}").as_bytes()).await.unwrap();
    stream
}

pub(super) fn answer(bytes: &[u8]) -> Answer {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").expect("no end of the headers");
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut answer =
        Answer { status: head[9..12].parse().unwrap(), head, body: bytes[end + 4..].to_vec(), whole: true };
    if answer.header("transfer-encoding") == Some("chunked") {
        (answer.body, answer.whole) = unchunked(&answer.body);
    } else if let Some(length) = answer.header("content-length") {
        answer.whole = answer.body.len() == length.parse::<usize>().unwrap();
    }
    answer
}

fn unchunked(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return (body, true);
        }
        let Some(chunk) = bytes.get(end + 2..end + 2 + size) else { break };
        body.extend_from_slice(chunk);
        bytes = &bytes[end + 2 + size + 2..];
    }
    (body, false)
}

pub(super) async fn get(url: &str) -> Answer {
    send("GET", url, &[], "").await
}
