//! Runs Hostler's jobs.
#![warn(missing_docs)]

mod clock;
mod handlers;
pub mod session;
mod usage;

pub use clock::{Span, Time};
