//! Time and spans on the engine's own clock, in microseconds; and instants of people's wall clock, in milliseconds.
//!
//! The engine's clock only goes forward and continues over restarts; durations live on it. Instants that a person named
//! (`run_at`, `expires_at`, `deadline_at`) stay on the wall clock, so that a corrected clock moves them and nothing else.

/// A moment on the engine's clock: microseconds since the cluster's beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

/// A length of time, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

/// A moment on the wall clock: milliseconds since 1970, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(u64);

/// A moment something waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So long after something that happened: on the engine's clock.
    Engine(Time),
    /// When the wall clock says so.
    Wall(WallTime),
}

impl Time {
    /// The clock's beginning.
    pub const ZERO: Self = Self(0);

    /// So many microseconds after the beginning.
    pub const fn from_micros(us: u64) -> Self {
        Self(us)
    }

    /// Microseconds since the beginning.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it is not earlier.
    pub const fn since(self, earlier: Self) -> Span {
        Span(self.0.saturating_sub(earlier.0))
    }

    /// This long before, not before the beginning.
    pub const fn back(self, span: Span) -> Self {
        Self(self.0.saturating_sub(span.0))
    }
}

impl std::ops::Add<Span> for Time {
    type Output = Self;

    /// Far futures stay at the end of time: 584,000 years on, nobody waits for the difference.
    fn add(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.0))
    }
}

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);

    /// So many microseconds.
    pub const fn from_micros(us: u64) -> Self {
        Self(us)
    }

    /// So many milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms.saturating_mul(1_000))
    }

    /// So many seconds.
    pub const fn from_secs(s: u64) -> Self {
        Self(s.saturating_mul(1_000_000))
    }

    /// In microseconds.
    pub const fn micros(self) -> u64 {
        self.0
    }

    /// In whole milliseconds.
    pub const fn millis(self) -> u64 {
        self.0 / 1_000
    }

    /// This many of it.
    pub const fn times(self, n: u64) -> Self {
        Self(self.0.saturating_mul(n))
    }
}

impl std::ops::Add for Span {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl WallTime {
    /// So many milliseconds after 1970 began, UTC.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since 1970 began, UTC.
    pub const fn millis(self) -> u64 {
        self.0
    }
}
