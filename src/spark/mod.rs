//! Spark as the engine: the tables of resources are written by a Spark server, over Spark Connect.
//!
//! What always holds: Spark only reads and writes; what happens to each row is decided by the room `table`, from what
//! Spark has read. The rows of a type become visible in one MERGE, whose commit carries the watermark. A MERGE whose
//! answer is lost is looked for in the history of the table before anything is repeated. Texts of errors never show
//! what a row contains.

mod config;
#[cfg(feature = "spark")]
mod connect;
#[cfg(feature = "spark")]
mod declaration;
#[cfg(feature = "spark")]
mod engine;
#[cfg(feature = "spark")]
mod error;
#[cfg(feature = "spark")]
mod history;
#[cfg(feature = "spark")]
mod messages;
#[cfg(feature = "spark")]
mod names;
#[cfg(feature = "spark")]
mod results;
#[cfg(feature = "spark")]
mod sql;
#[cfg(feature = "spark")]
mod upsert;

pub use self::config::{Address, Config, Tables};
#[cfg(feature = "spark")]
pub use self::{
    engine::{Spark, SparkTable},
    error::Error,
};

/// Was the program built with the client?
pub const IS_BUILT_IN: bool = cfg!(feature = "spark");

#[cfg(feature = "spark")]
#[cfg(test)]
pub(crate) mod tests;
