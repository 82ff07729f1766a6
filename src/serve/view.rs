//! The view: what the daemon publishes of itself and of each export. Every response is made of it alone.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use crate::sync::{Outcome, PastRuns, Progress};

/// What the daemon publishes about itself.
#[derive(Clone, Debug)]
pub struct View {
    pub ready: bool,
    /// When the daemon's loop last showed that it is alive.
    pub heartbeat: Instant,
    /// Something that is at work shows no progress.
    pub hangs: bool,
    pub exports: Vec<ExportView>,
}

#[derive(Clone, Debug)]
pub struct ExportView {
    pub name: String,
    /// When the last complete sync ended.
    pub last_complete: Option<Moment>,
    /// When the script that fhir-sync replaces last synced; until the first complete sync, and for `/health` alone.
    pub before_migration: Option<Moment>,
    pub types: Vec<TypeView>,
    /// How old the data may be.
    pub max_age: Duration,
    /// A type of which it is unknown whether there is any is asked for again after this time.
    pub recheck_absent: Duration,
    pub last_outcome: Option<Outcome>,
    pub failures_in_a_row: u32,
    /// What the last sync left open: what is in quarantine, unconfirmed, denied, missing, accepted, loaded in full.
    pub warnings: Vec<String>,
    pub next_run_at: Option<DateTime<Utc>>,
    /// Of the sync that is running.
    pub progress: Progress,
    /// As far as they are known: the ledger is read after the start.
    pub runs: PastRuns,
}

#[derive(Clone, Debug)]
pub struct TypeView {
    pub name: String,
    /// From when its data are. `None`: never loaded, or lost.
    pub data: Option<Moment>,
    /// When it was last asked for, where it is unconfirmed: nothing arrived, and it is unknown whether there is
    /// anything.
    pub unconfirmed: Option<Moment>,
    /// How it ended in the last run.
    pub last_end: Option<String>,
    /// How far its table is, by the server's clock.
    pub watermark: Option<DateTime<Utc>>,
    /// In its table, of all exports, after the last run that changed it; `None` while that is unknown.
    pub rows: Option<u64>,
}

/// An instant on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub at: DateTime<Utc>,
    anchor: Instant,
}

/// How far the wall clock may be behind a moment before it is not trusted.
const MAX_SKEW: TimeDelta = TimeDelta::seconds(60);

impl Moment {
    /// A moment that may be before this process; `now` and `instant` are the present.
    pub fn new(at: DateTime<Utc>, now: DateTime<Utc>, instant: Instant) -> Self {
        let age = (now - at).to_std().unwrap_or_default();
        Self { at, anchor: instant.checked_sub(age).unwrap_or(instant) }
    }

    /// `None` where the wall clock is before the moment: then the age is unknown.
    pub(super) fn age(&self, now: DateTime<Utc>, instant: Instant) -> Option<Duration> {
        if now + MAX_SKEW < self.at {
            return None;
        }
        let wall = (now - self.at).to_std().unwrap_or_default();
        Some(wall.max(instant.saturating_duration_since(self.anchor)))
    }
}
