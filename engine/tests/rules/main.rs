//! The rules of scheduling, a sentence each, told to one small driver.

#![expect(
    clippy::unwrap_used,
    reason = "a driver that fails is a test that fails"
)]

mod trial;

mod budgets;
mod cancelling;
mod commits;
mod order;
mod prefetch;
mod recovery;
mod sessions;
mod time_limits;
