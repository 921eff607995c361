//! gearmand: background jobs in; grab, work, complete.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, bail};

use super::drive::{Talker, both, payload, shares};
use super::{Daemon, Peer, Plan, place, program};
use crate::load::per_second;
use crate::system::free_port;

const WINDOW: u64 = 32;
const CLIENTS: u64 = 32;

// Numbers of its protocol.
const CAN_DO: u32 = 1;
const PRE_SLEEP: u32 = 4;
const NOOP: u32 = 6;
const JOB_CREATED: u32 = 8;
const GRAB_JOB: u32 = 9;
const NO_JOB: u32 = 10;
const JOB_ASSIGN: u32 = 11;
const WORK_COMPLETE: u32 = 13;
const SUBMIT_JOB_BG: u32 = 18;

pub(super) fn in_memory(_: &Peer, _: &Plan, jobs: u64) -> Result<f64> {
    let dir = place("gearman")?;
    let address = free_port()?;
    let child = Command::new(program("gearmand")?)
        .args([
            "--listen",
            "127.0.0.1",
            "--port",
            &address.port().to_string(),
        ])
        .args(["--threads", "4", "--log-file", "none", "--pid-file"])
        .arg(dir.path().join("pid"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let _daemon = Daemon(child);
    let producers = shares(jobs, CLIENTS).map(|left| Producer { left, open: 0 });
    let left = Arc::new(AtomicU64::new(jobs));
    let workers = (0..CLIENTS).map(|_| Worker {
        left: Arc::clone(&left),
        asked: 0,
    });
    let elapsed = both(address, producers.collect(), workers.collect())?;
    Ok(per_second(jobs, elapsed))
}

fn say(kind: u32, parts: &[&[u8]], out: &mut Vec<u8>) {
    let body = parts.join(&0);
    out.extend_from_slice(b"\0REQ");
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(&body);
}

/// Kind, body, and the bytes they take.
fn packet(bytes: &[u8]) -> Option<(u32, &[u8], usize)> {
    let (_, rest) = bytes.split_at_checked(4)?;
    let (kind, rest) = rest.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = u32::from_be_bytes(*length) as usize;
    Some((u32::from_be_bytes(*kind), rest.get(..length)?, 12 + length))
}

struct Producer {
    left: u64,
    open: u64,
}

impl Producer {
    fn submit(&mut self, out: &mut Vec<u8>) {
        if self.left > 0 {
            let job = payload(self.left);
            say(SUBMIT_JOB_BG, &[b"noop", b"", job.as_bytes()], out);
            self.left -= 1;
            self.open += 1;
        }
    }
}

impl Talker for Producer {
    fn begin(&mut self, out: &mut Vec<u8>) {
        for _ in 0..WINDOW {
            self.submit(out);
        }
    }

    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize> {
        match packet(bytes) {
            None => Ok(0),
            Some((JOB_CREATED, _, used)) => {
                self.open -= 1;
                self.submit(out);
                Ok(used)
            }
            Some((kind, ..)) => bail!("gearmand says {kind}"),
        }
    }

    fn is_over(&self) -> bool {
        self.left == 0 && self.open == 0
    }
}

struct Worker {
    /// Of all workers.
    left: Arc<AtomicU64>,
    /// Grabs without an answer yet.
    asked: u64,
}

impl Worker {
    fn grab(&mut self, out: &mut Vec<u8>) {
        say(GRAB_JOB, &[], out);
        self.asked += 1;
    }
}

impl Talker for Worker {
    fn begin(&mut self, out: &mut Vec<u8>) {
        say(CAN_DO, &[b"noop"], out);
        say(PRE_SLEEP, &[], out);
    }

    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize> {
        let Some((kind, body, used)) = packet(bytes) else {
            return Ok(0);
        };
        match kind {
            JOB_ASSIGN => {
                let handle = body.split(|byte| *byte == 0).next();
                say(
                    WORK_COMPLETE,
                    &[handle.context("a job without handle")?, b""],
                    out,
                );
                self.left.fetch_sub(1, Ordering::Relaxed);
                self.asked -= 1;
                self.grab(out);
            }
            NO_JOB => {
                self.asked -= 1;
                if self.asked == 0 {
                    say(PRE_SLEEP, &[], out);
                }
            }
            NOOP if self.asked == 0 => {
                for _ in 0..WINDOW {
                    self.grab(out);
                }
            }
            NOOP => {}
            kind => bail!("gearmand says {kind}"),
        }
        Ok(used)
    }

    fn is_over(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }
}
