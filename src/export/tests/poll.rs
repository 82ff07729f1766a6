//! Polling: what is waited for, what is believed, which pages are read.

use std::sync::Mutex;

use reqwest::{StatusCode, header::HeaderValue};

use super::*;
use crate::{
    export::{Issues, failure::Fault, poll::Unchanged, verdict::PollFailures},
    fhir::TransactionTime,
};

const EMPTY: &str = r#"{"transactionTime":"2026-11-20T10:00:00Z","requiresAccessToken":false,"output":[],"error":[]}"#;

/// Gives these answers in turn, and then the last one again and again.
async fn answering(answers: Vec<fn() -> Answer>) -> Server {
    let mut turn = 0;
    Server::start(move |_| {
        turn += 1;
        answers[(turn - 1).min(answers.len() - 1)]()
    })
    .await
}

fn old_job(server: &Server, minutes: i64) -> Job {
    Job { kicked_off_locally_at: local_now() - chrono::TimeDelta::minutes(minutes), ..job(server) }
}

/// (rules 38 to 42, Q-20, Q-80)
#[tokio::test]
async fn a_job_is_polled_until_its_manifest_is_complete_and_progress_is_reported() {
    let server = answering(vec![
        || {
            Answer::status(202)
                .header("x-progress", "50%\tof the records of Erika Mustermann")
                .header("retry-after", "120")
        },
        || Answer::status(429).header("retry-after", "1795219106502"),
        || Answer::json(EMPTY),
    ])
    .await;
    let reported = Mutex::new(Vec::new());
    let completed =
        job(&server).wait(&client(&server), &|progress| reported.lock().unwrap().push(progress)).await.unwrap();
    assert_eq!(completed.manifest.transaction_time.unwrap().to_string(), "2026-11-20T10:00:00Z");
    let reported = reported.into_inner().unwrap();
    assert_eq!(reported.len(), 2);
    assert_eq!(reported[0].polls, 1);
    assert_eq!(reported[0].retry_in, Duration::from_millis(3), "Retry-After is clamped");
    assert_eq!(reported[0].x_progress.as_deref(), Some("50%"));
    assert_eq!(server.asked()[0].header("accept"), Some("application/json"));
}

/// (rule 45, Q-19)
#[tokio::test]
async fn a_404_right_after_the_kick_off_is_waited_for() {
    let server = answering(vec![|| Answer::status(404), || Answer::json(EMPTY)]).await;
    assert!(wait(job(&server), &client(&server)).await.is_ok());
}

/// (rule 45, Q-27)
#[tokio::test]
async fn a_404_later_or_a_410_means_that_the_job_is_lost() {
    let server = answering(vec![|| Answer::status(404)]).await;
    let error = wait(old_job(&server, 2), &client(&server)).await.unwrap_err();
    assert!(matches!(error, Error::JobLost { .. }), "{error}");
    let server = answering(vec![|| Answer::status(410)]).await;
    assert!(matches!(wait(job(&server), &client(&server)).await, Err(Error::JobLost { .. })));
}

/// (rule 43, Q-22)
#[tokio::test]
async fn transient_issues_are_waited_for() {
    let mut turn = 0;
    let server = Server::start(move |_| {
        turn += 1;
        match turn {
            ..10 => Answer::outcome(500, "transient"),
            10..20 => Answer::outcome(400, "throttled"),
            _ => Answer::json(EMPTY),
        }
    })
    .await;
    let mut config = config(&server);
    config.poll.patience_with_words = Duration::from_secs(20);
    assert!(wait(job(&server), &Client::new(config).unwrap()).await.is_ok());
    assert_eq!(server.asked().len(), 20);
}

/// (rule 43, Q-81)
#[tokio::test]
async fn an_export_that_asks_for_patience_in_the_same_words_for_ever_has_failed() {
    let server = answering(vec![|| Answer::outcome(500, "exception")]).await;
    let error = wait(job(&server), &client(&server)).await.unwrap_err();
    assert!(matches!(error, Error::ExportFailed { .. }), "{error}");
    assert!(server.asked().len() >= 5);
}

/// (rule 43)
#[tokio::test]
async fn a_4xx_with_other_issues_that_is_repeated_means_that_the_export_failed() {
    let server = answering(vec![|| Answer::outcome(422, "processing")]).await;
    let error = wait(job(&server), &client(&server)).await.unwrap_err();
    assert!(server.asked().len() >= 5);
    assert!(matches!(error, Error::ExportFailed { .. }), "{error}");
    assert!(!error.to_string().contains("Jane"), "{error}");
}

/// (rule 44, Q-81)
#[tokio::test]
async fn a_500_with_other_issues_is_believed_after_an_outage() {
    let server = answering(vec![|| Answer::outcome(500, "processing")]).await;
    assert!(matches!(wait(job(&server), &impatient(&server)).await, Err(Error::ExportFailed { .. })));
    assert!(server.asked().len() >= 5);
}

