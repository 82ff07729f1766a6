//! Signals: what a person or a service manager asks of a process.

use tokio::signal::unix::{Signal, SignalKind, signal};

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

/// What else a daemon is asked for.
pub enum Request {
    Reload,
    SyncNow,
}

/// SIGHUP and SIGUSR1, which would end any other process.
pub struct Requests {
    hangup: Signal,
    user_1: Signal,
}

impl Requests {
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { hangup: signal(SignalKind::hangup())?, user_1: signal(SignalKind::user_defined1())? })
    }

    pub async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.hangup.recv() => Request::Reload,
            _ = self.user_1.recv() => Request::SyncNow,
        }
    }
}
