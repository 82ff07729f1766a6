//! FHIR resources as Arrow: bytes become lines, lines become rows.
//!
//! This room knows lines and columns; it knows no tables and no servers. A line that cannot become a row is given back
//! with the reason, never skipped.

mod content_hash;
mod decode;
pub mod definitions;
mod deletions;
mod element;
mod json;
mod lines;
mod grouping;
mod schema;
mod shape;
mod value;

pub use decode::{BadLine, Decoded, Decoder, Reason};
pub use deletions::deletions;
pub use element::{Derived, Layout, Options};
pub use grouping::LineGrouping;
pub use lines::{Line, LineTooLong, Lines};
pub use shape::Shape;
