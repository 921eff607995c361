//! Opening a port (HTTP's too), and taking connections from the worker port.
//!
//! Not here: what becomes of a connection (`net`).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections that may wait for us to take them; the kernel's own bound may be lower.
const BACKLOG: i32 = 4_096;
/// A dead peer's socket is noticed by the kernel after about a minute, even where no beat is due (a silent pipe).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// Opens a listening port. Never shared: a second server on it is an error. Sockets made by std, mio and socket2 are
/// CLOEXEC, so no child keeps it.
///
/// Whoever finds the line of those who wait full is heard a second later, when the kernel tries again: std's 128 are
/// fewer than submit at once.
pub(super) fn open(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    // So that a restarted server gets its port back while old connections linger.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What to do after a call to accept.
pub(super) enum Accepted {
    Connection(TcpStream, SocketAddr),
    /// Nobody waits.
    Nobody,
    /// Out of files or memory: try again in a while.
    Later(io::Error),
}

/// Takes one connection.
pub(super) fn accept(listener: &TcpListener) -> Accepted {
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                tune(&stream, peer);
                return Accepted::Connection(stream, peer);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Accepted::Nobody,
            // That peer has gone again; the next may not have.
            Err(error) if is_passing(&error) => {}
            Err(error) => return Accepted::Later(error),
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}

/// Small frames leave at once; a peer that vanished is noticed. A socket without these still works.
fn tune(stream: &TcpStream, peer: SocketAddr) {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    let tuned = stream
        .set_nodelay(true)
        .and_then(|()| SockRef::from(stream).set_tcp_keepalive(&keepalive));
    if let Err(error) = tuned {
        tracing::debug!(%peer, %error, "socket options could not be set");
    }
}
