//! Children we did not start: orphans of our jobs, which the kernel gives to us where we are their subreaper.
//!
//! The `hostler worker` binary makes itself one, so that whatever a job starts stays below the worker: it can be found,
//! and is reaped, though its own parents are gone. A program that embeds the worker is none: it may have children of
//! its own, and only main processes are ever reaped there.
//!
//! One file lists our children. It is read when a main process has ended (one system call where nobody was left
//! behind), and each second while anything runs, so that orphans that ended do not stay as zombies.
//!
//! Not here: ending what was left behind (`child`), what an earlier run of the worker left behind (`orphans`).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;

use rustix::process::{Pid, WaitId, WaitIdOptions};

use crate::clock::{Span, Time};
use crate::kin::{Kin, Marks, Where};
use crate::proc::{self, Stat};

/// How often orphans that have ended are looked for while anything runs.
const LOOK_EVERY: Span = Span::from_ms(1_000);
/// A process without any variable is taken to be in the middle of its exec for no longer than this.
const EXEC_TIME: Span = Span::from_ms(1_000);

/// Who knows our children.
#[derive(Debug)]
pub(crate) struct Reaper {
    /// The list of our children; none if we are no subreaper.
    list: Option<File>,
    /// Main processes that are not reaped yet: the only children of ours that somebody else waits for.
    mains: HashSet<u32>,
    /// The other children that lived at the last look. None of them has been reaped, so its number is its own.
    orphans: HashMap<u32, Whose>,
    look_at: Time,
}

/// Whose an orphan is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Marked(Marks),
    /// It carries no marks.
    Unmarked,
    /// It has no variables at all: it is just being started, perhaps, and cannot be told yet.
    Unknown {
        since: Time,
    },
}

impl Reaper {
    /// Becomes the subreaper of everything this process starts, if that is `wanted` and can be.
    pub(crate) fn new(wanted: bool) -> Self {
        let list = wanted.then(become_subreaper).and_then(|list| {
            list.inspect_err(|error| {
                tracing::warn!(%error, "what leaves its job's process group is not noticed at the job's end");
            })
            .ok()
        });
        Self {
            list,
            mains: HashSet::new(),
            orphans: HashMap::new(),
            look_at: Time::default(),
        }
    }

    /// Where a job's processes are to be looked for.
    pub(crate) fn place(&self) -> Where {
        match self.list {
            Some(_) => Where::BelowUs,
            None => Where::Anywhere,
        }
    }

    /// A main process was started.
    pub(crate) fn started(&mut self, main: Pid) {
        self.mains.insert(proc::number(main));
    }

    /// A main process was reaped.
    pub(crate) fn reaped(&mut self, main: Pid) {
        self.mains.remove(&proc::number(main));
    }

    /// Reaps orphans that have ended and learns of new ones.
    pub(crate) fn look(&mut self, now: Time) {
        let Some(list) = &self.list else { return };
        self.look_at = now + LOOK_EVERY;
        let children = match read_list(list) {
            Ok(children) => children,
            Err(error) => return tracing::debug!(%error, "our children cannot be listed"),
        };
        let mut living = HashMap::new();
        for pid in children {
            if self.mains.contains(&pid) || reap(pid) {
                continue;
            }
            let whose = match self.orphans.get(&pid) {
                None => whose(pid, now, now),
                Some(&Whose::Unknown { since }) => whose(pid, since, now),
                Some(&known) => known,
            };
            living.insert(pid, whose);
        }
        self.orphans = living;
    }

    /// When [`look`](Self::look) is due if nothing else gives reason to.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        let any = !self.mains.is_empty() || !self.orphans.is_empty();
        (self.list.is_some() && any).then_some(self.look_at)
    }

    /// Whether an attempt whose main process has just ended may have left others behind, as of the last look. If we are
    /// no subreaper, it is thought so of those only whose pipes are `held` by somebody.
    pub(crate) fn may_have_left(&self, kin: &Kin, held: bool) -> bool {
        if self.list.is_none() {
            return held;
        }
        self.orphans.iter().any(|(&pid, whose)| match whose {
            Whose::Marked(marks) => *marks == kin.marks,
            Whose::Unmarked => Stat::of(pid).is_some_and(|stat| kin.leads(stat.group)),
            Whose::Unknown { .. } => true,
        })
    }
}

fn whose(pid: u32, since: Time, now: Time) -> Whose {
    let environment = proc::environment(pid);
    match Marks::read(&environment) {
        Some(marks) => Whose::Marked(marks),
        None if environment.is_empty() && now < since + EXEC_TIME => Whose::Unknown { since },
        None => Whose::Unmarked,
    }
}

/// Reaps that child if it has ended; true too if it is none any more.
fn reap(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    !matches!(rustix::process::waitid(WaitId::Pid(pid), ended), Ok(None))
}

fn become_subreaper() -> io::Result<File> {
    let pid = rustix::process::getpid();
    // Orphans go to the first thread, which has the number of the process. Without the list they must go elsewhere.
    let list = File::open(format!("/proc/self/task/{}/children", pid.as_raw_nonzero()))?;
    rustix::process::set_child_subreaper(Some(pid))?;
    Ok(list)
}

/// The list comes in pieces of a page; one that would hold another number is the last.
fn read_list(list: &File) -> io::Result<Vec<u32>> {
    const NUMBER_BYTES_MAX: usize = 16;
    let mut text = Vec::new();
    let mut page = [0; 4_096];
    loop {
        let n = rustix::io::pread(list, &mut page, text.len() as u64)?;
        text.extend_from_slice(&page[..n]);
        if n < page.len() - NUMBER_BYTES_MAX {
            return Ok(proc::numbers(&String::from_utf8_lossy(&text)));
        }
    }
}
