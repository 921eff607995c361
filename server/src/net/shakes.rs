//! Who may agree on TLS at the moment: so many at once, the others in their order.
//!
//! It costs a millisecond of this thread and some tens of kilobytes, so its number is bounded; a place that has been held
//! for a second goes to the next who waits, so that strangers who begin and fall silent keep nobody out.
//!
//! Not here: the deadline of the whole handshake (`wire`), TLS itself (`hostler_tls`).

use std::collections::BTreeSet;

use hostler_engine::{Span, Time};

use super::peers::Place;

/// How long a place is safe from those who wait: a round trip round the world, and some.
const SAFE: Span = Span::from_millis(1_000);

/// The places and those who wait for one.
#[derive(Debug)]
pub(super) struct Shakes {
    places_max: usize,
    /// Since when each has its place, oldest first.
    held: BTreeSet<(Time, Place)>,
    waiting: BTreeSet<Place>,
}

/// Whether one may begin, or go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Now,
    /// It may, and this one has had its chance.
    InPlaceOf(Place),
    /// It is named by [`Shakes::next`] when its turn comes.
    Later,
}

impl Shakes {
    pub(super) fn new(places_max: usize) -> Self {
        Self {
            places_max: places_max.max(1),
            held: BTreeSet::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// One that has not agreed on TLS has something to say.
    pub(super) fn begin(&mut self, place: Place, now: Time) -> Turn {
        if self.held.iter().any(|(_, held)| *held == place) {
            return Turn::Now;
        }
        let mut turn = Turn::Now;
        if self.held.len() >= self.places_max {
            let Some((_, oldest)) = self.first_overdue(now) else {
                self.waiting.insert(place);
                return Turn::Later;
            };
            self.end(oldest);
            turn = Turn::InPlaceOf(oldest);
        }
        self.waiting.remove(&place);
        self.held.insert((now, place));
        turn
    }

    /// It has agreed, or is gone.
    pub(super) fn end(&mut self, place: Place) {
        self.held.retain(|(_, held)| *held != place);
        self.waiting.remove(&place);
    }

    /// Who waits and may begin now.
    pub(super) fn next(&self, now: Time) -> Option<Place> {
        let free = self.held.len() < self.places_max || self.first_overdue(now).is_some();
        self.waiting.first().copied().filter(|_| free)
    }

    /// When [`next`](Self::next) has one to name at the latest.
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.waiting.first()?;
        self.held.first().map(|(since, _)| *since + SAFE)
    }

    fn first_overdue(&self, now: Time) -> Option<(Time, Place)> {
        let first = self.held.first().copied();
        first.filter(|(since, _)| now.since(*since) >= SAFE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(serial: u64) -> Place {
        Place { serial, key: 0 }
    }

    #[test]
    fn those_too_many_wait_in_their_order_until_a_place_is_free() {
        let mut shakes = Shakes::new(2);
        let now = Time::from_micros(1);
        assert_eq!(shakes.begin(place(1), now), Turn::Now);
        assert_eq!(shakes.begin(place(2), now), Turn::Now);
        assert_eq!(shakes.begin(place(4), now), Turn::Later);
        assert_eq!(shakes.begin(place(3), now), Turn::Later);
        assert_eq!(shakes.begin(place(1), now), Turn::Now);
        assert_eq!(shakes.next(now), None);
        shakes.end(place(2));
        assert_eq!(shakes.next(now), Some(place(3)));
        assert_eq!(shakes.begin(place(3), now), Turn::Now);
        assert_eq!(shakes.next(now), None);
        shakes.end(place(4));
        shakes.end(place(1));
        assert_eq!(shakes.next(now), None);
    }

    #[test]
    fn one_that_dawdles_makes_room_after_a_second_if_somebody_waits() {
        let mut shakes = Shakes::new(1);
        let (start, later) = (Time::from_micros(0), Time::from_micros(1_000_000));
        assert_eq!(shakes.begin(place(1), start), Turn::Now);
        assert_eq!(shakes.begin(place(1), later), Turn::Now);
        assert_eq!(shakes.next_deadline(), None);
        assert_eq!(shakes.begin(place(2), start), Turn::Later);
        assert_eq!(shakes.next_deadline(), Some(later));
        assert_eq!(shakes.next(later), Some(place(2)));
        assert_eq!(shakes.begin(place(2), later), Turn::InPlaceOf(place(1)));
    }
}
