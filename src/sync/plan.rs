//! A plan: the watermarks of an export's types become the requests that bring it up to date. Pure.
//!
//! Types without a watermark share a full load, so that a type new in the configuration does not start at yesterday;
//! the others share one request since the oldest of their watermarks. It may bring more rows than needed, which the
//! upsert finds unchanged, but never fewer.

use chrono::TimeDelta;

use crate::fhir::{ResourceType, TransactionTime};

/// What one kick-off will ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedRequest {
    pub types: Vec<ResourceType>,
    /// `_since`; absent in a full load.
    pub since: Option<String>,
}

/// Whether a run asks for what changed or for everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    Incremental,
    FullRefresh,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.pad(match self {
            Self::Incremental => "incremental",
            Self::FullRefresh => "full refresh",
        })
    }
}

/// At most two requests: what changed first, because the full load of a new type may take days.
pub fn requests(
    watermarks: &[(ResourceType, Option<TransactionTime>)],
    mode: Mode,
    overlap: TimeDelta,
) -> Vec<PlannedRequest> {
    let (known, unknown): (Vec<_>, Vec<_>) =
        watermarks.iter().copied().partition(|(_, watermark)| watermark.is_some() && mode == Mode::Incremental);
    let types = |watermarks: &[(ResourceType, _)]| watermarks.iter().map(|(resource_type, _)| *resource_type).collect();
    let oldest = known.iter().filter_map(|(_, watermark)| *watermark).min();
    let full = PlannedRequest { types: types(&unknown), since: None };
    let incremental = PlannedRequest { types: types(&known), since: oldest.map(|watermark| watermark.since(overlap)) };
    [incremental, full].into_iter().filter(|request| !request.types.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watermarks(of: &[(&str, Option<i64>)]) -> Vec<(ResourceType, Option<TransactionTime>)> {
        of.iter()
            .map(|(name, seconds)| {
                (name.parse().unwrap(), seconds.and_then(|seconds| TransactionTime::from_micros(seconds * 1_000_000)))
            })
            .collect()
    }

    fn planned(of: &[(&str, Option<i64>)], mode: Mode) -> Vec<(Vec<&'static str>, Option<String>)> {
        requests(&watermarks(of), mode, TimeDelta::seconds(5))
            .into_iter()
            .map(|request| (request.types.into_iter().map(ResourceType::as_str).collect(), request.since))
            .collect()
    }

    #[test]
    fn a_type_without_a_watermark_gets_a_full_load_and_the_others_share_the_oldest() {
        let of = [("Patient", Some(100)), ("Condition", None), ("Encounter", Some(60))];
        assert_eq!(
            planned(&of, Mode::Incremental),
            [(vec!["Patient", "Encounter"], Some("1970-01-01T00:00:55.000Z".to_owned())), (vec!["Condition"], None),]
        );
    }

    #[test]
    fn a_full_refresh_asks_for_everything_at_once() {
        let of = [("Patient", Some(100)), ("Condition", None)];
        assert_eq!(planned(&of, Mode::FullRefresh), [(vec!["Patient", "Condition"], None)]);
    }

    #[test]
    fn nothing_configured_asks_for_nothing() {
        assert!(planned(&[], Mode::Incremental).is_empty());
    }
}
