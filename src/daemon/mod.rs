//! The daemon: one loop that owns every task: the stop signal, a sync for each export at most, and maintenance.
//!
//! Syncs of several exports run side by side while they wait for the server; [`sync::Syncer`] gives them, and
//! maintenance, turns at writing.
//!
//! | task | its error means | a stop means |
//! |---|---|---|
//! | a sync | logged and counted; the next tick tries again | it ends at the next safe point; a commit is finished |
//! | maintenance | logged; the next tick tries again | it ends after the files that it is working on |
//! | the scheduler | the start fails | it is shut down |
//! | a reading for the status page | logged; the page lacks it | it is dropped |
//! | the health listener | the start fails | it answers until the end |
//! | a command by hand | reported to the one who gave it | it ends at its next safe point |
//! | the control socket | a warning; commands by hand need the daemon to be stopped | it answers until the end |
//!
//! The first SIGTERM or SIGINT stops the daemon within `daemon.grace_period`; a second one ends the process at once.

mod commands;
mod figures;
mod history;
mod views;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    path::Path,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, Utc};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::{self, JoinError, JoinSet},
    time::{Instant, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

use self::{
    commands::next_order,
    history::History,
    views::{Watched, next_run_at},
};
use crate::{
    config::{Config, Maintenance, Scheduled},
    control::{self, Order},
    fhir::ResourceType,
    notify::{self, Notifier},
    schedule::{self, Tick, Ticks, next_after},
    serve::{self, View},
    state::{ExportState, State},
    sync::{self, Activity, Board, DryRun, Mode, Progress, ProgressBoard, Report, Syncer, TableName, TablesMaintained},
    telemetry::metrics,
};

#[derive(thiserror::Error, Debug)]
pub enum Error {
    #[error(transparent)]
    Sync(#[from] sync::Error),
    #[error("health.listen: cannot listen on {listen}; another program may use the address")]
    Listen { listen: String, source: std::io::Error },
    #[error("the scheduler did not start")]
    Schedule(#[from] tokio_cron_scheduler::JobSchedulerError),
    #[error("no export has a schedule; set `incremental` or `full_refresh` in [[export]], or use `fhir-sync sync`")]
    NoSchedule,
    #[error(transparent)]
    Notify(#[from] notify::Error),
    #[error("signals cannot be received")]
    Signals(#[source] std::io::Error),
}

/// How a daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Gracefully,
    /// The grace period was over, or a second signal arrived. Work may still be running on other threads.
    AtOnce,
}

/// SIGTERM and SIGINT, which mean the same.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Runs until a signal stops it.
pub async fn run(config: Config) -> Result<Ended, Error> {
    if !config.has_schedule() {
        return Err(Error::NoSchedule);
    }
    let mut signals = Signals::listen().map_err(Error::Signals)?;
    let (sender, board) = ProgressBoard::new();
    let exports: Vec<_> = config.exports.iter().map(|scheduled| scheduled.export.clone()).collect();
    let tables = control::place_of(&config.tables.root);
    let recheck_absent = config.sync.recheck_absent.to_std().unwrap_or_default();
    let (metrics, _watchers) = figures::start(&exports, config.sync.spool_folder.clone());
    let syncer = Syncer::open(config.server, config.tables, &config.state_file, config.sync, &exports, sender).await?;
    for export in &exports {
        syncer.forget_lost_data(export).await?;
    }
    let stop = CancellationToken::new();
    let before = exports.iter().map(|export| (export.name.clone(), syncer.outcome_before(export)));
    let (notifier, couriers) = notify::start(config.notify, before, &stop)?;
    let schedules = schedules(&config.exports, &config.maintenance);
    let exports: Vec<_> = config.exports.into_iter().map(|scheduled| Watched::new(scheduled, now())).collect();
    let (views, seen) = watch::channel(first_view(&exports, &syncer.state(), recheck_absent, now()));
    let server = serve::Server::start(&config.health, seen, metrics)
        .map_err(|source| Error::Listen { listen: config.health.listen.to_string(), source })?;
    let (control, orders) = listen_for_commands(&config.state_file, tables, board.clone(), &stop).unzip();
    let ticks = Ticks::default();
    let mut scheduler = schedule::start(&schedules, &ticks).await?;
    let syncer = Arc::new(syncer);
    let mut daemon = Daemon {
        history: History::read(&syncer, types_of(&exports)),
        syncer,
        exports,
        maintenance: config.maintenance,
        views,
        board,
        notifier,
        stop,
        running: JoinSet::new(),
        at_work: HashMap::new(),
        orders: VecDeque::new(),
    };
    daemon.catch_up(&ticks);
    daemon.publish(true);
    tracing::info!(health = %server.address, next_run = daemon.next_run(), "ready");
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "systemd could not be notified; it will end this process after its start timeout");
    }
    let ended = daemon.run_loop(&ticks, orders, &mut signals, config.grace_period).await;
    if let Err(error) = scheduler.shutdown().await {
        tracing::warn!(%error, "the scheduler did not shut down cleanly");
    }
    if ended == Ended::Gracefully {
        if let Some(control) = control {
            control.close().await;
        }
        daemon.syncer.close().await;
        couriers.finish().await;
    }
    match ended {
        Ended::Gracefully => tracing::info!("stopped"),
        Ended::AtOnce => tracing::warn!("stopped at once; the next start continues"),
    }
    Ok(ended)
}

/// Without the socket, a command by hand says that the daemon holds the state file.
fn listen_for_commands(
    state_file: &Path,
    tables: String,
    board: watch::Receiver<Board>,
    stop: &CancellationToken,
) -> Option<(control::Server, mpsc::Receiver<Order>)> {
    let listening = control::Server::start(state_file, tables, board, stop.clone());
    if let Err(error) = &listening {
        tracing::warn!(%error, "no control socket beside the state file; commands by hand need the service to be stopped");
    }
    listening.ok()
}

/// What `/health` answers from the first request on: without its exports, it would be healthy whatever they are. The
/// same holds for the metrics: a watermark of 0 would look as if it had gone back.
fn first_view(exports: &[Watched], state: &State, recheck_absent: Duration, now: DateTime<Utc>) -> View {
    let view = |watched: &Watched| {
        let view = views::view(watched, state, recheck_absent, now);
        figures::export(&view, watched);
        figures::reach(watched, state);
        view
    };
    let exports = exports.iter().map(view).collect();
    View { ready: false, heartbeat: Instant::now(), exports }
}

struct Daemon {
    syncer: Arc<Syncer>,
    exports: Vec<Watched>,
    history: History,
    maintenance: Maintenance,
    views: watch::Sender<View>,
    board: watch::Receiver<Board>,
    notifier: Notifier,
    stop: CancellationToken,
    running: JoinSet<Done>,
    /// What each task does; never two of one activity.
    at_work: HashMap<task::Id, AtWork>,
    /// Commands that have not begun.
    orders: VecDeque<Order>,
}

/// What a task does.
struct AtWork {
    activity: Activity,
    /// What must not begin meanwhile; the activity itself is among it.
    excludes: Vec<Activity>,
    stop: CancellationToken,
}

/// A task that ended.
enum Done {
    Sync(Box<Report>),
    Maintenance(TablesMaintained),
    Command,
}

impl Daemon {
    /// What the schedule asked for while the daemon was down is done once, now.
    fn catch_up(&self, ticks: &Ticks) {
        let state = self.syncer.state();
        for export in &self.exports {
            let name = export.name();
            let known = state.exports.get(name).cloned().unwrap_or_default();
            if let Some(mode) = overdue(&export.scheduled, &known, now()) {
                tracing::info!(export = name, %mode, "overdue; starting at once");
                ticks.tick(&Tick::Sync { export: name.to_owned(), mode });
            }
        }
    }

    async fn run_loop(
        &mut self,
        ticks: &Ticks,
        mut orders: Option<mpsc::Receiver<Order>>,
        signals: &mut Signals,
        grace_period: Duration,
    ) -> Ended {
        let mut heartbeat = interval(Duration::from_secs(1));
        let mut give_up_at: Option<Instant> = None;
        loop {
            self.begin_orders();
            if self.running.is_empty() && self.stop.is_cancelled() {
                return Ended::Gracefully;
            }
            let excluded = self.excluded();
            tokio::select! {
                Some(order) = next_order(&mut orders) => self.take_order(order),
                tick = ticks.next(&excluded), if !self.stop.is_cancelled() => self.begin(&tick),
                Some(ended) = self.running.join_next_with_id() => self.end(ended).await,
                () = self.history.next(&self.syncer) => {}
                name = signals.next() => {
                    if give_up_at.is_some() {
                        tracing::warn!(signal = name, "second signal: ending at once");
                        return Ended::AtOnce;
                    }
                    let grace_period_text = humantime::format_duration(grace_period);
                    tracing::info!(signal = name, grace_period = %grace_period_text, "stopping");
                    notify(&[NotifyState::Stopping]);
                    give_up_at = Some(Instant::now() + grace_period);
                    self.stop.cancel();
                    self.publish(false);
                }
                () = until(give_up_at) => {
                    let grace_period = humantime::format_duration(grace_period);
                    tracing::warn!(%grace_period, "daemon.grace_period is over: ending at once; nothing is lost");
                    return Ended::AtOnce;
                }
                _ = heartbeat.tick() => self.publish(!self.stop.is_cancelled()),
            }
        }
    }

    /// When the schedule next starts a sync, of whatever export, for the log.
    fn next_run(&self) -> Option<String> {
        let now = now();
        let next = self.exports.iter().filter_map(|export| next_run_at(&export.scheduled, now)).min()?;
        Some(next.to_rfc3339_opts(SecondsFormat::Secs, true))
    }

    fn begin(&mut self, tick: &Tick) {
        let (syncer, stop, activity) = (Arc::clone(&self.syncer), self.stop.child_token(), tick.activity());
        let stops = stop.clone();
        let task = match tick {
            Tick::Maintain => {
                let types = types_of(&self.exports);
                let tables: Vec<_> = types.into_iter().map(TableName::Resources).chain(TableName::OWN).collect();
                let maintenance = self.maintenance.of_tables.clone();
                tracing::info!(tables = tables.len(), "maintenance begins");
                self.running.spawn(async move {
                    Done::Maintenance(syncer.maintain(&tables, &maintenance, DryRun::No, &stop).await)
                })
            }
            Tick::Sync { export, mode } => {
                let Some(watched) = self.exports.iter().find(|watched| watched.name() == export) else { return };
                let (export, mode) = (watched.scheduled.export.clone(), *mode);
                let notifier = self.notifier.clone();
                self.running.spawn(async move {
                    Done::Sync(Box::new(notifier.around(&export.name, syncer.run(&export, mode, &stop)).await))
                })
            }
        };
        let excludes = vec![activity.clone()];
        self.at_work.insert(task.id(), AtWork { activity, excludes, stop: stops });
        self.publish(true);
    }

    async fn end(&mut self, ended: Result<(task::Id, Done), JoinError>) {
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let activity = self.at_work.remove(&id).map(|at_work| at_work.activity);
        match ended.map(|(_, done)| done) {
            // What it brought is in the state file; its own log lines say how it ended.
            Ok(Done::Sync(report)) => self.history.ended(&report, &self.syncer),
            Ok(Done::Command) => {}
            Ok(Done::Maintenance(tables)) => {
                let failed = tables.iter().filter(|(_, result)| result.is_err()).count();
                tracing::info!(tables = tables.len(), failed, "maintenance ends");
            }
            Err(error) => {
                let run = activity.as_ref().map(tracing::field::display);
                tracing::error!(run, %error, "the run panicked; this is a bug in fhir-sync. The next tick tries again");
                if let Some(Activity::Sync { export }) = activity {
                    if let Err(error) = self.syncer.remember_panic(&export).await {
                        tracing::error!(error = sync::chain(&error), "the failure could not be remembered");
                    }
                    self.notifier.panicked(&export);
                }
            }
        }
        self.publish(!self.stop.is_cancelled());
    }

    /// Publishes that the loop is alive, and what it is doing.
    fn publish(&self, ready: bool) {
        self.syncer.look_at_state(|state| {
            self.views.send_modify(|view| {
                for (export, watched) in view.exports.iter_mut().zip(&self.exports) {
                    views::update(export, watched, state, &self.history, now());
                    figures::reach(watched, state);
                }
            });
        });
        let board = self.board.borrow().clone();
        let progress = |activity: &Activity| board.get(activity).cloned().unwrap_or_default();
        let at_work: Vec<_> = self.at_work.values().map(|of| of.activity.clone()).collect();
        let now = now();
        self.views.send_modify(|view| {
            view.ready = ready;
            view.heartbeat = Instant::now();
            for (export, watched) in view.exports.iter_mut().zip(&self.exports) {
                let sync = Activity::Sync { export: export.name.clone() };
                export.progress = if at_work.contains(&sync) { progress(&sync) } else { Progress::default() };
                export.next_run_at = next_run_at(&watched.scheduled, now);
                figures::export(export, watched);
            }
        });
        metrics::maintenance(at_work.contains(&Activity::Maintenance));
        let mut activities: Vec<_> = at_work
            .iter()
            .map(|activity| match activity {
                Activity::Sync { export } => format!("{export}: {}", progress(activity).step),
                Activity::Maintenance | Activity::ByHand => progress(activity).step.to_string(),
            })
            .collect();
        activities.sort();
        let status = if activities.is_empty() { "waiting for the next run".to_owned() } else { activities.join("; ") };
        notify(&[NotifyState::Watchdog, NotifyState::Status(&status)]);
    }
}

fn types_of(exports: &[Watched]) -> BTreeSet<ResourceType> {
    exports.iter().flat_map(|export| export.scheduled.export.types.clone()).collect()
}

/// Waits until the instant; without one, for ever.
async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Does the schedule, or an unfinished job, ask for a run right now?
fn overdue(scheduled: &Scheduled, known: &ExportState, now: DateTime<Utc>) -> Option<Mode> {
    let Some(last_complete_at) = known.last_complete_at else { return Some(Mode::Incremental) };
    let is_loaded = |of| known.freshness.data_as_of.contains_key(of) || known.unconfirmed.contains_key(of);
    if !scheduled.export.types.iter().all(is_loaded) {
        return Some(Mode::Incremental);
    }
    let last_full_refresh_at = known.last_full_refresh_at.unwrap_or(last_complete_at);
    if next_after(&scheduled.full_refresh, last_full_refresh_at).is_some_and(|at| at <= now) {
        return Some(Mode::FullRefresh);
    }
    let missed = next_after(&scheduled.incremental, last_complete_at).is_some_and(|at| at <= now);
    (missed || !known.jobs.is_empty()).then_some(Mode::Incremental)
}

fn schedules(exports: &[Scheduled], maintenance: &Maintenance) -> Vec<(Tick, Vec<schedule::Pattern>)> {
    let schedule = |scheduled: &Scheduled, mode, patterns: &[schedule::Pattern]| {
        (Tick::Sync { export: scheduled.export.name.clone(), mode }, patterns.to_vec())
    };
    let syncs = exports.iter().flat_map(|scheduled| {
        [
            schedule(scheduled, Mode::Incremental, &scheduled.incremental),
            schedule(scheduled, Mode::FullRefresh, &scheduled.full_refresh),
        ]
    });
    syncs.chain([(Tick::Maintain, maintenance.schedule.iter().cloned().collect())]).collect()
}

/// Notifies systemd, where it listens. Repeated every second, so a failure is not worth more than a debug line.
fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd could not be notified");
    }
}

