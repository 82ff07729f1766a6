//! Figures: what the daemon knows of its exports, as metrics; and the space of the disk that the spool is on.

use std::{path::PathBuf, time::Duration};

use tokio::{task::JoinSet, time::interval};

use super::{now, views::Watched};
use crate::{
    serve::ExportView,
    state::State,
    sync::{Export, TableName},
    telemetry::metrics::{self, ExportFigures, Exposition, Scope},
};

/// From now on the metrics of these exports are kept, and the disk of the spool is watched until the set is dropped.
pub fn start(exports: &[Export], spool_folder: PathBuf) -> (Exposition, JoinSet<()>) {
    let tables = exports.iter().flat_map(|export| &export.types).copied().map(TableName::Resources);
    let mut tables: Vec<_> = tables.chain(TableName::OWN).map(|table| table.to_string()).collect();
    tables.sort();
    tables.dedup();
    let exports = exports.iter().map(|export| (export.name.clone(), export.types.clone())).collect();
    let exposition = Exposition::start(&Scope { exports, tables });
    metrics::config_read(true, now());
    let mut watchers = JoinSet::new();
    watchers.spawn(watch_disk(spool_folder, exposition.clone()));
    (exposition, watchers)
}

/// How far the types of an export go.
pub fn reach(watched: &Watched, state: &State) {
    let Some(known) = state.exports.get(watched.name()) else { return };
    for of in &watched.scheduled.export.types {
        let watermark = known.watermarks.get(of).map(|watermark| watermark.instant());
        metrics::reach(watched.name(), *of, watermark, known.freshness.data_as_of.get(of).copied());
    }
}

pub fn export(view: &ExportView, watched: &Watched) {
    metrics::export(&ExportFigures {
        export: &view.name,
        last_success: view.last_complete.map(|last| last.at),
        max_age: view.max_age,
        interval: watched.longest_interval,
        next_run: view.next_run_at,
        step: view.progress.step.word(),
        failures: view.failures_in_a_row,
        warnings: view.warnings.len(),
    });
}

const LOOKED_AT_EVERY: Duration = Duration::from_secs(15);

/// Looks at the free space of the disk with the spool, for ever. The disk may hang, so nobody else waits for it.
async fn watch_disk(spool_folder: PathBuf, exposition: Exposition) {
    let mut every = interval(LOOKED_AT_EVERY);
    let mut reading = JoinSet::new();
    loop {
        every.tick().await;
        exposition.drain();
        let folder = spool_folder.clone();
        reading.spawn_blocking(move || {
            if let Ok(disk) = rustix::fs::statvfs(&folder) {
                metrics::spool_free(disk.f_bavail.saturating_mul(disk.f_frsize));
            }
        });
        while reading.join_next().await.is_some() {}
    }
}
