//! The output pipe: pieces with offsets one way, acknowledged offsets the other.

use bytes::Bytes;

use crate::Fence;

/// Which of a process's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Stream {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
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
