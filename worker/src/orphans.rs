//! What a killed worker left running: found by its successor, and ended.
//!
//! Nothing can be written down for the successor that would still be true when it reads it, so nothing is: the
//! processes themselves say whose they are (`kin`). After its first welcome, when it knows its cluster, a worker looks
//! for processes that name it and its cluster and come from a run whose process is gone. They are asked to end, and
//! killed when the grace is over; meanwhile no other attempt of their jobs starts here, but is given back. The server
//! knows these attempts for lost since the successor came, so none of this is reported.
//!
//! No process is touched for its number: it is signalled on a pidfd after its start time was compared. Processes of a
//! run that lives, be it frozen, are left to that run. A process that left its group *and* cleared its marks is nobody's.
//!
//! Not here: orphans of jobs that ended under a living worker (`reaper`, `child`).

use std::collections::HashMap;

use rustix::process::Signal;

use crate::clock::{Span, Time};
use crate::kin::{Marks, Origin, value_of};
use crate::proc::{self, Stat};

/// How often we look whether they are gone.
const LOOK_AGAIN: Span = Span::from_ms(100);
/// How long after KILL they are looked for: what still stands then is stuck in the kernel.
const STUCK: Span = Span::from_ms(2_000);

/// Processes of earlier runs of this worker.
#[derive(Debug)]
pub(crate) struct Orphans {
    name: String,
    ours: Origin,
    /// Those that lived at the last look.
    living: HashMap<u32, Orphan>,
    kill_at: Time,
    look_at: Time,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Orphan {
    started: u64,
    job: u64,
}

impl Orphans {
    /// Looks for them, and asks those there are to end.
    pub(crate) fn find(name: String, ours: Origin, now: Time, grace: Span) -> Option<Self> {
        let mut orphans = Self {
            name,
            ours,
            living: HashMap::new(),
            kill_at: now + grace,
            look_at: now + LOOK_AGAIN,
        };
        (!orphans.are_gone()).then_some(orphans)
    }

    /// Whether a process of this job may still live.
    pub(crate) fn holds(&self, job: u64) -> bool {
        self.living.values().any(|orphan| orphan.job == job)
    }

    pub(crate) fn next_deadline(&self) -> Time {
        self.look_at
    }

    /// Looks again, and kills those whose time is over. True once there is nothing more to be done.
    pub(crate) fn are_over(&mut self, now: Time) -> bool {
        if now < self.look_at {
            return false;
        }
        self.look_at = now + LOOK_AGAIN;
        if self.are_gone() {
            return true;
        }
        if now >= self.kill_at {
            for (&pid, orphan) in &self.living {
                proc::signal(pid, orphan.started, Signal::KILL);
            }
        }
        let stuck = now >= self.kill_at + STUCK;
        if stuck {
            let processes: Vec<u32> = self.living.keys().copied().collect();
            tracing::error!(?processes, "processes of an earlier run could not be ended");
        }
        stuck
    }

    /// Looks who lives, and asks those to end that were not known before.
    fn are_gone(&mut self) -> bool {
        if !proc::can_look() {
            return false;
        }
        let known = std::mem::take(&mut self.living);
        self.living = self.look(&known);
        let new = self
            .living
            .iter()
            .filter(|(pid, orphan)| known.get(pid) != Some(orphan));
        for (&pid, orphan) in new {
            let job = orphan.job;
            tracing::warn!(
                pid,
                job,
                "ending what an earlier run of this worker left running"
            );
            for signal in [Signal::TERM, Signal::CONT] {
                proc::signal(pid, orphan.started, signal);
            }
        }
        self.living.is_empty()
    }

    /// Who lives: whatever carries the marks of a dead run, groups led by such a process, and what was one of these.
    fn look(&self, known: &HashMap<u32, Orphan>) -> HashMap<u32, Orphan> {
        let mut found = HashMap::new();
        let mut led = HashMap::new();
        let mut others = Vec::new();
        for pid in proc::all() {
            let Some(stat) = Stat::of(pid).filter(|stat| !stat.zombie) else {
                continue;
            };
            match self.job_of(pid) {
                Some(job) => {
                    let started = stat.started;
                    found.insert(pid, Orphan { started, job });
                    if stat.group == pid {
                        led.insert(pid, job);
                    }
                }
                None => others.push((pid, stat)),
            }
        }
        for (pid, stat) in others {
            let started = stat.started;
            let known = known.get(&pid).filter(|it| it.started == started);
            let job = led.get(&stat.group).copied().or(known.map(|it| it.job));
            if let Some(job) = job {
                found.insert(pid, Orphan { started, job });
            }
        }
        // A job may have started this very worker.
        for pid in ourselves_and_above(self.ours.pid) {
            found.remove(&pid);
        }
        found
    }

