//! A server with one worker, from the `hostler` binary, in a directory of its own, on free loopback ports. All of it
//! ends with its value.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rusqlite::{Connection, OpenFlags};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::clock::eventually;
use crate::http;

/// How long a start or an orderly stop may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long all jobs may take to end after the last was accepted.
const END_PATIENCE: Duration = Duration::from_secs(600);

/// A running system.
#[derive(Debug)]
pub struct System {
    server: Child,
    worker: Child,
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// The administrator's token.
    pub token: String,
    dir: TempDir,
}

/// What the database says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Jobs accepted.
    pub jobs: u64,
    /// Jobs that succeeded.
    pub succeeded: u64,
}

/// The binary: `HOSTLER_BIN`, else beside this program.
pub fn find_binary(said: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(path) = said {
        ensure!(path.is_file(), "HOSTLER_BIN={} is no file", path.display());
        return Ok(path);
    }
    let here = std::env::current_exe()?;
    for dir in here.ancestors().skip(1).take(2) {
        let path = dir.join("hostler");
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "no hostler binary beside {}; cargo build --release -p hostler-cli",
        here.display()
    )
}

impl System {
    /// Starts one; ready and with its worker when this returns.
    pub fn start(binary: &Path, slots: u32) -> Result<Self> {
        Self::start_with(binary, slots, "warn")
    }

    /// The same, and its traces have each step of a job, for [`steps`](Self::steps).
    pub fn start_traced(binary: &Path, slots: u32) -> Result<Self> {
        Self::start_with(binary, slots, "trace")
    }

