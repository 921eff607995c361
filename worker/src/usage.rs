//! What a job's processes use right now, read from `/proc` for a probe.
//!
//! One walk over `/proc` answers for all process groups asked about. It is done when someone asks, never in between,
//! and costs about two system calls a process on the machine.
//!
//! A process that left the group (`setsid`) is not counted; a process that ends while we look is simply not there.

use std::collections::{HashMap, HashSet};

use rustix::param::{clock_ticks_per_second, page_size};

use crate::proc::{self, Stat};

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
    for pid in proc::all() {
        let Some(line) = Stat::of(pid) else {
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

#[cfg(test)]
mod tests {
    use super::*;

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
