//! The local clock: for people and for `/health`. Of data it decides one thing: it may hold a watermark that is far
//! ahead of it.

use chrono::{DateTime, Utc};

#[expect(clippy::disallowed_methods, reason = "when a run began and ended is a matter of our own clock")]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}
