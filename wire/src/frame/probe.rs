//! How is it doing right now? Asked down the control socket, answered by the worker's loop, never by the job.

use crate::Fence;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Comes back in the reply.
    pub ask: u64,
    /// Which attempts.
    pub fences: Vec<Fence>,
}

/// The answer. Attempts the worker does not hold are left out.
#[derive(Clone, Debug, PartialEq)]
pub struct ProbeReply {
    /// Of the question.
    pub ask: u64,
    /// One for each attempt found.
    pub lives: Vec<Live>,
}

/// One attempt, live.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Live {
    /// Which.
    pub fence: Option<Fence>,
    /// It has started; otherwise it waits in the worker's hands.
    pub started: bool,
    /// Main process, 0 for a handler.
    pub pid: u32,
    /// Processes in its group.
    pub processes: u32,
    /// CPU time of the group, milliseconds.
    pub cpu_ms: u64,
    /// Resident memory of the group, bytes.
    pub rss_bytes: u64,
    /// Bytes read from standard output so far.
    pub stdout_bytes: u64,
    /// Bytes read from standard error so far.
    pub stderr_bytes: u64,
    /// 0.0..=1.0, if the job says.
    pub progress: Option<f32>,
    /// Its latest note, or empty.
    pub note: String,
}
