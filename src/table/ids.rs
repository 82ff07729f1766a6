//! Sets of ids: each id while they are few, otherwise only the smallest and the largest.
//!
//! Ids are ordered by their bytes, as statistics of Parquet files are. How many are kept one by one is bounded by
//! bytes.

use std::{
    collections::BTreeSet,
    ops::{Bound, RangeInclusive},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    /// All of them.
    Exact {
        ids: BTreeSet<Box<str>>,
        /// What they take in memory, the nodes of the set included.
        bytes: usize,
        max_bytes: usize,
    },
    /// The smallest and the largest.
    Range(RangeInclusive<Box<str>>),
}

/// The smallest and the largest id of a file or a row group, as far as they are known.
#[derive(Clone, Copy, Debug)]
pub struct IdBounds<'a> {
    pub min: Option<&'a str>,
    pub max: Option<&'a str>,
}

/// Some 12,000 UUIDs. A change set of more ids has one for almost every row group.
const MAX_EXACT_BYTES: usize = 1024 * 1024;
/// What an id takes besides its text: a pointer and a length in a node that may be half empty, and what the allocator
/// adds.
const NODE_BYTES_PER_ID: usize = 48;

impl Default for Ids {
    fn default() -> Self {
        Self::within(MAX_EXACT_BYTES)
    }
}

impl Ids {
    /// No ids yet. Beyond `bytes`, or a mebibyte, only their range is kept.
    pub fn within(bytes: usize) -> Self {
        Self::Exact { ids: BTreeSet::new(), bytes: 0, max_bytes: bytes.min(MAX_EXACT_BYTES) }
    }

    pub fn extend<'ids>(&mut self, more: impl Iterator<Item = &'ids str>) {
        for id in more {
            match self {
                Self::Range(range) if id < &**range.start() => *range = id.into()..=range.end().clone(),
                Self::Range(range) if id > &**range.end() => *range = range.start().clone()..=id.into(),
                Self::Range(_) => {}
                Self::Exact { ids, bytes, max_bytes } => {
                    if !ids.contains(id) {
                        ids.insert(id.into());
                        *bytes += NODE_BYTES_PER_ID + id.len();
                    }
                    if bytes > max_bytes
                        && let (Some(first), Some(last)) = (ids.first(), ids.last())
                    {
                        *self = Self::Range(first.clone()..=last.clone());
                    }
                }
            }
        }
    }

    /// May one of them be within the bounds?
    pub fn may_overlap(&self, bounds: IdBounds<'_>) -> bool {
        match self {
            Self::Exact { .. } => self.within_bounds(bounds).is_some_and(|mut ids| ids.next().is_some()),
            Self::Range(ids) => {
                bounds.min.is_none_or(|min| min <= &**ids.end()) && bounds.max.is_none_or(|max| &**ids.start() <= max)
            }
        }
    }

    /// Those within the bounds; `None` where only the range of all ids is known.
    pub fn within_bounds<'a>(&'a self, bounds: IdBounds<'a>) -> Option<impl Iterator<Item = &'a str>> {
        match self {
            Self::Exact { ids, .. } => {
                let min = bounds.min.map_or(Bound::Unbounded, Bound::Included);
                // Not a range with both bounds: that panics where a file states a minimum above its maximum.
                let from = ids.range::<str, _>((min, Bound::Unbounded)).map(|id| &**id);
                Some(from.take_while(move |id| bounds.max.is_none_or(|max| *id <= max)))
            }
            Self::Range(_) => None,
        }
    }

    /// A quick test that rejects most other ids; `None` where only the range of all ids is known.
    pub fn prefilter(&self) -> Option<IdPrefilter> {
        let Self::Exact { ids, .. } = self else { return None };
        let bits = (ids.len() * 16).next_power_of_two().max(64);
        let mut prefilter = IdPrefilter { words: vec![0; bits / 64], shift: u64::BITS - bits.trailing_zeros() };
        for id in ids {
            let (word, bit) = prefilter.word_and_bit(id);
            prefilter.words[word] |= bit;
        }
        Some(prefilter)
    }
}

