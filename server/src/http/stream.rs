//! What HTTP is spoken on: the socket itself, or TLS over it.
//!
//! A client that speaks plain HTTP to a TLS port is recognised by its first byte and told so. The handshake has the time
//! that a request's head has, and so many go on at once; the others wait within their time. One that takes longer than a
//! second goes on without its place, so that clients that begin and fall silent keep nobody out.
//!
//! Not here: what travels in it (`conn`), certificates (`hostler_tls`).

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hostler_tls::{Live, Port};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::http::problem::{self, Code};

/// How long a handshake keeps its place.
const PLACE_TIME: Duration = Duration::from_secs(1);

/// The two ways.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What makes TLS connections.
#[derive(Debug)]
pub(super) struct Tls {
    live: Arc<Live>,
    handshakes: Semaphore,
    timeout: Duration,
}

/// What became of a connection to a TLS port.
pub(super) enum Begun {
    Tls(Stream),
    /// It speaks plain HTTP: this is what to tell it.
    Plain(Stream, Vec<u8>),
    /// One side does not accept the other. The alert that says so must not be lost with what is unread.
    Refused(Stream, io::Error),
}

impl Tls {
    pub(super) fn new(live: Arc<Live>, handshakes_max: usize, timeout: Duration) -> Self {
        Self {
            live,
            handshakes: Semaphore::new(handshakes_max.clamp(1, Semaphore::MAX_PERMITS)),
            timeout,
        }
    }

    /// The handshake, in its time.
    pub(super) async fn begin(&self, stream: TcpStream) -> io::Result<Begun> {
        let begun = tokio::time::timeout(self.timeout, self.shake(stream)).await;
        let begun = begun.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()));
        if !matches!(begun, Ok(Begun::Tls(_))) {
            self.live.handshake_failed();
        }
        begun
    }

    async fn shake(&self, stream: TcpStream) -> io::Result<Begun> {
        let mut first = [0];
        if stream.peek(&mut first).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if first[0].is_ascii_uppercase() {
            let detail = "this is a TLS port: use https://";
            let answer = problem::raw(Code::MalformedRequest, detail);
            return Ok(Begun::Plain(Stream::Plain(stream), answer));
        }
        let place = self.handshakes.acquire().await.map_err(io::Error::other)?;
        let acceptor = TlsAcceptor::from(self.live.config(Port::Http));
        let mut shaken = pin!(acceptor.accept(stream).into_fallible());
        let begun = tokio::time::timeout(PLACE_TIME, shaken.as_mut()).await;
        drop(place);
        let done = match begun {
            Ok(done) => done,
            Err(_elapsed) => shaken.await,
        };
        Ok(match done {
            Ok(stream) => Begun::Tls(Stream::Tls(Box::new(stream))),
            Err((error, stream)) => Begun::Refused(Stream::Plain(stream), error),
        })
    }
}

impl Stream {
    pub(super) fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
