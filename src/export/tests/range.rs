//! Transfers that are cut go on where they were cut, if the server can say that it is still the same file.

use super::{server::Asked, *};

const LINES: &[u8] = b"{\"resourceType\":\"Patient\",\"id\":\"1\"}\n{\"resourceType\":\"Patient\",\"id\":\"2\"}\n";
const ETAG: &str = "\"version 1\"";
const LONG_AGO: &str = "Fri, 20 Nov 2026 10:00:00 GMT";
const NOW: &str = "Sat, 21 Nov 2026 10:00:00 GMT";

/// Cases by their names.
type Answers = Vec<(&'static str, Box<dyn Fn() -> Answer + Send>)>;

/// Where a request wants to go on.
fn from(asked: &Asked) -> Option<usize> {
    asked.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

fn whole(body: &[u8]) -> Answer {
    Answer::ndjson(body).header("accept-ranges", "bytes").header("etag", ETAG)
}

fn rest(body: &[u8], from: usize) -> Answer {
    let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
    let answer = Answer::status(206).header("content-type", "application/fhir+ndjson").header("etag", ETAG);
    answer.header("content-range", range).body(&body[from..])
}

async fn download(server: &Server) -> (Vec<u8>, Result<Receipt, Error>) {
    let file = file(server.url("/file?signature=s3cret"));
    read_by(&client(server), &file, &links(&file)).await
}

/// The file arrived as it is; `requests` were needed.
async fn assert_arrives(server: &Server, body: &[u8], requests: usize, case: &str) {
    let (bytes, receipt) = download(server).await;
    let receipt = receipt.unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!((bytes.as_slice(), receipt.bytes, server.asked().len()), (body, body.len() as u64, requests), "{case}");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
    assert_eq!(receipt.sha256.unwrap(), digest.as_ref(), "{case}");
}

/// (rule 77, Q-46)
#[tokio::test]
async fn a_transfer_goes_on_where_it_was_cut_wherever_that_is() {
    for at in 1..LINES.len() {
        let server = Server::start(move |asked| match from(asked) {
            Some(from) => rest(LINES, from),
            None => whole(LINES).cut_after(at),
        })
        .await;
        assert_arrives(&server, LINES, 2, &format!("cut at {at}")).await;
        assert_eq!((from(&server.asked()[1]), server.asked()[1].header("if-range")), (Some(at), Some(ETAG)));
    }
}

/// (rule 77, Q-46)
#[tokio::test]
async fn a_gzip_stream_goes_on_where_it_was_cut_wherever_that_is() {
    let zipped = gzip(LINES).await;
    for at in 1..zipped.len() {
        let body = zipped.clone();
        let server = Server::start(move |asked| match from(asked) {
            Some(from) => rest(&body, from).header("content-encoding", "gzip"),
            None => whole(&body).header("content-encoding", "gzip").cut_after(at),
        })
        .await;
        assert_arrives(&server, LINES, 2, &format!("cut at {at}")).await;
    }
}

#[tokio::test]
async fn a_transfer_that_is_cut_again_and_again_goes_on_each_time() {
    let server = Server::start(|asked| match from(asked) {
        Some(from) if from + 10 < LINES.len() => rest(LINES, from).cut_after(10),
        Some(from) => rest(LINES, from),
        None => whole(LINES).cut_after(10),
    })
    .await;
    assert_arrives(&server, LINES, LINES.len().div_ceil(10), "ten bytes at a time").await;
}

/// (rule 77, Q-85)
#[tokio::test]
async fn only_a_strong_validator_of_a_server_that_serves_ranges_lets_a_transfer_go_on() {
    let (ranges, date) = (("accept-ranges", "bytes"), ("date", NOW));
    for (headers, goes_on) in [
        (vec![ranges, ("etag", ETAG)], true),
        (vec![ranges, date, ("last-modified", LONG_AGO)], true),
        (vec![ranges, date, ("last-modified", LONG_AGO), ("etag", "W/\"weak\"")], true),
        (vec![("etag", ETAG)], false),
        (vec![("accept-ranges", "none"), ("etag", ETAG)], false),
        (vec![ranges], false),
        (vec![ranges, ("etag", "W/\"weak\"")], false),
        (vec![ranges, ("last-modified", LONG_AGO)], false),
        (vec![ranges, date, ("last-modified", NOW)], false),
    ] {
        let case = format!("{headers:?}");
        let mut turn = 0;
        let server = Server::start(move |asked| {
            turn += 1;
            let answer = match from(asked) {
                Some(from) => rest(LINES, from),
                None if turn == 1 => Answer::ndjson(LINES).cut_after(30),
                None => Answer::ndjson(LINES),
            };
            headers.iter().fold(answer, |answer, (name, value)| answer.header(name, *value))
        })
        .await;
        assert_arrives(&server, LINES, 2, &case).await;
        assert_eq!(from(&server.asked()[1]).is_some(), goes_on, "{case}");
    }
}

/// (rule 77, Q-46)
#[tokio::test]
async fn a_server_that_sends_the_whole_file_instead_is_not_asked_a_third_time() {
    let mut turn = 0;
    let server = Server::start(move |_| {
        turn += 1;
        if turn == 1 { whole(LINES).cut_after(30) } else { whole(LINES) }
    })
    .await;
    assert_arrives(&server, LINES, 2, "200 to a range").await;
}

/// (rule 77)
#[tokio::test]
async fn a_file_that_has_changed_is_never_continued() {
    let changed: &[u8] = b"{\"resourceType\":\"Patient\",\"id\":\"3\"}\n{\"resourceType\":\"Patient\",\"id\":\"2\"}\n";
    let server = Server::start(move |asked| match from(asked) {
        Some(_) => whole(changed),
        None => whole(LINES).cut_after(40),
    })
    .await;
    let (bytes, receipt) = download(&server).await;
    assert!(matches!(receipt, Err(Error::FileChanged { .. })), "{receipt:?}");
    assert_eq!(bytes, LINES[..40]);
}

/// (rule 77)
#[tokio::test]
async fn a_rest_that_is_not_the_one_that_was_asked_for_is_not_used() {
    let bad = |name: &'static str, value: &'static str| {
        move || Answer::status(206).header(name, value).body("garbage that must not arrive")
    };
    let total = LINES.len();
    let with_range = |range: String, etag: &'static str| {
        Answer::status(206).header("content-range", range).header("etag", etag).body("garbage that must not arrive")
    };
    let answers: Answers = vec![
        ("no Content-Range", Box::new(bad("x-nothing", "1"))),
        ("another start", Box::new(move || with_range(format!("bytes 29-{}/{total}", total - 1), ETAG))),
        ("another length", Box::new(move || with_range(format!("bytes 30-{total}/{}", total + 1), ETAG))),
        ("an end before the end", Box::new(move || with_range(format!("bytes 30-56/{total}"), ETAG))),
        ("no word about the end", Box::new(move || with_range("bytes 30-56/*".to_owned(), ETAG))),
        ("another ETag", Box::new(move || with_range(format!("bytes 30-{}/{total}", total - 1), "\"version 2\""))),
        (
            "another encoding",
            Box::new(move || {
                with_range(format!("bytes 30-{}/{total}", total - 1), ETAG).header("content-encoding", "gzip")
            }),
        ),
        ("not satisfiable", Box::new(|| Answer::status(416).header("content-range", "bytes */5"))),
        ("an end before the announced one", Box::new(|| Answer::status(416).header("content-range", "bytes */30"))),
        ("not satisfiable, without a length", Box::new(|| Answer::status(416))),
    ];
    for (case, answer) in answers {
        let mut turn = 0;
        let server = Server::start(move |asked| {
            turn += 1;
            match from(asked) {
                Some(_) => answer(),
                None if turn == 1 => whole(LINES).cut_after(30),
                None => whole(LINES),
            }
        })
        .await;
        assert_arrives(&server, LINES, 3, case).await;
    }
}

#[tokio::test]
async fn a_rest_whose_body_is_shorter_than_its_header_says_is_continued() {
    let mut turn = 0;
    let server = Server::start(move |asked| {
        turn += 1;
        match from(asked) {
            Some(from) if turn == 2 => rest(LINES, from).chunked(&[&LINES[from..from + 10]]),
            Some(from) => rest(LINES, from),
            None => whole(LINES).cut_after(30),
        }
    })
    .await;
    assert_arrives(&server, LINES, 3, "ten bytes of the rest").await;
}

#[tokio::test]
async fn a_body_without_its_end_is_complete_where_the_server_says_that_nothing_is_left() {
    let server = Server::start(|asked| match from(asked) {
        Some(from) => Answer::status(416).header("content-range", format!("bytes */{from}")),
        None => whole(LINES).chunked_without_end(&[LINES]),
    })
    .await;
    assert_arrives(&server, LINES, 2, "only the last chunk was cut").await;
}
