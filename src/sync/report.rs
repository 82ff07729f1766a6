//! A report: what one run brought, per type, and how it ended. It is for health, logs and people; only the exit code
//! depends on it.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    Error, Mode, Outcome, Recovery, chain, error::is_denied, events, gap::Gap, quarantine::Quarantine, recovery,
};
use crate::{
    fhir::{ResourceType, TransactionTime},
    state::{JobInFlight, KnownTable},
    table::{Counts, LedgerFile},
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub export: String,
    pub run: u64,
    pub mode: Mode,
    pub started_at: DateTime<Utc>,
    pub ended_at: DateTime<Utc>,
    pub outcome: Outcome,
    /// Whether the state has this outcome. A state that cannot be written has that of an earlier run.
    pub is_remembered: bool,
    pub types: BTreeMap<ResourceType, TypeReport>,
    /// What the run committed of its types before their last commit, in order.
    pub instalments: Vec<(ResourceType, TypeReport)>,
    /// What stopped the run, or kept a watermark where it was: sentences for the operator.
    pub remarks: Vec<String>,
    /// What else the operator should know; it makes no run less than complete.
    pub notes: Vec<String>,
    /// Errors that the server reported and `sync.accept_reported_errors` accepts.
    pub accepted: Vec<String>,
}

/// What happened to one table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TypeReport {
    pub files: u64,
    /// Files of the same export that earlier instalments have committed, of this run or of earlier ones.
    pub files_before: u64,
    /// The same files, with what each of them held. For the ledger only.
    #[serde(skip)]
    pub file_list: Vec<LedgerFile>,
    /// Decoded bytes of its files.
    pub bytes: u64,
    /// Lines and deletions in its files, and its rows in files of other types. Equal to [`TypeReport::accounted`].
    pub received: u64,
    pub counts: Counts,
    /// Lines that are no resources.
    pub quarantined: u64,
    /// Damaged data files that were removed although other exports or sources may have had rows in them.
    pub damaged_files: u64,
    /// The same as `quarantined`, of the files that were read before, by earlier instalments of the job.
    pub quarantined_before: u64,
    /// The server's clock was set back from here: the load took what is stored up to here for older than itself.
    #[serde(skip)]
    pub set_back_from: Option<TransactionTime>,
    /// Lines of types that nobody asked for.
    pub not_wanted: u64,
    /// Lines that are what the server says about the file.
    pub outcomes: u64,
    /// Of the rows, those in files of other types.
    pub rerouted: u64,
    /// Why missing rows were counted, and not removed.
    pub gap: Option<Gap>,
    pub bytes_written: u64,
    /// Commits of other writers, since our last one, that changed rows.
    pub foreign_commits: u64,
    /// The table as our commit left it.
    pub table: Option<KnownTable>,
    pub end: TypeEnd,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TypeEnd {
    #[default]
    NotReached,
    /// Committed; all rows up to the watermark are in the table.
    Committed { version: u64, watermark: TransactionTime },
    /// A part was committed, without a watermark; the rest follows.
    Instalment { version: u64 },
    /// Committed, but rows may be missing: the watermark was not moved.
    WatermarkHeld { version: u64 },
    /// Committed, but the export ends no later than the one before: it is an old one again.
    Behind { version: u64, watermark: TransactionTime },
    /// Committed, but the export ends before the watermark that the table had: the server's clock was set back, and what
    /// changed in between is unknown. All of the type is asked for again; its watermark was not moved.
    SetBack { version: u64 },
    /// Absent, because the token does not cover it.
    Denied { missing_scope: String },
    /// The server refuses a kick-off that asks for it, in these words; it was left out.
    Unsupported { words: String },
    /// Absent from a full load, although the server has this many.
    Missing { on_server: u64 },
    /// Absent from a full load, and it is unknown whether the server has any. It has no watermark.
    Unconfirmed,
    /// The same, but it has a watermark: it was loaded before.
    LeftOut,
    /// Its table is unchanged, apart from instalments.
    Failed(Failure),
}

