//! Synthetic data with a clock of their own: for a first look, for the tests and for the benches.
//!
//! Nothing in here is part of a sync. The same seed gives the same bytes and the same instants everywhere.

pub mod body;
pub mod generate;
pub mod world;

pub use self::{body::Body, world::World};
