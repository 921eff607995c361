//! Work given out, called back, cancelled or voided.

use bytes::{Bytes, BytesMut};

use crate::Fence;
use crate::codec::{DecodeError, Reader, Wire, Writer, coded, flag};
use crate::limits::{ARGS_MAX, BATCH_ITEMS_MAX, BODY_BYTES_MAX, NAME_BYTES_MAX, WORK_BYTES_MAX};

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
    /// Kill the attempt after this long without output, progress or heartbeat, milliseconds.
    pub stall_ms: Option<u64>,
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

impl Assignment {
    /// Bytes it takes in an `Assign`, so that a sender can tell what fits into one frame.
    pub fn encoded_bytes(&self) -> usize {
        Self::BYTES_MIN + self.body.len()
    }
}

impl Wire for Assign {
    const BYTES_MIN: usize = 12;

    fn write(&self, to: &mut Writer<'_>) {
        to.reserve(
            Self::BYTES_MIN
                + self
                    .jobs
                    .iter()
                    .map(Assignment::encoded_bytes)
                    .sum::<usize>(),
        );
        to.u64(self.seq);
        to.list("assignments", &self.jobs, BATCH_ITEMS_MAX);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            seq: from.u64()?,
            jobs: from.list("assignments", BATCH_ITEMS_MAX)?,
        })
    }
}

impl Wire for Assignment {
    const BYTES_MIN: usize = Fence::BYTES_MIN + 4;

    fn write(&self, to: &mut Writer<'_>) {
        self.fence.write(to);
        to.long_bytes("job body", &self.body, WORK_BYTES_MAX);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            fence: Fence::read(from)?,
            body: from.long_bytes("job body", WORK_BYTES_MAX)?,
        })
    }
}

impl Work {
    /// Whether a worker would take it: the one place that says what the protocol allows in a body. Intake asks before
    /// it stores, the worker before it runs.
    pub fn check(&self) -> Result<(), DecodeError> {
        match &self.task {
            Task::Command(command) => command.check(),
            Task::Handler(handler) => handler.check(),
        }
    }

    /// The body as it is stored and sent.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_bytes());
        self.write(&mut Writer::new(&mut out));
        debug_assert_eq!(out.len(), self.encoded_bytes());
        out.freeze()
    }

    /// Reads a body back.
    pub fn decode(body: Bytes) -> Result<Self, DecodeError> {
        let mut from = Reader::new("work", &body);
        let work = Self::read(&mut from)?;
        from.finish()?;
        work.check()?;
        Ok(work)
    }

    /// To the byte: what is sent for it becomes the body without another allocation.
    fn encoded_bytes(&self) -> usize {
        let times = [self.timeout_ms, self.grace_ms, self.stall_ms];
        let task = match &self.task {
            Task::Command(command) => {
                let optional = [command.cwd.is_some(), command.stdin.is_some()];
                let optional = optional.into_iter().filter(|is_there| *is_there).count();
                let lengths = 4 * command.argv.len() + 8 * command.env.len() + 4 * optional;
                command.content_bytes() + lengths + 8
            }
            Task::Handler(handler) => handler.name.len() + handler.payload.len() + 6,
        };
        HEAD_BYTES + 8 * times.into_iter().flatten().count() + task
    }
}

/// Layout, task, flags, `on_partition`, logs.
const HEAD_BYTES: usize = 4 + Logs::BYTES_MIN;

/// First byte of a body. Bodies lie in databases, so a later layout gets another number and this one stays readable.
const LAYOUT: u8 = 1;
const HAS_TIMEOUT: u8 = 1;
const HAS_GRACE: u8 = 2;
const HAS_CWD: u8 = 4;
const HAS_STDIN: u8 = 8;
const HAS_STALL: u8 = 16;
const COMMAND: u8 = 1;
const HANDLER: u8 = 2;

impl Wire for Work {
    const BYTES_MIN: usize = 20;

    fn write(&self, to: &mut Writer<'_>) {
        to.u8(LAYOUT);
        to.u8(match self.task {
            Task::Command(_) => COMMAND,
            Task::Handler(_) => HANDLER,
        });
        to.u8(self.flags());
        self.on_partition.write(to);
        self.logs.write(to);
        if let Some(timeout_ms) = self.timeout_ms {
            to.u64(timeout_ms);
        }
        if let Some(grace_ms) = self.grace_ms {
            to.u64(grace_ms);
        }
        if let Some(stall_ms) = self.stall_ms {
            to.u64(stall_ms);
        }
        match &self.task {
            Task::Command(command) => command.write(to),
            Task::Handler(handler) => handler.write(to),
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if from.u8()? != LAYOUT {
            return Err(from.error("has an unknown layout"));
        }
        let task = from.code("task", |code| {
            matches!(code, COMMAND | HANDLER).then_some(code)
        })?;
        let known = match task {
            COMMAND => HAS_TIMEOUT | HAS_GRACE | HAS_STALL | HAS_CWD | HAS_STDIN,
            _ => HAS_TIMEOUT | HAS_GRACE | HAS_STALL,
        };
        let flags = from.flags("work flags", known)?;
        Ok(Self {
            on_partition: OnPartition::read(from)?,
            logs: Logs::read(from)?,
            timeout_ms: from.optional(flags & HAS_TIMEOUT != 0, Reader::u64)?,
            grace_ms: from.optional(flags & HAS_GRACE != 0, Reader::u64)?,
            stall_ms: from.optional(flags & HAS_STALL != 0, Reader::u64)?,
            task: match task {
                COMMAND => Task::Command(Command::read(from, flags)?),
                _ => Task::Handler(Handler::read(from)?),
            },
        })
    }
}

impl Work {
    fn flags(&self) -> u8 {
        let own = flag(self.timeout_ms.is_some(), HAS_TIMEOUT)
            | flag(self.grace_ms.is_some(), HAS_GRACE)
            | flag(self.stall_ms.is_some(), HAS_STALL);
        match &self.task {
            Task::Command(command) => own | command.flags(),
            Task::Handler(_) => own,
        }
    }
}

impl Command {
    fn check(&self) -> Result<(), DecodeError> {
        if self.argv.is_empty() {
            return Err(DecodeError::new("argv", "names no program"));
        }
        if self.argv.len() > ARGS_MAX {
            return Err(DecodeError::new("argv", "has more items than its limit"));
        }
        if self.env.len() > ARGS_MAX {
            return Err(DecodeError::new("env", "has more items than its limit"));
        }
        if self.content_bytes() > BODY_BYTES_MAX {
            return Err(DecodeError::new("command", "is larger than a body may be"));
        }
        Ok(())
    }

