//! Chance from one number: a run that found something is tried again with the seed it printed.
//!
//! The seed fixes every choice a test makes; how long the machine takes over each stays the machine's. So a repeated
//! run makes the same jobs and deals the same blows, though not at the very same instants.

use std::env;

/// A sequence of numbers from a seed (splitmix64).
#[derive(Clone, Debug)]
pub struct Random {
    seed: u64,
    state: u64,
}

impl Random {
    /// From this seed.
    pub fn new(seed: u64) -> Self {
        Self { seed, state: seed }
    }

    /// From `HOSTLER_TESTS_SEED`, else from one nobody has chosen. Says which.
    pub fn printed(what: &str) -> Self {
        let given = env::var_os("HOSTLER_TESTS_SEED");
        let seed = match given.as_ref().and_then(|text| text.to_str()) {
            Some(text) => text
                .parse()
                .unwrap_or_else(|_| panic!("HOSTLER_TESTS_SEED={text} is no number")),
            None => getrandom::u64().unwrap() >> 16,
        };
        eprintln!("{what}: the same again with HOSTLER_TESTS_SEED={seed}");
        Self::new(seed)
    }

    /// What it began with.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of 0 to `n` − 1.
    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }

    /// A place in something that has so many.
    pub fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap()
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of these.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.index(all.len())]
    }

    /// One of these, each as often as its weight says.
    pub fn weighted<T: Copy>(&mut self, all: &[(u64, T)]) -> T {
        let mut at = self.below(all.iter().map(|(weight, _)| weight).sum());
        for &(weight, what) in all {
            match at.checked_sub(weight) {
                Some(rest) => at = rest,
                None => return what,
            }
        }
        unreachable!("a number below the sum of the weights")
    }

    /// So many bytes.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.draw().to_le_bytes()[3]).collect()
    }

    /// A sequence of its own, for another thread.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::new(self.draw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_sequence() {
        let draw = |seed| {
            let mut random = Random::new(seed);
            let mut fork = random.fork();
            (random.draw(), fork.draw(), random.bytes(9))
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn weights_are_kept() {
        let mut random = Random::new(1);
        let hits = (0..1_000).filter(|_| random.weighted(&[(1, false), (3, true), (0, false)]));
        let hits = hits.count();
        assert!((650..850).contains(&hits), "{hits} of 1000, should be 750");
    }
}
