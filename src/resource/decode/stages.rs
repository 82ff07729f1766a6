//! The stages of decoding, for measurements: each of them includes those before it.

use arrow::error::ArrowError;

use super::{Decoder, parts, rows::Rows};
use crate::resource::Line;

/// How far a line is taken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stage {
    /// The values of lines with a plan, and their content hash.
    Values,
    /// These values in builders.
    Builders,
}

impl Decoder {
    /// Takes lines as far as `until`, and drops what that gives. Lines that cannot be rows are passed over.
    pub fn until(&self, until: Stage, lines: &[Line]) -> Result<(), ArrowError> {
        let lines_bytes = lines.iter().map(|line| line.bytes.len()).sum();
        let mut rows = Rows::new(self, lines.len(), lines_bytes);
        let mut known = self.plans.take();
        for (_, part) in parts(lines) {
            let sorted = std::hint::black_box(self.plans.sort(&mut known, &self.shape, part));
            for block in sorted.blocks().filter(|_| until == Stage::Builders) {
                if let Some(plan) = known.plan(block) {
                    std::hint::black_box(self.planned(block, &sorted.values, plan, &mut rows)?.count());
                }
            }
        }
        self.plans.give_back(known);
        std::hint::black_box(rows);
        Ok(())
    }
}
