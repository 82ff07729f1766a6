//! Work that blocks its thread.

use tokio::task::JoinSet;
use tracing::Span;

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
