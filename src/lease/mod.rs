//! Leases: who may write to something that several processes reach. The document of a lease names its holder.
//!
//! A lock on a file admits one process of a host; a lease admits one holder from all hosts. It is taken by creating the
//! document, or by replacing exactly the one that was read; each new holder has an epoch, one more than the last. The
//! holder renews it. Before it writes the holder reads it again, and a holder that has lost it writes nothing more: a
//! commit that was already on its way meets the new holder's in the Delta log, where only one of two gets the next
//! version. The local clock decides nothing: a holder has ended when it says so, when its process is seen to have
//! ended, or when the document has not changed for [`STALE_AFTER`] while we watched.

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
}

impl fmt::Display for Subject {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tables => out.write_str("the tables"),
            Self::State => out.write_str("the state"),
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
            if let Some(lease) = Self::claim(&subject, &document, &us, stored.as_ref()).await? {
                return Ok(lease);
            }
            watch = Watch::default();
        }
    }

    /// Replaces what was read by a record of ours; `None` where somebody else was faster.
    async fn claim(
        subject: &Subject,
        document: &Document,
        us: &Holder,
        stored: Option<&Stored>,
    ) -> Result<Option<Self>, Error> {
        let before = stored.and_then(record);
        let epoch = before.as_ref().map_or(1, |before| before.epoch + 1);
        let record = Record { epoch, holder: us.clone(), renewals: 0, renewed_at: now(), released: false };
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

    /// Gives the lease back, so that the next holder need not wait.
    pub async fn release(&self) {
        if let Err(error) = self.write(true, |record| record.released = true).await {
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
    pub fn measure(&self, is_held: bool) {
        if self.subject == Subject::Tables {
            metrics::lease_held(is_held);
        }
    }
}

impl Drop for Lease {
    /// In a folder this is quick. In an object store the next holder waits, unless it has the same state file.
    fn drop(&mut self) {
        let mut ours = self.record.read().unwrap_or_else(PoisonError::into_inner).clone();
        ours.released = true;
        let released = self.document.change_in_folder(|stored| is_of(&stored, &ours).then(|| text(&ours)));
        if let Err(error) = released {
            tracing::debug!(%error, "the lease of {} was not released", self.subject);
        }
    }
}

fn text(record: &Record) -> String {
    // A record has no map and no text that is not a name, so this cannot fail.
    serde_json::to_string_pretty(record).unwrap_or_default()
}

fn record(stored: &Stored) -> Option<Record> {
    serde_json::from_str(&stored.text).ok()
}

fn is_of(stored: &Stored, ours: &Record) -> bool {
    record(stored).is_some_and(|stored| stored.epoch == ours.epoch && stored.holder == ours.holder)
}

/// What a document says; one that nobody can read says nothing of its holder.
fn readable(stored: Option<&Stored>) -> Record {
    let unknown = || Record {
        epoch: 0,
        holder: Holder::unknown(),
        renewals: 0,
        renewed_at: DateTime::UNIX_EPOCH,
        released: false,
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
