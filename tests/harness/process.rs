//! One process of ours. It is signalled by its id, its end is awaited with a deadline, and its words lie in files, so
//! that no pipe fills up and a failed test can show them.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{env, thread};

use rustix::process::{Pid, Signal, kill_process};

use crate::binary::find_binary;
use crate::clock::wait_for;
use crate::scratch::Scratch;

/// A running `hostler`.
#[derive(Debug)]
pub struct Process {
    child: Child,
    what: String,
    stdout: PathBuf,
    stderr: PathBuf,
    ended: Option<ExitStatus>,
}

/// How it ended and what it said.
#[derive(Clone, Debug)]
pub struct Finished {
    /// As the shell shows it: its exit code, or 128 + signal.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

static STARTED: AtomicU32 = AtomicU32::new(0);

impl Process {
    /// Starts `hostler ARGS` in the test's directory, with nothing of our own environment but the search path.
    pub fn hostler(scratch: &Scratch, args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::with_stdin(scratch, args, env, Stdio::null())
    }

    /// The same with something to read.
    pub fn with_stdin(
        scratch: &Scratch,
        args: &[&str],
        env: &[(&str, &str)],
        stdin: impl Into<Stdio>,
    ) -> Self {
        Self::of(&find_binary(), scratch, args, env, stdin)
    }

    /// The same of another build.
    pub fn of(
        binary: &Path,
        scratch: &Scratch,
        args: &[&str],
        env: &[(&str, &str)],
        stdin: impl Into<Stdio>,
    ) -> Self {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let what = format!("hostler {}", args.join(" "));
        let stdout = scratch.join(format!("process-{number}.out"));
        let stderr = scratch.join(format!("process-{number}.err"));
        let mut command = Command::new(binary);
        command
            .args(args)
            .current_dir(scratch.path())
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap())
            .env("HOME", scratch.path())
            .env("TZ", "UTC")
            .envs(env.iter().copied())
            .stdin(stdin)
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap());
        let child = command.spawn().unwrap();
        Self {
            child,
            what,
            stdout,
            stderr,
            ended: None,
        }
    }

    /// Its id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// The same, byte for byte.
    pub fn stdout_bytes(&self) -> Vec<u8> {
        fs::read(&self.stdout).unwrap_or_default()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// A number of `/proc/PID/status`, in KiB: `VmRSS`, `VmHWM` (the most it ever was).
    #[track_caller]
    pub fn memory_kib(&self, what: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(what));
        let number = line.and_then(|rest| rest.split_whitespace().nth(1));
        number.unwrap().parse().unwrap()
    }

    /// From here on `VmHWM` counts anew.
    #[track_caller]
    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").unwrap();
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended.is_none()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            kill_process(self.pid(), signal).unwrap();
        }
    }

    /// kill -9, and it is gone when this returns.
    pub fn kill(&mut self) {
        if self.runs() {
            self.signal(Signal::KILL);
            self.ended = Some(self.child.wait().unwrap());
        }
    }

    /// Stops it in its tracks, without its knowing.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to stop and waits for its end.
    #[track_caller]
    pub fn terminate(&mut self, within: Duration) -> Finished {
        self.signal(Signal::TERM);
        self.wait(within)
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> Finished {
        let what = format!("the end of `{}`", self.what);
        let status = wait_for(within, what, || {
            self.runs();
            self.ended
        });
        Finished {
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap()),
            stdout: self.stdout(),
            stderr: self.stderr(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.runs() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        if thread::panicking() {
            let said = self.stderr();
            let tail: Vec<&str> = said.lines().rev().take(30).collect();
            eprintln!("--- the last words of `{}` ({:?})", self.what, self.ended);
            for line in tail.iter().rev() {
                eprintln!("    {line}");
            }
        }
    }
}

fn read_lossy(path: &PathBuf) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

impl Finished {
    /// The same, if the exit code is this one.
    ///
    /// # Panics
    /// If it is another, with what the process said.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "exit code\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout, self.stderr
        );
        self
    }

    /// Its standard output as one JSON value.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}\n--- stdout\n{}", self.stdout))
    }
}