/// What these failures amount to when a poll has failed this often, a minute after each other, with the default
/// settings.
async fn after(polls: u32, failures: &mut PollFailures, fault: &Fault) -> Option<Error> {
    for _ in 0..polls {
        let error = failures.failed("status", fault.clone()).err();
        tokio::time::advance(Duration::from_mins(1)).await;
        if error.is_some() {
            return error;
        }
    }
    None
}

/// (rules 44 and 133, Q-22, Q-81)
#[tokio::test(start_paused = true)]
async fn a_verdict_is_believed_after_15_minutes_an_outage_waited_for_30_and_a_plea_for_6_hours() {
    let config = Config::new("https://ehr.example.org/".parse().unwrap());
    let failures = || PollFailures::new(&config.poll, &config.http);
    let status = |status: u16, code: &str| Fault::Status {
        status: StatusCode::from_u16(status).unwrap(),
        retry_after: None,
        issues: Issues::read(
            format!(r#"{{"resourceType":"OperationOutcome","issue":[{{"severity":"error","code":"{code}"}}]}}"#)
                .as_bytes(),
        ),
    };
    for (fault, minutes) in [
        (status(422, "processing"), 15),
        (Fault::NotAManifest("{}".to_owned()), 15),
        (status(500, "processing"), 30),
        (status(500, "exception"), 360),
        (Fault::Page, 30),
        (Fault::Idle(Duration::ZERO), 30),
    ] {
        let mut failures = failures();
        assert!(after(minutes, &mut failures, &fault).await.is_none(), "{fault}");
        let error = after(1, &mut failures, &fault).await.unwrap();
        let is_outage = matches!(fault, Fault::Page | Fault::Idle(_));
        assert_eq!(matches!(error, Error::Unreachable { .. }), is_outage, "{fault}: {error}");
    }
    let mut failures = failures();
    for _ in 0..20 {
        assert!(
            after(10, &mut failures, &status(422, "processing")).await.is_none(),
            "nothing is repeated for long enough"
        );
        assert!(after(10, &mut failures, &status(500, "exception")).await.is_none());
    }
}

/// (rule 44)
#[tokio::test]
async fn faults_of_the_network_do_not_count_as_reports_of_the_server() {
    let bad = || Answer::status(502);
    let failed = || Answer::outcome(500, "processing");
    let server = answering(vec![bad, bad, failed, bad, failed, || Answer::json(EMPTY)]).await;
    assert!(wait(job(&server), &client(&server)).await.is_ok());
}

/// (rule 43)
#[tokio::test]
async fn one_issue_that_is_not_transient_decides_wherever_it_is() {
    let transient = r#"{"severity":"error","code":"transient"},"#.repeat(20);
    let server = Server::start(move |_| {
        Answer::status(400).body(format!(
            r#"{{"resourceType":"OperationOutcome","issue":[{transient}{{"severity":"fatal","code":"processing"}}]}}"#
        ))
    })
    .await;
    let error = wait(job(&server), &client(&server)).await.unwrap_err();
    assert!(matches!(error, Error::ExportFailed { .. }), "{error}");
    assert!(error.to_string().ends_with(", …"), "{error}");
}

/// (rule 44, Q-22)
#[tokio::test]
async fn a_5xx_of_a_proxy_is_an_outage() {
    let bad = || Answer::status(502).body("<html>");
    let server =
        answering(vec![bad, bad, bad, bad, bad, || Answer::status(202), bad, bad, || Answer::json(EMPTY)]).await;
    assert!(wait(job(&server), &client(&server)).await.is_ok());
    let server = answering(vec![bad]).await;
    assert!(matches!(wait(job(&server), &impatient(&server)).await, Err(Error::Unreachable { .. })));
}

/// (rule 63)
#[tokio::test]
async fn the_error_of_an_unreachable_server_has_no_query() {
    let server = answering(vec![|| Answer::status(202)]).await;
    let client = client(&server);
    let job = Job { status_url: server.url("/status?signature=s3cret"), ..job(&server) };
    drop(server);
    let error = anyhow::Error::from(wait(job, &client).await.unwrap_err());
    assert!(!format!("{error:?} {error:#}").contains("s3cret"), "{error:#}");
}

/// (rule 46, Q-23)
#[tokio::test]
async fn a_200_without_a_manifest_is_never_an_empty_export() {
    for body in [
        "",
        "null",
        "[]",
        "{}",
        r#"{"message":"done"}"#,
        r#"{"resourceType":"OperationOutcome","issue":[],"output":[]}"#,
        r#"{"transactionTime":"2026-11-20T10:00:00Z","output":[{"type":"Patient"}]}"#,
        r#"{"output":"Jane Doe"}"#,
    ] {
        let server = Server::start(move |_| Answer::json(body)).await;
        let error = wait(job(&server), &client(&server)).await.unwrap_err();
        assert!(matches!(error, Error::NotAManifest { .. }), "{body}: {error}");
        assert!(!error.to_string().contains("Jane"), "{error}");
        assert!(server.asked().len() >= 5, "{body}");
    }
}

/// (rule 44, Q-29)
#[tokio::test]
async fn an_html_page_is_an_outage() {
    let page = || Answer::status(200).header("content-type", "text/html").body("\n<html>");
    let server = answering(vec![page, page, page, page, page, page, page, || Answer::json(EMPTY)]).await;
    assert!(wait(job(&server), &client(&server)).await.is_ok());
    let server = answering(vec![page]).await;
    assert!(matches!(wait(job(&server), &impatient(&server)).await, Err(Error::Unreachable { .. })));
}

/// (rule 37)
#[tokio::test]
async fn x_export_status_on_a_200_is_the_status_of_the_export() {
    let server = answering(vec![|| Answer::json(r#"{"output":[]}"#).header("x-export-status", "202"), || {
        Answer::json(EMPTY).header("x-export-status", "200 OK")
    }])
    .await;
    assert!(wait(job(&server), &client(&server)).await.is_ok());
    assert_eq!(server.asked().len(), 2);
}

/// (rule 47, Q-25, Q-26)
#[tokio::test]
async fn a_job_beyond_its_deadline_is_polled_once_more() {
    let server = answering(vec![|| Answer::json(EMPTY)]).await;
    assert!(wait(old_job(&server, 60 * 24 * 31), &client(&server)).await.is_ok());
    let server = answering(vec![|| Answer::status(202)]).await;
    let error = wait(old_job(&server, 60 * 24 * 31), &client(&server)).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "{error}");
    assert_eq!(server.asked().len(), 1);
}

