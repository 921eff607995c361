//! The simulator: whole clusters in virtual time from one seed.
//!
//! Real in it: the engine and its lanes, dispatch and writer turn by turn, recovery, the worker's session, the codec, the
//! handshake, the in-memory store behind the seam. Models: time, disk, network, processes, people. The oracle looks on.
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
mod frames;
mod machine;
mod network;
mod options;
mod oracle;
mod order;
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
