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
mod size;
mod sse;
mod trace;

use std::process::ExitCode;

use hostler_worker::shim;

fn main() -> ExitCode {
    // A worker starts us to become one of its jobs: nothing else is to happen before that.
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == shim::ARGUMENT)
    {
        return shim::exec(arguments).into();
    }
    let exit = match cmd::parse(std::env::args_os()) {
        Ok(cli) => cmd::run(cli),
        Err(exit) => exit,
    };
    exit.into()
}
