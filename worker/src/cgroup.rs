//! Control groups (version 2): one for each attempt, below one that was delegated to the worker, where that was asked for.
//!
//! A main process joins its group before it becomes the job's program (`shim`), so that whatever it starts is in there
//! too, however it hides. The group bounds memory, processors and processes, counts what all of them use, and is killed
//! at once. It goes with the attempt; one that cannot yet is tried again, at the latest by the next worker.
//!
//! A group with processes of its own may not have controllers for those below it. So a worker that uses the group it is in
//! moves to a group beside its jobs' first.
//!
//! Not here: what of all this a job's end means (`child`).

use std::path::{Path, PathBuf};
use std::{fs, io};

use hostler_wire::{Fence, Usage};

/// Below which group the attempts' are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delegated {
    /// The one the worker is in.
    Own,
    /// This one. The worker, or whoever is in it, must be somewhere else.
    At(PathBuf),
}

/// What a job's processes may use together; none = as much as there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupLimits {
    /// Memory, page cache included, bytes: beyond it they are killed, all of them.
    pub memory_bytes: Option<u64>,
    /// Processors, thousandths of one: beyond it they wait.
    pub millicpus: Option<u32>,
    /// Processes and threads: beyond it they cannot start more.
    pub processes: Option<u32>,
}

impl GroupLimits {
    /// Whether there is one.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// The group a worker goes to.
const WORKERS: &str = "hostler-worker";
/// Names of attempts' groups begin with this.
const PREFIX: &str = "hostler-";
/// Over how long processor time is shared out, µs: the kernel's own default.
const PERIOD_US: u64 = 100_000;

/// All groups of this worker.
#[derive(Debug)]
pub(crate) struct Groups {
    base: PathBuf,
    limits: GroupLimits,
    /// Groups of attempts that are over which still had somebody.
    left: Vec<PathBuf>,
}

/// One attempt's.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

/// What a group's processes have used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupUse {
    pub(crate) processes: u32,
    pub(crate) user_ms: u64,
    pub(crate) system_ms: u64,
    /// Now and at most; none if nobody counts it.
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) memory_peak_bytes: Option<u64>,
    /// So many were killed for want of memory, and so many could not be started.
    pub(crate) oom_kills: u64,
    pub(crate) refused_processes: u64,
}

impl Groups {
    /// Makes ready to make groups; in words why that cannot be.
    pub(crate) fn open(place: &Delegated, limits: GroupLimits) -> Result<Self, String> {
        let base = match place {
            Delegated::At(path) => path.clone(),
            Delegated::Own => leave(&own_group()?)?,
        };
        let controllers = fs::read_to_string(base.join("cgroup.controllers")).map_err(|error| {
            let base = base.display();
            format!("{base} is no control group of version 2 for this worker: {error}")
        })?;
        let asked = [
            ("memory", limits.memory_bytes.is_some()),
            ("cpu", limits.millicpus.is_some()),
            ("pids", limits.processes.is_some()),
        ];
        for (name, needed) in asked {
            let there = controllers.split_ascii_whitespace().any(|it| it == name);
            let enabled = if there {
                fs::write(base.join("cgroup.subtree_control"), format!("+{name}"))
            } else {
                Err(io::Error::other("it is not delegated"))
            };
            match enabled {
                Err(error) if needed => {
                    return Err(format!(
                        "a limit is asked for that needs the controller {name:?} in {}: {error}; with systemd: \
                         Delegate=yes",
                        base.display()
                    ));
                }
                // It would only have counted.
                Ok(()) | Err(_) => {}
            }
        }
        let mut left = Vec::new();
        for entry in fs::read_dir(&base).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(PREFIX) && name != WORKERS {
                left.push(entry.path());
            }
        }
        let mut groups = Self { base, limits, left };
        groups.clear();
        Ok(groups)
    }

    /// A group for an attempt, with its limits.
    pub(crate) fn make(&mut self, fence: Fence) -> io::Result<Group> {
        let (job, attempt) = (fence.job, fence.attempt);
        let path = self.base.join(format!("{PREFIX}{job}.{attempt}"));
        self.left.retain(|left| *left != path);
        let made = fs::create_dir(&path).or_else(|error| {
            if error.kind() != io::ErrorKind::AlreadyExists {
                return Err(error);
            }
            // An earlier one that nobody is in any more, or another worker's.
            fs::remove_dir(&path)?;
            fs::create_dir(&path)
        });
        made.map_err(|error| named(&path, &error))?;
        let group = Group { path };
        if let Err(error) = group.bound(&self.limits) {
            self.bury(group);
            return Err(error);
        }
        Ok(group)
    }

    /// An attempt is over: nobody may be left in its group.
    pub(crate) fn bury(&mut self, group: Group) {
        group.kill();
        self.left.push(group.path);
        self.clear();
    }

    /// Removes groups in which nobody is any more.
    pub(crate) fn clear(&mut self) {
        self.left.retain(|path| {
            let removed = fs::remove_dir(path);
            removed.is_err_and(|error| error.kind() != io::ErrorKind::NotFound)
        });
    }

    /// Whether there are some to be removed.
    pub(crate) fn any_left(&self) -> bool {
        !self.left.is_empty()
    }
}

