//! The export room with a real HTTP server on a port of its own.
//!
//! Waits are configured in milliseconds; where hours must pass, tokio's clock is set forward between two requests.

use std::{sync::Arc, time::Duration};

use async_compression::tokio::write::GzipEncoder;
use bytes::Bytes;
use tokio::{io::AsyncWriteExt, sync::mpsc};
use url::Url;

use super::{
    Client, Completed, Config, Error, ExportParameters, ExportRequest, File, FileAuth, FileKind, Issues, Job,
    KickOffConfig, KickOffMethod, Level, Links, ListSeparator, Manifest, PollProgress, Receipt, WaitRange, auth,
    clock::local_now, manifest::FileIds,
};
use server::{Answer, Server};

mod addresses;
mod authorization;
mod certificates;
mod connection;
mod credentials;
mod download;
mod evidence;
mod keys;
mod kick_off;
mod links;
mod limits;
mod manifest;
mod origins;
mod pace;
mod poll;
mod proxy;
mod range;
mod retry;
mod server;
mod tls;

/// A configuration that waits milliseconds where the default waits seconds.
fn config(server: &Server) -> Config {
    install_crypto();
    let milliseconds = |min, max| WaitRange::new(Duration::from_millis(min), Duration::from_millis(max)).unwrap();
    let mut config = Config::new(server.url("/fhir"));
    config.poll.interval = milliseconds(1, 3);
    config.poll.kick_off_deadline = Duration::from_secs(5);
    config.http.idle_timeout = Duration::from_secs(5);
    config.http.retry_wait = milliseconds(1, 3);
    config.http.outage_patience = Duration::from_secs(20);
    config.http.hash_files = true;
    config.poll.believed_after = Duration::from_millis(20);
    config.poll.patience_with_words = Duration::from_millis(20);
    config
}

fn client(server: &Server) -> Client {
    Client::new(config(server)).unwrap()
}

/// A client that waits for an outage some milliseconds only.
fn impatient(server: &Server) -> Client {
    let mut config = config(server);
    config.http.outage_patience = Duration::from_millis(20);
    Client::new(config).unwrap()
}

fn install_crypto() {
    // Another test may have been first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn request(types: &[&str]) -> ExportRequest {
    ExportRequest::new(Level::System, types.iter().map(|name| name.parse().unwrap()).collect(), None)
}

fn job(server: &Server) -> Job {
    Job { status_url: server.url("/status"), server_time: None, kicked_off_locally_at: local_now() }
}

async fn wait(job: Job, client: &Client) -> Result<Completed, Error> {
    job.wait(client, &|_: PollProgress| {}).await
}

fn file(url: Url) -> File {
    File {
        id: FileIds::default().next(&url),
        name: "Patient file 1 of 1".to_owned(),
        kind: FileKind::Of("Patient".parse().unwrap()),
        url,
        count: None,
        requires_access_token: false,
    }
}

/// What the reader received, and the result.
async fn read_by(client: &Client, file: &File, links: &Links) -> (Vec<u8>, Result<Receipt, Error>) {
    let (into, mut from) = mpsc::channel::<Bytes>(1);
    let reader = async {
        let mut bytes = Vec::new();
        while let Some(chunk) = from.recv().await {
            bytes.extend_from_slice(&chunk);
        }
        bytes
    };
    tokio::join!(reader, client.download(file, links, into))
}

/// The links of an export of this one file; the status URL is `/status` of the same origin.
fn links(file: &File) -> Links {
    let status_url = file.url.join("/status").unwrap_or_else(|_| "http://localhost/status".parse().unwrap());
    let job = Job { status_url, server_time: None, kicked_off_locally_at: local_now() };
    let manifest = Manifest {
        transaction_time: None,
        output: vec![file.clone()],
        deleted: Vec::new(),
        outcomes: Vec::new(),
        issues: Issues::default(),
    };
    Links::new(Completed { job, manifest: Arc::new(manifest), server_time: None })
}

async fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzipEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

/// Lets time pass for everything that measures it with tokio, and for nothing else.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[test]
fn futures_can_be_moved_between_threads() {
    fn is_send<T: Send>(_: T) {}
    install_crypto();
    let client = Client::new(Config::new("http://localhost/".parse().unwrap())).unwrap();
    let job = Job {
        status_url: "http://localhost/status?signature=s3cret".parse().unwrap(),
        server_time: None,
        kicked_off_locally_at: local_now(),
    };
    let file = file("http://localhost/file?signature=s3cret".parse().unwrap());
    assert!(!format!("{client:?} {job:?} {file:?}").contains("s3cret"), "and nothing prints a query");
    is_send(client.kick_off(&request(&[])));
    is_send(job.clone().delete(&client));
    is_send(wait(job, &client));
    let links = links(&file);
    is_send(client.download(&file, &links, tokio::sync::mpsc::channel(1).0));
}
