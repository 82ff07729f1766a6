//! Parallel work on files: on as many threads as there are cores, one file for each at a time.

use std::{
    num::NonZero,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use tracing::Span;

use super::Error;
use crate::telemetry::advance;

/// Calls `work` for every unit and returns the results in the order of the units. After an error no further unit is
/// begun. Blocks this thread until all are done. `work` runs on other threads, even for one unit, so it may block on
/// the runtime.
pub(super) fn in_parallel<Unit: Sync, Done: Send>(
    units: &[Unit],
    work: impl Fn(&Unit) -> Result<Done, Error> + Sync,
) -> Result<Vec<Done>, Error> {
    let threads = cores().min(units.len());
    let next = AtomicUsize::new(0);
    let one = || {
        let mut done = Vec::new();
        while let Some((index, unit)) = take(units, &next) {
            advance::note();
            done.push((index, work(unit).inspect_err(|_| next.store(units.len(), Ordering::Relaxed))?));
        }
        Ok(done)
    };
    // Log lines of the new threads belong to the same run.
    let span = Span::current();
    let done = thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| span.in_scope(one))).collect();
        let joined = running.into_iter().map(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect::<Result<Vec<_>, Error>>()
    })?;
    let mut done: Vec<_> = done.into_iter().flatten().collect();
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, done)| done).collect())
}

pub(super) fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn take<'units, Unit>(units: &'units [Unit], next: &AtomicUsize) -> Option<(usize, &'units Unit)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, units.get(index)?))
}
