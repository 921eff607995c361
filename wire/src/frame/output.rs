//! The output pipe: pieces with offsets one way, acknowledged offsets the other.

use bytes::Bytes;

use crate::Fence;
use crate::codec::{DecodeError, Reader, Wire, Writer, coded};
use crate::frame::assign::{Logs, LogsMode};
use crate::limits::CHUNK_BYTES_MAX;

/// Which of a process's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Stream {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

/// What the output of an attempt is to become. Sent on each connection before anything else of that attempt, so that
/// whoever stores it need not know the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputStart {
    /// Whose.
    pub fence: Fence,
    /// What its job asked for; an attempt of mode `none` has no output, so nothing is said of it.
    pub logs: Logs,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Whose.
    pub fence: Fence,
    /// Which stream.
    pub stream: Stream,
    /// Where it begins in that stream, bytes from its start.
    pub offset: u64,
    /// When it was read, milliseconds since 1970 by the worker's wall clock: for people, never for order.
    pub at_ms: u64,
    /// The bytes.
    pub data: Bytes,
}

/// There will be no more from this attempt. Acknowledged by an `OutputAck` of both totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputEnd {
    /// Whose.
    pub fence: Fence,
    /// Bytes of standard output in all, kept or not.
    pub stdout_bytes: u64,
    /// Bytes of standard error in all, kept or not.
    pub stderr_bytes: u64,
    /// Of these, bytes the worker had to drop (its spool was full); 0 almost always.
    pub dropped_bytes: u64,
}

/// Safe on the server's disk up to here: the worker may forget it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputAck {
    /// Whose.
    pub fence: Fence,
    /// Bytes of standard output.
    pub stdout_through: u64,
    /// Bytes of standard error.
    pub stderr_through: u64,
    /// The end is recorded too: forget the attempt's output altogether.
    pub ended: bool,
}

coded!(Stream, "stream" { Stdout = 1, Stderr = 2 });

impl Wire for OutputStart {
    const BYTES_MIN: usize = Fence::BYTES_MIN + Logs::BYTES_MIN;

    fn write(&self, to: &mut Writer<'_>) {
        debug_assert_ne!(self.logs.mode, LogsMode::None);
        self.fence.write(to);
        self.logs.write(to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let start = Self {
            fence: Fence::read(from)?,
            logs: Logs::read(from)?,
        };
        match start.logs.mode {
            LogsMode::Keep | LogsMode::Stream => Ok(start),
            LogsMode::None => Err(DecodeError::new(
                "output",
                "starts though it goes to nobody",
            )),
        }
    }
}

impl Wire for Chunk {
    const BYTES_MIN: usize = Fence::BYTES_MIN + 21;

    fn write(&self, to: &mut Writer<'_>) {
        to.reserve(Self::BYTES_MIN + self.data.len());
        self.fence.write(to);
        self.stream.write(to);
        to.u64(self.offset);
        to.u64(self.at_ms);
        to.long_bytes("output", &self.data, CHUNK_BYTES_MAX);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let chunk = Self {
            fence: Fence::read(from)?,
            stream: Stream::read(from)?,
            offset: from.u64()?,
            at_ms: from.u64()?,
            data: from.long_bytes("output", CHUNK_BYTES_MAX)?,
        };
        match chunk.offset.checked_add(chunk.data.len() as u64) {
            Some(_) => Ok(chunk),
            None => Err(DecodeError::new("output", "ends beyond 2^64")),
        }
    }
}

impl Wire for OutputEnd {
    const BYTES_MIN: usize = Fence::BYTES_MIN + 24;

    fn write(&self, to: &mut Writer<'_>) {
        self.fence.write(to);
        to.u64(self.stdout_bytes);
        to.u64(self.stderr_bytes);
        to.u64(self.dropped_bytes);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            fence: Fence::read(from)?,
            stdout_bytes: from.u64()?,
            stderr_bytes: from.u64()?,
            dropped_bytes: from.u64()?,
        })
    }
}

impl Wire for OutputAck {
    const BYTES_MIN: usize = Fence::BYTES_MIN + 17;

    fn write(&self, to: &mut Writer<'_>) {
        self.fence.write(to);
        to.u64(self.stdout_through);
        to.u64(self.stderr_through);
        to.bool(self.ended);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            fence: Fence::read(from)?,
            stdout_through: from.u64()?,
            stderr_through: from.u64()?,
            ended: from.bool("ended")?,
        })
    }
}
