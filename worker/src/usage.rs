//! What a job's processes use right now, read from `/proc` for a probe.
//!
//! One walk over `/proc` answers for all process groups asked about. It is done when someone asks, never in between,
//! and costs about two system calls a process on the machine.
//!
//! A process that left the group (`setsid`) is not counted; a process that ends while we look is simply not there.

use std::collections::{HashMap, HashSet};
use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};

/// Sums over one process group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupUsage {
    pub(crate) processes: u32,
    pub(crate) cpu_ms: u64,
    pub(crate) rss_bytes: u64,
}

/// What the given process groups use. Groups without a process are left out; zombies use nothing and do not count.
pub(crate) fn groups(wanted: &[u32]) -> HashMap<u32, GroupUsage> {
    let mut found = HashMap::new();
    let wanted: HashSet<u32> = wanted.iter().copied().collect();
    let Ok(entries) = fs::read_dir("/proc") else {
        return found;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !name
            .as_encoded_bytes()
            .first()
            .is_some_and(u8::is_ascii_digit)
        {
            continue;
        }
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else {
            continue;
        };
        let Some(line) = Stat::parse(&stat) else {
            continue;
        };
        if wanted.contains(&line.group) {
            let sum: &mut GroupUsage = found.entry(line.group).or_default();
            sum.cpu_ms += line.ticks * 1_000 / clock_ticks_per_second().max(1);
            if !line.zombie {
                sum.processes += 1;
                sum.rss_bytes += line.rss_pages * page_size() as u64;
            }
        }
    }
    found
}

/// The fields we want of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    zombie: bool,
    group: u32,
    /// User and kernel time, its own and that of the children it has reaped.
    ticks: u64,
    rss_pages: u64,
}

impl Stat {
    /// The name stands in parentheses and may hold any byte, so the fields are counted from the last one.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            zombie: matches!(*fields.first()?, "Z" | "X"),
            group: fields.get(2)?.parse().ok()?,
            ticks: number(11)? + number(12)? + number(13)? + number(14)?,
            rss_pages: number(21)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_shift_the_fields() {
        let line = "77 (a) b) S 1 70 70 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 99 1000 42 18446744073709551615";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(
            stat,
            Stat {
                zombie: false,
                group: 70,
                ticks: 26,
                rss_pages: 42
            }
        );
    }

    #[test]
    fn our_own_group_uses_memory() {
        let own = rustix::process::getpgrp()
            .as_raw_nonzero()
            .get()
            .unsigned_abs();
        let usage = groups(&[own])[&own];
        assert!(usage.processes >= 1);
        assert!(usage.rss_bytes > 0);
    }
}