/// Why a type failed, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// A sentence for the operator.
    pub cause: String,
    pub recovery: Recovery,
    /// The server denies what is asked of the job.
    #[serde(skip)]
    pub is_denied: bool,
}

impl Failure {
    pub(super) fn of(error: &Error) -> Self {
        Self { cause: chain(error), recovery: recovery(error), is_denied: is_denied(error) }
    }
}

impl TypeEnd {
    /// For the ledger, the state file and `/health`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Instalment { .. } => "instalment",
            Self::NotReached => "not reached",
            Self::Committed { .. } => "committed",
            Self::WatermarkHeld { .. } => "watermark held",
            Self::Behind { .. } => "behind",
            Self::SetBack { .. } => "set back",
            Self::Denied { .. } | Self::Unsupported { .. } => "denied",
            Self::Missing { .. } => "missing",
            Self::Unconfirmed => "unconfirmed",
            Self::LeftOut => "left out",
            Self::Failed(_) => "failed",
        }
    }
}

impl TypeEnd {
    /// Of the table, where the run committed to it.
    pub fn version(&self) -> Option<u64> {
        match self {
            Self::Committed { version, .. }
            | Self::Instalment { version }
            | Self::WatermarkHeld { version }
            | Self::Behind { version, .. }
            | Self::SetBack { version } => Some(*version),
            Self::Denied { .. }
            | Self::Unsupported { .. }
            | Self::Missing { .. }
            | Self::Unconfirmed
            | Self::LeftOut
            | Self::Failed(_)
            | Self::NotReached => None,
        }
    }

    /// What the operator should know about it; nothing of a type that was committed, or that the run did not reach.
    pub fn sentence(&self) -> Option<String> {
        Some(match self {
            Self::Committed { .. } | Self::NotReached => return None,
            Self::Instalment { .. } => "a part of it was committed; the next sync reads the rest".to_owned(),
            Self::WatermarkHeld { .. } => {
                "rows were committed, but the next sync asks for the same period again, because data may be missing"
                    .to_owned()
            }
            Self::Behind { watermark, .. } => {
                format!("the export does not go beyond the one before; the next sync asks from {watermark}")
            }
            Self::SetBack { .. } => {
                "rows were committed, but the server's clock was set back; the next sync asks for everything".to_owned()
            }
            Self::Denied { missing_scope } => format!("the scope {missing_scope} is not granted"),
            Self::Unsupported { words } => format!("the server refuses the type, {words}"),
            Self::Missing { on_server } => format!("nothing arrived, and the server has {on_server}"),
            Self::Unconfirmed => "nothing arrived, and whether the server has any is unknown".to_owned(),
            Self::LeftOut => {
                "nothing arrived, whether the server has any is unknown, and the type was loaded before".to_owned()
            }
            Self::Failed(failure) => failure.cause.clone(),
        })
    }
}

impl TypeReport {
    /// What became of each received line and deletion of a type that was committed. Nothing is dropped silently.
    pub fn accounted(&self) -> u64 {
        self.counts.total() + self.quarantined + self.not_wanted + self.outcomes
    }
}

impl Report {
    pub fn begin(export: &str, run: u64, mode: Mode, types: &[ResourceType], started_at: DateTime<Utc>) -> Self {
        Self {
            export: export.to_owned(),
            run,
            mode,
            started_at,
            ended_at: started_at,
            outcome: Outcome::Failed,
            is_remembered: false,
            types: types.iter().map(|resource_type| (*resource_type, TypeReport::default())).collect(),
            instalments: Vec::new(),
            remarks: Vec::new(),
            notes: Vec::new(),
            accepted: Vec::new(),
        }
    }

    /// `_sync_job` of the rows of this run.
    pub fn job(&self) -> String {
        format!("{}#{}", self.export, self.run)
    }

    /// The run has ended. `error` is what stopped it.
    pub(super) fn end(&mut self, error: Option<&Error>, quarantine: &Quarantine, ended_at: DateTime<Utc>) {
        self.ended_at = ended_at;
        self.remarks.extend(quarantine.remark());
        self.outcome = match error {
            None => self.outcome_of_types(),
            Some(Error::Stopped) => Outcome::Stopped,
            Some(error) => {
                self.remarks.push(chain(error));
                self.outcome_of_types()
            }
        };
    }

