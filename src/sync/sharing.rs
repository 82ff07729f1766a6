//! Sharing: several processes do the exports of one configuration together, each export in one process at a time.
//!
//! Whoever works on an export holds its lease, and those of all exports that have a type in common with it, directly or
//! through others. So what holds within one process holds for all of them: a table is written by one process at a time.
//! A process that holds the leases reads the state of these exports first, and is the only one that writes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, Weak},
};

use tokio::{
    sync::{Mutex, MutexGuard},
    task::JoinSet,
};

use super::{Error, Export, Syncer, blocking::blocking, state::lock};
use crate::{
    fhir::ResourceType,
    lease::{Attempt, Holder, Lease, Subject, Watch},
    state::{self, OpenState},
    store::Documents,
};

/// What this process knows of the leases of exports.
#[derive(Debug)]
pub(super) struct Sharing {
    documents: Documents,
    us: Holder,
    /// The configured exports, and the types of each.
    exports: Vec<(String, BTreeSet<ResourceType>)>,
    leases: Mutex<BTreeMap<Leased, KnownLease>>,
    /// Who holds the exports that this process does not.
    others: RwLock<BTreeMap<String, String>>,
}

/// What a lease is of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Leased {
    Export(String),
    Maintenance,
}

/// What became of an attempt to take a lease.
enum LeaseAttempt {
    Ours(Arc<OwnLease>),
    HeldBy(String),
}

/// What this process knows of one lease.
#[derive(Debug, Default)]
struct KnownLease {
    watch: Watch,
    /// While it is ours.
    own: Weak<OwnLease>,
}

/// A lease of ours, renewed as long as this exists.
#[derive(Debug)]
struct OwnLease {
    of: Leased,
    lease: Arc<Lease>,
    _keeper: JoinSet<()>,
}

/// The leases that some work needs, and a syncer whose commits check them. Without sharing there are none.
pub struct Leases {
    pub syncer: Syncer,
    own: Vec<Arc<OwnLease>>,
}

impl Sharing {
    pub fn new(documents: Documents, holder: &str, exports: &[Export]) -> Self {
        let types = |export: &Export| (export.name.clone(), export.types.iter().copied().collect());
        Self {
            documents,
            us: Holder::ourselves(holder),
            exports: exports.iter().map(types).collect(),
            leases: Mutex::default(),
            others: RwLock::default(),
        }
    }

    /// These exports, and all that have a type in common with one of them, or with one of those.
    fn with_common_types(&self, exports: &[String]) -> BTreeSet<String> {
        let mut all: BTreeSet<_> = exports.iter().cloned().collect();
        loop {
            let is_of = |name: &String| all.contains(name);
            let types: BTreeSet<_> =
                self.exports.iter().filter(|(name, _)| is_of(name)).flat_map(|(_, of)| of).collect();
            let found = self.exports.iter().filter(|(_, of)| of.iter().any(|of| types.contains(of)));
            let found: Vec<_> = found.map(|(name, _)| name.clone()).collect();
            let before = all.len();
            all.extend(found);
            if all.len() == before {
                return all;
            }
        }
    }

    /// Takes a lease, unless it is ours or somebody else's.
    async fn attempt(&self, known: &mut KnownLease, of: &Leased) -> Result<LeaseAttempt, Error> {
        if let Some(own) = known.own.upgrade() {
            return Ok(LeaseAttempt::Ours(own));
        }
        let document = state::lease_of(&self.documents, of.name());
        match Lease::attempt(of.subject(), &document, &self.us, &mut known.watch).await? {
            Attempt::Held { holder } => Ok(LeaseAttempt::HeldBy(holder)),
            Attempt::Taken(lease) => {
                let lease = Arc::new(*lease);
                let mut keeper = JoinSet::new();
                keeper.spawn(Lease::keep(Arc::downgrade(&lease)));
                let own = Arc::new(OwnLease { of: of.clone(), lease, _keeper: keeper });
                known.own = Arc::downgrade(&own);
                Ok(LeaseAttempt::Ours(own))
            }
        }
    }

    fn note(&self, name: &str, holder: Option<String>) {
        let mut others = self.others.write().unwrap_or_else(PoisonError::into_inner);
        match holder {
            Some(holder) => others.insert(name.to_owned(), holder),
            None => others.remove(name),
        };
    }
}

impl Leased {
    /// Of its document, and in errors. An export cannot have the name of maintenance, because it would begin with a dot.
    fn name(&self) -> &str {
        match self {
            Self::Export(name) => name,
            Self::Maintenance => ".maintenance",
        }
    }

    fn subject(&self) -> Subject {
        match self {
            Self::Export(name) => Subject::Export(name.clone()),
            Self::Maintenance => Subject::Maintenance,
        }
    }
}

impl Syncer {
    /// Whether other processes work on exports as well.
    pub fn shares_exports(&self) -> bool {
        self.sharing.is_some()
    }

    /// Takes the leases that work on these exports needs, and reads their state.
    ///
    /// # Errors
    /// [`Error::LeasedByOther`] where another process works on one of them.
    pub async fn take_leases(&self, exports: &[String]) -> Result<Leases, Error> {
        match &self.sharing {
            Some(sharing) => {
                let exports = sharing.with_common_types(exports).into_iter().map(Leased::Export);
                self.take_all(sharing, exports.collect()).await
            }
            None => Ok(Leases { syncer: self.clone(), own: Vec::new() }),
        }
    }

