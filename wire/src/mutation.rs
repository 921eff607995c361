//! Deliberate bugs, to see that the simulator finds them: tests of the tests.
//!
//! Each is one line somewhere in engine, server or worker that asks [`is`] for its name. Without the feature `mutations`
//! the answer is a constant `false` and nothing of it is left in the binary; only the simulator's own build has the
//! feature.

/// Whether this bug is on, on this thread.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub const fn is(_name: &str) -> bool {
    false
}

#[cfg(feature = "mutations")]
pub use switched::{is, turn_on};

#[cfg(feature = "mutations")]
mod switched {
    use std::cell::Cell;

    thread_local! {
        static ACTIVE: Cell<&'static str> = const { Cell::new("") };
    }

    /// Whether this bug is on, on this thread.
    pub fn is(name: &str) -> bool {
        ACTIVE.get() == name
    }

    /// Turns that bug on and any other off, on this thread; the empty name is none.
    pub fn turn_on(name: &'static str) {
        ACTIVE.set(name);
    }
}
