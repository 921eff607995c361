//! A start with a backlog: how long until a server that was killed with so many jobs queued dispatches again, beside
//! the time in which SQLite reads the same rows once; and what a queued job costs in memory.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::clock::{Moment, eventually};
use crate::http;
use crate::load::Load;
use crate::system::{Reaped, free_port};

/// Longest start that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Jobs a request.
const BATCH: u64 = 1_000;
/// What recovery wants of a row.
const SCAN: &str =
    "SELECT id, class, priority, due_ms, expires_ms, deadline_ms, engine FROM jobs ORDER BY id";

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Backlog {
    /// Jobs queued.
    pub jobs: u64,
    /// Filling it.
    pub fill: Duration,
    /// SQLite reading the table once.
    pub scan: Duration,
    /// From the start of the process until HTTP says ready.
    pub ready: Duration,
    /// Until dispatch answers with all jobs queued, after which it may assign them.
    pub dispatching: Duration,
    /// Of the server before the jobs came, and with all of them; bodies ahead of dispatch included.
    pub rss_before: u64,
    /// The same.
    pub rss_filled: u64,
    /// Of the server started again.
    pub rss_restarted: u64,
}

/// Fills, kills, reads, starts.
pub fn measure(binary: &Path, jobs: u64) -> Result<Backlog> {
    let place = Place::new(binary)?;
    let server = place.start()?;
    place.await_ready()?;
    let token = fs::read_to_string(place.dir.path().join("data/admin.token"))?;
    let token = token.trim();
    let rss_before = rss(&server)?;
    let begun = Moment::now();
    Load::noop(jobs, BATCH, 4).submit(place.http, Some(token))?;
    let fill = begun.elapsed();
    let rss_filled = rss(&server)?;
    // KILL: nothing is tidied up, as after a crash.
    drop(server);

    let database = place.dir.path().join("data/hostler.db");
    let scan = scan(&database, jobs)?;
    let begun = Moment::now();
    let server = place.start()?;
    place.await_ready()?;
    let ready = begun.elapsed();
    let stats = http::once(place.http, http::request("GET", "/stats", Some(token), b""))?;
    let dispatching = begun.elapsed();
    let stats: Value = serde_json::from_slice(&stats)?;
    ensure!(stats["queued"] == jobs, "not all jobs are back: {stats}");
    let rss_restarted = rss(&server)?;
    Ok(Backlog {
        jobs,
        fill,
        scan,
        ready,
        dispatching,
        rss_before,
        rss_filled,
        rss_restarted,
    })
}

impl Backlog {
    /// For people.
    pub fn as_line(&self) -> String {
        format!(
            "{} jobs queued in {:.1} s; read once by SQLite {:.0} ms; ready {:.0} ms, dispatching {:.0} ms = {:.2} × \
             that; memory a queued job {:.0} B, after the start {:.0} B",
            self.jobs,
            self.fill.as_secs_f64(),
            ms(self.scan),
            ms(self.ready),
            ms(self.dispatching),
            self.ratio(),
            self.bytes_per_job(self.rss_filled),
            self.bytes_per_job(self.rss_restarted),
        )
    }

    /// For programs.
    pub fn as_json(&self) -> Value {
        json!({
            "jobs": self.jobs,
            "fill_ms": ms(self.fill),
            "scan_ms": ms(self.scan),
            "ready_ms": ms(self.ready),
            "dispatching_ms": ms(self.dispatching),
            "ratio": self.ratio(),
            "bytes_per_job": self.bytes_per_job(self.rss_filled),
            "bytes_per_job_restarted": self.bytes_per_job(self.rss_restarted),
        })
    }

    fn ratio(&self) -> f64 {
        self.dispatching.as_secs_f64() / self.scan.as_secs_f64()
    }

    fn bytes_per_job(&self, rss: u64) -> f64 {
        rss.saturating_sub(self.rss_before) as f64 / self.jobs as f64
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// A data directory and its ports.
struct Place<'a> {
    binary: &'a Path,
    dir: TempDir,
    http: SocketAddr,
    workers: SocketAddr,
}

impl<'a> Place<'a> {
    fn new(binary: &'a Path) -> Result<Self> {
        Ok(Self {
            binary,
            dir: tempfile::Builder::new()
                .prefix("hostler-backlog-")
                .tempdir()?,
            http: free_port()?,
            workers: free_port()?,
        })
    }

    fn start(&self) -> Result<Killed> {
        let child = Command::new(self.binary)
            .args(["server", "--log-level", "warn", "--data-dir"])
            .arg(self.dir.path().join("data"))
            .args(["--listen", &self.http.to_string()])
            .args(["--worker-listen", &self.workers.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.dir.path().join("server.err"))?)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        Ok(Killed(Reaped(Some(child))))
    }

    fn await_ready(&self) -> Result<()> {
        let ask = http::request("GET", "/readyz", None, b"");
        let ready = eventually(PATIENCE, Duration::from_millis(1), || {
            http::once(self.http, ask.clone()).is_ok()
        });
        let said = || fs::read_to_string(self.dir.path().join("server.err")).unwrap_or_default();
        ensure!(ready, "the server did not become ready: {}", said());
        Ok(())
    }
}

/// A server that gets no time to tidy up.
struct Killed(Reaped);

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0.0 {
            drop(child.kill());
            drop(child.wait());
        }
        self.0.0 = None;
    }
}

fn rss(server: &Killed) -> Result<u64> {
    let child: &Child = server.0.0.as_ref().context("it was started")?;
    let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    Ok(kib.context("no VmRSS")?.trim().parse::<u64>()? << 10)
}

/// Steps over all rows, the wanted columns of each taken; with the cache as full as the server will find it.
fn scan(database: &Path, jobs: u64) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let begun = Moment::now();
        let db = Connection::open_with_flags(database, flags)?;
        let mut statement = db.prepare(SCAN)?;
        let mut rows = statement.query([])?;
        let (mut seen, mut sum) = (0, 0_i64);
        while let Some(row) = rows.next()? {
            seen += 1;
            for column in 0..6 {
                let value: Option<i64> = row.get(column)?;
                sum = sum.wrapping_add(value.unwrap_or(0));
            }
            let engine: Option<Vec<u8>> = row.get(6)?;
            sum = sum.wrapping_add(i64::from(engine.is_some()));
        }
        best = best.min(begun.elapsed());
        ensure!(seen == jobs && sum != 0, "{seen} rows of {jobs}");
    }
    Ok(best)
}