    /// A type failed before anything was asked for it.
    pub(super) fn fail_type(&mut self, resource_type: ResourceType, error: &Error) {
        events::failed(resource_type, error);
        self.types.entry(resource_type).or_default().end = TypeEnd::Failed(Failure::of(error));
    }

    /// The run cannot count as a success, whatever was committed.
    pub(super) fn fail(&mut self, error: &Error) {
        self.remarks.push(chain(error));
        self.outcome = Outcome::Failed;
    }

    /// What the ends of the types amount to.
    fn outcome_of_types(&self) -> Outcome {
        let committed = |end: &TypeEnd| matches!(end, TypeEnd::Committed { .. } | TypeEnd::Unconfirmed);
        let is_clean =
            self.commits().all(|report| report.quarantined + report.quarantined_before == 0) && self.remarks.is_empty();
        if is_clean && self.types.values().all(|report| committed(&report.end)) {
            return Outcome::Complete;
        }
        let written =
            |end: &TypeEnd| !matches!(end, TypeEnd::NotReached | TypeEnd::Unsupported { .. } | TypeEnd::Failed(_));
        if self.commits().any(|report| written(&report.end)) { Outcome::Partial } else { Outcome::Failed }
    }

    /// The watermarks after the commits that set one.
    pub fn watermarks(&self) -> Vec<(ResourceType, TransactionTime)> {
        let moved = self.types.iter().filter_map(|(resource_type, report)| match report.end {
            TypeEnd::Committed { watermark, .. } | TypeEnd::Behind { watermark, .. } => {
                Some((*resource_type, watermark))
            }
            _ => None,
        });
        moved.collect()
    }

    /// The tables whose watermarks moved, as our commits left them.
    pub fn tables(&self) -> Vec<(ResourceType, KnownTable)> {
        let moved = self.watermarks().into_iter();
        moved
            .filter_map(|(resource_type, _)| Some((resource_type, self.types[&resource_type].table.clone()?)))
            .collect()
    }

    /// From when the data are of the types of a job whose watermarks moved to where the job goes. A type that is behind
    /// is not among them: what changed since its old export may be missing.
    pub fn data_as_of(&self, job: &JobInFlight) -> Vec<(ResourceType, DateTime<Utc>)> {
        let of_job = self.types.iter().filter(|(resource_type, _)| job.types.contains(resource_type));
        let committed = of_job.filter_map(|(resource_type, report)| match report.end {
            TypeEnd::Committed { watermark, .. } => Some((*resource_type, job.data_as_of(watermark))),
            _ => None,
        });
        committed.collect()
    }

    /// What the run left open: sentences without content of resources.
    pub fn warnings(&self) -> Vec<String> {
        let accepted = self.accepted.iter().map(|accepted| format!("accepted: {accepted}"));
        self.notes.iter().cloned().chain(self.causes()).chain(accepted).collect()
    }

    /// The types that were absent from a full load, for an unknown reason.
    pub fn unconfirmed(&self) -> Vec<ResourceType> {
        let unconfirmed = self.types.iter().filter(|(_, report)| report.end == TypeEnd::Unconfirmed);
        unconfirmed.map(|(resource_type, _)| *resource_type).collect()
    }

    /// The types that were absent from a full load, and are known to be more than that.
    pub fn known_absent(&self) -> Vec<ResourceType> {
        let is_known = |end: &TypeEnd| {
            matches!(end, TypeEnd::Denied { .. } | TypeEnd::Unsupported { .. } | TypeEnd::Missing { .. })
        };
        let absent = self.types.iter().filter(|(_, report)| is_known(&report.end));
        absent.map(|(resource_type, _)| *resource_type).collect()
    }

    /// The types that a full load should have brought, as far as anybody knows.
    pub fn to_load_again(&self) -> Vec<ResourceType> {
        let is_left_out = |end: &TypeEnd| matches!(end, TypeEnd::LeftOut | TypeEnd::Missing { .. });
        let left_out = self.types.iter().filter(|(_, report)| is_left_out(&report.end));
        left_out.map(|(resource_type, _)| *resource_type).collect()
    }

