//! A server that answers every request at once with the same bytes: what single requests cost before anything is done
//! for them.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::thread;

use anyhow::Result;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX);
/// Most connections served.
const CONNECTIONS_MAX: usize = 4_096;
const ANSWER: &[u8] =
    b"HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: 30\r\n\r\n\
    {\"id\":123456,\"state\":\"queued\"}";

/// Starts one on a thread of its own, for as long as this process lives.
pub fn start() -> Result<SocketAddr> {
    let mut listener = TcpListener::bind(([127, 0, 0, 1], 0).into())?;
    let addr = listener.local_addr()?;
    let poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    thread::Builder::new()
        .name("responder".into())
        .spawn(move || {
            // It ends with the process; an error here shows as silence to the client, which reports it.
            drop(serve(poll, &listener));
        })?;
    Ok(addr)
}

fn serve(mut poll: Poll, listener: &TcpListener) -> io::Result<()> {
    let mut events = Events::with_capacity(1_024);
    let mut peers: Vec<Option<(TcpStream, Vec<u8>)>> = Vec::new();
    loop {
        match poll.poll(&mut events, None) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    if peers.len() < CONNECTIONS_MAX {
                        stream.set_nodelay(true)?;
                        let token = Token(peers.len());
                        poll.registry()
                            .register(&mut stream, token, Interest::READABLE)?;
                        peers.push(Some((stream, Vec::new())));
                    }
                }
                continue;
            }
            let slot = &mut peers[event.token().0];
            if slot
                .as_mut()
                .is_some_and(|(stream, buffer)| !answer(stream, buffer))
            {
                *slot = None;
            }
        }
    }
}

/// Reads what is there and answers each whole request; false once the other side is gone.
fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> bool {
    let mut piece = [0; 16_384];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return false,
            Ok(count) => buffer.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
        while let Some(length) = whole(buffer) {
            buffer.drain(..length);
            // A closed loop has one answer under way: it always fits into the socket.
            if stream.write_all(ANSWER).is_err() {
                return false;
            }
        }
    }
}

/// Length of the request at the beginning, if it is whole.
fn whole(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let length = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Some(0), |(_, value)| value.trim().parse::<usize>().ok())?;
    (bytes.len() >= end + length).then_some(end + length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::{request, run};

    #[test]
    fn every_request_is_answered() {
        let addr = start().unwrap();
        let bytes = request("POST", "/jobs", Some("t"), b"{\"handler\":\"noop\"}");
        let mut left = 500;
        let next = || {
            left -= 1;
            (left >= 0).then(|| bytes.clone())
        };
        let done = run(addr, 8, next, |_| Ok(())).unwrap();
        assert_eq!((done.requests, done.refused), (500, 0));
    }

    #[test]
    fn the_answer_tells_its_length() {
        let text = std::str::from_utf8(ANSWER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.ends_with(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
    }
}
