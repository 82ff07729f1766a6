//! Commands that are given by hand: each begins as soon as nothing stands against it, before the ticks that wait.

use std::{mem, sync::Arc};

use tokio::sync::mpsc;

use super::{AtWork, Daemon, Done, views::Watched};
use crate::{
    control::{Answer, Error, Order, Work, carry_out},
    sync::{Activity, Export},
};

/// The next order; without a control socket, for ever.
pub(super) async fn next_order(orders: &mut Option<mpsc::Receiver<Order>>) -> Option<Order> {
    match orders {
        Some(orders) => orders.recv().await,
        None => std::future::pending().await,
    }
}

impl Daemon {
    /// Queues an order, unless it is for another configuration than ours.
    pub(super) fn take_order(&mut self, order: Order) {
        match refusal(&order.work, &self.exports) {
            Some(refusal) => order.answer(Err(refusal)),
            None => self.orders.push_back(order),
        }
    }

    /// Begins all orders that can begin. To cancel the jobs of an export, its sync is stopped first.
    pub(super) fn begin_orders(&mut self) {
        for order in mem::take(&mut self.orders) {
            let excludes = excluded(&order.work, &self.exports);
            if order.stop.is_cancelled() {
                order.answer(Err(Error::Stopped));
            } else if self.at_work.values().all(|other| other.excludes.iter().all(|of| !excludes.contains(of))) {
                self.begin_order(order, excludes);
            } else {
                if matches!(order.work, Work::CancelJobs { .. }) {
                    self.stop_syncs(&excludes);
                }
                self.orders.push_back(order);
            }
        }
    }

    pub(super) fn is_syncing(&self, export: &str) -> bool {
        let sync = Activity::Sync { export: export.to_owned() };
        self.at_work.values().any(|of| of.activity == sync)
    }

    /// What must not begin now: what is at work, and what an order waits for.
    pub(super) fn excluded(&self) -> Vec<Activity> {
        let at_work = self.at_work.values().flat_map(|of| of.excludes.iter().cloned());
        at_work.chain(self.orders.iter().flat_map(|order| excluded(&order.work, &self.exports))).collect()
    }

    fn begin_order(&mut self, order: Order, excludes: Vec<Activity>) {
        let (syncer, stop, activity) = (Arc::clone(&self.syncer), order.stop.clone(), order.work.activity());
        let notifier = self.notifier.clone();
        let exports: Vec<Export> = self.exports.iter().map(|watched| watched.scheduled.export.clone()).collect();
        tracing::info!(command = order.work.name(), %activity, "a command by hand begins");
        let task = self.running.spawn(async move {
            let answer = carry_out(&syncer, &exports, &notifier, order.work.clone(), &order.stop).await;
            tracing::info!(command = order.work.name(), "a command by hand ends");
            let done = match &answer {
                Ok(Answer::Synced(report)) => Done::Sync(report.clone()),
                _ => Done::Command,
            };
            order.answer(answer);
            done
        });
        self.at_work.insert(task.id(), AtWork { activity, excludes, stop });
        self.publish(true);
    }

    fn stop_syncs(&self, of: &[Activity]) {
        for sync in self.at_work.values().filter(|at_work| of.contains(&at_work.activity)) {
            if matches!(sync.activity, Activity::Sync { .. }) && !sync.stop.is_cancelled() {
                tracing::info!(activity = %sync.activity, "stopped by a command, which cancels its export");
                sync.stop.cancel();
            }
        }
    }
}

/// What must not be at work meanwhile.
fn excluded(work: &Work, exports: &[Watched]) -> Vec<Activity> {
    let sync = |export: &str| Activity::Sync { export: export.to_owned() };
    let mut excluded = vec![work.activity()];
    match work {
        Work::CancelJobs { export: Some(export), .. } => excluded.push(sync(export)),
        Work::CancelJobs { export: None, .. } => excluded.extend(exports.iter().map(|watched| sync(watched.name()))),
        _ => {}
    }
    excluded
}

fn refusal(work: &Work, exports: &[Watched]) -> Option<Error> {
    let (Work::Sync { export, .. } | Work::SetSince { export, .. }) = work else { return None };
    let name = &export.name;
    let ours = exports.iter().find(|watched| watched.name() == name);
    let what = match ours {
        Some(watched) if watched.scheduled.export == *export => return None,
        Some(_) => format!("the service has other types, or another level, of the export {name:?} than the command"),
        None => format!("the service has no export {name:?}"),
    };
    Some(Error::OtherConfiguration(format!("{what}; if its configuration was changed, restart the service")))
}
