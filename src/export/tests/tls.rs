//! TLS: which servers are trusted, and who sees the client certificate.

use std::path::Path;

use super::{
    super::{ClientCertificate, Proxy, Tls, TlsVersion, Trust},
    authorization::guarded,
    certificates::{Authority, BOTH_VERSIONS, Flaw, Issued, listener},
    keys::ec_key,
    *,
};

const LINE: &[u8] = b"{\"resourceType\":\"Patient\",\"id\":\"1\"}\n";

fn accepted() -> Answer {
    Answer::status(202).header("content-location", "/status")
}

fn client_of(server: &Server, tls: Tls) -> Client {
    Client::new(Config { tls, ..config(server) }).unwrap()
}

async fn kicked_off(server: &Server, tls: Tls) -> Result<(), Error> {
    client_of(server, tls).kick_off(&request(&[])).await.map(|_| ())
}

fn trusting(authority: &Authority) -> Tls {
    Tls { trust: Trust::HostAnd(authority.file()), ..Tls::default() }
}

fn with_certificate(authority: &Authority, issued: &Issued) -> Tls {
    let certificate = authority.write("client.pem", &issued.certificate_pem);
    let key = authority.write("client.key", &issued.key.serialize_pem());
    Tls { client_certificate: Some(ClientCertificate { certificate, key }), ..trusting(authority) }
}

/// Shows (rule 1).
#[tokio::test]
async fn a_certificate_that_cannot_be_trusted_is_named_with_the_way_out_and_not_tried_again() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let trusted = || trusting(&ours);
    for (flaw, tls, expected, way_out) in [
        (Flaw::None, Tls::default(), "its certificate is not trusted (unknown issuer)", "server.tls.ca_file"),
        (Flaw::None, trusting(&other), "its certificate is not trusted (unknown issuer)", "server.tls.ca_file"),
        (Flaw::SelfSigned, trusted(), "its certificate is not trusted (self-signed)", "server.tls.ca_file"),
        (Flaw::OtherHost, trusted(), "its certificate is for another host name", "use the host name"),
        (Flaw::Expired, trusted(), "its certificate has expired", "have the certificate renewed"),
        (Flaw::NotValidYet, trusted(), "its certificate is not valid yet", "check the clock of this host"),
    ] {
        let server = Server::start_tls(listener(&ours.issue(flaw), BOTH_VERSIONS, None), |_| accepted()).await;
        let error = kicked_off(&server, tls).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { attempts: 1, .. }), "{expected}: {error}");
        let text = error.to_string();
        let host = format!("cannot connect to localhost:{}: {expected}", server.url("/").port().unwrap());
        assert!(text.contains(&host) && text.contains(way_out), "{text}");
        assert_eq!(server.asked().len(), 0, "{expected}");
    }
}

/// Shows (rule 1).
#[tokio::test]
async fn a_server_is_trusted_by_the_authority_of_ca_file_also_where_it_is_the_only_one() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let server = Server::start_tls(listener(&ours.issue(Flaw::None), BOTH_VERSIONS, None), |_| accepted()).await;
    let bundle = ours.write("bundle.pem", &(other.certificate.pem() + &ours.certificate.pem()));
    for trust in [Trust::HostAnd(ours.file()), Trust::Only(ours.file()), Trust::Only(bundle)] {
        kicked_off(&server, Tls { trust, ..Tls::default() }).await.unwrap();
    }
    let only_other = Tls { trust: Trust::Only(other.file()), ..Tls::default() };
    let error = kicked_off(&server, only_other).await.unwrap_err().to_string();
    assert!(error.contains("unknown issuer"), "{error}");
}

/// Shows (rule 1).
#[tokio::test]
async fn a_server_with_an_older_tls_than_min_version_is_refused_and_the_setting_named() {
    let ours = Authority::new("ours");
    let issued = ours.issue(Flaw::None);
    let old = Server::start_tls(listener(&issued, &[&rustls::version::TLS12], None), |_| accepted()).await;
    let new = Server::start_tls(listener(&issued, BOTH_VERSIONS, None), |_| accepted()).await;
    let from_1_3 = || Tls { min_version: TlsVersion::V1_3, ..trusting(&ours) };
    kicked_off(&old, trusting(&ours)).await.unwrap();
    kicked_off(&new, from_1_3()).await.unwrap();
    let error = kicked_off(&old, from_1_3()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { attempts: 1, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("no version of TLS in common") && text.contains("server.tls.min_version"), "{text}");
}

#[tokio::test]
async fn a_server_that_asks_for_a_client_certificate_gets_ours_and_says_so_where_it_got_none_or_a_wrong_one() {
    let (ours, foreign) = (Authority::new("ours"), Authority::new("foreign"));
    let issued = ours.issue(Flaw::None);
    for versions in [BOTH_VERSIONS, &[&rustls::version::TLS12]] {
        let server = Server::start_tls(listener(&issued, versions, Some(&ours)), |_| accepted()).await;
        let client = ours.issue(Flaw::None);
        kicked_off(&server, with_certificate(&ours, &client)).await.unwrap();
        assert_eq!(server.asked()[0].certificate.as_deref(), Some(client.certificate.as_ref()));

        let error = kicked_off(&server, trusting(&ours)).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { attempts: 1, .. }), "{error}");
        assert!(error.to_string().contains("asks for a client certificate"), "{error}");

        let wrong = with_certificate(&ours, &foreign.issue(Flaw::None));
        let error = kicked_off(&server, wrong).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { attempts: 1, .. }), "{error}");
        assert!(error.to_string().contains("does not accept our client certificate"), "{error}");
    }
}

