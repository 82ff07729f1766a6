//! A request to stop: how long a step may still go on.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

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
