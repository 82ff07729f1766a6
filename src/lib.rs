//! fhir-sync keeps a Delta Lake copy of a FHIR server. The map, in reading order.

pub mod export;
pub mod fhir;
pub mod sync;
pub mod resource;
pub mod state;
pub mod table;
