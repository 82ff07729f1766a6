//! Reload: SIGHUP reads the configuration again. What can change without a restart takes effect for the runs that begin
//! afterwards; the rest is named. A configuration that cannot be used changes nothing.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use sd_notify::NotifyState;
use tokio::task::{JoinError, JoinSet};

use super::{Daemon, Error, notify, now, schedules, views::Watched};
use crate::{
    config::{self, Config, Mistakes, Scheduled},
    notify as notifications, schedule,
    sync::{self, chain},
    telemetry::{self, metrics, panics},
};

/// A configuration that is being read.
pub(super) type Loading = JoinSet<Result<Config, Mistakes>>;

impl Daemon {
    /// Reads the configuration on a thread that may block; after a reload that is under way, which may have read an
    /// earlier text of it.
    pub(super) fn begin_reload(&mut self) {
        self.reload_again = !self.loading.is_empty();
        if self.reload_again {
            tracing::info!("SIGHUP: the configuration is being read; it is read once more afterwards");
            return;
        }
        tracing::info!(config = %self.path.display(), "SIGHUP: reading the configuration again");
        let mut states = vec![NotifyState::Reloading];
        states.extend(NotifyState::monotonic_usec_now());
        notify(&states);
        let path: PathBuf = self.path.clone();
        self.loading.spawn_blocking(move || config::load(&path));
    }

    pub(super) async fn end_reload(&mut self, loaded: Result<Result<Config, Mistakes>, JoinError>) {
        let applied = match loaded {
            Ok(Ok(config)) if !config.has_schedule() => Err(Error::NoSchedule.to_string()),
            Ok(Ok(config)) => self.apply(config).await.map_err(|error| chain(&error)),
            Ok(Err(mistakes)) => Err(mistakes.lines.join("; ")),
            Err(error) => Err(panics::of_task(&error).to_owned()),
        };
        self.reload_refused = applied.is_err();
        metrics::config_read(applied.is_ok(), now());
        if let Err(mistakes) = applied {
            tracing::error!(mistakes, "the configuration cannot be used; the one of before stays");
        }
        notify(&[NotifyState::Ready]);
        self.publish(!self.stop.is_cancelled());
        if self.reload_again && !self.stop.is_cancelled() {
            self.begin_reload();
        }
    }

    /// Nothing has changed if this fails.
    async fn apply(&mut self, config: Config) -> Result<(), Error> {
        let exports = exports(&self.exports, &config.exports);
        let schedules = schedules(&exports, &config.maintenance);
        let scheduler = schedule::start(&schedules, &self.ticks).await?;
        let names = exports.iter().map(|scheduled| scheduled.export.name.clone());
        let (notifier, couriers) = notifications::start(config.notify.clone(), names, &self.stop)?;
        if let Err(error) = std::mem::replace(&mut self.scheduler, scheduler).shutdown().await {
            tracing::warn!(%error, "the scheduler of before did not shut down cleanly");
        }
        // The couriers of before end when the runs that began before have reported.
        self.notifier = notifier;
        self.couriers.push(couriers);
        let restart = needs_restart(&self.config, &config);
        self.exports = exports.into_iter().map(|scheduled| Watched::new(scheduled, now())).collect();
        self.syncer = Arc::new(self.syncer.with_config(settings(&self.config.sync, config.sync.clone())));
        let recheck_absent = config.sync.recheck_absent.to_std().unwrap_or_default();
        self.views.send_modify(|view| {
            for export in &mut view.exports {
                export.recheck_absent = recheck_absent;
            }
        });
        if config.log.filter != self.config.log.filter {
            telemetry::set_filter(&config.log.filter);
        }
        self.config.exports = self.exports.iter().map(|watched| watched.scheduled.clone()).collect();
        self.config.log.filter = config.log.filter;
        self.config.maintenance = config.maintenance;
        self.config.grace_period = config.grace_period;
        self.config.stall_timeout = config.stall_timeout;
        tracing::info!(next_run = self.next_run(), "the configuration was reloaded; runs that have begun keep theirs");
        if !restart.is_empty() {
            let keys = restart.join(", ");
            tracing::warn!(keys, "these changes take effect after a restart of the service only");
        }
        Ok(())
    }
}

/// The exports that we have, with the schedules of the new configuration.
fn exports(ours: &[Watched], new: &[Scheduled]) -> Vec<Scheduled> {
    let scheduled = |watched: &Watched| {
        let ours = &watched.scheduled;
        let new = new.iter().find(|new| new.export.name == ours.export.name);
        new.map_or_else(|| ours.clone(), |new| Scheduled { export: ours.export.clone(), ..new.clone() })
    };
    ours.iter().map(scheduled).collect()
}

/// The settings of syncs, without what names the source, the columns and the place of the spool.
fn settings(ours: &sync::Config, new: sync::Config) -> sync::Config {
    sync::Config {
        source: Arc::clone(&ours.source),
        source_chosen: ours.source_chosen,
        overlap: ours.overlap,
        typed: ours.typed,
        columns: ours.columns,
        spool_folder: ours.spool_folder.clone(),
        spark: ours.spark.clone(),
        ..new
    }
}

/// The keys that differ and are read at the start only.
fn needs_restart(ours: &Config, new: &Config) -> Vec<String> {
    let is_source = ours.sync.source != new.sync.source || ours.sync.source_chosen != new.sync.source_chosen;
    let changed = [
        ("server.url", ours.server.server != new.server.server),
        ("server", ours.server.server == new.server.server && ours.server != new.server),
        ("server.source", is_source),
        ("server.since_overlap", ours.sync.overlap != new.sync.overlap),
        ("tables.root", ours.tables.root != new.tables.root),
        ("tables", ours.tables.root == new.tables.root && ours.tables != new.tables),
        ("tables.typed", ours.sync.typed != new.sync.typed),
        ("tables.layout", ours.sync.columns.layout != new.sync.columns.layout),
        ("tables.raw_json", ours.sync.columns.raw_json != new.sync.columns.raw_json),
        ("tables.spark", ours.sync.spark != new.sync.spark),
        ("state", ours.state != new.state),
        ("sync.spool_folder", ours.sync.spool_folder != new.sync.spool_folder),
        ("health.listen", ours.health != new.health),
        ("log.format", ours.log.format != new.log.format),
    ];
    let keys = changed.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key.to_owned());
    let of = |exports: &[Scheduled], name: &str| {
        exports.iter().find(|scheduled| scheduled.export.name == name).map(|scheduled| scheduled.export.clone())
    };
    let mut names: Vec<_> = ours.exports.iter().chain(&new.exports).map(|scheduled| &scheduled.export.name).collect();
    names.sort();
    names.dedup();
    let exports = names.into_iter().filter(|name| of(&ours.exports, name) != of(&new.exports, name));
    keys.chain(exports.map(|name| format!("the export {name:?}"))).collect()
}

/// The file that is read again.
pub(super) fn path_of(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
