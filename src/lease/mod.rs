//! Leases: who may write to something that several processes reach. The document of a lease names its holder.
//!
//! A lock on a file admits one process of a host; a lease admits one holder from all hosts. It is taken by creating the
//! document, or by replacing exactly the one that was read; each new holder has an epoch, one more than the last. The
//! holder renews it. Before it writes the holder reads it again, and a holder that has lost it writes nothing more: a
//! commit that was already on its way meets the new holder's in the Delta log, where only one of two gets the next
//! version. The local clock decides nothing: a holder has ended when it says so, when its process is seen to have
//! ended, or when the document has not changed for [`STALE_AFTER`] while we watched.
//!
//! A lease may also be held by a group: processes that share the work. Each of them renews it, and none releases it: it
//! ends when the last of them is silent.

mod holder;
mod watch;

use std::{
    fmt,
    sync::{
        PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use uuid::Uuid;

pub use self::{holder::Holder, watch::Watch};
use self::{holder::Liveness, watch::Look};
use crate::{
    store::{Document, DocumentError, Stored, Swapped},
    telemetry::metrics,
};

/// How often the holder renews it.
pub const RENEWED_EVERY: Duration = Duration::from_secs(15);
/// A lease that has not changed for this long, while somebody watched it, is taken over.
pub const STALE_AFTER: Duration = Duration::from_mins(1);
/// How often the lease of somebody else is looked at while we wait.
const WATCHED_EVERY: Duration = Duration::from_secs(2);

#[derive(thiserror::Error, Debug)]
pub enum Error {
    #[error("another fhir-sync, {holder}, holds {subject} ({place})")]
    InUse { subject: Subject, place: String, holder: String },
    #[error("another fhir-sync, {holder}, has taken over {subject} ({place}); this one writes nothing more")]
    Lost { subject: Subject, place: String, holder: String },
    #[error(transparent)]
    Document(#[from] DocumentError),
}

/// What a lease admits to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Tables,
    State,
    Export(String),
    Maintenance,
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tables => out.write_str("the tables"),
            Self::State => out.write_str("the state"),
            Self::Export(export) => write!(out, "the export {export}"),
            Self::Maintenance => out.write_str("maintenance"),
        }
    }
}

/// A lease of this process.
#[derive(Debug)]
pub struct Lease {
    subject: Subject,
    document: Document,
    record: RwLock<Record>,
    /// The name of the holder before us.
    predecessor: Option<String>,
    /// The store cannot replace an object on a condition; then nobody has the lease, and nothing is checked.
    unsupported: AtomicBool,
}

/// What became of an attempt to take a lease.
#[derive(Debug)]
pub enum Attempt {
    Taken(Box<Lease>),
    /// As far as we can tell, this holder is alive.
    Held {
        holder: String,
    },
}

/// What the document says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    /// Counts the holders: a holder with a smaller number than that of the document has lost the lease.
    epoch: u64,
    #[serde(flatten)]
    holder: Holder,
    /// Counts the renewals, so that a watcher sees each.
    renewals: u64,
    /// For people only.
    renewed_at: DateTime<Utc>,
    /// The holder has ended and needs it no longer.
    #[serde(default)]
    released: bool,
    /// The group that holds it; `holder` is the process that renewed it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
}

impl Lease {
    /// Takes the lease. Waits for up to [`STALE_AFTER`] where nobody can say whether another holder is alive; a holder
    /// of the name `ended` is known not to be.
    pub async fn take(subject: Subject, document: Document, us: Holder, ended: Option<&str>) -> Result<Self, Error> {
        let mut watch = Watch::default();
        loop {
            let stored = document.read().await?;
            match watch.look(stored.as_ref(), &us, ended) {
                Look::Free => {}
                Look::Held(record) => return Err(in_use(subject, &document, &record)),
                Look::Silent { record, is_new } => {
                    if is_new {
                        tracing::warn!(
                            place = document.shown(), holder = %record.holder,
                            "another fhir-sync may hold {subject}; it counts as ended if its lease does not change \
                             for {}", humantime::format_duration(STALE_AFTER)
                        );
                    }
                    sleep(WATCHED_EVERY).await;
                    continue;
                }
            }
            if let Some(lease) = Self::claim(&subject, &document, &us, stored.as_ref(), None).await? {
                return Ok(lease);
            }
            watch = Watch::default();
        }
    }

