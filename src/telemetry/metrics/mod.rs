//! Metrics: what the program counts and measures, for Prometheus.
//!
//! As with events of the log, any room may record, and does so by the functions of `record`: they know the names, and
//! take words of the [`catalogue`] or types as labels, so that a series that is not described cannot be written. In a
//! process without [`Exposition`], which is every command but the daemon, nothing is kept
//! (docs/decisions/0016-metrics-are-a-facade.md).

mod catalogue;
mod exposition;
mod record;

pub use self::{
    catalogue::{
        CacheLookup, Code, CommitOutcome, Delivery, Disk, Endpoint, FileOutcome, JobEvent, MaintenanceOutcome,
        Notification, Operation, Peer, Rejection, RetryReason, RunOutcome, Stage, Step, StoreRequest, TokenOutcome,
        WriteOutcome,
    },
    exposition::{CONTENT_TYPE, Exposition, Scope},
    record::{
        ByteCounter, ExportFigures, cache_asked, cache_size, clock_skew, commit_ended, config_read, disk_free,
        downloads_allowed, export, file_ended, healthy, job, lease_held, lease_shared, maintained, maintenance,
        notified, paused_until, polled, quarantined, reach, received, rejected, request_interval, requested, retried,
        rows, run_began, run_ended, spool_grew, spool_removed, stalled, state_written, step_began, step_ended,
        store_read, store_requested, store_written, table, token_renewed_at, token_requested,
    },
};
