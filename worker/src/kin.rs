//! Whose a process is: the marks every process of a job carries, and the processes of one attempt.
//!
//! A job's processes inherit `HOSTLER_JOB_ID`, `HOSTLER_FENCE` and `HOSTLER_ORIGIN`, which names the cluster and the
//! run of the worker that started them: other workers of this machine may run jobs of the same numbers. To an attempt
//! belong its main process with the group it leads, whatever carries its marks, whatever any of these has started, and
//! whatever once belonged, for as long as it lives. So leaving the group (`setsid`) or the family (a double fork)
//! hides nothing. Who wants a process to outlive its job takes it out of the group *and* clears the marks.
//!
//! Looked for only when there is reason to: a look costs some system calls for each process below the worker where
//! that is the reaper of its descendants (`reaper`), and for each process of the machine where it is not.
//!
//! Not here: when to look, and when to end them (`child`).

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use hostler_wire::Fence;
use rustix::process::{Pid, Signal};

use crate::cgroup;
use crate::proc::{self, Stat};

/// The variables that say whose a process is.
const JOB: &str = "HOSTLER_JOB_ID";
const FENCE: &str = "HOSTLER_FENCE";
const ORIGIN: &str = "HOSTLER_ORIGIN";
/// How often in one go the processes of an attempt are killed and looked for again, should they multiply meanwhile.
const KILL_ROUNDS: usize = 16;

/// A run of a worker, as its jobs name it: no two are alike on one machine, nor in one process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) cluster: [u8; 16],
    /// The worker's process.
    pub(crate) pid: u32,
    /// When that process started.
    pub(crate) started: u64,
    pub(crate) instance: u64,
}

impl Origin {
    /// This process, for a cluster.
    pub(crate) fn ours(cluster: [u8; 16], instance: u64) -> Self {
        let pid = std::process::id();
        Self {
            cluster,
            pid,
            started: Stat::of(pid).map_or(0, |stat| stat.started),
            instance,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let cluster = u128::from_str_radix(parts.next()?, 16).ok()?.to_be_bytes();
        let pid = parts.next()?.parse().ok()?;
        let started = parts.next()?.parse().ok()?;
        let instance = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some(Self {
            cluster,
            pid,
            started,
            instance,
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cluster = u128::from_be_bytes(self.cluster);
        let (pid, started, instance) = (self.pid, self.started, self.instance);
        write!(f, "{cluster:032x}.{pid}.{started}.{instance:016x}")
    }
}

/// What each process of an attempt carries in its environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) job: u64,
    pub(crate) fence: u64,
    pub(crate) origin: Origin,
}

impl Marks {
    pub(crate) fn new(fence: Fence, origin: Origin) -> Self {
        Self {
            job: fence.job.raw(),
            fence: fence.rising(),
            origin,
        }
    }

    /// The variables to start a process with.
    pub(crate) fn variables(&self) -> [(&'static str, String); 3] {
        [
            (JOB, self.job.to_string()),
            (FENCE, self.fence.to_string()),
            (ORIGIN, self.origin.to_string()),
        ]
    }

    /// The marks in an environment; none unless all three are there.
    pub(crate) fn read(environment: &[u8]) -> Option<Self> {
        Some(Self {
            job: value_of(environment, JOB)?.parse().ok()?,
            fence: value_of(environment, FENCE)?.parse().ok()?,
            origin: Origin::parse(value_of(environment, ORIGIN)?)?,
        })
    }
}

/// A variable of an environment whose entries end with NUL: the first of that name, as `getenv` takes it.
pub(crate) fn value_of<'a>(environment: &'a [u8], name: &str) -> Option<&'a str> {
    let value = environment.split(|&byte| byte == 0).find_map(|entry| {
        entry
            .strip_prefix(name.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"="))
    })?;
    std::str::from_utf8(value).ok()
}

/// Where to look for an attempt's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// Among our descendants: whoever loses its parent becomes our child.
    BelowUs,
    /// Anywhere on this machine.
    Anywhere,
}

