//! Notifications: a heartbeat for a dead man's switch, and a webhook for people.
//!
//! What always holds: a notification is sent only after the state file has the end of the run, or has refused it; it
//! neither delays a run nor changes how it ends. Each export has a courier, which delivers in the order of what happened. Each attempt, each
//! wait and the queue have a limit. The URLs are secrets: no log line and no error has them.

mod courier;
mod heartbeat;
mod message;
mod secret_url;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::{
    courier::{Before, Courier, Event, Sender},
    heartbeat::Heartbeat,
    message::Message,
};
pub use self::{
    heartbeat::HeartbeatStyle,
    message::{Webhook, WebhookFormat, WebhookOn},
    secret_url::SecretUrl,
};
use crate::{export::Proxy, sync::Report};

/// Whom to notify, and how.
#[derive(Clone, Debug)]
pub struct Config {
    /// Of the exports that have no heartbeat of their own.
    pub heartbeat: Option<SecretUrl>,
    /// By the name of the export.
    pub heartbeats: BTreeMap<String, SecretUrl>,
    pub heartbeat_style: HeartbeatStyle,
    pub webhook: Option<Webhook>,
    /// Loopback addresses are always reached directly.
    pub proxy: Proxy,
    /// Not configurable.
    pub patience: Patience,
}

/// How long a receiver is waited for.
#[derive(Clone, Debug)]
pub struct Patience {
    /// For the answer to one attempt.
    pub answer: Duration,
    /// Before each further attempt.
    pub waits: Vec<Duration>,
    /// For what is under way when the process ends.
    pub at_the_end: Duration,
    /// The same after the request to stop.
    pub after_a_stop: Duration,
}

impl Default for Patience {
    /// Three attempts in less than a minute.
    fn default() -> Self {
        Self {
            answer: Duration::from_secs(10),
            waits: vec![Duration::from_secs(2), Duration::from_secs(10)],
            at_the_end: Duration::from_mins(1),
            after_a_stop: Duration::from_secs(5),
        }
    }
}

#[derive(thiserror::Error, Debug)]
#[error("cannot set up the HTTP client for notifications")]
pub struct Error(#[source] reqwest::Error);

/// Reports to the couriers what happens to exports.
#[derive(Clone, Debug)]
pub struct Notifier {
    couriers: Arc<HashMap<String, mpsc::Sender<Event>>>,
}

/// The couriers, a task for each export that has a receiver.
pub struct Couriers {
    tasks: JoinSet<()>,
    closing: CancellationToken,
    stop: CancellationToken,
    patience: Patience,
}

/// How many events of one export may wait for its courier: those of some runs.
const MAX_QUEUED: usize = 16;

/// Starts the couriers of these exports. After `stop`, nothing is attempted again.
pub fn start(
    config: Config,
    exports: impl IntoIterator<Item = String>,
    stop: &CancellationToken,
) -> Result<(Notifier, Couriers), Error> {
    let mut couriers = Couriers {
        tasks: JoinSet::new(),
        closing: CancellationToken::new(),
        stop: stop.clone(),
        patience: config.patience.clone(),
    };
    let mut queues = HashMap::new();
    let sender = Sender::new(&config.proxy, config.patience).map_err(Error)?;
    for export in exports {
        let url = config.heartbeats.get(&export).or(config.heartbeat.as_ref()).cloned();
        let heartbeat = url.map(|url| Heartbeat { url, style: config.heartbeat_style });
        if heartbeat.is_none() && config.webhook.is_none() {
            continue;
        }
        let (queue, events) = mpsc::channel(MAX_QUEUED);
        let courier = Courier {
            export: export.clone(),
            sender: sender.clone(),
            heartbeat,
            webhook: config.webhook.clone(),
            unremembered: None,
            stop: stop.clone(),
        };
        couriers.tasks.spawn(courier.deliver_all(events, couriers.closing.clone()));
        queues.insert(export, queue);
    }
    Ok((Notifier { couriers: Arc::new(queues) }, couriers))
}

impl Notifier {
    /// A run of an export, and the notifications before and after it. When `run` ends, the state has its end, if it can
    /// be written; `before` is what the state had when nobody else could run the export any more.
    pub async fn around(&self, export: &str, before: Before, run: impl Future<Output = Report>) -> Report {
        self.queue(export, Event::Began);
        let report = run.await;
        let (message, is_remembered) = (Box::new(Message::of(&report)), report.is_remembered);
        self.queue(export, Event::Ended { message, before, is_remembered });
        report
    }

    /// A run of the export has panicked, which the state knows if `is_remembered`.
    pub fn panicked(&self, export: &str, before: Before, is_remembered: bool) {
        self.queue(export, Event::Ended { message: Box::new(Message::of_panic(export)), before, is_remembered });
    }

    fn queue(&self, export: &str, event: Event) {
        let Some(queue) = self.couriers.get(export) else { return };
        if queue.try_send(event).is_err() {
            tracing::warn!(export, "a notification is dropped: the receiver is too slow for the ones before");
        }
    }
}

impl Couriers {
    /// Delivers what is queued, or gives it up after the time of [`Patience`]. Nothing may be queued any more.
    pub async fn finish(mut self) {
        self.closing.cancel();
        let stopped = async {
            self.stop.cancelled().await;
            tokio::time::sleep(self.patience.after_a_stop).await;
        };
        let all = async { while self.tasks.join_next().await.is_some() {} };
        tokio::select! {
            () = all => return,
            () = stopped => {}
            () = tokio::time::sleep(self.patience.at_the_end) => {}
        }
        tracing::warn!("notifications under way are given up: the process ends");
    }
}

#[cfg(test)]
mod tests;
