//! The ids of a change set: all of them while they are few, else only where they lie.
//!
//! In the order of their bytes, as statistics have it. What is few is bounded by bytes.

use std::{
    collections::BTreeSet,
    ops::{Bound, RangeInclusive},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ids {
    Few {
        ids: BTreeSet<Box<str>>,
        /// What they take, with their places in the set.
        bytes: usize,
        most_bytes: usize,
    },
    Many(RangeInclusive<Box<str>>),
}

/// From which to which ids lie, both included, as far as that is known.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    pub first: Option<&'a str>,
    pub last: Option<&'a str>,
}

/// Some 12,000 UUIDs. Beyond that a change set has something for almost every row group.
const FEW_BYTES: usize = 1024 * 1024;
/// What an id takes besides its text: a pointer and a length in a node that may be half empty, and the allocator's part.
const PLACE_BYTES: usize = 48;

impl Default for Ids {
    fn default() -> Self {
        Self::within(FEW_BYTES)
    }
}

impl Ids {
    /// None yet. No more than `bytes` of them are few.
    pub fn within(bytes: usize) -> Self {
        Self::Few { ids: BTreeSet::new(), bytes: 0, most_bytes: bytes.min(FEW_BYTES) }
    }

    pub fn extend<'ids>(&mut self, more: impl Iterator<Item = &'ids str>) {
        for id in more {
            match self {
                Self::Many(bounds) if id < &**bounds.start() => *bounds = id.into()..=bounds.end().clone(),
                Self::Many(bounds) if id > &**bounds.end() => *bounds = bounds.start().clone()..=id.into(),
                Self::Many(_) => {}
                Self::Few { ids, bytes, most_bytes } => {
                    if !ids.contains(id) {
                        ids.insert(id.into());
                        *bytes += PLACE_BYTES + id.len();
                    }
                    if bytes > most_bytes
                        && let (Some(first), Some(last)) = (ids.first(), ids.last())
                    {
                        *self = Self::Many(first.clone()..=last.clone());
                    }
                }
            }
        }
    }

    /// May one of them lie between the bounds?
    pub fn may_lie_between(&self, bounds: Bounds<'_>) -> bool {
        match self {
            Self::Few { .. } => self.between(bounds).is_some_and(|mut ids| ids.next().is_some()),
            Self::Many(ids) => {
                bounds.first.is_none_or(|first| first <= &**ids.end())
                    && bounds.last.is_none_or(|last| &**ids.start() <= last)
            }
        }
    }

    /// Those that lie between the bounds; `None` where they are too many to be known.
    pub fn between<'a>(&'a self, bounds: Bounds<'a>) -> Option<impl Iterator<Item = &'a str>> {
        match self {
            Self::Few { ids, .. } => {
                let first = bounds.first.map_or(Bound::Unbounded, Bound::Included);
                // Open at its end: a range would panic where a file states its bounds the wrong way round.
                let from = ids.range::<str, _>((first, Bound::Unbounded)).map(|id| &**id);
                Some(from.take_while(move |id| bounds.last.is_none_or(|last| *id <= last)))
            }
            Self::Many(_) => None,
        }
    }

    /// What tells most other ids from these; `None` where they are too many to be known.
    pub fn likely(&self) -> Option<Likely> {
        let Self::Few { ids, .. } = self else { return None };
        let bits = (ids.len() * 16).next_power_of_two().max(64);
        let mut likely = Likely { words: vec![0; bits / 64], shift: u64::BITS - bits.trailing_zeros() };
        for id in ids {
            let (word, bit) = likely.place(id);
            likely.words[word] |= bit;
        }
        Some(likely)
    }
}

/// Sixteen bits for each id of a set, one of which is set. The key of an id costs more than to read the id does, and nearly
/// all ids of a table are not in a small change set; to whoever chooses ids so that they all look likely, they cost what
/// keys do.
pub struct Likely {
    words: Vec<u64>,
    shift: u32,
}

