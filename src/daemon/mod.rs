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
//! SIGHUP reads the configuration again, SIGUSR1 syncs every export.

mod commands;
mod due;
mod figures;
mod history;
mod public_keys;
mod reload;
mod shared;
mod signals;
mod stall;
mod views;
mod wall_clock;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, Utc};
use sd_notify::NotifyState;
use tokio::{
    sync::{mpsc, watch},
    task::{self, JoinError, JoinSet},
    time::{Instant, interval, sleep_until},
};
use tokio_cron_scheduler::JobScheduler;
use tokio_util::sync::CancellationToken;

pub use self::signals::Signals;
use self::{
    commands::next_order,
    due::{missed, schedules},
    history::History,
    reload::Loading,
    shared::Others,
    signals::{Request, Requests},
    stall::Stalls,
    views::{Watched, next_run_at},
    wall_clock::WallClock,
};
use crate::{
    config::Config,
    control::{self, Order},
    fhir::ResourceType,
    notify::{self, Couriers, Notifier},
    schedule::{self, Tick, Ticks},
    serve::{self, View},
    sync::{
        self, Activity, Board, DryRun, Mode, Progress, ProgressBoard, Report, Step, Syncer, TableName, TablesMaintained,
    },
    telemetry::{advance, metrics, panics},
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

/// Runs until a signal stops it. `path` is the file of the configuration, which a reload reads again.
pub async fn run(config: Config, path: &Path) -> Result<Ended, Error> {
    if !config.has_schedule() {
        return Err(Error::NoSchedule);
    }
    let mut signals = Signals::listen().map_err(Error::Signals)?;
    let mut requests = Requests::listen().map_err(Error::Signals)?;
    let (sender, board) = ProgressBoard::new();
    let exports: Vec<_> = config.exports.iter().map(|scheduled| scheduled.export.clone()).collect();
    let place = control::place_of(&config.tables.root);
    let recheck_absent = config.sync.recheck_absent.to_std().unwrap_or_default();
    let (metrics, _watchers) = figures::start(&exports, &config);
    let Config { server, tables, state, sync, .. } = config.clone();
    let syncer = Syncer::open(server, tables, &state, sync, &exports, sender).await?;
    for export in &exports {
        syncer.forget_lost_data(export).await?;
    }
    let stop = CancellationToken::new();
    let names = exports.iter().map(|export| export.name.clone());
    let (notifier, couriers) = notify::start(config.notify.clone(), names, &stop)?;
    let exports: Vec<_> = config.exports.iter().map(|scheduled| Watched::new(scheduled.clone(), now())).collect();
    let (views, seen) = watch::channel(views::first(&exports, &syncer.state(), recheck_absent, now()));
    let (jwks, _readers) = public_keys::start(&config);
    let server = serve::Server::start(&config.health, seen, metrics, jwks)
        .map_err(|source| Error::Listen { listen: config.health.listen.to_string(), source })?;
    let (control, mut orders) = listen_for_commands(&config.control(), place, board.clone(), &stop).unzip();
    let ticks = Ticks::default();
    let scheduler = schedule::start(&schedules(&config.exports, &config.maintenance), &ticks).await?;
    let syncer = Arc::new(syncer);
    let others = Others::watch(&syncer, now());
    let mut daemon = Daemon {
        history: History::read(&syncer, types_of(&exports)),
        syncer,
        exports,
        config,
        path: reload::path_of(path),
        ticks,
        scheduler,
        views,
        board,
        notifier,
        couriers: vec![couriers],
        stop,
        running: JoinSet::new(),
        at_work: HashMap::new(),
        orders: VecDeque::new(),
        loading: Loading::new(),
        reload_again: false,
        reload_refused: false,
        stalls: Stalls::default(),
        others,
        wall_clock: WallClock::at(now(), Instant::now()),
    };
    daemon.catch_up();
    daemon.publish(true);
    tracing::info!(health = %server.address, next_run = daemon.next_run(), "ready");
    tell_systemd_that_it_is_ready();
    let ended = daemon.run_loop(&mut orders, &mut signals, &mut requests).await;
    daemon.close(ended, control).await;
    Ok(ended)
}

fn tell_systemd_that_it_is_ready() {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        tracing::warn!(%error, "systemd could not be notified; it will end this process after its start timeout");
    }
}

/// Without the socket, a command by hand says that the daemon holds the state file.
fn listen_for_commands(
    socket: &Path,
    tables: String,
    board: watch::Receiver<Board>,
    stop: &CancellationToken,
) -> Option<(control::Server, mpsc::Receiver<Order>)> {
    let listening = control::Server::start(socket, tables, board, stop.clone());
    if let Err(error) = &listening {
        tracing::warn!(%error, "no control socket; commands by hand need the daemon stopped");
    }
    listening.ok()
}

