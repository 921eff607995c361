//! Libraries on Redis, each spoken to in its own language by a small script beside `benches/peers/run`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::redis::Redis;
use super::{Peer, Plan, library, program};

pub(super) fn bullmq(_: &Peer, plan: &Plan, jobs: u64) -> Result<f64> {
    library(&plan.libraries.join("node_modules/bullmq"))?;
    let mut node = Command::new(program("node")?);
    node.arg(script("bullmq.cjs"))
        .env("NODE_PATH", plan.libraries.join("node_modules"));
    run(node, jobs)
}

pub(super) fn rq(_: &Peer, plan: &Plan, jobs: u64) -> Result<f64> {
    let python = plan.libraries.join("python/bin/python");
    let mut python = Command::new(library(&python)?);
    python.arg(script("rq_peer.py"));
    run(python, jobs)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("peers")
        .join(name)
}

/// A script takes Redis' port and how many jobs, and prints the seconds from the first submission to the last end.
fn run(mut command: Command, jobs: u64) -> Result<f64> {
    let redis = Redis::start()?;
    let end = command
        .arg(redis.address.port().to_string())
        .arg(jobs.to_string())
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&end.stderr);
    ensure!(end.status.success(), "the script failed: {said}");
    let text = String::from_utf8(end.stdout)?;
    let last = text.lines().last().context("the script said nothing")?;
    let seconds: f64 = last.trim().parse()?;
    Ok(jobs as f64 / seconds)
}
