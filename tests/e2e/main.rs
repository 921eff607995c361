//! End to end: the real binary, real sockets, real processes, `kill -9`. One test binary; each test starts a server of
//! its own, so they may run side by side.
//!
//! Every test is a sentence of the contract. Sizes are such that all of them together take a few minutes;
//! `HOSTLER_TESTS_FULL=1` runs them at the figures the project promises. The binary is found by `HOSTLER_BIN`, else
//! beside this one.
#![expect(
    clippy::unwrap_used,
    reason = "what is missing where a test looks for it fails the test"
)]

mod authority;
mod bench;
mod cancel;
mod cli;
mod crash;
mod disk;
mod drain;
mod hostile;
mod intruders;
mod jobs;
mod limits;
mod logs;
mod output;
mod probe;
mod processes;
mod stall;
mod submit;
mod tls;
mod torture;
mod versions;
mod wall;
mod wire;
