//! A running process: its pipes, its end, its signals.
//!
//! The end of the main process is the end of the attempt, not the end of its pipes, which a child it left behind may
//! hold for ever: after the exit what the pipes hold is read, 200 ms at most, and then they are closed (semantics 26).
//!
//! An attempt that was told to end is gone when all of its processes are (`kin`): the dead main process is left unreaped
//! until then, so that its number, by which its group is called, cannot become somebody else's. What outlives a main
//! process that ended by itself is ended too, or a later attempt would meet it: it has the time its output is read on
//! for, then TERM, then KILL, all within a second. The record says so.
//!
//! Not here: starting it (`spawn`), when to signal it (`session`), what becomes of its output (`output`).

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ChildStdin;

use bytes::{Buf, Bytes};
use hostler_wire::frame::Stream;
use hostler_wire::limits::STDERR_TAIL_BYTES_MAX;
use hostler_wire::{Detail, Fence, Outcome, Usage};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::cgroup::Group;
use crate::clock::{Span, Time};
use crate::kin::{Kin, Marks, Where};
use crate::proc;
use crate::reaper::Reaper;
use crate::signs::Signs;
use crate::spawn::Spawned;

/// How long pipes are read after the main process has ended.
const READ_ON: Span = Span::from_ms(200);
/// How often we look whether processes that were told to end are gone, once their main process is.
const LOOK_AGAIN: Span = Span::from_ms(50);
/// Between TERM and KILL for what outlives a main process that ended by itself.
const LEFT_GRACE: Span = Span::from_ms(300);
/// How long after KILL they are waited for then, so that the end is told within a second of the main process's.
const LEFT_STUCK: Span = Span::from_ms(300);
/// How long after KILL they are waited for otherwise: what still stands then is stuck in the kernel.
const STUCK: Span = Span::from_ms(1_000);
/// Lines of standard error kept with an attempt's end.
const TAIL_LINES_MAX: usize = 20;
/// How many of those that could not be ended are named.
const NAMED_MAX: usize = 8;

/// A running process.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) fence: Fence,
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) stdin: Option<Feed>,
    pub(crate) signs: Signs,
    started_at: Time,
    stdout: Pipe,
    stderr: Pipe,
    /// The end of standard error, a little more than is reported.
    tail: Vec<u8>,
    exited_at: Option<Time>,
    /// It was signalled by us before it ended.
    told: bool,
    kin: Kin,
    pub(crate) group: Option<Group>,
    /// Where it says why it could not become the job's program.
    failure: Option<OwnedFd>,
    left: Left,
    /// How often the kernel had killed for want of memory when this was started.
    pub(crate) oom_kills: u64,
    killed_at: Option<Time>,
    look_at: Time,
}

/// What a main process that ended by itself has left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nobody, as far as we know.
    Nobody,
    /// So many were asked to end, to be killed at that time.
    Asked { count: usize, kill_at: Time },
}

/// One of its outputs.
#[derive(Debug)]
struct Pipe {
    fd: Option<OwnedFd>,
    bytes: u64,
    /// Stands in the loop's line of pipes to be read.
    queued: bool,
}

/// What is still to be written to its standard input.
#[derive(Debug)]
pub(crate) struct Feed {
    pub(crate) pipe: ChildStdin,
    rest: Bytes,
}

/// What a read of a pipe gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// So many bytes.
    Bytes(usize),
    /// Nothing for now.
    Later,
    /// Nothing for ever.
    End,
}

impl Child {
    pub(crate) fn new(
        fence: Fence,
        spawned: Spawned,
        stdin: Option<Bytes>,
        oom_kills: u64,
        now: Time,
    ) -> Self {
        let pipe = |fd| Pipe {
            fd,
            bytes: 0,
            queued: false,
        };
        Self {
            fence,
            pid: spawned.pid,
            pidfd: spawned.pidfd,
            stdin: spawned
                .stdin
                .zip(stdin)
                .map(|(pipe, rest)| Feed { pipe, rest }),
            signs: Signs::new(now),
            started_at: now,
            stdout: pipe(spawned.stdout),
            stderr: pipe(spawned.stderr),
            tail: Vec::new(),
            exited_at: None,
            told: false,
            kin: Kin::new(spawned.marks, spawned.pid)
                .within(spawned.group.as_ref().map(|group| group.path().to_owned())),
            group: spawned.group,
            failure: spawned.failure,
            left: Left::Nobody,
            oom_kills,
            killed_at: None,
            look_at: Time::default(),
        }
    }

