//! Starting a process.
//!
//! `std::process::Command` without any code between fork and exec, so that the fast path of the system is taken
//! whatever the worker's size (`pre_exec` or a search of `PATH` by std would fork: measured at 1 GiB, 31 starts a
//! second against 1,780). Hence the program is looked up here.
//!
//! Where something must be done in the new process first, another program stands between (`shim`).
//!
//! The child leads a process group of its own, sees a short list of the worker's variables, the job's own and five of
//! ours, and inherits three file descriptors, whatever the worker itself has inherited. The worker's token is in neither.
//!
//! Not here: a process that runs (`child`), what a failure to start means (`session`).

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};

use hostler_wire::Fence;
use hostler_wire::frame::Command;
use rustix::fs::{Access, Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::cgroup::{Group, Groups};
use crate::kin::{Marks, Origin};
use crate::proc::signal_group;
use crate::shim::{ARGUMENT, ResourceLimit, as_argument};

/// What a job sees of the worker's own environment, beside what its person adds.
const PASSED_ON: [&str; 8] = [
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR",
];
/// And whatever begins with this.
const PASSED_ON_PREFIX: &str = "LC_";
/// Nothing that begins with this: the worker's settings and its token.
const KEPT_PREFIX: &str = "HOSTLER_";
/// Where programs are looked for if nobody says.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Starts processes.
#[derive(Debug)]
pub(crate) struct Spawner {
    environment: Vec<(OsString, OsString)>,
    worker: String,
    /// What its processes say of where they come from.
    pub(crate) origin: Origin,
    /// Where a command may tell its progress.
    progress: Option<PathBuf>,
    /// The program to be started instead, if something is to be done first.
    shim: Option<PathBuf>,
    limits: Vec<ResourceLimit>,
    pub(crate) groups: Option<Groups>,
}

/// A process that has just been started. Its descriptors do not block.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) marks: Marks,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) group: Option<Group>,
    /// Where it says why it could not become the job's program, if something stood between.
    pub(crate) failure: Option<OwnedFd>,
}

/// Why a process could not be started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SpawnError {
    /// Trying again here is pointless.
    Failed { errno: i32, message: String },
    /// The system has no room for it right now.
    NoRoom { message: String },
}

impl Spawner {
    pub(crate) fn new(worker: String) -> Self {
        keep_descriptors();
        let passed = |name: &str| PASSED_ON.contains(&name) || name.starts_with(PASSED_ON_PREFIX);
        Self {
            environment: variables(passed),
            worker,
            origin: Origin::default(),
            progress: None,
            shim: None,
            limits: Vec::new(),
            groups: None,
        }
    }

    /// The same, and jobs see these variables of the worker too.
    pub(crate) fn with_environment(mut self, names: &[String]) -> Self {
        let added = variables(|name| names.iter().any(|added| added == name));
        self.environment.extend(added);
        self
    }

    /// The same, with something to be done in each new process: `shim` does it.
    pub(crate) fn with_shim(
        self,
        shim: Option<PathBuf>,
        limits: Vec<ResourceLimit>,
        groups: Option<Groups>,
    ) -> Self {
        Self {
            shim: shim.filter(|_| groups.is_some() || !limits.is_empty()),
            limits,
            groups,
            ..self
        }
    }

    /// The same, and commands are told where to tell their progress.
    pub(crate) fn with_progress(self, path: Option<PathBuf>) -> Self {
        Self {
            progress: path,
            ..self
        }
    }

    /// Starts it; with `output`, what it prints comes back through two pipes, else it goes to `/dev/null`.
    pub(crate) fn spawn(
        &mut self,
        fence: Fence,
        command: &Command,
        output: bool,
    ) -> Result<Spawned, SpawnError> {
        refuse_unsayable(command)?;
        let cwd = command.cwd.as_deref().map(Path::new);
        cwd.map_or(Ok(()), check_directory)?;
        let [name, arguments @ ..] = &*command.argv else {
            return Err(SpawnError::failed(libc::EINVAL, "the command is empty"));
        };
        let program = self.find(name, command, cwd)?;
        let group = match &mut self.groups {
            Some(groups) => Some(groups.make(fence).map_err(no_room)?),
            None => None,
        };
        let spawned = self.spawn_in(fence, command, (&program, name, arguments), output, &group);
        match spawned {
            Ok(spawned) => Ok(Spawned { group, ..spawned }),
            Err(error) => {
                if let (Some(groups), Some(group)) = (&mut self.groups, group) {
                    groups.bury(group);
                }
                Err(error)
            }
        }
    }

