//! Limits: each has a setting, and the error names it.

use super::{
    super::Limits,
    authorization::{SMART, smart_config},
    *,
};

fn line(id: usize) -> String {
    format!("{{\"resourceType\":\"Patient\",\"id\":\"{id}\"}}\n")
}

/// The error of a download with these settings.
async fn refused(server: &Server, change: impl FnOnce(&mut Config)) -> String {
    let mut config = config(server);
    config.http.outage_patience = Duration::ZERO;
    change(&mut config);
    let file = file(server.url("/file"));
    read_by(&Client::new(config).unwrap(), &file, &links(&file)).await.1.unwrap_err().to_string()
}

#[tokio::test]
async fn each_limit_of_a_file_is_named_by_its_setting_when_it_is_reached() {
    let whole = Server::start(|_| Answer::ndjson(line(1))).await;
    let silent = Server::start(|_| Answer::status(200).silent_after(b"{")).await;
    let cut = Server::start(|_| Answer::ndjson(line(1)).cut_after(3)).await;
    let milliseconds = Duration::from_millis;
    let error = refused(&whole, |config| config.limits.max_file_bytes = 3).await;
    assert!(error.contains("server.http.max_file_size"), "{error}");
    let error = refused(&silent, |config| config.limits.max_transfer_time = milliseconds(20)).await;
    assert!(error.contains("server.http.max_transfer_time"), "{error}");
    let error = refused(&silent, |config| config.http.idle_timeout = milliseconds(20)).await;
    assert!(error.contains("server.http.idle_timeout"), "{error}");
    let error = refused(&cut, |config| {
        config.http.max_requests_per_file = Some(1);
        config.http.outage_patience = Duration::from_secs(20);
    })
    .await;
    assert!(error.contains("server.http.max_requests_per_file"), "{error}");
    let too_slow = super::super::failure::Fault::TooSlow { bytes: 1, window: Duration::from_mins(2) };
    assert!(too_slow.way_out().contains("server.http.min_throughput"));
}

#[tokio::test]
async fn a_manifest_beyond_its_limit_names_the_setting_packed_or_not() {
    let text = format!(r#"{{"output":[],"transactionTime":"2026-11-20T10:00:00Z","x":"{}"}}"#, "x".repeat(5000));
    let packed = gzip(text.as_bytes()).await;
    for body in [text.into_bytes(), packed] {
        let server = Server::start(move |_| Answer::status(200).body(body.clone())).await;
        let mut config = config(&server);
        config.limits.max_manifest_bytes = 1000;
        let error = wait(job(&server), &Client::new(config).unwrap()).await.unwrap_err().to_string();
        assert!(error.contains("server.http.max_manifest_size"), "{error}");
    }
}

#[tokio::test]
async fn an_export_that_takes_longer_than_its_deadline_names_the_setting() {
    let server = Server::start(|_| Answer::status(202)).await;
    let mut config = config(&server);
    config.poll.deadline = Duration::from_millis(20);
    let error = wait(job(&server), &Client::new(config).unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("server.poll.deadline"), "{error}");
}

#[tokio::test]
async fn a_gzip_bomb_is_broken_off_and_a_file_that_packs_well_is_not() {
    // 32 MiB of one byte are 1,000 times smaller when packed, 32 MiB of one line 190 times.
    let same = gzip(&[b"{".as_slice(), &vec![b' '; 32 << 20]].concat()).await;
    let one_line = gzip(line(1).repeat((32 << 20) / line(1).len()).as_bytes()).await;
    let bomb = Server::start(move |_| Answer::ndjson(same.clone()).header("content-encoding", "gzip")).await;
    let error = refused(&bomb, |_| {}).await;
    assert!(error.contains("200 times") && error.contains("server.http.max_decompression_ratio"), "{error}");
    assert_eq!(bomb.asked().len(), 1, "and not requested again");
    let file = file(bomb.url("/file"));
    let allowed = Limits { max_decompression_ratio: 2000, ..Limits::default() };
    let client = Client::new(Config { limits: allowed, ..config(&bomb) }).unwrap();
    read_by(&client, &file, &links(&file)).await.1.unwrap();

    let well = Server::start(move |_| Answer::ndjson(one_line.clone()).header("content-encoding", "gzip")).await;
    let file = self::file(well.url("/file"));
    read_by(&super::client(&well), &file, &links(&file)).await.1.unwrap();
}

#[tokio::test]
async fn gzip_that_nobody_asked_for_is_unpacked_in_every_answer() {
    let [smart, token, outcome] = [
        SMART,
        r#"{"access_token":"t1"}"#,
        r#"{"resourceType":"OperationOutcome","issue":[{"severity":"error","code":"not-supported"}]}"#,
    ];
    let (smart, token, outcome) =
        (gzip(smart.as_bytes()).await, gzip(token.as_bytes()).await, gzip(outcome.as_bytes()).await);
    let manifest = gzip(br#"{"output":[],"transactionTime":"2026-11-20T10:00:00Z"}"#).await;
    let bomb = gzip(&vec![b' '; 4 << 20]).await;
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/fhir/.well-known/smart-configuration" => Answer::status(200).body(smart.clone()),
        "/token" => Answer::status(200).header("content-encoding", "gzip").body(token.clone()),
        "/status" => Answer::status(200).header("content-encoding", "gzip").body(manifest.clone()),
        "/bomb" => Answer::status(200).body(bomb.clone()),
        _ => Answer::status(400).body(outcome.clone()),
    })
    .await;
    let mut config = smart_config(&server);
    config.limits.max_manifest_bytes = 1 << 20;
    let client = Client::new(config).unwrap();
    let error = client.kick_off(&request(&[])).await.unwrap_err();
    assert!(error.to_string().contains("not-supported"), "{error}");
    assert!(wait(job(&server), &client).await.is_ok());
    let bomb = Job { status_url: server.url("/bomb"), ..job(&server) };
    assert!(matches!(wait(bomb, &client).await, Err(Error::TooLarge { .. })));
}