impl Group {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn bound(&self, limits: &GroupLimits) -> io::Result<()> {
        let set = |file: &str, value: String| {
            let path = self.path.join(file);
            fs::write(&path, value).map_err(|error| named(&path, &error))
        };
        if let Some(bytes) = limits.memory_bytes {
            set("memory.max", bytes.to_string())?;
            // A job without one of its processes is none that could go on.
            set("memory.oom.group", "1".to_owned())?;
            // What does not fit must not go to swap instead; without swap there is no such file.
            drop(set("memory.swap.max", "0".to_owned()));
        }
        if let Some(millicpus) = limits.millicpus {
            let quota_us = PERIOD_US * u64::from(millicpus) / 1_000;
            set("cpu.max", format!("{quota_us} {PERIOD_US}"))?;
        }
        if let Some(processes) = limits.processes {
            set("pids.max", processes.to_string())?;
        }
        Ok(())
    }

    /// Who is in it; the dead are not.
    pub(crate) fn processes(&self) -> Vec<u32> {
        processes(&self.path)
    }

    /// Kills everybody in it at once; kernels before 5.14 cannot.
    pub(crate) fn kill(&self) {
        drop(fs::write(self.path.join("cgroup.kill"), "1"));
    }

    pub(crate) fn used(&self) -> GroupUse {
        let read = |file: &str| fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let number = |file: &str| read(file).trim().parse().ok();
        let cpu = read("cpu.stat");
        GroupUse {
            processes: u32::try_from(self.processes().len()).unwrap_or(u32::MAX),
            user_ms: field(&cpu, "user_usec") / 1_000,
            system_ms: field(&cpu, "system_usec") / 1_000,
            memory_bytes: number("memory.current"),
            memory_peak_bytes: number("memory.peak"),
            oom_kills: field(&read("memory.events"), "oom_kill"),
            refused_processes: field(&read("pids.events"), "max"),
        }
    }
}

impl GroupUse {
    /// Puts in place of what one process and its children have used what all of them have.
    pub(crate) fn tell(&self, usage: &mut Usage) {
        if self.user_ms + self.system_ms > 0 {
            (usage.user_ms, usage.system_ms) = (self.user_ms, self.system_ms);
        }
        usage.peak_rss_bytes = self.memory_peak_bytes.unwrap_or(usage.peak_rss_bytes);
    }

    /// What its limits have done to it, if a person could not know otherwise.
    pub(crate) fn words(&self) -> String {
        match self.refused_processes {
            0 => String::new(),
            count => format!("it met its worker's limit of processes {count} times"),
        }
    }
}

/// Who is in the group at that path.
pub(crate) fn processes(path: &Path) -> Vec<u32> {
    let list = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    crate::proc::numbers(&list)
}

/// `NAME VALUE` in a line of its own; 0 if it is not there.
pub(crate) fn field(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| {
        let (key, value) = line.split_once(' ')?;
        (key == name).then_some(value)
    });
    value
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The group of version 2 this process is in.
fn own_group() -> Result<PathBuf, String> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    directory(&groups, &mounts, "cgroup2", "")
        .ok_or_else(|| "this worker is in no control group of version 2".to_owned())
}

/// Moves this process to a group beside those of its jobs. Returns the group all of these are in.
fn leave(own: &Path) -> Result<PathBuf, String> {
    if let Some(base) = own.parent()
        && own.ends_with(WORKERS)
    {
        return Ok(base.to_path_buf());
    }
    let ours = own.join(WORKERS);
    let moved = match fs::create_dir(&ours) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(()) | Err(_) => fs::write(ours.join("cgroup.procs"), "0"),
    };
    moved.map_err(|error| {
        let own = own.display();
        format!(
            "the worker's control group {own} is not delegated to it: {error}; with systemd: Delegate=yes"
        )
    })?;
    Ok(own.to_path_buf())
}