    fn spawn_in(
        &self,
        fence: Fence,
        command: &Command,
        (program, name, arguments): (&Path, &String, &[String]),
        output: bool,
        group: &Option<Group>,
    ) -> Result<Spawned, SpawnError> {
        let cwd = command.cwd.as_deref().map(Path::new);
        let piped = || {
            if output {
                Stdio::piped()
            } else {
                Stdio::null()
            }
        };
        let stdin = if command.stdin.is_some() {
            Stdio::piped()
        } else {
            Stdio::null()
        };
        // A pipe whose one end the new process inherits, and nobody else.
        let failure = match &self.shim {
            Some(_) => Some(
                pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
                    .map_err(|error| SpawnError::from_io(&error.into(), program))?,
            ),
            None => None,
        };
        let mut child = match (&self.shim, &failure) {
            (Some(shim), Some((_, theirs))) => {
                rustix::io::fcntl_setfd(theirs, FdFlags::empty())
                    .map_err(|error| SpawnError::from_io(&error.into(), program))?;
                let mut child = std::process::Command::new(shim);
                child.arg(ARGUMENT).arg(theirs.as_raw_fd().to_string());
                child.arg(
                    group
                        .as_ref()
                        .map_or(OsStr::new(""), |it| it.path().as_os_str()),
                );
                child.arg(as_argument(&self.limits)).arg(program).arg(name);
                child
            }
            _ => {
                let mut child = std::process::Command::new(program);
                child.arg0(name);
                child
            }
        };
        child.args(arguments).process_group(0);
        child.stdin(stdin).stdout(piped()).stderr(piped());
        child
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        child.envs(command.env.iter().map(|(name, value)| (name, value)));
        let marks = Marks::new(fence, self.origin);
        child.envs(marks.variables());
        child.env("HOSTLER_ATTEMPT", fence.attempt.to_string());
        child.env("HOSTLER_WORKER", &self.worker);
        match &self.progress {
            Some(path) => child.env("HOSTLER_PROGRESS", path),
            None => child.env_remove("HOSTLER_PROGRESS"),
        };
        if let Some(cwd) = cwd {
            child.current_dir(cwd);
        }

        // A descriptor put aside for the pidfd: having none left is to be noticed before there is a process.
        let spare = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| SpawnError::from_io(&error.into(), program))?;
        let mut child = child
            .spawn()
            .map_err(|error| SpawnError::from_io(&error, program))?;
        drop(spare);
        let pid = Pid::from_child(&child);
        let parts = |child: &mut std::process::Child| -> io::Result<Spawned> {
            let spawned = Spawned {
                pid,
                pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty())?,
                marks,
                stdin: child.stdin.take(),
                stdout: child.stdout.take().map(OwnedFd::from),
                stderr: child.stderr.take().map(OwnedFd::from),
                group: None,
                failure: failure.map(|(ours, _)| ours),
            };
            let pipes = [&spawned.stdout, &spawned.stderr];
            let pipes = pipes.into_iter().flatten().map(AsFd::as_fd);
            for pipe in pipes.chain(spawned.stdin.as_ref().map(AsFd::as_fd)) {
                rustix::io::ioctl_fionbio(pipe, true)?;
            }
            Ok(spawned)
        };
        parts(&mut child).map_err(|error| {
            // It runs, but we could not look after it: it must not.
            signal_group(pid, Signal::KILL);
            drop(child.wait());
            SpawnError::NoRoom {
                message: format!("cannot watch {}: {error}", program.display()),
            }
        })
    }

    /// The file to execute. A name with a slash is taken as it is; others are looked for in the job's `PATH`, or else
    /// in the worker's.
    fn find(
        &self,
        name: &str,
        command: &Command,
        cwd: Option<&Path>,
    ) -> Result<PathBuf, SpawnError> {
        if name.contains('/') {
            return Ok(PathBuf::from(name));
        }
        let of_job = command
            .env
            .iter()
            .rev()
            .find(|(n, _)| n == "PATH")
            .map(|(_, v)| OsStr::new(v));
        let of_worker = self
            .environment
            .iter()
            .find(|(n, _)| n == "PATH")
            .map(|(_, v)| v.as_os_str());
        let path = of_job.or(of_worker).unwrap_or(OsStr::new(DEFAULT_PATH));
        let mut forbidden = None;
        for directory in std::env::split_paths(path) {
            // An empty entry means the working directory, which is the job's.
            let base = if directory.is_absolute() {
                PathBuf::new()
            } else {
                cwd.unwrap_or(Path::new(".")).into()
            };
            let file = base.join(directory).join(name);
            if !file.is_file() {
                continue;
            }
            if rustix::fs::access(&file, Access::EXEC_OK).is_ok() {
                return std::path::absolute(file)
                    .map_err(|error| SpawnError::from_io(&error, Path::new(name)));
            }
            forbidden.get_or_insert(file);
        }
        Err(match forbidden {
            Some(file) => SpawnError::failed(
                libc::EACCES,
                format!("{} is not executable", file.display()),
            ),
            None => SpawnError::failed(
                libc::ENOENT,
                format!("program {name:?} not found in PATH ({})", path.display()),
            ),
        })
    }
}

