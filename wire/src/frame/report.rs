//! What a worker tells of its attempts, and the heartbeats of both.

use crate::codec::{DecodeError, Reader, Wire, Writer, flag};
use crate::limits::{BATCH_ITEMS_MAX, MESSAGE_BYTES_MAX, RESULT_BYTES_MAX, STDERR_TAIL_BYTES_MAX};
use crate::{Detail, Fence, Outcome, Usage};

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

const CANCELLED: u8 = 1;
const STARTED: u8 = 2;
const HAS_DETAIL: u8 = 4;

impl Report {
    /// Bytes it takes in a `Reports`, so that a sender can tell what fits into one frame.
    pub fn encoded_bytes(&self) -> usize {
        // The longest outcome takes nine bytes more than the shortest.
        Self::BYTES_MIN
            + 9
            + self
                .detail
                .as_ref()
                .map_or(0, |detail| encoded_bytes_max(detail))
    }
}

fn encoded_bytes_max(detail: &Detail) -> usize {
    Detail::BYTES_MIN
        + 2
        + Usage::BYTES_MIN
        + detail.message.len()
        + detail.result.len()
        + detail.stderr_tail.len()
}

impl Wire for Started {
    const BYTES_MIN: usize = 4;

    fn write(&self, to: &mut Writer<'_>) {
        to.list("fences", &self.fences, BATCH_ITEMS_MAX);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            fences: from.list("fences", BATCH_ITEMS_MAX)?,
        })
    }
}

impl Wire for Reports {
    const BYTES_MIN: usize = 12;

    fn write(&self, to: &mut Writer<'_>) {
        to.u64(self.first);
        to.list("reports", &self.reports, BATCH_ITEMS_MAX);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let first = from.u64()?;
        let reports = from.list("reports", BATCH_ITEMS_MAX)?;
        if first == 0 || first.checked_add(reports.len() as u64).is_none() {
            return Err(from.error("has numbers outside 1..2^64"));
        }
        Ok(Self { first, reports })
    }
}

impl Wire for Report {
    const BYTES_MIN: usize = Fence::BYTES_MIN + 10;

    fn write(&self, to: &mut Writer<'_>) {
        self.fence.write(to);
        to.u8(flag(self.cancelled, CANCELLED)
            | flag(self.started, STARTED)
            | flag(self.detail.is_some(), HAS_DETAIL));
        to.u64(self.run_us);
        self.outcome.write(to);
        if let Some(detail) = &self.detail {
            detail.write(to);
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let fence = Fence::read(from)?;
        let flags = from.flags("report flags", CANCELLED | STARTED | HAS_DETAIL)?;
        Ok(Self {
            fence,
            cancelled: flags & CANCELLED != 0,
            started: flags & STARTED != 0,
            run_us: from.u64()?,
            outcome: Outcome::read(from)?,
            detail: from.optional(flags & HAS_DETAIL != 0, Wire::read)?,
        })
    }
}

const FATAL: u8 = 1;
const HAS_RETRY_AFTER: u8 = 2;

impl Wire for Outcome {
    const BYTES_MIN: usize = 1;

    fn write(&self, to: &mut Writer<'_>) {
        match *self {
            Self::Succeeded => to.u8(1),
            Self::Exited { code } => {
                assert!(code != 0, "exit code 0 is a success");
                to.raw(&[2, code]);
            }
            Self::Signalled { signal } => {
                assert!(signal != 0, "no signal has the number 0");
                to.raw(&[3, signal]);
            }
            Self::OutOfMemory => to.u8(4),
            Self::TimedOut => to.u8(5),
            Self::SpawnFailed { errno } => {
                to.u8(6);
                to.i32(errno);
            }
            Self::HandlerFailed {
                fatal,
                retry_after_ms,
            } => {
                let wait = flag(retry_after_ms.is_some(), HAS_RETRY_AFTER);
                to.raw(&[7, flag(fatal, FATAL) | wait]);
                if let Some(ms) = retry_after_ms {
                    to.u64(ms);
                }
            }
            Self::NoSuchHandler => to.u8(8),
            Self::Returned => to.u8(9),
            Self::Stalled => to.u8(10),
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match from.u8()? {
            1 => Ok(Self::Succeeded),
            2 => match from.u8()? {
                0 => Err(DecodeError::new("exit code", "is 0, which is a success")),
                code => Ok(Self::Exited { code }),
            },
            3 => match from.u8()? {
                0 => Err(DecodeError::new("signal", "is 0")),
                signal => Ok(Self::Signalled { signal }),
            },
            4 => Ok(Self::OutOfMemory),
            5 => Ok(Self::TimedOut),
            6 => Ok(Self::SpawnFailed { errno: from.i32()? }),
            7 => {
                let flags = from.flags("handler failure flags", FATAL | HAS_RETRY_AFTER)?;
                let fatal = flags & FATAL != 0;
                let has_wait = flags & HAS_RETRY_AFTER != 0;
                let retry_after_ms = from.optional(has_wait, Reader::u64)?;
                Ok(Self::HandlerFailed {
                    fatal,
                    retry_after_ms,
                })
            }
            8 => Ok(Self::NoSuchHandler),
            9 => Ok(Self::Returned),
            10 => Ok(Self::Stalled),
            _ => Err(DecodeError::new("outcome", "is an unknown number")),
        }
    }
}

const HAS_EXIT_CODE: u8 = 1;
const HAS_SIGNAL: u8 = 2;
const HAS_USAGE: u8 = 4;

impl Wire for Detail {
    const BYTES_MIN: usize = 9;

