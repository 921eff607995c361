//! What runs commands in parallel without a server.

use std::fmt::Write as _;
use std::fs::File;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::{Peer, Plan, place, program};
use crate::clock::Moment;
use crate::load::per_second;

pub(super) fn xargs(_: &Peer, _: &Plan, jobs: u64) -> Result<f64> {
    let mut command = Command::new(program("xargs")?);
    command.args(["-P2", "-n1", "/bin/true"]);
    run(command, jobs)
}

pub(super) fn parallel(_: &Peer, _: &Plan, jobs: u64) -> Result<f64> {
    let mut command = Command::new(program("parallel")?);
    // The home directory is where it keeps its notice of how to cite it.
    command.args(["--no-notice", "-j2", "-N0", "/bin/true"]);
    run(command, jobs)
}

fn run(mut command: Command, jobs: u64) -> Result<f64> {
    let dir = place("processes")?;
    let mut lines = String::new();
    for job in 0..jobs {
        writeln!(lines, "{job}")?;
    }
    let path = dir.path().join("lines");
    std::fs::write(&path, lines)?;
    command
        .env("HOME", dir.path())
        .stdin(File::open(path)?)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let begun = Moment::now();
    let status = command.status()?;
    let elapsed = begun.elapsed();
    ensure!(status.success(), "it ended with {status}");
    Ok(per_second(jobs, elapsed))
}
