//! Waits and origins: `Retry-After`, backoff, which URLs are gone to.

use reqwest::header::{HeaderMap, HeaderValue};

use super::super::{
    redirect::check_url,
    retry::{Backoff, date, retry_after},
};
use super::*;

fn read(retry_after_header: &str) -> Option<Duration> {
    let mut headers = HeaderMap::new();
    headers.insert("date", HeaderValue::from_static("Fri, 20 Nov 2026 10:00:00 GMT"));
    headers.insert("retry-after", HeaderValue::from_str(retry_after_header).unwrap());
    retry_after(&headers)
}

#[test]
fn retry_after_is_read_in_every_form_that_servers_were_seen_to_send() {
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

#[test]
fn waits_double_up_to_their_limit_and_the_server_is_heard_within_them() {
    let mut backoff = Backoff::new(WaitRange::new(Duration::from_secs(1), Duration::from_secs(5)).unwrap());
    let waits: Vec<_> = (0..5).map(|_| backoff.wait(None).as_secs()).collect();
    assert_eq!(waits, [1, 2, 4, 5, 5]);
    assert_eq!(backoff.wait(Some(Duration::from_secs(3))).as_secs(), 3);
    assert_eq!(backoff.wait(Some(Duration::ZERO)).as_secs(), 1);
    assert_eq!(backoff.wait(Some(Duration::MAX)).as_secs(), 5);
}

#[test]
fn a_shortest_wait_above_the_longest_is_not_a_range() {
    assert!(WaitRange::new(Duration::from_secs(9), Duration::from_secs(5)).is_none());
    assert!(WaitRange::new(Duration::from_secs(5), Duration::from_secs(5)).is_some());
}

#[test]
fn nothing_goes_down_from_https_or_to_another_scheme() {
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
