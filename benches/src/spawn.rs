//! What a process costs at least: start it, read its output to the end, wait for it; some at a time.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::clock::Moment;

/// Runs so many, `in_flight` at a time, and tells how long that took.
pub fn bare_loop(command: &[String], count: usize, in_flight: usize) -> Result<Duration> {
    let (program, arguments) = command.split_first().context("no command")?;
    let begun = Moment::now();
    let mut running = std::collections::VecDeque::with_capacity(in_flight);
    for _ in 0..count {
        if running.len() == in_flight {
            finish(running.pop_front().expect("its length was just looked at"))?;
        }
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        running.push_back(child);
    }
    for child in running {
        finish(child)?;
    }
    Ok(begun.elapsed())
}

fn finish(mut child: Child) -> Result<()> {
    let mut output = Vec::new();
    for pipe in [
        child
            .stdout
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn Read>),
        child
            .stderr
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn Read>),
    ] {
        pipe.context("a child without pipes")?
            .read_to_end(&mut output)?;
    }
    let status = child.wait()?;
    ensure!(status.success(), "the command ended with {status}");
    Ok(())
}
