//! Settings: which exports are kept in step with the server, and how each is synced.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::quarantine::Policy;
use crate::{
    export::{ExportParameters, Level},
    fhir::ResourceType,
    resource, spark,
    state::Asked,
    table::Reconcile,
};

/// How every export is synced.
#[derive(Clone, Debug)]
pub struct Config {
    /// `_sync_source` of all rows.
    pub source: Arc<str>,
    pub source_chosen: Chosen,
    /// `_since` is this much earlier than the watermark.
    pub overlap: TimeDelta,
    /// A type that a full load did not bring, for no known reason, is asked for in full again after this time.
    pub recheck_absent: TimeDelta,
    /// A type that the server refuses by its name is left out and counts as denied; otherwise it fails.
    pub drop_unsupported_types: bool,
    pub parallel_downloads: usize,
    pub parallel_upserts: usize,
    pub max_line_bytes: usize,
    pub quarantine: QuarantineLimit,
    /// Of the quarantine, with the lines of all runs.
    pub max_quarantine_bytes: u64,
    pub quarantine_policy: Policy,
    /// Codes of errors that the server may report without holding a watermark: the operator knows what is missing.
    pub accept_reported_errors: BTreeSet<String>,
    /// When a full refresh removes the rows that the server no longer sends.
    pub reconcile: Reconcile,
    /// Types of which a full refresh may remove all rows. Said for one sync by the operator, never by the
    /// configuration.
    pub allow_empty: BTreeSet<ResourceType>,
    /// Received rows beyond this are spooled to the disk; for all types together.
    pub change_set_memory_bytes: usize,
    /// For the lines of all files that are being decoded, and the rows that they become.
    pub decoding_memory_bytes: usize,
    pub spool_folder: PathBuf,
    /// When this much of a type has arrived, in decoded bytes, it is committed without a watermark.
    pub instalment_bytes: u64,
    /// Without it each run is a full refresh.
    pub supports_since: bool,
    /// A run that takes longer ends as if it were stopped; the next one continues with the same export.
    pub max_run_time: Duration,
    /// Between two readings of the files of an export that is in progress.
    pub partial_interval: Duration,
    /// A column for each FHIR element, where the server speaks R4; else only the leading columns and `resource_json`.
    pub typed: bool,
    pub columns: resource::Options,
    /// Where the tables of resources are written by Spark.
    pub spark: Option<spark::Config>,
}

/// Who chose a value. A source that the operator chose may move to another address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    ByDefault,
    ByOperator,
}

/// How many lines of one type may be in quarantine. The type fails only when both limits are exceeded: a few bad lines
/// must never stop the many good ones that arrived with them.
#[derive(Clone, Copy, Debug)]
pub struct QuarantineLimit {
    pub max_quarantined: u64,
    /// Of the lines that were received.
    pub max_quarantined_percent: f64,
}

impl QuarantineLimit {
    pub fn is_exceeded(self, quarantined: u64, received: u64) -> bool {
        #[expect(clippy::cast_precision_loss, reason = "a percentage needs no more than 52 bits")]
        let percent = quarantined as f64 * 100.0 / received.max(1) as f64;
        quarantined > self.max_quarantined && percent > self.max_quarantined_percent
    }
}

/// What is kept in step with the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    /// Names the watermarks in the tables: under another name every type starts with a full load.
    pub name: String,
    pub level: Level,
    pub types: Vec<ResourceType>,
    /// Types that no other export has: if a full refresh lacks a row of them, the server deleted the resource.
    pub reconciled: BTreeSet<ResourceType>,
    /// Files are read while the server still works on the export (rule 64).
    #[serde(default)]
    pub allow_partial_manifests: bool,
    /// What else is asked for.
    #[serde(default)]
    pub parameters: ExportParameters,
    /// What a full load sends as `_since`, to servers whose exports without it are not everything.
    #[serde(default)]
    pub initial_since: Option<String>,
    /// At the level group: who brings the history of those who join it.
    #[serde(default)]
    pub joiners: Joiners,
    #[serde(default)]
    pub leavers: Leavers,
}

/// Who brings the history of patients who join a group (rule 107).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Joiners {
    /// We compare the members, and ask for it.
    #[default]
    AskFor,
    /// The server, with the changes.
    Server,
}

/// What becomes of the rows of patients who leave a group (rule 112).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leavers {
    #[default]
    Keep,
    /// They stay, and the report says so.
    Flag,
    /// A full load follows, which removes what it lacks.
    Remove,
}

impl Export {
    /// Of all resources of these types, which no other export has.
    pub fn new(name: &str, level: Level, types: Vec<ResourceType>) -> Self {
        Self {
            name: name.to_owned(),
            level,
            reconciled: types.iter().copied().collect(),
            types,
            allow_partial_manifests: false,
            parameters: ExportParameters::default(),
            initial_since: None,
            joiners: Joiners::default(),
            leavers: Leavers::default(),
        }
    }

    /// What the watermarks stand for, for rows of this source.
    pub fn asked(&self, source: &str) -> Asked {
        let (level, group) = (self.level.word(), self.level.group().map(str::to_owned));
        let mut parameters = self.parameters.deciding();
        parameters.extend(self.initial_since.clone().map(|since| ("initial_since".to_owned(), vec![since])));
        Asked::new(source, level, group, &parameters)
    }

    /// The application id of the watermarks: the `appId` of a Delta `txn` action.
    pub fn app_id(&self, source: &str) -> String {
        format!("{}/{}", self.app_id_before(), self.asked(source).fingerprint())
    }

    /// The application id of watermarks that versions wrote which did not record what was asked.
    pub fn app_id_before(&self) -> String {
        format!("fhir-sync/{}", self.name)
    }
}
