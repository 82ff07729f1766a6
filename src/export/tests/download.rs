//! Downloads: each byte once, always to the end, nothing but NDJSON.

use super::*;

const TWO_LINES: &[u8] = b"{\"resourceType\":\"Patient\",\"id\":\"1\"}\n{\"resourceType\":\"Patient\",\"id\":\"2\"}\n";

async fn read(client: &Client, file: &File) -> (Vec<u8>, Result<Receipt, Error>) {
    read_by(client, file, &links(file)).await
}

async fn download(server: &Server) -> (Vec<u8>, Result<Receipt, Error>) {
    read(&client(server), &file(server.url("/file?signature=s3cret"))).await
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().try_into().unwrap()
}

/// (rules 71 and 72, Q-41, Q-78)
#[tokio::test]
async fn a_file_arrives_as_it_is_with_a_receipt() {
    let server = Server::start(|_| Answer::ndjson(TWO_LINES)).await;
    let (bytes, receipt) = download(&server).await;
    assert_eq!(bytes, TWO_LINES);
    let length = TWO_LINES.len() as u64;
    assert_eq!(receipt.unwrap(), Receipt { wire_bytes: length, bytes: length, sha256: Some(sha256(TWO_LINES)) });
    let asked = &server.asked()[0];
    assert_eq!(asked.header("accept"), Some("application/fhir+ndjson"));
    assert_eq!(asked.header("accept-encoding"), Some("gzip"));
    assert_eq!(asked.header("authorization"), None);
    assert_eq!(asked.path, "/file?signature=s3cret");
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    for encoding in ["identity", "gzip"] {
        let server = Server::start(move |_| Answer::ndjson("").header("content-encoding", encoding)).await;
        let (bytes, receipt) = download(&server).await;
        assert!(bytes.is_empty());
        assert_eq!(receipt.unwrap().bytes, 0);
    }
}

/// (rule 72, Q-45)
#[tokio::test]
async fn gzip_is_decoded_by_its_header_and_by_its_first_bytes() {
    let zipped = gzip(TWO_LINES).await;
    for header in [Some("gzip"), Some("X-GZIP"), Some("identity"), None] {
        let body = zipped.clone();
        let server = Server::start(move |_| {
            let answer = Answer::ndjson(body.clone());
            header.map_or(Answer::ndjson(body.clone()), |encoding| answer.header("content-encoding", encoding))
        })
        .await;
        let (bytes, receipt) = download(&server).await;
        let receipt = receipt.unwrap();
        assert_eq!(bytes, TWO_LINES, "{header:?}");
        assert_eq!((receipt.wire_bytes, receipt.bytes), (zipped.len() as u64, TWO_LINES.len() as u64));
        assert_eq!(receipt.sha256, Some(sha256(TWO_LINES)));
    }
}

/// (rules 72 and 76)
#[tokio::test]
async fn gzip_of_several_members_is_read_to_its_end_however_it_is_cut_into_chunks() {
    let zipped = [gzip(&TWO_LINES[..40]).await, gzip(&TWO_LINES[40..]).await].concat();
    for at in 1..zipped.len() {
        let body = zipped.clone();
        let server = Server::start(move |_| Answer::ndjson("").chunked(&[&body[..at], &body[at..]])).await;
        let (bytes, receipt) = download(&server).await;
        assert_eq!(receipt.unwrap().bytes, TWO_LINES.len() as u64, "cut at {at}");
        assert_eq!(bytes, TWO_LINES);
    }
}

#[tokio::test]
async fn a_damaged_gzip_stream_fails_the_file() {
    let whole = gzip(TWO_LINES).await;
    let mut wrong_crc = whole.clone();
    wrong_crc[whole.len() - 6] ^= 1;
    let mut wrong_length = whole.clone();
    wrong_length[whole.len() - 1] ^= 1;
    let trailing_garbage = [whole.as_slice(), b"garbage"].concat();
    for body in [wrong_crc, wrong_length, trailing_garbage, TWO_LINES.to_vec()] {
        let server = Server::start(move |_| Answer::ndjson(body.clone()).header("content-encoding", "gzip")).await;
        let (_, receipt) = download(&server).await;
        assert!(matches!(receipt, Err(Error::Corrupt { .. })), "{receipt:?}");
        assert_eq!(server.asked().len(), 1);
    }
}

