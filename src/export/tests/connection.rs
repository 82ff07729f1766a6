//! Failed connections: the words for people.

use std::{error::Error as StdError, io};

use rustls::{AlertDescription, CertificateError, InvalidMessage, OtherError};

use super::{
    super::{Proxy, connection::Problem},
    *,
};

async fn unreachable(url: &str) -> String {
    let mut config = Config::new(url.parse().unwrap());
    config.http.outage_patience = Duration::ZERO;
    install_crypto();
    Client::new(config).unwrap().kick_off(&request(&[])).await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_refused_connection_names_the_host_the_attempts_and_the_way_out() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = unreachable(&format!("http://{closed}/fhir")).await;
    let expected =
        format!("kick-off at http://{closed}/fhir/$export: cannot connect to {closed}: connection refused (1 a");
    assert!(error.starts_with(&expected), "{error}");
    let way_out = "check that the server is up and reachable from this host; the next sync tries again";
    assert!(error.ends_with(way_out), "{error}");
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_named_as_such() {
    let server = Server::start(|_| Answer::status(400)).await;
    let error = unreachable(&server.url("/fhir").to_string().replace("http:", "https:")).await;
    assert!(error.contains("it does not speak TLS") && error.contains("an http:// address"), "{error}");
}

#[test]
fn the_usual_errors_of_a_connection_are_recognised() {
    #[derive(Debug, thiserror::Error)]
    #[error("CaUsedAsEndEntity")]
    struct SelfSigned;

    let certificate = |error| io::Error::other(rustls::Error::InvalidCertificate(error));
    let alert = |alert| io::Error::other(rustls::Error::AlertReceived(alert));
    for (error, expected) in [
        (certificate(CertificateError::UnknownIssuer), Some(Problem::UntrustedCertificate)),
        (certificate(CertificateError::Expired), Some(Problem::ExpiredCertificate)),
        (certificate(CertificateError::NotValidYet), Some(Problem::FutureCertificate)),
        (certificate(CertificateError::NotValidForName), Some(Problem::CertificateOfAnotherHost)),
        (certificate(CertificateError::BadSignature), Some(Problem::InvalidCertificate)),
        (
            certificate(CertificateError::Other(OtherError(std::sync::Arc::new(SelfSigned)))),
            Some(Problem::SelfSignedCertificate),
        ),
        (io::Error::other(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)), Some(Problem::NotTls)),
        (alert(AlertDescription::HandshakeFailure), Some(Problem::HandshakeRefused)),
        (alert(AlertDescription::ProtocolVersion), Some(Problem::NoCommonTls)),
        (alert(AlertDescription::CertificateRequired), Some(Problem::NoClientCertificate)),
        (alert(AlertDescription::UnknownCA), Some(Problem::ClientCertificateRefused)),
        (alert(AlertDescription::InternalError), None),
        (io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof"), Some(Problem::NotTls)),
        (io::ErrorKind::TimedOut.into(), Some(Problem::NoAnswer)),
        (io::Error::other("dns error"), Some(Problem::UnknownHost)),
        (io::ErrorKind::ConnectionReset.into(), None),
    ] {
        let wrapped = io::Error::other(error);
        let error: &(dyn StdError + 'static) = &wrapped;
        assert_eq!(Problem::of(error), expected, "{error}");
    }
}

#[tokio::test]
async fn a_proxy_is_used_where_the_setting_names_one_and_never_for_loopback() {
    let accepted = || Answer::status(202).header("content-location", "/status");
    let (proxy, server) = (Server::start(move |_| accepted()).await, Server::start(move |_| accepted()).await);
    let through = |base: Url| {
        let mut config = Config { proxy: Proxy::Url(proxy.url("/")), ..Config::new(base) };
        config.allow_http = true;
        Client::new(config).unwrap()
    };
    through(server.url("/fhir")).kick_off(&request(&[])).await.unwrap();
    assert_eq!((proxy.asked().len(), server.asked().len()), (0, 1));
    through("http://ehr.example.org/fhir".parse().unwrap()).kick_off(&request(&[])).await.unwrap();
    assert_eq!(proxy.asked()[0].path, "http://ehr.example.org/fhir/$export");
}

/// (rule 76)
#[tokio::test]
async fn http_2_is_not_offered_because_its_streams_can_end_early_without_an_error() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    install_crypto();
    let url = format!("https://{}/fhir", listener.local_addr().unwrap()).parse().unwrap();
    let mut config = Config::new(url);
    config.http.outage_patience = Duration::ZERO;
    let client = Client::new(config).unwrap();
    let hello = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = vec![0; 4096];
        let length = tokio::io::AsyncReadExt::read(&mut stream, &mut hello).await.unwrap();
        hello.truncate(length);
        hello
    };
    let request = request(&[]);
    let (hello, _) = tokio::join!(hello, client.kick_off(&request));
    let offers = |protocol: &[u8]| hello.windows(protocol.len()).any(|bytes| bytes == protocol);
    assert!(!offers(b"\x02h2"), "in the names of protocols of the greeting (RFC 7301)");
}
