//! Dates and times: how FHIR writes them, and which instants of UTC they mean.
//!
//! A text is valid exactly where FHIR R4 says so, with one leniency: a time without an offset is read as UTC. Bounds
//! are inclusive and in microseconds since the epoch; `start` is never after `end`.

use chrono::{NaiveDate, TimeDelta};

use crate::fhir::MIN_VALUE;

/// The first and the last microsecond of what a date or time states, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimeBounds {
    pub start_micros: i64,
    pub end_micros: i64,
}

/// The bounds of a `date`: `YYYY`, `YYYY-MM` or `YYYY-MM-DD`.
pub fn date(text: &str) -> Option<TimeBounds> {
    (text.len() <= 10).then(|| date_time(text)).flatten()
}

/// The bounds of a `dateTime`: a date, or a date with a time to the second or finer. They are within the years 0001 to
/// 9999, because readers of the tables refuse others, and `DateTime.MinValue` is no time at all.
pub fn date_time(text: &str) -> Option<TimeBounds> {
    let is_known = |bounds: &TimeBounds| {
        bounds.start_micros >= MIN_MICROS && bounds.end_micros <= MAX_MICROS && !is_min_value(text)
    };
    stated(text).filter(is_known)
}

/// Whether the text is a `dateTime`, whatever its bounds are.
pub fn is_date_time(text: &str) -> bool {
    stated(text).is_some()
}

fn is_min_value(text: &str) -> bool {
    text.starts_with(MIN_VALUE)
}

/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59.999999Z.
const MIN_MICROS: i64 = -62_135_596_800 * SECOND_MICROS;
const MAX_MICROS: i64 = 253_402_300_800 * SECOND_MICROS - 1;

fn stated(text: &str) -> Option<TimeBounds> {
    let bytes = text.as_bytes();
    let year = i32::from(number(bytes, 0..4)?);
    if bytes.len() <= 10 {
        return partial(bytes, year);
    }
    let day = full_date(bytes.get(..10)?, year)?;
    if bytes[10] != b'T' {
        return None;
    }
    let (clock, rest) = clock(&bytes[11..])?;
    let offset_minutes = offset_minutes(rest)?;
    let start = i64::from(days(day)) * DAY_MICROS + clock.micros - offset_minutes * 60 * SECOND_MICROS;
    Some(TimeBounds { start_micros: start, end_micros: start + clock.width_micros - 1 })
}

/// The microsecond of an `instant`, rounded down. Unlike in a `dateTime` time and offset must be there.
pub fn instant_micros(text: &str) -> Option<i64> {
    let has_offset =
        text.ends_with('Z') || text.as_bytes().iter().rev().nth(5).is_some_and(|sign| b"+-".contains(sign));
    (text.len() > 19 && has_offset).then(|| date_time(text)).flatten().map(|bounds| bounds.start_micros)
}

/// Whether the text is a `time`: `hh:mm:ss`, with a fraction or without.
pub fn is_time(text: &str) -> bool {
    clock(text.as_bytes()).is_some_and(|(_, rest)| rest.is_empty())
}

const SECOND_MICROS: i64 = 1_000_000;
const DAY_MICROS: i64 = 86_400 * SECOND_MICROS;

fn partial(bytes: &[u8], year: i32) -> Option<TimeBounds> {
    let (first, after) = match bytes.len() {
        4 => (first_of(year, 1)?, first_of(year.checked_add(1)?, 1)?),
        7 if bytes[4] == b'-' => {
            let month = u32::from(number(bytes, 5..7)?);
            let after = if month == 12 { first_of(year + 1, 1)? } else { first_of(year, month + 1)? };
            (first_of(year, month)?, after)
        }
        10 => {
            let day = full_date(bytes, year)?;
            (day, day.checked_add_signed(TimeDelta::days(1))?)
        }
        _ => return None,
    };
    let micros = |day| i64::from(days(day)) * DAY_MICROS;
    Some(TimeBounds { start_micros: micros(first), end_micros: micros(after) - 1 })
}

fn first_of(year: i32, month: u32) -> Option<NaiveDate> {
    (year >= 1).then(|| NaiveDate::from_ymd_opt(year, month, 1)).flatten()
}