/// (rule 76)
#[tokio::test]
async fn gzip_that_ends_early_never_counts_as_complete() {
    let whole = gzip(TWO_LINES).await;
    for length in [1, 5, 15, whole.len() - 9, whole.len() - 1] {
        let body = whole[..length].to_vec();
        let server =
            Server::start(move |_| Answer::ndjson("").header("content-encoding", "gzip").chunked(&[&body])).await;
        let (_, receipt) = read(&impatient(&server), &file(server.url("/file?signature=s3cret"))).await;
        assert!(matches!(receipt, Err(Error::Unreachable { .. })), "{length}: {receipt:?}");
    }
    let server = Server::start(|_| Answer::ndjson("").header("content-encoding", "gzip").chunked(&[])).await;
    assert!(
        read(&impatient(&server), &file(server.url("/file?signature=s3cret"))).await.1.is_err(),
        "nothing at all is not even an empty gzip stream"
    );
}

/// (rule 76, Q-48)
#[tokio::test]
async fn a_transfer_that_is_cut_never_counts_as_complete() {
    for answer in [
        || Answer::ndjson(TWO_LINES).cut_after(50),
        || Answer::ndjson("").chunked_without_end(&[TWO_LINES]),
        || Answer::ndjson("").chunked_without_end(&[]),
    ] {
        let server = Server::start(move |_| answer()).await;
        let (_, receipt) = read(&impatient(&server), &file(server.url("/file?signature=s3cret"))).await;
        let error = anyhow::Error::from(receipt.unwrap_err());
        assert!(!format!("{error:?} {error:#}").contains("s3cret"), "{error:#}");
    }
}

/// (rules 77 and 78)
#[tokio::test]
async fn after_a_cut_each_byte_still_arrives_once() {
    let mut turn = 0;
    let server = Server::start(move |_| {
        turn += 1;
        match turn {
            1 => Answer::ndjson(TWO_LINES).cut_after(10),
            2 => Answer::status(503),
            3 => Answer::ndjson(TWO_LINES).cut_after(5),
            4 => Answer::ndjson("").chunked_without_end(&[&TWO_LINES[..30], &TWO_LINES[30..50]]),
            _ => Answer::ndjson("").chunked(&[&TWO_LINES[..49], &TWO_LINES[49..51], &TWO_LINES[51..]]),
        }
    })
    .await;
    let (bytes, receipt) = download(&server).await;
    assert_eq!(receipt.unwrap().sha256, Some(sha256(TWO_LINES)));
    assert_eq!(bytes, TWO_LINES);
    assert_eq!(server.asked().len(), 5);
}

#[tokio::test]
async fn after_a_cut_a_file_may_have_another_encoding() {
    let zipped = gzip(TWO_LINES).await;
    let mut turn = 0;
    let server = Server::start(move |_| {
        turn += 1;
        if turn == 1 { Answer::ndjson(TWO_LINES).cut_after(40) } else { Answer::ndjson(zipped.clone()) }
    })
    .await;
    let (bytes, receipt) = download(&server).await;
    assert_eq!(receipt.unwrap().bytes, TWO_LINES.len() as u64);
    assert_eq!(bytes, TWO_LINES);
}

/// (rule 77)
#[tokio::test]
async fn a_file_that_changed_between_two_readings_is_an_error() {
    let changed: &[u8] = b"{\"resourceType\":\"Patient\",\"id\":\"3\"}\n{\"resourceType\":\"Patient\",\"id\":\"2\"}\n";
    for second in [changed, &TWO_LINES[..20], b""] {
        let mut turn = 0;
        let server = Server::start(move |_| {
            turn += 1;
            if turn == 1 { Answer::ndjson(TWO_LINES).cut_after(40) } else { Answer::ndjson(second) }
        })
        .await;
        let (bytes, receipt) = download(&server).await;
        assert!(matches!(receipt, Err(Error::FileChanged { .. })), "{receipt:?}");
        assert_eq!(bytes, TWO_LINES[..40]);
    }
}

/// (rule 78)
#[tokio::test]
async fn progress_allows_new_attempts_up_to_a_limit() {
    let long: Vec<u8> = [b"{".as_slice(), &[b' '; 500]].concat();
    let mut length = 0;
    let body = long.clone();
    let server = Server::start(move |_| {
        length += 1;
        Answer::ndjson(body.clone()).cut_after(length)
    })
    .await;
    let mut config = config(&server);
    config.http.outage_patience = Duration::from_millis(20);
    config.limits.max_transfer_time = Duration::from_millis(300);
    let (_, receipt) = read(&Client::new(config).unwrap(), &file(server.url("/file"))).await;
    assert!(matches!(receipt, Err(Error::TransferTime { .. })), "{receipt:?}");
    assert!(server.asked().len() > 4);
}

