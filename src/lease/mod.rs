//! The lease: who may write below the root. Its file, `_fhir_sync/lease.json`, names one holder.
//!
//! A lock on the state file admits one process per state file; the lease admits one per root, also from other hosts. It
//! is taken by creating the file, or by replacing exactly the file that was read; each new holder has an epoch, one
//! more than the last. The holder renews it. Before each commit the holder reads it again, and a holder that has lost
//! it writes nothing more: a commit that was already on its way meets the new holder's in the Delta log, where only one
//! of two gets the next version. The local clock decides nothing: a holder has ended when it says so, when its process
//! is seen to have ended, or when the file has not changed for [`STALE_AFTER`] while we watched.

mod holder;
mod place;

use std::{
    sync::{
        PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

pub use self::place::LeasePlace;
use self::{
    holder::{Holder, Liveness},
    place::{Stored, Swapped},
};
use super::Error;
use crate::telemetry::metrics;

/// How often the holder renews it.
pub const RENEWED_EVERY: Duration = Duration::from_secs(15);
/// A lease that has not changed for this long, while somebody watched it, is taken over.
pub const STALE_AFTER: Duration = Duration::from_mins(1);
/// How often the lease of somebody else is looked at while we wait.
const WATCHED_EVERY: Duration = Duration::from_secs(2);

/// The lease of this process.
#[derive(Debug)]
pub struct Lease {
    place: LeasePlace,
    record: RwLock<Record>,
    /// The store cannot replace an object on a condition; then nobody has the lease, and nothing is checked.
    unsupported: AtomicBool,
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    /// Counts the holders: a holder with a smaller number than that of the file has lost the lease.
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

/// What the lease of somebody else means for us.
enum Claim {
    Free,
    Held(Box<Record>),
    /// Nobody on this host can say whether its holder is alive.
    Unknown,
}

impl Lease {
    /// Takes the lease for the holder of a state file. Waits for up to [`STALE_AFTER`] where nobody can say whether
    /// another holder is alive.
    pub async fn take(place: LeasePlace, holder: &str) -> Result<Self, Error> {
        let lease = Self::take_for(place, Holder::ourselves(holder)).await;
        metrics::lease_held(lease.is_ok());
        lease
    }

    async fn take_for(place: LeasePlace, us: Holder) -> Result<Self, Error> {
        let mut watched: Option<(Stored, Instant)> = None;
        loop {
            let stored = place.read().await?;
            let claim = stored.as_ref().map_or(Claim::Free, |stored| claim(stored, &us));
            let changed = match (&watched, &stored) {
                (Some((before, _)), Some(now)) => before.text != now.text,
                _ => false,
            };
            let is_stale = watched.as_ref().is_some_and(|(_, since)| since.elapsed() >= STALE_AFTER);
            match claim {
                Claim::Held(record) => return Err(in_use(&place, &record)),
                Claim::Unknown if changed => return Err(in_use(&place, &stored_record(stored.as_ref()))),
                Claim::Unknown if !is_stale => {
                    if let (None, Some(stored)) = (&watched, stored) {
                        let record = stored_record(Some(&stored));
                        tracing::warn!(
                            place = place.shown(), holder = %record.holder,
                            "another fhir-sync may hold the tables; it counts as ended if its lease does not change \
                             for {}", humantime::format_duration(STALE_AFTER)
                        );
                        watched = Some((stored, Instant::now()));
                    }
                    sleep(WATCHED_EVERY).await;
                    continue;
                }
                Claim::Free | Claim::Unknown => {}
            }
            let epoch = stored.as_ref().and_then(Stored::record).map_or(1, |record| record.epoch + 1);
            let record = Record { epoch, holder: us.clone(), renewals: 0, renewed_at: now(), released: false };
            match place.swap(stored.as_ref(), &record).await? {
                Swapped::Done => {
                    tracing::debug!(place = place.shown(), epoch, "the tables are ours to write");
                    return Ok(Self { place, record: RwLock::new(record), unsupported: AtomicBool::new(false) });
                }
                Swapped::Overtaken => watched = None,
                Swapped::Unsupported => {
                    tracing::warn!(
                        place = place.shown(),
                        "the object store cannot replace an object on a condition, so nothing keeps a second fhir-sync \
                         away from these tables"
                    );
                    return Ok(Self { place, record: RwLock::new(record), unsupported: AtomicBool::new(true) });
                }
            }
        }
    }

    /// [`Error::LeaseLost`] when somebody else has taken it.
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
                Err(error @ Error::LeaseLost { .. }) => {
                    tracing::error!(%error, "the lease of the tables is lost; nothing more is written");
                    return;
                }
                Err(error) => tracing::warn!(%error, "the lease of the tables could not be renewed; trying again"),
            }
        }
    }

    /// Gives the lease back, so that the next holder need not wait.
    pub async fn release(&self) {
        if let Err(error) = self.write(true, |record| record.released = true).await {
            tracing::debug!(%error, "the lease of the tables was not released");
        }
        metrics::lease_held(false);
    }

    /// Checks that the file is still ours, and replaces it where it is to `change`, or was removed.
    async fn write(&self, changes: bool, change: impl FnOnce(&mut Record)) -> Result<(), Error> {
        if self.unsupported.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut record = self.record.read().unwrap_or_else(PoisonError::into_inner).clone();
        let stored = self.place.read().await?;
        match &stored {
            Some(stored) if !stored.is_of(&record) => return Err(self.lost(stored)),
            Some(_) if !changes => return Ok(()),
            Some(_) => {}
            // Somebody has removed the file, perhaps with all tables. The first one to create it has the lease.
            None => tracing::warn!(place = self.place.shown(), "the lease of the tables was removed; writing it again"),
        }
        change(&mut record);
        record.renewed_at = now();
        match self.place.swap(stored.as_ref(), &record).await? {
            Swapped::Done => {}
            // Another thread of ours was faster, or another holder: the file says which.
            Swapped::Overtaken => match self.place.read().await? {
                Some(stored) if !stored.is_of(&record) => return Err(self.lost(&stored)),
                _ => return Ok(()),
            },
            Swapped::Unsupported => self.unsupported.store(true, Ordering::Relaxed),
        }
        *self.record.write().unwrap_or_else(PoisonError::into_inner) = record;
        Ok(())
    }

    fn lost(&self, stored: &Stored) -> Error {
        metrics::lease_held(false);
        Error::LeaseLost { place: self.place.shown(), holder: stored_record(Some(stored)).holder.to_string() }
    }
}

