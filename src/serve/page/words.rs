//! Words: durations, instants and counts as people read them.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use indicatif::HumanCount;
use maud::{Markup, html};

/// In its two largest units: "45 s", "12 min", "2 h 10 min", "3 d 4 h".
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) if seconds == 0 && !duration.is_zero() => "< 1 s".to_owned(),
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) if minutes < 10 => two((minutes, "min"), (seconds % 60, "s")),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => two((hours, "h"), (minutes % 60, "min")),
        (1..10, _, _) => two((days, "d"), (hours % 24, "h")),
        _ => format!("{} d", count(days)),
    }
}

fn two((large, unit): (u64, &str), (small, small_unit): (u64, &str)) -> String {
    if small == 0 { format!("{large} {unit}") } else { format!("{large} {unit} {small} {small_unit}") }
}

/// "7,664".
pub fn count(count: u64) -> String {
    HumanCount(count).to_string()
}

/// "1 type", "2 types".
pub fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

/// "Patient", "Patient and Condition", "Patient, Condition and 3 more".
pub fn list(names: &[String]) -> String {
    const SHOWN: usize = 4;
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [all @ .., last] if names.len() <= SHOWN => format!("{} and {last}", all.join(", ")),
        _ => format!("{} and {} more", names[..SHOWN - 1].join(", "), names.len() + 1 - SHOWN),
    }
}

/// Day and time to the minute, in UTC, and exactly for machines.
pub fn instant(at: DateTime<Utc>) -> Markup {
    html! { time datetime=(at.to_rfc3339_opts(SecondsFormat::Secs, true)) { (at.format("%-d %b %Y, %H:%M")) } }
}

/// The same for a moment of the last or next hours: without the day if it is today's.
pub fn instant_near(at: DateTime<Utc>, now: DateTime<Utc>) -> Markup {
    if at.date_naive() != now.date_naive() {
        return instant(at);
    }
    html! { time datetime=(at.to_rfc3339_opts(SecondsFormat::Secs, true)) { (at.format("%H:%M")) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_its_two_largest_units() {
        let cases = [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (754, "12 min"),
            (7_200, "2 h"),
            (7_860, "2 h 11 min"),
            (273_600, "3 d 4 h"),
            (31_536_000, "365 d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(duration(Duration::from_millis(20)), "< 1 s");
    }

    #[test]
    fn a_long_list_says_how_many_it_leaves_out() {
        let names = |number: u8| (0..number).map(|name| ((b'A' + name) as char).to_string()).collect::<Vec<_>>();
        assert_eq!(
            [1, 2, 4, 6].map(|number| list(&names(number))),
            ["A", "A and B", "A, B, C and D", "A, B, C and 3 more"]
        );
    }
}
