//! What `/proc` says of processes, and signals that cannot reach the wrong one.
//!
//! A number alone names no process for long: it is given out again. So whoever remembers a process remembers its
//! start time too, and [`signal`] compares that on a pidfd it holds before it sends anything.
//!
//! A process that ends while we look is simply not there. Not here: whose a process is (`kin`, `orphans`).

use std::fs::{self, File};
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

/// The fields we want of `/proc/PID/stat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) zombie: bool,
    pub(crate) parent: u32,
    pub(crate) group: u32,
    /// User and kernel time, its own and that of the children it has reaped.
    pub(crate) ticks: u64,
    /// When it started, in ticks since the machine did.
    pub(crate) started: u64,
    pub(crate) rss_pages: u64,
}

impl Stat {
    pub(crate) fn of(pid: u32) -> Option<Self> {
        // The name in it may hold any byte.
        let line = fs::read(format!("/proc/{pid}/stat")).ok()?;
        Self::parse(&String::from_utf8_lossy(&line))
    }

    /// The name stands in parentheses and may hold any byte, so the fields are counted from the last one.
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        Some(Self {
            zombie: matches!(*fields.first()?, "Z" | "X"),
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            ticks: number(11)? + number(12)? + number(13)? + number(14)?,
            started: number(19)?,
            rss_pages: number(21)?,
        })
    }
}

/// Whether there are descriptors to look with: without any, everybody would seem to be gone.
pub(crate) fn can_look() -> bool {
    // A directory, and a file while that is read.
    let spare = || File::open("/proc/self/stat");
    spare().and_then(|_first| spare()).is_ok()
}

/// Every process of the machine that we can see. None if `/proc` is not there, or is that of another namespace, where
/// the numbers are others.
pub(crate) fn all() -> Vec<u32> {
    let own = std::process::id().to_string();
    if fs::read_link("/proc/self").is_ok_and(|it| it.as_os_str() != own.as_str()) {
        return Vec::new();
    }
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.collect()
}

/// Every descendant of a process, each after its parent.
pub(crate) fn below(pid: u32) -> Vec<u32> {
    let mut found = children(pid);
    let mut next = 0;
    while let Some(&pid) = found.get(next) {
        found.extend(children(pid));
        next += 1;
    }
    found
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let of_thread = |thread: fs::DirEntry| fs::read_to_string(thread.path().join("children")).ok();
    let lists = threads.flatten().filter_map(of_thread);
    lists.flat_map(|list| numbers(&list)).collect()
}

/// The numbers in a file such as `/proc/PID/task/TID/children`.
pub(crate) fn numbers(list: &str) -> Vec<u32> {
    list.split_ascii_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect()
}

/// The variables it was started with, each ended by a NUL. Empty while it is being started, and if we may not know.
pub(crate) fn environment(pid: u32) -> Vec<u8> {
    fs::read(format!("/proc/{pid}/environ")).unwrap_or_default()
}

/// Signals the process that has this number and started then; false if there is none, or it is beyond us.
pub(crate) fn signal(pid: u32, started: u64, signal: Signal) -> bool {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    let is_it = || Stat::of(pid).is_some_and(|stat| stat.started == started);
    let sent = match rustix::process::pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) if is_it() => rustix::process::pidfd_send_signal(pidfd.as_fd(), signal),
        // No descriptor to spare: then the look just before has to do.
        Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM) if is_it() => {
            rustix::process::kill_process(number, signal)
        }
        Ok(_) | Err(_) => return false,
    };
    if let Err(error) = sent {
        tracing::debug!(pid, %error, "signal not delivered");
    }
    sent.is_ok()
}

/// Signals the group of a child that is not reaped: the number is still its own.
pub(crate) fn signal_group(leader: Pid, signal: Signal) {
    if let Err(error) = rustix::process::kill_process_group(leader, signal) {
        // A program that changed its user is beyond us; that nobody is left to hear is no error.
        tracing::debug!(group = %leader, %error, "signal not delivered");
    }
}

/// A process's number as `/proc` has it.
pub(crate) fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    #[test]
    fn a_process_name_cannot_shift_the_fields() {
        let line = "77 (a) b) S 1 70 70 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 99 1000 42 18446744073709551615";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(
            stat,
            Stat {
                zombie: false,
                parent: 1,
                group: 70,
                ticks: 26,
                started: 99,
                rss_pages: 42
            }
        );
    }

    fn sleeper() -> Child {
        Command::new("sleep")
            .arg("60")
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    #[test]
    fn a_process_that_merely_has_the_number_is_not_signalled() {
        let mut child = sleeper();
        let started = Stat::of(child.id()).unwrap().started;
        assert!(!signal(child.id(), started + 1, Signal::KILL));
        assert!(!signal(child.id(), started - 1, Signal::KILL));
        assert!(child.try_wait().unwrap().is_none(), "it lives");
        assert!(signal(child.id(), started, Signal::KILL));
        child.wait().unwrap();
        assert!(!signal(child.id(), started, Signal::KILL));
        assert!(!signal(0, 0, Signal::KILL), "nor is everything at once");
    }

    #[test]
    fn descendants_come_after_their_parents() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & (sleep 60 & wait) & read line; kill -9 0"])
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let shell_pid = shell.id();
        let found = loop {
            let found = below(shell_pid);
            if found.len() == 3 {
                break found;
            }
            std::thread::yield_now();
        };
        let parents: Vec<u32> = found
            .iter()
            .map(|&pid| Stat::of(pid).unwrap().parent)
            .collect();
        for (at, parent) in parents.iter().enumerate() {
            assert!(
                *parent == shell_pid || found[..at].contains(parent),
                "{found:?} of {parents:?}"
            );
        }
        assert!(below(std::process::id()).contains(&shell_pid));
        drop(shell.stdin.take());
        shell.wait().unwrap();
    }
}
