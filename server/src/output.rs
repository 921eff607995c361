//! The output thread: what jobs print, in segments of its own files, so that output never slows state.
//!
//! Pieces come from the wire thread by pipe, are appended to the segment being written, and are acknowledged after its
//! sync (semantics 26). They are read back by job, attempt and place, also while they come.
//!
//! A write that fails is not acknowledged: workers keep the output, health shows the trouble, jobs go on.
//!
//! Not here: sockets (`net`), HTTP's forms of it (`http/logs.rs`).

mod files;
mod index;
mod log;
mod page;
mod record;
mod segment;
mod segments;
#[cfg(test)]
mod shadow;
mod thread;
mod verify;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hostler_wire::frame::{Frame, OutputEnd, Stream};
use hostler_wire::{Epoch, JobId};
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::config::Config;
use crate::mailbox::{Sender, Wake, mailbox};
use crate::metrics::{Commits, Counter};

/// Where an attempt's output lives, as the number stored with the attempt: in this server's segments. Other storages
/// will have other numbers.
pub const LOCAL_SEGMENTS: u32 = 0;

/// Where the segments are, in the data directory.
pub const DIR: &str = "output";

/// The smallest limit of an attempt's output: with less, head and tail would be made of crumbs.
pub const LIMIT_BYTES_MIN: u64 = 4_096;

/// What a segment of output has, about.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// The least bound of all output: one segment that is written and one that is looked back on.
pub const TOTAL_BYTES_MIN: u64 = 2 * SEGMENT_BYTES;

/// Most bytes of one page, whatever was asked for: so a reader never holds up writing for long.
pub const PAGE_BYTES_MAX: usize = 1 << 20;

/// Most readers waiting for something new at a time.
pub const WAITING_READERS_MAX: usize = 16_384;

pub use files::{Files, How, OpenFile, SystemFiles};
pub use thread::Keeper;
pub use verify::verify;

/// One output socket's number.
pub type PipeId = u64;

/// How output is kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the segments are.
    pub dir: PathBuf,
    /// Through which they are reached.
    pub files: Arc<dyn Files>,
    /// Most bytes of one attempt (semantics 25), unless its job asked for less, or that nothing be cut.
    pub output_bytes_max: u64,
    /// A segment is sealed at this size.
    pub segment_bytes: u64,
    /// The output of jobs that did not fail goes after this time.
    pub keep: Duration,
    /// All output goes after this time.
    pub keep_failed: Duration,
    /// The oldest sealed segments go when there is more than this.
    pub total_bytes_max: u64,
    /// How long the output of a streamed attempt is there after its end, and after each look at it.
    pub linger: Duration,
}

impl Options {
    /// As configured.
    pub fn new(config: &Config) -> Self {
        Self {
            dir: config.data_dir.join(DIR),
            files: Arc::new(SystemFiles),
            output_bytes_max: config.limits.output_bytes_max,
            segment_bytes: SEGMENT_BYTES,
            keep: config.limits.output_keep,
            keep_failed: config.limits.output_keep_failed,
            total_bytes_max: config.limits.output_total_bytes_max,
            linger: Duration::from_secs(10),
        }
    }
}

/// What the output thread says to the wire thread.
#[derive(Debug)]
pub enum Answer {
    /// Encoded `OutputAck` frames: all of it is on disk.
    Acks {
        /// For which pipe.
        pipe: PipeId,
        /// The frames.
        bytes: BytesMut,
    },
    /// So many bytes of `Output::Frames` no longer wait.
    Taken {
        /// Of which pipe.
        pipe: PipeId,
        /// As they were counted.
        bytes: usize,
    },
    /// Something of this pipe was not taken in: close it, so that its worker sends again what is not acknowledged.
    Refuse {
        /// Which.
        pipe: PipeId,
    },
}

/// How the output thread reaches the wire thread. Leaves nothing behind in the vector.
pub type Answers = Box<dyn FnMut(&mut Vec<Answer>) + Send>;

/// Asks which of these jobs have ended and did not fail: their output has the shorter time. Those that run are not among
/// them.
pub type AskEnds = Box<dyn FnMut(Vec<JobId>) -> PollEnds + Send>;