/// `YYYY-MM-DD`, exactly ten bytes, with the year already read.
fn full_date(bytes: &[u8], year: i32) -> Option<NaiveDate> {
    if bytes[4] != b'-' || bytes[7] != b'-' || year < 1 {
        return None;
    }
    NaiveDate::from_ymd_opt(year, u32::from(number(bytes, 5..7)?), u32::from(number(bytes, 8..10)?))
}

fn days(day: NaiveDate) -> i32 {
    day.to_epoch_days()
}

/// A time of day, and how much of the day it covers: a second, or what its last digit counts.
struct Clock {
    micros: i64,
    width_micros: i64,
}

/// `hh:mm:ss[.fraction]`, and what follows it. A leap second counts as the first microsecond of the next minute.
fn clock(bytes: &[u8]) -> Option<(Clock, &[u8])> {
    if bytes.get(2) != Some(&b':') || bytes.get(5) != Some(&b':') {
        return None;
    }
    let [hour, minute, second] = [number(bytes, 0..2)?, number(bytes, 3..5)?, number(bytes, 6..8)?];
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = i64::from(hour) * 3600 + i64::from(minute) * 60 + i64::from(second);
    let rest = &bytes[8..];
    let Some(fraction) = rest.strip_prefix(b".") else {
        return Some((Clock { micros: seconds * SECOND_MICROS, width_micros: SECOND_MICROS }, rest));
    };
    let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return None;
    }
    let (mut micros, mut width_micros) = (0, SECOND_MICROS);
    for digit in fraction[..digits].iter().take(6) {
        width_micros /= 10;
        micros += i64::from(digit - b'0') * width_micros;
    }
    Some((Clock { micros: seconds * SECOND_MICROS + micros, width_micros }, &fraction[digits..]))
}

/// East of UTC. Offsets reach from -12:00 to +14:00 on Earth; FHIR allows up to 14:00 either way.
fn offset_minutes(bytes: &[u8]) -> Option<i64> {
    match bytes {
        b"" | b"Z" => Some(0),
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (hour, minute) = (i64::from(number(bytes, 1..3)?), i64::from(number(bytes, 4..6)?));
            let minutes = hour * 60 + minute;
            let legal = minute <= 59 && minutes <= 14 * 60;
            legal.then_some(if *sign == b'-' { -minutes } else { minutes })
        }
        _ => None,
    }
}

