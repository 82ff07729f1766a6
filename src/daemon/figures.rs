//! Figures: what the daemon knows of its exports, as metrics; and the space of the disks that it writes to.

use std::{path::PathBuf, time::Duration};

use tokio::{task::JoinSet, time::interval};

use super::{now, views::Watched};
use crate::{
    config::Config,
    serve::ExportView,
    state::State,
    sync::{Export, Location, TableName},
    telemetry::metrics::{self, Disk, ExportFigures, Exposition, Scope},
};

/// From now on the metrics of these exports are kept, and the disks are watched until the set is dropped.
pub fn start(exports: &[Export], config: &Config) -> (Exposition, JoinSet<()>) {
    let tables = exports.iter().flat_map(|export| &export.types).copied().map(TableName::Resources);
    let mut tables: Vec<_> = tables.chain(TableName::OWN).map(|table| table.to_string()).collect();
    tables.sort();
    tables.dedup();
    let exports = exports.iter().map(|export| (export.name.clone(), export.types.clone())).collect();
    let folders = folders(config);
    let disks = folders.iter().map(|(disk, _)| *disk).collect();
    let exposition = Exposition::start(&Scope { exports, tables, disks });
    metrics::config_read(true, now());
    let mut watchers = JoinSet::new();
    watchers.spawn(drain(exposition.clone()));
    for (disk, folder) in folders {
        watchers.spawn(watch_disk(disk, folder));
    }
    (exposition, watchers)
}

/// The local folders that the daemon writes to.
fn folders(config: &Config) -> Vec<(Disk, PathBuf)> {
    let mut folders = vec![(Disk::Spool, config.sync.spool_folder.clone())];
    if let Location::Folder(folder) = &config.tables.root {
        folders.push((Disk::Tables, folder.clone()));
    }
    folders.extend(config.state.folder().map(|folder| (Disk::State, folder.to_owned())));
    folders
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

/// Empties the buffer of the histograms, for ever.
async fn drain(exposition: Exposition) {
    let mut every = interval(LOOKED_AT_EVERY);
    loop {
        every.tick().await;
        exposition.drain();
    }
}

/// Measures again and again how much space is free on the disk of a folder. That disk may hang, so no other task waits
/// for it.
async fn watch_disk(disk: Disk, folder: PathBuf) {
    let mut every = interval(LOOKED_AT_EVERY);
    let mut reading = JoinSet::new();
    loop {
        every.tick().await;
        let folder = folder.clone();
        reading.spawn_blocking(move || {
            // Before the first sync the folder may not be there.
            let found = folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok());
            if let Some(found) = found {
                metrics::disk_free(disk, found.f_bavail.saturating_mul(found.f_frsize));
            }
        });
        while reading.join_next().await.is_some() {}
    }
}
