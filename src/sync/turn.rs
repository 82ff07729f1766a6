//! Turns: exports run side by side while they wait for the server, and write one after the other.
//!
//! Whoever holds the turn streams and commits, or maintains: the memory of a sync is used once, and no two of them
//! write to the tables. Turns are given in the order in which they were asked for, so that no export waits for ever.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use super::{Activity, Error, ProgressSender, Step};

#[derive(Debug)]
pub struct Turns {
    /// Fair, as tokio's documentation promises: first come, first served.
    turn: Mutex<()>,
    /// Runs end at any time, also those that failed before their turn.
    ledger: Mutex<()>,
    last_run: AtomicU64,
}

/// The turn of one activity; given back when this is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    activity: Activity,
    _turn: MutexGuard<'a, ()>,
}

impl<'a> Turn<'a> {
    fn begin(activity: Activity, turn: MutexGuard<'a, ()>) -> Self {
        tracing::debug!(%activity, "the turn begins");
        Self { activity, _turn: turn }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        tracing::debug!(activity = %self.activity, "the turn ends");
    }
}

impl Turns {
    pub fn after_run(last_run: u64) -> Self {
        Self { turn: Mutex::default(), ledger: Mutex::default(), last_run: AtomicU64::new(last_run) }
    }

    /// A number that no other run of this process has.
    pub fn next_run(&self) -> u64 {
        self.last_run.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Waits for the turn, or for the request to stop: [`Error::Stopped`].
    pub async fn take(&self, progress: &ProgressSender, stop: &CancellationToken) -> Result<Turn<'_>, Error> {
        let activity = progress.activity().clone();
        if let Ok(turn) = self.turn.try_lock() {
            return Ok(Turn::begin(activity, turn));
        }
        progress.step(Step::WaitingForTurn);
        tracing::info!("waiting for the turn: another export, or maintenance, writes");
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(Error::Stopped),
            turn = self.turn.lock() => Ok(Turn::begin(activity, turn)),
        }
    }

    /// The ledger for one run at a time.
    pub async fn ledger(&self) -> MutexGuard<'_, ()> {
        self.ledger.lock().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::ProgressBoard;

    #[tokio::test]
    async fn the_turn_is_given_in_the_order_in_which_it_was_asked_for() {
        let turns = Turns::after_run(0);
        let (board, seen) = ProgressBoard::new();
        let stop = CancellationToken::new();
        let order = std::sync::Mutex::new(Vec::new());
        let export = |name: &'static str| {
            let progress = board.of(Activity::Sync { export: name.to_owned() });
            let (turns, stop, order) = (&turns, &stop, &order);
            async move {
                let turn = turns.take(&progress, stop).await.unwrap();
                order.lock().unwrap().push(name);
                drop(turn);
                // Asks again at once.
                let _turn = turns.take(&progress, stop).await.unwrap();
                order.lock().unwrap().push(name);
            }
        };
        let first = turns.take(&board.of(Activity::Maintenance), &stop).await.unwrap();
        let released = async {
            while seen.borrow().len() < 3 {
                tokio::task::yield_now().await;
            }
            drop(first);
        };
        tokio::join!(export("z"), export("b"), export("a"), released);
        assert_eq!(*order.lock().unwrap(), ["z", "b", "a", "z", "b", "a"]);
    }

    #[tokio::test]
    async fn a_stop_ends_the_wait_for_the_turn() {
        let turns = Turns::after_run(0);
        let (board, _) = ProgressBoard::new();
        let (progress, stop) = (board.of(Activity::Maintenance), CancellationToken::new());
        let _held = turns.take(&progress, &stop).await.unwrap();
        stop.cancel();
        assert!(matches!(turns.take(&progress, &stop).await, Err(Error::Stopped)));
    }

    #[test]
    fn no_two_runs_have_the_same_number() {
        let turns = Turns::after_run(7);
        assert_eq!([turns.next_run(), turns.next_run()], [8, 9]);
    }
}
