//! The output thread: what jobs print, in segments of its own files, so that output never slows state.
//!
//! Not here: sockets (`net`), HTTP's forms of it (`http/logs.rs`).

use bytes::Bytes;
use hostler_wire::frame::{Frame, OutputEnd, Stream};
use hostler_wire::{Epoch, JobId};
use tokio::sync::oneshot;

use crate::mailbox::Sender;

/// One output socket's number.
pub type PipeId = u64;

/// The language of the output thread's mailbox.
#[derive(Debug)]
pub enum Output {
    /// Frames from a pipe (`Chunk`, `OutputEnd`), and what they count against the pending bound.
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
    /// Most bytes.
    pub max: usize,
    /// If there is nothing yet, wait for something: a piece, the end, or a new attempt. The caller gives up by dropping.
    pub wait: bool,
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
    /// Bytes of the selection stored so far.
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

/// The other threads' end of the output thread.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: Sender<Output>,
}

impl Handle {
    /// A handle on that mailbox.
    pub fn new(sender: Sender<Output>) -> Self {
        Self { sender }
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
