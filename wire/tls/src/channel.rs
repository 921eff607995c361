//! What lies between a socket and its owner's bytes: nothing, or TLS.
//!
//! Works on any socket that does not block, given anew with each call. A read takes what came in one call of the system and
//! gives out all of it that can be understood; so nothing is held back that a later event would have to bring. A write
//! gives the socket as much as it takes, and encrypts only a little ahead of it: what waits, waits in the owner's
//! buffer, where it is counted and bounded.
//!
//! An end without `close_notify` is an error: whoever cuts a connection must not be able to make it look finished.

use std::fmt;
use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

/// Most bytes encrypted ahead of the socket.
const AHEAD_BYTES: usize = 256 << 10;
/// First byte of a TLS record that carries a handshake: what every TLS connection begins with.
const HANDSHAKE_RECORD: u8 = 22;
/// RFC 9266.
const BINDING_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// One connection's way from bytes to meaning.
#[derive(Debug, Default)]
pub struct Channel {
    tls: Option<Box<Tls>>,
}

#[derive(Debug)]
struct Tls {
    connection: Connection,
    /// Something has come from the peer.
    begun: bool,
    /// The peer has said that nothing more comes.
    closed: bool,
    /// It went wrong: what is still sent is the alert that says so, and what still comes is not read.
    failed: bool,
}

/// What a read gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes that came from the socket; 0 is the orderly end.
    pub wire: usize,
    /// Bytes that were added to the owner's buffer.
    pub plain: usize,
}

/// What a write gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes that the socket took.
    pub wire: usize,
    /// It takes nothing more for now.
    pub blocked: bool,
}

/// Why a channel is at its end.
#[derive(Debug)]
pub enum ChannelError {
    /// The socket's own error.
    Io(io::Error),
    /// The peer broke TLS, or one side does not accept the other.
    Tls(rustls::Error),
    /// The peer speaks, but not TLS.
    NotTls,
    /// The connection ended without the word that ends it.
    Truncated,
}

impl Channel {
    /// A channel that passes everything through.
    pub const fn plain() -> Self {
        Self { tls: None }
    }

    /// The server's end of a TLS connection.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        ServerConnection::new(config).map(|connection| Self::over(connection.into()))
    }

    /// The client's end, towards a server of that name.
    pub fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        ClientConnection::new(config, name).map(|connection| Self::over(connection.into()))
    }

    fn over(mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(AHEAD_BYTES));
        let tls = Tls {
            connection,
            begun: false,
            closed: false,
            failed: false,
        };
        Self {
            tls: Some(Box::new(tls)),
        }
    }

    /// Whether it is TLS.
    pub const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Whether TLS has begun and is not agreed upon yet.
    pub fn is_handshaking(&self) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.begun && !tls.failed && tls.connection.is_handshaking())
    }

    /// Whether the owner's bytes may travel.
    pub fn is_open(&self) -> bool {
        let tls = self.tls.as_ref();
        tls.is_none_or(|tls| !tls.failed && !tls.connection.is_handshaking())
    }

    /// What ties a proof to this very connection (RFC 9266); none on a plain one, and before TLS is agreed upon.
    pub fn binding(&self) -> Option<[u8; 32]> {
        match &self.tls.as_ref()?.connection {
            Connection::Client(connection) => exporter(connection),
            Connection::Server(connection) => exporter(connection),
        }
    }

    /// The names in the certificate that the peer has shown and that was accepted.
    pub fn peer_names(&self) -> Vec<String> {
        let certificates = self
            .tls
            .as_ref()
            .and_then(|tls| tls.connection.peer_certificates());
        certificate_names(certificates.and_then(|chain| chain.first()))
    }

    /// Reads once from `socket`, by way of `room`, and appends what it means to `into`.
    pub fn read(
        &mut self,
        socket: &mut impl Read,
        room: &mut [u8],
        into: &mut BytesMut,
    ) -> Result<Taken, ChannelError> {
        if self.tls.as_ref().is_some_and(|tls| tls.closed) {
            return Ok(Taken::default());
        }
        let wire = loop {
            match socket.read(room) {
                Ok(bytes) => break bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        };
        let Some(tls) = &mut self.tls else {
            into.extend_from_slice(&room[..wire]);
            return Ok(Taken { wire, plain: wire });
        };
        if wire == 0 {
            return Err(ChannelError::Truncated);
        }
        let plain = tls.take(&room[..wire], into)?;
        Ok(Taken { wire, plain })
    }

    /// Gives `socket` what it takes of `out`, and whatever TLS itself has to say.
    pub fn write(
        &mut self,
        socket: &mut impl Write,
        out: &mut BytesMut,
    ) -> Result<Sent, ChannelError> {
        match &mut self.tls {
            None => write_all(socket, out),
            Some(tls) => tls.give(socket, out),
        }
    }

    /// TLS itself has something to say, or what it has encrypted has not left.
    pub fn wants_write(&self) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.connection.wants_write())
    }

    /// Says that nothing more comes, once all of `out` is given.
    pub fn close(&mut self) {
        if let Some(tls) = &mut self.tls
            && !tls.failed
        {
            tls.connection.send_close_notify();
        }
    }

    /// From now on bytes pass as they are: for a last word to a peer that does not speak TLS.
    pub fn give_up_tls(&mut self) {
        self.tls = None;
    }
}

