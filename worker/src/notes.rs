//! What commands say of their progress: one datagram socket, whose path is in each command's environment.
//!
//! A datagram is a line of JSON, `{"job":1042,"fence":458753,"progress":0.4,"note":"frame 4"}`, with job and fence as the
//! environment has them; progress and note may be left out, which makes it a heartbeat. Whoever sends from a named
//! socket is answered, `{"ok":true}` or `{"ok":false,"why":"…"}`, and should wait for that.
//!
//! Nobody is believed for the fence alone: the kernel tells who sent. That must be our own user (or root), and a process
//! of that attempt's group or one that has inherited its environment.
//!
//! Bounded (P7): a datagram has 4 KiB at most, the kernel keeps a handful of them, and no more than 8 are taken in 10 ms;
//! whoever sends more waits in its send. The socket lies in a directory of its own that only our user may enter.
//!
//! Not here: what becomes of a word (`signs`), which attempts run (`worker`).

use std::fs::{self, DirBuilder};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use hostler_wire::{Attempt, Epoch, Fence, JobId};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, SocketAddrAny,
    SocketAddrUnix, UCred,
};
use rustix::process::Pid;
use serde_json::Value;

use crate::clock::{Span, Time};
use crate::kin::Marks;
use crate::proc;

/// Longest datagram.
const DATAGRAM_BYTES_MAX: usize = 4_096;
/// Datagrams taken at once, and how long the next are left waiting if there were as many.
const DATAGRAMS_AT_ONCE: usize = 8;
const PAUSE: Span = Span::from_ms(10);
/// Directories of workers that were killed begin like ours; so many are tidied away at a start.
const PREFIX: &str = "hostler-worker-";
const LEFT_OVER_MAX: usize = 64;

/// The socket.
#[derive(Debug)]
pub(crate) struct Notes {
    socket: UnixDatagram,
    directory: PathBuf,
    path: PathBuf,
    /// It may have something to read.
    pub(crate) ready: bool,
    again_at: Option<Time>,
}

/// A word that came in, of whose sender the kernel has told.
#[derive(Debug)]
pub(crate) struct Note {
    pub(crate) fence: Fence,
    pub(crate) progress: Option<f32>,
    pub(crate) text: Option<String>,
    sender: Sender,
}

#[derive(Debug)]
struct Sender {
    pid: Pid,
    address: Option<SocketAddrAny>,
}

impl Notes {
    /// A socket in a new directory within `parent`.
    pub(crate) fn listen(parent: &Path) -> io::Result<Self> {
        tidy(parent);
        let number = getrandom::u64().map_err(io::Error::other)?;
        let directory = parent.join(format!("{PREFIX}{number:016x}"));
        DirBuilder::new().mode(0o700).create(&directory)?;
        let path = directory.join("progress");
        let listen = || -> io::Result<UnixDatagram> {
            let socket = UnixDatagram::bind(&path)?;
            socket.set_nonblocking(true)?;
            rustix::net::sockopt::set_socket_passcred(&socket, true)?;
            Ok(socket)
        };
        let socket = listen().inspect_err(|_| remove(&directory))?;
        Ok(Self {
            socket,
            directory,
            path,
            ready: false,
            again_at: None,
        })
    }

