//! Tests of the whole program: real HTTP, real tables and, where it matters, the real binary.
//!
//! The name of a test is the sentence that it proves.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on has failed")]

/// The setup that the tests share: a small server, a sync against it, and a reader of the tables.
mod harness;
/// The Delta kernel as a reader of the tables; shared with the tests of the room `table`.
#[path = "../../src/table/tests/read_back.rs"]
#[expect(dead_code, reason = "the room `table` reads the change data feed, these tests do not")]
mod read_back;

/// The structure that the compiler does not check: which room may import which.
mod architecture;
/// Commands by hand beside a running daemon, and where it has ended.
mod control;
/// A type of which a full load brings nothing: empty, denied, missing or unconfirmed.
mod absence;
/// What a watermark stands for: another server, level or group is asked in full.
mod asked;
/// Access tokens: which origins receive one, and that neither token nor key is printed.
mod auth;
/// Jobs and watermarks by hand: `job` and `state`.
mod by_hand;
/// The numbers in comments and docs, and the line of `docs/rules.md` that each leads to.
mod citations;
/// The page on conformance: each rule and quirk with the tests that show it, or the reason why none does.
mod conformance;
/// The content of the tables after exports in any order: repeated, late, with deletions.
mod convergence;
/// `check --online`: what a sync needs is tried, and each line has its way out.
mod check_online;
/// The columns of the tables.
mod columns;
/// The daemon: schedule and health.
mod daemon;
/// Gaps: what a full load may lack, and the rows that it keeps for that reason.
mod gaps;
/// Health: how old the data are, what is a warning, and that a restart does not forget it.
mod health;
/// Instalments: what a killed process, a stop or an outage in the middle of a load leaves behind.
mod instalments;
/// The ledger, and the commands that look at it.
mod ledger;
/// One writer: two processes with different state files on one root.
mod lease;
/// Deletions: which are applied, which hold a watermark, and what their time is.
mod deletions;
/// Links to files that expire.
mod links;
/// A server with a random life, and what holds whatever happens.
mod histories;
/// Invalid lines and damaged files.
mod lines;
/// Several processes that share the exports of one configuration.
mod machines;
/// Maintenance by the command and by the daemon, never while a sync writes.
mod maintain;
/// Groups: who joins gets the history, and what becomes of the rows of those who leave.
mod members;
/// Messages to the operator when something is wrong, and that the next sync completes once it is fixed.
mod messages;
/// The metrics: every series from the start, counters that agree with the runs, and what names them.
mod metrics;
/// Tables that are not as our last commit left them: restored, gone, not mounted.
mod mirror;
/// The network: what a run may take.
mod network;
/// Notifications: heartbeat and webhook, and receivers that fail.
mod notify;
/// A type, a request or a table that fails, and the others that go on.
mod one_by_one;
/// Lines that are something else than a resource of their file's type.
mod other_lines;
/// The pages for people: where their links lead.
mod pages;
/// Partial manifests: files that are read while the server still works on the export.
mod partial;
/// The parameters of an export, from the settings to the tables.
mod parameters;
/// Lines that are not resources, how they are kept, and the commands for them.
mod quarantine;
/// Servers that limit the rate of requests.
mod polite;
/// The page on reliability: the tests and scenarios that it names.
mod reliability;
/// What the server reports as missing.
mod reported;
/// Killed processes, lost jobs, and two processes at once.
mod resume;
/// The named scenarios of the demo server, each from its beginning to tables that are equal to the server.
mod scenarios;
/// Secrets of every place, and new keys: they are used, and printed nowhere.
mod secrets;
/// A lost, broken or old state file.
mod state;
/// SIGHUP reloads, SIGUSR1 syncs, and a sync that hangs is noticed.
mod signals;
/// The page for people: what it shows, and what a browser may load for it.
mod status_page;
/// SIGTERM at every step of a sync.
mod stop;
/// What people see: helps, tables, progress, and the configuration that is in force.
mod terminal;
/// Mistakes and their messages, one case each: what, where, the way out and the exit code.
mod ways_out;
/// Tables and state file of the version before.
mod version_before;
/// The watermarks, and the `_since` of the next export.
mod watermark;
/// A week in minutes: hundreds of runs, and what must not grow.
mod week;
