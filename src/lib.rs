//! fhir-sync keeps a Delta Lake copy of a FHIR server: current, complete up to a known time, in bounded memory.
//!
//! The rooms, in reading order. Each names only rooms further down this list; `tests/it/architecture.rs` holds that.

// The commands.
pub mod cli;
// The event loop: owns every task, the stop signal, and the sync that runs.
pub mod daemon;
// File, environment and flags become the typed settings of every room.
pub mod config;
// Commands that are given by hand while the daemon runs: the socket between them, and their work.
pub mod control;
// A heartbeat, and a webhook for people: what is sent when a run begins and ends.
pub mod notify;
// Cron becomes ticks.
pub mod schedule;
// The listener: health, liveness, readiness, the status page, metrics and public keys.
pub mod serve;
// The story: one sync of one export.
pub mod sync;
// The client of FHIR Bulk Data Access: the only room that speaks to the FHIR server.
pub mod export;
// FHIR resources as Arrow: bytes become lines, lines become rows.
pub mod resource;
// Spark as the engine: a Spark server writes the tables of resources.
pub mod spark;
// Delta tables: the only room that names deltalake.
pub mod table;
// Flat views over the typed tables, as SQL for an engine.
pub mod views;
// The state file: the watermarks of each export, and the job in flight.
pub mod state;
// Who may write to what several processes reach.
pub mod lease;
// Object stores: a place in one, the client that reaches it, and small documents.
pub mod store;
// An embedded Bulk Data server with synthetic patients, for the demo, the tests and the benches.
pub mod demo;
// Where a secret is kept, and its current text. It names no other room.
pub mod secret;
// Events become log lines, figures become metrics. Any room above may record.
pub mod telemetry;
// The vocabulary of FHIR.
pub mod fhir;
// Which known word was meant. It names no other room.
pub mod spelling;
