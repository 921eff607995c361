//! The words that cross a process boundary in Hostler, and nothing that does I/O or reads a clock.
//!
//! To write a worker in another language, read `PROTOCOL.md` beside this crate: it has every frame, its numbers and
//! golden bytes in hex. This crate is the Rust form of it:
//!
//! - [`JobId`], [`Attempt`], [`Epoch`], [`Fence`], [`WorkerId`]: who is meant.
//! - [`JobState`], [`Reason`], [`Outcome`], [`Priority`]: what happened.
//! - `frame`: what server and worker say to each other, `Decoder`: bytes in, frames out, `Handshake`: who may speak.
//! - `api`: the JSON shapes of the HTTP interface.
//!
//! With `default-features = false` only ids and states remain: that is what the engine sees.
#![warn(missing_docs)]

pub mod allow;
pub mod id;
pub mod limits;
pub mod mutation;
pub mod outcome;
pub mod state;

#[cfg(feature = "api")]
pub mod api;
#[cfg(feature = "frames")]
pub mod codec;
#[cfg(feature = "frames")]
pub mod decoder;
#[cfg(feature = "frames")]
pub mod frame;
#[cfg(feature = "frames")]
pub mod handshake;
#[cfg(feature = "frames")]
pub mod result;
#[cfg(feature = "frames")]
pub mod token;

pub use allow::Allow;
pub use id::{Attempt, Epoch, Fence, JobId, SessionId, WorkerId};
pub use outcome::{Detail, Outcome, Usage};
pub use state::{JobState, Priority, Reason};
