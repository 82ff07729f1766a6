//! The state that several processes share: each export has its own document, which the holder of its lease writes; what
//! all exports share is changed by whoever has read it last.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::task::JoinSet;
use uuid::Uuid;

use super::{
    Error, ExportState, Found, State,
    documents::{self, LEASE, MAX_CLAIMS, SHARED, document_of, keep_previous, open, whole_previous, without_exports},
    envelope::sealed,
};
use crate::{
    lease::{Holder, Lease, Subject},
    store::{Documents, Stored, Swapped},
};

#[derive(Debug)]
pub struct SharedState {
    pub documents: Documents,
    pub holder: String,
    /// Held by all processes that share the state; it keeps away one that wants it alone.
    pub lease: Arc<Lease>,
    /// Renews the lease as long as this exists.
    _keeper: JoinSet<()>,
    /// The document of each export whose lease is ours, as it was last read or written by us; `None` before the first
    /// time.
    held: BTreeMap<String, Option<Stored>>,
}

/// How often the shared part is written because other processes write it at the same moment.
const MAX_ATTEMPTS: u32 = 30;
const MAX_WAIT: Duration = Duration::from_millis(500);

impl SharedState {
    pub async fn open(documents: Documents) -> Result<(Self, State, Found), Error> {
        let holder = Uuid::new_v4().to_string();
        let us = Holder::ourselves(&holder);
        let lease = Arc::new(Lease::join(Subject::State, documents.document(LEASE), us, None).await?);
        if !lease.is_supported() {
            return Err(Error::Unconditional { place: documents.shown() });
        }
        let mut keeper = JoinSet::new();
        keeper.spawn(Lease::keep(Arc::downgrade(&lease)));
        let state = documents::read_whole(&documents).await?;
        let found = if state == State::default() { Found::Nothing } else { Found::Whole };
        Ok((Self { documents, holder, lease, _keeper: keeper, held: BTreeMap::new() }, state, found))
    }

    pub fn holds(&self, export: &str) -> bool {
        self.held.contains_key(export)
    }

    pub fn give_back(&mut self, export: &str) {
        self.held.remove(export);
    }

    /// The state of an export, whose document is under our name now: what a former holder has on its way is refused.
    pub async fn claim(&mut self, export: &str) -> Result<ExportState, Error> {
        let name = document_of(export);
        let document = self.documents.document(&name);
        for _ in 0..MAX_CLAIMS {
            let Some(stored) = document.read().await? else {
                self.held.insert(export.to_owned(), None);
                return Ok(ExportState::default());
            };
            let (body, known) = match open(&document, &stored.text)? {
                Some(whole) => whole,
                None => match whole_previous(&self.documents, &name).await? {
                    Some(previous) => {
                        tracing::warn!(export, "the state was broken; using the generation before it");
                        previous
                    }
                    None => self.empty_in_place_of(&name, &stored).await?,
                },
            };
            match document.swap(Some(&stored), sealed(&body, Some(&self.holder))).await? {
                Swapped::Done(stored) => {
                    self.held.insert(export.to_owned(), Some(stored));
                    return Ok(known);
                }
                Swapped::Overtaken => {}
                Swapped::Unsupported => return Err(Error::Unconditional { place: document.shown() }),
            }
        }
        Err(Error::TakenOver { place: document.shown() })
    }

    /// The tables know the watermarks; a copy of what nobody can read is kept.
    async fn empty_in_place_of(&self, name: &str, broken: &Stored) -> Result<(String, ExportState), Error> {
        let kept = self.documents.document(&format!("{name}.broken"));
        kept.put(broken.text.clone()).await?;
        tracing::warn!(kept_as = kept.shown(), "the state of an export was broken; the tables know its watermarks");
        let known = ExportState::default();
        Ok((serde_json::to_string_pretty(&known)?, known))
    }

    /// Writes what has changed; `state` has what other processes have changed in the shared part afterwards.
    pub async fn write(&mut self, before: &State, state: &mut State) -> Result<(), Error> {
        let is_changed = |name: &String, export: &ExportState| before.exports.get(name) != Some(export);
        let changed = state.exports.iter().filter(|(name, export)| is_changed(name, export));
        for (name, export) in changed {
            self.write_export(name, export).await?;
        }
        if without_exports(before)? != without_exports(state)? {
            let (ours, theirs) = (state.clone(), before.clone());
            let merged = self
                .change_shared(move |shared| {
                    shared.run = shared.run.max(ours.run);
                    if ours.speaks_r4 != theirs.speaks_r4 {
                        shared.speaks_r4 = ours.speaks_r4;
                    }
                    // The newest by the order of writing: one of them may be by a clock that is ahead.
                    if ours.maintained_at != theirs.maintained_at {
                        shared.maintained_at = ours.maintained_at;
                    }
                    if ours.last_sync_before_migration != theirs.last_sync_before_migration {
                        shared.last_sync_before_migration = ours.last_sync_before_migration;
                    }
                })
                .await?;
            *state = State { exports: std::mem::take(&mut state.exports), ..merged };
        }
        Ok(())
    }

    async fn write_export(&mut self, export: &str, known: &ExportState) -> Result<(), Error> {
        let name = document_of(export);
        let document = self.documents.document(&name);
        let Some(before) = self.held.get(export) else { return Err(Error::NotHeld { export: export.to_owned() }) };
        let text = sealed(&serde_json::to_string_pretty(known)?, Some(&self.holder));
        match document.swap(before.as_ref(), text).await? {
            Swapped::Done(stored) => {
                let before = self.held.insert(export.to_owned(), Some(stored)).flatten();
                keep_previous(&self.documents, &name, before).await;
                Ok(())
            }
            Swapped::Overtaken => Err(Error::TakenOver { place: document.shown() }),
            Swapped::Unsupported => Err(Error::Unconditional { place: document.shown() }),
        }
    }

    pub async fn next_run(&self) -> Result<u64, Error> {
        Ok(self.change_shared(|shared| shared.run += 1).await?.run)
    }

    /// Changes what all exports share, from what it is now.
    async fn change_shared(&self, change: impl Fn(&mut State)) -> Result<State, Error> {
        let document = self.documents.document(SHARED);
        for _ in 0..MAX_ATTEMPTS {
            let stored = document.read().await?;
            let found = match &stored {
                None => None,
                Some(stored) => match open::<State>(&document, &stored.text)? {
                    Some(whole) => Some(whole),
                    None => whole_previous(&self.documents, SHARED).await?.map(|(body, state)| (body, skipping(state))),
                },
            };
            let mut state = found.map(|(_, state)| state).unwrap_or_default();
            change(&mut state);
            // A text that no other process writes: where the answer is lost, it is known whose change this is.
            let text = sealed(&without_exports(&state)?, Some(&self.holder));
            match document.swap(stored.as_ref(), text).await? {
                Swapped::Done(_) => {
                    keep_previous(&self.documents, SHARED, stored).await;
                    return Ok(state);
                }
                Swapped::Overtaken => tokio::time::sleep(MAX_WAIT.mul_f32(fastrand::f32())).await,
                Swapped::Unsupported => return Err(Error::Unconditional { place: document.shown() }),
            }
        }
        Err(Error::Conflict { place: document.shown(), attempts: MAX_ATTEMPTS })
    }
}

/// The previous generation does not have the last numbers that were given.
fn skipping(state: State) -> State {
    State { run: state.run + 100, ..state }
}
