//! A plan: the watermarks of an export's types become the requests that bring it up to date. Pure.
//!
//! Types without a watermark share a full load, so that a type new in the configuration does not start at yesterday.
//! Others share a request since the oldest of their watermarks, where these are close to each other: it may bring more
//! rows than needed, which the upsert finds unchanged, but never fewer. A type that has lagged behind gets a separate
//! request, so that the others are not requested for weeks again.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::{
    export,
    fhir::{ResourceType, TransactionTime},
};

/// What one kick-off will ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedRequest {
    pub types: Vec<ResourceType>,
    /// `_since`; absent in a full load.
    pub since: Option<TransactionTime>,
}

/// Whether a run asks for what changed or for everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

impl PlannedRequest {
    /// Where the server refuses a request, it may refuse some of its types: those that it names are asked for by
    /// themselves, else each half, so that one type does not keep the others from being asked for. `None` where the
    /// types are not the cause, or nothing is left to divide.
    pub fn after_refusal(&self, error: &Error) -> Option<AfterRefusal> {
        let Error::Export(
            export::Error::Denied { status, issues, .. }
            | export::Error::Refused { refusal: export::Refusal::Status { status, issues }, .. },
        ) = error
        else {
            return None;
        };
        // 401 is about the token.
        if !status.is_client_error() || status.as_u16() == 401 {
            return None;
        }
        let named = issues.types_named(&self.types);
        let others: Vec<_> = self.types.iter().copied().filter(|of| !named.contains(of)).collect();
        let only = |types: &[ResourceType]| Self { types: types.to_vec(), since: self.since };
        let (again, unsupported) = match named.as_slice() {
            [of] => (vec![only(&others)], Some((*of, issues.to_string()))),
            // The words may also name the types that are supported.
            [_, ..] if !others.is_empty() => (vec![only(&others), only(&named)], None),
            _ if self.types.len() < 2 => return None,
            _ => {
                let (first, second) = self.types.split_at(self.types.len() / 2);
                (vec![only(first), only(second)], None)
            }
        };
        let again = again.into_iter().filter(|request| !request.types.is_empty()).collect();
        Some(AfterRefusal { again, unsupported })
    }
}

/// What follows from a refusal that may be about types.
#[derive(Debug, PartialEq, Eq)]
pub struct AfterRefusal {
    pub again: Vec<PlannedRequest>,
    /// The one type that the server names, and its words.
    pub unsupported: Option<(ResourceType, String)>,
}

/// Types whose watermarks are not further apart than this share a request.
const SHARED_SPAN: TimeDelta = TimeDelta::hours(1);
/// More requests would cost the server more than the rows that they spare it.
const MAX_INCREMENTAL: usize = 3;

/// What changed first, because the full load of a new type may take days; of this the freshest types first.
pub fn requests(
    watermarks: &[(ResourceType, Option<TransactionTime>)],
    mode: Mode,
    overlap: TimeDelta,
) -> Vec<PlannedRequest> {
    let mut known = Vec::new();
    let mut full = PlannedRequest { types: Vec::new(), since: None };
    for (resource_type, watermark) in watermarks {
        match watermark {
            Some(watermark) if mode == Mode::Incremental => known.push((*resource_type, *watermark)),
            _ => full.types.push(*resource_type),
        }
    }
    let mut requests = incremental(known, overlap);
    requests.extend((!full.types.is_empty()).then_some(full));
    requests
}

/// A request for each group of types, since the oldest watermark of the group.
fn incremental(mut known: Vec<(ResourceType, TransactionTime)>, overlap: TimeDelta) -> Vec<PlannedRequest> {
    known.sort_by_key(|(_, watermark)| std::cmp::Reverse(*watermark));
    let mut groups: Vec<Vec<(ResourceType, TransactionTime)>> = Vec::new();
    for (resource_type, watermark) in known {
        let count = groups.len();
        match groups.last_mut() {
            Some(group) if count == MAX_INCREMENTAL || shares(group, watermark) => {
                group.push((resource_type, watermark));
            }
            _ => groups.push(vec![(resource_type, watermark)]),
        }
    }
    let request = |mut group: Vec<(ResourceType, TransactionTime)>| {
        let since = group.iter().map(|(_, watermark)| *watermark).min().map(|oldest| oldest.since(overlap));
        group.sort_by_key(|(resource_type, _)| *resource_type);
        PlannedRequest { types: group.into_iter().map(|(resource_type, _)| resource_type).collect(), since }
    };
    groups.into_iter().map(request).collect()
}

/// Whether a watermark is close to the newest one of a group, which is its first.
fn shares(group: &[(ResourceType, TransactionTime)], watermark: TransactionTime) -> bool {
    group.first().is_some_and(|(_, newest)| newest.instant() - watermark.instant() <= SHARED_SPAN)
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
            .map(|request| {
                let types = request.types.into_iter().map(ResourceType::as_str).collect();
                (types, request.since.map(TransactionTime::as_since))
            })
            .collect()
    }

    /// (rule 113)
    #[test]
    fn a_type_without_a_watermark_gets_a_full_load_and_the_others_share_the_oldest() {
        let of = [("Patient", Some(100)), ("Condition", None), ("Encounter", Some(60))];
        assert_eq!(
            planned(&of, Mode::Incremental),
            [(vec!["Encounter", "Patient"], Some("1970-01-01T00:00:55.000Z".to_owned())), (vec!["Condition"], None),]
        );
    }

    #[test]
    fn a_type_that_lags_behind_does_not_drag_the_others_back() {
        let day = 24 * 3600;
        let of = [("Patient", Some(30 * day)), ("Condition", Some(30 * day - 1800)), ("Encounter", Some(9 * day))];
        let since =
            |of: Vec<(Vec<&'static str>, Option<String>)>| of.into_iter().map(|(types, _)| types).collect::<Vec<_>>();
        assert_eq!(since(planned(&of, Mode::Incremental)), [vec!["Condition", "Patient"], vec!["Encounter"]]);
    }

    #[test]
    fn however_many_types_lag_there_are_few_requests() {
        let names = ["Patient", "Condition", "Encounter", "Observation", "Procedure"];
        let of: Vec<_> = (1..).map(|day| Some(day * 24 * 3600)).zip(names).map(|(at, name)| (name, at)).collect();
        let planned = planned(&of, Mode::Incremental);
        assert_eq!(planned.len(), MAX_INCREMENTAL);
        assert_eq!(planned[2].0.len(), 3, "the oldest share one");
        assert_eq!(planned[2].1.as_deref(), Some("1970-01-01T23:59:55.000Z"));
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