    pub(crate) fn pipe(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        match stream {
            Stream::Stdout => self.stdout.fd.as_ref(),
            Stream::Stderr => self.stderr.fd.as_ref(),
        }
        .map(AsFd::as_fd)
    }

    /// Whether that pipe stands in the loop's line of pipes to be read.
    pub(crate) fn queued(&mut self, stream: Stream) -> &mut bool {
        match stream {
            Stream::Stdout => &mut self.stdout.queued,
            Stream::Stderr => &mut self.stderr.queued,
        }
    }

    /// Bytes read so far of standard output and standard error.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.stdout.bytes, self.stderr.bytes)
    }

    /// What each of its processes carries.
    pub(crate) fn marks(&self) -> Marks {
        self.kin.marks
    }

    pub(crate) fn exited(&self) -> bool {
        self.exited_at.is_some()
    }

    /// Writes what its standard input takes; closes it at the end, or when it is not read any more.
    pub(crate) fn feed(&mut self) {
        let Some(feed) = &mut self.stdin else { return };
        while !feed.rest.is_empty() {
            match feed.pipe.write(&feed.rest) {
                Ok(n) => feed.rest.advance(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It has closed its end: its own affair.
                Err(_) => break,
            }
        }
        self.stdin = None;
    }

    /// Reads once into `buffer`.
    pub(crate) fn read(&mut self, stream: Stream, buffer: &mut [u8]) -> Read {
        let pipe = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let Some(fd) = &pipe.fd else { return Read::End };
        let n = loop {
            match rustix::io::read(fd, &mut *buffer) {
                Ok(0) => break 0,
                Ok(n) => break n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Read::Later,
                Err(_) => break 0,
            }
        };
        if n == 0 {
            pipe.fd = None;
            return Read::End;
        }
        pipe.bytes += n as u64;
        if stream == Stream::Stderr {
            keep_tail(&mut self.tail, &buffer[..n]);
        }
        Read::Bytes(n)
    }

    /// Tells all its processes to end, unless the main one has ended by itself.
    pub(crate) fn end(&mut self, now: Time, force: bool, place: Where) {
        self.notice_exit(now);
        if self.exited() && !self.told {
            return;
        }
        self.told = true;
        if force {
            self.kill(now, place);
        } else {
            self.kin.ask(place);
        }
    }

    fn kill(&mut self, now: Time, place: Where) {
        if let Some(group) = &self.group {
            group.kill();
        }
        self.kin.kill(place);
        self.killed_at.get_or_insert(now);
        self.look_at = now;
    }

    /// Looks whether the main process has ended, without reaping it.
    pub(crate) fn notice_exit(&mut self, now: Time) {
        if self.exited() {
            return;
        }
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), look);
        if !matches!(status, Ok(None)) {
            self.exited_at = Some(now);
            self.look_at = now;
            self.stdin = None;
        }
    }

    /// When to ask [`is_over`](Self::is_over) again; `None` while it runs.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.exited_at.map(|_| self.look_at)
    }

    /// Whether everything that is to be waited for has come: the exit, the rest of the output, and the end of all its
    /// processes. `reaper` has looked since the exit was noticed.
    pub(crate) fn is_over(&mut self, now: Time, reaper: &Reaper) -> bool {
        let Some(exited_at) = self.exited_at else {
            return false;
        };
        let read_until = exited_at + READ_ON;
        let closed = self.stdout.fd.is_none() && self.stderr.fd.is_none();
        let read = closed || now >= read_until;
        let place = reaper.place();
        if !self.told && self.left == Left::Nobody {
            let may_have_left =
                reaper.may_have_left(&self.kin, read && !closed) || self.kin.any_in_group();
            if !may_have_left || self.kin.look(place) == 0 {
                self.look_at = read_until;
                return read;
            }
            if now < read_until {
                self.look_at = read_until.min(now + LOOK_AGAIN);
                return false;
            }
            self.kin.ask(place);
            self.left = Left::Asked {
                count: self.kin.living().len(),
                kill_at: now + LEFT_GRACE,
            };
            self.look_at = now;
        }
        if now < self.look_at {
            return false;
        }
        self.look_at = now + LOOK_AGAIN;
        let stuck = match self.left {
            Left::Nobody => STUCK,
            Left::Asked { kill_at, .. } => {
                if now >= kill_at {
                    self.killed_at.get_or_insert(now);
                }
                LEFT_STUCK
            }
        };
        let mut gone = self.kin.look(place) == 0;
        if !gone && self.killed_at.is_some() {
            // Once more each time: it may have multiplied.
            if let Some(group) = &self.group {
                group.kill();
            }
            gone = self.kin.kill(place) == 0;
        }
        let given_up = self.killed_at.is_some_and(|at| now >= at + stuck);
        given_up || gone && read
    }

    /// Reaps it: how it ended, and whether we had told it to.
    pub(crate) fn reap(&mut self, reaper: &mut Reaper) -> (Outcome, Detail, bool) {
        if reaper.place() == Where::Anywhere {
            // Nobody looked unless there was reason to. As long as it is not reaped, its number means its own group.
            proc::signal_group(self.pid, Signal::KILL);
        }
        let (status, mut usage) = wait4(self.pid);
        let ended_at = self.exited_at.unwrap_or(self.started_at);
        usage.wall_ms = (ended_at - self.started_at).us() / 1_000;
        reaper.reaped(self.pid);
        (usage.stdout_bytes, usage.stderr_bytes) = self.bytes();
        let group = self.group.as_ref().map(Group::used);
        if let Some(used) = &group {
            used.tell(&mut usage);
        }
        let mut detail = Detail {
            usage: Some(usage),
            message: self.words_about_others(),
            ..Detail::default()
        };
        let outcome = match status {
            Status::Exited(0) => Outcome::Succeeded,
            Status::Exited(code) => Outcome::Exited { code },
            Status::Signalled(signal) => Outcome::Signalled { signal },
        };
        match status {
            Status::Exited(code) => detail.exit_code = Some(code),
            Status::Signalled(signal) => detail.signal = Some(signal),
        }
        detail.stderr_tail = last_lines(&std::mem::take(&mut self.tail)).to_vec();
        if let Some((errno, message)) = self.failed_to_become() {
            detail = Detail {
                message,
                ..Detail::default()
            };
            return (Outcome::SpawnFailed { errno }, detail, self.told);
        }
        if let Some(used) = group {
            let words = used.words();
            if !words.is_empty() {
                let both = if detail.message.is_empty() { "" } else { "; " };
                detail.message = format!("{words}{both}{}", detail.message);
            }
            let killed = matches!(status, Status::Signalled(9)) && !self.told;
            if killed && used.oom_kills > 0 {
                return (Outcome::OutOfMemory, detail, self.told);
            }
        }
        (outcome, detail, self.told)
    }

    /// Why it ended before it was the job's program, if it did.
    fn failed_to_become(&mut self) -> Option<(i32, String)> {
        let mut words = [0; 512];
        let n = rustix::io::read(self.failure.take()?, &mut words).ok()?;
        let (errno, message) = words[..n].split_first_chunk()?;
        let message = String::from_utf8_lossy(message);
        Some((
            i32::from_le_bytes(*errno),
            format!("cannot start {message}"),
        ))
    }

    /// What became of processes other than its main one, if there is anything to tell.
    fn words_about_others(&self) -> String {
        let living = self.kin.living();
        if self.killed_at.is_some() && !living.is_empty() {
            let named: Vec<String> = living.iter().take(NAMED_MAX).map(u32::to_string).collect();
            let more = if living.len() > NAMED_MAX {
                ", …"
            } else {
                ""
            };
            return format!(
                "{} of its processes could not be ended: {}{more}",
                living.len(),
                named.join(", ")
            );
        }
        match self.left {
            Left::Nobody | Left::Asked { count: 0, .. } => String::new(),
            Left::Asked { count: 1, .. } => "it left a process behind, which was ended".to_owned(),
            Left::Asked { count, .. } => {
                format!("it left {count} processes behind, which were ended")
            }
        }
    }

    /// The worker itself is about to end, and nobody would look after this one any more.
    pub(crate) fn abandon(&mut self, place: Where) {
        self.kin.kill(place);
    }
}

