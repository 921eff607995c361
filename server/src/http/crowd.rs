//! How many connections are open, in all and from each address.
//!
//! Not here: what becomes of one too many (`http`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::config::Limits;

/// The open connections of all threads.
#[derive(Debug)]
pub(super) struct Crowd {
    max: usize,
    per_address_max: usize,
    /// Locked for a moment when a connection comes or goes, never during a request.
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// Why one more is too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    Total(usize),
    Address(usize),
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (max, whose, name) = match self {
            Self::Total(max) => (max, "", "http_connections_max"),
            Self::Address(max) => (
                max,
                " from your address",
                "http_connections_per_address_max",
            ),
        };
        write!(
            f,
            "{max} connections are open{whose} (limits.{name}); try again later"
        )
    }
}

impl Crowd {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            max: limits.http_connections_max,
            per_address_max: limits.http_connections_per_address_max,
            open: Mutex::default(),
        }
    }

    /// One more; it leaves again if there was room.
    pub(super) fn enter(&self, address: IpAddr) -> Result<(), Full> {
        let mut open = self.lock();
        if open.total >= self.max {
            return Err(Full::Total(self.max));
        }
        let from_there = open.by_address.get(&address).copied().unwrap_or(0);
        if from_there >= self.per_address_max {
            return Err(Full::Address(self.per_address_max));
        }
        open.total += 1;
        open.by_address.insert(address, from_there + 1);
        Ok(())
    }

    pub(super) fn leave(&self, address: IpAddr) {
        let mut open = self.lock();
        open.total -= 1;
        if let Entry::Occupied(mut from_there) = open.by_address.entry(address) {
            *from_there.get_mut() -= 1;
            if *from_there.get() == 0 {
                from_there.remove();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_in_all_and_from_each_address_and_whoever_leaves_makes_some() {
        let crowd = Crowd::new(&Limits {
            http_connections_max: 3,
            http_connections_per_address_max: 2,
            ..Limits::default()
        });
        let [a, b, c] = [1, 2, 3].map(|n| IpAddr::from([127, 0, 0, n]));
        assert_eq!(crowd.enter(a), Ok(()));
        assert_eq!(crowd.enter(a), Ok(()));
        assert_eq!(crowd.enter(a), Err(Full::Address(2)));
        assert_eq!(crowd.enter(b), Ok(()));
        assert_eq!(crowd.enter(c), Err(Full::Total(3)));
        crowd.leave(a);
        assert_eq!(crowd.enter(c), Ok(()));
        for address in [a, b, c] {
            crowd.leave(address);
        }
        assert!(crowd.lock().by_address.is_empty());
    }
}
