//! The one place where the load test reads a clock, and waits.

use std::thread;
use std::time::{Duration, Instant};

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
