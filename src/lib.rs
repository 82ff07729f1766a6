//! fhir-sync keeps a Delta Lake copy of a FHIR server. The map, in reading order.

pub mod demo;
pub mod fhir;
