//! A Bulk Data server in this process, with synthetic data: for a first look, for the tests and for the benches.
//!
//! Nothing in here is part of a sync. The server speaks real HTTP on a real port; its data live in a [`World`] with a
//! clock of its own, so the same seed gives the same bytes, the same instants and the same exports everywhere.

pub mod json_object;
mod folder;
pub mod generate;
pub mod scenario;
pub mod server;
pub mod token;
pub mod world;

pub use axum::http::StatusCode;

pub use self::{
    json_object::Body,
    scenario::{Fault, Scenario},
    server::{JobView, Seen, Server},
    token::Auth,
    world::World,
};
