//! What a worker tells of its attempts, and the heartbeats of both.

use crate::{Detail, Fence, Outcome};

/// These start now. Written to the socket before exec, so that a loss can be charged to who had really started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Which.
    pub fences: Vec<Fence>,
}

/// These ended. The worker keeps each until an `Ack` covers its number (P4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reports {
    /// Number of the first; the rest follow without gaps. Numbering continues over reconnects.
    pub first: u64,
    /// In the order they ended.
    pub reports: Vec<Report>,
}

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which.
    pub fence: Fence,
    /// How.
    pub outcome: Outcome,
    /// The worker had carried out a `Cancel` on it (a signal was sent, or it was withdrawn unstarted).
    pub cancelled: bool,
    /// It had started.
    pub started: bool,
    /// How long it ran, microseconds.
    pub run_us: u64,
    /// Words and figures, if there are any.
    pub detail: Option<Box<Detail>>,
}

/// These were given back unstarted and are forgotten by the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Which.
    pub fences: Vec<Fence>,
    /// The worker is draining: send nothing more.
    pub draining: bool,
}

/// Every report up to and including this number is committed or void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The number.
    pub through: u64,
}

/// Still here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    /// From a worker: the last assign sequence received; credits are compared as of it. From the server: 0.
    pub assign_seq: u64,
    /// From a worker: attempts it holds that have not ended. From the server: 0.
    pub held: u32,
}
