//! How is it doing right now? Asked down the control socket, answered by the worker's loop, never by the job.

use crate::Fence;
use crate::codec::{DecodeError, Reader, Wire, Writer, flag};
use crate::limits::{MESSAGE_BYTES_MAX, PROBE_ITEMS_MAX};

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
    /// How long ago it gave the last sign of life: its start, output, progress or a heartbeat, milliseconds.
    pub quiet_ms: u64,
    /// How long ago its last output was read, milliseconds; none if there was none.
    pub output_age_ms: Option<u64>,
    /// 0.0..=1.0, if the job says; anything else is not sent.
    pub progress: Option<f32>,
    /// Its latest note, or empty.
    pub note: String,
}

const STARTED: u8 = 1;
const HAS_PROGRESS: u8 = 2;
const HAS_OUTPUT_AGE: u8 = 4;

impl Wire for Probe {
    const BYTES_MIN: usize = 12;

    fn write(&self, to: &mut Writer<'_>) {
        to.u64(self.ask);
        to.list("fences", &self.fences, PROBE_ITEMS_MAX);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            ask: from.u64()?,
            fences: from.list("fences", PROBE_ITEMS_MAX)?,
        })
    }
}

impl Wire for ProbeReply {
    const BYTES_MIN: usize = 12;

    fn write(&self, to: &mut Writer<'_>) {
        to.u64(self.ask);
        to.list("lives", &self.lives, PROBE_ITEMS_MAX);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            ask: from.u64()?,
            lives: from.list("lives", PROBE_ITEMS_MAX)?,
        })
    }
}

impl Wire for Live {
    const BYTES_MIN: usize = Fence::BYTES_MIN + 51;

    fn write(&self, to: &mut Writer<'_>) {
        // What is no share of a whole is no progress, and whoever made it up (the job) is not a reason to fail.
        let progress = self.progress.filter(is_share);
        self.fence
            .expect("an attempt that was found has a fence")
            .write(to);
        to.u8(flag(self.started, STARTED)
            | flag(progress.is_some(), HAS_PROGRESS)
            | flag(self.output_age_ms.is_some(), HAS_OUTPUT_AGE));
        to.u32(self.pid);
        to.u32(self.processes);
        to.u64(self.cpu_ms);
        to.u64(self.rss_bytes);
        to.u64(self.stdout_bytes);
        to.u64(self.stderr_bytes);
        to.u64(self.quiet_ms);
        if let Some(output_age_ms) = self.output_age_ms {
            to.u64(output_age_ms);
        }
        if let Some(progress) = progress {
            to.f32(progress);
        }
        to.short_bytes("note", self.note.as_bytes(), MESSAGE_BYTES_MAX);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let fence = Some(Fence::read(from)?);
        let flags = from.flags("probe flags", STARTED | HAS_PROGRESS | HAS_OUTPUT_AGE)?;
        Ok(Self {
            fence,
            started: flags & STARTED != 0,
            pid: from.u32()?,
            processes: from.u32()?,
            cpu_ms: from.u64()?,
            rss_bytes: from.u64()?,
            stdout_bytes: from.u64()?,
            stderr_bytes: from.u64()?,
            quiet_ms: from.u64()?,
            output_age_ms: from.optional(flags & HAS_OUTPUT_AGE != 0, Reader::u64)?,
            progress: from.optional(flags & HAS_PROGRESS != 0, read_share)?,
            note: from.short_text("note", MESSAGE_BYTES_MAX)?,
        })
    }
}

fn read_share(from: &mut Reader<'_>) -> Result<f32, DecodeError> {
    let share = from.f32()?;
    if is_share(&share) {
        Ok(share)
    } else {
        Err(DecodeError::new("progress", "is outside 0..=1"))
    }
}

fn is_share(value: &f32) -> bool {
    (0.0..=1.0).contains(value)
}