#[tokio::test]
async fn a_silent_server_is_asked_again() {
    let mut turn = 0;
    let server = Server::start(move |_| {
        turn += 1;
        if turn == 1 { Answer::ndjson("").silent_after(&TWO_LINES[..20]) } else { Answer::ndjson(TWO_LINES) }
    })
    .await;
    let mut config = config(&server);
    config.http.idle_timeout = Duration::from_millis(100);
    let (bytes, receipt) = read(&Client::new(config).unwrap(), &file(server.url("/file"))).await;
    assert!(receipt.is_ok(), "{receipt:?}");
    assert_eq!(bytes, TWO_LINES);
}

/// (rules 31 and 73, Q-41, Q-77)
#[tokio::test]
async fn html_and_xml_and_arrays_are_not_ndjson() {
    for (content_type, body) in [
        ("text/plain", "<html>"),
        ("application/fhir+ndjson", "<Binary xmlns=\"http://hl7.org/fhir\">Jane Doe"),
        ("application/fhir+ndjson", "\n\n[{}]"),
        ("application/fhir+ndjson", "\u{feff}x"),
        ("application/fhir+ndjson", "not found"),
    ] {
        let server = Server::start(move |_| Answer::status(200).header("content-type", content_type).body(body)).await;
        let (bytes, receipt) = download(&server).await;
        let error = receipt.unwrap_err();
        assert!(matches!(error, Error::NotNdjson { .. }), "{error}");
        assert!(!error.to_string().contains("Jane"), "{error}");
        assert!(bytes.is_empty());
        assert_eq!(server.asked().len(), 1);
    }
    let server = Server::start(|_| Answer::ndjson(TWO_LINES).header("content-encoding", "br")).await;
    assert!(matches!(download(&server).await.1, Err(Error::NotNdjson { .. })));
}

/// (rule 86, Q-47)
#[tokio::test]
async fn a_byte_order_mark_and_blank_lines_may_come_before_the_first_resource() {
    for body in ["\u{feff}{\"a\":1}", "\r\n\n {\"a\":1}", "\u{feff}\n{\"a\":1}", "\n\n"] {
        let (first, rest) = body.as_bytes().split_at(1);
        let server = Server::start(move |_| Answer::ndjson("").chunked(&[first, rest])).await;
        let (bytes, receipt) = download(&server).await;
        assert!(receipt.is_ok(), "{receipt:?}");
        assert_eq!(bytes, body.as_bytes(), "handed on as it is");
    }
}

#[tokio::test]
async fn gone_denied_and_refused_files_are_different_errors() {
    for (status, expected) in
        [(404, "gone"), (410, "gone"), (401, "denied"), (403, "denied"), (400, "denied"), (405, "refused")]
    {
        let server =
            Server::start(move |asked| Answer::status(if asked.path == "/status" { 404 } else { status })).await;
        let kind = match download(&server).await.1.unwrap_err() {
            Error::FileGone { .. } => "gone",
            Error::FileDenied { .. } => "denied",
            Error::Refused { .. } => "refused",
            error => panic!("{error}"),
        };
        assert_eq!(kind, expected, "{status}");
        let asked = server.asked();
        assert_eq!(asked.iter().filter(|asked| asked.path.starts_with("/file")).count(), 1);
    }
}

#[tokio::test]
async fn the_size_limit_holds_for_the_decoded_file() {
    let mut bomb = b"{".to_vec();
    bomb.resize(10 << 20, b' ');
    let zipped = gzip(&bomb).await;
    let server = Server::start(move |_| Answer::ndjson(zipped.clone())).await;
    let mut config = config(&server);
    config.limits.max_file_bytes = 1 << 20;
    let client = Client::new(config).unwrap();
    let (bytes, receipt) = read(&client, &file(server.url("/file"))).await;
    assert!(matches!(receipt, Err(Error::TooLarge { limit_bytes: 1_048_576, .. })), "{receipt:?}");
    assert!(bytes.len() <= 1 << 20);
}

#[tokio::test]
async fn a_download_without_a_reader_stops() {
    let server = Server::start(|_| Answer::ndjson(TWO_LINES)).await;
    let (into, from) = mpsc::channel(1);
    drop(from);
    let file = file(server.url("/file"));
    assert!(matches!(client(&server).download(&file, &links(&file), into).await, Err(Error::Abandoned { .. })));

    let server = Server::start(|_| Answer::ndjson("").silent_after(TWO_LINES)).await;
    let (into, mut from) = mpsc::channel(1);
    let file = File { url: server.url("/file"), ..file };
    let client = client(&server);
    let reader = async move { from.recv().await.unwrap() };
    let links = links(&file);
    let (first, receipt) = tokio::join!(reader, client.download(&file, &links, into));
    assert_eq!(first, TWO_LINES);
    assert!(matches!(receipt, Err(Error::Abandoned { .. })), "{receipt:?}");
}