    /// Takes the lease if it is free now. `watch` has seen it before, so that a holder who is silent for long enough
    /// gives way in the end.
    pub async fn attempt(
        subject: Subject,
        document: &Document,
        us: &Holder,
        watch: &mut Watch,
    ) -> Result<Attempt, Error> {
        let stored = document.read().await?;
        match watch.look(stored.as_ref(), us, None) {
            Look::Held(record) | Look::Silent { record, .. } => {
                return Ok(Attempt::Held { holder: record.holder.to_string() });
            }
            Look::Free => {}
        }
        let claimed = Self::claim(&subject, document, us, stored.as_ref(), None).await?;
        *watch = Watch::default();
        match claimed {
            Some(lease) => Ok(Attempt::Taken(Box::new(lease))),
            None => {
                let winner = document.read().await?;
                Ok(Attempt::Held { holder: readable(winner.as_ref()).holder.to_string() })
            }
        }
    }

    /// Joins the group that holds the lease: `group`, or whatever group it is; forms one where nobody holds it. Waits
    /// for up to [`STALE_AFTER`] where another holder may be alive.
    pub async fn join(subject: Subject, document: Document, us: Holder, group: Option<&str>) -> Result<Self, Error> {
        let mut watch = Watch::default();
        loop {
            let stored = document.read().await?;
            let found = stored.as_ref().and_then(record);
            let is_ours = |of: &Record| of.group.as_deref().is_some_and(|of| group.is_none_or(|ours| ours == of));
            if let Some(found) = found.filter(|found| !found.released && is_ours(found)) {
                let record = RwLock::new(Record { holder: us, ..found });
                let unsupported = AtomicBool::new(false);
                return Ok(Self { subject, document, record, predecessor: None, unsupported });
            }
            match watch.look(stored.as_ref(), &us, None) {
                Look::Free => {}
                Look::Held(record) => return Err(in_use(subject, &document, &record)),
                Look::Silent { .. } => {
                    sleep(WATCHED_EVERY).await;
                    continue;
                }
            }
            let group = group.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned);
            if let Some(lease) = Self::claim(&subject, &document, &us, stored.as_ref(), Some(group)).await? {
                return Ok(lease);
            }
            watch = Watch::default();
        }
    }

    /// The group that holds it, if it is one.
    pub fn group(&self) -> Option<String> {
        self.record.read().unwrap_or_else(PoisonError::into_inner).group.clone()
    }

    /// Replaces what was read by a record of ours; `None` where somebody else was faster.
    async fn claim(
        subject: &Subject,
        document: &Document,
        us: &Holder,
        stored: Option<&Stored>,
        group: Option<String>,
    ) -> Result<Option<Self>, Error> {
        let before = stored.and_then(record);
        let epoch = before.as_ref().map_or(1, |before| before.epoch + 1);
        let record = Record { epoch, holder: us.clone(), renewals: 0, renewed_at: now(), released: false, group };
        let unsupported = match document.swap(stored, text(&record)).await? {
            Swapped::Done(_) => false,
            Swapped::Overtaken => return Ok(None),
            Swapped::Unsupported => true,
        };
        if unsupported {
            tracing::warn!(
                place = document.shown(),
                "the object store cannot replace an object on a condition, so nothing keeps a second fhir-sync away \
                 from {subject}"
            );
        } else {
            tracing::debug!(place = document.shown(), epoch, "{subject}: ours to write");
        }
        Ok(Some(Self {
            subject: subject.clone(),
            document: document.clone(),
            record: RwLock::new(record),
            predecessor: before.map(|before| before.holder.name),
            unsupported: AtomicBool::new(unsupported),
        }))
    }

    /// The name of the holder before us, which has ended.
    pub fn predecessor(&self) -> Option<&str> {
        self.predecessor.as_deref()
    }

    /// Whether the store keeps its promise; if not, the lease holds nobody off.
    pub fn is_supported(&self) -> bool {
        !self.unsupported.load(Ordering::Relaxed)
    }

    /// [`Error::Lost`] when somebody else has taken it.
    pub async fn check(&self) -> Result<(), Error> {
        self.write(false, |_| {}).await
    }

    /// Renews the lease until nobody holds it any more, or somebody else does.
    pub async fn keep(lease: Weak<Self>) {
        loop {
            sleep(RENEWED_EVERY).await;
            let Some(lease) = lease.upgrade() else { return };
            match lease.write(true, |record| record.renewals += 1).await {
                Ok(()) => {}
                Err(error @ Error::Lost { .. }) => {
                    tracing::error!(%error, "a lease is lost");
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "the lease of {} could not be renewed; trying again", lease.subject);
                }
            }
        }
    }

    /// Gives the lease back, so that the next holder need not wait. That of a group stays.
    pub async fn release(&self) {
        if self.group().is_none()
            && let Err(error) = self.write(true, |record| record.released = true).await
        {
            tracing::debug!(%error, "the lease of {} was not released", self.subject);
        }
        self.measure(false);
    }

    /// Checks that the document is still ours, and replaces it where it is to `change`, or was removed.
    async fn write(&self, changes: bool, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        if self.unsupported.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut ours = self.record.read().unwrap_or_else(PoisonError::into_inner).clone();
        let stored = self.document.read().await?;
        match &stored {
            Some(stored) if !is_of(stored, &ours) => return Err(self.lost(stored)),
            Some(_) if !changes => return Ok(()),
            Some(_) => {}
            // Somebody has removed the document, perhaps with all tables. The first one to create it has the lease.
            None => {
                let place = self.document.shown();
                tracing::warn!(place, "the lease of {} was removed; writing it again", self.subject);
            }
        }
        change(&mut ours);
        ours.renewed_at = now();
        match self.document.swap(stored.as_ref(), text(&ours)).await? {
            Swapped::Done(_) => {}
            // Another thread of ours was faster, or another holder: the document says which.
            Swapped::Overtaken => match self.document.read().await? {
                Some(stored) if !is_of(&stored, &ours) => return Err(self.lost(&stored)),
                _ => return Ok(()),
            },
            Swapped::Unsupported => self.unsupported.store(true, Ordering::Relaxed),
        }
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = ours;
        Ok(())
    }

    fn lost(&self, stored: &Stored) -> Error {
        self.measure(false);
        let (subject, place) = (self.subject.clone(), self.document.shown());
        Error::Lost { subject, place, holder: readable(Some(stored)).holder.to_string() }
    }

    /// Whether this process may write the tables is a metric.
    fn measure(&self, is_held: bool) {
        if self.subject == Subject::Tables {
            metrics::lease_held(is_held);
        }
    }
}

