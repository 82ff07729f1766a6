//! The pace of requests to one origin: what the server says about it, and what follows.

use std::{collections::VecDeque, sync::Mutex};

use futures::future::join_all;
use reqwest::StatusCode;
use tokio::time::{Instant, sleep};

use super::*;
use crate::{
    export::{
        failure::Fault,
        pace::{Paces, Pass},
        retry::Retries,
    },
    telemetry::metrics::Endpoint,
};

const TOO_MANY: StatusCode = StatusCode::TOO_MANY_REQUESTS;
const UNAVAILABLE: StatusCode = StatusCode::SERVICE_UNAVAILABLE;
/// Longer than any pause.
const LONG: Duration = Duration::from_mins(3);
const LINES: &[u8] = b"{\"resourceType\":\"Patient\",\"id\":\"1\"}\n";

fn url() -> Url {
    "https://ehr.example.org/files/1".parse().unwrap()
}

fn paces(max_requests_per_minute: Option<u32>) -> Paces {
    Paces::new(Config::new(url()).http.retry_wait, max_requests_per_minute)
}

/// How many downloads may begin at once.
async fn room(paces: &Paces) -> usize {
    let mut passes = Vec::new();
    while let Ok(pass) = tokio::time::timeout(LONG, paces.pass(&url(), Endpoint::File)).await {
        passes.push(pass);
    }
    passes.len()
}

/// As many downloads as there is room for, each with this answer.
async fn all_answered(paces: &Paces, status: StatusCode) {
    let mut passes: Vec<Pass> = Vec::new();
    while let Ok(pass) = tokio::time::timeout(LONG, paces.pass(&url(), Endpoint::File)).await {
        passes.push(pass);
    }
    for pass in &passes {
        pass.answered(status, None);
    }
}

/// (rule 78)
#[tokio::test(start_paused = true)]
async fn it_begins_with_two_downloads_and_adds_one_after_each_round_without_a_complaint() {
    let paces = paces(None);
    for expected in 2..8 {
        assert_eq!(room(&paces).await, expected);
        all_answered(&paces, StatusCode::OK).await;
    }
}

/// (rule 78, Q-44)
#[tokio::test(start_paused = true)]
async fn downloads_that_the_server_refuses_together_are_halved_once() {
    let paces = paces(None);
    for _ in 0..6 {
        all_answered(&paces, StatusCode::OK).await;
    }
    assert_eq!(room(&paces).await, 8);
    for (status, expected) in [(TOO_MANY, 4), (UNAVAILABLE, 2), (TOO_MANY, 1), (TOO_MANY, 1)] {
        all_answered(&paces, status).await;
        assert_eq!(room(&paces).await, expected);
    }
    all_answered(&paces, StatusCode::NOT_FOUND).await;
    assert_eq!(room(&paces).await, 1, "other errors say nothing about the pace");
    let pass = paces.pass(&url(), Endpoint::File).await;
    let (second, third) = (paces.pass(&url(), Endpoint::Status).await, paces.pass(&url(), Endpoint::KickOff).await);
    drop((pass, second, third));
}

/// (rule 78)
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_reset_halves_them_and_a_silence_does_not() {
    let paces = paces(None);
    for (fault, expected) in [(Fault::Idle(Duration::from_secs(1)), 2), (reset(), 1)] {
        paces.pass(&url(), Endpoint::File).await.failed(&fault);
        assert_eq!(room(&paces).await, expected);
    }
}

fn reset() -> Fault {
    Fault::Transport(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into())
}

/// (rule 78, Q-21)
#[tokio::test(start_paused = true)]
async fn a_pause_that_the_server_asks_for_holds_every_request_to_this_origin_and_no_other() {
    let paces = paces(None);
    paces.pass(&url(), Endpoint::Status).await.answered(TOO_MANY, Some(Duration::from_secs(30)));
    let began = Instant::now();
    drop(paces.pass(&"https://other.example.org/".parse().unwrap(), Endpoint::Status).await);
    assert_eq!(began.elapsed(), Duration::ZERO);
    drop(paces.pass(&url(), Endpoint::File).await);
    assert_eq!(began.elapsed().as_secs(), 30);
    paces.pass(&url(), Endpoint::File).await.answered(UNAVAILABLE, Some(Duration::from_hours(24)));
    drop(paces.pass(&url(), Endpoint::Status).await);
    assert_eq!(began.elapsed().as_secs(), 150, "no longer than server.http.retry_max_wait");
    paces.pass(&url(), Endpoint::KickOff).await.answered(TOO_MANY, Some(Duration::from_mins(1)));
    drop(paces.pass(&url(), Endpoint::File).await);
    assert_eq!(began.elapsed().as_secs(), 150, "a server that works on another export may send files");
}