    /// The job of a process that an earlier run of this worker has started.
    fn job_of(&self, pid: u32) -> Option<u64> {
        let environment = proc::environment(pid);
        let marks = Marks::read(&environment)?;
        let origin = marks.origin;
        let named = value_of(&environment, "HOSTLER_WORKER") == Some(&self.name);
        let of_us = named && origin.cluster == self.ours.cluster;
        (of_us && !runs(&origin)).then_some(marks.job)
    }
}

/// Whether the worker of that run lives.
fn runs(origin: &Origin) -> bool {
    Stat::of(origin.pid).is_some_and(|stat| stat.started == origin.started && !stat.zombie)
}

fn ourselves_and_above(pid: u32) -> Vec<u32> {
    let parent = |pid: &u32| Some(Stat::of(*pid)?.parent).filter(|&parent| parent != 0);
    std::iter::successors(Some(pid), parent).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt, ExitStatusExt};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// The run of a worker that is gone: its process existed, and another may have its number.
    fn dead_run() -> Origin {
        Origin {
            started: 1,
            ..Origin::ours([7; 16], 1)
        }
    }

    fn process(name: &str, origin: Origin, script: &str) -> Child {
        let marks = Marks {
            job: 42,
            fence: 65_537,
            origin,
        };
        Command::new("sh")
            .args(["-c", script])
            .envs(marks.variables())
            .env("HOSTLER_WORKER", name)
            .process_group(0)
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Looks until they are over, as the loop does.
    fn end(mut orphans: Orphans, mut now: Time) {
        while !orphans.are_over(now) {
            now = now + LOOK_AGAIN;
            std::thread::yield_now();
        }
    }

    #[test]
    fn processes_of_a_dead_run_are_ended_and_no_others() {
        let name = format!("orphans-{}", std::process::id());
        let dead = dead_run();
        let mut orphan = process(&name, dead, "exec sleep 60");
        let other_cluster = Origin {
            cluster: [8; 16],
            ..dead
        };
        let living_run = Origin::ours([7; 16], 2);
        let mut strangers = [
            process("somebody", dead, "exec sleep 60"),
            process(&name, other_cluster, "exec sleep 60"),
            process(&name, living_run, "exec sleep 60"),
        ];
        let ours = Origin::ours([7; 16], 3);
        let find = || Orphans::find(name.clone(), ours, Time::default(), Span::ZERO);
        let orphans = loop {
            if let Some(orphans) = find() {
                break orphans; // it had not called exec yet
            }
        };
        assert!(orphans.holds(42) && !orphans.holds(43));
        assert_eq!(
            orphans.living.keys().copied().collect::<Vec<_>>(),
            [orphan.id()]
        );
        orphan.wait().unwrap();
        end(orphans, Time::default());
        assert!(find().is_none());
        for stranger in &mut strangers {
            assert!(
                stranger.try_wait().unwrap().is_none(),
                "a stranger was ended"
            );
            stranger.kill().unwrap();
            stranger.wait().unwrap();
        }
    }

    #[test]
    fn who_is_deaf_to_term_is_killed_after_the_grace_with_his_group() {
        let name = format!("deaf-{}", std::process::id());
        let ready = tempfile::tempdir().unwrap();
        let file = ready.path().join("ready");
        let script = format!(
            "trap '' TERM; env -i sleep 60 & echo $! > {0}.new; mv {0}.new {0}; wait; sleep 60",
            file.display()
        );
        let mut orphan = process(&name, dead_run(), &script);
        let child: u32 = loop {
            if let Ok(text) = std::fs::read_to_string(&file) {
                break text.trim().parse().unwrap();
            }
            std::thread::yield_now();
        };
        let ours = Origin::ours([7; 16], 3);
        let grace = Span::from_ms(1_000);
        let mut orphans = Orphans::find(name, ours, Time::default(), grace).unwrap();
        assert!(
            orphans.living.contains_key(&child),
            "its group belongs to it"
        );
        assert!(!orphans.are_over(Time::from_us(900_000)));
        assert!(
            orphan.try_wait().unwrap().is_none(),
            "its grace is not over"
        );
        assert!(!orphans.are_over(Time::from_us(1_000_000)));
        assert_eq!(orphan.wait().unwrap().signal(), Some(9));
        while Stat::of(child).is_some_and(|stat| !stat.zombie) {
            std::thread::yield_now();
        }
        // The shell may have gone on to its next command before its own KILL.
        end(orphans, Time::from_us(1_200_000));
    }

    #[test]
    fn a_worker_that_a_job_has_started_does_not_end_itself() {
        let above = ourselves_and_above(std::process::id());
        assert_eq!(above[0], std::process::id());
        assert_eq!(above[1], Stat::of(std::process::id()).unwrap().parent);
    }
}