    fn start_with(binary: &Path, slots: u32, level: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("hostler-bench-")
            .tempdir()?;
        let data = dir.path().join("data");
        let (http, workers) = (free_port()?, free_port()?);
        let trace = |name: &str| File::create(dir.path().join(name));
        let server = Command::new(binary)
            .args(["server", "--log-level", level, "--data-dir"])
            .arg(&data)
            .args([
                "--listen",
                &http.to_string(),
                "--worker-listen",
                &workers.to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(trace("server.err")?)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        // From here on a failure must not leave the server behind.
        let mut server = Reaped(Some(server));
        let ready = http::request("GET", "/readyz", None, b"");
        let is_ready = eventually(PATIENCE, Duration::from_millis(10), || {
            http::once(http, ready.clone()).is_ok()
        });
        let said = || fs::read_to_string(dir.path().join("server.err")).unwrap_or_default();
        ensure!(is_ready, "the server did not become ready: {}", said());
        let token = fs::read_to_string(data.join("admin.token"))?
            .trim()
            .to_owned();
        let worker = Command::new(binary)
            .args([
                "worker",
                "--log-level",
                level,
                "--name",
                "bench",
                "--token-file",
            ])
            .arg(data.join("worker.token"))
            .args([
                "--server",
                &workers.to_string(),
                "--slots",
                &slots.to_string(),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(trace("worker.err")?)
            .spawn()?;
        let system = Self {
            server: server.0.take().expect("it was put there above"),
            worker,
            http,
            token,
            dir,
        };
        let there = eventually(PATIENCE, Duration::from_millis(10), || {
            system
                .stats()
                .is_ok_and(|stats| stats["workers"].as_u64() > Some(0))
        });
        ensure!(there, "the worker did not connect");
        Ok(system)
    }

    /// Where its files are: for references on the same disk.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What server and worker traced of jobs: each step with the job and the time of day, in µs.
    pub fn steps(&self) -> Result<HashMap<(&'static str, u64), u64>> {
        let mut steps = HashMap::new();
        for (name, step) in [("server.err", "assigned"), ("worker.err", "starting")] {
            let sought = format!("\"message\":\"{step}\"");
            let text = fs::read_to_string(self.dir.path().join(name))?;
            for line in text.lines().filter(|line| line.contains(&sought)) {
                let line: serde_json::Value = serde_json::from_str(line)?;
                let at = line["timestamp"].as_str().and_then(time_of_day_us);
                if let (Some(job), Some(at)) = (line["job"].as_u64(), at) {
                    steps.insert((step, job), at);
                }
            }
        }
        Ok(steps)
    }

    /// A request with the token.
    pub fn request(&self, method: &str, path: &str, json: &[u8]) -> Vec<u8> {
        http::request(method, path, Some(&self.token), json)
    }

    /// `GET /stats`.
    pub fn stats(&self) -> Result<serde_json::Value> {
        let body = http::once(self.http, self.request("GET", "/stats", b""))?;
        Ok(serde_json::from_slice(&body)?)
    }

    /// Waits until no job is under way.
    pub fn all_ended(&self) -> Result<()> {
        ended(self.http, Some(&self.token))
    }

    /// CPU time of the server so far.
    pub fn server_cpu(&self) -> Result<Duration> {
        cpu_of(self.server.id())
    }

    /// The most memory that server and worker have taken.
    pub fn peak_memory_mib(&self) -> Result<[f64; 2]> {
        Ok([peak_mib(self.server.id())?, peak_mib(self.worker.id())?])
    }

    /// What the database says, after a check of its integrity.
    pub fn counts(&self) -> Result<Counts> {
        counts(&self.dir.path().join("data/hostler.db"))
    }
}

impl Drop for System {
    fn drop(&mut self) {
        for child in [&mut self.worker, &mut self.server] {
            end(child);
        }
    }
}

/// A process that is not left behind.
pub(crate) struct Reaped(pub(crate) Option<Child>);

impl Drop for Reaped {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            end(child);
        }
    }
}

/// TERM, and KILL if that does not do it.
fn end(child: &mut Child) {
    let (Ok(()) | Err(_)) = kill_process(Pid::from_child(child), Signal::TERM);
    let ended = eventually(PATIENCE, Duration::from_millis(5), || {
        !matches!(child.try_wait(), Ok(None))
    });
    if !ended {
        drop(child.kill());
        drop(child.wait());
    }
}

/// Waits until the server at this address has no job under way.
pub fn ended(http: SocketAddr, token: Option<&str>) -> Result<()> {
    let ask = http::request("GET", "/stats", token, b"");
    let mut failure = None;
    let ended = eventually(END_PATIENCE, Duration::from_millis(5), || {
        let live = http::once(http, ask.clone()).and_then(|body| live_jobs(&body));
        match live {
            Ok(live) => live == 0,
            Err(error) => {
                failure = Some(error);
                true
            }
        }
    });
    if let Some(error) = failure {
        return Err(error.context("the server stopped answering"));
    }
    ensure!(ended, "jobs have not ended after {END_PATIENCE:?}");
    Ok(())
}

fn live_jobs(body: &[u8]) -> Result<u64> {
    let stats: serde_json::Value = serde_json::from_slice(body)?;
    ["scheduled", "queued", "running", "cancelling"]
        .iter()
        .map(|state| {
            stats[state]
                .as_u64()
                .with_context(|| format!("no {state} in {stats}"))
        })
        .sum()
}

/// Counts of a database, after a check of its integrity.
pub fn counts(database: &Path) -> Result<Counts> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(database, flags)
        .with_context(|| format!("cannot open {}", database.display()))?;
    let integrity: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(integrity == "ok", "the database is damaged: {integrity}");
    let number = |sql: &str| -> Result<u64> {
        let number: i64 = db.query_row(sql, [], |row| row.get(0))?;
        Ok(u64::try_from(number)?)
    };
    Ok(Counts {
        jobs: number("SELECT count(*) FROM job")?,
        succeeded: number("SELECT count(*) FROM job WHERE state = 'succeeded'")?,
    })
}

/// The time of day, in µs, of `2026-01-31T12:34:56.123456Z`.
fn time_of_day_us(timestamp: &str) -> Option<u64> {
    let time = timestamp.split_once('T')?.1.trim_end_matches('Z');
    let (seconds, fraction) = time.split_once('.')?;
    let seconds = seconds
        .split(':')
        .try_fold(0, |sum, part| Some(sum * 60 + part.parse::<u64>().ok()?))?;
    Some(seconds * 1_000_000 + fraction.parse::<u64>().ok()?)
}

/// CPU time of a process: its living threads, to the nanosecond.
fn cpu_of(pid: u32) -> Result<Duration> {
    let mut ns = 0u64;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        let first = text.split(' ').next().and_then(|word| word.parse().ok());
        ns += first.unwrap_or(0u64);
    }
    Ok(Duration::from_nanos(ns))
}

fn peak_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().split(' ').next());
    let kib: u32 = kib.context("a process without VmHWM")?.parse()?;
    Ok(f64::from(kib) / 1_024.0)
}

pub(crate) fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