#[expect(clippy::disallowed_methods, reason = "schedules and health follow the local clock")]
fn now() -> DateTime<Utc> {
    Utc::now()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{export::Level, fhir::parse_instant};

    fn scheduled() -> Scheduled {
        Scheduled {
            export: sync::Export {
                name: "all".to_owned(),
                level: Level::System,
                types: Vec::new(),
                reconciled: BTreeSet::default(),
            },
            incremental: vec!["0 15 * * * *".parse().unwrap()],
            full_refresh: vec!["0 0 3 * * Sun".parse().unwrap()],
            max_age: None,
        }
    }

    fn due(last_complete: Option<&str>, last_full: Option<&str>, now: &str) -> Option<Mode> {
        let known = ExportState {
            last_complete_at: last_complete.and_then(parse_instant),
            last_full_refresh_at: last_full.and_then(parse_instant),
            ..ExportState::default()
        };
        overdue(&scheduled(), &known, parse_instant(now).unwrap())
    }

    #[test]
    fn health_knows_all_exports_before_it_answers_for_the_first_time() {
        let at = parse_instant("2026-11-20T10:00:00Z").unwrap();
        let mut state = State::default();
        state.exports.entry("all".to_owned()).or_default().freshness.failures_in_a_row = 3;
        let view = first_view(&[Watched::new(scheduled(), at)], &state, Duration::from_hours(24), at);
        let [export] = view.exports.as_slice() else { panic!("one export") };
        assert_eq!((view.ready, export.name.as_str(), export.failures_in_a_row), (false, "all", 3));
    }

    #[test]
    fn a_start_syncs_at_once_when_none_was_complete_or_one_is_overdue() {
        let full = Some("2026-11-15T03:10:00Z");
        assert_eq!(due(None, None, "2026-11-20T10:00:00Z"), Some(Mode::Incremental));
        assert_eq!(due(Some("2026-11-20T09:16:00Z"), full, "2026-11-20T10:00:00Z"), None);
        assert_eq!(due(Some("2026-11-20T09:14:00Z"), full, "2026-11-20T10:00:00Z"), Some(Mode::Incremental));
        assert_eq!(due(Some("2026-11-22T03:14:00Z"), full, "2026-11-22T03:20:00Z"), Some(Mode::FullRefresh));
    }
}
