//! A relay between workers and server. It passes bytes on, and on command it holds them (the connection stays open and
//! silent), abandons a connection (neither end hears of the other again, nor of its end), cuts it (reset), also in the
//! middle of a frame, delays bytes, damages them, and remembers what a worker said, to be replayed.
//!
//! Connections are chosen by what they are for, which the first frame of each says: control or output.
//!
//! Damage is done to whole frames, at any of their bytes: whatever it makes of them, a checksum tells.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use hostler_wire::decoder::Decoder;
use hostler_wire::frame::{Frame, Role};
use rustix::net::sockopt::set_socket_linger;

/// What is remembered of a connection: a handshake, not what follows.
const REMEMBERED_BYTES_MAX: usize = 64 << 10;

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the worker to the server.
    Up,
    /// From the server to the worker.
    Down,
}

/// What is done to the next frame on its way.
#[derive(Clone, Debug)]
pub enum Damage {
    /// These bytes stand in it, before the byte with this number; counted round if it has fewer.
    Insert(usize, Vec<u8>),
    /// The byte with this number is changed by XOR with the other, which is not 0; counted round likewise.
    Flip(usize, u8),
    /// A few bytes of it pass, then the connection is reset.
    CutInFrame,
}

/// A relay to one address. It runs until the test ends.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    to: SocketAddr,
    rules: Mutex<Rules>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Rules {
    held: Vec<Role>,
    refused: bool,
    delay: Duration,
    damage: Vec<(Role, Way, Damage)>,
    damaged: usize,
    links: Vec<Arc<Link>>,
    accepted: usize,
    passed_bytes: u64,
}

/// One connection, both halves of it.
#[derive(Debug)]
struct Link {
    worker: TcpStream,
    server: TcpStream,
    /// What the worker said first, up to a bound.
    said: Mutex<Said>,
    cut: AtomicBool,
    abandoned: AtomicBool,
}

/// Where frames begin in a stream of bytes.
#[derive(Debug, Default)]
struct Frames {
    /// What is known of the present one's length.
    header: Vec<u8>,
    /// Bytes of the present one that are still to come after its length.
    left: usize,
}

#[derive(Debug, Default)]
struct Said {
    role: Option<Role>,
    bytes: Vec<u8>,
    over: bool,
}

