//! Who is meant: ids of jobs, workers and sessions, attempt numbers, epochs, and the fence made of them.
//!
//! Parsing and printing only. Generating ids is the store's (`server/store/ids.rs`) and the engine's business.

use std::fmt;
use std::str::FromStr;

/// A job. Sequential, never reused, between 1 and 2^53 − 1 so that it survives every JSON parser.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

impl JobId {
    /// The smallest id ever given out.
    pub const MIN: Self = Self(1);
    /// The largest id a JSON number carries exactly.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// The id with this number, if it lies within [`MIN`](Self::MIN)..=[`MAX`](Self::MAX).
    pub const fn new(raw: u64) -> Option<Self> {
        if raw >= Self::MIN.0 && raw <= Self::MAX.0 {
            Some(Self(raw))
        } else {
            None
        }
    }

    /// The number itself.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The id `n` places later.
    ///
    /// # Panics
    /// If that is above [`MAX`](Self::MAX): at a million jobs a second, 285 years away.
    pub const fn plus(self, n: u64) -> Self {
        let raw = self.0 + n;
        assert!(raw <= Self::MAX.0, "job ids are exhausted");
        Self(raw)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {}", self.0)
    }
}

impl FromStr for JobId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        // The standard parser also takes a leading plus, and zeros before the first digit that counts: a job has one name.
        if text.starts_with(['+', '0']) {
            return Err(InvalidId);
        }
        text.parse().ok().and_then(Self::new).ok_or(InvalidId)
    }
}

/// A text that is no job id: not a whole number from 1 to 2^53 − 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidId;

impl fmt::Display for InvalidId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a job id is a whole number from 1 to 9007199254740991")
    }
}

impl std::error::Error for InvalidId {}

/// One try at a job, counted from 1. Shown as `1042.2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(u16);

impl Attempt {
    /// The first try.
    pub const FIRST: Self = Self(1);

    /// The attempt with this number; none is numbered 0.
    pub const fn new(raw: u16) -> Option<Self> {
        if raw >= 1 { Some(Self(raw)) } else { None }
    }

    /// The number itself.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// The one after it, unless the numbers are exhausted (the job then fails as `too_many_attempts`).
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a server's start: durable before its first assignment, growing with each start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(u32);

impl Epoch {
    /// The epoch with this number.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What names one assignment for ever: job, epoch and attempt. A report with another fence than the job's current one
/// changes nothing (P3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence {
    /// The job.
    pub job: JobId,
    /// The server's start that gave it out.
    pub epoch: Epoch,
    /// Which try at the job.
    pub attempt: Attempt,
}

impl Fence {
    /// The number a job finds in `HOSTLER_FENCE`: it rises with each assignment of the job, so that whatever the job
    /// writes to can refuse an older one.
    pub const fn rising(self) -> u64 {
        ((self.epoch.0 as u64) << 16) | self.attempt.0 as u64
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.job, self.attempt)
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}", self.job, self.attempt, self.epoch)
    }
}

/// A worker instance: one start of a worker process. Durable, given out by the engine at its first hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(u32);

impl WorkerId {
    /// The worker with this number.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// One accepted control connection of a worker. Unique within an epoch; given out by the wire thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(u64);

impl SessionId {
    /// The session with this number.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The number itself.
    pub const fn raw(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_is_a_whole_number_a_json_parser_keeps() {
        for (text, raw) in [
            ("1", 1),
            ("1042", 1042),
            ("9007199254740991", JobId::MAX.raw()),
        ] {
            assert_eq!(text.parse().map(JobId::raw), Ok(raw));
        }
        for text in [
            "",
            "0",
            "01",
            "-1",
            "+1",
            "1.5",
            " 1",
            "1042.2",
            "9007199254740992",
            "99999999999999999999",
        ] {
            assert_eq!(text.parse::<JobId>(), Err(InvalidId), "{text:?}");
        }
    }

    #[test]
    fn the_fence_a_job_sees_rises_with_each_assignment() {
        let rising = |epoch, attempt| {
            let (epoch, attempt) = (Epoch::new(epoch), Attempt::new(attempt).unwrap());
            Fence {
                job: JobId::MIN,
                epoch,
                attempt,
            }
            .rising()
        };
        assert!(rising(1, 1) < rising(1, 2));
        assert!(rising(1, u16::MAX) < rising(2, 1));
        assert_eq!(rising(u32::MAX, u16::MAX), (1 << 48) - 1);
    }
}