/// (rules 47 and 64)
#[tokio::test]
async fn a_job_that_names_its_files_and_never_ends_is_given_up_at_its_deadline() {
    let server = answering(vec![|| Answer::status(202).body(EMPTY)]).await;
    let client = client(&server);
    let mut following = old_job(&server, 60 * 24 * 31).follow(&client, &|_| {}, Duration::ZERO);
    assert!(matches!(following.next().await, Err(Error::Deadline { .. })));
    let mut following = job(&server).follow(&client, &|_| {}, Duration::ZERO);
    assert!(matches!(following.next().await, Ok(crate::export::Waited::Partial(_))));
}

/// (rule 44, Q-28, Q-63)
#[tokio::test]
async fn a_denied_poll_is_an_error() {
    let server = answering(vec![|| Answer::status(403)]).await;
    assert!(matches!(wait(job(&server), &client(&server)).await, Err(Error::Denied { .. })));
    let error = wait(old_job(&server, 60 * 24 * 31), &client(&server)).await.unwrap_err();
    assert!(matches!(error, Error::Deadline { .. }), "not for ever: {error}");
}

/// (rules 66 and 68 to 70, Q-38)
#[tokio::test]
async fn every_page_is_read_even_if_it_is_not_ready_at_first() {
    let mut waited = false;
    let server = Server::start(move |asked| match asked.path.as_str() {
        "/status" => Answer::json(
            r#"{"transactionTime":"2026-11-20T10:00:09Z","requiresAccessToken":true,
                "output":[{"type":"Patient","url":"files/1"}],
                "link":[{"relation":"self","url":"/status"},{"relation":"next","url":"/pages/2"}]}"#,
        ),
        "/pages/2" if !std::mem::replace(&mut waited, true) => Answer::status(202),
        "/pages/2" => Answer::json(
            r#"{"transactionTime":"2026-11-20T10:00:05Z","output":[{"type":"Patient","url":"/files/2"}],
                "error":[{"type":"OperationOutcome","url":"/files/3"}]}"#,
        ),
        path => panic!("{path}"),
    })
    .await;
    let manifest = wait(job(&server), &client(&server)).await.unwrap().manifest;
    assert_eq!(manifest.transaction_time.unwrap().to_string(), "2026-11-20T10:00:05Z", "the earlier one");
    let files: Vec<_> = manifest.output.iter().map(|file| (file.name.as_str(), file.url.path())).collect();
    assert_eq!(files, [("Patient file 1 of 2", "/files/1"), ("Patient file 2 of 2", "/files/2")]);
    assert!(manifest.output.iter().all(|file| file.requires_access_token), "what the first page says holds for all");
    assert_eq!(manifest.outcomes.len(), 1);
}