/// Looks whether the answer is there; an answer of none means that there will not be one.
pub type PollEnds = Box<dyn FnMut() -> Option<Option<Vec<JobId>>> + Send>;

/// Whom the output thread speaks to, and whom it steps back for.
pub struct Ways {
    /// To the wire thread.
    pub answers: Answers,
    /// To the records.
    pub ends: AskEnds,
    /// The database's, on the same disk as a rule.
    pub commits: Arc<Commits>,
}

impl std::fmt::Debug for Ways {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ways").finish_non_exhaustive()
    }
}

/// What others may see of the output thread at any time.
#[derive(Debug, Default)]
pub struct Status {
    /// Bytes appended since the start, records' heads included.
    pub appended_bytes: Counter,
    /// Bytes in all segments.
    pub stored_bytes: Counter,
    /// Batches that could not be stored.
    pub failures: Counter,
    /// Segments deleted for age or size.
    pub retired_segments: Counter,
    /// Bytes on disk that went since the start, by the limit they went for.
    pub retired_bytes: [Counter; Retired::ALL.len()],
    /// Bytes that running attempts wrote since the start and that are not kept.
    pub cut_bytes: Counter,
    /// Attempts of which something was cut.
    pub cut_attempts: Counter,
    /// Locked for a string's copy only.
    trouble: Mutex<Option<String>>,
    /// Damage found at the start, in words.
    damage: Mutex<Vec<String>>,
}

impl Status {
    /// Why output cannot be stored at the moment, if it cannot.
    pub fn trouble(&self) -> Option<String> {
        let trouble = self.trouble.lock();
        trouble.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Segments found damaged at the start, in words.
    pub fn damage(&self) -> Vec<String> {
        let damage = self.damage.lock();
        damage.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trouble(&self, trouble: Option<String>) {
        let mut place = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        *place = trouble;
    }
}

/// Why stored output goes before somebody purges it: the limit of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retired {
    /// There is too much.
    Total,
    /// It is of a job that did not fail, and old enough.
    Kept,
    /// It is as old as any output gets.
    KeptFailed,
}

impl Retired {
    /// Each of them, by its number.
    pub const ALL: [Self; 3] = [Self::Total, Self::Kept, Self::KeptFailed];

    /// The limit's name.
    pub const fn limit(self) -> &'static str {
        match self {
            Self::Total => "output_total_bytes_max",
            Self::Kept => "output_keep",
            Self::KeptFailed => "output_keep_failed",
        }
    }
}

/// Opens the store of output and starts its thread.
pub fn spawn(options: Options, clock: Clock, ways: Ways) -> io::Result<(Handle, JoinHandle<()>)> {
    let (handle, keeper) = open(options, clock, ways)?;
    let thread = std::thread::Builder::new()
        .name("output".into())
        .spawn(move || {
            let _abort = AbortOnPanic;
            keeper.run();
        })?;
    Ok((handle, thread))
}

/// Opens the store of output; whoever called lets it take its turns.
pub fn open(options: Options, clock: Clock, ways: Ways) -> io::Result<(Handle, Keeper)> {
    let status = Arc::new(Status::default());
    let segments = segments::Segments::open(options, clock.wall().millis())?;
    *status.damage.lock().unwrap_or_else(PoisonError::into_inner) = segments.damage().to_vec();
    status.stored_bytes.set(segments.stored_bytes());

    let (sender, inbox) = mailbox(&Wake::parking());
    let shared = Arc::clone(&status);
    let keeper = Keeper::new(segments, inbox, ways, clock, shared);
    Ok((Handle { sender, status }, keeper))
}

/// A bug in here ends the process: a silent thread would hold up all output for ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

/// The language of the output thread's mailbox.
#[derive(Debug)]
pub enum Output {
    /// Frames from a pipe (`OutputStart`, `Chunk`, `OutputEnd`), and what they count against the pending bound.
    Frames {
        /// Which pipe.
        pipe: PipeId,
        /// In order.
        frames: Vec<Frame>,
        /// Bytes on the wire.
        bytes: usize,
    },
    /// A pipe is gone.
    PipeClosed {
        /// Which.
        pipe: PipeId,
    },
    /// Read a job's output.
    Read {
        /// What.
        read: Read,
        /// The page; dropped when the server stops.
        reply: oneshot::Sender<Result<Page, ReadError>>,
    },
    /// Which attempts of a job have output.
    Attempts {
        /// Which job.
        job: JobId,
        /// In order.
        reply: oneshot::Sender<Vec<AttemptOutput>>,
    },
    /// A job's output is no longer wanted.
    Purge {
        /// Which job.
        job: JobId,
        /// When it is gone.
        reply: oneshot::Sender<()>,
    },
    /// Sync, end.
    Stop,
}

