//! A courier: delivers the notifications of one export, one after the other.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{
    Patience,
    heartbeat::{Heartbeat, Ping},
    message::{Message, Webhook},
};
use crate::{
    export::{Clients, Problem, Proxy},
    sync::Outcome,
    telemetry::metrics::{self, Delivery, Notification},
};

/// The outcome of the run before that was not stopped, in whatever process it was; `None` where it is unknown.
pub type Before = Option<Outcome>;

#[derive(Debug)]
pub enum Event {
    Began,
    Ended {
        message: Box<Message>,
        before: Before,
        /// Whether the state has the outcome, so that the next run finds it there.
        is_remembered: bool,
    },
}

pub struct Courier {
    pub export: String,
    pub sender: Sender,
    pub heartbeat: Option<Heartbeat>,
    pub webhook: Option<Webhook>,
    /// The outcome of the run before, where the state lacks it: it may be the state that has failed.
    pub unremembered: Before,
    pub stop: CancellationToken,
}

impl Courier {
    /// Until the queue is empty and `closing` is cancelled.
    pub async fn deliver_all(mut self, mut events: mpsc::Receiver<Event>, closing: CancellationToken) {
        loop {
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                () = closing.cancelled() => None,
            };
            match event {
                Some(Event::Began) => self.ping(Ping::Start).await,
                Some(Event::Ended { message, before, is_remembered }) => {
                    let before = self.unremembered.or(before);
                    self.keep(message.outcome, is_remembered);
                    self.report(&message, before).await;
                }
                None => return,
            }
        }
    }

    /// A run that was stopped says nothing about the one before it.
    fn keep(&mut self, outcome: Outcome, is_remembered: bool) {
        if outcome != Outcome::Stopped {
            self.unremembered = (!is_remembered).then_some(outcome);
        }
    }

    async fn report(&self, message: &Message, before: Before) {
        let ping = async {
            if let Some(ping) = message.ping {
                self.ping(ping).await;
            }
        };
        tokio::join!(ping, self.post(message, before));
    }

    async fn ping(&self, ping: Ping) {
        let Some(url) = self.heartbeat.as_ref().and_then(|heartbeat| heartbeat.url_of(ping)) else { return };
        // The ping of the start must not delay that of the end.
        let attempts = if ping == Ping::Start { Attempts::One } else { Attempts::All };
        self.deliver(Notification::Heartbeat, &url, None, attempts).await;
    }

    async fn post(&self, message: &Message, before: Before) {
        let asked = |webhook: &&Webhook| webhook.on.asks_for(message.outcome, before);
        let Some(webhook) = self.webhook.as_ref().filter(asked) else { return };
        let body = message.body(webhook.format, before);
        self.deliver(Notification::Webhook, webhook.url.url(), Some(&body), Attempts::All).await;
    }

    async fn deliver(&self, what: Notification, url: &Url, body: Option<&Value>, attempts: Attempts) {
        let delivered = self.sender.deliver(url, body, attempts, &self.stop).await;
        metrics::notified(what, if delivered.is_ok() { Delivery::Delivered } else { Delivery::GivenUp });
        if let Err(refusal) = delivered {
            let what = what.word();
            let (export, attempts, error) = (&self.export, refusal.attempts, refusal.failure);
            tracing::warn!(export, attempts, error = %error, "a notification is given up: the {what} was not delivered");
        }
    }
}

/// Sends requests, again where that may help.
#[derive(Clone)]
pub struct Sender {
    clients: Clients,
    patience: Patience,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempts {
    One,
    All,
}

struct Refusal {
    attempts: usize,
    failure: Failure,
}

/// Why an attempt failed; without the URL, and without a word of the receiver.
#[derive(thiserror::Error, Debug)]
enum Failure {
    #[error("the receiver answered {0}")]
    Status(StatusCode),
    #[error("{0}")]
    NotConnected(Problem),
    #[error("no answer within {} s", .0.as_secs_f64())]
    NoAnswer(Duration),
    #[error("the connection failed")]
    Transport,
}

impl Failure {
    /// Whether another attempt may help.
    fn is_transient(&self) -> bool {
        match self {
            Self::Status(status) => {
                let may_pass = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
                status.is_server_error() || may_pass.contains(status)
            }
            Self::NotConnected(_) | Self::NoAnswer(_) | Self::Transport => true,
        }
    }
}

impl Sender {
    pub fn new(proxy: &Proxy, patience: Patience) -> reqwest::Result<Self> {
        let builder = || {
            Ok(reqwest::Client::builder()
                .user_agent(concat!("fhir-sync/", env!("CARGO_PKG_VERSION")))
                // A redirect may lead the secret to anybody.
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .retry(reqwest::retry::never())
                // A courier sends seldom; the receiver closes the connection in between.
                .pool_max_idle_per_host(0)
                .timeout(patience.answer))
        };
        Ok(Self { clients: Clients::new(proxy, builder)?, patience })
    }

    /// GET without a body, POST with one. After `stop` nothing is attempted again.
    async fn deliver(
        &self,
        url: &Url,
        body: Option<&Value>,
        attempts: Attempts,
        stop: &CancellationToken,
    ) -> Result<(), Refusal> {
        let waits = if attempts == Attempts::All { self.patience.waits.as_slice() } else { &[] };
        let mut waits = waits.iter();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let Err(failure) = self.attempt(url, body).await else { return Ok(()) };
            let wait = waits.next().filter(|_| failure.is_transient() && !stop.is_cancelled());
            let Some(wait) = wait else { return Err(Refusal { attempts, failure }) };
            tracing::debug!(attempts, error = %failure, "a notification is attempted again");
            tokio::select! {
                () = tokio::time::sleep(*wait) => {}
                () = stop.cancelled() => return Err(Refusal { attempts, failure }),
            }
        }
    }

    async fn attempt(&self, url: &Url, body: Option<&Value>) -> Result<(), Failure> {
        let method = if body.is_some() { Method::POST } else { Method::GET };
        let request = self.clients.of(url).request(method, url.clone());
        let request = if let Some(body) = body { request.json(body) } else { request };
        // The body of the answer is of no use, and is not read.
        let answer = request.send().await.map_err(|error| self.failure(&error))?;
        if answer.status().is_success() { Ok(()) } else { Err(Failure::Status(answer.status())) }
    }

    fn failure(&self, error: &reqwest::Error) -> Failure {
        if error.is_timeout() {
            return Failure::NoAnswer(self.patience.answer);
        }
        let problem = if error.is_connect() { Problem::of(error) } else { None };
        problem.map_or(Failure::Transport, Failure::NotConnected)
    }
}
