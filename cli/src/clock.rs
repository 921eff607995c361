//! The one place where the command line reads a clock.

use std::time::{Duration, Instant};

use jiff::Timestamp;

/// Wall time, for what people read.
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

/// A point on the monotonic clock to measure from or to wait for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment(Instant);

impl Moment {
    /// This moment.
    #[expect(
        clippy::disallowed_methods,
        reason = "the command line's only monotonic clock"
    )]
    pub(crate) fn now() -> Self {
        Self(Instant::now())
    }

    /// This much later than now; none if that is beyond the clock.
    pub(crate) fn after(duration: Duration) -> Option<Self> {
        Self::now().0.checked_add(duration).map(Self)
    }

    /// Time since then.
    pub(crate) fn elapsed(self) -> Duration {
        Self::now().0.saturating_duration_since(self.0)
    }

    /// Time until then, zero once it has passed.
    pub(crate) fn left(self) -> Duration {
        self.0.saturating_duration_since(Self::now().0)
    }
}
