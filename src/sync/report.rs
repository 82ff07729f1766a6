//! A report: what one run brought, per type, and how it ended. Health, logs and people read it; nothing is decided by it
//! but the exit code.

use std::{collections::BTreeMap, fmt};

use chrono::{DateTime, Utc};

use super::Mode;
use crate::{
    fhir::{ResourceType, TransactionTime},
    table::Counts,
};

#[derive(Clone, Debug)]
pub struct Report {
    pub export: String,
    pub run: u64,
    pub mode: Mode,
    pub started_at: DateTime<Utc>,
    pub ended_at: DateTime<Utc>,
    pub outcome: Outcome,
    pub types: BTreeMap<ResourceType, TypeReport>,
    /// What stopped the run, or kept a watermark where it was: sentences for the operator.
    pub remarks: Vec<String>,
}

/// What happened to one table.
#[derive(Clone, Debug, Default)]
pub struct TypeReport {
    pub files: u64,
    /// Decoded bytes of its files.
    pub bytes: u64,
    /// Lines and deletions that came.
    pub received: u64,
    pub counts: Counts,
    pub quarantined: u64,
    pub bytes_written: u64,
    /// Commits of other writers, since our last one, that changed rows.
    pub foreign_commits: u64,
    pub end: TypeEnd,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TypeEnd {
    #[default]
    NotReached,
    /// Committed, and how far the table has come.
    Committed {
        version: u64,
        watermark: TransactionTime,
    },
    /// Committed, but the rows may not be all: the watermark stays.
    WatermarkHeld {
        version: u64,
    },
    Failed(String),
}

impl fmt::Display for TypeEnd {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReached => out.write_str("not reached"),
            Self::Committed { version, watermark } => write!(out, "version {version}, watermark {watermark}"),
            Self::WatermarkHeld { version } => write!(out, "version {version}, the watermark stays"),
            Self::Failed(reason) => write!(out, "failed: {reason}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every type has every row up to its new watermark.
    Complete,
    /// Something was committed, something is missing.
    Partial,
    Failed,
    /// Asked to stop; the next start goes on.
    Stopped,
}

impl fmt::Display for Outcome {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        })
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
            types: types.iter().map(|resource_type| (*resource_type, TypeReport::default())).collect(),
            remarks: Vec::new(),
        }
    }

    /// `_sync_job` of the rows of this run.
    pub fn job(&self) -> String {
        format!("{}#{}", self.export, self.run)
    }

    pub fn of(&mut self, resource_type: ResourceType) -> &mut TypeReport {
        self.types.entry(resource_type).or_default()
    }

    /// What the ends of the types amount to, if nothing stopped the run.
    pub fn outcome_of_types(&self) -> Outcome {
        let committed = |end: &TypeEnd| matches!(end, TypeEnd::Committed { .. });
        if self.types.values().all(|of| committed(&of.end) && of.quarantined == 0) && self.remarks.is_empty() {
            return Outcome::Complete;
        }
        let written = |end: &TypeEnd| matches!(end, TypeEnd::Committed { .. } | TypeEnd::WatermarkHeld { .. });
        if self.types.values().any(|of| written(&of.end)) { Outcome::Partial } else { Outcome::Failed }
    }

    pub fn received(&self) -> u64 {
        self.types.values().map(|of| of.received).sum()
    }

    /// Rows that a reader of the tables sees differently than before.
    pub fn changed(&self) -> u64 {
        self.types
            .values()
            .map(|of| of.counts.inserted + of.counts.updated + of.counts.deleted + of.counts.removed)
            .sum()
    }
}

impl TypeReport {
    /// Nothing is dropped silently: what came is what is accounted for.
    pub fn is_balanced(&self) -> bool {
        self.received == self.counts.total() + self.quarantined
    }
}
