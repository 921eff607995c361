//! Whether the kernel killed a job for want of memory: what its control group counts.
//!
//! A process that is out of memory gets the same signal 9 as one that somebody killed. But the kernel counts its own
//! kills for each control group, and jobs are in the worker's: `oom_kill` in `memory.events` (version 2) or
//! `memory.oom_control` (version 1). So a main process that died of a KILL we did not send, while that count grew, was
//! out of memory; each count explains one death. If there is no such file it stays `signal` 9. One read of the file a
//! job.
//!
//! The count is of the whole worker: if one job is out of memory and somebody kills another one in the same moment,
//! whichever ends first is taken to be the one.

use std::fs::{self, File};
use std::path::PathBuf;

use crate::cgroup::directory;

/// The count of our control group.
#[derive(Debug)]
pub(crate) struct OomKills {
    file: Option<File>,
    /// So many of them are explained.
    claimed: u64,
}

impl OomKills {
    /// Finds the count, if there is one.
    pub(crate) fn find() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let file = files(&groups, &mounts)
            .into_iter()
            .find_map(|path| File::open(path).ok());
        let mut kills = Self { file, claimed: 0 };
        kills.claimed = kills.count();
        kills
    }

    /// How often the kernel has killed, as far as it tells.
    pub(crate) fn count(&self) -> u64 {
        let mut text = [0; 1_024];
        let read = self
            .file
            .as_ref()
            .map(|file| rustix::io::pread(file, &mut text, 0));
        match read {
            Some(Ok(n)) => parse(&String::from_utf8_lossy(&text[..n])),
            Some(Err(_)) | None => 0,
        }
    }

    /// Whether one of the kernel's kills explains the death of what was started when it had counted `before`.
    pub(crate) fn claim(&mut self, before: u64) -> bool {
        let explained = self.claimed.max(before);
        let claimed = self.count() > explained;
        self.claimed = explained + u64::from(claimed);
        claimed
    }
}

fn parse(text: &str) -> u64 {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Where the count may be, version 2 first.
fn files(groups: &str, mounts: &str) -> Vec<PathBuf> {
    let find = |kind: &str, controller: &str, file: &str| {
        Some(directory(groups, mounts, kind, controller)?.join(file))
    };
    let version_2 = find("cgroup2", "", "memory.events");
    let version_1 = find("cgroup", "memory", "memory.oom_control");
    version_2.into_iter().chain(version_1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_our_own_group_is_found_in_both_versions() {
        let found = |groups, mounts| {
            let paths = files(groups, mounts);
            paths
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            found(
                "0::/system.slice/hostler.service\n",
                "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
            ),
            ["/sys/fs/cgroup/system.slice/hostler.service/memory.events"]
        );
        let mounts = "31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            32 30 0:28 /docker/1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            found("4:memory:/docker/1/job\n1:cpu,cpuacct:/x\n0::/\n", mounts),
            [
                "/sys/fs/cgroup/unified/memory.events",
                "/sys/fs/cgroup/memory/job/memory.oom_control"
            ]
        );
        assert!(found("", "").is_empty());
    }

    #[test]
    fn each_kill_of_the_kernel_explains_one_death_and_no_earlier_one_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory.events");
        let counts = |n: u64| fs::write(&path, format!("low 0\noom 9\noom_kill {n}\n")).unwrap();
        counts(5);
        let mut kills = OomKills {
            file: Some(File::open(&path).unwrap()),
            claimed: 5,
        };
        let before = kills.count();
        assert_eq!(before, 5);
        assert!(!kills.claim(before));
        counts(7);
        // Somebody else's death, before this one started.
        let later = kills.count();
        assert!(!kills.claim(later));
        counts(9);
        assert!(kills.claim(later));
        assert!(kills.claim(later));
        assert!(!kills.claim(later));
        let mut unknown = OomKills {
            file: None,
            claimed: 0,
        };
        assert!(!unknown.claim(unknown.count()));
    }
}