/// Keeps the last bytes; moves them only once as many more have come.
fn keep_tail(tail: &mut Vec<u8>, new: &[u8]) {
    if let Some(enough) = new.last_chunk::<STDERR_TAIL_BYTES_MAX>() {
        tail.clear();
        tail.extend_from_slice(enough);
        return;
    }
    if tail.len() + new.len() > 2 * STDERR_TAIL_BYTES_MAX {
        tail.drain(..tail.len() - STDERR_TAIL_BYTES_MAX);
    }
    tail.extend_from_slice(new);
}

/// The last lines of what is kept, as many as a person wants to see; the first of them may be cut by its bytes.
fn last_lines(tail: &[u8]) -> &[u8] {
    let mut tail = &tail[tail.len().saturating_sub(STDERR_TAIL_BYTES_MAX)..];
    let ends = tail.iter().enumerate().rev().skip(1);
    let cut = ends
        .filter(|(_, byte)| **byte == b'\n')
        .nth(TAIL_LINES_MAX - 1);
    if let Some((at, _)) = cut {
        tail = &tail[at + 1..];
    }
    // Half a character at the front would be shown as a wrong one.
    let halves = tail.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80);
    &tail[halves.count()..]
}

/// How a main process ended.
#[derive(Clone, Copy, Debug)]
enum Status {
    Exited(u8),
    Signalled(u8),
}

