//! The simulator: whole clusters in virtual time from one seed.
//!
//! Real in it: the engine and its lanes, dispatch, writer and output turn by turn, recovery, segments, the worker's
//! session and spool, the codec, the handshake, the in-memory store behind the seam. Models: time, disks, network,
//! processes, people. The oracle looks on.
//!
//! ```text
//! sim --seconds 60              fresh seeds for a minute
//! sim --seed 17 [--count 100]   these seeds
//! sim --seed 17 --trace         one of them, with all that happens
//! ```
//!
//! Exits with 1 at the first seed that fails, after saying what it expands to and what happened last.
#![expect(
    clippy::print_stdout,
    reason = "a program for people who read its words"
)]

mod disk;
mod faults;
mod files;
mod follow;
mod frames;
mod machine;
mod network;
mod options;
mod oracle;
mod order;
mod outlet;
mod printed;
mod restart;
mod rng;
mod runner;
mod server;
#[cfg(test)]
mod tests;
mod trace;
mod workload;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    runner::main(std::env::args().skip(1))
}

/// A line for whoever runs it.
fn print(line: &str) {
    println!("{line}");
}