/// A question for output.
#[derive(Clone, Copy, Debug)]
pub struct Read {
    /// Whose.
    pub job: JobId,
    /// Which attempt; none = the latest with output.
    pub attempt: Option<u16>,
    /// One stream, or both in the order they came.
    pub stream: Option<Stream>,
    /// From this byte of the selected stream (of both together, as stored, if none is selected).
    pub from: u64,
    /// Most bytes; a page has no more than [`PAGE_BYTES_MAX`].
    pub max: usize,
    /// If there is nothing yet, wait for something: a piece or the end. The caller gives up by dropping.
    pub wait: bool,
    /// Wait no longer than until there is an attempt above this one; the page is empty then.
    pub newer: Option<u16>,
}

/// Some output.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Which attempt this is of; 0 if there is none with output.
    pub attempt: u16,
    /// In order.
    pub pieces: Vec<Piece>,
    /// Where the next page begins.
    pub next: u64,
    /// Where the selection ends so far, in the count of `from` and `next`: there is more while `next` is below it.
    pub stored: u64,
    /// The attempt's output is complete: nothing will be added.
    pub ended: Option<OutputEnd>,
    /// Bytes of the selection that were written by the job but not kept.
    pub cut: u64,
}

/// A piece of one stream.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Which.
    pub stream: Stream,
    /// Its place in that stream.
    pub offset: u64,
    /// Its place in the selection, in the count of [`Read::from`].
    pub at: u64,
    /// When the worker read it, wall milliseconds.
    pub at_ms: u64,
    /// The bytes.
    pub data: Bytes,
}

/// An attempt's output at a glance.
#[derive(Clone, Copy, Debug)]
pub struct AttemptOutput {
    /// Its number.
    pub attempt: u16,
    /// Its epoch.
    pub epoch: Epoch,
    /// Bytes of standard output stored.
    pub stdout_bytes: u64,
    /// Bytes of standard error stored.
    pub stderr_bytes: u64,
    /// Nothing will be added.
    pub ended: bool,
}

/// Why output cannot be read.
#[derive(Clone, Debug)]
pub enum ReadError {
    /// Reading the files failed, in words.
    Io(String),
    /// A checksum does not fit: the place, in words. Never served as if it were right.
    Corrupt(String),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::InvalidData {
            Self::Corrupt(error.to_string())
        } else {
            Self::Io(error.to_string())
        }
    }
}

/// The other threads' end of the output thread.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: Sender<Output>,
    status: Arc<Status>,
}

impl Handle {
    /// A handle on that mailbox.
    pub fn new(sender: Sender<Output>) -> Self {
        Self {
            sender,
            status: Arc::default(),
        }
    }

    /// What may be seen without asking.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Frames of a pipe.
    pub fn frames(&self, pipe: PipeId, frames: Vec<Frame>, bytes: usize) {
        self.sender.send(Output::Frames {
            pipe,
            frames,
            bytes,
        });
    }

    /// A pipe is gone.
    pub fn pipe_closed(&self, pipe: PipeId) {
        self.sender.send(Output::PipeClosed { pipe });
    }

    /// A page of output.
    pub fn read(&self, read: Read) -> oneshot::Receiver<Result<Page, ReadError>> {
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Output::Read { read, reply });
        receiver
    }

    /// Which attempts have output.
    pub fn attempts(&self, job: JobId) -> oneshot::Receiver<Vec<AttemptOutput>> {
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Output::Attempts { job, reply });
        receiver
    }

    /// Forgets a job's output.
    pub fn purge(&self, job: JobId) -> oneshot::Receiver<()> {
        let (reply, receiver) = oneshot::channel();
        self.sender.send(Output::Purge { job, reply });
        receiver
    }

    /// The last message.
    pub fn stop(&self) {
        self.sender.send(Output::Stop);
    }
}
