//! Absence: what it means that a full load brought nothing of a type.
//!
//! Absence is not emptiness. A server leaves out what the token does not cover, what it does not support, and what is
//! not in this group, and says nothing (rule 21). If the type got a watermark, its history would never be asked for. So
//! a type is empty only where the scopes cover it and the server's own count is zero.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Coverage, Error, Run, TypeEnd, intake::Received};
use crate::{
    export::{Granted, Level},
    fhir::ResourceType,
    state::{ExportState, JobInFlight},
};

/// What an absent type is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Absence {
    /// The server has none, and would say so if it had.
    Empty,
    /// The token does not cover the type.
    Denied { missing_scope: String },
    /// The server has this many, and exported none.
    Missing { on_server: u64 },
    /// Unknown.
    Unconfirmed,
}

/// What the types without a resource are, where their absence could become a watermark.
pub async fn absences(
    run: &Run<'_>,
    job: &JobInFlight,
    coverage: Coverage,
    received: &Received,
    held: &BTreeSet<ResourceType>,
) -> BTreeMap<ResourceType, Absence> {
    let mut absences = BTreeMap::new();
    if coverage.watermark.is_none() {
        return absences;
    }
    for (resource_type, of_type) in &received.types {
        // The operator's word is the evidence.
        let allow_empty = run.syncer.config.allow_empty.contains(resource_type);
        if !of_type.is_absent() || allow_empty || held.contains(resource_type) {
            continue;
        }
        // An increment is empty where nothing has changed, and some patients may have none; only scopes that have
        // narrowed speak against it.
        let absence = match job.not_granted.get(resource_type) {
            // What the token covers now says nothing about an export that was asked for with another one.
            Some(scope) => Some(Absence::Denied { missing_scope: scope.clone() }),
            None if coverage.kind.is_full() => Some(run.absence(*resource_type).await),
            None => run.denied(*resource_type).await,
        };
        absences.extend(absence.map(|absence| (*resource_type, absence)));
    }
    absences
}

/// A count is evidence, not data: no run waits long for it.
const PATIENCE: Duration = Duration::from_secs(30);

impl Run<'_> {
    /// Asks the token and the server why a full load brought nothing of a type.
    pub(super) async fn absence(&self, resource_type: ResourceType) -> Absence {
        let client = &self.syncer.client;
        let asked = async {
            match client.granted(resource_type).await {
                Granted::No { missing } => return Absence::Denied { missing_scope: missing },
                Granted::Unknown => return Absence::Unconfirmed,
                Granted::Yes => {}
            }
            match (client.count(resource_type).await, &self.export.level) {
                (Ok(Some(0)), _) => Absence::Empty,
                (Ok(Some(on_server)), Level::System) => Absence::Missing { on_server },
                // The others may belong to other patients, or to none.
                (Ok(Some(_)), Level::Patient | Level::Group(_)) | (Ok(None) | Err(_), _) => Absence::Unconfirmed,
            }
        };
        tokio::select! {
            absence = asked => absence,
            () = self.stop.cancelled() => Absence::Unconfirmed,
            () = tokio::time::sleep(PATIENCE) => Absence::Unconfirmed,
        }
    }
}

impl Run<'_> {
    /// Keeps with a job that was just asked for what its token does not cover. The job is in the state file already: a
    /// token endpoint that does not answer must not lose it.
    pub(super) async fn remember_not_granted(&self, job: &mut JobInFlight) -> Result<(), Error> {
        let asked = async {
            let mut not_granted = BTreeMap::new();
            for of in &job.types {
                if let Granted::No { missing } = self.syncer.client.granted(*of).await {
                    not_granted.insert(*of, missing);
                }
            }
            not_granted
        };
        let not_granted = tokio::time::timeout(PATIENCE, asked).await.unwrap_or_default();
        if not_granted.is_empty() {
            return Ok(());
        }
        job.not_granted.clone_from(&not_granted);
        let status_url = job.status_url.clone();
        let remember = move |state: &mut ExportState| {
            for job in state.jobs.iter_mut().filter(|job| job.status_url == status_url) {
                job.not_granted.clone_from(&not_granted);
            }
        };
        self.syncer.remember_export(self.export, remember).await
    }

    /// Whether the token no longer covers a type.
    pub(super) async fn denied(&self, resource_type: ResourceType) -> Option<Absence> {
        match self.syncer.client.granted(resource_type).await {
            Granted::No { missing } => Some(Absence::Denied { missing_scope: missing }),
            Granted::Yes | Granted::Unknown => None,
        }
    }
}

impl Absence {
    /// How a type ends that was absent; `None` where it is complete like any other.
    pub fn end(self) -> Option<TypeEnd> {
        match self {
            Self::Empty => None,
            Self::Denied { missing_scope } => Some(TypeEnd::Denied { missing_scope }),
            Self::Missing { on_server } => Some(TypeEnd::Missing { on_server }),
            Self::Unconfirmed => Some(TypeEnd::Unconfirmed),
        }
    }
}
