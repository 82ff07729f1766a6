//! A proxy that makes tunnels, as the method CONNECT asks for them.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{super::Proxy, authorization::guarded, certificates::*, keys::ec_key, *};
use crate::export::{Tls, Trust};

/// Each tunnel leads to one server, whatever its name.
pub struct Tunnels {
    base: Url,
    asked: Arc<Mutex<Vec<Vec<String>>>>,
    _connections: JoinSet<()>,
}

impl Tunnels {
    /// `authorization` is the value of `Proxy-Authorization` without which it answers 407.
    pub async fn start(server: &Server, authorization: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let asked = Arc::<Mutex<Vec<Vec<String>>>>::default();
        let (log, port) = (Arc::clone(&asked), server.url("/").port().unwrap());
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut tunnels = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let log = Arc::clone(&log);
                tunnels.spawn(async move {
                    let mut stream = BufReader::new(stream);
                    let lines = head(&mut stream).await;
                    log.lock().unwrap().push(lines.clone());
                    let is_allowed = authorization.is_none_or(|expected| {
                        lines.iter().any(|line| {
                            line.to_ascii_lowercase().starts_with("proxy-authorization:") && line.ends_with(expected)
                        })
                    });
                    if !is_allowed {
                        let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n";
                        let _ = stream.write_all(refusal.as_bytes()).await;
                        return;
                    }
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    let mut there = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut there).await;
                });
            }
        });
        Self { base, asked, _connections: accepting }
    }

    pub fn url(&self) -> Url {
        self.base.clone()
    }

    /// The lines of the head of each request.
    pub fn asked(&self) -> Vec<Vec<String>> {
        self.asked.lock().unwrap().clone()
    }
}

async fn head(stream: &mut BufReader<TcpStream>) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            return lines;
        }
        lines.push(line);
    }
}

/// A server at `https://other.example.org`, behind the proxy, that is trusted.
async fn behind(ours: &Authority, answer: impl FnMut(&server::Asked) -> Answer + Send + 'static) -> (Server, Config) {
    let server = Server::start_tls(listener(&ours.issue(Flaw::OtherHost), BOTH_VERSIONS, None), answer).await;
    let mut config = Config { tls: Tls { trust: Trust::Only(ours.file()), ..Tls::default() }, ..config(&server) };
    config.server = format!("https://other.example.org:{}/fhir", server.url("/").port().unwrap()).parse().unwrap();
    (server, config)
}

#[tokio::test]
async fn every_request_goes_through_the_proxy_also_those_for_tokens_and_files() {
    let ours = Authority::new("ours");
    let (server, mut config) = behind(&ours, |asked| match asked.path.as_str() {
        "/fhir/.well-known/smart-configuration" => Answer::json(r#"{"token_endpoint":"/token"}"#),
        "/token" => Answer::json(r#"{"access_token":"t","token_type":"Bearer"}"#),
        "/file" => Answer::ndjson("{\"resourceType\":\"Patient\",\"id\":\"1\"}\n"),
        _ => Answer::status(202).header("content-location", "/status"),
    })
    .await;
    let proxy = Tunnels::start(&server, None).await;
    config.proxy = Proxy::Url(proxy.url());
    config.auth = Some(auth::Smart::new("me", crate::secret::Secret::given(ec_key().jwk.to_string())).into());
    let client = Client::new(config.clone()).unwrap();
    client.kick_off(&request(&[])).await.unwrap();
    let file = guarded(config.server.join("/file").unwrap());
    read_by(&client, &file, &links(&file)).await.1.unwrap();
    let paths: Vec<_> = server.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(paths, ["/fhir/.well-known/smart-configuration", "/token", "/fhir/$export", "/file"]);
    let expected = format!("CONNECT other.example.org:{} HTTP/1.1", config.server.port().unwrap());
    assert_eq!(proxy.asked().len(), 4, "one connection for each: this server keeps none");
    assert!(proxy.asked().iter().all(|lines| lines[0] == expected), "{:?}", proxy.asked());
    let heads = proxy.asked().concat().join("\n").to_ascii_lowercase();
    assert!(!heads.lines().any(|line| line.starts_with("authorization:")), "{heads}");
}

#[tokio::test]
async fn user_and_password_of_a_proxy_are_in_its_url_and_a_407_says_so_without_another_attempt() {
    let ours = Authority::new("ours");
    let (server, mut config) = behind(&ours, |_| Answer::status(202).header("content-location", "/status")).await;
    // user:s3cret
    let proxy = Tunnels::start(&server, Some("Basic dXNlcjpzM2NyZXQ=")).await;
    let mut url = proxy.url();
    config.proxy = Proxy::Url(url.clone());
    let error = Client::new(config.clone()).unwrap().kick_off(&request(&[])).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { attempts: 1, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("the proxy asks for a user and a password") && text.contains("server.proxy"), "{text}");

    url.set_username("user").unwrap();
    url.set_password(Some("s3cret")).unwrap();
    config.proxy = Proxy::Url(url);
    assert!(!format!("{config:?}").contains("s3cret"), "{config:?}");
    Client::new(config).unwrap().kick_off(&request(&[])).await.unwrap();
    assert!(!server.asked()[0].headers.iter().any(|(name, _)| name == "proxy-authorization"));
}
