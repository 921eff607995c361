//! The handshake: who are you, prove it, so do I, this is where we stand.
//!
//! Three messages authenticate both ends without a secret on the wire, in the manner of SCRAM: the server keeps only
//! `stored_key` and `server_key`, both derived from the token, neither of which lets it pose as a worker.

use crate::codec::{DecodeError, Reader, Wire, Writer, coded, flag};
use crate::limits::{
    ADDRESS_BYTES_MAX, ADDRESSES_MAX, EPOCHS_MAX, HANDLERS_MAX, HELD_MAX, LABELS_MAX,
    MESSAGE_BYTES_MAX, NAME_BYTES_MAX, QUEUES_MAX,
};
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
    /// What was said was changed on its way.
    Damaged = 8,
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

/// First bytes of the first frame: whoever sends anything else speaks another protocol.
pub const MAGIC: [u8; 4] = *b"HSTL";

/// Bytes of a proof. It comes last in its frame: "without proof" means without these.
pub(crate) const PROOF_BYTES: usize = 32;

impl Wire for Hello {
    const BYTES_MIN: usize = 51;

    // This layout never changes: it is read before a version is agreed on.
    fn write(&self, to: &mut Writer<'_>) {
        to.raw(&MAGIC);
        to.u16(self.version_min);
        to.u16(self.version_max);
        to.u64(self.capabilities);
        self.role.write(to);
        to.short_bytes("token id", self.token_id.as_bytes(), NAME_BYTES_MAX);
        to.raw(&self.nonce);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if from.array()? != MAGIC {
            return Err(from.error("does not begin with HSTL"));
        }
        Ok(Self {
            version_min: from.u16()?,
            version_max: from.u16()?,
            capabilities: from.u64()?,
            role: Role::read(from)?,
            token_id: from.short_text("token id", NAME_BYTES_MAX)?,
            nonce: from.array()?,
        })
    }
}

coded!(Role, "role" { Control = 1, Output = 2 });

impl Wire for Challenge {
    const BYTES_MIN: usize = 110;

    fn write(&self, to: &mut Writer<'_>) {
        to.u16(self.version);
        to.u64(self.capabilities);
        to.raw(&self.nonce);
        to.raw(&self.cluster);
        self.epoch.write(to);
        to.raw(&self.epoch_nonce);
        to.raw(&self.proof);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            version: from.u16()?,
            capabilities: from.u64()?,
            nonce: from.array()?,
            cluster: from.array()?,
            epoch: Epoch::read(from)?,
            epoch_nonce: from.array()?,
            proof: from.array()?,
        })
    }
}

const HAS_SESSION: u8 = 1;
const COMMANDS: u8 = 2;

impl Wire for Login {
    const BYTES_MIN: usize = 77;

    fn write(&self, to: &mut Writer<'_>) {
        to.short_bytes("worker name", self.name.as_bytes(), NAME_BYTES_MAX);
        to.u64(self.instance);
        to.u8(flag(self.session.is_some(), HAS_SESSION) | flag(self.commands, COMMANDS));
        if let Some(session) = self.session {
            session.write(to);
        }
        to.u32(self.slots);
        write_names(to, "handlers", &self.handlers, HANDLERS_MAX);
        write_names(to, "queues", &self.queues, QUEUES_MAX);
        to.list_of("labels", &self.labels, LABELS_MAX, |(key, value), to| {
            to.short_bytes("label", key.as_bytes(), NAME_BYTES_MAX);
            to.short_bytes("label", value.as_bytes(), NAME_BYTES_MAX);
        });
        to.short_bytes("allocation", self.allocation.as_bytes(), NAME_BYTES_MAX);
        to.list("held", &self.held, HELD_MAX);
        to.u64(self.last_report);
        to.list_of("epochs", &self.epochs, EPOCHS_MAX, |(epoch, nonce), to| {
            epoch.write(to);
            to.raw(nonce);
        });
        to.raw(&self.proof);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let name = from.short_text("worker name", NAME_BYTES_MAX)?;
        let instance = from.u64()?;
        let flags = from.flags("login flags", HAS_SESSION | COMMANDS)?;
        let session = from.optional(flags & HAS_SESSION != 0, SessionId::read)?;
        Ok(Self {
            name,
            instance,
            session,
            slots: from.u32()?,
            commands: flags & COMMANDS != 0,
            handlers: read_names(from, "handlers", HANDLERS_MAX)?,
            queues: read_names(from, "queues", QUEUES_MAX)?,
            labels: from.list_of("labels", LABELS_MAX, 4, |from| {
                let key = from.short_text("label", NAME_BYTES_MAX)?;
                Ok((key, from.short_text("label", NAME_BYTES_MAX)?))
            })?,
            allocation: from.short_text("allocation", NAME_BYTES_MAX)?,
            held: from.list("held", HELD_MAX)?,
            last_report: from.u64()?,
            epochs: from.list_of("epochs", EPOCHS_MAX, 20, |from| {
                Ok((Epoch::read(from)?, from.array()?))
            })?,
            proof: from.array()?,
        })
    }
}

