//! A closed loop of HTTP requests: each connection sends its next request when the answer to the last one is there.
//!
//! One thread, mio, requests prepared as bytes and answers looked at only as far as needed: on two cores, what the
//! client burns the server does not have. Under TLS it burns about as much for that as the server does.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use bytes::{Buf, BytesMut};
use hdrhistogram::Histogram;
use hostler_tls::{Channel, ClientConfig, ServerName};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::clock::Moment;

/// Longest silence of a server until the run is given up: longer than any wait it is asked for, and than a disk takes that
/// has gigabytes of somebody else's to write first.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Most requests sent again because the server was full.
const REFUSED_MAX: u64 = 100_000;
/// One read: an answer to a single job is a tenth of it.
const PIECE_BYTES: usize = 4_096;
/// Largest answer.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Where requests go: plain, unless TLS is named.
#[derive(Clone, Debug)]
pub struct To {
    /// Where it listens.
    pub addr: SocketAddr,
    /// Whom to trust, and who must be there.
    pub tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl From<SocketAddr> for To {
    fn from(addr: SocketAddr) -> Self {
        Self { addr, tls: None }
    }
}

/// What a loop did.
#[derive(Debug)]
pub struct Done {
    /// Requests answered with a 2xx.
    pub requests: u64,
    /// Requests sent again after a 429 or 503.
    pub refused: u64,
    /// From the first byte sent to the last one received.
    pub elapsed: Duration,
    /// Of each request, in microseconds.
    pub latency_us: Histogram<u64>,
}

/// A request as it goes out.
pub fn request(method: &str, path: &str, token: Option<&str>, json: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n").into_bytes();
    if let Some(token) = token {
        bytes.extend_from_slice(format!("Authorization: Bearer {token}\r\n").as_bytes());
    }
    if !json.is_empty() {
        let head = "Content-Type: application/json\r\nContent-Length";
        bytes.extend_from_slice(format!("{head}: {}\r\n", json.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(json);
    bytes
}

/// Sends what `next` gives until it gives no more; tells `answered` each body of a 2xx.
pub fn run(
    to: impl Into<To>,
    connections: usize,
    mut next: impl FnMut() -> Option<Vec<u8>>,
    mut answered: impl FnMut(&[u8]) -> Result<()>,
) -> Result<Done> {
    let next = || Some((next()?, ()));
    run_marked(to, connections, next, |(), body| answered(body))
}

/// The same with a mark on each request, handed back with its answer.
pub fn run_marked<M>(
    to: impl Into<To>,
    connections: usize,
    mut next: impl FnMut() -> Option<(Vec<u8>, M)>,
    mut answered: impl FnMut(M, &[u8]) -> Result<()>,
) -> Result<Done> {
    let to = to.into();
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1_024);
    let mut done = Done {
        requests: 0,
        refused: 0,
        elapsed: Duration::ZERO,
        latency_us: Histogram::new(3)?,
    };
    let begun = Moment::now();
    let mut open = 0;
    let mut all = Vec::new();
    for index in 0..connections {
        let Some((bytes, mark)) = next() else { break };
        let mut connection = Connection::new(&to, bytes)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut connection.stream, Token(index), interest)?;
        all.push((connection, Some(mark)));
        open += 1;
    }
    while open > 0 {
        if let Err(error) = poll.poll(&mut events, Some(SILENCE_MAX)) {
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error.into());
        }
        ensure!(
            !events.is_empty(),
            "the server was silent for {SILENCE_MAX:?}"
        );
        for event in &events {
            let (connection, mark) = &mut all[event.token().0];
            // One answer an event: the next request's cannot be there yet, and tells of itself when it is.
            if mark.is_some()
                && let Some(answer) = connection.pump()?
            {
                let body = &connection.received[answer.body.clone()];
                match answer.status {
                    200..=299 => {
                        done.requests += 1;
                        let us = u64::try_from(connection.since.elapsed().as_micros())?;
                        done.latency_us.record(us)?;
                        if let Some(mark) = mark.take() {
                            answered(mark, body)?;
                        }
                        match next() {
                            Some((bytes, new)) => {
                                connection.again(answer.body.end, bytes)?;
                                *mark = Some(new);
                            }
                            None => open -= 1,
                        }
                    }
                    429 | 503 if done.refused < REFUSED_MAX => {
                        done.refused += 1;
                        let bytes = std::mem::take(&mut connection.request);
                        connection.again(answer.body.end, bytes)?;
                    }
                    status => bail!(
                        "the server answered {status}: {}",
                        String::from_utf8_lossy(&body[..body.len().min(1_000)])
                    ),
                }
            }
        }
    }
    done.elapsed = begun.elapsed();
    Ok(done)
}

/// One request, its answer's body.
pub fn once(to: impl Into<To>, bytes: Vec<u8>) -> Result<Vec<u8>> {
    let mut bytes = Some(bytes);
    let mut body = Vec::new();
    run(
        to,
        1,
        || bytes.take(),
        |answer| {
            body = answer.to_vec();
            Ok(())
        },
    )?;
    Ok(body)
}

pub(crate) fn connected(addr: SocketAddr) -> Result<TcpStream> {
    let stream =
        std::net::TcpStream::connect(addr).with_context(|| format!("cannot connect to {addr}"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(TcpStream::from_std(stream))
}

pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    channel: Channel,
    request: Vec<u8>,
    /// What of it has not left.
    out: BytesMut,
    pub(crate) received: BytesMut,
    since: Moment,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: std::ops::Range<usize>,
}

impl Connection {
    pub(crate) fn new(to: &To, request: Vec<u8>) -> Result<Self> {
        let channel = match to.tls.clone() {
            Some((config, name)) => Channel::client(config, name)?,
            None => Channel::plain(),
        };
        Ok(Self {
            stream: connected(to.addr)?,
            channel,
            out: BytesMut::from(&request[..]),
            request,
            received: BytesMut::with_capacity(4_096),
            since: Moment::now(),
        })
    }

    /// The last answer ends at `end`; this goes out now, as far as the socket takes it.
    pub(crate) fn again(&mut self, end: usize, request: Vec<u8>) -> Result<()> {
        self.received.advance(end);
        self.out.clear();
        self.out.extend_from_slice(&request);
        self.request = request;
        self.since = Moment::now();
        self.send()
    }

    fn send(&mut self) -> Result<()> {
        if !self.out.is_empty() || self.channel.wants_write() {
            self.channel.write(&mut self.stream, &mut self.out)?;
        }
        Ok(())
    }

    /// Moves bytes until an answer is whole, or nothing moves.
    pub(crate) fn pump(&mut self) -> Result<Option<Answer>> {
        let mut piece = [0; PIECE_BYTES];
        loop {
            self.send()?;
            if let Some(answer) = parse(&self.received)? {
                return Ok(Some(answer));
            }
            let read = self
                .channel
                .read(&mut self.stream, &mut piece, &mut self.received);
            match read {
                Ok(taken) if taken.wire == 0 => bail!("the server closed the connection"),
                Ok(_) => {}
                Err(error) if error.is_blocked() => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            ensure!(
                self.received.len() <= ANSWER_BYTES_MAX,
                "an answer without end"
            );
        }
    }
}

/// An answer at the beginning of these bytes, if it is whole.
fn parse(bytes: &[u8]) -> Result<Option<Answer>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end]).context("a head that is not text")?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1)?.parse().ok())
        .context("a head without status")?;
    let mut length = None;
    for line in lines {
        let (name, value) = line.split_once(':').context("a header without colon")?;
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>()?);
        }
    }
    let length = match (length, status) {
        (Some(length), _) => length,
        (None, 204 | 304) => 0,
        (None, _) => bail!("an answer that does not tell its length"),
    };
    let body = end + 4..end + 4 + length;
    Ok((bytes.len() >= body.end).then_some(Answer { status, body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let bytes = b"HTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1";
        for cut in 0..50 {
            let whole = parse(&bytes[..cut.min(bytes.len())]).unwrap();
            assert_eq!(whole.is_some(), cut >= 46, "{cut}");
        }
        let answer = parse(bytes).unwrap().unwrap();
        assert_eq!((answer.status, &bytes[answer.body]), (201, &b"abc"[..]));
        assert!(parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