/// The directory of a process's group, of what `/proc/PID/cgroup` and `/proc/PID/mountinfo` say: of version 2
/// (`cgroup2` and no controller) or 1.
pub(crate) fn directory(
    groups: &str,
    mounts: &str,
    kind: &str,
    controller: &str,
) -> Option<PathBuf> {
    let group = groups.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let named = parts.next()?.split(',').any(|name| name == controller);
        parts.next().filter(|_| named)
    })?;
    let (root, mount) = mounts.lines().find_map(|line| {
        let (place, system) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let mut system = system.split(' ');
        let right = system.next()? == kind
            && (controller.is_empty() || system.nth(1)?.split(',').any(|it| it == controller));
        Some((place.next()?, place.next()?)).filter(|_| right)
    })?;
    let group = Path::new(group);
    let below = group.strip_prefix(root).or(group.strip_prefix("/")).ok()?;
    Some(Path::new(mount).join(below))
}

#[cfg(test)]
mod tests {
    use hostler_wire::{Attempt, Epoch, JobId};

    use super::*;

    const FENCE: Fence = Fence {
        job: JobId::MIN,
        epoch: Epoch::new(3),
        attempt: Attempt::FIRST,
    };

    /// What looks like a group that was delegated with these controllers.
    fn delegated(controllers: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), controllers).unwrap();
        dir
    }

    fn open(dir: &tempfile::TempDir, limits: GroupLimits) -> Result<Groups, String> {
        Groups::open(&Delegated::At(dir.path().to_owned()), limits)
    }

    fn all() -> GroupLimits {
        GroupLimits {
            memory_bytes: Some(64 << 20),
            millicpus: Some(1_500),
            processes: Some(32),
        }
    }

    #[test]
    fn an_attempts_group_has_the_limits_that_were_asked_for() {
        let dir = delegated("cpuset cpu io memory pids\n");
        let mut groups = open(&dir, all()).unwrap();
        let group = groups.make(FENCE).unwrap();
        assert_eq!(group.path(), dir.path().join("hostler-1.1"));
        for (file, value) in [
            ("memory.max", "67108864"),
            ("memory.oom.group", "1"),
            ("cpu.max", "150000 100000"),
            ("pids.max", "32"),
        ] {
            let written = fs::read_to_string(group.path().join(file)).unwrap();
            assert_eq!(written, value, "{file}");
        }
        let free = delegated("");
        let group = open(&free, GroupLimits::default()).unwrap().make(FENCE);
        assert_eq!(fs::read_dir(group.unwrap().path()).unwrap().count(), 0);
    }

    #[test]
    fn a_limit_whose_controller_is_not_delegated_is_refused_by_name() {
        let error = open(&delegated("cpu pids\n"), all()).unwrap_err();
        assert!(
            error.contains("\"memory\"") && error.contains("Delegate=yes"),
            "{error}"
        );
        let dir = tempfile::tempdir().unwrap();
        let error = open(&dir, GroupLimits::default()).unwrap_err();
        assert!(error.contains("no control group of version 2"), "{error}");
    }

    #[test]
    fn what_all_processes_have_used_stands_for_what_one_has() {
        let dir = delegated("memory\n");
        let group = open(&dir, GroupLimits::default()).unwrap().make(FENCE);
        let group = group.unwrap();
        let mut usage = Usage {
            user_ms: 1,
            system_ms: 1,
            peak_rss_bytes: 5,
            ..Usage::default()
        };
        group.used().tell(&mut usage);
        assert_eq!(
            (usage.user_ms, usage.peak_rss_bytes),
            (1, 5),
            "nobody counts"
        );
        for (file, text) in [
            ("cgroup.procs", "12\n13\n"),
            (
                "cpu.stat",
                "usage_usec 9000\nuser_usec 7000\nsystem_usec 2000\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.peak", "8192\n"),
            ("memory.events", "low 0\nmax 4\noom 2\noom_kill 2\n"),
            ("pids.events", "max 7\n"),
        ] {
            fs::write(group.path().join(file), text).unwrap();
        }
        let used = group.used();
        assert_eq!((used.processes, used.memory_bytes), (2, Some(4_096)));
        assert_eq!((used.oom_kills, used.refused_processes), (2, 7));
        assert!(used.words().contains("limit of processes 7 times"));
        used.tell(&mut usage);
        assert_eq!((usage.user_ms, usage.system_ms), (7, 2));
        assert_eq!(usage.peak_rss_bytes, 8_192);
    }

    #[test]
    fn a_group_goes_once_nobody_is_in_it() {
        let dir = delegated("");
        let mut groups = open(&dir, GroupLimits::default()).unwrap();
        let group = groups.make(FENCE).unwrap();
        let path = group.path().to_owned();
        // A directory with something in it goes as little as a group with somebody.
        fs::write(path.join("somebody"), "").unwrap();
        groups.bury(group);
        assert!(path.exists() && groups.any_left());
        for file in ["somebody", "cgroup.kill"] {
            fs::remove_file(path.join(file)).unwrap();
        }
        // The next worker finds it as well.
        let groups = open(&dir, GroupLimits::default()).unwrap();
        assert!(!path.exists() && !groups.any_left());
    }
}
