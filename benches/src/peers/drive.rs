//! Many pipelined connections on one thread: what each says next follows from what it hears.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mio::{Events, Interest, Poll, Token};

use crate::clock::{Moment, eventually};
use crate::http::connected;

/// Longest silence until a run is given up.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a peer may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// One end of a conversation.
pub(super) trait Talker: Send {
    /// The first words.
    fn begin(&mut self, out: &mut Vec<u8>);
    /// Hears from the beginning of what was not used yet; tells how many bytes it used, 0 if no word is whole.
    fn hear(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<usize>;
    /// Whether all is said.
    fn is_over(&self) -> bool;
}

/// Lets producers and workers talk at the same time, on a thread each; how long until the last worker is done.
pub(super) fn both<P: Talker, W: Talker>(
    address: SocketAddr,
    producers: Vec<P>,
    workers: Vec<W>,
) -> Result<Duration> {
    let is_up = eventually(PATIENCE, Duration::from_millis(10), || {
        std::net::TcpStream::connect(address).is_ok()
    });
    ensure!(is_up, "nothing listens at {address}");
    thread::scope(|scope| {
        let begun = Moment::now();
        let producing = scope.spawn(move || drive(address, producers));
        let working = scope.spawn(move || drive(address, workers));
        let worked = working.join();
        let elapsed = begun.elapsed();
        for result in [worked, producing.join()] {
            let result = result.ok().context("a client broke off")?;
            result?;
        }
        Ok(elapsed)
    })
}

fn drive<T: Talker>(address: SocketAddr, talkers: Vec<T>) -> Result<()> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1_024);
    let mut all = Vec::new();
    for (index, talker) in talkers.into_iter().enumerate() {
        let mut stream = connected(address)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        poll.registry()
            .register(&mut stream, Token(index), interest)?;
        all.push((stream, talker, Vec::new(), Vec::new()));
    }
    for (stream, talker, out, _) in &mut all {
        talker.begin(out);
        write(stream, out)?;
    }
    let mut piece = vec![0; 64 << 10];
    while !all.iter().all(|(_, talker, ..)| talker.is_over()) {
        match poll.poll(&mut events, Some(SILENCE_MAX)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        ensure!(!events.is_empty(), "silence for {SILENCE_MAX:?}");
        for event in &events {
            let (stream, talker, out, received) = &mut all[event.token().0];
            loop {
                match stream.read(&mut piece) {
                    Ok(0) => bail!("the peer closed the connection"),
                    Ok(count) => received.extend_from_slice(&piece[..count]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error.into()),
                }
            }
            let mut used = 0;
            loop {
                let more = talker.hear(&received[used..], out)?;
                if more == 0 {
                    break;
                }
                used += more;
            }
            received.drain(..used);
            write(stream, out)?;
        }
    }
    Ok(())
}

fn write(stream: &mut impl Write, out: &mut Vec<u8>) -> Result<()> {
    let mut sent = 0;
    while sent < out.len() {
        match stream.write(&out[sent..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    out.drain(..sent);
    Ok(())
}

/// A line without its end, and how many bytes it takes with it.
pub(super) fn line(bytes: &[u8]) -> Result<Option<(&str, usize)>> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end]).context("a line that is no text")?;
    Ok(Some((text, end + 2)))
}

/// A job's payload: 100 bytes, no two alike.
pub(super) fn payload(number: u64) -> String {
    format!("{number:0>100}")
}

/// Jobs as evenly as they go.
pub(super) fn shares(jobs: u64, parts: u64) -> impl Iterator<Item = u64> {
    (0..parts).map(move |part| jobs / parts + u64::from(part < jobs % parts))
}