impl SpawnError {
    fn failed(errno: i32, message: impl Into<String>) -> Self {
        Self::Failed {
            errno,
            message: message.into(),
        }
    }

    fn from_io(error: &io::Error, program: &Path) -> Self {
        let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
        let message = format!("cannot start {}: {error}", program.display());
        match Errno::from_raw_os_error(errno) {
            Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE => Self::NoRoom { message },
            _ => Self::Failed { errno, message },
        }
    }
}

/// Variables of ours whose names are wanted; never one that is ours alone.
fn variables(wanted: impl Fn(&str) -> bool) -> Vec<(OsString, OsString)> {
    std::env::vars_os()
        .filter(|(name, _)| {
            let name = name.to_str();
            name.is_some_and(|name| wanted(name) && !is_kept(name))
        })
        .collect()
}

/// Whether a variable is the worker's own: no job may see it.
pub(crate) fn is_kept(name: &str) -> bool {
    name.starts_with(KEPT_PREFIX)
}

fn no_room(error: io::Error) -> SpawnError {
    SpawnError::NoRoom {
        message: format!("no control group for it: {error}"),
    }
}

/// Whoever started the worker may have left descriptors open to it: a lock, a listener. They are not for its jobs, which
/// would hold them for as long as they live. Ours close themselves at each exec anyway.
#[expect(unsafe_code, reason = "no crate of ours wraps close_range")]
fn keep_descriptors() {
    let flags = libc::c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).expect("a small flag");
    // SAFETY: with this flag close_range closes nothing; it only marks descriptors to be closed by a later exec.
    let marked = unsafe { libc::close_range(3, libc::c_uint::MAX, flags) };
    if marked != 0 {
        let error = io::Error::last_os_error();
        tracing::warn!(%error, "descriptors the worker has inherited are passed on to its jobs");
    }
}

/// What the system cannot say is refused by name, not cut short or passed on as something else.
fn refuse_unsayable(command: &Command) -> Result<(), SpawnError> {
    let invalid = |message: String| Err(SpawnError::failed(libc::EINVAL, message));
    if let Some(at) = command
        .argv
        .iter()
        .position(|argument| argument.contains('\0'))
    {
        return invalid(format!("argument {at} contains a NUL byte"));
    }
    if command.cwd.as_deref().is_some_and(|cwd| cwd.contains('\0')) {
        return invalid("the working directory contains a NUL byte".to_owned());
    }
    for (name, value) in &command.env {
        if name.is_empty() || name.contains(['\0', '=']) {
            return invalid(format!(
                "environment name {name:?} is empty or contains = or NUL"
            ));
        }
        if value.contains('\0') {
            return invalid(format!("environment variable {name} contains a NUL byte"));
        }
    }
    Ok(())
}

