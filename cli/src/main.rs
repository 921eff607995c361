//! `hostler`: server, worker and command line in one binary.
//!
//! Parse, run, end with the right code. What a command does is in `cmd`, what it prints in `output`, how it ends in
//! `exit`.

mod client;
mod clock;
mod cmd;
mod context;
mod duration;
mod exit;
mod follow;
mod output;
mod select;
mod settings;
mod signals;
mod sse;
mod trace;

use std::process::ExitCode;

fn main() -> ExitCode {
    let exit = match cmd::parse(std::env::args_os()) {
        Ok(cli) => cmd::run(cli),
        Err(exit) => exit,
    };
    exit.into()
}
