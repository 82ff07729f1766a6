//! Notices: whoever follows a run sees each wait before another attempt at a request.
//!
//! A request is tried again far below the run that it belongs to, and one client serves the runs of all exports. The
//! follower therefore belongs to the task, not to the client: a task that is spawned names it again.

use std::{sync::Arc, time::Duration};

use super::failure::Fault;

/// An attempt has failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RetryNotice {
    /// The retry that follows: 1 after the first attempt.
    pub number: u32,
    /// Until then.
    pub wait: Duration,
    /// Why, in a word or two: "503", "connection refused".
    pub reason: String,
}

pub type OnRetry = Arc<dyn Fn(RetryNotice) + Send + Sync>;

tokio::task_local! {
    static ON_RETRY: OnRetry;
}

/// Does `work`, and calls `on_retry` before each wait in it.
pub async fn followed<T>(on_retry: OnRetry, work: impl Future<Output = T>) -> T {
    ON_RETRY.scope(on_retry, work).await
}

pub(super) fn retry(number: u32, wait: Duration, fault: &Fault) {
    // Where nobody follows, the log alone says it.
    let _ = ON_RETRY.try_with(|on_retry| on_retry(RetryNotice { number, wait, reason: fault.in_short() }));
}
