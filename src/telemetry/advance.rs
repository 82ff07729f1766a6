//! Advance: a counter of finished pieces of work. While it rises, long work is not taken for work that hangs.
//!
//! A row group that was read, rows that were written, an attempt at a request: each is noted where it happens, for the
//! whole process.

use std::sync::atomic::{AtomicU64, Ordering};

static NOTED: AtomicU64 = AtomicU64::new(0);

/// Something was done.
pub fn note() {
    NOTED.fetch_add(1, Ordering::Relaxed);
}

/// How much was done so far. Only differences mean something.
pub fn noted() -> u64 {
    NOTED.load(Ordering::Relaxed)
}
