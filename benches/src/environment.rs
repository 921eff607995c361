//! What a measurement is of: the machine, its disk, the programs. Part of every result, since figures without it say
//! nothing.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::thread;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::clock::Moment;
use crate::report::us;
use crate::system::System;

/// Writes whose sync is timed.
const SYNCS: u32 = 100;
/// Bytes of each: a page.
const SYNC_BYTES: usize = 4_096;

/// Where and of what.
#[derive(Clone, Debug)]
pub struct Environment {
    cores: usize,
    processor: String,
    kernel: String,
    memory_gib: f64,
    version: String,
    server: String,
    /// Median and 99th percentile of a page appended and synced, microseconds.
    sync_us: Option<(f64, f64)>,
    load: f64,
    debug: bool,
}

impl Environment {
    /// Of this machine and that system.
    pub fn of(system: &System) -> Result<Self> {
        let sync = system.dir().map(syncs).transpose()?;
        Ok(Self {
            version: system.version.clone(),
            server: if system.is_own() {
                "its own, on this machine".into()
            } else {
                format!("running at {}", system.http)
            },
            sync_us: sync.map(|times| (us(&times, 0.5), us(&times, 0.99))),
            ..Self::of_machine()
        })
    }

    /// Of this machine alone.
    pub fn of_machine() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
            .map_or("unknown processor", |(_, model)| model.trim());
        let first = |path: &str, at: usize| {
            let text = fs::read_to_string(path).unwrap_or_default();
            let word = text.split_whitespace().nth(at).unwrap_or_default();
            word.to_owned()
        };
        let memory: f64 = first("/proc/meminfo", 1).parse().unwrap_or(0.0);
        Self {
            cores: thread::available_parallelism().map_or(1, std::num::NonZero::get),
            processor: processor.to_owned(),
            kernel: first("/proc/sys/kernel/osrelease", 0),
            memory_gib: memory / f64::from(1 << 20),
            version: String::new(),
            server: String::new(),
            sync_us: None,
            load: first("/proc/loadavg", 0).parse().unwrap_or(0.0),
            debug: cfg!(debug_assertions),
        }
    }

    /// For people: names and values.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let mut rows = vec![
            (
                "machine",
                format!(
                    "{} cores, {}, {:.0} GiB, Linux {}",
                    self.cores, self.processor, self.memory_gib, self.kernel
                ),
            ),
            ("load before", format!("{:.1}", self.load)),
        ];
        if let Some((median, tail)) = self.sync_us {
            let text =
                format!("4 KiB appended and synced in {median:.0} µs (p50), {tail:.0} µs (p99)");
            rows.push(("disk", text));
        }
        if !self.version.is_empty() {
            rows.push(("hostler", self.version.clone()));
            rows.push(("server", self.server.clone()));
        }
        if self.debug {
            rows.push(("build", "debug: its times say little".into()));
        }
        rows
    }

    /// For programs.
    pub fn as_json(&self) -> Value {
        json!({
            "cores": self.cores,
            "processor": self.processor,
            "kernel": self.kernel,
            "memory_gib": self.memory_gib,
            "load_before": self.load,
            "sync_us": self.sync_us.map(|(p50, p99)| json!({"p50": p50, "p99": p99})),
            "hostler": self.version,
            "server": self.server,
            "debug_build": self.debug,
        })
    }
}

/// Appends pages to a file, each followed by its sync.
fn syncs(dir: &Path) -> Result<Histogram<u64>> {
    let path = dir.join("syncs");
    let mut file = OpenOptions::new().create(true).append(true).open(&path)?;
    let page = [b'x'; SYNC_BYTES];
    let mut times = Histogram::new(3)?;
    for _ in 0..SYNCS {
        let begun = Moment::now();
        file.write_all(&page)?;
        file.sync_data()?;
        times.record(u64::try_from(begun.elapsed().as_micros())?)?;
    }
    fs::remove_file(path)?;
    Ok(times)
}
