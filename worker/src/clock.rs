//! The worker's only clock, and the times and spans everything else is told.
//!
//! [`Time`] counts microseconds of the monotonic clock since the worker started, so a changed wall clock moves no
//! deadline (semantics 23). The wall clock is read for one thing: the stamp people see beside a piece of output.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::{Duration, Instant, SystemTime};

/// A moment on the worker's monotonic clock, microseconds from its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The moment so many microseconds after the start.
    pub const fn from_us(us: u64) -> Self {
        Self(us)
    }

    /// Microseconds since the start.
    pub const fn us(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }
}

/// A length of time, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// So many microseconds.
    pub const fn from_us(us: u64) -> Self {
        Self(us)
    }

    /// So many milliseconds; beyond what the clock can count it is as good as for ever.
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms.saturating_mul(1_000))
    }

    /// Microseconds.
    pub const fn us(self) -> u64 {
        self.0
    }

    /// `n` times as long.
    pub const fn times(self, n: u64) -> Self {
        Self(self.0.saturating_mul(n))
    }
}

impl From<Duration> for Span {
    fn from(duration: Duration) -> Self {
        Self(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Self::from_micros(span.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from(*self))
    }
}

impl Add<Span> for Time {
    type Output = Self;

    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Sub for Time {
    type Output = Span;

    fn sub(self, earlier: Self) -> Span {
        self.since(earlier)
    }
}

/// Reads the time for the loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub(crate) fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Time {
        Time(Span::from(self.start.elapsed()).0)
    }

    /// Milliseconds since 1970 by the wall clock: for people, never for order. 0 if it stands before 1970.
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    pub(crate) fn wall_ms() -> u64 {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| Span::from(since).us() / 1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_of_reach_stays_in_the_future_instead_of_wrapping() {
        let never = Time::from_us(5) + Span::from_ms(u64::MAX);
        assert!(never > Time::from_us(u64::MAX / 2));
        assert_eq!(Time::from_us(3) - Time::from_us(7), Span::ZERO);
    }
}
