//! Links that expire: the manifest is fetched again, once for all, and only the same export gives new links.

use std::sync::Mutex;

use bytes::Bytes;
use futures::future::join_all;
use tokio::sync::mpsc;

use super::{server::Asked, *};
use crate::{export::manifest::Pages, fhir::parse_instant};

const LINES: &[u8] = b"{\"resourceType\":\"Patient\",\"id\":\"1\"}\n{\"resourceType\":\"Patient\",\"id\":\"2\"}\n";
const TIME: &str = "2026-11-20T10:00:00Z";

/// A manifest whose Patient files have these URLs and counts.
fn body(time: &str, files: &[(&str, u64)]) -> String {
    let entries = files.iter().map(|(url, count)| format!(r#"{{"type":"Patient","url":"{url}","count":{count}}}"#));
    let output = entries.collect::<Vec<_>>().join(",");
    format!(r#"{{"transactionTime":"{time}","requiresAccessToken":false,"output":[{output}]}}"#)
}

fn completed(server: &Server, body: &str) -> Completed {
    let mut pages = Pages::default();
    pages.add(body.as_bytes(), &server.url("/status")).unwrap();
    Completed { job: job(server), manifest: Arc::new(pages.manifest(false)), server_time: None }
}

/// A server whose files are at `answer`, and the downloads of all files of `first` while later manifests are `later`.
struct Case {
    server: Server,
    client: Client,
    completed: Completed,
    links: Links,
}

impl Case {
    async fn new(first: &str, later: &str, mut answer: impl FnMut(&Asked) -> Answer + Send + 'static) -> Self {
        let later = later.to_owned();
        let server = Server::start(move |asked| match asked.path.as_str() {
            "/status" => Answer::json(&later),
            _ => answer(asked),
        })
        .await;
        let client = client(&server);
        let completed = completed(&server, first);
        let links = Links::new(completed.clone());
        Self { server, client, completed, links }
    }

    async fn download(&self, file: &File) -> Result<Vec<u8>, Error> {
        let (bytes, receipt) = read_by(&self.client, file, &self.links).await;
        receipt.map(|_| bytes)
    }

    async fn download_all(&self) -> Vec<Result<Vec<u8>, Error>> {
        join_all(self.completed.manifest.output.iter().map(|file| self.download(file))).await
    }

    fn count(&self, path: &str) -> usize {
        self.server.asked().iter().filter(|asked| asked.path == path).count()
    }
}

fn old_links_are_refused(status: u16) -> impl FnMut(&Asked) -> Answer + Send + 'static {
    move |asked| if asked.path.ends_with("old") { Answer::status(status) } else { Answer::ndjson(LINES) }
}

/// (rule 61, Q-56)
#[tokio::test]
async fn a_link_that_has_expired_is_replaced_by_that_of_a_fresh_manifest() {
    for status in [400, 403, 404, 410] {
        let (first, later) = (body(TIME, &[("/1?sig=old", 2)]), body(TIME, &[("/1?sig=new", 2)]));
        let case = Case::new(&first, &later, old_links_are_refused(status)).await;
        let file = &case.completed.manifest.output[0];
        assert_eq!(case.download(file).await.unwrap(), LINES, "{status}");
        assert_eq!((case.count("/1?sig=old"), case.count("/status"), case.count("/1?sig=new")), (1, 1, 1), "{status}");
        case.download(file).await.unwrap();
        assert_eq!((case.count("/1?sig=old"), case.count("/status")), (1, 1), "the new link is kept");
    }
}

/// (rule 61)
#[tokio::test]
async fn all_workers_share_one_request_for_the_manifest() {
    let urls = |sig: &str| (1..=4).map(|number| format!("/{number}?sig={sig}")).collect::<Vec<_>>();
    let of = |urls: &[String]| body(TIME, &urls.iter().map(|url| (url.as_str(), 2)).collect::<Vec<_>>());
    let (old, new) = (urls("old"), urls("new"));
    let case = Case::new(&of(&old), &of(&new), old_links_are_refused(403)).await;
    for bytes in case.download_all().await {
        assert_eq!(bytes.unwrap(), LINES);
    }
    assert_eq!(case.count("/status"), 1);
    assert!(new.iter().all(|url| case.count(url) == 1), "each by its own new link");
}

/// (rules 61 and 77)
#[tokio::test]
async fn a_download_that_had_begun_goes_on_by_the_new_link_and_each_byte_arrives_once() {
    let mut turn = 0;
    let (first, later) = (body(TIME, &[("/1?sig=old", 2)]), body(TIME, &[("/1?sig=new", 2)]));
    let case = Case::new(&first, &later, move |asked| {
        turn += 1;
        match asked.path.as_str() {
            "/1?sig=old" if turn == 1 => Answer::ndjson(LINES).cut_after(40),
            "/1?sig=old" => Answer::status(403),
            _ => Answer::ndjson(LINES),
        }
    })
    .await;
    assert_eq!(case.download(&case.completed.manifest.output[0]).await.unwrap(), LINES);
    assert_eq!((case.count("/1?sig=old"), case.count("/1?sig=new")), (2, 1));
}

/// (rules 61 and 77)
#[tokio::test]
async fn by_the_new_link_the_transfer_goes_on_where_it_was_cut() {
    let (first, later) = (body(TIME, &[("/1?sig=old", 2)]), body(TIME, &[("/1?sig=new", 2)]));
    let case = Case::new(&first, &later, |asked| match (asked.path.as_str(), asked.header("range")) {
        ("/1?sig=old", None) => {
            let whole = Answer::ndjson(LINES).header("accept-ranges", "bytes").header("etag", "\"1\"");
            whole.cut_after(40)
        }
        ("/1?sig=new", Some("bytes=40-")) => {
            let length = LINES.len();
            let range = format!("bytes 40-{}/{length}", length - 1);
            Answer::status(206).header("content-range", range).header("etag", "\"1\"").body(&LINES[40..])
        }
        _ => Answer::status(403),
    })
    .await;
    assert_eq!(case.download(&case.completed.manifest.output[0]).await.unwrap(), LINES);
    assert_eq!((case.count("/1?sig=old"), case.count("/status"), case.count("/1?sig=new")), (2, 1, 1));
}

/// (rule 61)
#[tokio::test]
async fn links_that_expire_again_and_again_are_renewed_as_often() {
    let signed = Arc::new(Mutex::new(0));
    let now = Arc::clone(&signed);
    let links = |sig: u32| -> String {
        let urls: Vec<_> = (1..=40).map(|number| format!("/{number}?sig={sig}")).collect();
        body(TIME, &urls.iter().map(|url| (url.as_str(), 2)).collect::<Vec<_>>())
    };
    let server = Server::start(move |asked| {
        let mut now = now.lock().unwrap();
        if asked.path == "/status" {
            *now += 1;
            return Answer::json(&links(*now));
        }
        if asked.path.ends_with(&format!("sig={now}")) { Answer::ndjson(LINES) } else { Answer::status(403) }
    })
    .await;
    let completed = completed(&server, &links(0));
    let (client, links) = (client(&server), Links::new(completed.clone()));
    for file in &completed.manifest.output {
        let (into, mut from) = mpsc::channel::<Bytes>(1);
        let reader = async { while from.recv().await.is_some() {} };
        tokio::join!(reader, client.download(file, &links, into)).1.unwrap();
        // What was signed for this file has expired for the next.
        *signed.lock().unwrap() += 1;
    }
    assert!(server.asked().iter().filter(|asked| asked.path == "/status").count() > 10);
}

/// The manifest of these files, signed anew with each poll.
fn signed_anew(files: u32, sig: u32) -> String {
    let urls: Vec<_> = (1..=files).map(|number| format!("/{number}?sig={sig}")).collect();
    body(TIME, &urls.iter().map(|url| (url.as_str(), 2)).collect::<Vec<_>>())
}

/// A server whose links of one manifest serve this many requests together.
async fn server_of_links_for(requests: u32, files: u32) -> Server {
    let (mut now, mut used) = (0, 0);
    Server::start(move |asked| {
        if asked.path == "/status" {
            (now, used) = (now + 1, 0);
            return Answer::json(&signed_anew(files, now));
        }
        if !asked.path.ends_with(&format!("sig={now}")) || used == requests {
            return Answer::status(403);
        }
        used += 1;
        Answer::ndjson(LINES)
    })
    .await
}

/// (rule 61)
#[tokio::test]
async fn no_file_starves_where_the_links_of_a_manifest_serve_fewer_requests_than_there_are_downloads() {
    for requests in [1, 2] {
        let server = server_of_links_for(requests, 16).await;
        let completed = completed(&server, &signed_anew(16, 0));
        let (client, links) = (client(&server), Links::new(completed.clone()));
        let downloads = completed.manifest.output.iter().map(|file| read_by(&client, file, &links));
        for (bytes, receipt) in join_all(downloads).await {
            receipt.unwrap();
            assert_eq!(bytes, LINES, "{requests} by each manifest");
        }
    }
}

/// (rule 61)
#[tokio::test]
async fn a_server_that_signs_each_link_anew_and_refuses_all_of_them_is_asked_three_times_for_a_file() {
    let server = server_of_links_for(0, 1).await;
    let completed = completed(&server, &signed_anew(1, 0));
    let links = Links::new(completed.clone());
    let (_, receipt) = read_by(&client(&server), &completed.manifest.output[0], &links).await;
    let error = receipt.unwrap_err();
    assert!(matches!(error, Error::FileDenied { .. }), "{error}");
    let asked = server.asked();
    let polls = asked.iter().filter(|asked| asked.path == "/status").count();
    assert_eq!((asked.len() - polls, polls), (3, 2), "the old link, the shared new one, and one of its own");
}

/// (rule 61)
#[tokio::test]
async fn a_link_that_stays_refused_fails_its_file_as_without_a_fresh_manifest() {
    for (status, expected) in [(400, "denied"), (403, "denied"), (404, "gone"), (410, "gone")] {
        let manifest = body(TIME, &[("/1", 2)]);
        let case = Case::new(&manifest, &manifest, move |_| Answer::status(status)).await;
        let kind = match case.download(&case.completed.manifest.output[0]).await.unwrap_err() {
            Error::FileGone { .. } => "gone",
            Error::FileDenied { .. } => "denied",
            error => panic!("{error}"),
        };
        assert_eq!((kind, case.count("/1"), case.count("/status")), (expected, 2, 1), "{status}");
    }
}

#[tokio::test]
async fn a_link_with_a_query_that_the_fresh_manifest_repeats_asks_for_another_export() {
    for status in [400, 403] {
        let manifest = body(TIME, &[("/1?sig=old", 2)]);
        let case = Case::new(&manifest, &manifest, move |_| Answer::status(status)).await;
        let error = case.download(&case.completed.manifest.output[0]).await.unwrap_err();
        assert!(matches!(error, Error::LinkExpired { .. }) && !error.to_string().contains("sig"), "{error}");
    }
}

/// (rule 61)
#[tokio::test]
async fn a_manifest_of_something_else_gives_no_links() {
    let first = body(TIME, &[("/1?sig=old", 2), ("/2?sig=old", 5)]);
    for (later, what) in [
        (body("2026-11-21T10:00:00Z", &[("/1", 2), ("/2", 5)]), "it has another transactionTime"),
        (body(TIME, &[("/1", 2)]), "the files of its output are others"),
        (body(TIME, &[("/1", 2), ("/2", 5), ("/3", 1)]), "the files of its output are others"),
        (body(TIME, &[("/1", 2), ("/2", 4)]), "the files of its output are others"),
    ] {
        let case = Case::new(&first, &later, old_links_are_refused(403)).await;
        for downloaded in case.download_all().await {
            let error = downloaded.unwrap_err();
            assert!(matches!(&error, Error::ManifestChanged { what: found, .. } if found == what), "{error}");
        }
        assert_eq!(case.count("/status"), 1);
    }
}

#[tokio::test]
async fn a_server_that_is_out_of_reach_or_has_lost_the_job_gives_no_links() {
    let server = Server::start(|asked| Answer::status(if asked.path == "/status" { 503 } else { 404 })).await;
    let completed_export = completed(&server, &body(TIME, &[("/1", 2)]));
    let (client, links) = (impatient(&server), Links::new(completed_export.clone()));
    let download = |file: File| {
        let (client, links) = (&client, &links);
        async move { client.download(&file, links, mpsc::channel(1).0).await.unwrap_err() }
    };
    let error = download(completed_export.manifest.output[0].clone()).await;
    assert!(matches!(error, Error::LinkNotRenewed { .. }), "{error}");

    let server = Server::start(|_| Answer::status(404)).await;
    let completed_export = completed(&server, &body(TIME, &[("/1", 2)]));
    let links = Links::new(completed_export.clone());
    let (into, _from) = mpsc::channel(1);
    let error = super::client(&server).download(&completed_export.manifest.output[0], &links, into).await.unwrap_err();
    assert!(matches!(error, Error::FileGone { .. }), "{error}");
    assert_eq!(server.asked().len(), 2, "a job that was complete is not waited for");
}

#[tokio::test]
async fn a_status_url_that_says_later_and_later_ends_the_renewal_after_the_patience_with_an_outage() {
    for status in [202, 429] {
        let server =
            Server::start(move |asked| Answer::status(if asked.path == "/status" { status } else { 403 })).await;
        let completed = completed(&server, &body(TIME, &[("/1", 2)]));
        let (client, links) = (impatient(&server), Links::new(completed.clone()));
        let (into, _from) = mpsc::channel(1);
        let download = client.download(&completed.manifest.output[0], &links, into);
        let error = tokio::time::timeout(Duration::from_secs(10), download).await.expect("it ends").unwrap_err();
        assert!(matches!(error, Error::LinkNotRenewed { .. }), "{status}: {error}");
    }
}

/// (rule 61)
#[tokio::test]
async fn fresh_manifests_that_help_nobody_have_a_limit() {
    let urls: Vec<_> = (1..=40).map(|number| format!("/{number}")).collect();
    let manifest = body(TIME, &urls.iter().map(|url| (url.as_str(), 2)).collect::<Vec<_>>());
    let case = Case::new(&manifest, &manifest, |_| Answer::status(403)).await;
    for file in &case.completed.manifest.output {
        assert!(matches!(case.download(file).await, Err(Error::FileDenied { .. })));
    }
    assert_eq!(case.count("/status"), 10);
}

/// (rule 61, Q-40)
#[tokio::test]
async fn the_same_file_is_found_by_what_tells_the_files_apart() {
    for (first, later, what) in [
        (["/a?sig=old", "/b?sig=old"], ["/b?sig=new", "/a?sig=new"], "the address"),
        (["/f?id=a&sig=1old", "/f?id=b&sig=2old"], ["/f?id=b&sig=3", "/f?id=a&sig=4"], "a parameter of the query"),
        (["/x/a?old", "/x/b?old"], ["/y/b", "/y/a"], "the last part of the path"),
    ] {
        let files = |urls: [&str; 2]| body(TIME, &urls.map(|url| (url, 2)));
        let case = Case::new(&files(first), &files(later), |asked| {
            let is_a = asked.path.contains("/a") || asked.path.contains("id=a");
            let id = if is_a { "a" } else { "b" };
            if asked.path.ends_with("old") {
                return Answer::status(403);
            }
            Answer::ndjson(format!("{{\"id\":\"{id}\"}}\n"))
        })
        .await;
        let downloaded = case.download_all().await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
        assert_eq!(downloaded, [b"{\"id\":\"a\"}\n", b"{\"id\":\"b\"}\n"], "{what}");
    }
    let (first, later) = (body(TIME, &[("/1/x?old", 2), ("/2/x?old", 3)]), body(TIME, &[("/3/y", 2), ("/4/z", 3)]));
    let case = Case::new(&first, &later, old_links_are_refused(404)).await;
    assert!(case.download_all().await.iter().all(Result::is_ok), "by their counts, where nothing else names them");
    assert_eq!((case.count("/3/y"), case.count("/4/z")), (1, 1));
}

/// A manifest of files of these types, without counts.
fn body_of(files: &[(&str, &str)]) -> String {
    let entries = files.iter().map(|(of, url)| format!(r#"{{"type":"{of}","url":"{url}"}}"#)).collect::<Vec<_>>();
    format!(r#"{{"transactionTime":"{TIME}","requiresAccessToken":false,"output":[{}]}}"#, entries.join(","))
}

#[tokio::test]
async fn files_that_only_type_and_part_together_name_are_not_exchanged() {
    let entries = [("Patient", "1"), ("Patient", "2"), ("Observation", "1")];
    let of = |order: [usize; 3], sig: &str| {
        let files = order.map(|at| entries[at]);
        let urls = files.map(|(of, part)| format!("/dl?type={of}&part={part}&sig={part}{of}{sig}"));
        body_of(&[0, 1, 2].map(|at| (files[at].0, urls[at].as_str())))
    };
    let case = Case::new(&of([0, 1, 2], "old"), &of([1, 0, 2], "new"), |asked| {
        if asked.path.ends_with("old") {
            return Answer::status(403);
        }
        let name = asked.path.split("&sig=").next().unwrap_or_default();
        Answer::ndjson(format!("{{\"id\":\"{name}\"}}\n"))
    })
    .await;
    let downloaded = case.download_all().await.into_iter().map(Result::unwrap);
    let downloaded: Vec<_> = downloaded.map(|bytes| String::from_utf8(bytes).unwrap()).collect();
    let expected = entries.map(|(of, part)| format!("{{\"id\":\"/dl?type={of}&part={part}\"}}\n"));
    assert_eq!(downloaded, expected);
}

#[tokio::test]
async fn files_that_nothing_names_or_that_two_parts_name_differently_are_others() {
    for (first, later, what) in [
        (["/f?sig=1old", "/f?sig=2old"], ["/f?sig=3", "/f?sig=4"], "two files that only their order tells apart"),
        (["/f?a=1&b=1&old", "/f?a=2&b=2&old"], ["/f?a=1&b=2", "/f?a=2&b=1"], "two parameters"),
        (["/1?a=1&old", "/2?a=2&old"], ["/1?a=2", "/2?a=1"], "the address and a parameter"),
    ] {
        let files = |urls: [&str; 2]| body_of(&urls.map(|url| ("Patient", url)));
        let case = Case::new(&files(first), &files(later), old_links_are_refused(403)).await;
        for downloaded in case.download_all().await {
            assert!(matches!(downloaded, Err(Error::ManifestChanged { .. })), "{what}: {downloaded:?}");
        }
    }
    let first = body_of(&[("Patient", "/1/x?old"), ("Observation", "/2/x?old")]);
    let later = body_of(&[("Observation", "/3/y"), ("Patient", "/4/z")]);
    let case = Case::new(&first, &later, old_links_are_refused(404)).await;
    let patients = &case.completed.manifest.output[0];
    assert_eq!(case.download(patients).await.unwrap(), LINES, "the only file of its type needs no other name");
    assert_eq!((case.count("/4/z"), case.count("/3/y")), (1, 0));
}

#[tokio::test]
async fn a_transaction_time_beyond_the_bound_may_differ() {
    let (first, later) = (body(TIME, &[("/1?old", 2)]), body("2026-11-20T10:30:00Z", &[("/1?new", 2)]));
    let mut case = Case::new(&first, &later, old_links_are_refused(403)).await;
    case.completed.server_time = parse_instant("2026-11-20T09:00:00Z").map(Into::into);
    case.links = Links::new(case.completed.clone());
    assert_eq!(case.download(&case.completed.manifest.output[0]).await.unwrap(), LINES);
}