/// (rule 91, Q-42)
#[tokio::test]
async fn redirects_are_followed_but_not_for_ever() {
    for status in [301, 302, 303, 307, 308] {
        let server = Server::start(move |asked| match asked.path.as_str() {
            "/file?signature=s3cret" => Answer::status(status).header("location", "moved/here"),
            "/moved/here" => Answer::ndjson(TWO_LINES),
            path => panic!("{path}"),
        })
        .await;
        assert_eq!(download(&server).await.0, TWO_LINES, "{status}");
    }
    let server = Server::start(|_| Answer::status(302).header("location", "/file")).await;
    assert!(matches!(download(&server).await.1, Err(Error::TooManyRedirects { limit: 5, .. })));
    assert_eq!(server.asked().len(), 6);
    let server = Server::start(|_| Answer::status(302).header("location", "http://files.example.org/1")).await;
    assert!(matches!(download(&server).await.1, Err(Error::UnusableUrl { .. })));
}

/// (Q-17)
#[tokio::test]
async fn a_file_in_a_bucket_is_refused_with_its_scheme() {
    let server = Server::start(|_| Answer::status(500)).await;
    let file = file("s3://bucket/Patient.ndjson?signature=s3cret".parse().unwrap());
    let error = read(&client(&server), &file).await.1.unwrap_err();
    assert_eq!(error.to_string(), "Patient file 1 of 1: a s3: URL cannot be fetched, only https and http can");
}

/// (rule 73)
#[tokio::test]
async fn ndjson_that_is_called_a_page_is_read_and_a_page_is_an_outage() {
    let html = |body: &[u8]| Answer::status(200).header("content-type", "text/html; charset=UTF-8").body(body);
    let server = Server::start(move |_| html(TWO_LINES)).await;
    assert_eq!(download(&server).await.0, TWO_LINES);

    let mut turn = 0;
    let server = Server::start(move |_| {
        turn += 1;
        if turn < 5 { html(b"<html>maintenance") } else { Answer::ndjson(TWO_LINES) }
    })
    .await;
    assert_eq!(download(&server).await.0, TWO_LINES);
    let server = Server::start(move |_| html(b"<html>maintenance")).await;
    let (_, receipt) = read(&impatient(&server), &file(server.url("/file"))).await;
    assert!(matches!(receipt, Err(Error::Unreachable { .. })), "{receipt:?}");
}

#[tokio::test]
async fn a_204_is_an_empty_file_but_not_after_some_of_it_was_read() {
    let server = Server::start(|_| Answer::status(204)).await;
    let (bytes, receipt) = download(&server).await;
    assert_eq!((bytes.len(), receipt.unwrap().bytes), (0, 0));
    let mut turn = 0;
    let server = Server::start(move |_| {
        turn += 1;
        if turn == 1 { Answer::ndjson(TWO_LINES).cut_after(10) } else { Answer::status(204) }
    })
    .await;
    assert!(matches!(download(&server).await.1, Err(Error::FileChanged { .. })));
}

/// (rule 78)
#[tokio::test]
async fn a_limit_of_the_rate_is_waited_for_longer_than_an_outage() {
    let mut turn = 0;
    let server = Server::start(move |_| {
        turn += 1;
        if turn < 40 { Answer::status(429) } else { Answer::ndjson(TWO_LINES) }
    })
    .await;
    let mut config = config(&server);
    config.http.outage_patience = Duration::from_secs(2);
    config.http.retry_wait = WaitRange::new(Duration::from_millis(60), Duration::from_millis(70)).unwrap();
    let (bytes, receipt) = read(&Client::new(config).unwrap(), &file(server.url("/file"))).await;
    assert!(receipt.is_ok(), "{receipt:?}");
    assert_eq!(bytes, TWO_LINES);
}

#[tokio::test]
async fn a_file_that_drips_is_given_up() {
    let server = Server::start(|_| Answer::ndjson("").silent_after(&TWO_LINES[..20])).await;
    let mut config = config(&server);
    config.limits.max_transfer_time = Duration::from_millis(300);
    let (_, receipt) = read(&Client::new(config).unwrap(), &file(server.url("/file"))).await;
    assert!(matches!(receipt, Err(Error::TransferTime { .. })), "{receipt:?}");
}