    /// The types of a job whose watermarks moved, with the rows that they kept although the export lacks them.
    pub fn kept_rows(&self, job: &JobInFlight) -> Vec<(ResourceType, u64)> {
        let moved = self.watermarks().into_iter().filter(|(resource_type, _)| job.types.contains(resource_type));
        moved.map(|(resource_type, _)| (resource_type, self.types[&resource_type].counts.missing)).collect()
    }

    /// The types that failed because the server denies what was asked of the job.
    pub fn files_denied(&self) -> Vec<ResourceType> {
        let is_denied = |report: &TypeReport| matches!(&report.end, TypeEnd::Failed(failure) if failure.is_denied);
        self.types.iter().filter(|(_, report)| is_denied(report)).map(|(of, _)| *of).collect()
    }

    /// The types whose export ends before the one before it.
    pub fn set_back(&self) -> Vec<ResourceType> {
        let set_back = self.types.iter().filter(|(_, report)| matches!(report.end, TypeEnd::SetBack { .. }));
        set_back.map(|(resource_type, _)| *resource_type).collect()
    }

    /// The types that failed, each with its cause.
    pub fn failed_types(&self) -> impl Iterator<Item = (&ResourceType, &str)> {
        self.types.iter().filter_map(|(resource_type, report)| match &report.end {
            TypeEnd::Failed(failure) => Some((resource_type, failure.cause.as_str())),
            _ => None,
        })
    }

    /// Why the run is not complete: the causes of the types that failed, and the remarks.
    pub fn causes(&self) -> Vec<String> {
        let failed = self.failed_types().map(|(resource_type, cause)| format!("{resource_type}: {cause}"));
        failed.chain(self.remarks.iter().cloned()).collect()
    }

    /// The instalments, and the last commit of each type, or what kept it from being made.
    fn commits(&self) -> impl Iterator<Item = &TypeReport> {
        self.instalments.iter().map(|(_, report)| report).chain(self.types.values())
    }

    pub fn received(&self) -> u64 {
        self.commits().map(|report| report.received).sum()
    }

    /// Rows that a reader of the tables sees differently than before.
    pub fn changed(&self) -> u64 {
        let changed = |counts: &Counts| counts.inserted + counts.updated + counts.deleted + counts.removed;
        self.commits().map(|report| changed(&report.counts)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPERATIONS: &str = include_str!("../../docs/operations.md");

    /// The next variant, so that none is left out.
    fn next(end: &TypeEnd) -> Option<TypeEnd> {
        let (version, watermark) = (1, TransactionTime::EPOCH);
        Some(match end {
            TypeEnd::NotReached => TypeEnd::Committed { version, watermark },
            TypeEnd::Committed { .. } => TypeEnd::Instalment { version },
            TypeEnd::Instalment { .. } => TypeEnd::WatermarkHeld { version },
            TypeEnd::WatermarkHeld { .. } => TypeEnd::Behind { version, watermark },
            TypeEnd::Behind { .. } => TypeEnd::SetBack { version },
            TypeEnd::SetBack { .. } => TypeEnd::Denied { missing_scope: String::new() },
            TypeEnd::Denied { .. } => TypeEnd::Unsupported { words: String::new() },
            TypeEnd::Unsupported { .. } => TypeEnd::Missing { on_server: 1 },
            TypeEnd::Missing { .. } => TypeEnd::Unconfirmed,
            TypeEnd::Unconfirmed => TypeEnd::LeftOut,
            TypeEnd::LeftOut => TypeEnd::Failed(Failure::of(&Error::Stopped)),
            TypeEnd::Failed(_) => return None,
        })
    }

    #[test]
    fn the_operator_s_page_has_a_row_for_every_end_of_a_type() {
        let ends: Vec<_> = std::iter::successors(Some(TypeEnd::NotReached), next).collect();
        assert_eq!(ends.len(), 12);
        for end in ends {
            let row = format!("\n| `{}` | ", end.word());
            assert!(OPERATIONS.contains(&row), "{row}");
        }
    }
}
