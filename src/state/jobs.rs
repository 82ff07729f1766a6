//! The jobs in flight: the only way back to an export that the server works on.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

use super::{Asked, KnownTable};
use crate::fhir::{ResourceType, TransactionTime};

/// An export job that was kicked off and is not settled yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobInFlight {
    pub status_url: Url,
    /// The server's own time when it accepted the job.
    #[serde(rename = "kicked_off_at", default, skip_serializing_if = "Option::is_none")]
    pub server_time_at_kick_off: Option<TransactionTime>,
    /// The same at the earliest later answer, where the one to the kick-off does not state it.
    #[serde(rename = "answered_at", default, skip_serializing_if = "Option::is_none")]
    pub server_time_later: Option<TransactionTime>,
    /// Since when the server denies what is asked of the job, by the local clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denied_since: Option<DateTime<Utc>>,
    /// The local time of the kick-off, for the deadline of the job and the age of its data.
    #[serde(rename = "polling_since")]
    pub kicked_off_locally_at: DateTime<Utc>,
    pub types: Vec<ResourceType>,
    /// `_since` as planned; absent in a full load, even one that sends `initial_since`.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "as_since")]
    pub since: Option<TransactionTime>,
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

/// What a job brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// What has changed since then.
    Increment(TransactionTime),
    /// Everything, in an incremental run: of types that have no watermark, or whose watermark does not count.
    FullLoad,
    /// Everything, in a run that is a full refresh: a row that it lacks was deleted on the server.
    FullRefresh,
    /// Everything of some patients, who joined the group: it says nothing about how far its types are.
    Joiners,
}

impl JobKind {
    /// Whether it brings everything of its types.
    pub fn is_full(self) -> bool {
        matches!(self, Self::FullLoad | Self::FullRefresh)
    }

    /// From where it goes.
    pub fn since(self) -> Option<TransactionTime> {
        match self {
            Self::Increment(since) => Some(since),
            Self::FullLoad | Self::FullRefresh | Self::Joiners => None,
        }
    }
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
    /// The server's own time at the kick-off, or else the earliest later one: the job brings nothing that changed later.
    pub fn server_time(&self) -> Option<TransactionTime> {
        self.server_time_at_kick_off.or(self.server_time_later)
    }

    pub fn kind(&self) -> JobKind {
        match self.since {
            _ if !self.patients.is_empty() => JobKind::Joiners,
            Some(since) => JobKind::Increment(since),
            None if self.full_refresh => JobKind::FullRefresh,
            None => JobKind::FullLoad,
        }
    }

    /// The status URL as it is shown: its query may hold a secret.
    pub fn place(&self) -> String {
        format!("{}{}", self.status_url.origin().ascii_serialization(), self.status_url.path())
    }
}

/// `_since` in the file, as it is sent. A text that is no instant breaks the file: without its `_since`, the job of an
/// increment would look like one that brings everything.
mod as_since {
    use super::{DateTime, Deserialize, Deserializer, Serialize, Serializer, TransactionTime, Utc};

    #[expect(clippy::ref_option, reason = "the signature that serde calls")]
    pub fn serialize<S: Serializer>(since: &Option<TransactionTime>, serializer: S) -> Result<S::Ok, S::Error> {
        since.map(TransactionTime::as_since).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TransactionTime>, D::Error> {
        Ok(Option::<DateTime<Utc>>::deserialize(deserializer)?.map(TransactionTime::from))
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
