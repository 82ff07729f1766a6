//! TLS with an authority of one's own, the styles of addresses, and proxies.

use std::{fs, path::PathBuf};

use object_store::{ObjectStoreExt as _, path::Path};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, rustls};

use super::{
    super::{
        Proxy,
        failure::{Cause, Failure},
    },
    *,
};

/// A server with TLS that answers each connection with 404.
async fn with_tls() -> (String, String, JoinSet<()>) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let pem = certified.cert.pem();
    let key = rustls::pki_types::PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certified.cert.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let mut task = JoinSet::new();
    task.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    });
    (endpoint, pem, task)
}

async fn asked(endpoint: &str, ca_file: Option<PathBuf>) -> object_store::Error {
    let own = [("aws_endpoint", endpoint), ("aws_access_key_id", "k"), ("aws_secret_access_key", "s")];
    let mut options = options(Service::S3, own.iter().chain(&[("max_retries", "0")]));
    options.ca_file = ca_file;
    let store = connect(&URL.parse().unwrap(), &options).unwrap();
    store.get(&Path::from("a")).await.unwrap_err()
}

#[tokio::test]
async fn a_store_with_a_certificate_of_one_s_own_is_reached_with_ca_file_only() {
    let (endpoint, pem, _listener) = with_tls().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    fs::write(&file, pem).unwrap();
    let refused = asked(&endpoint, None).await;
    let failure = Failure::within(&refused).unwrap();
    assert!(matches!(failure.cause, Cause::Certificate(_)), "{failure:?}");
    assert!(failure.to_string().contains("name the file with the authority in ca_file"), "{failure}");
    let answered = asked(&endpoint, Some(file)).await;
    assert!(matches!(answered, object_store::Error::NotFound { .. }), "{answered:?}");
}

#[test]
fn repetitions_last_for_minutes_and_their_longest_wait_is_not_shorter_than_the_first() {
    let retries = super::super::http::retries(&BTreeMap::new());
    assert_eq!((retries.max_retries, retries.retry_timeout.as_secs()), (100, 180));
    let first = BTreeMap::from([("backoff_config.init_backoff", "20s".to_owned())]);
    assert_eq!(super::super::http::retries(&first).backoff.max_backoff.as_secs(), 20);
}

#[test]
fn a_file_of_authorities_must_hold_some() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    let problem = |options: &Options| connect(&URL.parse().unwrap(), options).unwrap_err().to_string();
    let options = Options::new(Some(file.clone()), Proxy::None);
    assert!(problem(&options).contains("ca.pem cannot be read"), "{}", problem(&options));
    fs::write(&file, "no certificate").unwrap();
    assert!(problem(&options).contains("ca.pem holds no certificate in PEM"), "{}", problem(&options));
}

#[tokio::test]
async fn the_bucket_is_in_the_path_or_in_the_host_as_is_asked_for() {
    let server = Server::start().await;
    server.with_keys(&[]).put(&Path::from("a"), "1".into()).await.unwrap();
    assert_eq!(server.seen()[0].path, "/lake/a");
    // `lake.localhost` is this host by RFC 6761, but not everywhere: only the address is looked at.
    let mut texts = BTreeMap::from([
        ("aws_endpoint", "http://minio.example.org:9000".to_owned()),
        ("aws_virtual_hosted_style_request", "true".to_owned()),
    ]);
    let url = URL.parse().unwrap();
    for _ in 0..2 {
        super::super::s3::put_bucket_into_host(&url, &mut texts);
        assert_eq!(texts["aws_endpoint"], "http://lake.minio.example.org:9000");
    }
}

#[tokio::test]
async fn requests_go_through_the_proxy_that_is_named_and_through_none_otherwise() {
    let proxy = Server::start().await;
    let endpoint = "http://store.invalid:9000";
    let own = [("aws_endpoint", endpoint), ("allow_http", "true"), ("max_retries", "0")];
    let keys = [("aws_access_key_id", "k"), ("aws_secret_access_key", "s")];
    let mut options = options(Service::S3, own.iter().chain(&keys));
    let ask = async |options: &Options| {
        let store = connect(&URL.parse().unwrap(), options).unwrap();
        store.get(&Path::from("a")).await.unwrap_err()
    };
    let error = ask(&options).await;
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    options.proxy = Proxy::Url(Box::new(proxy.endpoint.parse().unwrap()));
    let error = ask(&options).await;
    assert!(matches!(error, object_store::Error::NotFound { .. }), "{error}");
    assert_eq!((proxy.seen().len(), proxy.seen()[0].header("host")), (1, "store.invalid:9000"));
}
