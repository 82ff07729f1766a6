//! Samples: what the first rows of a file show of each leaf column. Do its values repeat?
//!
//! A dictionary costs a look-up for each value. Where hardly a value repeats, it is full before its row group ends, and
//! the writer gives it up; the values until then are in the file through a dictionary that made them no smaller.

use std::collections::HashSet;

use arrow::{
    array::{Array, AsArray as _, RecordBatch},
    datatypes::DataType,
};
use twox_hash::XxHash3_64;

/// How many values of a leaf are looked at, and how many of them do not count at first: each code of a list is new
/// once.
const MAX_VALUES: usize = 4096;
const UNCOUNTED_VALUES: usize = 1024;
/// With fewer values that count, nothing is known.
const MIN_COUNTED_VALUES: usize = 256;
/// Values repeat if at most one of this many is new.
const VALUES_PER_NEW_VALUE: usize = 20;

/// Of one leaf column.
#[derive(Default)]
pub struct Sample {
    seen: HashSet<u64>,
    values: usize,
    counted: usize,
    new: usize,
}

impl Sample {
    /// Also where too few values were seen to know.
    pub fn repeats(&self) -> bool {
        self.counted < MIN_COUNTED_VALUES || self.new * VALUES_PER_NEW_VALUE <= self.counted
    }

    fn is_full(&self) -> bool {
        self.values >= MAX_VALUES
    }

    fn add(&mut self, value: &[u8]) {
        let is_new = self.seen.insert(XxHash3_64::oneshot(value));
        self.values += 1;
        if self.values > UNCOUNTED_VALUES {
            self.counted += 1;
            self.new += usize::from(is_new);
        }
    }

    fn add_array(&mut self, array: &dyn Array) {
        let is_value = |at: &usize| array.is_valid(*at);
        let values = (0..array.len()).filter(is_value).take(MAX_VALUES.saturating_sub(self.values));
        match array.data_type() {
            DataType::Utf8 => {
                let texts = array.as_string::<i32>();
                values.for_each(|at| self.add(texts.value(at).as_bytes()));
            }
            fixed => {
                // Only whole numbers and instants get a dictionary, and each has a width.
                let Some(width) = fixed.primitive_width() else { return };
                let data = array.to_data();
                let Some(buffer) = data.buffers().first() else { return };
                let begin = data.offset() * width;
                values.for_each(|at| self.add(&buffer[begin + at * width..][..width]));
            }
        }
    }
}

/// Of each of the leaf columns, in the order of the file.
pub fn samples(rows: &[RecordBatch], leaves: usize) -> Vec<Sample> {
    let mut samples: Vec<_> = std::iter::repeat_with(Sample::default).take(leaves).collect();
    for rows in rows {
        let mut next = samples.iter_mut();
        for column in rows.columns() {
            sample(column, &mut next);
        }
    }
    samples
}

fn sample<'a>(array: &dyn Array, leaves: &mut impl Iterator<Item = &'a mut Sample>) {
    match array.data_type() {
        DataType::Struct(_) => array.as_struct().columns().iter().for_each(|column| sample(column, leaves)),
        DataType::List(_) => sample(array.as_list::<i32>().values(), leaves),
        DataType::Map(..) => sample(array.as_map().entries(), leaves),
        _ => {
            if let Some(leaf) = leaves.next().filter(|leaf| !leaf.is_full()) {
                leaf.add_array(array);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use super::*;

    fn repeats(column: ArrayRef) -> bool {
        samples(&[RecordBatch::try_from_iter([("column", column)]).unwrap()], 1)[0].repeats()
    }

    #[test]
    fn values_repeat_unless_more_than_one_in_twenty_is_new() {
        let numbers = |of: fn(i64) -> i64| Arc::new((0..4000).map(of).collect::<Int64Array>());
        assert!(!repeats(numbers(|at| at)));
        assert!(!repeats(numbers(|at| at / 10)));
        assert!(repeats(numbers(|at| at / 30)));
        assert!(repeats(numbers(|at| at % 900)), "each of many codes is new once");
        let texts =
            |of: fn(i64) -> i64| Arc::new((0..4000).map(|at| Some(of(at).to_string())).collect::<StringArray>());
        assert!(!repeats(texts(|at| at)));
        assert!(repeats(texts(|at| at % 2)));
    }

    #[test]
    fn a_few_values_say_nothing() {
        assert!(repeats(Arc::new((0..1200).collect::<Int64Array>())));
        assert!(repeats(Arc::new(Int64Array::new_null(4000))));
    }
}