impl Likely {
    /// Certainly not where it says no.
    pub fn has(&self, id: &str) -> bool {
        let (word, bit) = self.place(id);
        self.words[word] & bit != 0
    }

    fn place(&self, id: &str) -> (usize, u64) {
        let bytes = id.as_bytes();
        let ends = match (bytes.first_chunk(), bytes.last_chunk()) {
            (Some(first), Some(last)) => u64::from_le_bytes(*first).rotate_left(29) ^ u64::from_le_bytes(*last),
            _ => bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
        };
        // As many of the highest bits of the product as there are bits; they depend on all of `ends`.
        let bit = ends.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> self.shift;
        (usize::try_from(bit / 64).unwrap_or_default(), 1 << (bit % 64))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANYWHERE: Bounds<'_> = Bounds { first: None, last: None };

    fn many(first: &str, last: &str) -> Ids {
        Ids::Many(first.into()..=last.into())
    }

    #[test]
    fn ids_are_known_one_by_one_until_they_take_a_mebibyte() {
        let mut ids = Ids::default();
        let all: Vec<_> = (0..30_000).map(|number| format!("{number:036}")).collect();
        ids.extend(all[..12_000].iter().chain(&all[..12_000]).map(String::as_str));
        assert_eq!(ids.between(ANYWHERE).unwrap().count(), 12_000);
        ids.extend(all[12_000..].iter().map(String::as_str));
        assert_eq!(ids, many(&all[0], &all[29_999]));
        ids.extend(["a", "-"].into_iter());
        assert_eq!(ids, many("-", "a"));
    }

    #[test]
    fn no_ids_lie_nowhere() {
        assert!(!Ids::default().may_lie_between(ANYWHERE));
    }

    #[test]
    fn what_is_not_among_the_ids_is_mostly_told_by_a_look() {
        for width in [1, 7, 8, 36] {
            let all: Vec<_> =
                (0..40_000u64).map(|number| format!("{:0width$x}", number.wrapping_mul(0x9e37))).collect();
            let mut ids = Ids::default();
            ids.extend(all[..1_000].iter().map(String::as_str));
            let likely = ids.likely().unwrap();
            assert!(all[..1_000].iter().all(|id| likely.has(id)));
            let taken = all[1_000..].iter().filter(|id| likely.has(id)).count();
            assert!(taken < 39_000 / 8, "{taken} of ids of {width}");
        }
        assert!(many("a", "b").likely().is_none());
    }

    proptest! {
        #[test]
        fn none_of_the_ids_is_unlikely(ids in proptest::collection::btree_set("[ -~]{0,40}", 0..40)) {
            let mut few = Ids::default();
            few.extend(ids.iter().map(String::as_str));
            let likely = few.likely().unwrap();
            prop_assert!(ids.iter().all(|id| likely.has(id)));
        }

        #[test]
        fn what_may_lie_between_bounds_leaves_nothing_out(
            ids in proptest::collection::btree_set("[a-c]{0,3}", 1..6),
            first in proptest::option::of("[a-c]{0,3}"),
            last in proptest::option::of("[a-c]{0,3}"),
        ) {
            let bounds = Bounds { first: first.as_deref(), last: last.as_deref() };
            let mut few = Ids::default();
            few.extend(ids.iter().map(String::as_str));
            let expected: Vec<_> = ids.iter().map(String::as_str).filter(|id| bounds.first.is_none_or(|first| first <= *id) && bounds.last.is_none_or(|last| *id <= last)).collect();
            prop_assert_eq!(few.between(bounds).unwrap().collect::<Vec<_>>(), expected.clone());
            prop_assert_eq!(few.may_lie_between(bounds), !expected.is_empty());
            let many = many(ids.first().unwrap(), ids.last().unwrap());
            prop_assert!(many.between(bounds).is_none());
            prop_assert!(expected.is_empty() || many.may_lie_between(bounds));
        }
    }
}