impl Relay {
    /// Starts one that passes everything on to `to`.
    pub fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            to,
            rules: Mutex::default(),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for worker in listener.incoming().flatten() {
                accepting.accept(worker);
            }
        });
        Self { addr, shared }
    }

    /// Where workers connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Nothing more passes on connections of this role, present and future; they stay open.
    pub fn hold(&self, role: Role) {
        self.shared.change(|rules| rules.held.push(role));
    }

    /// What was held passes again.
    pub fn release(&self) {
        self.shared.change(|rules| rules.held.clear());
    }

    /// Resets the connections of this role, and says how many there were.
    pub fn cut(&self, role: Role) -> usize {
        let links = self.links(role);
        for link in &links {
            link.cut.store(true, Ordering::SeqCst);
            reset(&link.worker);
            reset(&link.server);
        }
        // What was held on them need not wait any longer.
        self.shared
            .change(|rules| rules.links.retain(|link| !link.cut.load(Ordering::SeqCst)));
        links.len()
    }

    /// The present connections of this role swallow everything from now on, and neither end is told when the other
    /// closes: what a peer is to which a cable has been pulled. Says how many there were.
    pub fn abandon(&self, role: Role) -> usize {
        let links = self.links(role);
        for link in &links {
            link.abandoned.store(true, Ordering::SeqCst);
        }
        self.shared.change(|rules| {
            (rules.links).retain(|link| !link.abandoned.load(Ordering::SeqCst));
        });
        links.len()
    }

    /// Does this to the next frame of a connection of this role that goes this way.
    pub fn damage(&self, role: Role, way: Way, damage: Damage) {
        self.shared
            .change(|rules| rules.damage.push((role, way, damage)));
    }

    /// Frames damaged so far.
    pub fn damaged(&self) -> usize {
        self.shared.rules.lock().unwrap().damaged
    }

    /// No damage is done that has not been done yet.
    pub fn spare(&self) {
        self.shared.change(|rules| rules.damage.clear());
    }

    /// New connections are reset at once, or no longer.
    pub fn refuse(&self, refused: bool) {
        self.shared.change(|rules| rules.refused = refused);
    }

    /// Each piece waits so long before it is passed on.
    pub fn delay(&self, delay: Duration) {
        self.shared.change(|rules| rules.delay = delay);
    }

    /// Open connections of this role.
    pub fn open(&self, role: Role) -> usize {
        self.links(role).len()
    }

    /// Connections that were ever made.
    pub fn accepted(&self) -> usize {
        self.shared.rules.lock().unwrap().accepted
    }

    /// Bytes passed on so far, both ways together.
    pub fn passed_bytes(&self) -> u64 {
        self.shared.rules.lock().unwrap().passed_bytes
    }

    /// The first bytes a worker sent on a connection of this role that is open.
    pub fn remembered(&self, role: Role) -> Option<Vec<u8>> {
        self.links(role)
            .first()
            .map(|link| link.said.lock().unwrap().bytes.clone())
    }

    fn links(&self, role: Role) -> Vec<Arc<Link>> {
        let rules = self.shared.rules.lock().unwrap();
        rules
            .links
            .iter()
            .filter(|link| link.role() == Some(role))
            .cloned()
            .collect()
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.rules.lock().unwrap());
        self.changed.notify_all();
    }

    fn accept(self: &Arc<Self>, worker: TcpStream) {
        let mut rules = self.rules.lock().unwrap();
        rules.accepted += 1;
        if rules.refused {
            return reset(&worker);
        }
        // While the server is away, so are we.
        let Ok(server) = TcpStream::connect(self.to) else {
            return reset(&worker);
        };
        for socket in [&worker, &server] {
            socket.set_nodelay(true).ok();
        }
        let link = Arc::new(Link {
            worker,
            server,
            said: Mutex::default(),
            cut: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
        });
        rules.links.push(Arc::clone(&link));
        drop(rules);
        for way in [Way::Up, Way::Down] {
            let (shared, link) = (Arc::clone(self), Arc::clone(&link));
            thread::spawn(move || {
                shared.pump(&link, way).ok();
                if link.abandoned.load(Ordering::SeqCst) {
                    // The other half closes when its own end does.
                    return;
                }
                link.close();
                shared.change(|rules| rules.links.retain(|it| !Arc::ptr_eq(it, &link)));
            });
        }
    }

    /// Passes on what comes from one end, until that end closes or the link is cut.
    fn pump(&self, link: &Link, way: Way) -> io::Result<()> {
        let (mut from, mut to) = match way {
            Way::Up => (&link.worker, &link.server),
            Way::Down => (&link.server, &link.worker),
        };
        let mut buffer = vec![0; 64 << 10];
        let mut frames = Frames::default();
        loop {
            let read = from.read(&mut buffer)?;
            if read == 0 {
                return Ok(());
            }
            let bytes = &buffer[..read];
            if way == Way::Up {
                link.listen(bytes);
            }
            self.wait_for_leave(link);
            if link.abandoned.load(Ordering::SeqCst) {
                continue;
            }
            let begin = frames.pass(bytes);
            match begin.and_then(|begin| Some((begin, self.take_damage(link, way)?))) {
                None => to.write_all(bytes)?,
                Some((begin, damage)) => {
                    let (before, frame) = bytes.split_at(begin);
                    to.write_all(before)?;
                    if !write_damaged(to, frame, damage)? {
                        reset(&link.worker);
                        reset(&link.server);
                        return Ok(());
                    }
                }
            }
            self.rules.lock().unwrap().passed_bytes += read as u64;
        }
    }

    fn take_damage(&self, link: &Link, way: Way) -> Option<Damage> {
        let role = link.role()?;
        let mut rules = self.rules.lock().unwrap();
        let mut all = rules.damage.iter();
        let at = all.position(|(its_role, its_way, _)| (*its_role, *its_way) == (role, way))?;
        rules.damaged += 1;
        Some(rules.damage.remove(at).2)
    }

    fn wait_for_leave(&self, link: &Link) {
        let role = link.role();
        let held = |rules: &mut Rules| {
            let is_over = link.cut.load(Ordering::SeqCst) || link.abandoned.load(Ordering::SeqCst);
            !is_over && role.is_some_and(|role| rules.held.contains(&role))
        };
        let rules = self.rules.lock().unwrap();
        let rules = self.changed.wait_while(rules, held).unwrap();
        let delay = rules.delay;
        drop(rules);
        if !delay.is_zero() {
            thread::park_timeout(delay);
        }
    }
}

