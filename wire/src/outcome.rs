//! How an attempt ended, as the worker saw it. Whether the job goes on is the engine's to say.

/// The way an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Exit code 0, or the handler returned a result.
    Succeeded,
    /// Another exit code.
    Exited {
        /// 1..=255.
        code: u8,
    },
    /// Ended by a signal nobody at Hostler sent on purpose.
    Signalled {
        /// The signal's number.
        signal: u8,
    },
    /// Killed by the kernel for want of memory.
    OutOfMemory,
    /// The worker ended it because `timeout_ms` ran out.
    TimedOut,
    /// The worker ended it because it gave no sign of life for `stall_ms`.
    Stalled,
    /// The command could not be started and trying again here is pointless.
    SpawnFailed {
        /// The operating system's error number.
        errno: i32,
    },
    /// The handler returned an error or panicked.
    HandlerFailed {
        /// No retry, whatever the policy says.
        fatal: bool,
        /// Try again after this many milliseconds instead of the back-off.
        retry_after_ms: Option<u64>,
    },
    /// No handler of that name on this worker.
    NoSuchHandler,
    /// Given back uncharged: never started, could not start for want of resources (EAGAIN and its like), or drained.
    Returned,
}

/// What an attempt used. Sums over its process tree as far as the kernel tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// From its start to its end by the worker's clock, milliseconds.
    pub wall_ms: u64,
    /// CPU time in user mode, milliseconds.
    pub user_ms: u64,
    /// CPU time in the kernel, milliseconds.
    pub system_ms: u64,
    /// Largest resident size of one process, bytes.
    pub peak_rss_bytes: u64,
    /// Bytes written to standard output.
    pub stdout_bytes: u64,
    /// Bytes written to standard error.
    pub stderr_bytes: u64,
}

/// The words that go with an end; boxed where they travel, since most jobs have none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Exit code, if the process had one (a cancelled job's real one, for instance).
    pub exit_code: Option<u8>,
    /// Signal that ended it, if one did.
    pub signal: Option<u8>,
    /// One sentence for a person.
    pub message: String,
    /// What a handler returned, as JSON text; empty for none.
    pub result: Vec<u8>,
    /// The last lines of standard error.
    pub stderr_tail: Vec<u8>,
    /// What it used, where that is known.
    pub usage: Option<Usage>,
}