impl Tls {
    /// Takes in what came, and gives out what it means.
    fn take(&mut self, mut wire: &[u8], into: &mut BytesMut) -> Result<usize, ChannelError> {
        if self.failed {
            return Ok(0);
        }
        if !std::mem::replace(&mut self.begun, true)
            && matches!(self.connection, Connection::Server(_))
            && wire.first().is_some_and(|first| *first != HANDSHAKE_RECORD)
        {
            self.failed = true;
            return Err(ChannelError::NotTls);
        }
        let before = into.len();
        while !wire.is_empty() && !self.closed {
            // TLS takes a few KiB at a time, and nothing while its own buffer is full: it is emptied after each piece.
            let took = self.connection.read_tls(&mut wire)?;
            let state = self.connection.process_new_packets();
            let state = state.map_err(|error| {
                self.failed = true;
                ChannelError::Tls(error)
            })?;
            self.closed = state.peer_has_closed();
            let mut unread = state.plaintext_bytes_to_read();
            let mut reader = self.connection.reader();
            while unread > 0 {
                let chunk = reader.fill_buf()?;
                let bytes = chunk.len();
                into.extend_from_slice(chunk);
                reader.consume(bytes);
                unread -= bytes;
            }
            if took == 0 {
                break;
            }
        }
        Ok(into.len() - before)
    }

    fn give(&mut self, socket: &mut impl Write, out: &mut BytesMut) -> Result<Sent, ChannelError> {
        let mut sent = Sent::default();
        loop {
            if self.failed {
                out.clear();
            } else if !self.connection.is_handshaking() && !out.is_empty() {
                let took = self.connection.writer().write(out)?;
                out.advance(took);
            }
            if !self.connection.wants_write() {
                return Ok(sent);
            }
            match self.connection.write_tls(socket) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(bytes) => sent.wire += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sent.blocked = true;
                    return Ok(sent);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn write_all(socket: &mut impl Write, out: &mut BytesMut) -> Result<Sent, ChannelError> {
    let mut sent = Sent::default();
    while !out.is_empty() {
        match socket.write(out) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
            Ok(bytes) => {
                out.advance(bytes);
                sent.wire += bytes;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                sent.blocked = true;
                break;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent)
}

/// What ties a proof to this very connection (RFC 9266), once TLS is agreed upon.
pub fn exporter<Data>(connection: &rustls::ConnectionCommon<Data>) -> Option<[u8; 32]> {
    let exported = connection.export_keying_material([0; 32], BINDING_LABEL, None);
    exported.ok()
}

/// The names a certificate is for.
pub fn certificate_names(
    certificate: Option<&rustls::pki_types::CertificateDer<'_>>,
) -> Vec<String> {
    let parsed = certificate.and_then(|der| webpki::EndEntityCert::try_from(der).ok());
    parsed.map_or_else(Vec::new, |certificate| {
        certificate.valid_dns_names().map(str::to_owned).collect()
    })
}

impl ChannelError {
    /// Nothing for now, and no error.
    pub fn is_blocked(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Tls(error) => write!(f, "TLS failed: {error}"),
            Self::NotTls => f.write_str("what came is not TLS"),
            Self::Truncated => f.write_str("the connection was cut"),
        }
    }
}

impl std::error::Error for ChannelError {}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