    /// The same for the exports that write the table of a type.
    pub async fn take_leases_of_writers(&self, of: ResourceType) -> Result<Leases, Error> {
        let exports = self.sharing.iter().flat_map(|sharing| &sharing.exports);
        let writers = exports.filter(|(_, types)| types.contains(&of)).map(|(name, _)| name.clone());
        self.take_leases(&writers.collect::<Vec<_>>()).await
    }

    /// The lease of maintenance: one process maintains at a time.
    pub(super) async fn take_lease_of_maintenance(&self) -> Result<Leases, Error> {
        match &self.sharing {
            Some(sharing) => self.take_all(sharing, BTreeSet::from([Leased::Maintenance])).await,
            None => Ok(Leases { syncer: self.clone(), own: Vec::new() }),
        }
    }

    async fn take_all(&self, sharing: &Arc<Sharing>, wanted: BTreeSet<Leased>) -> Result<Leases, Error> {
        let mut leases = sharing.leases.lock().await;
        let mut own = Vec::new();
        // Always in the same order: of two processes that want the same ones, one gets all.
        for of in wanted {
            let known = leases.entry(of.clone()).or_default();
            let is_new = known.own.strong_count() == 0;
            let taken = match sharing.attempt(known, &of).await {
                Ok(LeaseAttempt::Ours(lease)) => {
                    sharing.note(of.name(), None);
                    own.push(lease);
                    match of {
                        Leased::Export(name) if is_new => self.claim(name).await,
                        Leased::Export(_) | Leased::Maintenance => Ok(()),
                    }
                }
                Ok(LeaseAttempt::HeldBy(holder)) => {
                    sharing.note(of.name(), Some(holder.clone()));
                    Err(Error::LeasedByOther { export: of.name().to_owned(), holder })
                }
                Err(error) => Err(error),
            };
            if let Err(error) = taken {
                self.give_back(own, &leases).await;
                return Err(error);
            }
        }
        drop(leases);
        let root = self.root.under(own.iter().map(|own| Arc::clone(&own.lease)));
        let engine = self.engine.on(&root);
        Ok(Leases { syncer: Self { root, engine, ..self.clone() }, own })
    }

    async fn claim(&self, export: String) -> Result<(), Error> {
        self.with_open_state(move |state| Ok(state.claim(&export)?)).await
    }

    /// Gives back the leases that nobody else in this process uses.
    async fn give_back(&self, own: Vec<Arc<OwnLease>>, _locked: &MutexGuard<'_, BTreeMap<Leased, KnownLease>>) {
        for own in own {
            let Some(own) = Arc::into_inner(own) else { continue };
            let name = own.of.name().to_owned();
            let given_back = self.with_open_state(move |state| {
                state.give_back(&name);
                Ok(())
            });
            // It changes nothing outside of this process, so it cannot fail.
            drop(given_back.await);
            own.lease.release().await;
        }
    }

    /// Reads what other processes have done since: the state of their exports, and who holds them.
    pub async fn read_shared_state(&self) -> Result<(), Error> {
        let Some(sharing) = &self.sharing else { return Ok(()) };
        for (name, _) in &sharing.exports {
            let mut leases = sharing.leases.lock().await;
            let known = leases.entry(Leased::Export(name.clone())).or_default();
            if known.own.strong_count() == 0 {
                let document = state::lease_of(&sharing.documents, name);
                let holder = known.watch.holder(&document, &sharing.us).await?;
                sharing.note(name, holder);
            }
        }
        // No lease changes hands in this process meanwhile, so nothing older replaces what is ours.
        let _leases = sharing.leases.lock().await;
        let read = state::read_whole(&sharing.documents).await?;
        self.with_open_state(move |state| {
            state.adopt(read);
            Ok(())
        })
        .await
    }

    /// The exports that other processes work on, and who they are.
    pub fn other_holders(&self) -> BTreeMap<String, String> {
        let of = |sharing: &Arc<Sharing>| sharing.others.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.sharing.as_ref().map(of).unwrap_or_default()
    }
}

impl Leases {
    /// Gives the leases back, so that other processes need not wait for them to be silent.
    pub async fn release(self) {
        let Self { syncer, own } = self;
        let Some(sharing) = syncer.sharing.clone() else { return };
        let leases = sharing.leases.lock().await;
        syncer.give_back(own, &leases).await;
    }
}

impl Syncer {
    /// Changes what is kept, on a thread that may block, and shows it to those who look.
    pub(super) async fn with_open_state<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut OpenState) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (open_state, seen) = (Arc::clone(&self.open_state), Arc::clone(&self.seen));
        blocking(move || {
            let mut open_state = lock(&open_state);
            let changed = change(&mut open_state);
            *seen.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(open_state.state().clone());
            changed
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{export::Level, store::Readers};

    #[test]
    fn exports_that_write_the_same_tables_directly_or_through_others_are_leased_together() {
        let export = |name: &str, types: &[&str]| {
            Export::new(name, Level::System, types.iter().map(|of| of.parse().unwrap()).collect())
        };
        let exports = [
            export("people", &["Patient", "Encounter"]),
            export("visits", &["Encounter", "Location"]),
            export("places", &["Location"]),
            export("observations", &["Observation"]),
        ];
        let documents = Documents::Folder { folder: "/nowhere".into(), readers: Readers::Owner };
        let sharing = Sharing::new(documents, "me", &exports);
        let leased = |name: &str| sharing.with_common_types(&[name.to_owned()]).into_iter().collect::<Vec<_>>();
        assert_eq!(leased("places"), ["people", "places", "visits"]);
        assert_eq!(leased("observations"), ["observations"]);
        assert_eq!(leased("no longer configured"), ["no longer configured"]);
    }
}