impl Drop for Lease {
    /// In a folder this is quick. In an object store the next holder waits, unless it has the same state file.
    fn drop(&mut self) {
        let mut record = self.record.read().unwrap_or_else(PoisonError::into_inner).clone();
        record.released = true;
        self.place.release_in_folder(&record);
    }
}

impl Stored {
    fn record(&self) -> Option<Record> {
        serde_json::from_str(&self.text).ok()
    }

    fn is_of(&self, record: &Record) -> bool {
        self.record().is_some_and(|stored| stored.epoch == record.epoch && stored.holder == record.holder)
    }
}

fn claim(stored: &Stored, us: &Holder) -> Claim {
    let Some(record) = stored.record() else { return Claim::Unknown };
    if record.released {
        return Claim::Free;
    }
    match record.holder.liveness(us) {
        Liveness::Ended => Claim::Free,
        Liveness::Alive => Claim::Held(Box::new(record)),
        Liveness::Unknown => Claim::Unknown,
    }
}

/// What a file says; one that nobody can read says nothing of its holder.
fn stored_record(stored: Option<&Stored>) -> Record {
    let unknown = || Record {
        epoch: 0,
        holder: Holder::unknown(),
        renewals: 0,
        renewed_at: DateTime::UNIX_EPOCH,
        released: false,
    };
    stored.and_then(Stored::record).unwrap_or_else(unknown)
}

fn in_use(place: &LeasePlace, record: &Record) -> Error {
    Error::InUse { place: place.shown(), holder: record.holder.to_string() }
}

#[expect(clippy::disallowed_methods, reason = "the time is for people who look at the file; nothing follows from it")]
fn now() -> DateTime<Utc> {
    Utc::now()
}

#[cfg(test)]
mod tests;
