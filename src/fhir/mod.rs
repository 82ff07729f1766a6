//! The words of FHIR that every room uses: resource types, instants, versions, outcomes.
//!
//! A value of these types has been checked once, where it entered; nobody checks it again. Imports nothing of ours.

mod outcome;
mod resource_type;

use std::{cmp::Ordering, fmt};

use chrono::{DateTime, Datelike as _, NaiveDateTime, SubsecRound, TimeDelta, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::{
    outcome::{Issue, Judgement, Severity, issues, issues_in_words, judge, printable_code, printable_progress},
    resource_type::{RESOURCE_TYPES, ResourceType, UnknownResourceType},
};

/// An instant of the server's clock, in whole microseconds: the manifest's `transactionTime`, and with it our
/// watermark.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TransactionTime(DateTime<Utc>);

impl TransactionTime {
    pub fn from_micros(micros: i64) -> Option<Self> {
        DateTime::from_timestamp_micros(micros).map(Self)
    }

    pub const EPOCH: Self = Self(DateTime::UNIX_EPOCH);

    pub fn as_micros(self) -> i64 {
        self.0.timestamp_micros()
    }

    pub fn instant(self) -> DateTime<Utc> {
        self.0
    }

    /// From where the next export is asked for: so much earlier, in whole milliseconds and rounded **down**, so that
    /// nothing falls between two exports (rules 15 and 16: servers read "after" as `>` or `>=`).
    #[must_use]
    pub fn since(self, overlap: TimeDelta) -> Self {
        let since = self.0.checked_sub_signed(overlap).unwrap_or(DateTime::UNIX_EPOCH);
        Self(since.trunc_subsecs(3))
    }

    /// The value of `_since`: UTC, three digits of the second, because some servers compare text.
    pub fn as_since(self) -> String {
        self.0.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
    }
}

impl From<DateTime<Utc>> for TransactionTime {
    fn from(instant: DateTime<Utc>) -> Self {
        Self(instant.trunc_subsecs(6))
    }
}

impl fmt::Display for TransactionTime {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true))
    }
}

impl Serialize for TransactionTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TransactionTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_instant(&text).map(Self::from).ok_or_else(|| serde::de::Error::custom("not an instant with a zone"))
    }
}

/// An instant, as leniently as it is still unambiguous (Q-32: `2020/01/20 16:53:41.160 -0500` is documented by a real
/// server). Without a zone there is no instant: `None`.
///
/// `DateTime.MinValue` is what some programs write where they have no time, and years outside of 0001 to 9999 are years
/// that readers of the tables refuse: neither is an instant.
pub fn parse_instant(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    let is_known = |instant: &DateTime<Utc>| (1..=9999).contains(&instant.year()) && !text.starts_with(MIN_VALUE);
    read_instant(text).filter(is_known)
}

/// The beginning of a `DateTime.MinValue`, in whatever zone.
pub const MIN_VALUE: &str = "0001-01-01T00:00:00";

fn read_instant(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        return Some(instant.to_utc());
    }
    let normal = text.replacen('/', "-", 2);
    for format in ["%Y-%m-%d %H:%M:%S%.f %z", "%Y-%m-%dT%H:%M:%S%.f%z", "%Y-%m-%d %H:%M:%S%.f%z"] {
        if let Ok(instant) = DateTime::parse_from_str(&normal, format) {
            return Some(instant.to_utc());
        }
    }
    let utc = normal.strip_suffix('Z').or_else(|| normal.strip_suffix(" UTC"))?;
    NaiveDateTime::parse_from_str(utc, "%Y-%m-%d %H:%M:%S%.f").ok().map(|naive| naive.and_utc())
}

/// What decides which of two copies of a resource is the newer one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Version {
    /// `meta.lastUpdated`, microseconds since the epoch.
    pub last_updated_micros: Option<i64>,
    /// `meta.versionId`, where it is a number.
    pub version_id: Option<u64>,
    /// The export that brought it.
    pub transaction_time_micros: Option<i64>,
    /// `meta.tag` says SUBSETTED: parts of the resource were left out.
    pub subsetted: bool,
}

