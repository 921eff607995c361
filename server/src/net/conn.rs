//! One socket: its buffers, its readiness, how far its peer has proven itself.
//!
//! All bytes go through [`Conn::read`] and [`Conn::flush`], and there through the connection's channel: as they are, or
//! through TLS.
//!
//! Not here: what frames mean (`net`), who is who (`peers`).

use std::io;
use std::net::{Shutdown, SocketAddr};

use bytes::BytesMut;
use hostler_engine::Time;
use hostler_tls::{Channel, ChannelError};
use hostler_wire::SessionId;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::Frame;
use hostler_wire::handshake::ServerHandshake;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::SockRef;

use crate::output::PipeId;

/// How far the peer has come.
#[derive(Debug)]
pub(super) enum Phase {
    /// Its hello is awaited.
    Hello,
    /// Its login is awaited.
    Login(Box<ServerHandshake>),
    /// A worker's control connection.
    Control(SessionId),
    /// A worker's output pipe.
    Pipe(PipeId),
    /// It has been told why; what it still says is not read by anyone.
    Closing,
}

/// One socket.
#[derive(Debug)]
pub(super) struct Conn {
    pub peer: SocketAddr,
    /// Unique, unlike its place in the table.
    pub serial: u64,
    pub decoder: Decoder,
    pub phase: Phase,
    /// The id of the access token it claims, proven or not.
    pub token_id: Box<str>,
    /// When it is closed if nothing happens.
    pub deadline: Option<Time>,
    /// Bytes of an unfinished handshake counted against the bound of all of them.
    pub counted_bytes: usize,
    /// When the peer's last sign of life was passed on.
    pub heard: Time,
    /// Since when it has taken nothing of what waits for it.
    pub stuck_since: Option<Time>,
    /// It has work ahead for a while.
    pub stocked: bool,
    /// The poll does not watch it at the moment.
    paused: bool,
    /// It is on the list of those to be flushed.
    pub dirty: bool,
    pub channel: Channel,
    stream: TcpStream,
    token: Token,
    out: BytesMut,
    wants_write: bool,
    /// Said that nothing more comes.
    closed: bool,
}

/// What a read gave.
pub(super) enum Got {
    /// So many came from the socket, and so many of them are for the decoder.
    Bytes { wire: usize, plain: usize },
    /// Nothing more for now.
    Blocked,
    /// The peer is gone, or the socket broken.
    Gone,
    /// No TLS comes about, and why.
    Refused(ChannelError),
}

impl Conn {
    pub(super) fn new(
        stream: TcpStream,
        peer: SocketAddr,
        serial: u64,
        token: Token,
        channel: Channel,
        now: Time,
    ) -> Self {
        Self {
            peer,
            serial,
            decoder: Decoder::new(),
            phase: Phase::Hello,
            token_id: Box::default(),
            deadline: None,
            counted_bytes: 0,
            heard: now,
            stuck_since: None,
            stocked: false,
            paused: false,
            dirty: false,
            channel,
            stream,
            token,
            out: BytesMut::new(),
            wants_write: false,
            closed: false,
        }
    }

    pub(super) fn register(&mut self, registry: &Registry) -> io::Result<()> {
        let interest = self.interest();
        registry.register(&mut self.stream, self.token, interest)
    }

    fn interest(&self) -> Interest {
        if self.wants_write {
            Interest::READABLE | Interest::WRITABLE
        } else {
            Interest::READABLE
        }
    }

    /// Lets its peer talk for a while without being heard; what it says is not lost.
    pub(super) fn pause(&mut self, registry: &Registry) -> io::Result<()> {
        registry.deregister(&mut self.stream)?;
        self.paused = true;
        Ok(())
    }

    /// Listens again, if it is paused; what has come meanwhile is an event of the next poll.
    pub(super) fn resume(&mut self, registry: &Registry) -> io::Result<()> {
        if std::mem::take(&mut self.paused) {
            self.register(registry)?;
        }
        Ok(())
    }

    pub(super) fn deregister(&mut self, registry: &Registry) {
        // It goes away with the socket in any case.
        drop(registry.deregister(&mut self.stream));
    }

    /// What the system keeps for us unread: several mebibytes, unless it is told otherwise. A quiet job's output would
    /// wait behind all of that.
    pub(super) fn bound_unread(&self, bytes: usize) {
        if let Err(error) = SockRef::from(&self.stream).set_recv_buffer_size(bytes) {
            tracing::debug!(%error, "a receive buffer keeps its size");
        }
    }

    /// Reads once, into the decoder.
    pub(super) fn read(&mut self, room: &mut [u8]) -> Got {
        let into = self.decoder.buffer();
        match self.channel.read(&mut self.stream, room, into) {
            Ok(taken) if taken.wire == 0 => Got::Gone,
            Ok(taken) => Got::Bytes {
                wire: taken.wire,
                plain: taken.plain,
            },
            Err(error) if error.is_blocked() => Got::Blocked,
            Err(error @ (ChannelError::Tls(_) | ChannelError::NotTls)) => Got::Refused(error),
            Err(ChannelError::Io(_) | ChannelError::Truncated) => Got::Gone,
        }
    }

    /// Appends a frame to what is to be sent.
    pub(super) fn send(&mut self, frame: &Frame) {
        frame.encode(&mut self.out);
    }

    /// Appends encoded frames.
    pub(super) fn send_bytes(&mut self, bytes: BytesMut) {
        if self.out.is_empty() {
            self.out = bytes;
        } else {
            self.out.extend_from_slice(&bytes);
        }
    }

    /// Bytes that wait to be sent, beside the little that TLS encrypts ahead of the socket.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.out.len()
    }

    /// Whether anything waits to be sent.
    pub(super) fn has_to_send(&self) -> bool {
        !self.out.is_empty() || self.channel.wants_write()
    }

    /// Writes what the socket takes; wants to hear of its readiness only while something is left.
    pub(super) fn flush(&mut self, registry: &Registry, now: Time) -> Result<(), ChannelError> {
        let mut sent = self.channel.write(&mut self.stream, &mut self.out)?;
        if matches!(self.phase, Phase::Closing) && !self.closed && self.out.is_empty() {
            self.closed = true;
            self.channel.close();
            sent.wire += self.channel.write(&mut self.stream, &mut self.out)?.wire;
        }
        let wants_write = self.has_to_send();
        if !wants_write {
            self.out = BytesMut::new(); // an idle connection holds no buffer
            self.stuck_since = None;
            if matches!(self.phase, Phase::Closing) {
                self.stream.shutdown(Shutdown::Write)?;
            }
        } else if sent.wire > 0 || self.stuck_since.is_none() {
            self.stuck_since = Some(now);
        }
        if wants_write != self.wants_write {
            self.wants_write = wants_write;
            if !self.paused {
                let interest = self.interest();
                registry.reregister(&mut self.stream, self.token, interest)?;
            }
        }
        Ok(())
    }
}
