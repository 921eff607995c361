//! What server and worker say to each other. One file a conversation; numbers and bytes are in `PROTOCOL.md`.
//!
//! A frame on the wire is a header (`length u32`, `kind u8`, `flags u8`, little-endian; length counts what follows it)
//! and a body. A receiver skips a kind it does not know if the flag `SKIPPABLE` is set, and closes otherwise.

pub mod assign;
pub mod hello;
pub mod output;
pub mod probe;
pub mod report;

pub use assign::{
    Assign, Assignment, Cancel, Command, Handler, Logs, LogsMode, OnPartition, Overflow, Recall,
    Stop, Task, Work,
};
pub use hello::{
    Challenge, Held, Hello, Login, NotLeader, RefuseCode, Refused, Resumed, Role, Welcome,
};
pub use output::{Chunk, OutputAck, OutputEnd, Stream};
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
}
