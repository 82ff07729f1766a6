//! What holds of the whole program: real HTTP, real tables, and where it matters the real binary.
//!
//! A test's name is the sentence that it proves.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

/// A small server, a sync against it, and a reader of the tables that is not their writer. Proves nothing itself.
mod harness;
/// The reader of the tables: shared with the tests of the room `table`.
#[path = "../../src/table/tests/read_back.rs"]
#[expect(dead_code, reason = "the room `table` reads the change data feed, these tests do not")]
mod read_back;

/// The rules of the house that the compiler does not hold: who may name whom.
mod architecture;
/// Access tokens: who gets one, who does not, and that nobody sees it.
mod auth;
/// The numbers in comments and docs, and the line of `docs/rules.md` that each leads to.
mod citations;
/// What the tables hold after exports in any order, repeated, late, with deletions.
mod convergence;
/// Which columns the tables get, and what they hold.
mod columns;
/// The daemon: schedule and health.
mod daemon;
/// Lines and files that are not as they should be.
mod lines;
/// Maintenance by hand and by the daemon, and never beside a sync.
mod maintain;
/// What the operator reads when something is in the way, and that it goes on when that is gone.
mod messages;
/// A process that was killed, a job that was lost, two processes at once.
mod resume;
/// The state file: lost, broken, old.
mod state;
/// SIGTERM at every point.
mod stop;
/// How far a table is, and what is asked for next.
mod watermark;