/// A Bloom filter with one hash function, and sixteen bits for each id of the set.
///
/// The [`IdHash`](super::entry::IdHash) of an id costs more than reading the id, and nearly all ids of a table are not
/// in a small change set. Who chooses ids that all pass this filter gains nothing but the time of that hash.
pub struct IdPrefilter {
    words: Vec<u64>,
    shift: u32,
}

impl IdPrefilter {
    /// False means certainly not in the set.
    pub fn may_contain(&self, id: &str) -> bool {
        let (word, bit) = self.word_and_bit(id);
        self.words[word] & bit != 0
    }

    fn word_and_bit(&self, id: &str) -> (usize, u64) {
        let bytes = id.as_bytes();
        let ends = match (bytes.first_chunk(), bytes.last_chunk()) {
            (Some(first), Some(last)) => u64::from_le_bytes(*first).rotate_left(29) ^ u64::from_le_bytes(*last),
            _ => bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
        };
        // Fibonacci hashing: the highest bits of the product depend on all bits of `ends`.
        let index = ends.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift;
        (usize::try_from(index / 64).unwrap_or_default(), 1 << (index % 64))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANYWHERE: IdBounds<'_> = IdBounds { min: None, max: None };

    fn range(first: &str, last: &str) -> Ids {
        Ids::Range(first.into()..=last.into())
    }

    #[test]
    fn ids_are_kept_one_by_one_up_to_a_mebibyte() {
        let mut ids = Ids::default();
        let all: Vec<_> = (0..30_000).map(|number| format!("{number:036}")).collect();
        ids.extend(all[..12_000].iter().chain(&all[..12_000]).map(String::as_str));
        assert_eq!(ids.within_bounds(ANYWHERE).unwrap().count(), 12_000);
        ids.extend(all[12_000..].iter().map(String::as_str));
        assert_eq!(ids, range(&all[0], &all[29_999]));
        ids.extend(["a", "-"].into_iter());
        assert_eq!(ids, range("-", "a"));
    }

    #[test]
    fn an_empty_set_overlaps_no_bounds() {
        assert!(!Ids::default().may_overlap(ANYWHERE));
    }

    #[test]
    fn the_prefilter_rejects_most_other_ids() {
        for width in [1, 7, 8, 36] {
            let all: Vec<_> =
                (0..40_000u64).map(|number| format!("{:0width$x}", number.wrapping_mul(0x9e37))).collect();
            let mut ids = Ids::default();
            ids.extend(all[..1_000].iter().map(String::as_str));
            let prefilter = ids.prefilter().unwrap();
            assert!(all[..1_000].iter().all(|id| prefilter.may_contain(id)));
            let taken = all[1_000..].iter().filter(|id| prefilter.may_contain(id)).count();
            assert!(taken < 39_000 / 8, "{taken} of ids of {width}");
        }
        assert!(range("a", "b").prefilter().is_none());
    }

    proptest! {
        #[test]
        fn the_prefilter_never_rejects_a_member(ids in proptest::collection::btree_set("[ -~]{0,40}", 0..40)) {
            let mut exact = Ids::default();
            exact.extend(ids.iter().map(String::as_str));
            let prefilter = exact.prefilter().unwrap();
            prop_assert!(ids.iter().all(|id| prefilter.may_contain(id)));
        }

        #[test]
        fn no_id_within_the_bounds_is_left_out(
            ids in proptest::collection::btree_set("[a-c]{0,3}", 1..6),
            min in proptest::option::of("[a-c]{0,3}"),
            max in proptest::option::of("[a-c]{0,3}"),
        ) {
            let bounds = IdBounds { min: min.as_deref(), max: max.as_deref() };
            let mut exact = Ids::default();
            exact.extend(ids.iter().map(String::as_str));
            let expected: Vec<_> = ids.iter().map(String::as_str).filter(|id| bounds.min.is_none_or(|min| min <= *id) && bounds.max.is_none_or(|max| *id <= max)).collect();
            prop_assert_eq!(exact.within_bounds(bounds).unwrap().collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(exact.may_overlap(bounds), !expected.is_empty());
            let range = range(ids.first().unwrap(), ids.last().unwrap());
            prop_assert!(range.within_bounds(bounds).is_none());
            prop_assert!(expected.is_empty() || range.may_overlap(bounds));
        }
    }
}
