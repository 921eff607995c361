//! What server and worker say to each other. One file a conversation; numbers and bytes are in `PROTOCOL.md`.
//!
//! A frame on the wire is a header (`length u32`, `kind u8`, `flags u8`, `check u16`, `crc u32`, little-endian; length
//! counts what follows it) and a body. A receiver skips a kind it does not know if the flag `SKIPPABLE` is set, and
//! closes otherwise.

pub mod assign;
pub mod hello;
pub mod output;
pub mod probe;
pub mod report;

use bytes::Bytes;

use crate::codec::{DecodeError, Reader, Wire, Writer};

pub use assign::{
    Assign, Assignment, Cancel, Command, Handler, Logs, LogsMode, OnPartition, Overflow, Recall,
    Stop, Task, Work,
};
pub use hello::{
    Challenge, Held, Hello, Login, NotLeader, RefuseCode, Refused, Resumed, Role, Welcome,
};
pub use output::{Chunk, OutputAck, OutputEnd, OutputStart, Stream};
pub use probe::{Live, Probe, ProbeReply};
pub use report::{Ack, Beat, Report, Reports, Returned, Started};

/// Every frame.
#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    /// Client → server, first: who speaks, in which versions and role.
    Hello(Hello),
    /// Server → client: its nonce and its proof that it knows the token.
    Challenge(Challenge),
    /// Client → server: its proof, and what it is and holds.
    Login(Box<Login>),
    /// Server → client: the session begins.
    Welcome(Welcome),
    /// Server → client: it does not; then the connection closes.
    Refused(Refused),
    /// Server → client: another server is active; then the connection closes.
    NotLeader(NotLeader),
    /// Server → worker, after `Welcome`: what of the resumed work is still wanted.
    Resumed(Resumed),
    /// Server → worker: run these.
    Assign(Assign),
    /// Server → worker: give these back if they have not started.
    Recall(Recall),
    /// Server → worker: end this attempt and report how it went.
    Cancel(Cancel),
    /// Server → worker: these attempts are void; end them, report nothing.
    Stop(Stop),
    /// Worker → server: these start now (written before exec).
    Started(Started),
    /// Worker → server: these ended.
    Reports(Reports),
    /// Worker → server: answer to `Recall` or a drain: these were never started and are forgotten here.
    Returned(Returned),
    /// Server → worker: every report up to this one is committed or void.
    Ack(Ack),
    /// Both ways, every two seconds.
    Beat(Beat),
    /// Server → worker: how are these doing?
    Probe(Probe),
    /// Worker → server: this is how.
    ProbeReply(ProbeReply),
    /// Worker → server, output socket: a piece of output.
    Chunk(Chunk),
    /// Worker → server, output socket: that was all of it.
    OutputEnd(OutputEnd),
    /// Server → worker, output socket: on disk up to here.
    OutputAck(OutputAck),
    /// Worker → server, output socket, before anything else of an attempt: what its output is to become.
    OutputStart(OutputStart),
}

/// Set in a header's flags: a receiver that does not know the kind passes over the frame instead of closing.
pub const SKIPPABLE: u8 = 1;

/// The number and the name of each kind, and the way to its layout.
macro_rules! kinds {
    ($($variant:ident = $kind:literal, $name:literal;)+) => {
        impl Frame {
            /// Every kind: its number on the wire and its name in `PROTOCOL.md`.
            pub const KINDS: &'static [(u8, &'static str)] = &[$(($kind, $name),)+];

            /// The kind's number.
            pub const fn kind(&self) -> u8 {
                match self { $(Self::$variant(_) => $kind,)+ }
            }

            /// The kind's name.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)+ }
            }

            /// Whether a frame of this kind can be read.
            pub(crate) const fn knows(kind: u8) -> bool {
                matches!(kind, $($kind)|+)
            }

            pub(crate) fn write_body(&self, to: &mut Writer<'_>) {
                match self { $(Self::$variant(body) => body.write(to),)+ }
            }

            /// Reads a whole body of a known kind.
            pub(crate) fn read_body(kind: u8, body: &Bytes) -> Result<Self, DecodeError> {
                match kind {
                    $($kind => {
                        let mut from = Reader::new($name, body);
                        let frame = Self::$variant(Wire::read(&mut from)?);
                        from.finish()?;
                        Ok(frame)
                    })+
                    _ => Err(DecodeError::new("frame", "is of an unknown kind")),
                }
            }
        }
    };
}

kinds! {
    Hello = 0x01, "hello";
    Challenge = 0x02, "challenge";
    Login = 0x03, "login";
    Welcome = 0x04, "welcome";
    Refused = 0x05, "refused";
    NotLeader = 0x06, "not_leader";
    Resumed = 0x07, "resumed";
    Assign = 0x10, "assign";
    Recall = 0x11, "recall";
    Cancel = 0x12, "cancel";
    Stop = 0x13, "stop";
    Started = 0x20, "started";
    Reports = 0x21, "reports";
    Returned = 0x22, "returned";
    Ack = 0x23, "ack";
    Beat = 0x24, "beat";
    Probe = 0x30, "probe";
    ProbeReply = 0x31, "probe_reply";
    Chunk = 0x40, "chunk";
    OutputEnd = 0x41, "output_end";
    OutputAck = 0x42, "output_ack";
    OutputStart = 0x43, "output_start";
}
