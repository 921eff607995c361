//! The one place where the load test reads a clock, and waits.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point on the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Moment(Instant);

impl Moment {
    /// This moment.
    #[expect(
        clippy::disallowed_methods,
        reason = "the load test's only clock; measuring is what it is for"
    )]
    pub fn now() -> Self {
        Self(Instant::now())
    }

    /// Time since then.
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_duration_since(self.0)
    }
}

/// The wall clock, in ns since 1970: to compare with what jobs print.
#[expect(
    clippy::disallowed_methods,
    reason = "the load test's only clock; measuring is what it is for"
)]
pub fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Asks `done` every `pause` until it says yes; false if it has not after `patience`.
pub fn eventually(patience: Duration, pause: Duration, mut done: impl FnMut() -> bool) -> bool {
    let begun = Moment::now();
    loop {
        if done() {
            return true;
        }
        if begun.elapsed() >= patience {
            return false;
        }
        thread::park_timeout(pause);
    }
}