/// The processes of one attempt, its main one included. Valid until that is reaped.
#[derive(Debug)]
pub(crate) struct Kin {
    pub(crate) marks: Marks,
    /// The main process, and the group it leads.
    leader: Pid,
    /// Its control group, if it has one: whoever is in there belongs to it.
    group: Option<PathBuf>,
    /// Those that lived at the last look, each with its start time.
    living: HashMap<u32, u64>,
    /// Of those, the ones outside the leader's group.
    outside: Vec<u32>,
}

impl Kin {
    pub(crate) fn new(marks: Marks, leader: Pid) -> Self {
        Self {
            marks,
            leader,
            group: None,
            living: HashMap::new(),
            outside: Vec::new(),
        }
    }

    /// The same, with a control group.
    pub(crate) fn within(self, group: Option<PathBuf>) -> Self {
        Self { group, ..self }
    }

    /// Whether somebody is in its control group.
    pub(crate) fn any_in_group(&self) -> bool {
        !self.in_group().is_empty()
    }

    fn in_group(&self) -> Vec<u32> {
        self.group
            .as_deref()
            .map_or_else(Vec::new, cgroup::processes)
    }

    /// Looks who lives, and tells how many; somebody does as long as nobody can be looked for.
    pub(crate) fn look(&mut self, place: Where) -> usize {
        if !proc::can_look() {
            return self.living.len().max(1);
        }
        let mut candidates = match place {
            Where::BelowUs => proc::below(std::process::id()),
            Where::Anywhere => proc::all(),
        };
        let grouped = self.in_group();
        candidates.extend(&grouped);
        candidates.sort_unstable();
        candidates.dedup();
        let mut living = HashMap::new();
        let mut outside = Vec::new();
        let mut others = Vec::new();
        for pid in candidates {
            let Some(stat) = Stat::of(pid).filter(|stat| !stat.zombie) else {
                continue;
            };
            let in_group = self.leads(pid) || self.leads(stat.group);
            if in_group || grouped.contains(&pid) || self.knows(pid, &stat) {
                living.insert(pid, stat.started);
                outside.extend((!in_group).then_some(pid));
            } else {
                others.push((pid, stat));
            }
        }
        // What a process of the job has started is the job's, whatever it calls itself.
        let mut before = usize::MAX;
        while before != others.len() {
            before = others.len();
            others.retain(|(pid, stat)| {
                let theirs = living.contains_key(&stat.parent);
                if theirs {
                    living.insert(*pid, stat.started);
                    outside.push(*pid);
                }
                !theirs
            });
        }
        self.living = living;
        self.outside = outside;
        self.living.len()
    }

    /// Whether this is the number of the main process, and so that of its group.
    pub(crate) fn leads(&self, number: u32) -> bool {
        proc::number(self.leader) == number
    }

    fn knows(&self, pid: u32, stat: &Stat) -> bool {
        self.living.get(&pid) == Some(&stat.started)
            || Marks::read(&proc::environment(pid)) == Some(self.marks)
    }

    /// Those that lived at the last look, the smallest number first.
    pub(crate) fn living(&self) -> Vec<u32> {
        let mut pids: Vec<u32> = self.living.keys().copied().collect();
        pids.sort_unstable();
        pids
    }

    /// Asks all of them to end. Who has stopped itself is woken, or it would never hear.
    pub(crate) fn ask(&mut self, place: Where) {
        self.look(place);
        for signal in [Signal::TERM, Signal::CONT] {
            proc::signal_group(self.leader, signal);
            for pid in &self.outside {
                proc::signal(*pid, self.living[pid], signal);
            }
        }
    }

