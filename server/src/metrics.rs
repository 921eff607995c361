//! Counters, each with one writer, the server's health, and what its process uses; read by anyone at any time.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::param::clock_ticks_per_second;

/// A number that one thread writes and any may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the counter's own thread calls this, so a plain load and store will do.
    pub fn add(&self, n: u64) {
        self.0
            .store(self.0.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }

    /// Sets; only the counter's own thread calls this.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The present value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Commits of the database, so that others on its disk can step back for them. One thread commits.
#[derive(Debug, Default)]
pub struct Commits {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Commits {
    /// One begins, until what is returned is dropped.
    pub fn begin(&self) -> impl Drop {
        self.begun.fetch_add(1, Ordering::AcqRel);
        CommitEnds(&self.ended)
    }

    /// How many have begun.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// Whether that one has ended.
    pub fn has_ended(&self, number: u64) -> bool {
        self.ended.load(Ordering::Acquire) >= number
    }
}

struct CommitEnds<'a>(&'a AtomicU64);

impl Drop for CommitEnds<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }
}

/// Whether the server can do its work.
#[derive(Debug, Default)]
pub struct Health {
    ready: AtomicBool,
    stopping: AtomicBool,
    /// Why the store takes nothing at the moment. Locked for a string's copy only, and never by dispatch or wire.
    store: Mutex<Option<String>>,
}

impl Health {
    /// Recovery is done and the ports are open.
    pub fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    /// The server winds down.
    pub fn set_stopping(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// The store refuses commits for this reason, or takes them again.
    pub fn set_store(&self, trouble: Option<String>) {
        *self
            .store
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = trouble;
    }

    /// Whether it winds down.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// What keeps it from being ready, if anything does.
    pub fn trouble(&self) -> Option<String> {
        if self.is_stopping() {
            return Some("the server is stopping".into());
        }
        if !self.ready.load(Ordering::Acquire) {
            return Some("the server is starting".into());
        }
        self.store
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }
}

/// What this process uses, as far as the system tells.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time of all its threads.
    pub cpu_seconds: Option<f64>,
    /// Memory in use.
    pub resident_bytes: Option<f64>,
    /// Memory mapped.
    pub virtual_bytes: Option<f64>,
    /// Threads.
    pub threads: Option<f64>,
    /// Open descriptors.
    pub descriptors: Option<f64>,
    /// How many it may open.
    pub descriptors_max: Option<f64>,
    /// When it started, seconds since 1970.
    pub started_seconds: Option<f64>,
}

impl Usage {
    /// Of the process that asks.
    pub fn of_this_process() -> Self {
        let ticks_a_second = clock_ticks_per_second() as f64;
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let number = |text: Option<&str>| text?.parse::<f64>().ok();
        let line = |text: &str, name: &str, at: usize| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            number(line.split_whitespace().nth(at))
        };
        let stat = text("/proc/self/stat");
        // Behind the name, which may contain anything: the third field on.
        let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let field = |n: usize| number(fields.split(' ').nth(n - 3));
        let status = text("/proc/self/status");
        let kib = |name| Some(line(&status, name, 0)? * 1_024.0);
        let descriptors = fs::read_dir("/proc/self/fd").ok().map(Iterator::count);
        Self {
            cpu_seconds: field(14)
                .zip(field(15))
                .map(|(user, system)| (user + system) / ticks_a_second),
            resident_bytes: kib("VmRSS:"),
            virtual_bytes: kib("VmSize:"),
            threads: line(&status, "Threads:", 0),
            descriptors: descriptors.map(|count| count as f64),
            descriptors_max: line(&text("/proc/self/limits"), "Max open files", 0),
            started_seconds: line(&text("/proc/stat"), "btime", 0)
                .zip(field(22))
                .map(|(boot, ticks)| boot + ticks / ticks_a_second),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_knows_what_it_uses() {
        let usage = Usage::of_this_process();
        assert!(usage.resident_bytes.unwrap() > 1e5);
        assert!(usage.virtual_bytes.unwrap() >= usage.resident_bytes.unwrap());
        assert!(usage.threads.unwrap() >= 1.0);
        assert!(usage.descriptors.unwrap() >= 3.0);
        assert!(usage.descriptors_max.unwrap() >= usage.descriptors.unwrap());
        assert!(usage.cpu_seconds.unwrap() < 1e4);
        // Later than 2020.
        assert!(usage.started_seconds.unwrap() > 1.58e9);
    }
}
