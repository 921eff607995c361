//! Redis as a queue without a library: LPUSH; BLMOVE to the worker's own list; LREM when it is done.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;

use super::drive::{Talker, both, line, payload, shares};
use super::{Daemon, Peer, Plan, place, program};
use crate::load::per_second;
use crate::system::free_port;

const WINDOW: u64 = 32;
const CLIENTS: u64 = 32;

pub(super) fn lists(_: &Peer, _: &Plan, jobs: u64) -> Result<f64> {
    let redis = Redis::start()?;
    let producers = shares(jobs, CLIENTS).map(|left| Producer { left, open: 0 });
    let workers = shares(jobs, CLIENTS).zip(0..).map(|(left, number)| Worker {
        own: format!("own{number}"),
        to_move: left,
        to_remove: left,
    });
    let elapsed = both(redis.address, producers.collect(), workers.collect())?;
    Ok(per_second(jobs, elapsed))
}

/// A server of ours, every write synced before it is answered.
pub(super) struct Redis {
    pub(super) address: SocketAddr,
    _daemon: Daemon,
    _dir: TempDir,
}

impl Redis {
    pub(super) fn start() -> Result<Self> {
        let dir = place("redis")?;
        let address = free_port()?;
        let child = Command::new(program("redis-server")?)
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--appendonly", "yes", "--appendfsync", "always"])
            .args(["--save", "", "--maxmemory-policy", "noeviction", "--dir"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            address,
            _daemon: Daemon(child),
            _dir: dir,
        })
    }
}

fn say(words: &[&str], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
}

struct Producer {
    left: u64,
    open: u64,
}

impl Producer {
    fn push(&mut self, out: &mut Vec<u8>) {
        if self.left > 0 {
            say(&["LPUSH", "queue", &payload(self.left)], out);
            self.left -= 1;
            self.open += 1;
        }
    }
}

impl Talker for Producer {
    fn begin(&mut self, out: &mut Vec<u8>) {
        for _ in 0..WINDOW {
            self.push(out);
        }
    }

    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize> {
        let Some((text, used)) = line(bytes)? else {
            return Ok(0);
        };
        ensure!(text.starts_with(':'), "Redis says {text}");
        self.open -= 1;
        self.push(out);
        Ok(used)
    }

    fn is_over(&self) -> bool {
        self.left == 0 && self.open == 0
    }
}

struct Worker {
    own: String,
    to_move: u64,
    to_remove: u64,
}

impl Worker {
    fn take(&mut self, out: &mut Vec<u8>) {
        if self.to_move > 0 {
            say(&["BLMOVE", "queue", &self.own, "RIGHT", "LEFT", "0"], out);
            self.to_move -= 1;
        }
    }
}

impl Talker for Worker {
    fn begin(&mut self, out: &mut Vec<u8>) {
        for _ in 0..WINDOW {
            self.take(out);
        }
    }

    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize> {
        let Some((text, used)) = line(bytes)? else {
            return Ok(0);
        };
        if text.starts_with(':') {
            self.to_remove -= 1;
            return Ok(used);
        }
        let length = text.strip_prefix('$');
        let length: usize = length
            .with_context(|| format!("Redis says {text}"))?
            .parse()?;
        let end = used + length;
        if bytes.len() < end + 2 {
            return Ok(0);
        }
        let job = std::str::from_utf8(&bytes[used..end])?;
        say(&["LREM", &self.own, "-1", job], out);
        self.take(out);
        Ok(end + 2)
    }

    fn is_over(&self) -> bool {
        self.to_remove == 0
    }
}
