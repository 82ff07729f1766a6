//! The batches of one file that are being taken: lines that arrived together, each batch on a thread of its own.
//!
//! All files share the slots for batches, so memory and threads are bounded however many files arrive. A file waits for
//! a slot before it hands over its next batch; meanwhile it receives no more than its channel holds.

use std::{sync::Arc, thread};

use tokio::{
    sync::Semaphore,
    task::{JoinError, JoinSet},
};
use tracing::Span;

use crate::sync::Error;

/// More batches at the same time would be so small that decoding them costs a tenth more.
const MAX_BATCHES: usize = 16;
/// Lines are decoded when about this many bytes of them have arrived. A batch has a cost for each of a thousand
/// columns, whatever it holds: with 1 MiB, decoding and writing took a tenth longer; 8 MiB saved nothing more
/// (docs/performance.md).
pub const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;
const MIN_BATCH_BYTES: usize = 256 * 1024;
/// A batch takes this many times the memory of its lines while they become rows.
const ROWS_FOR_LINES: usize = 8;

/// The slots for the batches of all files: one for each core, and one that is ready when a core is free.
pub struct BatchSlots {
    batches: Arc<Semaphore>,
    /// How many bytes of lines make a batch.
    pub batch_bytes: usize,
}

impl BatchSlots {
    /// `memory_bytes` are for all batches, with the rows that they become.
    pub fn new(memory_bytes: usize) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self::of((cores + 1).min(MAX_BATCHES), memory_bytes)
    }

    fn of(batches: usize, memory_bytes: usize) -> Self {
        let batch_bytes = (memory_bytes / batches / ROWS_FOR_LINES).clamp(MIN_BATCH_BYTES, MAX_BATCH_BYTES);
        Self { batches: Arc::new(Semaphore::new(batches)), batch_bytes }
    }
}

pub struct Batches {
    slots: Arc<Semaphore>,
    running: JoinSet<Result<(), Error>>,
}

impl Batches {
    pub fn new(slots: &BatchSlots) -> Self {
        Self { slots: Arc::clone(&slots.batches), running: JoinSet::new() }
    }

    /// Begins to take a batch when a slot is free, and returns before it is taken. `take` may block.
    ///
    /// # Errors
    /// That of an earlier batch; this one is not taken then.
    pub async fn begin(&mut self, take: impl FnOnce() -> Result<(), Error> + Send + 'static) -> Result<(), Error> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| Error::Stopped)?;
        while let Some(ended) = self.running.try_join_next() {
            taken(ended)?;
        }
        let span = Span::current();
        self.running.spawn_blocking(move || {
            let taken = span.in_scope(take);
            drop(slot);
            taken
        });
        Ok(())
    }

    /// Waits until all batches are taken.
    ///
    /// # Errors
    /// That of the first batch that failed; the others have ended as well.
    pub async fn end(&mut self) -> Result<(), Error> {
        let mut all = Ok(());
        while let Some(ended) = self.running.join_next().await {
            all = all.and(taken(ended));
        }
        all
    }
}

fn taken(ended: Result<Result<(), Error>, JoinError>) -> Result<(), Error> {
    match ended.map_err(JoinError::try_into_panic) {
        Ok(taken) => taken,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime shuts down.
        Err(Err(_)) => Err(Error::Stopped),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn batches_of_one_file_are_taken_side_by_side() {
        let mut batches = Batches::new(&BatchSlots::of(3, 0));
        // Each waits for the two others.
        let barrier = Arc::new(Barrier::new(3));
        for _ in 0..3 {
            let barrier = Arc::clone(&barrier);
            batches
                .begin(move || {
                    barrier.wait();
                    Ok(())
                })
                .await
                .unwrap();
        }
        batches.end().await.unwrap();
    }

    #[tokio::test]
    async fn the_batches_of_all_files_share_the_slots() {
        let slots = BatchSlots::of(2, 0);
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let file = async || {
            let mut batches = Batches::new(&slots);
            for _ in 0..20 {
                let (running, most) = (Arc::clone(&running), Arc::clone(&most));
                let take = move || {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    std::thread::yield_now();
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                };
                batches.begin(take).await.unwrap();
            }
            batches.end().await.unwrap();
        };
        tokio::join!(file(), file(), file());
        assert!(most.load(Ordering::SeqCst) <= 2, "{most:?}");
    }

    #[test]
    fn with_many_cores_batches_are_smaller() {
        let memory_bytes = 96 << 20;
        let bytes = [3, 6, 16].map(|batches| BatchSlots::of(batches, memory_bytes).batch_bytes);
        assert_eq!(bytes, [4 << 20, 2 << 20, 768 << 10]);
    }

    #[tokio::test]
    async fn a_batch_that_fails_ends_the_file_when_all_others_have_ended() {
        let mut batches = Batches::new(&BatchSlots::of(2, 0));
        let ended = Arc::new(AtomicUsize::new(0));
        let take = |result: Result<(), Error>| {
            let ended = Arc::clone(&ended);
            move || {
                ended.fetch_add(1, Ordering::SeqCst);
                result
            }
        };
        batches.begin(take(Err(Error::Stopped))).await.unwrap();
        let mut begun = 1;
        while batches.begin(take(Ok(()))).await.is_ok() {
            begun += 1;
        }
        batches.end().await.unwrap();
        assert_eq!(ended.load(Ordering::SeqCst), begun);
    }

    /// A file that ended sooner would be committed without the rows of its last batches.
    #[tokio::test]
    async fn a_file_does_not_end_before_its_last_batch_is_taken() {
        let mut batches = Batches::new(&BatchSlots::of(2, 0));
        let (ended, is_released) = (Arc::new(AtomicUsize::new(0)), AtomicBool::new(false));
        let (release, released) = std::sync::mpsc::channel();
        let first = Arc::clone(&ended);
        let take_first = move || {
            first.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        batches.begin(take_first).await.unwrap();
        let take_last = move || released.recv().map_err(|_| Error::Stopped);
        batches.begin(take_last).await.unwrap();
        let end = async {
            batches.end().await.unwrap();
            assert!(is_released.load(Ordering::SeqCst), "the last batch was not waited for");
        };
        let later = async {
            while ended.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
            is_released.store(true, Ordering::SeqCst);
            release.send(()).unwrap();
        };
        tokio::join!(end, later);
    }
}
