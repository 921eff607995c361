//! The handshake: who are you, prove it, so do I, this is where we stand.
//!
//! Three messages authenticate both ends without a secret on the wire, in the manner of SCRAM: the server keeps only
//! `stored_key` and `server_key`, both derived from the token, neither of which lets it pose as a worker.

use crate::{Epoch, Fence, SessionId};

/// First frame of every connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest protocol version the sender speaks.
    pub version_min: u16,
    /// Highest.
    pub version_max: u16,
    /// Optional abilities the sender has, a bit each.
    pub capabilities: u64,
    /// What this connection is for.
    pub role: Role,
    /// Which token will be proven: its public id.
    pub token_id: String,
    /// Fresh random bytes: a replayed hello gets another challenge.
    pub nonce: [u8; 32],
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// A worker's control connection.
    Control = 1,
    /// A worker's output pipe.
    Output = 2,
}

/// The server's answer to a hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The version both will speak.
    pub version: u16,
    /// The abilities both have.
    pub capabilities: u64,
    /// Fresh random bytes.
    pub nonce: [u8; 32],
    /// Which cluster this is.
    pub cluster: [u8; 16],
    /// The server's start.
    pub epoch: Epoch,
    /// Random bytes of that start: tells a restored backup from the real thing.
    pub epoch_nonce: [u8; 16],
    /// HMAC-SHA-256 under `server_key` over hello and challenge: the server proves itself first.
    pub proof: [u8; 32],
}

/// The client's proof, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// `client_key` XOR HMAC-SHA-256(`stored_key`, hello ‖ challenge ‖ the rest of this frame).
    pub proof: [u8; 32],
    /// The worker's stable name.
    pub name: String,
    /// New at each start of the worker.
    pub instance: u64,
    /// Output role only: the control session this pipe belongs to.
    pub session: Option<SessionId>,
    /// Jobs it runs at once.
    pub slots: u32,
    /// Runs commands (an embedding program may not).
    pub commands: bool,
    /// Handlers it has, by name.
    pub handlers: Vec<String>,
    /// Queues it serves.
    pub queues: Vec<String>,
    /// What it says of itself.
    pub labels: Vec<(String, String)>,
    /// Who started it (an autoscaler's allocation), or empty.
    pub allocation: String,
    /// Every attempt it holds: waiting, running, or ended and not yet acknowledged.
    pub held: Vec<Held>,
    /// Number of its last report ever made, so that numbering continues.
    pub last_report: u64,
    /// Epochs of the held attempts, with the random bytes learnt then: unknown ones are void.
    pub epochs: Vec<(Epoch, [u8; 16])>,
}

/// An attempt a worker holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub fence: Fence,
    /// It has started (perhaps ended): its loss would be charged.
    pub started: bool,
}

/// The session begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Its number.
    pub session: SessionId,
    /// How often each side beats, milliseconds.
    pub beat_ms: u32,
    /// How long the server forgives silence, milliseconds.
    pub grace_ms: u32,
    /// Largest result kept with a job, bytes.
    pub result_bytes_max: u32,
}

/// It does not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Stable number.
    pub code: RefuseCode,
    /// One sentence for a person.
    pub message: String,
}

/// Why a session is refused or ended by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RefuseCode {
    /// No protocol version in common.
    Version = 1,
    /// Wrong token or wrong proof.
    Unauthorised = 2,
    /// Another instance of that name is connected.
    NameInUse = 3,
    /// A field is out of its limits.
    Invalid = 4,
    /// Too many connections.
    Busy = 5,
    /// The server is stopping.
    Stopping = 6,
    /// The output pipe names a session that is gone.
    NoSession = 7,
}

/// Another server is active.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotLeader {
    /// Where to try.
    pub addresses: Vec<String>,
}

/// What of the resumed work is still wanted. The worker starts nothing and sends no report before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resumed {
    /// Reports up to this number are committed or void.
    pub acked: u64,
    /// End these and report nothing: they have ended or been superseded.
    pub void: Vec<Fence>,
}