struct Daemon {
    /// With the settings of the last reload.
    syncer: Arc<Syncer>,
    exports: Vec<Watched>,
    history: History,
    config: Config,
    path: PathBuf,
    ticks: Ticks,
    scheduler: JobScheduler,
    views: watch::Sender<View>,
    board: watch::Receiver<Board>,
    notifier: Notifier,
    /// One for each reload: couriers of an earlier configuration may still deliver.
    couriers: Vec<Couriers>,
    stop: CancellationToken,
    running: JoinSet<Done>,
    /// What each task does; never two of one activity.
    at_work: HashMap<task::Id, AtWork>,
    /// Commands that have not begun.
    orders: VecDeque<Order>,
    loading: Loading,
    /// Whether somebody asked for a reload during one.
    reload_again: bool,
    /// Whether the last reload was refused.
    reload_refused: bool,
    stalls: Stalls,
    others: Others,
    wall_clock: WallClock,
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
    /// Another process does it, or has done it.
    NotHere,
}

impl Daemon {
    /// What the schedule asked for while the daemon was down, or the clock was ahead, is done once, now.
    fn catch_up(&self) {
        if self.syncer.shares_exports() {
            return self.begin_due();
        }
        let state = self.syncer.state();
        for export in &self.exports {
            let name = export.name();
            let known = state.exports.get(name).cloned().unwrap_or_default();
            if let Some(mode) = missed(&export.scheduled, &known, self.is_syncing(name), now()) {
                tracing::info!(export = name, %mode, "overdue; starting at once");
                self.ticks.tick(&Tick::Sync { export: name.to_owned(), mode });
            }
        }
    }

    async fn run_loop(
        &mut self,
        orders: &mut Option<mpsc::Receiver<Order>>,
        signals: &mut Signals,
        requests: &mut Requests,
    ) -> Ended {
        let mut heartbeat = interval(Duration::from_secs(1));
        let mut give_up_at: Option<Instant> = None;
        loop {
            self.begin_orders();
            if self.running.is_empty() && self.stop.is_cancelled() {
                return Ended::Gracefully;
            }
            let (excluded, ticks) = (self.excluded(), self.ticks.clone());
            tokio::select! {
                Some(order) = next_order(orders) => self.take_order(order),
                tick = ticks.next(&excluded), if !self.stop.is_cancelled() => self.begin(&tick),
                Some(ended) = self.running.join_next_with_id() => self.end(ended).await,
                () = self.history.next(&self.syncer) => {}
                request = requests.next(), if !self.stop.is_cancelled() => self.answer(&request),
                () = self.others.looked(&self.syncer), if !self.stop.is_cancelled() => self.begin_due(),
                Some(loaded) = self.loading.join_next(), if !self.stop.is_cancelled() => self.end_reload(loaded).await,
                name = signals.next() => {
                    if give_up_at.is_some() {
                        tracing::warn!(signal = name, "second signal: ending at once");
                        return Ended::AtOnce;
                    }
                    give_up_at = Some(Instant::now() + self.config.grace_period);
                    self.begin_stop(name);
                }
                () = until(give_up_at) => {
                    let grace_period = humantime::format_duration(self.config.grace_period);
                    tracing::warn!(%grace_period, "daemon.grace_period is over: ending at once; nothing is lost");
                    return Ended::AtOnce;
                }
                _ = heartbeat.tick() => {
                    self.follow_clock(now(), Instant::now()).await;
                    self.publish(!self.stop.is_cancelled());
                }
            }
        }
    }

    fn begin_stop(&self, signal: &str) {
        let grace_period = humantime::format_duration(self.config.grace_period);
        tracing::info!(signal, %grace_period, "stopping");
        notify(&[NotifyState::Stopping]);
        self.stop.cancel();
    }

    fn answer(&mut self, request: &Request) {
        match request {
            Request::Reload => self.begin_reload(),
            Request::SyncNow => {
                tracing::info!("SIGUSR1: every export is synced now");
                for export in &self.exports {
                    let export = export.name().to_owned();
                    self.others.ask_for(&export);
                    self.ticks.tick(&Tick::Sync { export, mode: Mode::Incremental });
                }
            }
        }
    }