/// A listener that takes certificates of clients, and answers also where it gets none.
fn curious(authority: &Authority) -> tokio_rustls::TlsAcceptor {
    listener(&authority.issue(Flaw::None), BOTH_VERSIONS, Some(authority))
}

#[tokio::test]
async fn the_client_certificate_is_shown_to_the_server_and_its_token_endpoint_and_not_to_another_host_of_files() {
    let ours = Authority::new("ours");
    let files = Server::start_tls(curious(&ours), |_| Answer::ndjson(LINE)).await;
    let tokens =
        Server::start_tls(curious(&ours), |_| Answer::json(r#"{"access_token":"t","token_type":"Bearer"}"#)).await;
    let server = Server::start_tls(curious(&ours), |_| accepted()).await;
    let key = crate::secret::Secret::given(ec_key().jwk.to_string());
    let mut authorized = auth::Smart::new("me", key);
    authorized.endpoint.token_url = Some(tokens.url("/token").into());
    authorized.endpoint.scopes = vec!["system/*.read".to_owned()];
    let mut config = Config { tls: with_certificate(&ours, &ours.issue(Flaw::None)), ..config(&server) };
    config.auth = Some(authorized.into());
    let client = Client::new(config.clone()).unwrap();
    client.kick_off(&request(&[])).await.unwrap();
    assert!(server.asked()[0].certificate.is_some() && tokens.asked()[0].certificate.is_some());

    let file = guarded(files.url("/file"));
    let (_, receipt) = read_by(&client, &file, &links(&file)).await;
    let error = receipt.unwrap_err().to_string();
    assert!(error.contains("asks for a client certificate"), "{error}");

    config.token_origins = vec![files.url("/")];
    let (_, receipt) = read_by(&Client::new(config).unwrap(), &file, &links(&file)).await;
    receipt.unwrap();
    assert!(files.asked()[0].certificate.is_some());
}

#[tokio::test]
async fn a_certificate_that_was_renewed_on_the_disk_is_used_from_the_next_run_on() {
    let ours = Authority::new("ours");
    let server = Server::start_tls(listener(&ours.issue(Flaw::None), BOTH_VERSIONS, Some(&ours)), |_| accepted()).await;
    let [before, after] = [ours.issue(Flaw::None), ours.issue(Flaw::None)];
    let client = client_of(&server, with_certificate(&ours, &before));
    client.begin_run().await.unwrap();
    client.kick_off(&request(&[])).await.unwrap();
    with_certificate(&ours, &after);
    client.kick_off(&request(&[])).await.unwrap();
    client.begin_run().await.unwrap();
    client.kick_off(&request(&[])).await.unwrap();
    let shown: Vec<_> = server.asked().into_iter().map(|asked| asked.certificate.unwrap()).collect();
    let [before, after] = [before, after].map(|issued| issued.certificate.to_vec());
    assert_eq!(shown, [before.clone(), before, after]);

    ours.write("client.pem", "");
    let error = client.begin_run().await.unwrap_err().to_string();
    assert!(error.contains("server.tls.client_certificate_file") && error.contains("no certificate"), "{error}");
}

/// The error of these settings, without any connection.
fn unusable(tls: &Tls) -> String {
    tls.read().unwrap_err().to_string()
}

#[test]
fn a_file_of_tls_that_cannot_be_used_is_named_with_its_setting_and_the_reason() {
    use std::os::unix::fs::PermissionsExt;
    let ours = Authority::new("ours");
    let issued = ours.issue(Flaw::None);
    let trust = |path: &Path| Tls { trust: Trust::Only(path.to_owned()), ..Tls::default() };
    for (text, expected) in [
        ("", "holds no certificate in PEM"),
        ("-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n", "holds a damaged PEM"),
    ] {
        let error = unusable(&trust(&ours.write("broken.pem", text)));
        assert!(error.starts_with("server.tls.ca_file ") && error.ends_with(expected), "{error}");
    }
    assert!(unusable(&trust(Path::new("/none.pem"))).contains("/none.pem cannot be read"));
    assert!(unusable(&trust(ours.file().parent().unwrap())).ends_with("is a folder, not a file"));

    let tls = with_certificate(&ours, &issued);
    tls.read().unwrap();
    let key = tls.client_certificate.as_ref().unwrap().key.clone();
    ours.write("client.key", &ours.issue(Flaw::None).key.serialize_pem());
    assert!(unusable(&tls).ends_with("holds another key than that of client_certificate_file"));
    ours.write("client.key", &issued.key.serialize_pem().replace("PRIVATE", "ENCRYPTED PRIVATE"));
    let error = unusable(&tls);
    assert!(error.starts_with("server.tls.client_key_file") && error.contains("without a password"), "{error}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(unusable(&tls).contains("can be read by other users; run chmod 600"));
}

#[tokio::test]
async fn the_certificate_goes_through_the_tunnel_of_a_proxy_to_the_server_and_not_to_the_proxy() {
    let ours = Authority::new("ours");
    // Not a loopback name: those are reached directly. The proxy connects to the listener whatever the name.
    let server = Server::start_tls(listener(&ours.issue(Flaw::OtherHost), BOTH_VERSIONS, Some(&ours)), |_| accepted());
    let server = server.await;
    let proxy = super::proxy::Tunnels::start(&server, None).await;
    let base: Url = format!("https://other.example.org:{}/fhir", server.url("/").port().unwrap()).parse().unwrap();
    let tls = with_certificate(&ours, &ours.issue(Flaw::None));
    let client = Client::new(Config { tls, proxy: Proxy::Url(proxy.url()), ..Config::new(base) }).unwrap();
    client.kick_off(&request(&[])).await.unwrap();
    assert_eq!(proxy.asked().len(), 1);
    assert!(server.asked()[0].certificate.is_some());
}
