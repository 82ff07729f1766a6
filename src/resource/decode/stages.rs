//! The stages of decoding, for measurements: each of them includes those before it.

use arrow::error::ArrowError;

use super::{Decoder, rows::Rows, slices};
use crate::resource::Line;

/// How far a line is taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// The values of lines with a mapping, and their content hash.
    Values,
    /// These values in builders.
    Builders,
}

impl Decoder {
    /// Takes lines as far as `until`, and drops what that gives. Lines that cannot be rows are passed over.
    pub fn until(&self, until: Stage, lines: &[Line]) -> Result<(), ArrowError> {
        let lines_bytes = lines.iter().map(|line| line.bytes.len()).sum();
        let mut rows = Rows::new(self, lines.len(), lines_bytes);
        let mut learned = self.mappings.take();
        for (_, slice) in slices(lines) {
            let sorted = std::hint::black_box(self.mappings.sort(&mut learned, &self.shape, slice));
            for lines in sorted.by_mapping().filter(|_| until == Stage::Builders) {
                if let Some(mapping) = learned.mapping(lines) {
                    std::hint::black_box(self.append_mapped(lines, &sorted.values, mapping, &mut rows)?.count());
                }
            }
        }
        self.mappings.give_back(learned);
        std::hint::black_box(rows);
        Ok(())
    }
}