    async fn close(mut self, ended: Ended, control: Option<control::Server>) {
        if let Err(error) = self.scheduler.shutdown().await {
            tracing::warn!(%error, "the scheduler did not shut down cleanly");
        }
        if ended == Ended::AtOnce {
            tracing::warn!("stopped at once; the next start continues");
            return;
        }
        if let Some(control) = control {
            control.close().await;
        }
        self.syncer.close().await;
        for couriers in self.couriers {
            couriers.finish().await;
        }
        tracing::info!("stopped");
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
                let maintenance = self.config.maintenance.clone();
                self.running.spawn(async move {
                    if !shared::maintenance_is_due(&syncer, &maintenance).await {
                        return Done::NotHere;
                    }
                    tracing::info!(tables = tables.len(), "maintenance begins");
                    let maintained = syncer.maintain(&tables, &maintenance.of_tables, DryRun::No, &stop).await;
                    maintained.map_or(Done::NotHere, Done::Maintenance)
                })
            }
            Tick::Sync { export, mode } => {
                let Some(watched) = self.exports.iter().find(|watched| watched.name() == export) else { return };
                let (scheduled, mode, notifier) = (watched.scheduled.clone(), *mode, self.notifier.clone());
                let reason = self.others.reason(export);
                self.running.spawn(async move {
                    let Some((leases, mode)) = shared::take_leases(&syncer, &scheduled, mode, reason).await else {
                        return Done::NotHere;
                    };
                    let export = &scheduled.export;
                    let before = leases.syncer.outcome_before(&export.name);
                    let run = leases.syncer.run_leased(export, mode, &stop);
                    let report = notifier.around(&export.name, before, run).await;
                    leases.release().await;
                    Done::Sync(Box::new(report))
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
            Ok(Done::Command | Done::NotHere) => {}
            Ok(Done::Maintenance(tables)) => {
                let failed = tables.iter().filter(|(_, result)| result.is_err()).count();
                tracing::info!(tables = tables.len(), failed, "maintenance ends");
            }
            Err(error) => {
                let run = activity.as_ref().map(tracing::field::display);
                let error = panics::of_task(&error);
                tracing::error!(run, error, "the run panicked; this is a bug in fhir-sync. The next tick tries again");
                if let Some(Activity::Sync { export }) = activity {
                    let before = self.syncer.outcome_before(&export);
                    let remembered = self.syncer.remember_panic(&export).await.unwrap_or_else(|error| {
                        tracing::error!(error = sync::chain(&error), "the failure could not be remembered");
                        false
                    });
                    self.notifier.panicked(&export, before, remembered);
                }
            }
        }
        self.publish(!self.stop.is_cancelled());
    }

    /// Publishes that the loop is alive, and what it is doing.
    fn publish(&mut self, ready: bool) {
        let state = self.syncer.current_state();
        self.views.send_modify(|view| {
            for (export, watched) in view.exports.iter_mut().zip(&self.exports) {
                views::update(export, watched, &state, &self.history, now());
                figures::reach(watched, &state);
            }
        });
        let board = self.board.borrow().clone();
        let progress = |activity: &Activity| board.get(activity).cloned().unwrap_or_default();
        let at_work: Vec<_> = self.at_work.values().map(|of| of.activity.clone()).collect();
        let now = now();
        let hangs = self.hangs(&at_work, &board);
        let other_holders = self.syncer.other_holders();
        self.views.send_modify(|view| {
            view.ready = ready;
            view.heartbeat = Instant::now();
            view.hangs = hangs;
            for (export, watched) in view.exports.iter_mut().zip(&self.exports) {
                let sync = Activity::Sync { export: export.name.clone() };
                export.progress = match other_holders.get(&export.name) {
                    _ if at_work.contains(&sync) => progress(&sync),
                    Some(holder) => {
                        Progress { step: Step::InAnotherProcess { holder: holder.clone() }, ..Progress::default() }
                    }
                    None => Progress::default(),
                };
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
        let mut status =
            if activities.is_empty() { "waiting for the next run".to_owned() } else { activities.join("; ") };
        if self.reload_refused {
            status.push_str("; the last reload was refused, see the log");
        }
        let fed = (!hangs).then_some(NotifyState::Watchdog);
        notify(&fed.into_iter().chain([NotifyState::Status(&status)]).collect::<Vec<_>>());
    }

    /// Whether something hangs. Then the watchdog is no longer fed: only another process can go on.
    fn hangs(&mut self, at_work: &[Activity], board: &Board) -> bool {
        let limit = self.config.stall_timeout;
        let stalls = self.stalls.look(at_work, board, advance::noted(), Instant::now(), limit);
        for stall in stalls.iter().filter(|stall| stall.is_new) {
            let export = match &stall.activity {
                Activity::Sync { export } => Some(export.as_str()),
                Activity::Maintenance | Activity::ByHand => None,
            };
            tracing::error!(
                export, activity = %stall.activity, step = %stall.step, since_s = stall.since.as_secs(),
                "no progress within daemon.stall_timeout: it hangs, and /livez fails until it advances or the process \
                 is started again"
            );
        }
        metrics::stalled(!stalls.is_empty());
        !stalls.is_empty()
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
