//! The memory of a sync: what the state file says, read and changed.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{Error, Export, Mode, Outcome, Report, Syncer, blocking::blocking};
use crate::state::{ExportState, State, Store};

impl Syncer {
    pub(super) async fn remember_end(&self, report: &Report) -> Result<(), Error> {
        if report.outcome != Outcome::Complete {
            return Ok(());
        }
        let (name, ended_at) = (report.export.clone(), report.ended_at);
        let full_refresh = report.mode == Mode::FullRefresh;
        self.remember(move |state| {
            let export = state.exports.entry(name).or_default();
            // The first complete sync has loaded everything, whatever it was called.
            if full_refresh || export.last_complete_at.is_none() {
                export.last_full_refresh_at = Some(ended_at);
            }
            export.last_complete_at = Some(ended_at);
            state.last_sync_before_migration = None;
        })
        .await
    }

    pub(super) async fn remember(&self, change: impl FnOnce(&mut State) + Send + 'static) -> Result<(), Error> {
        let store = Arc::clone(&self.store);
        Ok(blocking(move || lock(&store).update(change)).await?)
    }

    /// What is remembered just now.
    pub fn state(&self) -> State {
        lock(&self.store).state().clone()
    }

    pub(super) fn state_folder(&self) -> PathBuf {
        lock(&self.store).folder().to_owned()
    }

    pub(super) fn export_state(&self, export: &Export) -> ExportState {
        self.state().exports.remove(&export.name).unwrap_or_default()
    }
}

pub fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}