#[tokio::test(start_paused = true)]
async fn a_token_or_a_poll_does_not_wait_for_a_download() {
    let paces = paces(None);
    let _downloads = (paces.pass(&url(), Endpoint::File).await, paces.pass(&url(), Endpoint::File).await);
    let began = Instant::now();
    drop(paces.pass(&url(), Endpoint::Status).await);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_download_begins_when_another_ends_even_if_those_before_it_in_the_queue_were_given_up() {
    let (paces, url) = (paces(None), url());
    let running = (paces.pass(&url, Endpoint::File).await, paces.pass(&url, Endpoint::File).await);
    let given_up = tokio::time::timeout(Duration::from_secs(1), paces.pass(&url, Endpoint::File)).await;
    assert!(given_up.is_err());
    let (ended, ()) = tokio::join!(paces.pass(&url, Endpoint::File), async move {
        sleep(Duration::from_secs(5)).await;
        drop(running);
    });
    drop(ended);
}

/// A host that counts the requests of the last minute.
struct Limited {
    per_minute: usize,
    recent: VecDeque<Instant>,
    requests: usize,
    refused: usize,
}

impl Limited {
    fn answer(&mut self) -> StatusCode {
        let now = Instant::now();
        self.requests += 1;
        while self.recent.front().is_some_and(|at| now - *at >= Duration::from_mins(1)) {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.per_minute {
            self.refused += 1;
            return TOO_MANY;
        }
        self.recent.push_back(now);
        StatusCode::OK
    }
}

/// (rule 78, Q-39)
#[tokio::test(start_paused = true)]
async fn a_thousand_files_of_a_host_with_sixty_requests_a_minute_need_hardly_more_than_a_thousand_requests() {
    for said in [Some(60), None] {
        let paces = paces(said);
        let host = Mutex::new(Limited { per_minute: 60, recent: VecDeque::new(), requests: 0, refused: 0 });
        let files = Mutex::new(1000);
        let worker = || async {
            while {
                let mut files = files.lock().unwrap();
                let is_left = *files > 0;
                *files -= i32::from(is_left);
                is_left
            } {
                let mut retries = Retries::new(&Config::new(url()).http, Endpoint::File);
                loop {
                    let pass = paces.pass(&url(), Endpoint::File).await;
                    let status = host.lock().unwrap().answer();
                    pass.answered(status, None);
                    sleep(Duration::from_millis(100)).await;
                    if status.is_success() {
                        break;
                    }
                    drop(pass);
                    let issues = Issues::default();
                    let fault = Fault::Status { status, retry_after: None, issues };
                    retries.pause("a file", fault).await.unwrap();
                }
            }
        };
        join_all((0..4).map(|_| worker())).await;
        let host = host.into_inner().unwrap();
        assert!(host.requests <= 1050, "{said:?}: {} requests, {} refused", host.requests, host.refused);
        assert!(said.is_none() || host.refused == 0, "{} refused", host.refused);
    }
}

///
#[tokio::test]
async fn a_file_is_not_requested_more_often_than_the_configuration_allows() {
    let server = Server::start(|_| Answer::ndjson(LINES).cut_after(5)).await;
    let mut config = config(&server);
    config.http.max_requests_per_file = Some(6);
    let file = file(server.url("/file"));
    let (_, receipt) = read_by(&Client::new(config).unwrap(), &file, &links(&file)).await;
    let error = receipt.unwrap_err();
    assert!(matches!(error, Error::TooManyRequests { limit: 6, .. }), "{error}");
    assert_eq!(server.asked().len(), 6);
}

/// This many files, each as soon as the one before has arrived.
async fn files(paces: &Paces, files: u32, took: Duration) {
    for _ in 0..files {
        let pass = paces.pass(&url(), Endpoint::File).await;
        sleep(took).await;
        pass.answered(StatusCode::OK, None);
    }
}

async fn time_of_a_poll(paces: &Paces) -> Duration {
    drop(paces.pass(&url(), Endpoint::Status).await);
    let began = Instant::now();
    drop(paces.pass(&url(), Endpoint::Status).await);
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn what_a_server_takes_between_two_complaints_is_its_rate_until_it_no_longer_complains() {
    let (paces, second) = (paces(None), Duration::from_secs(1));
    paces.pass(&url(), Endpoint::File).await.answered(TOO_MANY, Some(second));
    assert_eq!(time_of_a_poll(&paces).await, Duration::ZERO, "one complaint is not a rate");
    files(&paces, 39, second).await;
    paces.pass(&url(), Endpoint::File).await.answered(TOO_MANY, Some(second));
    sleep(second).await;
    let rate = time_of_a_poll(&paces).await;
    assert!(rate.abs_diff(second * 40 / 39) < Duration::from_millis(3), "forty seconds for 39 files, not {rate:?}");
    let mut before = rate;
    for shrinks in 1..=4 {
        files(&paces, 32, Duration::ZERO).await;
        let now = time_of_a_poll(&paces).await;
        assert!(now < before, "{shrinks}: {now:?}");
        before = now;
    }
    assert_eq!(before, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn time_without_files_says_nothing_about_the_rate() {
    let paces = paces(None);
    for _ in 0..2 {
        paces.pass(&url(), Endpoint::File).await.answered(TOO_MANY, Some(Duration::from_secs(1)));
        files(&paces, 20, Duration::ZERO).await;
        sleep(Duration::from_hours(12)).await;
    }
    assert_eq!(time_of_a_poll(&paces).await, Duration::ZERO);
}
