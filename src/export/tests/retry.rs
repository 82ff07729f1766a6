//! Waits and URLs: `Retry-After`, backoff, and where a request may go.

use std::collections::HashSet;

use fastrand::Rng;
use proptest::prelude::*;
use reqwest::header::{HeaderMap, HeaderValue};

use super::super::{
    redirect::{check_url, secured},
    retry::{Backoff, WaitLog, date, retry_after},
};
use super::*;

fn read(retry_after_header: &str) -> Option<Duration> {
    let mut headers = HeaderMap::new();
    headers.insert("date", HeaderValue::from_static("Fri, 20 Nov 2026 10:00:00 GMT"));
    headers.insert("retry-after", HeaderValue::from_str(retry_after_header).unwrap());
    retry_after(&headers)
}

/// (rule 39, Q-20)
#[test]
fn retry_after_is_read_in_every_form_that_servers_send() {
    for (header, seconds) in [
        ("120", Some(120)),
        (" 0 ", Some(0)),
        ("18000", Some(18000)),
        ("Fri, 20 Nov 2026 10:02:00 GMT", Some(120)),
        ("Friday, 20-Nov-26 10:02:00 GMT", Some(120)),
        ("Fri Nov 20 10:02:00 2026", Some(120)),
        ("Fri, 20 Nov 2026 09:00:00 GMT", Some(0)),
        // 2026-11-20T10:02:00Z, in seconds and in milliseconds.
        ("1795168920", Some(120)),
        ("1795168920000", Some(120)),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("99999999999999999999", None),
        ("9223372036854775807", None),
    ] {
        assert_eq!(read(header), seconds.map(Duration::from_secs), "{header}");
    }
    assert_eq!(retry_after(&HeaderMap::new()), None);
}

#[test]
fn a_retry_after_without_a_date_is_read_against_our_clock() {
    let mut headers = HeaderMap::new();
    headers.insert("retry-after", HeaderValue::from_static("Fri, 20 Nov 2015 10:02:00 GMT"));
    assert_eq!(retry_after(&headers), Some(Duration::ZERO));
    assert_eq!(date(&headers), None);
}

fn seconds(min: u64, max: u64) -> WaitRange {
    WaitRange::new(Duration::from_secs(min), Duration::from_secs(max)).unwrap()
}

/// (rule 39, Q-80)
#[test]
fn waits_double_up_to_their_limit_and_retry_after_is_obeyed_within_it() {
    let mut backoff = Backoff::new(seconds(2, 10), Rng::with_seed(1));
    for (shortest, longest) in [(2.0, 3.0), (4.0, 6.0), (6.66, 10.0), (6.66, 10.0)] {
        let wait = backoff.wait(None).as_secs_f64();
        assert!((shortest..=longest).contains(&wait), "{wait}");
    }
    assert_eq!(backoff.wait(Some(Duration::from_secs(3))).as_secs(), 3);
    assert_eq!(backoff.wait(Some(Duration::ZERO)).as_secs(), 2);
    assert_eq!(backoff.wait(Some(Duration::MAX)).as_secs(), 10);
    backoff.reset();
    for _ in 0..8 {
        backoff.wait(Some(Duration::from_secs(3)));
    }
    assert!(backoff.wait(None) <= Duration::from_secs(3), "the server's waits do not lengthen ours");
}

proptest! {
    /// (rule 39, Q-21, Q-69)
    #[test]
    fn every_wait_is_within_its_range(seed: u64, min_ms in 0..100_000_u64, more_ms in 0..100_000_u64, waits in 0..40_u32) {
        let [min, max] = [min_ms, min_ms + more_ms].map(Duration::from_millis);
        let mut backoff = Backoff::new(WaitRange::new(min, max).unwrap(), Rng::with_seed(seed));
        for _ in 0..waits {
            let wait = backoff.wait(None);
            prop_assert!(min <= wait && wait <= max, "{wait:?}");
        }
    }
}

#[test]
fn clients_that_fail_together_do_not_try_again_together() {
    let first_wait = |seed| Backoff::new(seconds(1, 60), Rng::with_seed(seed)).wait(None);
    let waits: HashSet<_> = (0..20).map(first_wait).collect();
    assert!(waits.len() > 15, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_is_reported_at_once_and_then_every_30_seconds() {
    let mut log = WaitLog::default();
    let mut reported_at = Vec::new();
    for second in 0..100 {
        if log.is_due() {
            reported_at.push(second);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert_eq!(reported_at, [0, 30, 60, 90]);
}

#[test]
fn a_shortest_wait_above_the_longest_is_not_a_range() {
    assert!(WaitRange::new(Duration::from_secs(9), Duration::from_secs(5)).is_none());
    assert!(WaitRange::new(Duration::from_secs(5), Duration::from_secs(5)).is_some());
}

/// (rule 1)
#[test]
fn no_request_is_downgraded_from_https_or_uses_another_scheme() {
    let may =
        |url: &str, from: &str, allow_http| check_url(&url.parse().unwrap(), Some(&from.parse().unwrap()), allow_http);
    assert!(may("https://b.example.org/", "http://a.example.org/", false).is_ok());
    assert!(may("http://b.example.org/", "http://a.example.org/", false).is_err());
    assert!(may("http://b.example.org/", "http://a.example.org/", true).is_ok());
    assert!(may("http://a.example.org/", "https://a.example.org/", true).is_err());
    assert!(may("http://localhost/", "https://a.example.org/", true).is_err());
    for other in ["s3://bucket/key?signature=s3cret", "gs://bucket/key", "file:///etc/passwd", "data:,x"] {
        let reason = may(other, "https://a.example.org/", true).unwrap_err();
        assert!(!reason.contains("s3cret"), "{reason}");
    }
}

/// (rule 1, Q-5)
#[test]
fn an_unencrypted_url_of_the_own_host_behind_tls_is_meant_encrypted() {
    for (url, from, expected) in [
        ("http://a.org/status/1", "https://a.org/fhir", "https://a.org/status/1"),
        ("http://a.org:8080/status/1", "https://a.org/fhir", "https://a.org/status/1"),
        ("http://a.org/status/1", "https://a.org:8443/fhir", "https://a.org:8443/status/1"),
        ("http://b.org/status/1", "https://a.org/fhir", "http://b.org/status/1"),
        ("http://a.org/status/1", "http://a.org/fhir", "http://a.org/status/1"),
        ("https://a.org/status/1", "https://a.org:8443/fhir", "https://a.org/status/1"),
    ] {
        assert_eq!(secured(url.parse().unwrap(), &from.parse().unwrap()).as_str(), expected, "{url} from {from}");
    }
}
