//! The jobs in flight: the only way back to an export that the server works on.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use url::Url;

use super::{Asked, KnownTable};
use crate::fhir::{ResourceType, TransactionTime};

/// An export job that was kicked off and is not settled yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobInFlight {
    pub status_url: Url,
    /// The server's own time when it accepted the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kicked_off_at: Option<TransactionTime>,
    /// The same at the earliest later answer, where the one to the kick-off does not state it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_at: Option<TransactionTime>,
    /// Since when the server denies what is asked of the job, by the local clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied_since: Option<DateTime<Utc>>,
    /// The local time of the kick-off, for the deadline of the job and the age of its data.
    pub polling_since: DateTime<Utc>,
    pub types: Vec<ResourceType>,
    /// `_since` as it was sent; absent in a full load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The run was a full refresh.
    pub full_refresh: bool,
    /// What was asked, and of which server; absent in a state file of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Url>,
    /// The types that the token of the kick-off did not cover, each with the scope that would: if the export has none of
    /// them, the server has left them out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub not_granted: BTreeMap<ResourceType, String>,
    /// Types that need nothing more from it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub settled: BTreeSet<ResourceType>,
    /// What it has brought already.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub finished: BTreeMap<ResourceType, FinishedFiles>,
    /// It is about these patients alone, who joined the group; of all of the export, if there are none.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub patients: BTreeSet<String>,
}

/// The files of one type whose rows are in its table, committed in instalments: they need not be read again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinishedFiles {
    /// Of the manifest that lists them.
    pub transaction_time: TransactionTime,
    /// Each as a hash of what identifies it in the manifest.
    pub files: BTreeSet<String>,
    /// The table as the last instalment left it.
    pub table: KnownTable,
    /// The table was empty when the job began.
    pub is_first_load: bool,
    /// Lines of these files, and how many of them are in quarantine.
    pub lines: u64,
    pub quarantined: u64,
}

impl JobInFlight {
    /// The job brings nothing that changed later than this, by the server's own clock.
    pub fn bound(&self) -> Option<TransactionTime> {
        self.kicked_off_at.or(self.answered_at)
    }

    /// The status URL as it is shown: its query may hold a secret.
    pub fn place(&self) -> String {
        format!("{}{}", self.status_url.origin().ascii_serialization(), self.status_url.path())
    }
}

/// An earlier version kept one job.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<JobInFlight>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Jobs {
        Many(Vec<JobInFlight>),
        One(Box<JobInFlight>),
    }
    Ok(match Option::<Jobs>::deserialize(deserializer)? {
        Some(Jobs::Many(jobs)) => jobs,
        Some(Jobs::One(job)) => vec![*job],
        None => Vec::new(),
    })
}
