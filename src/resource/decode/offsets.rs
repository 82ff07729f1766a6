//! Offsets: where each list of a column ends.

use arrow::buffer::{OffsetBuffer, ScalarBuffer};

/// The first is 0, and none is less than the one before.
pub struct Offsets {
    ends: Vec<i32>,
}

impl Default for Offsets {
    fn default() -> Self {
        Self { ends: vec![0] }
    }
}

impl Offsets {
    pub fn len(&self) -> usize {
        self.ends.len() - 1
    }

    /// Ends a list before the item with this number. A batch has fewer items than bytes, which are fewer than 2^31.
    pub fn end(&mut self, item: usize) {
        let last = self.ends.last().copied().unwrap_or_default();
        self.ends.push(i32::try_from(item).unwrap_or(i32::MAX).max(last));
    }

    /// Ends this many empty lists.
    pub fn end_empty(&mut self, count: usize) {
        let last = self.ends.last().copied().unwrap_or_default();
        self.ends.resize(self.ends.len() + count, last);
    }

    pub fn finish(self) -> OffsetBuffer<i32> {
        OffsetBuffer::new(ScalarBuffer::from(self.ends))
    }
}