    /// Kills all of them, and those they start meanwhile; tells how many seem to live even so, if only for a moment.
    pub(crate) fn kill(&mut self, place: Where) -> usize {
        // Before anyone is orphaned: afterwards nobody could tell whose it was.
        let mut count = self.look(place);
        for _ in 0..KILL_ROUNDS {
            proc::signal_group(self.leader, Signal::KILL);
            for (&pid, &started) in &self.living {
                proc::signal(pid, started, Signal::KILL);
            }
            let told = self.living.clone();
            count = self.look(place);
            let born = |(pid, started)| told.get(pid) != Some(started);
            if !self.living.iter().any(born) {
                break;
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn marks(job: u64, instance: u64) -> Marks {
        Marks {
            job,
            fence: 65_537,
            origin: Origin::ours([7; 16], instance),
        }
    }

    #[test]
    fn marks_survive_the_way_through_an_environment_and_are_all_or_nothing() {
        let marks = marks(7, u64::MAX);
        let text = |names: &[&str]| -> Vec<u8> {
            let of = |(name, value): (&str, String)| {
                names
                    .contains(&name)
                    .then(|| format!("{name}={value}\0").into_bytes())
            };
            let all: Vec<Vec<u8>> = marks.variables().into_iter().filter_map(of).collect();
            [b"PATH=/bin\0".to_vec(), all.concat(), b"LAST=1\0".to_vec()].concat()
        };
        assert_eq!(Marks::read(&text(&[JOB, FENCE, ORIGIN])), Some(marks));
        for missing in [JOB, FENCE, ORIGIN] {
            let mut names = vec![JOB, FENCE, ORIGIN];
            names.retain(|name| *name != missing);
            assert_eq!(Marks::read(&text(&names)), None, "without {missing}");
        }
        assert_eq!(Marks::read(b""), None);
        assert_eq!(
            value_of(b"AB=1\0A=2\0A=3\0", "A"),
            Some("2"),
            "the first of exactly that name"
        );
    }

    /// Runs a shell as a job's main process would be run.
    fn main_process(marks: &Marks, script: &str) -> Child {
        Command::new("sh")
            .args(["-c", script])
            .envs(marks.variables())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn told(child: &mut Child, numbers: usize) -> Vec<u32> {
        use std::io::{BufRead, BufReader};
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (0..numbers)
            .map(|_| lines.next().unwrap().unwrap().parse().unwrap())
            .collect()
    }

    #[test]
    fn kin_is_who_shares_group_marks_or_an_ancestor_and_nobody_else() {
        let ours = marks(1, 1);
        let script = "sleep 60 & echo $!
            setsid sh -c 'echo $$; exec sleep 60' &
            env -i setsid sh -c 'echo $$; exec sleep 60' & wait";
        let mut child = main_process(&ours, script);
        let family = told(&mut child, 3);
        // The same numbers from another run of a worker, and the same run with another job.
        let mut strangers =
            [marks(1, 2), marks(2, 1)].map(|marks| main_process(&marks, "exec sleep 60"));

        let mut kin = Kin::new(ours, Pid::from_child(&child));
        let mut expected: Vec<u32> = [&[child.id()], &family[..]].concat();
        expected.sort_unstable();
        // A process between fork and exec may still be on its way into its own session.
        while kin.look(Where::Anywhere) != 4 || kin.outside.len() != 2 {
            std::thread::yield_now();
        }
        assert_eq!(kin.living(), expected);
        assert_eq!(kin.look(Where::BelowUs), 4);

        kin.kill(Where::Anywhere);
        child.wait().unwrap();
        for pid in family {
            while Stat::of(pid).is_some_and(|stat| !stat.zombie) {
                std::thread::yield_now();
            }
        }
        for stranger in &mut strangers {
            assert!(
                stranger.try_wait().unwrap().is_none(),
                "a stranger was killed"
            );
            stranger.kill().unwrap();
            stranger.wait().unwrap();
        }
    }

    #[test]
    fn a_process_that_multiplies_is_ended_too() {
        let ours = marks(3, 3);
        // Each generation starts the next outside of its group and ends.
        let script = "echo 1; f() { setsid sh -c \"$0\" \"$0\" & }; exec 1>&-; f";
        let chain = "setsid sh -c \"$0\" \"$0\" & setsid sleep 60 & sleep 0.01";
        let mut child = Command::new("sh")
            .args(["-c", script, chain])
            .envs(ours.variables())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        told(&mut child, 1);
        let mut kin = Kin::new(ours, Pid::from_child(&child));
        while kin.look(Where::Anywhere) < 5 {
            std::thread::yield_now();
        }
        kin.kill(Where::Anywhere);
        let mut tries = 0;
        while kin.look(Where::Anywhere) > 0 {
            kin.kill(Where::Anywhere);
            tries += 1;
            assert!(tries < 100, "still there: {:?}", kin.living());
        }
        child.wait().unwrap();
    }
}