/// Reaps one child of ours that has exited, with what it and the children it had reaped have used.
#[expect(
    unsafe_code,
    reason = "neither std nor rustix gives the resource usage of one child"
)]
fn wait4(pid: Pid) -> (Status, Usage) {
    let mut status = 0;
    // SAFETY: `rusage` holds integers only, so all zeros is a value of it.
    let mut rusage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live, writable values of the types wait4 fills, and it keeps neither.
    let reaped = unsafe {
        libc::wait4(
            pid.as_raw_nonzero().get(),
            &raw mut status,
            0,
            &raw mut rusage,
        )
    };
    assert_eq!(
        reaped,
        pid.as_raw_nonzero().get(),
        "a child is reaped once, after its exit was seen"
    );
    let small = |n: i32| u8::try_from(n).expect("the kernel keeps eight bits of it");
    let status = if libc::WIFSIGNALED(status) {
        Status::Signalled(small(libc::WTERMSIG(status)))
    } else {
        Status::Exited(small(libc::WEXITSTATUS(status)))
    };
    let ms = |time: libc::timeval| (time.tv_sec * 1_000 + time.tv_usec / 1_000).unsigned_abs();
    let usage = Usage {
        user_ms: ms(rusage.ru_utime),
        system_ms: ms(rusage.ru_stime),
        peak_rss_bytes: rusage.ru_maxrss.unsigned_abs() * 1_024,
        ..Usage::default()
    };
    (status, usage)
}

#[cfg(test)]
mod tests {
    use hostler_wire::frame::Command;
    use hostler_wire::{Attempt, Epoch, JobId};

    use super::*;
    use crate::spawn::Spawner;

    #[test]
    fn what_ended_before_it_was_told_to_ended_by_itself() {
        let fence = Fence {
            job: JobId::MIN,
            epoch: Epoch::new(1),
            attempt: Attempt::FIRST,
        };
        let command = Command {
            argv: vec!["true".to_owned()],
            env: Vec::new(),
            cwd: None,
            stdin: None,
        };
        let spawned = Spawner::new("w-1".to_owned())
            .spawn(fence, &command, false)
            .unwrap();
        let mut child = Child::new(fence, spawned, None, 0, Time::default());
        // It has ended, but the loop has not noticed yet.
        let exit = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), exit).unwrap();
        let mut reaper = Reaper::new(false);
        child.end(Time::default(), true, reaper.place());
        assert!(child.exited() && child.is_over(Time::default(), &reaper));
        let (outcome, _, told) = child.reap(&mut reaper);
        assert_eq!((outcome, told), (Outcome::Succeeded, false));
    }

    #[test]
    fn the_last_lines_are_twenty_at_most_and_begin_with_a_whole_character() {
        let lines: String = (1..=30).map(|n| format!("line {n}\n")).collect();
        assert!(last_lines(lines.as_bytes()).starts_with(b"line 11\n"));
        assert!(last_lines(lines.trim_end().as_bytes()).starts_with(b"line 11\n"));
        assert_eq!(last_lines(b"\xff\x00 only\n"), b"\xff\x00 only\n");
        assert_eq!(last_lines(b""), b"");
        let long = "é".repeat(STDERR_TAIL_BYTES_MAX);
        let kept = last_lines(&long.as_bytes()[1..]);
        assert!(std::str::from_utf8(kept).is_ok());
        let odd = [long.as_bytes(), b"x"].concat();
        assert_eq!(last_lines(&odd).len(), STDERR_TAIL_BYTES_MAX - 1);
    }

    #[test]
    fn the_tail_is_the_end_whatever_the_pieces() {
        let text: Vec<u8> = (0..40_000u32).map(|n| (n % 251) as u8).collect();
        for piece in [1, 100, 4_000, 4_096, 5_000, 40_000] {
            let mut tail = Vec::new();
            for part in text.chunks(piece) {
                keep_tail(&mut tail, part);
                assert!(tail.len() <= 2 * STDERR_TAIL_BYTES_MAX);
            }
            assert!(tail.len() >= STDERR_TAIL_BYTES_MAX);
            assert!(text.ends_with(&tail), "pieces of {piece}");
        }
    }
}
