//! The local clock: for the age of a job across restarts and for how long to wait, never for a decision about data.

use chrono::{DateTime, Utc};

#[expect(clippy::disallowed_methods, reason = "ages and waits are a matter of our own clock (rule 131)")]
pub fn local_now() -> DateTime<Utc> {
    Utc::now()
}
