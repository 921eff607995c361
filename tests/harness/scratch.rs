//! A directory of one test's own, and the processes that live in it.
//!
//! Everything a test starts, the jobs of its workers included, has this directory as its working directory. So what
//! outlives its parent is found and ended by its id, and nobody else's process is.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A directory that goes with its test, together with the processes left in it.
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// A new one.
    pub fn new() -> Self {
        Self(
            tempfile::Builder::new()
                .prefix("hostler-e2e-")
                .tempdir()
                .unwrap(),
        )
    }

    /// Where it is, without symbolic links.
    pub fn path(&self) -> PathBuf {
        self.0.path().canonicalize().unwrap()
    }

    /// A file or directory in it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// Living processes whose working directory is in it, with their command lines.
    pub fn processes(&self) -> Vec<(Pid, String)> {
        let dir = self.path();
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| {
                let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
                // A process that ends meanwhile, or a stranger's, has no directory we could read.
                let cwd = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
                let ours = u32::try_from(pid) != Ok(std::process::id()) && cwd.starts_with(&dir);
                let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                ours.then(|| (Pid::from_raw(pid).unwrap(), command))
            })
            .collect()
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A loop, because a shell may start one more child while it is being ended.
        for _ in 0..5 {
            for (pid, _command) in self.processes() {
                kill_process(pid, Signal::KILL).ok();
            }
        }
    }
}

/// Whether this process lives; one that has ended and waits for its parent does not.
pub fn alive(pid: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) else {
        return false;
    };
    // "pid (name) state …", where the name may hold spaces and brackets.
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// A port nobody listens on, outside the range from which the kernel gives ports to outgoing connections: a server
/// that is restarted finds it free again, and a worker that knocks meanwhile cannot connect to itself.
pub fn free_port() -> u16 {
    loop {
        let mut random = [0; 2];
        getrandom::fill(&mut random).unwrap();
        let port = 20_000 + u16::from_le_bytes(random) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