impl Version {
    /// By `lastUpdated` and numeric `versionId`, where they agree or one of them does not decide (Q-51: whole servers
    /// have no `lastUpdated`). Where they contradict each other, or decide nothing, the later snapshot is the newer
    /// one.
    pub fn compare(&self, other: &Self) -> Ordering {
        match self.stated(other) {
            [Ordering::Equal, stated] | [stated, Ordering::Equal] if stated.is_ne() => stated,
            [by_clock, by_version] if by_clock == by_version && by_clock.is_ne() => by_clock,
            _ => known(self.transaction_time_micros, other.transaction_time_micros),
        }
    }

    /// Is one of them the newer by `lastUpdated`, and the other by `versionId`? A server does not do that, unless it
    /// was restored from a backup or its clock was set.
    pub fn contradicts(&self, other: &Self) -> bool {
        let [by_clock, by_version] = self.stated(other);
        by_clock.is_ne() && by_clock == by_version.reverse()
    }

    /// By `lastUpdated`, and by `versionId`; equal where one side lacks the value.
    fn stated(&self, other: &Self) -> [Ordering; 2] {
        [known(self.last_updated_micros, other.last_updated_micros), known(self.version_id, other.version_id)]
    }

    /// May a row of this version take the place of `stored`? An older one never may, and one with parts left out never
    /// takes the place of a whole one (rule 26).
    pub fn may_replace(&self, stored: &Self) -> bool {
        self.compare(stored) != Ordering::Less && (!self.subsetted || stored.subsetted)
    }

    /// The version that a resource's own `meta` states.
    pub fn of(meta: Option<&Meta>) -> Self {
        let Some(meta) = meta else { return Self::default() };
        Self {
            last_updated_micros: meta
                .last_updated
                .as_deref()
                .and_then(parse_instant)
                .map(|instant| instant.timestamp_micros()),
            version_id: meta.version_id.as_deref().and_then(|id| id.parse().ok()),
            transaction_time_micros: None,
            subsetted: meta.tag.iter().any(|tag| tag.code.as_deref() == Some("SUBSETTED")),
        }
    }

    #[must_use]
    pub fn at(self, transaction_time: Option<TransactionTime>) -> Self {
        Self { transaction_time_micros: transaction_time.map(TransactionTime::as_micros), ..self }
    }
}

fn known<T: Ord>(a: Option<T>, b: Option<T>) -> Ordering {
    a.zip(b).map_or(Ordering::Equal, |(a, b)| a.cmp(&b))
}

/// The parts of `Resource.meta` that a version is made of. Values of a wrong type count as absent: they cost the
/// version, never the row.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    #[serde(deserialize_with = "lenient")]
    pub last_updated: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub version_id: Option<String>,
    #[serde(deserialize_with = "lenient_list")]
    pub tag: Vec<Tag>,
}

/// One Coding of `meta.tag`.
#[derive(Deserialize, Default)]
#[serde(default)]
pub struct Tag {
    #[serde(deserialize_with = "lenient")]
    pub code: Option<String>,
}

fn lenient<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match serde_json::Value::deserialize(deserializer)? {
        serde_json::Value::String(text) => Some(text),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    })
}

fn lenient_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Tag>, D::Error> {
    Ok(serde_json::from_value(serde_json::Value::deserialize(deserializer)?).unwrap_or_default())
}

/// The key of a row: the logical id (case-sensitive), what decides which copy is the newest, and whether it is another
/// copy at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowKey {
    pub id: String,
    pub version: Version,
    /// Its position in its file; of two copies of the same version the later one counts.
    pub line: u64,
    /// Of the content of the line; equal hashes mean equal content, and such a row is not written again.
    pub hash: u64,
}

