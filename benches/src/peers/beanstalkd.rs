//! beanstalkd: put; reserve, delete.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::drive::{Talker, both, line, payload, shares};
use super::{Daemon, Peer, Plan, place, program};
use crate::load::per_second;
use crate::system::free_port;

const WINDOW: u64 = 32;

pub(super) fn in_memory(_: &Peer, _: &Plan, jobs: u64) -> Result<f64> {
    run(jobs, 1, false)
}

pub(super) fn synced(_: &Peer, _: &Plan, jobs: u64) -> Result<f64> {
    run(jobs, 32, true)
}

fn run(jobs: u64, clients: u64, synced: bool) -> Result<f64> {
    let dir = place("beanstalkd")?;
    let address = free_port()?;
    let mut command = Command::new(program("beanstalkd")?);
    command.args(["-l", "127.0.0.1", "-p", &address.port().to_string()]);
    if synced {
        command.args(["-f0", "-b"]).arg(dir.path());
    }
    let _daemon = Daemon(
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?,
    );
    let producers = shares(jobs, clients).map(|left| Producer { left, open: 0 });
    let workers = shares(jobs, clients).map(|left| Worker {
        to_reserve: left,
        to_delete: left,
    });
    let elapsed = both(address, producers.collect(), workers.collect())?;
    Ok(per_second(jobs, elapsed))
}

struct Producer {
    left: u64,
    open: u64,
}

impl Producer {
    fn put(&mut self, out: &mut Vec<u8>) {
        if self.left > 0 {
            let body = payload(self.left);
            out.extend_from_slice(format!("put 0 0 600 {}\r\n{body}\r\n", body.len()).as_bytes());
            self.left -= 1;
            self.open += 1;
        }
    }
}

impl Talker for Producer {
    fn begin(&mut self, out: &mut Vec<u8>) {
        for _ in 0..WINDOW {
            self.put(out);
        }
    }

    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize> {
        let Some((text, used)) = line(bytes)? else {
            return Ok(0);
        };
        ensure!(text.starts_with("INSERTED"), "beanstalkd says {text}");
        self.open -= 1;
        self.put(out);
        Ok(used)
    }

    fn is_over(&self) -> bool {
        self.left == 0 && self.open == 0
    }
}

/// It asks for no more jobs than it will get: a reserve that waits holds up everything behind it.
struct Worker {
    to_reserve: u64,
    to_delete: u64,
}

impl Worker {
    fn reserve(&mut self, out: &mut Vec<u8>) {
        if self.to_reserve > 0 {
            out.extend_from_slice(b"reserve\r\n");
            self.to_reserve -= 1;
        }
    }
}

impl Talker for Worker {
    fn begin(&mut self, out: &mut Vec<u8>) {
        for _ in 0..WINDOW {
            self.reserve(out);
        }
    }

    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize> {
        let Some((text, used)) = line(bytes)? else {
            return Ok(0);
        };
        if text == "DELETED" {
            self.to_delete -= 1;
            return Ok(used);
        }
        let mut words = text.split(' ');
        ensure!(words.next() == Some("RESERVED"), "beanstalkd says {text}");
        let id = words.next().context("a job without id")?;
        let length: usize = words.next().context("a job without length")?.parse()?;
        if bytes.len() < used + length + 2 {
            return Ok(0);
        }
        out.extend_from_slice(format!("delete {id}\r\n").as_bytes());
        self.reserve(out);
        Ok(used + length + 2)
    }

    fn is_over(&self) -> bool {
        self.to_delete == 0
    }
}