    /// What commands find in their environment.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// When to [`take`](Self::take) again, if nothing else happens first.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.again_at.filter(|_| self.ready)
    }

    /// What has come, some of it.
    pub(crate) fn take(&mut self, now: Time) -> Vec<Note> {
        let mut notes = Vec::new();
        if !self.ready || self.again_at.is_some_and(|at| now < at) {
            return notes;
        }
        self.again_at = None;
        for _ in 0..DATAGRAMS_AT_ONCE {
            match self.receive() {
                Ok(Some(note)) => notes.push(note),
                Ok(None) => {}
                Err(_nothing_left) => {
                    self.ready = false;
                    return notes;
                }
            }
        }
        self.again_at = Some(now + PAUSE);
        notes
    }

    /// One datagram; none if it was not worth anything. An error means that there is nothing to be had.
    fn receive(&self) -> io::Result<Option<Note>> {
        let mut buffer = [0; DATAGRAM_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
        let mut told = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = rustix::net::recvmsg(&self.socket, &mut parts, &mut told, flags)?;
        let credentials = told.drain().find_map(|it| match it {
            RecvAncillaryMessage::ScmCredentials(credentials) => Some(credentials),
            RecvAncillaryMessage::ScmRights(_) | _ => None,
        });
        let Some(UCred { pid, uid, .. }) = credentials else {
            return Ok(None);
        };
        let sender = Sender {
            pid,
            address: received.address,
        };
        if !uid.is_root() && uid != rustix::process::geteuid() {
            self.answer(&sender, Err("it comes from another user"));
            return Ok(None);
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            self.answer(&sender, Err("it has more than 4096 bytes"));
            return Ok(None);
        }
        let Some(word) = Word::parse(&buffer[..received.bytes]) else {
            self.answer(
                &sender,
                Err("it is not {\"job\":…,\"fence\":…,\"progress\":0.4,\"note\":\"…\"}"),
            );
            return Ok(None);
        };
        Ok(Some(Note {
            fence: word.fence,
            progress: word.progress,
            text: word.text,
            sender,
        }))
    }

    /// Tells the sender what became of its word.
    pub(crate) fn reply(&self, note: &Note, taken: Result<(), &str>) {
        self.answer(&note.sender, taken);
    }

    fn answer(&self, sender: &Sender, taken: Result<(), &str>) {
        let text = match taken {
            Ok(()) => serde_json::json!({"ok": true}),
            Err(why) => {
                tracing::debug!(pid = %sender.pid, why, "a word of progress was not taken");
                serde_json::json!({"ok": false, "why": why})
            }
        };
        let address = sender.address.clone().map(SocketAddrUnix::try_from);
        if let Some(Ok(address)) = address {
            let text = text.to_string();
            // Who does not listen has no answer, and we do not wait.
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let sent = rustix::net::sendto(&self.socket, text.as_bytes(), flags, &address);
            if let Err(error) = sent {
                tracing::debug!(pid = %sender.pid, %error, "the answer does not arrive");
            }
        }
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

impl Note {
    /// Whether it comes from a process of the attempt with these marks, whose group that is. What left the group
    /// (`setsid`) still has the marks, unless it took care to lose them.
    pub(crate) fn is_from(&self, group: Pid, marks: Marks) -> bool {
        let pid = self.sender.pid;
        rustix::process::getpgid(Some(pid)).is_ok_and(|its| its == group)
            || Marks::read(&proc::environment(proc::number(pid))) == Some(marks)
    }
}

/// A datagram's text.
#[derive(Debug, PartialEq)]
struct Word {
    fence: Fence,
    progress: Option<f32>,
    text: Option<String>,
}

impl Word {
    fn parse(datagram: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(datagram).ok()?;
        let rising = value.get("fence")?.as_u64()?;
        let fence = Fence {
            job: JobId::new(value.get("job")?.as_u64()?)?,
            epoch: Epoch::new(u32::try_from(rising >> 16).ok()?),
            attempt: Attempt::new(u16::try_from(rising & 0xffff).ok()?)?,
        };
        let progress = match value.get("progress") {
            None | Some(Value::Null) => None,
            Some(share) => Some(share.as_f64().filter(|it| (0.0..=1.0).contains(it))?),
        };
        let text = match value.get("note") {
            None | Some(Value::Null) => None,
            Some(note) => Some(note.as_str()?.to_owned()),
        };
        #[expect(clippy::cast_possible_truncation, reason = "a share of a whole")]
        let progress = progress.map(|share| share as f32);
        Some(Self {
            fence,
            progress,
            text,
        })
    }
}

/// Takes away what workers left behind that were killed: sockets nobody listens at.
fn tidy(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    let ours = entries.flatten().filter(|entry| {
        let name = entry.file_name();
        name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
    });
    for entry in ours.take(LEFT_OVER_MAX) {
        let directory = entry.path();
        let probe =
            UnixDatagram::unbound().and_then(|socket| socket.connect(directory.join("progress")));
        if probe.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            remove(&directory);
        }
    }
}

fn remove(directory: &Path) {
    // Another user's, or gone already: not ours to mend.
    drop(fs::remove_file(directory.join("progress")));
    drop(fs::remove_dir(directory));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kin::Origin;

    const FENCE: Fence = Fence {
        job: JobId::MIN,
        epoch: Epoch::new(7),
        attempt: Attempt::FIRST,
    };

    fn word(rest: &str) -> String {
        let (job, fence) = (FENCE.job, FENCE.rising());
        format!(r#"{{"job":{job},"fence":{fence}{rest}}}"#)
    }

    fn answer(socket: &UnixDatagram) -> Value {
        let mut buffer = [0; 1_024];
        let n = socket.recv(&mut buffer).unwrap();
        serde_json::from_slice(&buffer[..n]).unwrap()
    }

    #[test]
    fn a_word_names_its_attempt_and_says_what_it_says_and_nothing_else_is_one() {
        let taken = Word::parse(word(r#","progress":0.25,"note":"a""#).as_bytes()).unwrap();
        assert_eq!((taken.fence, taken.progress), (FENCE, Some(0.25)));
        assert_eq!(taken.text.as_deref(), Some("a"));
        let beat = Word::parse(word("").as_bytes()).unwrap();
        assert_eq!((beat.progress, beat.text), (None, None));
        for wrong in [
            "0.4 text".to_owned(),
            "{}".to_owned(),
            r#"{"job":0,"fence":65537}"#.to_owned(),
            r#"{"job":1,"fence":65536}"#.to_owned(),
            r#"{"job":1,"fence":18446744073709551615}"#.to_owned(),
            word(r#","progress":1.5"#),
            word(r#","progress":"half""#),
            word(r#","note":7"#),
        ] {
            assert_eq!(Word::parse(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn the_kernel_tells_who_sent_and_the_sender_is_answered() {
        let scratch = tempfile::tempdir().unwrap();
        let mut notes = Notes::listen(scratch.path()).unwrap();
        let client = UnixDatagram::bind(scratch.path().join("client")).unwrap();
        client
            .send_to(word(r#","note":"x""#).as_bytes(), notes.path())
            .unwrap();
        client.send_to(b"nonsense", notes.path()).unwrap();
        client
            .send_to(&[b' '; DATAGRAM_BYTES_MAX + 1], notes.path())
            .unwrap();
        notes.ready = true;
        let taken = notes.take(Time::default());
        assert_eq!(taken.len(), 1);
        assert!(!notes.ready, "everything was taken");
        let marks = Marks::new(FENCE, Origin::default());
        assert!(taken[0].is_from(rustix::process::getpgrp(), marks));
        let other = Pid::from_raw(i32::MAX).unwrap();
        assert!(
            !taken[0].is_from(other, marks),
            "nor is our environment a job's"
        );
        assert!(
            answer(&client)["why"]
                .as_str()
                .unwrap()
                .starts_with("it is not")
        );
        assert!(answer(&client)["why"].as_str().unwrap().contains("4096"));
        notes.reply(&taken[0], Ok(()));
        assert_eq!(answer(&client)["ok"], true);
    }

    #[test]
    fn whoever_sends_without_end_is_taken_a_little_at_a_time() {
        let scratch = tempfile::tempdir().unwrap();
        let mut notes = Notes::listen(scratch.path()).unwrap();
        let client = UnixDatagram::unbound().unwrap();
        client.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while sent < 1_000 && client.send_to(word("").as_bytes(), notes.path()).is_ok() {
            sent += 1;
        }
        assert!(sent > DATAGRAMS_AT_ONCE, "the kernel keeps some");
        assert!(sent < 1_000, "and then lets the sender wait");
        notes.ready = true;
        assert_eq!(notes.take(Time::default()).len(), DATAGRAMS_AT_ONCE);
        let again = Time::default() + PAUSE;
        assert_eq!(notes.next_deadline(), Some(again));
        assert_eq!(notes.take(Time::default()).len(), 0, "not before");
        let mut taken = DATAGRAMS_AT_ONCE;
        let mut now = again;
        while let Some(at) = notes.next_deadline() {
            now = at.max(now);
            taken += notes.take(now).len();
        }
        assert_eq!(taken, sent, "none is lost");
    }

    #[test]
    fn what_a_killed_worker_left_behind_goes_and_a_living_ones_stays() {
        let scratch = tempfile::tempdir().unwrap();
        let living = Notes::listen(scratch.path()).unwrap();
        let dead = scratch.path().join(format!("{PREFIX}dead"));
        fs::create_dir(&dead).unwrap();
        drop(UnixDatagram::bind(dead.join("progress")).unwrap());
        let strange = scratch.path().join(format!("{PREFIX}strange"));
        fs::create_dir(&strange).unwrap();
        let next = Notes::listen(scratch.path()).unwrap();
        assert!(living.directory.exists() && next.directory.exists());
        assert!(!dead.exists());
        assert!(
            strange.exists(),
            "what has no socket may be about to get one"
        );
        let gone = next.directory.clone();
        drop(next);
        assert!(!gone.exists());
    }
}
