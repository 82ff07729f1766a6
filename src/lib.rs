//! fhir-sync keeps a Delta Lake copy of a FHIR server: current, provably complete, at a fixed memory.
//!
//! The map, in reading order. Arrows between these rooms go down this list only; `tests/it/architecture.rs` holds them.

// The commands.
pub mod cli;
// File, environment and flags become the typed settings of every room.
pub mod config;
// The event loop: owns every task, the wish to stop, and the sync that runs.
pub mod daemon;
// Cron becomes ticks.
pub mod schedule;
// What others may ask: health, liveness, readiness.
pub mod serve;
// Events become log lines.
pub mod telemetry;
// The story: one sync of one export.
pub mod sync;
// Bulk Data Access, the consumer's side: the only room that speaks to the FHIR server.
pub mod export;
// FHIR resources as Arrow: bytes become lines, lines become rows.
pub mod resource;
// Delta tables: the only room that names deltalake.
pub mod table;
// Flat views over the typed tables, as SQL for an engine.
pub mod views;
// The state file: how far each export has come, and the job in flight.
pub mod state;
// An embedded Bulk Data server with synthetic patients, for the demo, the tests and the benches.
pub mod demo;
// The vocabulary of FHIR. Imports nothing of ours.
pub mod fhir;