    fn write(&self, to: &mut Writer<'_>) {
        to.u8(flag(self.exit_code.is_some(), HAS_EXIT_CODE)
            | flag(self.signal.is_some(), HAS_SIGNAL)
            | flag(self.usage.is_some(), HAS_USAGE));
        if let Some(exit_code) = self.exit_code {
            to.u8(exit_code);
        }
        if let Some(signal) = self.signal {
            to.u8(signal);
        }
        to.short_bytes("message", self.message.as_bytes(), MESSAGE_BYTES_MAX);
        to.long_bytes("result", &self.result, RESULT_BYTES_MAX);
        to.short_bytes("stderr tail", &self.stderr_tail, STDERR_TAIL_BYTES_MAX);
        if let Some(usage) = &self.usage {
            usage.write(to);
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let flags = from.flags("detail flags", HAS_EXIT_CODE | HAS_SIGNAL | HAS_USAGE)?;
        Ok(Self {
            exit_code: from.optional(flags & HAS_EXIT_CODE != 0, Reader::u8)?,
            signal: from.optional(flags & HAS_SIGNAL != 0, Reader::u8)?,
            message: from.short_text("message", MESSAGE_BYTES_MAX)?,
            // Copies: a report outlives its read, and must not keep the whole of it.
            result: from.long_bytes("result", RESULT_BYTES_MAX)?.to_vec(),
            stderr_tail: from
                .short_bytes("stderr tail", STDERR_TAIL_BYTES_MAX)?
                .to_vec(),
            usage: from.optional(flags & HAS_USAGE != 0, Usage::read)?,
        })
    }
}

impl Wire for Usage {
    const BYTES_MIN: usize = 48;

    fn write(&self, to: &mut Writer<'_>) {
        to.u64(self.wall_ms);
        to.u64(self.user_ms);
        to.u64(self.system_ms);
        to.u64(self.peak_rss_bytes);
        to.u64(self.stdout_bytes);
        to.u64(self.stderr_bytes);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            wall_ms: from.u64()?,
            user_ms: from.u64()?,
            system_ms: from.u64()?,
            peak_rss_bytes: from.u64()?,
            stdout_bytes: from.u64()?,
            stderr_bytes: from.u64()?,
        })
    }
}

impl Wire for Returned {
    const BYTES_MIN: usize = 5;

    fn write(&self, to: &mut Writer<'_>) {
        to.list("fences", &self.fences, BATCH_ITEMS_MAX);
        to.bool(self.draining);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            fences: from.list("fences", BATCH_ITEMS_MAX)?,
            draining: from.bool("draining")?,
        })
    }
}

impl Wire for Ack {
    const BYTES_MIN: usize = 8;

    fn write(&self, to: &mut Writer<'_>) {
        to.u64(self.through);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            through: from.u64()?,
        })
    }
}

impl Wire for Beat {
    const BYTES_MIN: usize = 12;

    fn write(&self, to: &mut Writer<'_>) {
        to.u64(self.assign_seq);
        to.u32(self.held);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            assign_seq: from.u64()?,
            held: from.u32()?,
        })
    }
}