impl Link {
    fn role(&self) -> Option<Role> {
        self.said.lock().unwrap().role
    }

    fn listen(&self, bytes: &[u8]) {
        let mut said = self.said.lock().unwrap();
        if said.over {
            return;
        }
        said.bytes.extend_from_slice(bytes);
        if said.role.is_none() {
            let mut decoder = Decoder::new();
            decoder.buffer().extend_from_slice(&said.bytes);
            if let Ok(Some(Frame::Hello(hello))) = decoder.next_frame() {
                said.role = Some(hello.role);
            }
        }
        said.over = said.bytes.len() > REMEMBERED_BYTES_MAX;
    }

    /// Ends both halves when one end has; what was said before is still delivered.
    fn close(&self) {
        self.worker.shutdown(Shutdown::Both).ok();
        self.server.shutdown(Shutdown::Both).ok();
    }
}

impl Frames {
    /// Takes what passes. Says where in it the last whole header of a frame begins, if there is one.
    fn pass(&mut self, bytes: &[u8]) -> Option<usize> {
        const HEADER_BYTES: usize = 12;
        let (mut at, mut begin) = (0, None);
        while at < bytes.len() {
            if self.left > 0 {
                let step = self.left.min(bytes.len() - at);
                self.left -= step;
                at += step;
                continue;
            }
            if self.header.is_empty() && bytes.len() - at >= HEADER_BYTES {
                begin = Some(at);
            }
            self.header.push(bytes[at]);
            at += 1;
            if let &[a, b, c, d] = &self.header[..] {
                self.left = u32::from_le_bytes([a, b, c, d]) as usize;
                self.header.clear();
            }
        }
        begin
    }
}

/// Writes a frame as it should not be. False if the connection is to be reset then.
fn write_damaged(mut to: &TcpStream, frame: &[u8], damage: Damage) -> io::Result<bool> {
    let mut frame = frame.to_vec();
    match damage {
        Damage::Insert(at, bytes) => {
            let at = at % frame.len();
            frame.splice(at..at, bytes);
        }
        Damage::Flip(at, change) => {
            let at = at % frame.len();
            frame[at] ^= change;
        }
        Damage::CutInFrame => {
            to.write_all(&frame[..5])?;
            return Ok(false);
        }
    }
    to.write_all(&frame)?;
    Ok(true)
}

