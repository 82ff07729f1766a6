//! Waiting: for work that blocks its thread, and for a request to stop. And the local clock.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::Error;

/// A kick-off or a DELETE that is dropped half-way leaves a job on the server that nobody waits for; so it has a short
/// time to end.
pub const REQUEST_PATIENCE: Duration = Duration::from_secs(5);

/// The cancellation of a job that is given up. Its server may be gone for good.
pub const CANCEL_PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `step`, but not longer than `patience` after the request to stop.
pub async fn unless_stopped<T>(
    stop: &CancellationToken,
    patience: Duration,
    step: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let stopped = async {
        stop.cancelled().await;
        tokio::time::sleep(patience).await;
    };
    tokio::select! {
        biased;
        () = stopped => Err(Error::Stopped),
        result = step => result,
    }
}

/// Waits for `work` to its end; after `limit` it is asked to stop.
pub async fn within<T>(limit: Duration, stop: &CancellationToken, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = tokio::time::sleep(limit) => stop.cancel(),
    }
    work.await
}

/// Does `work` on a thread that may block, in the span of the caller.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let mut thread = JoinSet::new();
    let span = Span::current();
    thread.spawn_blocking(move || span.in_scope(work));
    loop {
        match thread.join_next().await {
            Some(Ok(result)) => return result,
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            // One thread was started, so there is one to wait for; a runtime that shuts down never answers.
            None => std::future::pending().await,
        }
    }
}

/// The local clock: for people and for `/health`. Of data it decides one thing: it may hold a watermark that is far
/// ahead of it.
#[expect(clippy::disallowed_methods, reason = "when a run began and ended is a matter of our own clock")]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}