impl Drop for Lease {
    /// In a folder this is quick. In an object store the next holder waits, unless it has the same state file.
    fn drop(&mut self) {
        let mut ours = self.record.read().unwrap_or_else(PoisonError::into_inner).clone();
        if ours.group.is_some() {
            return;
        }
        ours.released = true;
        let released = self.document.change_in_folder(|stored| is_of(&stored, &ours).then(|| text(&ours)));
        if let Err(error) = released {
            tracing::debug!(%error, "the lease of {} was not released", self.subject);
        }
    }
}

/// Who holds a lease, for people; `None` where nobody does. Whether the holder is alive is not asked.
pub async fn holder_of(document: &Document) -> Result<Option<String>, Error> {
    let stored = document.read().await?;
    let found = stored.as_ref().and_then(record).filter(|found| !found.released);
    Ok(found.map(|found| found.holder.to_string()))
}

fn text(record: &Record) -> String {
    // A record has no map and no text that is not a name, so this cannot fail.
    serde_json::to_string_pretty(record).unwrap_or_default()
}

fn record(stored: &Stored) -> Option<Record> {
    serde_json::from_str(&stored.text).ok()
}

fn is_of(stored: &Stored, ours: &Record) -> bool {
    record(stored).is_some_and(|stored| {
        let is_same = stored.group == ours.group && (ours.group.is_some() || stored.holder == ours.holder);
        stored.epoch == ours.epoch && is_same
    })
}

/// What a document says; one that nobody can read says nothing of its holder.
fn readable(stored: Option<&Stored>) -> Record {
    let unknown = || Record {
        epoch: 0,
        holder: Holder::unknown(),
        renewals: 0,
        renewed_at: DateTime::UNIX_EPOCH,
        released: false,
        group: None,
    };
    stored.and_then(record).unwrap_or_else(unknown)
}

fn in_use(subject: Subject, document: &Document, record: &Record) -> Error {
    Error::InUse { subject, place: document.shown(), holder: record.holder.to_string() }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the time is for people who look at the document; nothing follows from it"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}

#[cfg(test)]
mod tests;
