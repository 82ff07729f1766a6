//! Unreliable histories: a server with a random life, and what must hold whatever happens.
//!
//! After each sync, a type that the report calls complete and does not name equals the server as it was at the kick-off.
//! When the server behaves at last, two syncs later every table equals the server; where only a full refresh can see a
//! difference ([`Doubt`]), the full refresh after them does it.

mod life;
mod server;

use std::{
    env,
    fmt::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use fhir_sync::sync::{Mode, Outcome};
use tokio::runtime::Runtime;

use self::{
    life::{Event, TYPES, life},
    server::{History, said},
};

/// The syncs of a life, before the server behaves.
const SYNCS: usize = 6;
/// The lives of a run of all tests; `just histories` tries many.
const FEW: u64 = 6;
const AT_ONCE: u8 = 2;

fn setting(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn whatever_a_server_lives_through_what_is_missing_is_named_and_in_the_end_nothing_is() {
    let first = setting("HISTORIES_SEED", 1);
    let (end, next) = (first + setting("HISTORIES_COUNT", FEW), AtomicU64::new(first));
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(seed) = Some(next.fetch_add(1, Relaxed)).filter(|seed| *seed < end) {
                    if let Err(reason) = lived(life(seed, SYNCS)) {
                        let (shorter, reason) = shrunk(life(seed, SYNCS), reason);
                        let again = format!("HISTORIES_SEED={seed} HISTORIES_COUNT=1 just histories");
                        eprintln!("\n{again}\n{reason}\n{}", told(&shorter));
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "seeds {failed:?}");
}

/// Lives a life to its end, on threads of its own: a panic is a reason, too.
fn lived(life: Vec<Event>) -> Result<(), String> {
    let alone = thread::spawn(|| Runtime::new().unwrap().block_on(live(life)));
    alone.join().unwrap_or_else(|_| Err("it panicked".to_owned()))
}

async fn live(life: Vec<Event>) -> Result<(), String> {
    let mut history = History::begin().await;
    for event in life {
        history.happens(&event).await.map_err(|reason| format!("at {event:?}: {reason}"))?;
    }
    ends_well(&mut history).await
}

/// The server behaves: two syncs, and then a full refresh.
async fn ends_well(history: &mut History) -> Result<(), String> {
    history.behave();
    let mut reports = String::new();
    for _ in 0..2 {
        let report = history.sync(Mode::Incremental).await.map_err(|reason| format!("at the end: {reason}"))?;
        _ = writeln!(reports, "{}", said(&report));
    }
    for of in TYPES.into_iter().filter(|of| history.doubts(*of).is_none()) {
        let difference = history.difference_to_now(of).await;
        difference.map_or(Ok(()), |difference| Err(format!("after two syncs: {difference}\n{reports}")))?;
    }
    let report = history.sync(Mode::FullRefresh).await.map_err(|reason| format!("at the end: {reason}"))?;
    for of in TYPES {
        let difference = history.difference_to_now(of).await;
        difference
            .map_or(Ok(()), |difference| Err(format!("after a full refresh: {difference}\n{}", said(&report))))?;
    }
    if report.outcome == Outcome::Complete {
        Ok(())
    } else {
        Err(format!("not complete at the end: {}", said(&report)))
    }
}

/// Leaves out what is not needed for a failure, for as long as it is wanted.
fn shrunk(mut life: Vec<Event>, mut reason: String) -> (Vec<Event>, String) {
    let begun = Instant::now();
    let limit = setting("HISTORIES_SHRINK_SECONDS", 0);
    let mut index = life.len();
    while index > 0 && begun.elapsed().as_secs() < limit {
        index -= 1;
        let mut shorter = life.clone();
        shorter.remove(index);
        if let Err(because) = lived(shorter.clone()) {
            (life, reason) = (shorter, because);
        }
    }
    (life, reason)
}

fn told(life: &[Event]) -> String {
    life.iter().fold(String::new(), |mut text, event| {
        _ = writeln!(text, "  {event:?}");
        text
    })
}
