//! One socket: buffers, readiness, back-pressure. Plain TCP; what TLS would add sits between the socket and `decoder`/`out`.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown};

use bytes::{Buf, BytesMut};
use hostler_engine::Time;
use hostler_wire::decoder::Decoder;
use hostler_wire::frame::Frame;
use mio::net::TcpStream;

/// Read in one system call.
pub(super) const READ_BYTES: usize = 256 << 10;
/// Read of one socket in one turn: a talkative worker waits for the others.
const TURN_BYTES_MAX: usize = 2 << 20;

/// A connection.
#[derive(Debug)]
pub(super) struct Conn<S> {
    socket: TcpStream,
    pub(super) peer: IpAddr,
    pub(super) decoder: Decoder,
    out: BytesMut,
    /// Since when the socket takes nothing.
    pub(super) blocked: Option<Time>,
    /// It is in the list of those to be flushed at the end of the turn.
    pub(super) dirty: bool,
    pub(super) state: S,
}

/// How a turn of reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Got {
    /// Everything there was.
    All,
    /// More may wait; others come first.
    More,
    /// The peer has closed, or the socket failed.
    Gone,
}

impl<S> Conn<S> {
    pub(super) fn new(socket: TcpStream, peer: IpAddr, state: S) -> Self {
        Self {
            socket,
            peer,
            decoder: Decoder::new(),
            out: BytesMut::new(),
            blocked: None,
            dirty: false,
            state,
        }
    }

    pub(super) fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Reads into the decoder, by way of one scratch buffer for all sockets, and says how many bytes and whether that was all.
    pub(super) fn read(&mut self, scratch: &mut [u8]) -> (usize, Got) {
        let mut total = 0;
        loop {
            match self.socket.read(scratch) {
                Ok(0) => return (total, Got::Gone),
                Ok(n) => {
                    total += n;
                    self.decoder.buffer().extend_from_slice(&scratch[..n]);
                    // A short read has emptied the socket: the next edge tells of more.
                    if n < scratch.len() {
                        return (total, Got::All);
                    }
                    if total >= TURN_BYTES_MAX {
                        return (total, Got::More);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return (total, Got::All);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return (total, Got::Gone),
            }
        }
    }

    /// Reads and forgets: the peer may finish what it was saying before it sees that we closed.
    pub(super) fn discard(&mut self) -> Got {
        let mut sink = [0; 4_096];
        loop {
            match self.socket.read(&mut sink) {
                Ok(0) => return Got::Gone,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Got::All,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Got::Gone,
            }
        }
    }

    pub(super) fn push(&mut self, frame: &Frame) {
        frame.encode(&mut self.out);
    }

    pub(super) fn push_bytes(&mut self, bytes: BytesMut) {
        if self.out.is_empty() {
            self.out = bytes;
        } else {
            self.out.extend_from_slice(&bytes);
        }
    }

    pub(super) fn unsent(&self) -> usize {
        self.out.len()
    }

    /// Writes what the socket takes. False: it has failed.
    pub(super) fn flush(&mut self, now: Time) -> bool {
        while !self.out.is_empty() {
            match self.socket.write(&self.out) {
                Ok(0) => return false,
                Ok(n) => {
                    self.out.advance(n);
                    self.blocked = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked.get_or_insert(now);
                    return true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.blocked = None;
        true
    }

    /// Says that nothing more will be sent.
    pub(super) fn finish(&mut self) {
        // A socket that is already gone has been told.
        drop(self.socket.shutdown(Shutdown::Write));
    }
}