fn write_names(to: &mut Writer<'_>, what: &'static str, names: &[String], limit: usize) {
    to.list_of(what, names, limit, |name, to| {
        to.short_bytes(what, name.as_bytes(), NAME_BYTES_MAX);
    });
}

fn read_names(
    from: &mut Reader<'_>,
    what: &'static str,
    limit: usize,
) -> Result<Vec<String>, DecodeError> {
    from.list_of(what, limit, 2, |from| from.short_text(what, NAME_BYTES_MAX))
}

impl Wire for Held {
    const BYTES_MIN: usize = Fence::BYTES_MIN + 1;

    fn write(&self, to: &mut Writer<'_>) {
        self.fence.write(to);
        to.bool(self.started);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            fence: Fence::read(from)?,
            started: from.bool("started")?,
        })
    }
}

impl Wire for Welcome {
    const BYTES_MIN: usize = 20;

    fn write(&self, to: &mut Writer<'_>) {
        self.session.write(to);
        to.u32(self.beat_ms);
        to.u32(self.grace_ms);
        to.u32(self.result_bytes_max);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            session: SessionId::read(from)?,
            beat_ms: from.u32()?,
            grace_ms: from.u32()?,
            result_bytes_max: from.u32()?,
        })
    }
}

impl Wire for Refused {
    const BYTES_MIN: usize = 3;

    fn write(&self, to: &mut Writer<'_>) {
        self.code.write(to);
        to.short_bytes("message", self.message.as_bytes(), MESSAGE_BYTES_MAX);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            code: RefuseCode::read(from)?,
            message: from.short_text("message", MESSAGE_BYTES_MAX)?,
        })
    }
}

coded!(RefuseCode, "refusal code" {
    Version = 1,
    Unauthorised = 2,
    NameInUse = 3,
    Invalid = 4,
    Busy = 5,
    Stopping = 6,
    NoSession = 7,
    Damaged = 8,
});

impl Wire for NotLeader {
    const BYTES_MIN: usize = 4;

    fn write(&self, to: &mut Writer<'_>) {
        to.list_of(
            "addresses",
            &self.addresses,
            ADDRESSES_MAX,
            |address, to| {
                to.short_bytes("address", address.as_bytes(), ADDRESS_BYTES_MAX);
            },
        );
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let addresses = from.list_of("addresses", ADDRESSES_MAX, 2, |from| {
            from.short_text("address", ADDRESS_BYTES_MAX)
        })?;
        Ok(Self { addresses })
    }
}

impl Wire for Resumed {
    const BYTES_MIN: usize = 12;

    fn write(&self, to: &mut Writer<'_>) {
        to.u64(self.acked);
        to.list("void", &self.void, HELD_MAX);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            acked: from.u64()?,
            void: from.list("void", HELD_MAX)?,
        })
    }
}