/// (rule 67)
#[tokio::test]
async fn pages_that_form_a_cycle_or_never_end_are_not_a_manifest() {
    let page = |next: &str| Answer::json(&format!(r#"{{"output":[],"link":[{{"relation":"next","url":"{next}"}}]}}"#));
    let server = Server::start(move |asked| page(if asked.path == "/status" { "/2" } else { "/status" })).await;
    let error = wait(job(&server), &client(&server)).await.unwrap_err();
    assert!(error.to_string().contains("cycle"), "{error}");
    assert_eq!(server.asked().len(), 2);

    let mut number = 0;
    let server = Server::start(move |_| {
        number += 1;
        page(&format!("/{number}"))
    })
    .await;
    let mut config = config(&server);
    config.limits.max_manifest_pages = 5;
    let client = Client::new(config).unwrap();
    assert!(matches!(wait(job(&server), &client).await, Err(Error::NotAManifest { .. })));
    assert_eq!(server.asked().len(), 5);
}

#[tokio::test]
async fn a_manifest_larger_than_allowed_is_not_held_in_memory() {
    let server = answering(vec![|| Answer::json(EMPTY)]).await;
    let mut config = config(&server);
    config.limits.max_manifest_bytes = 20;
    let client = Client::new(config).unwrap();
    assert!(matches!(wait(job(&server), &client).await, Err(Error::TooLarge { limit_bytes: 20, .. })));
}

#[tokio::test]
async fn relative_urls_of_a_manifest_belong_to_the_address_that_answered() {
    let server = Server::start(|asked| match asked.path.as_str() {
        "/status" => Answer::status(303).header("location", "/elsewhere/deep/manifest.json"),
        "/elsewhere/deep/manifest.json" => Answer::json(
            r#"{"output":[{"type":"Patient","url":"files/p"}],"link":{"relation":"next","url":"page-2.json"}}"#,
        ),
        "/elsewhere/deep/page-2.json" => Answer::json(EMPTY),
        path => panic!("{path}"),
    })
    .await;
    let manifest = wait(job(&server), &client(&server)).await.unwrap().manifest;
    assert_eq!(manifest.output[0].url, server.url("/elsewhere/deep/files/p"));
}

/// (rule 51)
#[tokio::test]
async fn an_export_is_bound_by_the_date_of_its_kick_off_or_of_the_earliest_later_answer() {
    let at = |minute: u32| format!("Fri, 20 Nov 2026 10:{minute:02}:00 GMT");
    let mut turn = 0;
    let server = Server::start(move |_| {
        turn += 1;
        match turn {
            1 => Answer::status(202),
            2 => Answer::status(202).header("date", at(1)),
            _ => Answer::json(EMPTY).header("date", at(7)),
        }
    })
    .await;
    let client = client(&server);
    let server_time = wait(job(&server), &client).await.unwrap().server_time.unwrap();
    assert_eq!(server_time.to_string(), "2026-11-20T10:01:00Z");
    let server_time = Some(TransactionTime::from_micros(0).unwrap());
    let job = Job { server_time, ..job(&server) };
    assert_eq!(wait(job, &client).await.unwrap().server_time, server_time);
}

/// A run that resumes the job can know it (rule 51).
#[tokio::test]
async fn the_earliest_date_is_told_while_the_export_is_in_progress() {
    let mut turn = 0;
    let server = Server::start(move |_| {
        turn += 1;
        match turn {
            1 => Answer::status(202),
            4 => Answer::json(EMPTY),
            _ => Answer::status(202).header("date", format!("Fri, 20 Nov 2026 10:0{turn}:00 GMT")),
        }
    })
    .await;
    let told = std::sync::Mutex::new(Vec::new());
    let on_progress = |poll: PollProgress| {
        told.lock().unwrap().push(poll.server_time.map(|time| time.to_string()));
    };
    job(&server).wait(&client(&server), &on_progress).await.unwrap();
    let earliest = Some("2026-11-20T10:02:00Z".to_owned());
    assert_eq!(*told.lock().unwrap(), [None, earliest.clone(), earliest]);
}

/// (rule 41)
#[tokio::test(start_paused = true)]
async fn progress_that_stays_the_same_for_hours_is_a_warning_once_until_it_changes() {
    let mut unchanged = Unchanged::default();
    let mut warned_at = Vec::new();
    for hour in 0..30_u32 {
        let says = HeaderValue::from_static(if hour < 15 { "45%" } else { "46%" });
        if unchanged.for_long(Some(&says)).is_some() {
            warned_at.push(hour);
        }
        tokio::time::advance(Duration::from_hours(1)).await;
    }
    assert_eq!(warned_at, [6, 21]);
    let mut silent = Unchanged::default();
    for _ in 0..30 {
        assert!(silent.for_long(None).is_none(), "a server that says nothing is no news");
        tokio::time::advance(Duration::from_hours(1)).await;
    }
}
