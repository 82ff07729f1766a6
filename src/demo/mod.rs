//! An embedded Bulk Data server with synthetic data, for the demo, the tests and the benches.
//!
//! A sync does not use this room. The server speaks real HTTP on a real port; its data are in a [`World`] with its own
//! clock, so the same seed gives the same bytes, the same instants and the same exports on every machine.

pub mod json_object;
mod folder;
pub mod generate;
pub mod named;
pub mod scenario;
pub mod server;
pub mod token;
pub mod world;

pub use axum::http::StatusCode;

pub use self::{
    folder::Keep,
    json_object::JsonObject,
    scenario::{Alteration, Fault, RateLimit, Scenario},
    server::{JobView, RecordedRequest, Server},
    token::{Auth, Registered},
    world::World,
};
