//! Addresses: which of them a URL from a server may lead to.

use super::{super::address::Special, *};

const LINE: &[u8] = b"{\"resourceType\":\"Patient\",\"id\":\"1\"}\n";

/// Shows (rule 92).
#[test]
fn each_kind_of_address_is_recognised_in_each_of_its_forms() {
    use Special::{LinkLocal, Loopback, Multicast, Private, Reserved, Unspecified};
    for (host, expected) in [
        ("127.0.0.1", Some(Loopback)),
        ("127.255.255.254", Some(Loopback)),
        ("2130706433", Some(Loopback)),
        ("0x7f.1", Some(Loopback)),
        ("0177.0.0.1", Some(Loopback)),
        ("127.1", Some(Loopback)),
        ("[::1]", Some(Loopback)),
        ("[::ffff:127.0.0.1]", Some(Loopback)),
        ("[::127.0.0.1]", Some(Loopback)),
        ("0.0.0.0", Some(Unspecified)),
        ("0", Some(Unspecified)),
        ("[::]", Some(Unspecified)),
        ("169.254.169.254", Some(LinkLocal)),
        ("0xa9fea9fe", Some(LinkLocal)),
        ("2852039166", Some(LinkLocal)),
        ("[::ffff:a9fe:a9fe]", Some(LinkLocal)),
        ("[64:ff9b::a9fe:a9fe]", Some(LinkLocal)),
        ("[2002:a9fe:a9fe::1]", Some(LinkLocal)),
        ("[fe80::1]", Some(LinkLocal)),
        ("10.1.2.3", Some(Private)),
        ("172.16.0.1", Some(Private)),
        ("172.31.255.255", Some(Private)),
        ("192.168.1.1", Some(Private)),
        ("100.64.0.1", Some(Private)),
        ("[fd00:ec2::254]", Some(Private)),
        ("[64:ff9b:1::a00:1]", Some(Private)),
        ("[fec0::1]", Some(Private)),
        ("224.0.0.1", Some(Multicast)),
        ("[ff02::1]", Some(Multicast)),
        ("255.255.255.255", Some(Reserved)),
        ("192.0.0.192", Some(Reserved)),
        ("198.18.0.1", Some(Reserved)),
        ("[2001::1]", Some(Reserved)),
        ("172.15.0.1", None),
        ("172.32.0.1", None),
        ("100.128.0.1", None),
        ("169.253.0.1", None),
        ("8.8.8.8", None),
        ("[2606:4700::1111]", None),
        ("[2001:db8::1]", None),
        ("[64:ff9b::808:808]", None),
    ] {
        let url: Url = format!("https://{host}/").parse().unwrap();
        let address = url.host_str().unwrap().trim_matches(['[', ']']).parse().unwrap();
        assert_eq!(Special::of(address), expected, "{host} is {address}");
    }
}

async fn read(client: &Client, url: Url) -> Result<Receipt, Error> {
    let file = file(url);
    read_by(client, &file, &links(&file)).await.1
}

/// Shows (rule 92).
#[tokio::test]
async fn a_file_at_a_special_address_of_another_host_is_not_requested_unless_a_switch_or_an_origin_allows_it() {
    let files = Server::start(|_| Answer::ndjson(LINE)).await;
    let server = Server::start(|_| Answer::status(400)).await;
    let port = files.url("/").port().unwrap();
    // The name is resolved to the address at which the server listens; the others are written in the URL.
    for (host, address) in [
        (format!("localhost:{port}"), "127.0.0.1"),
        (format!("127.0.0.2:{port}"), "127.0.0.2"),
        (format!("[::ffff:7f00:2]:{port}"), "::ffff:127.0.0.2"),
    ] {
        let url: Url = format!("http://{host}/file?signature=s3cret").parse().unwrap();
        let http = |config: Config| Config { allow_http: true, ..config };
        let refusing = Client::new(http(config(&server))).unwrap();
        let error = read(&refusing, url.clone()).await.unwrap_err().to_string();
        assert!(error.contains("loopback address") && error.contains("server.allow_private_addresses"), "{error}");
        let is_named = error.contains(url.host_str().unwrap()) || error.contains(address);
        assert!(is_named && !error.contains("s3cret"), "{error}");
    }
    assert!(files.asked().is_empty());

    let url: Url = format!("http://localhost:{port}/file").parse().unwrap();
    let allowed = Config { allow_private_addresses: true, ..config(&server) };
    read(&Client::new(allowed).unwrap(), url.clone()).await.unwrap();
    let named = Config { token_origins: vec![url.clone()], ..config(&server) };
    read(&Client::new(named).unwrap(), url).await.unwrap();
    assert_eq!(files.asked().len(), 2);
}

/// Shows (rules 91 and 92).
#[tokio::test]
async fn a_redirect_to_the_metadata_service_of_a_cloud_is_not_followed() {
    let server =
        Server::start(|_| Answer::status(302).header("location", "http://169.254.169.254/latest/meta-data")).await;
    let client = Client::new(Config { allow_http: true, ..config(&server) }).unwrap();
    let error = read(&client, server.url("/file")).await.unwrap_err();
    assert!(matches!(error, Error::RefusedAddress { .. }), "{error}");
    assert!(error.to_string().contains("link-local address 169.254.169.254"), "{error}");
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn an_address_that_is_refused_after_resolution_is_not_tried_again() {
    let server = Server::start(|_| Answer::status(400)).await;
    let client = client(&server);
    let error = read(&client, "http://localhost:9/file".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { attempts: 1, .. }), "{error}");
}

#[test]
fn only_the_addresses_that_may_be_connected_to_are_left_of_those_that_a_name_has() {
    use super::super::address::Addresses;
    let named: Url = "https://inside.example.org/".parse().unwrap();
    let addresses = Addresses::new([&named], &[], false);
    let found = || ["203.0.113.7:0", "10.0.0.7:0"].map(|text| text.parse().unwrap()).to_vec();
    assert_eq!(addresses.admitted("files.example.org", found()).unwrap().len(), 1);
    assert_eq!(addresses.admitted("inside.example.org", found()).unwrap().len(), 2);
    let inner = || vec!["10.0.0.7:0".parse().unwrap()];
    let refused = addresses.admitted("files.example.org", inner()).unwrap_err();
    assert_eq!((refused.address.to_string().as_str(), refused.special), ("10.0.0.7", Special::Private));
    assert_eq!(Addresses::new([&named], &[], true).admitted("files.example.org", inner()).unwrap().len(), 1);
}

#[test]
fn a_proxy_is_connected_to_and_no_url_may_name_it() {
    use super::super::address::Addresses;
    let proxy: Url = "http://127.0.0.1:3128/".parse().unwrap();
    let inner: Url = "http://proxy.example.org:3128/".parse().unwrap();
    let addresses = Addresses::new([], &[proxy, inner], false);
    let address = || vec!["10.0.0.7:0".parse().unwrap()];
    assert!(addresses.admitted("proxy.example.org", address()).is_ok());
    assert!(addresses.admitted("files.example.org", address()).is_err());
    assert!(addresses.check(&"https://127.0.0.1:8443/file".parse().unwrap()).is_err());
    assert!(addresses.check(&"https://168.63.129.16/file".parse().unwrap()).is_err(), "Azure's own");
}
