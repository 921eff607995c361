//! How often somebody may: buckets that fill with time, and addresses that showed wrong tokens. Time is an argument.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use hostler_engine::{Span, Time};

/// So many of something a second. Whatever was taken while something was left is granted whole, and paid back before the
/// next: a request that is larger than a second's worth is delayed, not refused for ever.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: u32,
    state: Mutex<Level>,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    /// In millionths; below zero after a large request.
    left: i64,
    at: Time,
}

const UNIT: i64 = 1_000_000;

impl Bucket {
    pub(super) fn new(per_second: u32, now: Time) -> Self {
        let left = i64::from(per_second) * UNIT;
        Self {
            per_second,
            state: Mutex::new(Level { left, at: now }),
        }
    }

    /// Takes that many; or says how long until one may try again.
    pub(super) fn take(&self, count: u64, now: Time) -> Result<(), Span> {
        let mut level = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = i64::from(self.per_second.max(1));
        let gone = i64::try_from(now.since(level.at).micros()).unwrap_or(i64::MAX);
        level.left = gone
            .saturating_mul(rate)
            .saturating_add(level.left)
            .min(rate * UNIT);
        level.at = level.at.max(now);
        // One whole is needed to go on: a bucket that is all but empty does not pay for a thousand.
        if level.left < UNIT {
            let missing = UNIT.saturating_sub(level.left);
            let wait = u64::try_from(missing.div_euclid(rate)).unwrap_or(0);
            return Err(Span::from_micros(wait + 1));
        }
        let cost = i64::try_from(count)
            .unwrap_or(i64::MAX)
            .saturating_mul(UNIT);
        level.left = level.left.saturating_sub(cost);
        Ok(())
    }
}

/// Addresses that showed wrong tokens lately. After [`BURST`] of them an address is heard once a second. Who has a right
/// one is never kept out by it: a secret of 256 bits is not found by trying, and others may share the address.
#[derive(Debug, Default)]
pub struct Failures {
    /// When the failures of an address are forgiven.
    until: HashMap<IpAddr, Time>,
}

const BURST: u64 = 20;
const FORGIVEN_AFTER: Span = Span::from_millis(1_000);
/// Most addresses remembered; more make the remembered ones go, which an attacker with so many does not need.
const ADDRESSES_MAX: usize = 4_096;

impl Failures {
    /// Notes a wrong token. False: there were too many, and this one is not worth a word.
    pub fn add(&mut self, address: IpAddr, now: Time) -> bool {
        if self.until.len() >= ADDRESSES_MAX && !self.until.contains_key(&address) {
            self.until.retain(|_, until| *until > now);
            if self.until.len() >= ADDRESSES_MAX {
                self.until.clear();
            }
        }
        let until = self.until.entry(address).or_insert(now);
        let begun = (*until).max(now);
        if begun.since(now).micros() >= BURST * FORGIVEN_AFTER.micros() {
            return false;
        }
        *until = begun + FORGIVEN_AFTER;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_tokens_slow_their_own_address_down_for_a_while() {
        let mut failures = Failures::default();
        let (bad, good) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let start = Time::from_micros(5_000_000);
        for _ in 0..BURST {
            assert!(failures.add(bad, start));
        }
        assert!(!failures.add(bad, start));
        assert!(failures.add(good, start));
        let later = start + Span::from_millis(1_000);
        assert!(failures.add(bad, later));
        assert!(!failures.add(bad, later));
    }

    #[test]
    fn the_table_of_addresses_is_bounded() {
        let mut failures = Failures::default();
        let now = Time::from_micros(1);
        for n in 0..20_000_u32 {
            failures.add(IpAddr::from(n.to_be_bytes()), now);
            assert!(failures.until.len() <= ADDRESSES_MAX);
        }
    }

    #[test]
    fn a_bucket_gives_its_rate_and_a_large_request_is_paid_back() {
        let start = Time::from_micros(9_000_000);
        let at = |ms: u64| start + Span::from_millis(ms);
        let bucket = Bucket::new(10, start);
        for _ in 0..10 {
            assert_eq!(bucket.take(1, start), Ok(()));
        }
        let wait = bucket.take(1, start).unwrap_err();
        assert!((99..=101).contains(&wait.millis()), "{wait:?}");
        assert_eq!(bucket.take(1, at(101)), Ok(()));
        assert!(bucket.take(1, at(102)).is_err());
        // A full bucket pays for 100 at once, and then for nothing until they are paid back.
        assert_eq!(bucket.take(100, at(5_000)), Ok(()));
        assert!(bucket.take(1, at(13_900)).is_err());
        assert_eq!(bucket.take(1, at(14_101)), Ok(()));
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_gives_nothing() {
        let bucket = Bucket::new(1, Time::from_micros(5_000_000));
        assert_eq!(bucket.take(1, Time::from_micros(5_000_000)), Ok(()));
        assert!(bucket.take(1, Time::from_micros(1_000_000)).is_err());
        assert!(bucket.take(1, Time::from_micros(5_000_000)).is_err());
    }
}