    /// What counts against `BODY_BYTES_MAX`.
    fn content_bytes(&self) -> usize {
        self.argv.iter().map(String::len).sum::<usize>()
            + self
                .env
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
            + self.cwd.as_ref().map_or(0, String::len)
            + self.stdin.as_ref().map_or(0, Bytes::len)
    }

    fn flags(&self) -> u8 {
        flag(self.cwd.is_some(), HAS_CWD) | flag(self.stdin.is_some(), HAS_STDIN)
    }

    // What exceeds a limit here is refused by `check` before it is stored, not asserted: it is a user's.
    fn write(&self, to: &mut Writer<'_>) {
        to.list_of("argv", &self.argv, usize::MAX, |argument, to| {
            to.long_bytes("argument", argument.as_bytes(), usize::MAX);
        });
        to.list_of("env", &self.env, usize::MAX, |(name, value), to| {
            to.long_bytes("variable", name.as_bytes(), usize::MAX);
            to.long_bytes("variable", value.as_bytes(), usize::MAX);
        });
        if let Some(cwd) = &self.cwd {
            to.long_bytes("cwd", cwd.as_bytes(), usize::MAX);
        }
        if let Some(stdin) = &self.stdin {
            to.long_bytes("stdin", stdin, usize::MAX);
        }
    }

    fn read(from: &mut Reader<'_>, flags: u8) -> Result<Self, DecodeError> {
        Ok(Self {
            argv: from.list_of("argv", ARGS_MAX, 4, |from| {
                from.long_text("argument", BODY_BYTES_MAX)
            })?,
            env: from.list_of("env", ARGS_MAX, 8, |from| {
                let name = from.long_text("variable", BODY_BYTES_MAX)?;
                Ok((name, from.long_text("variable", BODY_BYTES_MAX)?))
            })?,
            cwd: from.optional(flags & HAS_CWD != 0, |from| {
                from.long_text("cwd", BODY_BYTES_MAX)
            })?,
            stdin: from.optional(flags & HAS_STDIN != 0, |from| {
                from.long_bytes("stdin", BODY_BYTES_MAX)
            })?,
        })
    }
}

impl Handler {
    fn check(&self) -> Result<(), DecodeError> {
        if self.name.is_empty() {
            return Err(DecodeError::new("handler name", "is empty"));
        }
        if self.name.len() > NAME_BYTES_MAX {
            return Err(DecodeError::new("handler name", "is longer than its limit"));
        }
        if self.payload.len() > BODY_BYTES_MAX {
            return Err(DecodeError::new("payload", "is larger than a body may be"));
        }
        Ok(())
    }

    fn write(&self, to: &mut Writer<'_>) {
        to.short_bytes("handler name", self.name.as_bytes(), NAME_BYTES_MAX);
        to.long_bytes("payload", &self.payload, usize::MAX);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: from.short_text("handler name", NAME_BYTES_MAX)?,
            payload: from.long_bytes("payload", BODY_BYTES_MAX)?,
        })
    }
}

impl Wire for Logs {
    const BYTES_MIN: usize = 10;

    fn write(&self, to: &mut Writer<'_>) {
        self.mode.write(to);
        self.overflow.write(to);
        to.u64(self.limit_bytes);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            mode: LogsMode::read(from)?,
            overflow: Overflow::read(from)?,
            limit_bytes: from.u64()?,
        })
    }
}

coded!(OnPartition, "on_partition" { Keep = 0, Stop = 1 });
coded!(LogsMode, "logs mode" { Keep = 0, Stream = 1, None = 2 });
coded!(Overflow, "logs overflow" { Drop = 0, Block = 1 });

impl Wire for Recall {
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

impl Wire for Cancel {
    const BYTES_MIN: usize = Fence::BYTES_MIN + 1;

    fn write(&self, to: &mut Writer<'_>) {
        self.fence.write(to);
        to.bool(self.force);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            fence: Fence::read(from)?,
            force: from.bool("force")?,
        })
    }
}

impl Wire for Stop {
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
