//! Parallel work on files: on as many threads as there are cores, one file for each at a time.

use std::{
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, ScopedJoinHandle},
};

use futures::{StreamExt as _, stream};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit},
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
    let done = thread::scope(|scope| joined((0..threads).map(|_| scope.spawn(|| span.in_scope(one))).collect()))?;
    Ok(in_order(done))
}

fn joined<T>(threads: Vec<ScopedJoinHandle<'_, Result<Vec<T>, Error>>>) -> Result<Vec<T>, Error> {
    let joined = threads.into_iter().map(|thread| match thread.join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    });
    // All are waited for, also after an error.
    let joined: Vec<_> = joined.collect();
    let done = joined.into_iter().collect::<Result<Vec<_>, Error>>()?;
    Ok(done.into_iter().flatten().collect())
}

fn in_order<Done>(mut done: Vec<(usize, Done)>) -> Vec<Done> {
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, done)| done).collect()
}

pub(super) fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn take<'units, Unit>(units: &'units [Unit], next: &AtomicUsize) -> Option<(usize, &'units Unit)> {
    let index = next.fetch_add(1, Ordering::Relaxed);
    Some((index, units.get(index)?))
}

/// Where the bytes are that a unit of work needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ReadFrom {
    /// On a disk, which answers at once: each thread reads what it works on.
    Disk,
    /// In a store: many requests are on their way while the threads work on what has arrived.
    Store,
}

/// With more requests at the same time a store would not send more.
pub(super) const MAX_REQUESTS_IN_FLIGHT: usize = 32;
/// What was read and is not worked on yet takes no more memory than this, unless a single unit does.
const MAX_KIB_IN_FLIGHT: u32 = 64 * 1024;

/// As [`in_parallel`], where a unit needs so many `bytes`, which `fetch` brings.
pub(super) fn in_parallel_with<Unit: Sync, Fetched: Send, Done: Send>(
    from: ReadFrom,
    units: &[Unit],
    bytes: impl Fn(&Unit) -> u64 + Sync,
    fetch: impl AsyncFn(&Unit) -> Result<Fetched, Error> + Sync,
    work: impl Fn(&Unit, Fetched) -> Result<Done, Error> + Sync,
) -> Result<Vec<Done>, Error> {
    let runtime = Handle::current();
    let room = Semaphore::new(MAX_KIB_IN_FLIGHT as usize);
    if from == ReadFrom::Disk {
        return in_parallel(units, |unit| {
            // Nobody closes it. It is given back when the work on the unit has ended.
            let _room = runtime.block_on(room.acquire_many(kib(bytes(unit))));
            work(unit, runtime.block_on(fetch(unit))?)
        });
    }
    let (arrive, arrived) = mpsc::channel();
    let arrived = Mutex::new(arrived);
    let one = || {
        // After an error, or when all is done, nothing more is requested.
        let _closing = Closing(&room);
        let mut done = Vec::new();
        loop {
            let next = arrived.lock().unwrap_or_else(PoisonError::into_inner).recv();
            // The room is given back when the work on the unit has ended.
            let Ok(Arrived { index, unit, fetched, room: _room }) = next else { return Ok(done) };
            advance::note();
            done.push((index, work(unit, fetched?)?));
        }
    };
    let span = Span::current();
    let done = thread::scope(|scope| {
        let workers = (0..cores().min(units.len())).map(|_| scope.spawn(|| span.in_scope(one))).collect();
        let requests = || runtime.block_on(request(units, &bytes, &fetch, &room, arrive));
        let span = &span;
        scope.spawn(move || span.in_scope(requests));
        joined(workers)
    })?;
    Ok(in_order(done))
}

/// The room for so many bytes. A unit that is larger than all of the room is worked on alone.
fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).clamp(1, MAX_KIB_IN_FLIGHT)
}

/// A unit with what it needs, and the room that this takes.
struct Arrived<'units, Unit, Fetched> {
    index: usize,
    unit: &'units Unit,
    fetched: Result<Fetched, Error>,
    room: SemaphorePermit<'units>,
}

struct Closing<'room>(&'room Semaphore);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

async fn request<'units, Unit, Fetched>(
    units: &'units [Unit],
    bytes: &(impl Fn(&Unit) -> u64 + Sync),
    fetch: &(impl AsyncFn(&Unit) -> Result<Fetched, Error> + Sync),
    room: &'units Semaphore,
    arrive: mpsc::Sender<Arrived<'units, Unit, Fetched>>,
) {
    let request = async |(index, unit)| {
        let room = room.acquire_many(kib(bytes(unit))).await.ok()?;
        Some(Arrived { index, unit, fetched: fetch(unit).await, room })
    };
    let mut answers = stream::iter(units.iter().enumerate()).map(request).buffer_unordered(MAX_REQUESTS_IN_FLIGHT);
    while let Some(Some(answer)) = answers.next().await {
        if arrive.send(answer).is_err() {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [u64; 200] = [7; 200];

    fn failed() -> Error {
        Error::spool("failed")
    }

    fn run(
        from: ReadFrom,
        fetch: impl AsyncFn(&u64) -> Result<u64, Error> + Sync + Send,
        work: impl Fn(&u64, u64) -> Result<u64, Error> + Sync + Send,
    ) -> Result<Vec<u64>, Error> {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _entered = runtime.enter();
        // Each takes a fifth of the room.
        in_parallel_with(from, &ALL, |_| 13 * 1024 * 1024, fetch, work)
    }

    #[test]
    fn what_is_read_from_a_disk_takes_no_more_than_the_room_either() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _entered = runtime.enter();
        let (in_memory, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let fetch = async |_: &u64| {
            most.fetch_max(in_memory.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            Ok(())
        };
        let work = |_: &u64, ()| {
            // Time for the other threads.
            thread::yield_now();
            in_memory.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        // Two of them would be more than the room.
        in_parallel_with(ReadFrom::Disk, &ALL, |_| 40 * 1024 * 1024, fetch, work).unwrap();
        assert_eq!(most.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn each_unit_is_worked_on_once_and_in_its_place() {
        for from in [ReadFrom::Disk, ReadFrom::Store] {
            let next = AtomicUsize::new(0);
            let fetch = async |unit: &u64| {
                tokio::task::yield_now().await;
                Ok(*unit + next.fetch_add(1, Ordering::Relaxed) as u64)
            };
            let mut done = run(from, fetch, |unit, fetched| Ok(fetched - unit)).unwrap();
            done.sort_unstable();
            assert_eq!(done, (0..200).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_ends_the_work_and_the_requests() {
        for from in [ReadFrom::Disk, ReadFrom::Store] {
            let requests = AtomicUsize::new(0);
            let fetch = async |_: &u64| {
                requests.fetch_add(1, Ordering::Relaxed);
                Ok(0)
            };
            run(from, fetch, |_, _| Err(failed())).unwrap_err();
            assert!(requests.load(Ordering::Relaxed) < 100, "{from:?}: {requests:?}");
            run(from, async |_| Err(failed()), |_, _| Ok(0)).unwrap_err();
        }
    }

    #[test]
    fn what_was_requested_takes_no_more_than_the_room() {
        let (waiting, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let fetch = async |_: &u64| {
            most.fetch_max(waiting.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok(0)
        };
        let work = |_: &u64, _| {
            waiting.fetch_sub(1, Ordering::SeqCst);
            Ok(0)
        };
        run(ReadFrom::Store, fetch, work).unwrap();
        // Room for four, and one that was worked on and is about to give its room back, for each thread.
        assert!(most.load(Ordering::SeqCst) <= 4, "{most:?}");
    }
}
