//! Work given out, called back, cancelled or voided.

use bytes::Bytes;

use crate::Fence;

/// Run these. Sent only after the assignment's commit (P2).
#[derive(Clone, Debug, PartialEq)]
pub struct Assign {
    /// Number of this frame within the session, from 1; echoed in the worker's beats.
    pub seq: u64,
    /// In the order they should start.
    pub jobs: Vec<Assignment>,
}

/// One attempt given to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Names it for ever.
    pub fence: Fence,
    /// An encoded [`Work`], the very bytes that were stored at intake.
    pub body: Bytes,
}

/// What a worker needs to know to run a job. Encoded once at intake, stored, and sent as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// Kill the attempt after this long, milliseconds from its start.
    pub timeout_ms: Option<u64>,
    /// Between TERM and KILL, milliseconds; the worker's own default if none.
    pub grace_ms: Option<u64>,
    /// What to do when the server cannot be reached.
    pub on_partition: OnPartition,
    /// What becomes of its output.
    pub logs: Logs,
    /// The thing to do.
    pub task: Task,
}

/// The thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Start a process.
    Command(Command),
    /// Call a function in the worker.
    Handler(Handler),
}

/// A process to start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments; at least one.
    pub argv: Vec<String>,
    /// Added to the worker's cleaned environment.
    pub env: Vec<(String, String)>,
    /// Working directory; the worker's own if none.
    pub cwd: Option<String>,
    /// Standard input; `/dev/null` if none.
    pub stdin: Option<Bytes>,
}

/// A function to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    /// Its name.
    pub name: String,
    /// JSON text, as it was submitted.
    pub payload: Bytes,
}

/// What a cut-off worker does with a running attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OnPartition {
    /// Work goes on; its result counts if it is still current.
    #[default]
    Keep = 0,
    /// The worker kills it when its lease ends.
    Stop = 1,
}

/// What becomes of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logs {
    /// Kept, shown only while it runs, or dropped.
    pub mode: LogsMode,
    /// Most bytes kept of one attempt.
    pub limit_bytes: u64,
    /// What happens above that.
    pub overflow: Overflow,
}

/// Whether output is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum LogsMode {
    /// Kept for its retention time.
    #[default]
    Keep = 0,
    /// Passed to whoever follows, dropped when the job ends.
    Stream = 1,
    /// Goes to `/dev/null`.
    None = 2,
}

/// What happens above the output limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Overflow {
    /// The middle is dropped and counted.
    #[default]
    Drop = 0,
    /// The job waits in its write.
    Block = 1,
}

/// Give these back if they have not started; answered by `Returned`, or not at all for those that had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recall {
    /// Which.
    pub fences: Vec<Fence>,
}

/// End an attempt: TERM, wait, KILL; or withdraw it unstarted. Always answered by a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cancel {
    /// Which.
    pub fence: Fence,
    /// KILL at once.
    pub force: bool,
}

/// End these attempts and forget them: nobody wants a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Which.
    pub fences: Vec<Fence>,
}