/// A missing working directory would look like a missing program.
fn check_directory(cwd: &Path) -> Result<(), SpawnError> {
    let directory = std::fs::metadata(cwd).map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
        SpawnError::failed(
            errno,
            format!("working directory {}: {error}", cwd.display()),
        )
    })?;
    if directory.is_dir() {
        return Ok(());
    }
    Err(SpawnError::failed(
        libc::ENOTDIR,
        format!("working directory {} is none", cwd.display()),
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use hostler_wire::{Attempt, Epoch, JobId};

    use super::*;

    const FENCE: Fence = Fence {
        job: JobId::MIN,
        epoch: Epoch::new(3),
        attempt: Attempt::FIRST,
    };

    fn command(argv: &[&str]) -> Command {
        let argv = argv.iter().map(|&argument| argument.to_owned()).collect();
        Command {
            argv,
            env: Vec::new(),
            cwd: None,
            stdin: None,
        }
    }

    /// Its whole standard output, once it has ended.
    fn output(command: &Command) -> Result<String, SpawnError> {
        let spawned = Spawner::new("w-1".to_owned()).spawn(FENCE, command, true)?;
        let stdout = spawned.stdout.expect("output is wanted");
        rustix::io::ioctl_fionbio(&stdout, false).unwrap();
        let mut text = String::new();
        std::fs::File::from(stdout)
            .read_to_string(&mut text)
            .unwrap();
        rustix::process::waitpid(Some(spawned.pid), rustix::process::WaitOptions::empty()).unwrap();
        Ok(text)
    }

    fn failure(command: &Command) -> (i32, String) {
        match output(command) {
            Err(SpawnError::Failed { errno, message }) => (errno, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_job_sees_its_own_environment_and_a_short_list_of_ours() {
        let mut env = command(&["env"]);
        env.env.push(("LINES".to_owned(), "one\ntwo".to_owned()));
        let text = output(&env).unwrap();
        for line in [
            "HOSTLER_JOB_ID=1",
            "HOSTLER_ATTEMPT=1",
            "HOSTLER_FENCE=196609",
            "HOSTLER_WORKER=w-1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        assert!(text.contains("LINES=one\ntwo"));
        // The test runner's own variables are the proof that nothing else is passed on.
        assert!(std::env::vars_os().any(|(name, _)| name == "CARGO_MANIFEST_DIR"));
        assert!(!text.contains("CARGO_MANIFEST_DIR"));
    }

    #[test]
    fn a_job_inherits_three_descriptors_and_leads_a_group_of_its_own() {
        let sees = output(&command(&[
            "sh",
            "-c",
            "ls /proc/self/fd | wc -l; ps -o pgid= -p $$; echo $$",
        ]))
        .unwrap();
        let numbers: Vec<u32> = sees
            .split_ascii_whitespace()
            .map(|n| n.parse().unwrap())
            .collect();
        // The fourth is the directory `ls` itself reads.
        assert!(numbers[0] <= 4, "{sees}");
        assert_eq!(numbers[1], numbers[2], "{sees}");
    }

    #[test]
    fn a_start_that_cannot_work_says_why_and_of_what() {
        let (errno, message) = failure(&command(&["no-such-program"]));
        assert_eq!(errno, libc::ENOENT);
        assert!(
            message.starts_with("program \"no-such-program\" not found in PATH ("),
            "{message}"
        );
        let (errno, message) = failure(&command(&["/no/such/program"]));
        assert_eq!(errno, libc::ENOENT);
        assert!(message.contains("/no/such/program"), "{message}");
        assert_eq!(failure(&command(&["/etc/passwd"])).0, libc::EACCES);
        let (errno, message) = failure(&Command {
            cwd: Some("/no/dir".to_owned()),
            ..command(&["true"])
        });
        assert_eq!(errno, libc::ENOENT);
        assert!(
            message.starts_with("working directory /no/dir"),
            "{message}"
        );
        assert_eq!(
            failure(&command(&["true", &"x".repeat(200_000)])).0,
            libc::E2BIG
        );
    }

    #[test]
    fn want_of_room_is_not_the_jobs_fault_and_everything_else_is() {
        let program = Path::new("/bin/true");
        let judged = |errno| SpawnError::from_io(&io::Error::from_raw_os_error(errno), program);
        for errno in [libc::EAGAIN, libc::ENOMEM, libc::EMFILE, libc::ENFILE] {
            let SpawnError::NoRoom { message } = judged(errno) else {
                panic!("{:?}", judged(errno))
            };
            assert!(message.starts_with("cannot start /bin/true: "), "{message}");
        }
        for errno in [libc::ENOENT, libc::EACCES, libc::E2BIG, libc::ENOEXEC] {
            assert!(
                matches!(judged(errno), SpawnError::Failed { errno: told, .. } if told == errno)
            );
        }
    }

    #[test]
    fn what_the_system_cannot_say_is_refused_by_name() {
        let nul = failure(&command(&["echo", "a\0b"]));
        assert_eq!(
            nul,
            (libc::EINVAL, "argument 1 contains a NUL byte".to_owned())
        );
        for name in ["", "A=B", "A\0"] {
            let env = vec![(name.to_owned(), "1".to_owned())];
            assert_eq!(
                failure(&Command {
                    env,
                    ..command(&["true"])
                })
                .0,
                libc::EINVAL
            );
        }
    }

    #[test]
    fn a_text_file_without_an_interpreter_is_no_program() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("script");
        std::fs::write(&file, "echo hello\n").unwrap();
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let (errno, _) = failure(&command(&[file.to_str().unwrap()]));
        assert_eq!(errno, libc::ENOEXEC);
    }
}