/// A resource that the server no longer has, from an entry of a `deleted` bundle.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deletion {
    pub resource_type: ResourceType,
    pub id: String,
    /// When, where its own entry says so.
    pub at: Option<DateTime<Utc>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_type_named_by_a_constant_is_one_that_would_parse() {
        for constant in [
            ResourceType::BINARY,
            ResourceType::BUNDLE,
            ResourceType::CONDITION,
            ResourceType::ENCOUNTER,
            ResourceType::MEDICATION_REQUEST,
            ResourceType::OBSERVATION,
            ResourceType::OPERATION_OUTCOME,
            ResourceType::ORGANIZATION,
            ResourceType::PARAMETERS,
            ResourceType::PATIENT,
            ResourceType::PRACTITIONER,
        ] {
            assert_eq!(constant.as_str().parse(), Ok(constant));
        }
    }

    /// (rule 134, Q-32)
    #[test]
    fn an_instant_is_read_in_every_form_that_servers_were_seen_to_send() {
        let expected = DateTime::parse_from_rfc3339("2020-01-20T21:53:41.160Z").unwrap().to_utc();
        for text in [
            "2020-01-20T21:53:41.160Z",
            "2020-01-20T16:53:41.16-05:00",
            "2020/01/20 16:53:41.160 -0500",
            "2020-01-20 21:53:41.160Z",
            "2020-01-20T16:53:41.160-0500",
        ] {
            assert_eq!(parse_instant(text), Some(expected), "{text}");
        }
        assert_eq!(parse_instant("2020-01-20T21:53:41"), None, "no zone, no instant");
        assert!(parse_instant("2016-12-31T23:59:60Z").is_some(), "a leap second is a time");
        for text in ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000-05:00", "9999-12-31T23:59:59-01:00"] {
            assert_eq!(parse_instant(text), None, "{text}");
        }
    }

    /// (rule 15, Q-11)
    #[test]
    fn since_is_in_milliseconds_and_never_rounded_up() {
        let time = TransactionTime::from(parse_instant("2026-11-20T10:00:00.999999999+02:00").unwrap());
        assert_eq!(time.since(TimeDelta::zero()).as_since(), "2026-11-20T08:00:00.999Z");
        assert_eq!(time.since(TimeDelta::minutes(5)).as_since(), "2026-11-20T07:55:00.999Z");
        assert_eq!(time.since(TimeDelta::zero()).as_micros() % 1000, 0, "what is compared is what was sent");
    }

    /// (rules 81 and 82, Q-51)
    #[test]
    fn the_newer_version_wins_and_a_missing_value_lets_the_next_one_decide() {
        let version = |last_updated_micros, version_id, transaction_time_micros| Version {
            last_updated_micros,
            version_id,
            transaction_time_micros,
            subsetted: false,
        };
        for (a, b, expected) in [
            (version(Some(2), Some(2), Some(1)), version(Some(1), Some(1), Some(9)), Ordering::Greater),
            (version(Some(2), Some(1), Some(1)), version(Some(1), Some(9), Some(2)), Ordering::Less),
            (version(Some(2), Some(1), None), version(Some(1), Some(9), None), Ordering::Equal),
            (version(Some(2), Some(1), None), version(Some(1), Some(1), None), Ordering::Greater),
            (version(Some(1), Some(2), None), version(Some(1), Some(10), None), Ordering::Less),
            (version(None, Some(2), Some(1)), version(Some(5), Some(1), Some(9)), Ordering::Greater),
            (version(None, None, Some(1)), version(Some(5), None, Some(9)), Ordering::Less),
            (version(None, None, None), version(None, None, Some(9)), Ordering::Equal),
        ] {
            assert_eq!(a.compare(&b), expected);
            assert_eq!(b.compare(&a), expected.reverse());
        }
    }

    #[test]
    fn a_version_contradicts_another_where_clock_and_number_disagree() {
        let version =
            |last_updated_micros, version_id| Version { last_updated_micros, version_id, ..Version::default() };
        let stored = version(Some(2), Some(2));
        assert!(version(Some(1), Some(3)).contradicts(&stored) && version(Some(3), Some(1)).contradicts(&stored));
        for agreeing in [version(Some(3), Some(3)), version(Some(3), Some(2)), version(Some(3), None), stored] {
            assert!(!agreeing.contradicts(&stored), "{agreeing:?}");
        }
    }

    /// (rule 26)
    #[test]
    fn a_subsetted_row_never_takes_the_place_of_a_whole_one() {
        let whole = Version { version_id: Some(1), ..Version::default() };
        let subsetted = Version { version_id: Some(2), subsetted: true, ..Version::default() };
        assert!(!subsetted.may_replace(&whole));
        assert!(whole.may_replace(&Version { subsetted: true, ..Version::default() }));
    }

    /// (rule 82)
    #[test]
    fn an_invalid_meta_loses_the_version_and_not_the_row() {
        let meta: Meta = serde_json::from_str(r#"{"lastUpdated":7,"versionId":3,"tag":"x"}"#).unwrap();
        assert_eq!(Version::of(Some(&meta)), Version { version_id: Some(3), ..Version::default() });
    }
}