/// Closes without ceremony: what is not yet delivered is lost.
fn reset(socket: &TcpStream) {
    set_socket_linger(socket, Some(Duration::ZERO)).ok();
    socket.shutdown(Shutdown::Both).ok();
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use hostler_wire::codec::raw_frame;
    use hostler_wire::handshake::ClientHandshake;
    use hostler_wire::token::Token;

    use super::*;
    use crate::clock::{PATIENCE, eventually};

    /// A server that sends everything back, and a worker's connection of this role to it.
    fn through_relay(role: Role) -> (Relay, TcpStream, Vec<u8>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let relay = Relay::to(listener.local_addr().unwrap());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || io::copy(&mut &stream, &mut &stream));
            }
        });
        let token = Token {
            role: "worker".into(),
            id: "00000000".into(),
            secret: [0; 32],
        };
        let (_handshake, hello) = ClientHandshake::new(&token, role, [0; 32]);
        let mut bytes = BytesMut::new();
        Frame::Hello(hello).encode(&mut bytes);
        let mut stream = TcpStream::connect(relay.addr()).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut echo = vec![0; bytes.len()];
        stream.read_exact(&mut echo).unwrap();
        assert_eq!(echo, bytes);
        (relay, stream, echo)
    }

    #[test]
    fn it_knows_what_a_connection_is_for_and_holds_only_those() {
        let (relay, mut stream, hello) = through_relay(Role::Output);
        assert_eq!(
            (relay.open(Role::Output), relay.open(Role::Control)),
            (1, 0)
        );
        assert_eq!(relay.remembered(Role::Output), Some(hello));
        relay.hold(Role::Control);
        stream.write_all(b"a").unwrap();
        stream.read_exact(&mut [0]).unwrap();
        relay.hold(Role::Output);
        stream.write_all(b"b").unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        assert!(stream.read(&mut [0]).is_err(), "what is held came through");
        relay.release();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"b");
    }

    #[test]
    fn it_cuts_even_what_it_holds_and_refuses_until_told_otherwise() {
        let (relay, mut stream, _hello) = through_relay(Role::Control);
        relay.hold(Role::Control);
        stream.write_all(b"lost").unwrap();
        assert_eq!(relay.cut(Role::Control), 1);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(
            !matches!(stream.read(&mut [0]), Ok(1..)),
            "a cut connection speaks"
        );
        eventually(PATIENCE, "it is gone", || relay.open(Role::Control) == 0);
        relay.refuse(true);
        let mut refused = TcpStream::connect(relay.addr()).unwrap();
        assert!(!matches!(refused.read(&mut [0]), Ok(1..)));
    }

    #[test]
    fn it_knows_where_frames_begin_however_they_are_cut() {
        // Three frames: 12 bytes, 15 bytes, 13 bytes.
        let bytes = [b"".as_slice(), b"abc", b"d"].map(|body| raw_frame(9, 0, body));
        let bytes = bytes.concat();
        assert_eq!(Frames::default().pass(&bytes), Some(27));
        for cut in 0..bytes.len() {
            let mut frames = Frames::default();
            let (first, second) = bytes.split_at(cut);
            let begins = (frames.pass(first), frames.pass(second));
            let first = [0, 12, 27].into_iter().rfind(|begin| begin + 12 <= cut);
            let second = [0, 12, 27].into_iter().rfind(|begin| *begin >= cut);
            assert_eq!(
                begins,
                (first, second.map(|begin| begin - cut)),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn what_it_abandons_hears_nothing_and_is_not_told_of_the_end() {
        let (relay, mut stream, _hello) = through_relay(Role::Control);
        assert_eq!(relay.abandon(Role::Control), 1);
        stream.write_all(b"into the void").unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let heard = stream.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(heard, Err(io::ErrorKind::WouldBlock));
        assert_eq!(relay.open(Role::Control), 0);
    }

    #[test]
    fn it_damages_one_frame_and_passes_on_the_next() {
        let frame = raw_frame(9, 0, &[7]);
        let mut flipped = frame.to_vec();
        flipped[3] ^= 0x40;
        for (damage, arrives) in [
            (
                Damage::Insert(26, vec![1, 2]),
                [&[1, 2], &frame[..]].concat(),
            ),
            (
                Damage::Insert(12, vec![1, 2]),
                [&frame[..12], &[1, 2, 7]].concat(),
            ),
            (Damage::Flip(13 + 3, 0x40), flipped),
        ] {
            let (relay, mut stream, _hello) = through_relay(Role::Output);
            relay.damage(Role::Output, Way::Up, damage);
            // Nothing of another role.
            relay.damage(Role::Control, Way::Up, Damage::CutInFrame);
            let whole = [&arrives[..], &frame].concat();
            let mut echo = vec![0; whole.len()];
            stream.write_all(&frame).unwrap();
            stream.read_exact(&mut echo[..arrives.len()]).unwrap();
            stream.write_all(&frame).unwrap();
            stream.read_exact(&mut echo[arrives.len()..]).unwrap();
            assert_eq!(echo, whole);
            assert_eq!(relay.damaged(), 1);
        }
        let (relay, mut stream, _hello) = through_relay(Role::Output);
        relay.damage(Role::Output, Way::Up, Damage::CutInFrame);
        stream.write_all(&frame).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(stream.read_exact(&mut [0; 13]).is_err(), "it was not cut");
    }
}