/// Up to four digits.
fn number(bytes: &[u8], range: std::ops::Range<usize>) -> Option<u16> {
    let digits = bytes.get(range)?;
    digits.iter().try_fold(0u16, |number, digit| {
        digit.is_ascii_digit().then(|| number.wrapping_mul(10).wrapping_add(u16::from(digit - b'0')))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fhir::parse_instant;

    fn micros(text: &str) -> i64 {
        parse_instant(text).unwrap().timestamp_micros()
    }

    #[test]
    fn bounds_are_those_of_the_stated_precision() {
        for (text, start, end) in [
            ("1970", "1970-01-01T00:00:00Z", "1970-12-31T23:59:59.999999Z"),
            ("1970-05", "1970-05-01T00:00:00Z", "1970-05-31T23:59:59.999999Z"),
            ("1999-12", "1999-12-01T00:00:00Z", "1999-12-31T23:59:59.999999Z"),
            ("2024-02-29", "2024-02-29T00:00:00Z", "2024-02-29T23:59:59.999999Z"),
            ("2026-11-18T09:30:00+10:00", "2026-11-17T23:30:00Z", "2026-11-17T23:30:00.999999Z"),
            ("2026-11-18T01:00:00.000Z", "2026-11-18T01:00:00Z", "2026-11-18T01:00:00.000999Z"),
            ("2026-11-18T01:00:00.1-05:00", "2026-11-18T06:00:00.1Z", "2026-11-18T06:00:00.199999Z"),
            ("2026-11-18T01:00:00.1234567Z", "2026-11-18T01:00:00.123456Z", "2026-11-18T01:00:00.123456Z"),
            ("2026-11-18T01:00:00", "2026-11-18T01:00:00Z", "2026-11-18T01:00:00.999999Z"),
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z", "2017-01-01T00:00:00.999999Z"),
        ] {
            let expected = TimeBounds { start_micros: micros(start), end_micros: micros(end) };
            assert_eq!(date_time(text), Some(expected), "{text}");
        }
        assert_eq!(date_time("0001").unwrap().start_micros, -62_135_596_800_000_000);
        assert!(date_time("9999").is_some());
    }

    #[test]
    fn what_is_not_a_date_time_has_no_bounds() {
        for text in [
            "",
            "70",
            "0000",
            "1970-",
            "1970-13",
            "1970-00",
            "1970-5",
            "2023-02-29",
            "1970-01-32",
            "1970/01/01",
            "1970-01-01T",
            "1970-01-01T10",
            "1970-01-01T10:00",
            "1970-01-01T24:00:00Z",
            "1970-01-01T10:60:00Z",
            "1970-01-01T10:00:61Z",
            "1970-01-01T10:00:00.Z",
            "1970-01-01T10:00:00+15:00",
            "1970-01-01T10:00:00+0100",
            "1970-01-01T10:00:00z",
            "1970-01-01 10:00:00Z",
            "1970-01-01T10:00:00Z ",
            "197é",
            "1970-01-01é10:00:00Z",
            " 1970",
            "+970",
            "1970-+1",
        ] {
            assert_eq!(date_time(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_outside_of_the_years_that_readers_know_has_no_bounds_and_is_a_date_time() {
        for text in [
            "0001-01-01T00:00:00",
            "0001-01-01T00:00:00Z",
            "0001-01-01T00:00:00.000-05:00",
            "0001-01-01T00:00:01+01:00",
            "9999-12-31T23:59:59-01:00",
        ] {
            assert!(date_time(text).is_none() && is_date_time(text), "{text}");
            assert_eq!(instant_micros(text), None, "{text}");
        }
        for text in ["0001", "0001-01-01", "0001-01-01T00:00:01Z", "9999", "9999-12-31T23:59:59.9999999Z"] {
            assert!(date_time(text).is_some(), "{text}");
        }
    }

    #[test]
    fn a_date_has_no_time_and_an_instant_has_time_and_offset() {
        assert!(date("1970-01-01").is_some());
        assert_eq!(date("1970-01-01T00:00:00Z"), None);
        assert_eq!(instant_micros("1970-01-01T00:00:01.5Z"), Some(1_500_000));
        assert_eq!(instant_micros("1970-01-01T01:00:01+01:00"), Some(1_000_000));
        for text in ["1970-01-01", "1970-01-01T00:00:01", "1970-01-01T00:00:01.50000", "1970"] {
            assert_eq!(instant_micros(text), None, "{text}");
        }
    }

    #[test]
    fn a_time_is_a_clock_without_an_offset() {
        assert!(is_time("23:59:59"));
        assert!(is_time("00:00:00.123456789"));
        for text in ["", "10:00", "24:00:00", "10:00:00Z", "10:00:00."] {
            assert!(!is_time(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_no_bounds_are_reversed(text in "[0-9T:Z.+-]{0,30}|\\PC{0,30}") {
            if let Some(bounds) = date_time(&text) {
                prop_assert!(bounds.start_micros <= bounds.end_micros);
            }
            let _ = (date(&text), instant_micros(&text), is_time(&text));
        }

        /// What a row states and what is read of its line later must be the same instant.
        #[test]
        fn an_instant_is_that_of_the_lenient_reader(
            text in "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9](\\.[0-9]{1,12})?(Z|[+-][01][0-9]:[0-5][0-9])",
        ) {
            if let Some(micros) = instant_micros(&text) {
                prop_assert_eq!(parse_instant(&text).map(|instant| instant.timestamp_micros()), Some(micros));
            }
        }

        #[test]
        fn a_date_time_agrees_with_rfc_3339(seconds in -62_135_596_800i64..253_402_300_799, offset in -840i32..=840) {
            let zone = chrono::FixedOffset::east_opt(offset * 60).unwrap();
            let Some(at) = chrono::DateTime::from_timestamp(seconds, 0) else { return Ok(()) };
            let text = at.with_timezone(&zone).to_rfc3339();
            prop_assume!(text.len() == 25 && !text.starts_with("0000"));
            prop_assert_eq!(date_time(&text).map(|bounds| bounds.start_micros), Some(seconds * 1_000_000), "{}", text);
        }
    }
}
