//! Random numbers from a seed. They use only 64-bit words of `ChaCha` and integer arithmetic, so the same seed gives
//! the same numbers on every platform and with every version of the libraries.

use chrono::{NaiveTime, TimeDelta};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

#[derive(Clone, Debug)]
pub(super) struct Random(ChaCha8Rng);

impl Random {
    /// Two streams of one seed have nothing in common.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mut chacha = ChaCha8Rng::seed_from_u64(seed);
        chacha.set_stream(stream);
        Self(chacha)
    }

    /// From 0 to one below `bound`; 0 where the bound is 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        let product = u128::from(self.0.next_u64()) * u128::from(bound);
        (product >> 64) as u64
    }

    /// From `min` to `max`, both included.
    pub(super) fn between(&mut self, min: i64, max: i64) -> i64 {
        min + self.below(max.abs_diff(min) + 1).cast_signed()
    }

    /// `true` with a probability of `percent` in a hundred.
    pub(super) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of a list that is not empty.
    pub(super) fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.index(list.len())]
    }

    /// One word of a list that is not empty.
    pub(super) fn word(&mut self, list: &[&'static str]) -> &'static str {
        self.pick::<&str>(list)
    }

    /// An index into a list of this length; 0 for an empty list.
    pub(super) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or_default()
    }

    /// Takes at most `max` items of a list, in random order, each at most once.
    pub(super) fn choose<T>(&mut self, mut list: Vec<T>, max: usize) -> Vec<T> {
        let mut chosen = Vec::new();
        while chosen.len() < max && !list.is_empty() {
            let index = self.index(list.len());
            chosen.push(list.swap_remove(index));
        }
        chosen
    }

    /// `count` decimal digits.
    pub(super) fn digits(&mut self, count: usize) -> String {
        (0..count).map(|_| char::from(b"0123456789"[self.index(10)])).collect()
    }

    /// A logical id in the form of a UUID.
    pub(super) fn id(&mut self) -> String {
        let mut bytes = [0; 16];
        self.0.fill_bytes(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    /// Between 8:00 and 16:59, on a minute.
    pub(super) fn office_hour(&mut self) -> NaiveTime {
        NaiveTime::MIN + TimeDelta::minutes(self.between(8 * 60, 17 * 60 - 1))
    }
}
