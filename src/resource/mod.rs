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
mod over_lines;
mod schema;
mod shape;
mod stated_type;
mod subsetted;
mod value;

pub use decode::{BadLine, Decoded, Decoder, MappingPool, Reason, Stage};
pub use deletions::{DeletedEntry, deleted_entries};
pub use element::{Derived, Layout, Options};
use grouping::LineGrouping;
pub use lines::{Line, LineTooLong, Lines};
pub use over_lines::OverLines;
pub use shape::Shape;
pub use stated_type::stated_type;
pub use subsetted::tag_subsetted;
